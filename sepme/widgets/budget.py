"""The null-space budget: how many dimensions the kept prompts take, and which prompts take most."""

from collections import Counter
from dataclasses import dataclass
from textwrap import fill

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sepme.concept import Catalogue
from sepme.erasure import PRESETS
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.nullspace import Constraint, constrain, pivot_rows
from sepme.plots import BLACK, BLUE, ORANGE, SKY, VERMILLION, literal, spectrum
from sepme.widgets._parts import NARROW, Explorer, Ticks, row

__all__ = ["BudgetState", "describe", "measure", "null_space_budget", "render"]

#: What can be chosen: in steps of about two where most changes, of ten below.
TOLERANCES = (1e-6, 1e-5, 1e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class BudgetState:
    """What is to be forgotten, what is to be kept, and how exactly."""

    forget: str
    keep: tuple[str, ...] = ()  #: concepts, but for their prompts that name the forgotten one too
    tolerance: float = 0.05  #: of the null space, relative to the length of a kept token


@dataclass(frozen=True, eq=False)
class Budget:
    """What a state comes to."""

    constraint: Constraint
    taken: dict[str, int]  #: kept prompt to its dimensions, in pivoted-QR order, the largest first


def measure(backbone: Backbone, catalogue: Catalogue, state: BudgetState) -> Budget:
    """What the delta of one concept may touch beside those that are kept.

    Raises:
        SepmeError: an unknown concept, or no direction that is free at this tolerance.
    """
    concept, settings = catalogue[state.forget], PRESETS["default"]
    prompts = [prompt for name in state.keep for prompt in catalogue[name].prompts]
    keep = [prompt for prompt in dict.fromkeys(prompts) if prompt not in concept.prompts]
    method = {"concept_rtol": settings.concept_rtol, "method": settings.method, "quiet": True}
    found = constrain(backbone, concept, keep, keep_rtol=state.tolerance, **method)
    tokens = len(found.kept_rows) // len(found.kept)
    # As many rows as dimensions are taken: each is the farthest from the span of those before.
    order = pivot_rows(found.kept_rows)[: found.space.rank]
    taken = Counter(found.kept[row // tokens] for row in order)
    return Budget(found, dict(taken.most_common()))


def describe(state: BudgetState, budget: Budget) -> str:
    """What the figure shows, in words."""
    found, space = budget.constraint, budget.constraint.space
    text = (
        f"{len(found.kept)} kept prompts take {space.rank} of {space.d_in} dimensions at tolerance "
        f"{state.tolerance:g}, {space.free} are free. The delta of {state.forget} uses "
        f"{found.rank}: it sees {100 * found.reach:.1f} % of the length of its own tokens (root "
        f"mean square) and at most {100 * found.leakage:.2f} % of a kept one."
    )
    remark = found.remark()
    return f"{text} {remark}" if remark else text


def render(state: BudgetState, budget: Budget) -> Figure:
    """The spectra with the threshold, the budget as one bar, and which prompts take most of it."""
    found = budget.constraint
    figure = Figure(figsize=(10, 5), dpi=100, layout="constrained")
    kept = f"keep {len(found.kept)} prompts at tolerance {state.tolerance:g}"
    figure.suptitle(f"Forget {state.forget}, {kept}", fontsize=11)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.1, 1), height_ratios=(1, 4))
    _spectra(figure.add_subplot(grid[:, 0]), state, found)
    _bar(figure.add_subplot(grid[0, 1]), found)
    _prompts(figure.add_subplot(grid[1, 1]), budget.taken)
    return literal(figure)


def _spectra(ax: Axes, state: BudgetState, found: Constraint) -> None:
    space = found.space
    own = torch.linalg.svdvals(found.concept_rows)
    values = {"kept prompts": space.spectrum, f"{state.forget}'s prompts": own}
    spectrum(values, ax, space.threshold)
    largest = float(space.spectrum[0])
    ax.set_ylim(largest * 1e-8, largest * 3)  # below lies nothing but rounding
    ax.axvspan(0.5, space.rank + 0.5, color=SKY, alpha=0.18, linewidth=0)
    many = f"{space.rank} singular values lie" if space.rank != 1 else "1 singular value lies"
    ax.set_title(f"{many} above the threshold", fontsize=10)


def _bar(ax: Axes, found: Constraint) -> None:
    """All dimensions of a text embedding: taken, used by the delta, left."""
    parts = (
        ("taken", found.space.rank, SKY),
        ("used by the delta", found.rank, VERMILLION),
        ("left over", max(0, found.space.free - found.rank), "#DDDDDD"),
    )
    start = 0
    for label, size, colour in parts:
        look = {"color": colour, "edgecolor": BLACK, "linewidth": 0.6}
        ax.barh([0], [size], left=start, label=f"{label}: {size}", **look)
        start += size
    ax.set(yticks=[], xlim=(0, start), xlabel=f"dimensions of the text embedding ({start})\n")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.legend(ncols=3, frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1, 1))


def _prompts(ax: Axes, taken: dict[str, int], most: int = 6) -> None:
    names = [fill(f"“{prompt}”", 28) if prompt else "the empty prompt" for prompt in taken]
    sizes, colours = list(taken.values()), [BLUE] * len(taken)
    if rest := sizes[most:]:
        names[most:], sizes[most:], colours[most:] = [f"{len(rest)} others"], [sum(rest)], [ORANGE]
    bars = ax.barh(range(len(names)), sizes, color=colours)
    ax.bar_label(bars, padding=3, fontsize=8)
    ax.set_yticks(range(len(names)), names, fontsize=7, linespacing=1.1)
    ax.margins(x=0.12)
    ax.set(xlabel="dimensions", ylim=(max(len(names), 5) - 0.5, -0.5))  # the largest on top
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title("which kept prompts take them", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)


def null_space_budget(backbone: Backbone, catalogue: Catalogue | None) -> Explorer:
    """Choose what is forgotten, what is kept and how exactly; see what is left free.

    Raises:
        SepmeError: a model without a catalogue of concepts.
    """
    if catalogue is None or not catalogue.concepts:
        raise SepmeError(f"'{backbone.name}' brings no catalogue: give a Catalogue of your own.")

    def choose() -> None:
        with shell.together():
            for name, box in shell.keep.boxes.items():
                box.disabled = name == shell.forget.value  # nobody keeps what is to be forgotten

    def data(state: BudgetState) -> tuple[Budget]:
        return (measure(backbone, catalogue, state),)

    shell = Explorer("budget", BudgetState, render, describe, data)
    shell.keep = Ticks(shell, "keep", "Keep")
    for concept in catalogue.concepts.values():
        shell.keep.add(concept.name, concept.kind, value=True)
    names, tolerances = list(catalogue.concepts), {f"{value:g}": value for value in TOLERANCES}
    more = "A share of a kept token: a larger one leaves more free, and leaks more"
    look = {"value": BudgetState.tolerance, "layout": NARROW}
    controls = (
        shell.menu("forget", "Forget", "What the delta is for", names, act=choose),
        shell.menu("tolerance", "Tolerance", more, tolerances, **look),
        shell.button("all", "Keep all", "Keep every concept", lambda: shell.keep.set(True)),
        shell.button("none", "Keep none", "Only the empty prompt", lambda: shell.keep.set(False)),
    )
    choose()
    return shell.arrange(row(*controls), shell.keep)
