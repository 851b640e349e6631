"""The null-space budget: how much room what is kept leaves, and which prompts take it up.

`BudgetState`, `render(state, budget)` and `describe` are pure; `Ledger` measures; `NullSpaceBudget`
is the shell. Classes of its controls: `sepme-budget-forget`, `-keep-<name>`, `-all`, `-none`,
`-tolerance`, `-status`, `-picture`.
"""

from collections import Counter
from dataclasses import dataclass
from textwrap import fill

import ipywidgets as widgets
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from sepme.concept import Catalogue
from sepme.erasure import PRESETS
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.nullspace import Constraint, constrain, pivot_rows
from sepme.plots import BLACK, BLUE, ORANGE, SKY, VERMILLION, spectrum
from sepme.widgets._parts import (
    NARROW,
    WIDE,
    Picture,
    Status,
    button,
    check_box,
    control,
    labelled,
    row,
    slug,
)

#: What can be chosen, in steps of about the root of ten.
TOLERANCES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)


@dataclass(frozen=True)
class BudgetState:
    """What is to be forgotten, what is to be kept, and how exactly.

    Raises:
        SepmeError: a tolerance that is not between 0 and 1.
    """

    forget: str
    keep: tuple[str, ...] = ()
    """Concepts; of prompts that also name the forgotten one nothing is kept."""
    rtol: float = 1e-3
    """Tolerance of the null space, relative to the largest singular value."""

    def __post_init__(self) -> None:
        if not 0 < self.rtol < 1:
            raise SepmeError(f"The tolerance {self.rtol} is not relative: give one from 0 to 1.")


@dataclass(frozen=True, eq=False)
class Budget:
    """What a state comes to."""

    room: Constraint
    eaters: tuple[tuple[str, int], ...]
    """Kept prompts and the dimensions that they take, in pivoted-QR order, the largest first."""


class Ledger:
    """Measures budgets with one model, and remembers the slow part, which no tolerance changes."""

    def __init__(self, backbone: Backbone, catalogue: Catalogue) -> None:
        self.backbone, self.catalogue = backbone, catalogue
        self._order: dict[tuple[str, ...], list[int]] = {}

    def kept_prompts(self, state: BudgetState) -> list[str]:
        forgotten = set(self.catalogue[state.forget].prompts)
        prompts = [p for name in state.keep for p in self.catalogue[name].prompts]
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in forgotten]

    def measure(self, state: BudgetState) -> Budget:
        """The room of one concept beside those that are kept.

        Raises:
            SepmeError: an unknown concept, or no direction that is free at this tolerance.
        """
        settings = PRESETS["default"]
        room = constrain(
            self.backbone,
            self.catalogue[state.forget],
            self.kept_prompts(state),
            keep_rtol=state.rtol,
            concept_rtol=settings.concept_rtol,
            method=settings.method,
            quiet=True,
        )
        if room.kept not in self._order:
            self._order[room.kept] = pivot_rows(room.kept_rows)
        tokens = len(room.kept_rows) // len(room.kept)
        # As many rows as dimensions are taken: each is the farthest from the span of those before.
        taken = Counter(
            room.kept[row // tokens] for row in self._order[room.kept][: room.space.rank]
        )
        return Budget(room, tuple(taken.most_common()))


def describe(state: BudgetState, budget: Budget) -> str:
    """What the figure shows, in words."""
    room, space = budget.room, budget.room.space
    remark = room.remark()
    return (
        f"{len(room.kept)} kept prompts take {space.rank} of {space.d_in} dimensions at tolerance "
        f"{state.rtol:g}, {space.free} are free. The delta of {state.forget} uses {room.rank}: "
        f"it sees {100 * room.reach:.1f} % of the length of its own tokens (root mean square) and "
        f"at most {100 * room.leakage:.2f} % of a kept one."
    ) + (f" {remark}" if remark else "")


def render(state: BudgetState, budget: Budget) -> Figure:
    """The spectra with the threshold, the budget as one bar, and who takes most of it."""
    figure = Figure(figsize=(10, 4.8), dpi=100, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.1, 1), height_ratios=(1, 4))
    _spectra(figure.add_subplot(grid[:, 0]), state, budget.room)
    _bar(figure.add_subplot(grid[0, 1]), budget.room)
    _eaters(figure.add_subplot(grid[1, 1]), budget.eaters)
    return figure


def _spectra(ax: Axes, state: BudgetState, room: Constraint) -> None:
    space = room.space
    values: dict[str, Tensor] = {
        "kept prompts": space.spectrum,
        f"{state.forget}'s prompts": torch.linalg.svdvals(room.concept_rows),
    }
    spectrum(values, ax, space.threshold)
    largest = float(space.spectrum[0])
    ax.set_ylim(largest * 1e-8, largest * 3)  # below lies nothing but rounding
    ax.axvspan(0.5, space.rank + 0.5, color=SKY, alpha=0.18, linewidth=0)
    many = f"{space.rank} singular values lie" if space.rank != 1 else "1 singular value lies"
    ax.set_title(f"{many} above the threshold", fontsize=10)


