"""Pictures of results. Pure functions: data in, Axes (or a Figure of many pictures) out.

Every function takes `ax=None` and draws on a new figure then. Nothing is shown, nothing global is
changed. Colours are Okabe and Ito's, which colour-blind readers can tell apart; lines also differ
in their dashes, so that a grey print still reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sepme.errors import SepmeError

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000 #E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7".split()
)
#: In the order of use; yellow is left out, it is too faint for a line on white.
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1)))
GREY = "#666666"
#: The frame of a picture whose concept was erased.
ERASED = VERMILLION


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the index-th line of a plot; 35 differ."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]}


def _axes(ax: Axes | None, width: float = 6.4, height: float = 3.8) -> Axes:
    ax = ax or plt.subplots(figsize=(width, height), layout="constrained")[1]
    ax.spines[["top", "right"]].set_visible(False)
    return ax


# ------------------------------------------------------------------ curves and bars
def correlation_decay(
    steps_by_concept: Mapping[str, Sequence[Any]], ax: Axes | None = None, tau: float | None = None
) -> Axes:
    """How the correlation with the original concept decays while its delta is trained.

    Args:
        steps_by_concept: name -> the `sepme.eraser.Step`s of its training, in order.
        tau: where the momentum stops the training, drawn as a thin line if given.

    The thick line is the momentum m_n of eq. 4, which decides when to stop. The thin one is the
    mean normalised correlation of each iteration's few noised images: 1 is the original model,
    0 is erased, below 0 overshot.
    """
    if not any(steps_by_concept.values()):
        raise SepmeError("There is no training step to draw: pass the steps a callback collected.")
    ax = _axes(ax, width=7.6)
    ax.axhline(0, color=BLACK, linewidth=0.8)
    ax.axhline(1, color=GREY, linewidth=0.8, linestyle="--", label="original model")
    if tau is not None:
        ax.axhline(tau, color=GREY, linewidth=1, linestyle=":", label=f"stop at τ = {tau:g}")
    for index, (name, steps) in enumerate(steps_by_concept.items()):
        style, n = line_style(index), [step.iteration for step in steps]
        each = [float(np.mean(step.correlation)) for step in steps]
        ax.plot(n, each, linewidth=0.8, alpha=0.45, color=style["color"])
        ax.plot(n, [step.momentum for step in steps], linewidth=2, label=name, **style)
    handles, _ = ax.get_legend_handles_labels()
    handles += [
        Line2D([], [], color=GREY, linewidth=2, label="momentum $m_n$"),
        Line2D([], [], color=GREY, linewidth=0.8, alpha=0.6, label="each iteration"),
    ]
    ax.legend(handles=handles, frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    ax.set(xlabel="iteration", ylabel="correlation with the original concept")
    return ax


def accuracy_bars(
    before: Mapping[str, float], after: Mapping[str, float], ax: Axes | None = None
) -> Axes:
    """In how many pictures the judge finds what the prompt says, before and after erasing.

    Args:
        before, after: name -> share of pictures, from 0 to 1; the names of `before` are drawn.
    """
    if set(before) != set(after):
        raise SepmeError("The bars compare the same names before and after: give both the same.")
    ax = _axes(ax, height=0.8 + 0.5 * len(before))
    at = np.arange(len(before))
    kinds = ((before, "original", SKY, -0.2), (after, "after erasing", ERASED, 0.2))
    for shares, label, colour, shift in kinds:
        values = [100 * shares[name] for name in before]
        bars = ax.barh(at + shift, values, height=0.36, color=colour, label=label)
        ax.bar_label(bars, fmt="%.0f %%", padding=3, fontsize=8)
    ax.set_yticks(at, list(before))
    ax.invert_yaxis()  # the first name on top
    ax.set(xlim=(0, 112), xlabel="pictures in which the judge sees it, %")
    ax.set_xticks(range(0, 101, 25))
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def spectrum(
    values: Mapping[str, ArrayLike | Tensor], ax: Axes | None = None, threshold: float | None = None
) -> Axes:
    """Singular values on a logarithmic scale, one line a matrix.

    Args:
        values: label -> singular values, largest first.
        threshold: what counts as zero, drawn as a line if given.
    """
    if not values:
        raise SepmeError("There is no spectrum to draw: give at least one matrix's values.")
    ax = _axes(ax)
    for index, (label, singular) in enumerate(values.items()):
        sizes = np.asarray(singular, dtype=float)
        shown = np.where(sizes > 0, sizes, np.nan)  # zero has no place on a logarithmic scale
        style = line_style(index)
        ax.plot(range(1, len(sizes) + 1), shown, marker=".", linewidth=1.2, label=label, **style)
    if threshold is not None:
        ax.axhline(threshold, color=GREY, linewidth=0.8, linestyle=":", label="threshold")
    ax.set(yscale="log", xlabel="index", ylabel="singular value")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(frameon=False, fontsize=8)
    return ax


# ------------------------------------------------------------------ many pictures
@dataclass(frozen=True)
class _Layout:
    """Where things stand in a grid of pictures, in inches from the top left."""

    rows: int
    columns: int
    breaks: tuple[int, ...]
    """Rows with extra room above."""
    left: float
    top: float
    cell: float
    note: float
    """Room for the lines below a picture."""
    bottom: float

    gap = 0.1
    extra = 0.34
    right = 0.15

    @property
    def size(self) -> tuple[float, float]:
        width = self.left + self.columns * (self.cell + self.gap) + self.right
        return width, self.y(self.rows) + self.bottom

    def x(self, column: int) -> float:
        return self.left + column * (self.cell + self.gap)

    def y(self, row: int) -> float:
        above = sum(row >= first for first in self.breaks)
        return self.top + row * (self.cell + self.note + self.gap) + above * self.extra

    def place(self, row: int, column: int) -> tuple[float, float, float, float]:
        """Left, bottom, width, height of a picture, as matplotlib wants them."""
        width, height = self.size
        bottom = 1 - (self.y(row) + self.cell) / height
        return self.x(column) / width, bottom, self.cell / width, self.cell / height

    def point(self, x: float, y: float) -> tuple[float, float]:
        width, height = self.size
        return x / width, 1 - y / height


def image_grid(
    images: Sequence[Sequence[Tensor | NDArray | None]] | Tensor,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    *,
    frames: Sequence[Sequence[str | None]] | None = None,
    notes: Sequence[Sequence[str]] | None = None,
    groups: Mapping[int, str] | None = None,
    title: str = "",
    footer: str = "",
    cell: float = 1.05,
) -> Figure:
    """A table of pictures, enlarged without smoothing, so that what is there is what is seen.

    Args:
        images: `[rows][columns]` pictures, `[3, h, w]` tensors or `[h, w, 3]` arrays in [0, 1];
            None leaves a place empty.
        row_labels, column_labels: what stands beside each row and above each column.
        frames: `[rows][columns]` colour of a frame around a picture, None for no frame.
        notes: `[rows][columns]` a short line or two below each picture.
        groups: first row -> heading above it.
        title, footer: above and below everything.
        cell: side of a picture in inches.

    Raises:
        SepmeError: no picture, or labels, frames or notes that do not match the pictures.
    """
    table = [[None if image is None else _pixels(image) for image in row] for row in images]
    _check_grid(table, row_labels, column_labels, frames, notes)
    groups = dict(groups or {})
    layout = _Layout(
        rows=len(table),
        columns=len(table[0]),
        breaks=tuple(groups),
        left=1.75 if row_labels else 0.15,
        top=(0.5 if title else 0.12) + (0.5 if column_labels else 0.0),
        cell=cell,
        note=_line_room(notes),
        bottom=0.12 + 0.17 * (footer.count("\n") + 1 if footer else 0),
    )
    figure = Figure(figsize=layout.size, dpi=150, facecolor="white")
    for r, row in enumerate(table):
        for c, picture in enumerate(row):
            frame = frames[r][c] if frames else None
            _picture(figure, layout.place(r, c), picture, frame, notes[r][c] if notes else "")
    _write(figure, layout, row_labels or (), column_labels or (), groups, title, footer)
    return figure


def _line_room(notes: Sequence[Sequence[str]] | None) -> float:
    """Inches below a picture for the longest of the notes."""
    lines = [note.count("\n") + 1 for row in notes or () for note in row if note]
    return 0.04 + 0.12 * max(lines) if lines else 0.0


def _pixels(image: Tensor | NDArray) -> NDArray:
    """`[h, w, 3]` in [0, 1] of whatever holds a picture."""
    if isinstance(image, Tensor):
        image = image.detach().to("cpu", torch.float32).movedim(0, -1).numpy()
    image = np.asarray(image)
    scale = 255 if image.dtype == np.uint8 else 1
    return np.clip(image / scale, 0, 1)


def _check_grid(table: list[list], rows: Any, columns: Any, *details: Any) -> None:
    if not table or not table[0]:
        raise SepmeError("There is no picture to draw: give at least one row of one picture.")
    shape = (len(table), len(table[0]))
    wrong = any(len(row) != shape[1] for row in table)
    wrong |= rows is not None and len(rows) != shape[0]
    wrong |= columns is not None and len(columns) != shape[1]
    for detail in details:
        wrong |= detail is not None and [len(row) for row in detail] != [shape[1]] * shape[0]
    if wrong:
        raise SepmeError(
            f"A grid of {shape[0]} x {shape[1]} pictures needs a label a row and a column, and a "
            "frame and a note a picture: make them match."
        )


def _picture(
    figure: Figure,
    place: tuple[float, float, float, float],
    picture: NDArray | None,
    frame: str | None,
    note: str,
) -> None:
    ax = figure.add_axes(place)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=frame is not None, color=frame, linewidth=3)
    if picture is None:
        return
    ax.imshow(picture, interpolation="nearest", aspect="auto")
    if note:
        ax.annotate(
            note,
            (0.5, 0),
            xycoords="axes fraction",
            xytext=(0, -4),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=6.5,
            color=GREY,
        )


def _write(
    figure: Figure,
    layout: _Layout,
    rows: Sequence[str],
    columns: Sequence[str],
    groups: Mapping[int, str],
    title: str,
    footer: str,
) -> None:
    """All the words of a grid but those below its pictures."""
    edge = 0.15
    for row, label in enumerate(rows):
        at = layout.point(layout.left - 0.1, layout.y(row) + layout.cell / 2)
        figure.text(*at, fill(label, 22), ha="right", va="center", fontsize=8.5)
    first = layout.y(0) - (layout.extra if 0 in groups else 0)
    for column, label in enumerate(columns):
        at = layout.point(layout.x(column) + layout.cell / 2, first - 0.08)
        figure.text(*at, label, ha="center", va="bottom", fontsize=9, fontweight="bold")
    for row, label in groups.items():
        at = layout.point(edge, layout.y(row) - 0.1)
        figure.text(*at, label, ha="left", va="bottom", fontsize=9, color=BLUE, style="italic")
    if title:
        at = layout.point(edge, 0.3)
        figure.text(*at, title, ha="left", va="center", fontsize=12, fontweight="bold")
    if footer:
        at = layout.point(edge, layout.size[1] - 0.08)
        figure.text(*at, footer, ha="left", va="bottom", fontsize=8, color=GREY)
