"""The tables' explorer: choose a scene, a moment and a measure; published and measured together.

`render(state, rows, printed)` and `describe` are pure. Classes of the controls:
`sepme-results-kind`, `-scene`, `-time`, `-measure`, `-method`, `-status`, `-picture`.

The same method has the same colour and hatch in both panels and in the figures of `sepme figures`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from sepme.plots import BLACK
from sepme.scenes import EVALUATED, SCENES, moments
from sepme.scenes.figures import method_looks
from sepme.scenes.images import MEASURES as MEASURE_TITLES
from sepme.scenes.methods import METHODS
from sepme.scenes.protocol import Moment
from sepme.scenes.tables import MEASURED, PUBLISHED, family, printed_title
from sepme.widgets._parts import Explorer, row

#: Measures that both sides know.
MEASURES = ("acc", "lpips", "fid")
#: Where the paper compares with baselines; SepME alone is in tables 2 and 3.
TABLES: Mapping[str, tuple[str, str]] = {"style": ("5", "2"), "object": ("6", "3")}


ALL = "all"


@dataclass(frozen=True)
class ResultsState:
    """Which cells are looked at."""

    kind: str = "style"
    scene: str = "Scene1"
    time: str = "t0"
    measure: str = "acc"
    method: str = ALL
    """One method by its name here, on both sides where the paper has it; or all of them."""

    @property
    def moment(self) -> Moment:
        return next(moment for moment in moments(self.scene) if moment.time == self.time)

    def shows(self, method: str) -> bool:
        """Whether a method, measured or printed, is looked at."""
        return self.method in (ALL, family(method))


#: Method -> concept index -> (value, low, high); ends are None for printed numbers.
Cells = dict[str, dict[int, tuple[float, float | None, float | None]]]


def measured_cells(state: ResultsState, rows: DataFrame) -> Cells:
    """The measured cells of a moment, of the nine concepts."""
    found = _cells(state, rows[(rows["kind"] == state.kind) & (rows["concept_index"] < 9)])
    known = list(METHODS)
    return {name: found[name] for name in sorted(found, key=known.index)}


def published_cells(state: ResultsState, printed: DataFrame) -> Cells:
    """The printed cells of a moment: beside the baselines where the paper has them."""
    for table in TABLES[state.kind]:
        found = _cells(state, printed[(printed["table"] == table) & ~printed["doubtful"]])
        if found:
            return found
    return {}


def _cells(state: ResultsState, rows: DataFrame) -> Cells:
    """The cells of the state's moment, measure and methods."""
    here = (rows["scene"] == state.scene) & (rows["time"] == state.time)
    methods = [method for method in rows["method"].unique() if state.shows(method)]
    shown = rows[here & rows["method"].isin(methods) & rows[state.measure].notna()]
    columns = [
        "method",
        "concept_index",
        *(f"{state.measure}{end}" for end in ("", "_low", "_high")),
    ]
    cells: Cells = {}
    for method, index, value, low, high in shown[columns].itertuples(index=False):
        ends = (None, None) if np.isnan(low) else (low, high)
        cells.setdefault(method, {})[index] = (value, *ends)
    return cells


def render(state: ResultsState, rows: DataFrame, printed: DataFrame) -> Figure:
    """Bars by concept and method: published above, measured below, erased concepts shaded."""
    figure = Figure(figsize=(10, 6.2), dpi=100, layout="constrained")
    above, below = figure.subplots(2, 1)
    names = printed[printed["kind"] == state.kind].drop_duplicates("concept_index")["concept"]
    _bars(above, state, published_cells(state, printed), list(names))
    _bars(below, state, measured_cells(state, rows), EVALUATED[state.kind].names)
    above.set_title(PUBLISHED, fontsize=10)
    below.set_title(MEASURED, fontsize=10)
    figure.suptitle(f"{state.scene}, {state.time}, {state.kind}s", fontweight="bold")
    return figure


