"""The stop-rule playground: where would eq. 4 have ended a training that ran to its end?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from sepme.correlation import Momentum
from sepme.errors import SepmeError
from sepme.plots import BLACK, BLUE, GREY, SKY, literal, training_lines
from sepme.widgets._parts import MENU, Explorer, row

__all__ = ["StopRuleState", "render", "stop_rule_playground"]


@dataclass(frozen=True)
class StopRuleState:
    """The numbers of eq. 4, and the recorded series that they are tried on."""

    series: str
    alpha: float = 0.9
    tau: float = 0.1
    earliest: int = 11


def describe(state: StopRuleState, losses: Sequence[float]) -> str:
    """What the figure shows, in words."""
    values, stopped = Momentum(state.alpha, state.tau, state.earliest).over(losses)
    rule = f"With α = {state.alpha:g} and τ = {state.tau:.3g}, {state.series}"
    if stopped is None:
        return f"{rule} does not stop within {len(losses)} iterations."
    where = f"where the momentum is {values[stopped - 1]:.3g}"
    return f"{rule} stops after iteration {stopped} of {len(losses)}, {where}."


def render(state: StopRuleState, losses: Sequence[float]) -> Figure:
    """The recorded losses, their momentum, the threshold, and the iteration that stops."""
    values, stopped = Momentum(state.alpha, state.tau, state.earliest).over(losses)
    figure = Figure(figsize=(10, 4.2), dpi=100, layout="constrained")
    ax = figure.add_subplot()
    ax.axhline(0, color=BLACK, linewidth=0.8)
    thin = {"color": GREY, "linewidth": 1, "linestyle": ":"}
    ax.axhline(state.tau, label=f"stop at τ = {state.tau:.3g}", **thin)
    if state.earliest > 1:
        ax.axvspan(
            1, state.earliest - 0.5, color=SKY, alpha=0.18, linewidth=0, label="too early to stop"
        )
    training_lines(ax, range(1, len(losses) + 1), losses, values)
    if stopped is not None:
        ax.axvline(stopped, color=BLUE, linewidth=1)
        ax.plot([stopped], [values[stopped - 1]], "o", color=BLUE, markersize=8)
        if stopped < len(losses):
            ax.axvspan(stopped, len(losses), color=GREY, alpha=0.15, linewidth=0, label="never run")
    ax.set(xlabel="iteration", ylabel="correlation with the original concept")
    ax.set_title(describe(state, losses), fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return literal(figure)


def _scale(losses: Iterable[float]) -> tuple[float, float, float]:
    """Bounds around zero and the losses, and a step: a power of ten, about a 100th of the way.

    The bounds are whole steps, because a browser counts its steps from the lower one.
    """
    values = [0.0, *losses]
    exponent = round(math.log10((max(values) - min(values)) or 1.0)) - 2
    step, digits = 10.0**exponent, max(0, -exponent)
    low, high = math.floor(min(values) / step), math.ceil(max(values) / step)
    high = max(high, low + 1)  # a slider has two ends
    return round(low * step, digits), round(high * step, digits), step


def stop_rule_playground(losses: Mapping[str, Sequence[float]]) -> Explorer:
    """Turn alpha and tau, and see where eq. 4 would have stopped.

    Args:
        losses: name of a training to what its momentum averages, one number an iteration, for
            example `sepme.probe.Recording.losses` of one that was run to its end (tau = -9).

    Raises:
        SepmeError: no training, or one without an iteration.
    """
    if not losses or not all(losses.values()):
        raise SepmeError("There is no series of losses to try the rule on: record a training.")
    low, high, step = _scale(float(loss) for series in losses.values() for loss in series)
    last, first = max(map(len, losses.values())), "The first iteration that may stop"
    falls, past = "Stop where m_n falls to it", "How much of the past m_n remembers"
    shell = Explorer("stop", StopRuleState, render, describe, lambda now: (losses[now.series],))
    controls = (
        shell.menu("series", "Training", "Which recorded training", list(losses), layout=MENU),
        shell.slider("alpha", "α", past, 0.9, max=0.99, step=0.01),
        shell.slider("tau", "τ", falls, min(0.1, high), min=low, max=high, step=step),
        shell.number("earliest", "Earliest stop", first, 11, min=1, max=last),
    )
    return shell.arrange(row(*controls))
