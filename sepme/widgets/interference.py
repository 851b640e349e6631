"""The interference explorer: a map of who disturbs whom, and all that is known of one pair.

`PairState`, `render(state, report, pictures)` and `describe` are pure; `InterferenceExplorer` is
the shell. Classes of its controls: `sepme-pair-emitter`, `-receiver`, `-draw`, `-stop`,
`-progress`, `-status`, `-picture`.
"""

import math
from dataclasses import dataclass

import ipywidgets as widgets
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from torch import Tensor

from sepme.errors import SepmeError
from sepme.interference import Interference
from sepme.model import Backbone
from sepme.plots import ERASED, GREY, interference_map
from sepme.widgets._parts import WIDE, Job, Picture, Report, button, control, row, titled

MOST_PICTURES = 4
#: Pictures of the receiver's prompts `[n, 3, h, w]`, before and with the emitter's delta on.
Pictures = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PairState:
    """Whose delta is on, and whose prompts are looked at."""

    emitter: str
    receiver: str


def facts(state: PairState, report: Interference) -> list[tuple[str, str]]:
    """What was measured of a pair and what its weights say, each with its number in words.

    Raises:
        SepmeError: a concept that was not measured.
    """
    values = report.pair(state.emitter, state.receiver)
    angle = math.degrees(math.acos(min(1.0, values.get("largest cosine", 0.0))))
    wording = {
        report.measure: ("damage, relative to its own delta", "{:.1%}"),
        "change": (f"change of {report.measure}", "{:.3g}"),
        "seen before": ("pictures in which the judge sees it, before", "{:.0%}"),
        "seen": ("pictures in which it is seen, with the delta on", "{:.0%}"),
        "keys and values": ("change of keys and values, likewise", "{:.1%}"),
        "largest cosine": ("smallest angle of the two row spaces", f"{angle:.0f}°"),
        "overlap": ("overlap of the row spaces", "{:.1%}"),
        "prompt energy": ("share of the prompts' energy that the delta reads", "{:.1e}"),
    }
    found = [(*wording[name], values[name]) for name in wording if name in values]
    return [(text, form.format(value)) for text, form, value in found]


def describe(state: PairState, report: Interference) -> str:
    """The pair in words."""
    known = "; ".join(f"{text}: {value}" for text, value in facts(state, report))
    return f"The delta of {state.emitter} on the prompts of {state.receiver}: {known}."


def recorded(state: PairState, report: Interference) -> Pictures | None:
    """The pictures that the measurement kept, if it drew any."""
    pair = (state.emitter, state.receiver)
    if pair not in report.after or state.receiver not in report.before:
        return None
    return report.before[state.receiver], report.after[pair]