def _bar(ax: Axes, room: Constraint) -> None:
    """All dimensions of a text embedding: taken, used by the delta, left."""
    parts = (
        ("taken", room.space.rank, SKY),
        ("used by the delta", room.rank, VERMILLION),
        ("left over", max(0, room.space.free - room.rank), "#DDDDDD"),
    )
    start = 0
    for label, size, colour in parts:
        ax.barh([0], [size], left=start, color=colour, edgecolor=BLACK, linewidth=0.6,
                label=f"{label}: {size}")  # fmt: skip
        start += size
    ax.set(yticks=[], xlim=(0, start), xlabel=f"dimensions of the text embedding ({start})\n")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.legend(ncols=3, frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1, 1))


def _eaters(ax: Axes, eaters: tuple[tuple[str, int], ...], most: int = 9) -> None:
    shown, rest = eaters[:most], eaters[most:]
    names = [fill(f"“{prompt}”", 28) if prompt else "the empty prompt" for prompt, _ in shown]
    sizes = [size for _, size in shown]
    if rest:
        names.append(f"{len(rest)} others")
        sizes.append(sum(size for _, size in rest))
    colours = [BLUE] * len(shown) + [ORANGE] * bool(rest)
    bars = ax.barh(range(len(names)), sizes, color=colours)
    ax.bar_label(bars, padding=3, fontsize=8)
    ax.set_yticks(range(len(names)), names, fontsize=7.5)
    ax.margins(x=0.12)
    ax.set(xlabel="dimensions", ylim=(max(len(names), 5) - 0.5, -0.5))  # the largest on top
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title("which kept prompts take them", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)


class NullSpaceBudget(widgets.VBox):
    """The controls around `Ledger` and `render`: every change is measured at once."""

    def __init__(self, backbone: Backbone, catalogue: Catalogue) -> None:
        self.ledger = Ledger(backbone, catalogue)
        self._paused = False
        self.status = Status("sepme-budget-status", "")
        self.picture = Picture("sepme-budget-picture")
        self._make_controls(catalogue)
        for each in (self.forget, self.tolerance, *self.ticks.values()):
            each.observe(self._show, "value")
        self._show()
        kinds: dict[str, list[widgets.Checkbox]] = {}
        for name, tick in self.ticks.items():
            kinds.setdefault(catalogue[name].kind, []).append(tick)
        super().__init__(
            [
                row(self.forget, self.tolerance, self.all, self.none),
                *(labelled(f"Keep {kind}s", *ticks) for kind, ticks in kinds.items()),
                self.status,
                self.picture,
            ],
            layout=widgets.Layout(max_width=WIDE),
        )
        self.add_class("sepme-budget")

    @property
    def state(self) -> BudgetState:
        forget = self.forget.value
        keep = tuple(n for n, tick in self.ticks.items() if tick.value and n != forget)
        return BudgetState(forget, keep, self.tolerance.value)

    def _make_controls(self, catalogue: Catalogue) -> None:
        names = list(catalogue.concepts)
        self.forget = control(
            widgets.Dropdown, "Forget", "What the delta is for", "sepme-budget-forget",
            options=names,
        )  # fmt: skip
        self.tolerance = control(
            widgets.Dropdown, "Tolerance", "More leaves more room, and leaks more",
            "sepme-budget-tolerance", value=1e-3, layout=NARROW,
            options=[(f"{rtol:g}", rtol) for rtol in TOLERANCES],
        )  # fmt: skip
        self.ticks = {
            name: check_box(name, f"Keep {name}", f"sepme-budget-keep-{slug(name)}", value=True)
            for name in names
        }
        self.all = button("Keep all", "Keep every concept", "sepme-budget-all")
        self.none = button("Keep none", "Keep the empty prompt only", "sepme-budget-none")
        self.all.on_click(lambda _: self._tick_all(True))
        self.none.on_click(lambda _: self._tick_all(False))

    def _tick_all(self, value: bool) -> None:
        """Many changes, one measurement."""
        self._paused = True
        for tick in self.ticks.values():
            tick.value = value
        self._paused = False
        self._show()

    def _show(self, _: object = None) -> None:
        if self._paused:
            return
        for name, tick in self.ticks.items():
            tick.disabled = name == self.forget.value  # nobody keeps what is to be forgotten
        self.status.say("Measuring ...")
        try:
            state = self.state
            budget = self.ledger.measure(state)
        except SepmeError as error:
            self.status.complain(error)
            return
        text = describe(state, budget)
        self.picture.show(render(state, budget), text)
        self.status.say(text)


def null_space_budget(backbone: Backbone, catalogue: Catalogue | None) -> NullSpaceBudget:
    """Choose what is forgotten, what is kept and how exactly; see what room is left.

    Raises:
        SepmeError: a model without a catalogue of concepts.
    """
    if catalogue is None or not catalogue.concepts:
        raise SepmeError(
            f"The model '{backbone.name}' brings no catalogue of concepts to choose from: give a "
            "Catalogue of your own."
        )
    return NullSpaceBudget(backbone, catalogue)
