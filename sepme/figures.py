"""Every figure of the paper, ours beside the published numbers: `sepme figures`.

| figure here | in the paper | from |
|---|---|---|
| `interference` | 2 | the scenes' tables, each concept erased alone |
| `noise_differences` | 3 | the model: r(c) over timesteps, and how training decorrelates it |
| `before_after_<kind>_<scene>` | 5, 12, 17 | the scenes' pictures |
| `bars_<kind>_<scene>` | 8, 9, 13, 14 | the scenes' tables |
| `alone_<kind>` | 10, 15 | the same, each concept erased alone |
| `watermark` | 11 | the same, the watermark's rows |
| `joint_or_separate` | 16 | the same |
| `regularisation` | tables 4, 7 | the same |

A figure whose rows have not been measured yet is left out, and said so. What is published is
labelled "published, SD v1.4", what is ours "measured, Atelier"; the two are about different models
and different pictures, so heights are to be compared within a panel and never across.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sepme.backbone import ATELIER, Backbone, load_catalogue
from sepme.concept import Catalogue
from sepme.errors import SepmeError
from sepme.files import write_atomically
from sepme.pictures import png
from sepme.provenance import versions
from sepme.report import writable_folder
from sepme.scenes import CASTS, SCENES, moments, read_rows
from sepme.scenes.methods import METHODS
from sepme.scenes.plots import MEASURE_TITLES, interference_table, method_style, role_bars
from sepme.scenes.protocol import ALONE
from sepme.scenes.published import LABEL, family, published
from sepme.scenes.summary import measured_bars, methods_of, published_bars

RESULTS = ATELIER.parent / "results"
MEASURED = "measured, Atelier"
#: The methods of the comparison figures, and their looks, alike in all of them.
COMPARED = ("sepme", "sepme-unaware", "esd-x", "sdd", "abconcept", "fmn", "uce", "speed")
STYLES = {name: method_style(index) for index, name in enumerate(COMPARED)}
#: The same looks for the printed methods, by family.
FAMILIES = {"SepME": "sepme", "ESD": "esd-x", "AbConcept": "abconcept", "FMN": "fmn"}


class NotMeasured(SepmeError):
    """The rows that a figure is made of are not in the tables."""


@dataclass(frozen=True)
class Sources:
    """What figures are made of: the tables, the published numbers, and the model if one is asked.

    Args:
        results: folder with `scenes_<kind>.csv`.
        seed: of what figures draw themselves.
    """

    results: Path = RESULTS
    seed: int = 0
    used: dict[str, Any] = field(default_factory=dict)
    """What the figure at hand has read, for its manifest."""

    def rows(
        self, kind: str, methods: Iterable[str], scenes: Iterable[str]
    ) -> list[dict[str, Any]]:
        """The measured rows of these methods and scenes.

        Raises:
            NotMeasured: there are none.
        """
        file = self.results / f"scenes_{kind}.csv"
        if not file.is_file():
            raise NotMeasured(f"{file.name} is not there yet: run 'sepme scenes run' first.")
        methods, scenes = tuple(methods), tuple(scenes)
        found = [r for r in read_rows(file) if r["method"] in methods and r["scene"] in scenes]
        if not found:
            raise NotMeasured(
                f"{file.name} has no row of {', '.join(methods)} in {', '.join(scenes)}: run "
                "'sepme scenes run' with them first."
            )
        order = {name: index for index, name in enumerate(methods)}
        manifest = file.with_suffix(".json")
        if manifest.is_file():
            made = json.loads(manifest.read_text(encoding="utf-8"))
            keys = ("model", "fingerprint", "images", "seed", "sampling", "versions", "hardware")
            self.used[file.name] = {key: made.get(key) for key in keys}
        return sorted(found, key=lambda row: order[row["method"]])

    @cached_property
    def backbone(self) -> Backbone:
        return Backbone.load()

    @cached_property
    def catalogue(self) -> Catalogue:
        catalogue = load_catalogue()
        assert catalogue is not None  # it ships with the model
        return catalogue


@dataclass(frozen=True)
class Entry:
    """One figure: its name, what it shows in words, and how it is drawn."""

    name: str
    caption: str
    draw: Callable[[Sources], Figure]


def build(
    out: str | Path,
    sources: Sources,
    *,
    only: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Draw the figures into a folder: `name.svg`, `name.png` and the manifest `name.json` each.

    Args:
        only: names; all, if none is given.

    Returns:
        The pictures written.

    Raises:
        SepmeError: a name that is unknown, or a folder that cannot be written to.
    """
    unknown = set(only) - set(FIGURES)
    if unknown:
        raise SepmeError(
            f"Figure '{sorted(unknown)[0]}' is unknown: choose from {', '.join(FIGURES)}."
        )
    out, written = writable_folder(out), []
    for name in only or FIGURES:
        sources.used.clear()
        try:
            figure = FIGURES[name].draw(sources)
        except NotMeasured as error:
            say(f"{name}: left out. {error}")
            continue
        written += _save(out, FIGURES[name], figure, sources)
        say(f"{name}: {FIGURES[name].caption}")
    return written


