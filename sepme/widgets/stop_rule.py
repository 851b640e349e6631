"""The stop-rule playground: where would eq. 4 have ended a training that was recorded to its end?

`StopRuleState` and `render(state, losses)` are pure; `StopRulePlayground` is the shell. Classes of
its controls: `sepme-stop-series`, `-alpha`, `-tau`, `-earliest`, `-status`, `-picture`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import ipywidgets as widgets
from matplotlib.figure import Figure

from sepme.correlation import Momentum
from sepme.errors import SepmeError
from sepme.plots import BLACK, BLUE, DASHES, GREY, SKY, VERMILLION
from sepme.widgets._parts import NARROW, WIDE, Picture, Status, control, row


@dataclass(frozen=True)
class StopRuleState:
    """The numbers of eq. 4, and which recorded series they are tried on.

    Raises:
        SepmeError: an alpha outside [0, 1), or an earliest iteration below 1.
    """

    series: str
    alpha: float = 0.9
    tau: float = 0.1
    earliest: int = 11

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise SepmeError(f"alpha = {self.alpha} remembers too much: give 0 or more, below 1.")
        if self.earliest < 1:
            raise SepmeError(f"No training ends at iteration {self.earliest}: give 1 or more.")


def momentum(state: StopRuleState, losses: Sequence[float]) -> tuple[list[float], int | None]:
    """`m_n` (eq. 4) of every iteration, and the one that it would have stopped after, if any.

    Raises:
        SepmeError: no loss, or one that is not finite.
    """
    if not losses:
        raise SepmeError("There is no loss to average: record a training first.")
    rule, values, stopped = Momentum(state.alpha, state.tau, state.earliest), [], None
    for n, loss in enumerate(losses, start=1):
        values.append(rule.update(loss))  # m_n = alpha m_{n-1} + (1 - alpha) loss_n
        if stopped is None and rule.stopped:
            stopped = n
    return values, stopped


def describe(state: StopRuleState, losses: Sequence[float]) -> str:
    """What the figure shows, in words."""
    values, stopped = momentum(state, losses)
    rule = f"With α = {state.alpha:g} and τ = {state.tau:.3g}, {state.series}"
    where = f", where the momentum is {values[stopped - 1]:.3g}" if stopped else ""
    return f"{rule} {_verdict(stopped, len(losses))}{where}."


def _verdict(stopped: int | None, n: int) -> str:
    if stopped is None:
        return f"does not stop within {n} iterations"
    return f"stops after iteration {stopped} of {n}"


def render(state: StopRuleState, losses: Sequence[float]) -> Figure:
    """The recorded losses, their momentum, the threshold, and the iteration that stops."""
    values, stopped = momentum(state, losses)
    n = range(1, len(losses) + 1)
    figure = Figure(figsize=(10, 4.2), dpi=100, layout="constrained")
    ax = figure.add_subplot()
    ax.axhline(0, color=BLACK, linewidth=0.8)
    ax.axhline(state.tau, color=GREY, linestyle=":", label=f"τ = {state.tau:.3g}")
    if state.earliest > 1:
        ax.axvspan(1, state.earliest, color=SKY, alpha=0.18, linewidth=0, label="too early to stop")
    ax.plot(n, losses, color=VERMILLION, linewidth=0.9, alpha=0.6, label="each iteration")
    ax.plot(n, values, color=BLUE, linewidth=2, linestyle=DASHES[1], label="momentum $m_n$")
    if stopped is not None:
        ax.axvline(stopped, color=BLUE, linewidth=1)
        ax.plot([stopped], [values[stopped - 1]], "o", color=BLUE, markersize=8)
        ax.axvspan(stopped, len(losses), color=GREY, alpha=0.15, linewidth=0, label="never run")
    ax.set(xlabel="iteration", ylabel="correlation with the original concept")
    ax.set_title(f"{state.series} {_verdict(stopped, len(losses))}", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _scale(losses: Iterable[float]) -> tuple[float, float, float]:
    """Bounds around zero and the losses, and a step: a power of ten, about a 100th of the way.

    The bounds are whole steps, because a browser counts its steps from the lower one.
    """
    finite = [0.0, *filter(math.isfinite, losses)]
    exponent = round(math.log10((max(finite) - min(finite)) or 1.0)) - 2
    step, digits = 10.0**exponent, max(0, -exponent)
    low, high = math.floor(min(finite) / step), math.ceil(max(finite) / step)
    return round(low * step, digits), round(high * step, digits), step


class StopRulePlayground(widgets.VBox):
    """The controls around `render`: every change is shown at once."""

    def __init__(self, losses: Mapping[str, Sequence[float]]) -> None:
        if not losses or not all(losses.values()):
            raise SepmeError("There is no series of losses to try the rule on: record a training.")
        self.losses = {name: tuple(map(float, series)) for name, series in losses.items()}
        self.status = Status("sepme-stop-status", "")
        self.picture = Picture("sepme-stop-picture")
        self._make_controls()
        for each in (self.series, self.alpha, self.tau, self.earliest):
            each.observe(self._show, "value")
        self._show()
        controls = row(self.series, self.alpha, self.tau, self.earliest)
        super().__init__(
            [controls, self.status, self.picture], layout=widgets.Layout(max_width=WIDE)
        )
        self.add_class("sepme-stop")

    @property
    def state(self) -> StopRuleState:
        return StopRuleState(
            self.series.value, self.alpha.value, self.tau.value, self.earliest.value
        )

    def _make_controls(self) -> None:
        low, high, step = _scale(loss for series in self.losses.values() for loss in series)
        self.series = control(
            widgets.Dropdown, "Training", "Which recorded training", "sepme-stop-series",
            options=list(self.losses),
        )  # fmt: skip
        self.alpha = control(
            widgets.BoundedFloatText, "α", "How much of the past m_n remembers", "sepme-stop-alpha",
            value=0.9, min=0.0, max=0.99, step=0.01, layout=NARROW,
        )  # fmt: skip
        self.tau = control(
            widgets.BoundedFloatText, "τ", "Stop where m_n falls to it", "sepme-stop-tau",
            value=min(0.1, high), min=low, max=high, step=step, layout=NARROW,
        )  # fmt: skip
        self.earliest = control(
            widgets.BoundedIntText, "Earliest stop", "The first iteration that may stop",
            "sepme-stop-earliest", value=11, min=1, max=max(map(len, self.losses.values())),
            layout=NARROW,
        )  # fmt: skip

    def _show(self, _: object = None) -> None:
        state, losses = self.state, self.losses[self.series.value]
        try:
            text = describe(state, losses)
            self.picture.show(render(state, losses), text)
            self.status.say(text)
        except SepmeError as error:
            self.status.complain(error)


def stop_rule_playground(losses: Mapping[str, Sequence[float]]) -> StopRulePlayground:
    """Turn alpha and tau, and see where eq. 4 would have stopped.

    Args:
        losses: name of a training to what its momentum averages, one number an iteration, for
            example `sepme.probe.Recording.losses` of one that was run to its end (tau = -9).

    Raises:
        SepmeError: no series, or an empty one.
    """
    return StopRulePlayground(losses)
