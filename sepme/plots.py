"""Pictures of results. Pure functions: data in, Axes (or a Figure of many pictures) out.

Every function takes `ax=None` and draws on a new figure then. Nothing is shown, nothing global is
changed. Colours are Okabe and Ito's, which colour-blind readers can tell apart; lines also differ
in their dashes, so that a grey print still reads.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError
from scipy.stats import spearmanr
from torch import Tensor

from sepme.errors import SepmeError
from sepme.report import writable_folder

# ------------------------------------------------------------------ plots
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
    steps_by_concept: Mapping[str, Sequence[Any]],
    ax: Axes | None = None,
    tau: float | None = None,
    limit: int | None = None,
) -> Axes:
    """How the correlation with the original concept decays while its delta is trained.

    Args:
        steps_by_concept: name -> the `sepme.erasure.Step`s of its training, in order.
        tau: where the momentum stops the training, drawn as a thin line if given.
        limit: the most iterations that were allowed, once all training is over; how each curve
            ended is marked then: a dot where the momentum stopped it, a cross at the limit.

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
    ends = {}
    for index, (name, steps) in enumerate(steps_by_concept.items()):
        style, n = line_style(index), [step.iteration for step in steps]
        each = [float(np.mean(step.correlation)) for step in steps]
        ax.plot(n, each, linewidth=0.8, alpha=0.45, color=style["color"])
        label = name if len(steps_by_concept) > 1 else f"{name}: momentum $m_n$"
        ax.plot(n, [step.momentum for step in steps], linewidth=2, label=label, **style)
        if limit is not None and steps:
            stopped = n[-1] < limit or (tau is not None and steps[-1].momentum <= tau)
            how, marker = (
                ("stopped by $m_n$", "o") if stopped else (f"limit of {limit} iterations", "x")
            )
            at = {"marker": marker, "markersize": 8, "markeredgewidth": 2, "zorder": 5}
            ax.plot(n[-1:], [steps[-1].momentum], linestyle="", color=style["color"], **at)
            ends[how] = Line2D([], [], linestyle="", color=GREY, label=how, **at)
    handles, _ = ax.get_legend_handles_labels()
    if len(steps_by_concept) > 1:
        handles.append(Line2D([], [], color=GREY, linewidth=2, label="momentum $m_n$"))
    handles += [
        Line2D([], [], color=GREY, linewidth=0.8, alpha=0.6, label="each iteration"),
        *(ends[how] for how in sorted(ends, reverse=True)),
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


# ------------------------------------------------------------------ noise differences
def noise_maps(
    maps: Mapping[str, Tensor],
    timesteps: Sequence[int],
    *,
    diverging: bool = True,
    own_scale: bool = False,
    title: str = "",
) -> Figure:
    """Rows of maps over the timesteps, without smoothing.

    Args:
        maps: row label -> `[timesteps, h, w]`.
        diverging: from blue over white (zero) to red; else from black (zero) to bright.
        own_scale: every map on its own scale; else the maps of a column share one, so that rows
            can be compared. The number in a corner is the end of that map's scale.

    Raises:
        SepmeError: no map, or not one a timestep.
    """
    if not maps or any(m.ndim != 3 or len(m) != len(timesteps) for m in maps.values()):
        raise SepmeError(
            f"Noise maps come in rows of {len(timesteps)}, one [h, w] a timestep: give at least "
            "one row of as many."
        )
    stack = torch.stack([m.detach().float().cpu() for m in maps.values()])  # [rows, t, h, w]
    ends = stack.abs().amax(dim=(2, 3))
    ends = (ends if own_scale else ends.amax(dim=0).expand_as(ends)).clamp_min(1e-12)
    rows, columns = ends.shape
    size = (1.55 + 0.95 * columns, (0.75 if title else 0.4) + 0.98 * rows)
    figure = Figure(figsize=size, dpi=100, facecolor="white", layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for r, label in enumerate(maps):
        for c, t in enumerate(timesteps):
            _noise_map(axes[r, c], stack[r, c], float(ends[r, c]), diverging)
            if r == 0:
                axes[r, c].set_title(f"t = {t}", fontsize=9)
        axes[r, 0].set_ylabel(
            fill(label, 18), fontsize=8.5, rotation=0, ha="right", va="center", labelpad=8
        )
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure


def _noise_map(ax: Axes, values: Tensor, end: float, diverging: bool) -> None:
    colours, low = ("RdBu_r", -end) if diverging else ("magma", 0.0)
    ax.imshow(values.numpy(), cmap=colours, vmin=low, vmax=end, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    scale = f"±{end:.2g}" if diverging else f"{end:.2g}"
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    ax.text(0.97, 0.04, scale, transform=ax.transAxes, ha="right", fontsize=6, bbox=box)


def correlation_over_timesteps(
    timesteps: Sequence[int], curves: Mapping[str, ArrayLike | Tensor], ax: Axes | None = None
) -> Axes:
    """The normalised correlation at each timestep, one line a state of the model.

    Args:
        curves: label -> `[timesteps]`; 1 untouched, 0 erased, below 0 overshot.
    """
    if not curves or any(len(curve) != len(timesteps) for curve in curves.values()):
        raise SepmeError(
            f"A curve has one correlation for each of the {len(timesteps)} timesteps: give at "
            "least one curve of as many."
        )
    ax = _axes(ax, width=7.6)
    ax.axhline(0, color=BLACK, linewidth=0.8)
    ax.axhline(1, color=GREY, linewidth=0.8, linestyle="--")
    for index, (label, curve) in enumerate(curves.items()):
        values = np.asarray(curve, dtype=float)
        ax.plot(timesteps, values, marker="o", markersize=3.5, label=label, **line_style(index))
    ax.set(xlabel="timestep t (right: nearly pure noise)", ylabel="correlation at this timestep")
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def recorded_decay(recording: Any, ax: Axes | None = None) -> Axes:
    """A `sepme.probe.Recording` over its iterations: the fixed probe beside the training's own.

    The dots are the probe's mean correlation, the band spans its timesteps (each the mean of its
    pictures), the line is the momentum m_n of eq. 4, and the dotted line its threshold tau, unless
    that lies out of reach. Losses with a unit (eq. 2) are drawn relative to the first one.
    """
    ax = _axes(ax, width=7.6)
    ax.axhline(0, color=BLACK, linewidth=0.8)
    by_timestep = recording.correlation.mean(dim=2)  # [snapshots, timesteps]
    band = (by_timestep.amin(dim=1), by_timestep.amax(dim=1))
    ax.fill_between(recording.iterations, *band, color=SKY, alpha=0.3, linewidth=0)
    ax.plot(recording.iterations, recording.decay, "o-", color=BLUE, label="probe: mean")
    unit = recording.losses[0] if recording.provenance.settings["objective"] == "product" else 1.0
    n = [step.iteration for step in recording.steps]
    each = [loss / unit for loss in recording.losses]
    momentum = [step.momentum / unit for step in recording.steps]
    ax.plot(n, each, color=VERMILLION, linewidth=0.8, alpha=0.45, label="each iteration")
    ax.plot(n, momentum, color=VERMILLION, linewidth=2, linestyle=DASHES[1], label="momentum $m_n$")
    if recording.tau >= min(recording.losses):
        threshold = {"color": GREY, "linewidth": 1, "linestyle": ":"}
        ax.axhline(recording.tau / unit, label=f"stop at τ = {recording.tau:g}", **threshold)
    handles, _ = ax.get_legend_handles_labels()
    handles.insert(1, Patch(color=SKY, alpha=0.3, linewidth=0, label="probe: its timesteps"))
    ax.legend(handles=handles, frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    ax.set(xlabel="iterations", ylabel="correlation with the original concept")
    return ax


def layer_bars(values: Mapping[str, float], ax: Axes | None = None, label: str = "") -> Axes:
    """One bar a layer (or part of a delta), keys and values told apart by colour.

    Args:
        values: module path (shortened for the label) or any other name -> a number.
        label: what the number is, for the axis.
    """
    if not values:
        raise SepmeError("There is no layer to draw: give at least one.")
    ax = _axes(ax, height=0.8 + 0.32 * len(values))
    colours = [
        BLUE if name.endswith("to_k") else ORANGE if name.endswith("to_v") else GREY
        for name in values
    ]
    names = [_short_path(name) for name in values]
    bars = ax.barh(range(len(values)), list(values.values()), color=colours, height=0.7)
    ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    ax.set_yticks(range(len(values)), names, fontsize=8)
    ax.invert_yaxis()
    ax.axvline(0, color=BLACK, linewidth=0.8)
    ax.margins(x=0.12)
    ax.set(xlabel=label)
    return ax


def _short_path(path: str) -> str:
    """`up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k` -> `up 0.1 to_k`."""
    parts = path.replace("transformer_blocks.0.", "").replace("_blocks", "").replace("_block", "")
    parts = parts.replace("attentions.", "").replace("attn2.", "")
    block, _, rest = parts.partition(".")
    return f"{block} {rest.replace('.to_', ' to_')}" if path.endswith(("to_k", "to_v")) else path


def cosine_maps(
    cosines: Tensor, names: Sequence[str], titles: Sequence[str], *, title: str = ""
) -> Figure:
    """Square tables of cosines side by side, blue -1 over white 0 to red 1.

    Args:
        cosines: `[tables, k, k]`.
        names: k of them, for rows and columns.
        titles: one a table.
    """
    if cosines.shape != (len(titles), len(names), len(names)) or not len(titles):
        raise SepmeError(
            f"The cosines are {list(cosines.shape)} where the names ask for "
            f"[{len(titles)}, {len(names)}, {len(names)}]: make them match."
        )
    side = max(1.5, 0.15 * len(names))
    size = (1.7 + len(titles) * (side + 0.1), side + (1.2 if title else 0.9))
    figure = Figure(figsize=size, dpi=100, facecolor="white", layout="constrained")
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    for index, (ax, table) in enumerate(zip(axes, cosines, strict=True)):
        drawn = ax.imshow(table.cpu().numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        ax.set_title(titles[index], fontsize=9)
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=6.5)
        ax.set_yticks(range(len(names)), names if index == 0 else [""] * len(names), fontsize=6.5)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    figure.colorbar(drawn, ax=list(axes), shrink=0.7, aspect=15, label="cosine")
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure


# ------------------------------------------------------------------ how concepts interfere
def interference_map(report: Any, ax: Axes | None = None, *, limit: float | None = None) -> Axes:
    """Who disturbs whom: one row for each delta, one column for each concept that is looked at.

    100 % is what the column's own delta changes, which is meant and left grey.

    Args:
        report: a `sepme.interference.Interference`.
        limit: the change with the darkest colour, for maps that are to be compared; by default
            the largest that is not meant.
    """
    values = report.matrix.numpy()
    own = np.equal.outer(np.array(report.emitters), np.array(report.receivers))
    top = limit or max(float(np.max(values, where=~own, initial=0.0)), 1e-12)
    rows, columns = values.shape
    ax = _axes(ax, width=2.4 + 0.5 * columns, height=1.4 + 0.36 * rows)
    shown = np.ma.masked_array(100 * values, own)
    colours = colormaps["Blues"].with_extremes(bad="#dddddd")
    drawn = ax.imshow(shown, cmap=colours, vmin=0, vmax=100 * top, aspect="auto")
    for row, column in np.ndindex(rows, columns) if columns <= 12 else ():
        ink = "white" if values[row, column] > 0.6 * top and not own[row, column] else "black"
        text = _percent(values[row, column])
        ax.text(column, row, text, ha="center", va="center", fontsize=7.5, color=ink)
    ax.set_xticks(range(columns), report.receivers, rotation=40, ha="right", fontsize=8.5)
    ax.set_yticks(range(rows), report.emitters, fontsize=8.5)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="what is drawn", ylabel="whose delta is on")
    ax.figure.colorbar(
        drawn, ax=ax, extend="max" if values[~own].max(initial=0) > top else "neither"
    ).set_label(f"change of {report.measure},\n% of what its own delta changes", fontsize=8.5)
    return ax


def _percent(share: float) -> str:
    """Two digits, as far as they are worth printing."""
    return f"{100 * share:.0f}" if share >= 0.0995 else f"{100 * share:.1f}"


def cosine_distribution(
    observed: Mapping[str, ArrayLike | Tensor],
    random: ArrayLike | Tensor,
    ax: Axes | None = None,
) -> Axes:
    """Largest principal cosines of many pairs of subspaces, beside those of random subspaces.

    A curve says which share of the pairs lies below a cosine: one to the right of the grey curve
    belongs to pairs that share more than chance would give them.

    Args:
        observed: kind of pair -> cosines, 0 to 1.
        random: cosines of random subspaces of the same dimensions; 95 % of them lie left of the
            thin line.
    """
    if not observed or any(np.size(values) == 0 for values in (*observed.values(), random)):
        raise SepmeError("There is no angle to draw: give at least one cosine of each kind.")
    ax = _axes(ax, width=7.6)
    chance = np.sort(np.asarray(random, dtype=float))
    rough = float(np.quantile(chance, 0.95))
    ax.axvline(
        rough, color=GREY, linewidth=0.8, linestyle=":", label=f"95 % of random: {rough:.2f}"
    )
    kinds = {"random subspaces": chance} | {
        name: np.sort(np.asarray(values, dtype=float)) for name, values in observed.items()
    }
    for index, (name, values) in enumerate(kinds.items()):
        wide = {"color": GREY, "linewidth": 4, "alpha": 0.45}
        style = {"linewidth": 1.8, **line_style(index - 1)} if index else wide
        label = f"{name} (median {np.median(values):.2f})"
        share = 100 * np.arange(1, len(values) + 1) / len(values)
        ax.plot([0, *values, 1], [0, *share, 100], drawstyle="steps-post", label=label, **style)
    ax.set(xlim=(0, 1.04), ylim=(0, 102), xlabel="largest principal cosine of a pair")
    ax.set(ylabel="share of the pairs below, %")
    ax.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def predicted_and_measured(
    predictors: Mapping[str, ArrayLike | Tensor],
    measured: ArrayLike | Tensor,
    ax: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """One dot a pair of concepts: what is known beforehand, against the change that was measured.

    Args:
        predictors: what it is -> a number a pair, above zero.
        measured: relative change of each pair.
        ax: one for each predictor.

    The rank correlation of Spearman stands above each: 0 says nothing about the change, 1 all of
    its order.
    """
    if not predictors:
        raise SepmeError("There is no predictor to draw: give at least one.")
    if ax is None:
        size = (3.3 * len(predictors), 3.1)
        ax = np.atleast_1d(plt.subplots(1, len(predictors), figsize=size, layout="constrained")[1])
    y = np.asarray(measured, dtype=float).ravel()
    for index, (place, (name, values)) in enumerate(zip(ax, predictors.items(), strict=True)):
        x = np.asarray(values, dtype=float).ravel()
        place = _axes(place)
        place.scatter(x, 100 * y, s=14, color=COLOURS[index], alpha=0.6, linewidth=0)
        place.set(xscale="log" if x.max() > 10 * x.min() else "linear", yscale="log", xlabel=name)
        for axis in (place.xaxis, place.yaxis):
            if axis.get_scale() == "log":
                _few_ticks(axis)
        place.set_title(f"rank correlation {spearmanr(x, y).statistic:.2f}", fontsize=9)
    ax[0].set_ylabel("measured change, %")
    return ax


def _few_ticks(axis: Axis) -> None:
    """1, 2 and 5 of each power of ten as plain numbers, or the powers where there are many."""
    low, high = axis.get_view_interval()
    many = high > 200 * low
    axis.set_major_locator(LogLocator(subs=(1.0,) if many else (1.0, 2.0, 5.0)))
    axis.set_minor_formatter(NullFormatter())
    if not many:
        axis.set_major_formatter("{x:g}")


# ------------------------------------------------------------------ pictures
# Pictures as files: PNG bytes of whatever holds pixels, and back.
def png(picture: Figure | Tensor | NDArray[np.uint8]) -> bytes:
    """A PNG file of a figure, a `[3, h, w]` tensor in [0, 1] or `[h, w, 3]` bytes.

    It holds no date and no version: the same picture gives the same bytes.
    """
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()
    if isinstance(picture, Tensor):
        picture = (picture * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def read_picture(file: Path, size: int) -> Tensor:
    """A picture file as `[3, size, size]` in [0, 1].

    Raises:
        SepmeError: no picture, or one of another size.
    """
    try:
        with Image.open(file) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise SepmeError(f"{file} cannot be read as a picture: give PNG files.") from error
    height, width, _ = pixels.shape
    if (height, width) != (size, size):
        raise SepmeError(
            f"{file} has {width} x {height} pixels where {size} x {size} are needed: give pictures "
            "that the shipped model drew."
        )
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


def check_name(path: Path) -> None:
    """Refuse, before any work, a name that no PNG file can be written to.

    Raises:
        SepmeError: another ending, a folder of that name, or a folder that cannot be written to.
    """
    if path.suffix.lower() != ".png":
        raise SepmeError(f"{path} is not a name for a picture: end it in .png.")
    if path.is_dir():
        raise SepmeError(f"{path} is a folder: name a file in it.")
    writable_folder(path.parent)