def _save(out: Path, entry: Entry, figure: Figure, sources: Sources) -> list[Path]:
    manifest = {
        "caption": entry.caption,
        "sources": sources.used,
        "seed": sources.seed,
        "versions": versions() | {"matplotlib": matplotlib.__version__},
    }
    files = {
        f"{entry.name}.svg": _svg(figure),
        f"{entry.name}.png": png(figure),
        f"{entry.name}.json": (json.dumps(manifest, indent=1) + "\n").encode(),
    }
    return [write_atomically(out / name, content) for name, content in files.items()]


def _svg(figure: Figure) -> bytes:
    """An SVG file without a date; the same figure gives the same bytes."""
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "sepme", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


# ------------------------------------------------------------------ bars: 8 to 11 and 13 to 16
def _compared(kind: str, scene: str) -> Callable[[Sources], Figure]:
    """Forgotten, recovered and regular concepts by method: published above, ours below."""

    def draw(sources: Sources) -> Figure:
        rows = sources.rows(kind, COMPARED, [scene])
        figure = Figure(figsize=(11, 6), layout="constrained", dpi=110)
        axes = figure.subplots(2, 2)
        table = ["5"] if kind == "style" else ["6"]
        for column, measure in enumerate(("acc", "lpips")):
            printed = published_bars(published(), measure, [scene], tables=table)
            looks = {m: STYLES[FAMILIES[family(m)]] for m in methods_of(printed)}
            lengths = {m: _printed_title(m) for m in methods_of(printed)}
            looks = _distinct(looks)
            role_bars(printed, measure, lengths, axes[0, column], styles=looks)
            axes[0, column].set_title(f"{LABEL}", fontsize=10)
            ours = measured_bars(rows, measure, [scene])
            titles = {name: METHODS[name].title for name in methods_of(ours)}
            role_bars(ours, measure, titles, axes[1, column], styles=STYLES)
            axes[1, column].set_title(f"{MEASURED}", fontsize=10)
        for ax in axes[:, 0]:
            ax.get_legend().remove()
        figure.suptitle(f"{scene}, {kind}s", fontweight="bold")
        return figure

    return draw


