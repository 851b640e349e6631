"""The interference explorer: a map of who disturbs whom, and all that is known of one pair."""

import math
from dataclasses import dataclass
from functools import partial
from html import escape
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from torch import Tensor

from sepme.errors import SepmeError
from sepme.interference import Interference
from sepme.model import Backbone
from sepme.plots import ERASED, GREY, interference_map, literal, show_picture
from sepme.widgets._parts import Explorer, Report, part, row

__all__ = ["PairState", "interference_explorer", "render"]

MOST_PICTURES = 4
#: Pictures of the evaluated concept's prompts `[n, 3, h, w]`, before and with the delta on.
Pictures = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PairState:
    """Whose delta is on, and whose prompts are looked at."""

    erased: str
    evaluated: str


def facts(state: PairState, report: Interference) -> list[tuple[str, str]]:
    """What was measured of a pair and what its weights say, each with its number in words.

    Raises:
        SepmeError: a concept that was not measured.
    """
    values = report.pair(state.erased, state.evaluated)
    angle = math.degrees(math.acos(min(1.0, values.get("largest cosine", 0.0))))
    wording = {
        report.measure: ("damage, relative to its own delta", "{:.1%}"),
        "change": (f"change of {report.measure}, absolute", "{:.3g}"),
        "seen before": ("pictures in which the judge sees it, before", "{:.0%}"),
        "seen": ("pictures in which it is seen, with the delta on", "{:.0%}"),
        "keys and values": ("change of keys and values, relative to its own delta", "{:.1%}"),
        "largest cosine": ("smallest angle of the two row spaces", f"{angle:.0f}°"),
        "overlap": ("overlap of the row spaces", "{:.1%}"),
        "prompt energy": ("share of the prompts' energy that the delta reads", "{:.1e}"),
    }
    found = [(*wording[name], values[name]) for name in wording if name in values]
    return [(text, form.format(value)) for text, form, value in found]


def describe(state: PairState, report: Interference, pictures: Pictures | None = None) -> str:
    """The numbers of the pair in words; pictures have none."""
    known = "; ".join(f"{text}: {value}" for text, value in facts(state, report))
    return f"The delta of {state.erased} on the prompts of {state.evaluated}: {known}."


def recorded(state: PairState, report: Interference) -> Pictures | None:
    """The pictures that the measurement kept, if it drew any."""
    before = report.before.get(state.evaluated)
    after = report.after.get((state.erased, state.evaluated))
    return None if before is None or after is None else (before, after)