def _bars(ax: Axes, state: ResultsState, cells: Cells, names: Sequence[str]) -> None:
    moment, scale = state.moment, 100 if state.measure == "acc" else 1
    for index in moment.erased:
        ax.axvspan(index - 0.5, index + 0.5, color=BLACK, alpha=0.07, linewidth=0)
    labels = [f"{name}\n({moment.role(i)})" for i, name in enumerate(names)]
    ax.set_xticks(range(9), labels, fontsize=7)
    ax.set_xlim(-0.5, 8.5)
    ax.set_ylabel(MEASURE_TITLES[state.measure], fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    if state.measure == "acc":
        ax.set_ylim(0, 105)
    if not cells:
        ax.text(4, 0.5 * sum(ax.get_ylim()), "not there", ha="center", va="center", fontsize=11)
        return
    width, looks = 0.8 / len(cells), method_looks(list(cells))
    for i, (method, values) in enumerate(cells.items()):
        at = [index + (i - (len(cells) - 1) / 2) * width for index in values]
        heights = scale * np.array([value for value, _, _ in values.values()])
        ends = [
            (value - low, high - value) for value, low, high in values.values() if low is not None
        ]
        error = scale * np.array(ends).T if len(ends) == len(values) else None
        title = METHODS[method].title if method in METHODS else printed_title(method)
        ax.bar(
            at, heights, 0.92 * width, yerr=error, capsize=1.2, ecolor=BLACK, label=title,
            error_kw={"linewidth": 0.7}, **looks[method],
        )  # fmt: skip
    ax.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), handlelength=2.2)


def describe(state: ResultsState, rows: DataFrame, printed: DataFrame) -> str:
    """The figure in words: one method's means over the erased and the others, on both sides.

    Of all methods it is SepME that is spoken of.
    """
    one = replace(state, method="sepme") if state.method == ALL else state
    parts = [
        f"{state.scene} {state.time}, {state.kind}s {', '.join(map(str, state.moment.erased))} "
        f"erased; mean {MEASURE_TITLES[state.measure]} of {METHODS[one.method].title}"
    ]
    sides = ((PUBLISHED, published_cells(one, printed)), (MEASURED, measured_cells(one, rows)))
    scale = 100 if state.measure == "acc" else 1
    for label, methods in sides:
        cells = next(iter(methods.values()), None)
        if not cells:
            parts.append(f"{label}: not there")
            continue
        groups = {True: [], False: []}
        for index, (value, _, _) in cells.items():
            groups[index in state.moment.erased].append(scale * value)
        means = [f"{np.mean(values):.3g}" for values in groups.values() if values]
        parts.append(f"{label}: {' for the erased and '.join(means)} for the others")
    return f"{parts[0]}. {'; '.join(parts[1:])}."


def results_explorer(rows: DataFrame, printed: DataFrame) -> Explorer:
    """Choose a scene and a moment, and see the paper's numbers above ours.

    Args:
        rows: of one or more tables of scenes, from `sepme.scenes.read_table`.
        printed: the paper's, from `sepme.scenes.published`.
    """

    def choose_scene() -> None:
        """Another scene has other moments; the first of them is shown."""
        with shell.together():
            times = [moment.time for moment in moments(shell.scene.value)]
            shell.time.options, shell.time.index = times, 0

    there = set(rows["method"])
    methods = [(m.title, name) for name, m in METHODS.items() if name in there]
    shell = Explorer("results", ResultsState, render, describe, lambda state: (rows, printed))
    menus = (
        shell.menu("kind", "Concepts", "Styles or objects",
                   [("styles", "style"), ("objects", "object")]),
        shell.menu("scene", "Scene", "Which sequence of erasing and restoring", list(SCENES),
                   act=choose_scene),
        shell.menu("time", "Time", "Which moment of the scene", ()),
        shell.menu("measure", "Measure", "What the bars show",
                   [(MEASURE_TITLES[name], name) for name in MEASURES]),
        shell.menu("method", "Method", "All methods, or one of them",
                   [("all methods", ALL), *methods]),
    )  # fmt: skip
    choose_scene()
    return shell.arrange(row(*menus))