def _distinct(looks: Mapping[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """The same method in two lengths: the second one paler."""
    seen: set[str] = set()
    made = {}
    for name, look in looks.items():
        made[name] = dict(look) | ({"alpha": 0.5} if family(name) in seen else {})
        seen.add(family(name))
    return made


def _printed_title(method: str) -> str:
    rest = method.removeprefix(family(method)).strip("[]")
    return f"{family(method)}, {rest} iterations" if rest and len(rest) < 6 else method


def _alone(kind: str) -> Callable[[Sources], Figure]:
    """Each concept erased by itself: the concept, and the mean of the others."""

    def draw(sources: Sources) -> Figure:
        rows = sources.rows(kind, COMPARED, ALONE)
        figure = Figure(figsize=(10, 3.4), layout="constrained", dpi=110)
        axes = figure.subplots(1, 2)
        for ax, measure in zip(axes, ("acc", "lpips"), strict=True):
            ours = measured_bars(rows, measure, list(ALONE))
            titles = {name: METHODS[name].title for name in methods_of(ours)}
            role_bars(ours, measure, titles, ax, styles=STYLES)
        axes[0].get_legend().remove()
        figure.suptitle(f"Each of six {kind}s erased by itself ({MEASURED})", fontweight="bold")
        return figure

    return draw


def _watermark(sources: Sources) -> Figure:
    figure = Figure(figsize=(10, 3.4), layout="constrained", dpi=110)
    rows = sources.rows("style", COMPARED, SCENES)
    axes = figure.subplots(1, 2)
    for ax, measure in zip(axes, ("acc", "lpips"), strict=True):
        ours = measured_bars(rows, measure, list(SCENES), by="watermark")
        titles = {name: METHODS[name].title for name in methods_of(ours)}
        role_bars(ours, measure, titles, ax, styles=STYLES)
    axes[0].get_legend().remove()
    figure.suptitle(f"The watermark while styles are erased ({MEASURED})", fontweight="bold")
    return figure


def _variants(names: Sequence[str], title: str, tables: Sequence[str]) -> Callable:
    """Variants of SepME beside one another, with what is published about them, if anything."""

    def draw(sources: Sources) -> Figure:
        rows = sources.rows("style", names, SCENES)
        if missing := set(names) - {row["method"] for row in rows}:
            raise NotMeasured(
                f"There are no rows of {', '.join(sorted(missing))}: run 'sepme scenes run "
                f'--methods "{", ".join(names)}"\' first.'
            )
        scenes = list(dict.fromkeys(row["scene"] for row in rows))
        looks = {name: method_style(index) for index, name in enumerate(names)}
        figure = Figure(figsize=(10, 3.2 * (1 + bool(tables))), layout="constrained", dpi=110)
        axes = figure.subplots(1 + bool(tables), 2, squeeze=False)
        for column, measure in enumerate(("acc", "lpips")):
            ours = measured_bars(rows, measure, scenes)
            titles = {name: METHODS[name].title for name in methods_of(ours)}
            role_bars(ours, measure, titles, axes[-1, column], styles=looks)
            axes[-1, column].set_title(f"{MEASURED} ({', '.join(scenes)})", fontsize=10)
            if tables:
                printed = published_bars(published(), measure, list(SCENES), tables=tables)
                order = ("SepME without weight regularisation", "SepME")
                shown = dict(zip(order, looks.values(), strict=True))
                role_bars(printed, measure, {}, axes[0, column], styles=shown)
                axes[0, column].set_title(f"{LABEL} (Scene1, Scene2)", fontsize=10)
        for ax in axes[:, 0]:
            ax.get_legend().remove()
        figure.suptitle(title, fontweight="bold")
        return figure

    return draw


# ------------------------------------------------------------------ who disturbs whom: 2
def _interference(sources: Sources) -> Figure:
    """Erased alone (row), drawn (column): one map a method."""
    shown = ("sepme", "esd-x")
    rows = sources.rows("style", shown, ALONE)
    have = [name for name in shown if any(row["method"] == name for row in rows)]
    measure = "fid" if all(row["fid"] is not None for row in rows) else "lpips"
    names = [*CASTS["style"].names, "watermark"]
    figure = Figure(figsize=(6.2 * len(have), 4), layout="constrained", dpi=110)
    axes = np.atleast_1d(figure.subplots(1, len(have)))
    limit = max(row[measure] for row in rows)
    for ax, method in zip(axes, have, strict=True):
        matrix = np.full((6, len(names)), np.nan)
        for row in rows:
            if row["method"] == method:
                matrix[int(row["erased"]), int(row["concept_index"])] = row[measure]
        interference_table(matrix, names[:6], names, MEASURE_TITLES[measure], ax, limit=limit)
        ax.set_title(METHODS[method].title)
    figure.suptitle(f"Who disturbs whom ({MEASURED})", fontweight="bold")
    return figure


def _figures() -> Iterable[Entry]:
    yield Entry(
        "interference",
        "What erasing one style alone does to the pictures of every other.",
        _interference,
    )
    for kind in CASTS:
        for scene in ("Scene1", "Scene4"):
            yield Entry(
                f"bars_{kind}_{scene.lower()}",
                f"Forgotten, recovered and regular {kind}s of {scene}, by method; published above, "
                f"measured below, whiskers are 95 % intervals.",
                _compared(kind, scene),
            )
        yield Entry(
            f"alone_{kind}", f"Each of six {kind}s erased by itself, by method.", _alone(kind)
        )
    yield Entry("watermark", "The watermark while styles are erased, by method.", _watermark)
    yield Entry(
        "joint_or_separate",
        "SepME's increments trained one at a time and all at once.",
        _variants(("sepme", "sepme-joint"), "One at a time, or jointly", ()),
    )
    yield Entry(
        "regularisation",
        "SepME without and with the weight's regularisation.",
        _variants(("sepme", "sepme-regularised"), "With and without lambda", ("7",)),
    )


FIGURES: Mapping[str, Entry] = {entry.name: entry for entry in _figures()}


__all__ = ["FIGURES", "Entry", "NotMeasured", "Sources", "build", "moments"]