def render(state: PairState, report: Interference, pictures: Pictures | None = None) -> Figure:
    """The map with the pair framed; beside it the pair's numbers, and its pictures if there are."""
    found = facts(state, report)
    figure = Figure(figsize=(10, 5.6), dpi=100, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    ax = interference_map(report, left.subplots())
    corner = report.evaluated.index(state.evaluated), report.erased.index(state.erased)
    frame = {"fill": False, "edgecolor": ERASED, "linewidth": 3}
    ax.add_patch(Rectangle(corner, 1, 1, clip_on=False, **frame))
    if pictures is not None:
        right, below = right.subfigures(2, 1, height_ratios=(1.1, 1))
        _pictures(below, state, pictures)
    table = right.subplots()
    title = f"the delta of {state.erased} is on, {state.evaluated} is drawn"
    table.set_title(title, fontsize=10.5, loc="left")
    _table(table, found)
    return literal(figure)


def _table(ax: Axes, found: list[tuple[str, str]]) -> None:
    ax.set_axis_off()
    ax.set_ylim(0, 1)
    lines = max(len(found), 7)
    for index, (text, value) in enumerate(found):
        y = 1 - (index + 0.6) / lines
        ax.text(0, y, text, transform=ax.transAxes, fontsize=9, va="center")
        ax.text(1, y, value, transform=ax.transAxes, fontsize=9.5, va="center", ha="right")
        ax.axhline(y - 0.5 / lines, color=GREY, linewidth=0.3)


def _pictures(figure: SubFigure, state: PairState, pictures: Pictures) -> None:
    n = min(MOST_PICTURES, len(pictures[0]))
    axes = figure.subplots(2, n, squeeze=False)
    must_go = ERASED if state.erased == state.evaluated else None
    sides = (("before", None), (f"{state.erased}'s delta on", must_go))
    for line, images, (label, frame) in zip(axes, pictures, sides, strict=True):
        for ax, image in zip(line, images[:n], strict=True):
            show_picture(ax, image, frame)
        line[0].set_ylabel(fill(label, 16), fontsize=9)


#: A click in the map chooses the pair of the cell, as the two menus do.
CHOOSE = """
const box = this.getBoundingClientRect(), shell = this.closest('.sepme-pair');
const cell = {{erased: (event.clientY - box.top) / box.height * {rows},
              evaluated: (event.clientX - box.left) / box.width * {columns}}};
for (const [menu, at] of Object.entries(cell)) {{
  const select = shell.querySelector(`.sepme-pair-${{menu}} select`);
  if (select.selectedIndex === Math.floor(at)) continue;
  select.selectedIndex = Math.floor(at);
  select.dispatchEvent(new Event('change', {{bubbles: true}}));
}}"""


def clickable(figure: Figure, report: Interference) -> str:
    """The HTML of a pane that lies over the map of a drawn figure; the menus serve the keyboard."""
    box = figure.axes[0].get_window_extent().transformed(figure.transFigure.inverted())
    place = {"left": box.x0, "top": 1 - box.y1, "width": box.width, "height": box.height}
    style = "; ".join(f"{side}: {100 * part:.3f}%" for side, part in place.items())
    rows, columns = report.matrix.shape
    return (
        f'<div class="sepme-pair-map" style="position: absolute; cursor: pointer; {style}" '
        f'title="Click a cell to choose its pair" aria-hidden="true" '
        f'onclick="{escape(CHOOSE.format(rows=rows, columns=columns))}"></div>'
    )


def interference_explorer(
    report: Interference, backbone: Backbone | None = None, *, threaded: bool = True
) -> Explorer:
    """Choose a pair in the map of who disturbs whom, and see all that is known of it.

    Args:
        report: what `sepme.interference.measure_pictures` or `measure_noise` found.
        backbone: with a composition that carries the deltas, draws pairs without pictures too.
        threaded: draw beside the kernel's own loop, so that Stop is heard.
    """
    drawn: dict[PairState, Pictures] = {}

    def data(state: PairState) -> tuple[Interference, Pictures | None]:
        return report, drawn.get(state, recorded(state, report))

    def drawing(state: PairState, progress: Report) -> str:
        """Draw a pair with the deltas that are on the pipeline, which is left as it was."""
        composition = backbone.composition
        if composition is None or state.erased not in composition.deltas:
            raise SepmeError(
                f"The pipeline carries no delta of '{state.erased}': attach the deltas with "
                "Composition(backbone, deltas.values())."
            )
        prompts = report.prompts[state.evaluated][:MOST_PICTURES]
        with backbone.original():
            before = backbone.generate(prompts, report.seed, on_step=part(progress, 0, 2))
        with composition.erased(state.erased):
            after = backbone.generate(prompts, report.seed, on_step=part(progress, 1, 2))
        drawn[state] = before, after
        shell.changed()
        return shell.status.text

    def draw() -> None:
        shell.background.start(partial(drawing, shell.state), "Drawing ...")

    shell = Explorer("pair", PairState, render, describe, data, threaded=threaded)
    shell.over = partial(clickable, report=report)
    erased, evaluated = report.erased, report.evaluated
    other = next((name for name in evaluated if name != erased[0]), evaluated[0])
    pair = row(
        shell.menu("erased", "Erased", "Whose delta is on", erased),
        shell.menu("evaluated", "Drawn", "Whose prompts are looked at", evaluated, value=other),
    )
    shell.button("draw", "Draw its pictures", "Draw before and after", draw)
    shell.background.locked = (shell.draw,)
    buttons = [row(shell.draw, shell.stop, shell.background.bar)] if backbone else []
    return shell.arrange(pair, *buttons)