def render(state: PairState, report: Interference, pictures: Pictures | None = None) -> Figure:
    """The map with the pair framed; beside it the pair's numbers, and its pictures if there are."""
    facts(state, report)  # refuses a pair that was not measured
    figure = Figure(figsize=(10, 5.6), dpi=100, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    ax = interference_map(report, left.subplots())
    column = report.evaluated.index(state.receiver)
    corner = column, report.erased.index(state.emitter)
    frame = {"fill": False, "edgecolor": ERASED, "linewidth": 3}
    ax.add_patch(Rectangle(corner, 1, 1, clip_on=False, **frame))
    if pictures is None:
        _table(right.subplots(), state, report)
        return figure
    above, below = right.subfigures(2, 1, height_ratios=(1.1, 1))
    _table(above.subplots(), state, report)
    _pictures(below, state, pictures)
    return figure


def _table(ax: Axes, state: PairState, report: Interference) -> None:
    ax.set_axis_off()
    ax.set_title(
        f"the delta of {state.emitter} is on, {state.receiver} is drawn", fontsize=10.5, loc="left"
    )
    found = facts(state, report)
    for index, (text, value) in enumerate(found):
        y = 1 - (index + 0.6) / max(len(found), 7)
        ax.text(0, y, text, transform=ax.transAxes, fontsize=9, va="center")
        ax.text(1, y, value, transform=ax.transAxes, fontsize=9.5, va="center", ha="right")
        ax.axhline(y - 0.5 / max(len(found), 7), color=GREY, linewidth=0.3)
    ax.set_ylim(0, 1)


def _pictures(part: SubFigure, state: PairState, pictures: Pictures) -> None:
    n = min(MOST_PICTURES, len(pictures[0]))
    axes = part.subplots(2, n, squeeze=False)
    labels = ("before", f"{state.emitter}'s delta on")
    for line, images, label in zip(axes, pictures, labels, strict=True):
        for ax, image in zip(line, images[:n], strict=True):
            titled("", image, ax, ERASED if line is axes[1] else None)
        line[0].set_ylabel(label, fontsize=9)


def draw_pair(
    state: PairState, report: Interference, backbone: Backbone, progress: Report
) -> Pictures:
    """The pictures of a pair with the deltas that are on the pipeline, which is left as it was.

    Raises:
        SepmeError: no composition on the pipeline, or none with the emitter's delta.
    """
    composition = backbone.composition
    if composition is None or state.emitter not in composition.deltas:
        raise SepmeError(
            f"The pipeline carries no delta of '{state.emitter}': attach the deltas with "
            "Composition(backbone, deltas.values())."
        )
    prompts = report.prompts[state.receiver][:MOST_PICTURES]

    def pictures(earlier: int) -> Tensor:
        def on_step(done: int, total: int) -> None:
            progress(earlier * total + done, 2 * total)

        return backbone.generate(prompts, report.seed, on_step=on_step)

    with backbone.original():
        before = pictures(0)
    with composition.erased(state.emitter):
        return before, pictures(1)


class InterferenceExplorer(widgets.VBox):
    """The controls around `render`: every pair is shown at once, drawing its pictures on demand."""

    def __init__(
        self, report: Interference, backbone: Backbone | None = None, *, threaded: bool = True
    ) -> None:
        self.report, self.backbone = report, backbone
        self.drawn: dict[PairState, Pictures] = {}
        self.job = Job("sepme-pair", "", threaded=threaded)
        self.status, self.stop = self.job.status, self.job.stop
        self.picture = Picture("sepme-pair-picture")
        self._make_controls()
        self._show()
        drawing = [row(self.draw, self.stop, self.job.bar)] if backbone else []
        super().__init__(
            [row(self.emitter, self.receiver), *drawing, self.status, self.picture],
            layout=widgets.Layout(max_width=WIDE),
        )
        self.add_class("sepme-pair")

    @property
    def state(self) -> PairState:
        return PairState(self.emitter.value, self.receiver.value)

    def wait(self, timeout: float | None = None) -> None:
        """Return when nothing is being drawn any more."""
        self.job.wait(timeout)

    def _make_controls(self) -> None:
        emitters, receivers = self.report.erased, self.report.evaluated
        self.emitter = control(
            widgets.Dropdown, "Erased", "Whose delta is on", "sepme-pair-emitter",
            options=emitters,
        )  # fmt: skip
        self.receiver = control(
            widgets.Dropdown, "Drawn", "Whose prompts are looked at", "sepme-pair-receiver",
            options=receivers, value=next((n for n in receivers if n != emitters[0]), receivers[0]),
        )  # fmt: skip
        self.draw = button("Draw its pictures", "Draw before and after", "sepme-pair-draw")
        self.draw.on_click(self._draw)
        self.job.on_change = lambda running: setattr(self.draw, "disabled", running)
        for menu in (self.emitter, self.receiver):
            menu.observe(self._show, "value")

    def _show(self, _: object = None) -> None:
        state = self.state
        pictures = self.drawn.get(state, recorded(state, self.report))
        text = describe(state, self.report)
        self.picture.show(render(state, self.report, pictures), text)
        self.status.say(text)

    def _draw(self, _: object) -> None:
        state = self.state

        def work(progress: Report) -> str:
            self.drawn[state] = draw_pair(state, self.report, self.backbone, progress)
            self._show()
            return self.status.text

        self.job.start(work, "Drawing ...")


def interference_explorer(
    report: Interference, backbone: Backbone | None = None, *, threaded: bool = True
) -> InterferenceExplorer:
    """Choose a pair in the map of who disturbs whom, and see all that is known of it.

    Args:
        report: what `sepme.interference.measure_pictures` or `measure_noise` found.
        backbone: with a composition that carries the deltas, draws pairs without pictures too.
        threaded: draw beside the kernel's own loop, so that Stop is heard.
    """
    return InterferenceExplorer(report, backbone, threaded=threaded)
