"""The explorer of the tables: choose a scene, a moment and a measure; published above measured.

A method has the same colour and hatch in both panels and in the figures of `sepme figures`.
"""

from dataclasses import dataclass, replace
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from sepme.plots import BLACK, literal
from sepme.scenes import EVALUATED, SCENES, moments
from sepme.scenes.figures import method_looks
from sepme.scenes.images import MEASURES
from sepme.scenes.methods import METHODS
from sepme.scenes.protocol import WATERMARK, Moment
from sepme.scenes.tables import MEASURED, PUBLISHED, family, method_title
from sepme.widgets._parts import Explorer, row

__all__ = ["ResultsState", "render", "results_explorer"]

#: Where the paper compares with baselines; SepME alone is in tables 2 and 3.
TABLES = {"style": ("5", "2"), "object": ("6", "3")}
ALL = "all"
#: Where all methods are shown, the words are about the first of these that was measured.
SEPME = ("sepme-faithful@paper", "sepme@catalogue")


@dataclass(frozen=True)
class ResultsState:
    """Which cells are looked at."""

    kind: str = "style"
    scene: str = "Scene1"
    time: str = "t0"
    measure: str = "acc"
    method: str = ALL  #: one by its name here, on both sides where the paper has it; or all

    @property
    def moment(self) -> Moment:
        return next(moment for moment in moments(self.scene) if moment.time == self.time)


def cells_of(state: ResultsState, rows: DataFrame) -> DataFrame:
    """The cells of a moment: `method`, `concept_index`, `value` and its interval `low` to `high`.

    Printed cells stand beside those of the baselines, where the paper has them; doubtful ones and
    the watermark are left out. An accuracy is in percent.
    """
    moment = (rows["scene"] == state.scene) & (rows["time"] == state.time)
    known = rows[state.measure].notna() & (rows["concept_index"] != WATERMARK)
    rows = rows[(rows["kind"] == state.kind) & moment & known]
    if state.method != ALL:
        rows = rows.loc[[_belongs(method, state.method) for method in rows["method"]]]
    if "table" in rows:
        rows = rows[~rows["doubtful"]]
        tables = [table for table in TABLES[state.kind] if table in set(rows["table"])]
        rows = rows[rows["table"].isin(tables[:1])]
    else:
        order = list(METHODS)
        rows = rows.sort_values("method", key=lambda names: names.map(order.index), kind="stable")
    scale = 100 if state.measure == "acc" else 1
    ends = {"value": "", "low": "_low", "high": "_high"}
    numbers = {name: scale * rows[f"{state.measure}{end}"] for name, end in ends.items()}
    return rows[["method", "concept_index"]].assign(**numbers)


def _belongs(method: str, chosen: str) -> bool:
    """Whether a row is of the chosen method; the printed SepME stands beside any SepME of ours."""
    both_sepme = method.startswith("SepME") and chosen.startswith("sepme")
    return both_sepme or family(method) == chosen


def render(state: ResultsState, rows: DataFrame, printed: DataFrame) -> Figure:
    """Bars by concept and method: published above, measured below, erased concepts shaded."""
    figure = Figure(figsize=(10, 6.2), dpi=100, layout="constrained")
    names = printed[printed["kind"] == state.kind].drop_duplicates("concept_index")["concept"]
    sides = ((PUBLISHED, printed, names), (MEASURED, rows, EVALUATED[state.kind].names))
    for ax, (label, table, concepts) in zip(figure.subplots(2, 1), sides, strict=True):
        roles = [f"{fill(n, 12)}\n({state.moment.role(i)})" for i, n in enumerate(concepts)]
        ax.set_xticks(range(9), roles, fontsize=7)
        ax.set_title(label, fontsize=10)
        _bars(ax, state, cells_of(state, table))
    figure.suptitle(f"{state.scene}, {state.time}, {state.kind}s", fontweight="bold")
    return literal(figure)


def _bars(ax: Axes, state: ResultsState, cells: DataFrame) -> None:
    for index in state.moment.erased:
        ax.axvspan(index - 0.5, index + 0.5, color=BLACK, alpha=0.07, linewidth=0)
    ax.set_xlim(-0.5, 8.5)
    ax.set_ylabel(MEASURES[state.measure], fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    if state.measure == "acc":
        ax.set_ylim(0, 105)
    if cells.empty:
        ax.text(4, 0.5 * sum(ax.get_ylim()), "not there", ha="center", va="center", fontsize=11)
        return
    methods = list(cells["method"].unique())
    width, looks = 0.8 / len(methods), method_looks(methods)
    thin = {"capsize": 1.2, "ecolor": BLACK, "error_kw": {"linewidth": 0.7}}
    for i, method in enumerate(methods):
        found = cells[cells["method"] == method]
        at = found["concept_index"] + (i - (len(methods) - 1) / 2) * width
        error = [found["value"] - found["low"], found["high"] - found["value"]]
        look = looks[method] | {"label": fill(method_title(method), 30)}
        if found["low"].notna().all():
            look |= thin | {"yerr": error}
        ax.bar(at, found["value"], 0.92 * width, **look)
    ax.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), handlelength=2.2)


def describe(state: ResultsState, rows: DataFrame, printed: DataFrame) -> str:
    """The figure in words: one method's means (SepME's of all) over the erased and the others."""
    there = set(cells_of(state, rows)["method"])
    ours = next((method for method in SEPME if method in there), SEPME[0])
    one = replace(state, method=ours) if state.method == ALL else state
    erased, parts = state.moment.erased, []
    for label, table in ((PUBLISHED, printed), (MEASURED, rows)):
        cells = cells_of(one, table).drop_duplicates("concept_index")  # of two lengths the first
        inside = cells["concept_index"].isin(erased)
        means = [f"{cells['value'][these].mean():.3g}" for these in (inside, ~inside)]
        found = f"{means[0]} for the erased and {means[1]} for the others"
        parts.append(f"{label}: {'not there' if cells.empty else found}")
    return (
        f"{state.scene} {state.time}, {state.kind}s {', '.join(map(str, erased))} erased; mean "
        f"{MEASURES[state.measure]} of {METHODS[one.method].title}. {'; '.join(parts)}."
    )


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
    methods = [(method.title, name) for name, method in METHODS.items() if name in there]
    measures = [(title, name) for name, title in MEASURES.items() if printed[name].any()]
    kinds, which = [("styles", "style"), ("objects", "object")], "Which erasing and restoring"
    shell = Explorer("results", ResultsState, render, describe, lambda state: (rows, printed))
    menus = (
        shell.menu("kind", "Concepts", "Styles or objects", kinds),
        shell.menu("scene", "Scene", which, list(SCENES), act=choose_scene),
        shell.menu("time", "Time", "Which moment of the scene", ()),
        shell.menu("measure", "Measure", "What the bars show", measures),
        shell.menu("method", "Method", "All or one", [("all methods", ALL), *methods]),
    )
    choose_scene()
    return shell.arrange(row(*menus))
