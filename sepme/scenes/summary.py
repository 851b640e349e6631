"""What the tables say in few numbers: means over the concepts of one role, ours and the paper's."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sepme.errors import SepmeError
from sepme.scenes.measures import MEASURES
from sepme.scenes.protocol import ROLES, WATERMARK, moments
from sepme.scenes.published import Published, family

#: What a bar is called where the paper gives one method in two lengths.
Key = tuple[str, str]


@dataclass(frozen=True)
class Bar:
    """The mean over cells of one method and one role."""

    mean: float
    low: float | None
    """Ends of the interval; None for printed numbers, which have none."""
    high: float | None
    cells: int


def measured_bars(
    rows: Iterable[Mapping[str, Any]], measure: str, scenes: Sequence[str], *, by: str = "role"
) -> dict[Key, Bar]:
    """(method, role) -> the mean of a measure over all moments and concepts of these scenes.

    The watermark is not among them: it has bars of its own (`by="watermark"`).

    Args:
        rows: of a table of scenes.
        measure: "acc", "lpips", "fid" or "kid".
        by: "role", or "watermark" for the watermark's rows alone, whose role reads so.
    """
    found: dict[Key, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        is_mark = int(row["concept_index"]) == WATERMARK
        if row["scene"] in scenes and row[measure] is not None and is_mark == (by == "watermark"):
            found[row["method"], "watermark" if is_mark else row["role"]].append(row)
    return {key: _mean(cells, measure) for key, cells in found.items()}


def complete(
    rows: Iterable[Mapping[str, Any]],
    scenes: Sequence[str],
    concepts: Iterable[int] = range(WATERMARK + 1),
) -> list[Mapping[str, Any]]:
    """Of these scenes, the rows of the methods that were measured in all of them.

    A method of which cells are missing would be averaged over others than its neighbours.

    Args:
        concepts: who must have been drawn at every moment, besides the erased; rows of others are
            left out for all methods alike.
    """
    needed = {
        (scene, moment.time, index)
        for scene in scenes
        for moment in moments(scene)
        for index in {*concepts, *moment.erased}
    }
    found: dict[str, dict[tuple[str, str, int], Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        place = (row["scene"], row["time"], int(row["concept_index"]))
        if place in needed:
            found[row["method"]][place] = row
    return [row for cells in found.values() if len(cells) == len(needed) for row in cells.values()]


def _mean(rows: Sequence[Mapping[str, Any]], measure: str) -> Bar:
    """The mean of the cells; the intervals of independent cells add up in squares."""
    mean = float(np.mean([row[measure] for row in rows]))
    known = [row for row in rows if row[f"{measure}_low"] is not None]
    if len(known) < len(rows):
        return Bar(mean, None, None, len(rows))
    below = [row[measure] - row[f"{measure}_low"] for row in rows]
    above = [row[f"{measure}_high"] - row[measure] for row in rows]
    down, up = (float(np.sqrt(np.square(half).sum())) / len(rows) for half in (below, above))
    return Bar(mean, mean - down, mean + up, len(rows))


def published_bars(
    rows: Iterable[Published], measure: str, scenes: Sequence[str], *, tables: Sequence[str]
) -> dict[Key, Bar]:
    """(method as printed, role) -> the mean of the printed numbers, without doubtful rows."""
    found: dict[Key, list[float]] = defaultdict(list)
    for row in rows:
        value = getattr(row, measure)
        if row.table in tables and row.scene in scenes and value is not None and not row.doubtful:
            found[row.method, row.role].append(value)
    return {key: Bar(float(np.mean(v)), None, None, len(v)) for key, v in found.items()}


def methods_of(bars: Mapping[Key, Bar]) -> list[str]:
    """The methods, each once, in their order."""
    return list(dict.fromkeys(method for method, _ in bars))


def short(method: str) -> str:
    """A printed method on an axis: "FMN[50,30]" is "FMN" with "(50,30 it.)" below it."""
    rest = method.removeprefix(family(method)).strip("[]")
    return f"{family(method)}\n({rest} it.)" if rest else method


def role_table(
    rows: Sequence[Mapping[str, Any]], measure: str
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of a table: the mean of a measure by scene, method and role, with interval.

    Raises:
        SepmeError: no such measure, or none of its cells was measured.
    """
    if measure not in MEASURES:
        raise SepmeError(f"Measure '{measure}' is unknown: choose one of {', '.join(MEASURES)}.")
    roles, body = (*ROLES, "watermark"), []
    for scene in dict.fromkeys(row["scene"] for row in rows):
        bars = measured_bars(rows, measure, [scene])
        bars |= measured_bars(rows, measure, [scene], by="watermark")
        whole = {row["method"] for row in complete(rows, [scene])}
        for name in methods_of(bars):
            label = name if name in whole else f"{name} (incomplete)"
            cells = (_cell(bars.get((name, role)), measure) for role in roles)
            body.append((f"{scene} {label}", *cells))
    if not body:
        raise SepmeError(
            f"No cell of this table holds {measure}: measure it with 'sepme scenes run', or choose "
            "another with --measure."
        )
    return (measure, *roles), body


def _cell(bar: Bar | None, measure: str) -> str:
    """A mean and the ends of its interval; an accuracy in percent."""
    if bar is None:
        return "-"
    scale, digits = (100, 1) if measure == "acc" else (1, 2 if measure == "fid" else 4)
    text = f"{scale * bar.mean:.{digits}f}"
    if bar.low is None or bar.high is None:
        return text
    low, high = max(0.0, scale * bar.low), scale * bar.high
    return f"{text} ({low:.{digits}f} to {high:.{digits}f})"


__all__ = [
    "ROLES",
    "Bar",
    "complete",
    "measured_bars",
    "methods_of",
    "published_bars",
    "role_table",
    "short",
]
