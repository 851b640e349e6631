"""The paper's tables as Markdown: every printed cell, and every measured one, scene by scene.

Rows are a time and a method, columns the nine concepts. **Erased** cells are bold, *recovered* ones
italic, regular ones plain; a printed cell that the source itself puts in doubt has a dagger.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sepme.scenes.methods import METHODS
from sepme.scenes.protocol import SCENES, WATERMARK, cast
from sepme.scenes.published import LABEL, Published, published

TITLES = {
    "acc": "Classifier accuracy, %",
    "lpips": "LPIPS against the original",
    "fid": "FID against the original",
}
MARKS = {"erased": "**{}**", "recovered": "*{}*", "regular": "{}"}
DIGITS = {"acc": 1, "lpips": 3, "fid": 1}
DAGGER = "†"
#: Measured cells: one more digit where the numbers are small, and the half-width of the interval.
FINE = {"acc": 0, "lpips": 4, "fid": 1}

#: (time, method) -> concept -> text.
Grid = Mapping[tuple[str, str], Mapping[int, str]]


def tables(kind: str, rows: Sequence[Mapping[str, Any]], measured: str) -> str:
    """All printed and all measured cells of a kind, as one Markdown document.

    Args:
        rows: of the scenes' table of this kind; the watermark is left out, as the paper leaves it.
        measured: what our tables are labelled with.
    """
    who = cast(kind)
    printed = [row for row in published() if row.kind == kind and row.scene in SCENES]
    names = {row.index: row.concept for row in printed}
    rows = [row for row in rows if int(row["concept_index"]) != WATERMARK]
    parts = [
        f"# The paper's tables, {kind}s",
        "**Bold**: erased; *italic*: recovered; plain: regular. The two sides are about different "
        "models, concepts and classifiers: compare orders, not heights. Measured shares have "
        "Wilson's 95 % interval in brackets, the others a bootstrap interval.",
    ]
    for scene in SCENES:
        parts.append(f"## {scene}")
        for measure, title in TITLES.items():
            theirs = _printed_grid((row for row in printed if row.scene == scene), measure)
            ours = _measured_grid((row for row in rows if row["scene"] == scene), measure)
            for grid, label, concepts in (
                (theirs, LABEL, [names[index] for index in range(9)]),
                (ours, measured, list(who.names)),
            ):
                if grid:
                    parts += [f"### {title} ({label})", _markdown(grid, concepts)]
    return "\n\n".join([*parts, *_remarks(printed)]) + "\n"


def _printed_grid(rows: Iterable[Published], measure: str) -> Grid:
    grid: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for row in rows:
        if (value := getattr(row, measure)) is not None:
            text = f"{100 * value if measure == 'acc' else value:.{DIGITS[measure]}f}"
            doubt = DAGGER if row.doubtful or row.note else ""
            place = row.time, f"{row.method}, table {row.table}"
            grid[place][row.index] = MARKS[row.role].format(text) + doubt
    return grid


def _measured_grid(rows: Iterable[Mapping[str, Any]], measure: str) -> Grid:
    grid: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    scale, digits = 100 if measure == "acc" else 1, FINE[measure]
    for row in rows:
        if (value := row[measure]) is not None:
            text = MARKS[row["role"]].format(f"{scale * value:.{digits}f}")
            ends = [row[f"{measure}_{end}"] for end in ("low", "high")]
            if None not in ends:
                text += " [{:.{d}f}, {:.{d}f}]".format(*(scale * end for end in ends), d=digits)
            place = row["time"], METHODS[row["method"]].title
            grid[place][int(row["concept_index"])] = text
    return grid


def _markdown(grid: Grid, concepts: Sequence[str]) -> str:
    """One table, times in order and methods as they come."""
    header = ["time", "method", *(f"{index} {name}" for index, name in enumerate(concepts))]
    lines = [header, ["---"] * 2 + ["--:"] * len(concepts)]
    for (time, method), cells in sorted(grid.items(), key=lambda item: item[0][0]):
        lines.append([time, method, *(cells.get(index, "–") for index in range(len(concepts)))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _remarks(printed: Sequence[Published]) -> list[str]:
    """What the daggers stand for."""
    doubtful = sorted({(row.table, row.scene, row.time) for row in printed if row.doubtful})
    lines = [
        f"- Table {table}, SepME, {scene} {time}: repeats another row of the source."
        for table, scene, time in doubtful
    ]
    lines += [
        f"- Table {row.table}, {row.method}, {row.scene} {row.time}, {row.concept}: {row.note}"
        for row in printed
        if row.note
    ]
    return [f"## {DAGGER} Cells in doubt", "\n".join(lines)] if lines else []
