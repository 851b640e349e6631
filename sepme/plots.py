"""Pictures of results. Functions take data and return Axes, or a Figure where it holds many axes.

With `ax=None` a function draws on a new figure. Nothing is shown and nothing global is changed.
Colours are Okabe and Ito's, which colour-blind readers can tell apart. Lines also differ in their
dashes, so that a grey print can still be read.
"""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from textwrap import fill
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor

from sepme.errors import SepmeError, warn

__all__ = [
    "ERASED",
    "correlation_decay",
    "correlation_over_timesteps",
    "cosine_distribution",
    "heat_map",
    "image_grid",
    "interference_map",
    "layer_bars",
    "line_style",
    "noise_maps",
    "png",
    "predicted_and_measured",
    "recorded_decay",
    "spectrum",
]

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000 #E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7".split()
)
#: In the order of use; yellow is left out, it is too faint for a line on white.
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1)))
GREY = "#666666"
DOTTED = {"color": GREY, "linewidth": 1, "linestyle": ":"}
THIN = {"color": GREY, "linewidth": 0.8}
#: The frame of a picture whose concept was erased.
ERASED = VERMILLION
#: Labels of ours in which `$` stands for mathematics; in every other one it is a letter.
MOMENTUM, STOPPED = MATHEMATICS = ("momentum $m_n$", "stopped by $m_n$")

Drawn = TypeVar("Drawn", bound=Artist)


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the index-th line of a plot; 35 differ."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]}


def _axes(ax: Axes | None, width: float = 6.4, height: float = 3.8) -> Axes:
    ax = ax or plt.subplots(figsize=(width, height), layout="constrained")[1]
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _legend_beside(ax: Axes, handles: Sequence[Any] | None = None) -> None:
    handles = handles or ax.get_legend_handles_labels()[0]
    ax.legend(handles=handles, frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))


# ------------------------------------------------------------------ words
#: Letter -> a family of fonts on this system that has it, or None; of those looked for so far.
_FAMILIES: dict[str, str | None] = {}
#: How matplotlib writes the numbers on a logarithmic axis.
_POWER = re.compile(r"\$\\mathdefault\{-?[\d.]*(\\times)?(10\^\{-?\d+\})?\}\$")


def literal(drawn: Drawn) -> Drawn:
    """Draw the words of a figure or of axes as they are written, in fonts that have their letters.

    A letter that no font of this system has is shown as its number, like U+845B, with one
    `SepmeWarning`. Every function here does this to all words of the axes that it draws on.
    """
    lacking: dict[Text, set[str]] = {}
    for text in drawn.findobj(Text):
        words = text.get_text()
        if "$" in words and words not in MATHEMATICS and not _POWER.fullmatch(words):
            text.set_parse_math(False)
        has = get_font(findfont(text.get_fontproperties())).get_char_index
        if letters := {letter for letter in words if letter != "\n" and not has(ord(letter))}:
            lacking[text] = letters
    _look_for(set().union(*lacking.values()) - _FAMILIES.keys())
    for text, letters in lacking.items():
        text.set_text(_readable(text.get_text()))
        if found := {_FAMILIES[letter] for letter in letters} - {None}:
            upright = {"style": "normal", "weight": "normal"}  # other faces have fewer letters
            text.set(fontfamily=[*text.get_fontfamily(), *sorted(found)], **upright)
    for axis in drawn.findobj(Axis) if lacking else ():  # sets its ticks anew whenever it is drawn
        words = [text.get_text() for text in axis.get_ticklabels()]
        if words != (readable := [*map(_readable, words)]):
            axis.set_ticklabels(readable)
    return drawn


def _look_for(letters: set[str]) -> None:
    """Find a family of fonts for each letter, or say that there is none."""
    for font in sorted(fontManager.ttflist, key=lambda font: "Sans" not in font.name):
        if letters and "Last" not in font.name:  # the last resort has a box for every letter
            with suppress(OSError, RuntimeError):  # what matplotlib cannot draw with
                has = get_font(font.fname).get_char_index
                found = {letter for letter in letters if has(ord(letter))}
                _FAMILIES.update(dict.fromkeys(found, font.name))
                letters = letters - found
    if letters:
        _FAMILIES.update(dict.fromkeys(letters))
        warn(
            f"No font of this system has {_numbers(sorted(letters)[:9])}, so figures show numbers "
            "for letters: install a font that has them, like Noto Sans CJK."
        )


def _numbers(letters: Iterable[str]) -> str:
    return "U+" + " ".join(f"{ord(letter):04X}" for letter in letters)


def _readable(words: str) -> str:
    """The words, with the number of every letter that no font has; four on a line."""
    gone = re.escape("".join(letter for letter, family in _FAMILIES.items() if family is None))
    return re.sub(f"[{gone}]+", lambda run: fill(_numbers(run[0]), 22), words) if gone else words


def _entry(name: str) -> str:
    """A name for a legend, where matplotlib leaves out all that begin with "_"."""
    return f"\u200b{name}" if name.startswith("_") else name


# ------------------------------------------------------------------ curves and bars
def training_lines(
    ax: Axes,
    n: Sequence[int],
    each: Sequence[float],
    momentum: Sequence[float],
    label: str = "",
    index: int = 0,
) -> None:
    """The index-th training over its iterations n: m_n (eq. 4) thick, each loss thin.

    The label is the thick line's; without one both lines are called what they are.
    """
    style = line_style(index)
    thin = {"label": "" if label else "each iteration", "color": style["color"]}
    ax.plot(n, each, linewidth=0.8, alpha=0.45, **thin)
    ax.plot(n, momentum, linewidth=2, label=label or MOMENTUM, **style)


def correlation_decay(
    steps_by_concept: Mapping[str, Sequence[Any]],
    ax: Axes | None = None,
    tau: float | None = None,
    limit: int | None = None,
) -> Axes:
    """How the correlation with the original concept decays while its delta is trained.

    The thick line is the momentum m_n of eq. 4, the thin one each iteration's mean normalised
    correlation: 1 is the original model, 0 is erased, below 0 overshot.

    Args:
        steps_by_concept: name -> the `sepme.erasure.ErasureStep`s of its training, in order.
        tau: how near to 0 the momentum stops the training, drawn as thin lines if given.
        limit: the most iterations that were allowed, once all training is over: a dot marks where
            the momentum stopped a curve, a cross the limit.
    """
    if not any(steps_by_concept.values()):
        raise SepmeError("There is no training step to draw: pass the steps a callback collected.")
    ax = _axes(ax, width=7.6)
    ax.axhline(0, color=BLACK, linewidth=0.8)
    ax.axhline(1, label="original model", linestyle="--", **THIN)
    if tau is not None:
        ax.axhline(tau, label=f"stop within τ = {tau:g}", **DOTTED)
        ax.axhline(-tau, **DOTTED)
    ends, alone = {}, len(steps_by_concept) == 1
    for index, (name, steps) in enumerate(steps_by_concept.items()):
        n, momentum = [step.iteration for step in steps], [step.momentum for step in steps]
        each = [float(np.mean(step.correlation)) for step in steps]
        training_lines(ax, n, each, momentum, MOMENTUM if alone else _entry(name), index)
        if limit is not None and steps:
            stopped = n[-1] < limit or (tau is not None and abs(momentum[-1]) <= tau)
            how = STOPPED if stopped else f"limit of {limit} iterations"
            mark = {"marker": "o" if stopped else "x", "markersize": 8, "markeredgewidth": 2}
            mark |= {"linestyle": "", "zorder": 5}
            ax.plot(n[-1:], momentum[-1:], color=line_style(index)["color"], **mark)
            ends[how] = Line2D([], [], color=GREY, label=how, **mark)
    handles, _ = ax.get_legend_handles_labels()
    if not alone:
        handles.append(Line2D([], [], color=GREY, linewidth=2, label=MOMENTUM))
    handles.append(Line2D([], [], color=GREY, linewidth=0.8, alpha=0.6, label="each iteration"))
    _legend_beside(ax, [*handles, *(ends[how] for how in sorted(ends, reverse=True))])
    ax.xaxis.get_major_locator().set_params(integer=True)
    of = f"{next(iter(steps_by_concept))} of the original" if alone else "the original concept"
    ax.set(xlabel="iteration", ylabel=f"correlation with {of}")
    return literal(ax)


def recorded_decay(recording: Any, ax: Axes | None = None) -> Axes:
    """A `sepme.probe.Recording` over its iterations: the fixed probe beside the training's own.

    The dots are the probe's mean correlation, the band spans its timesteps. The thick line is the
    momentum m_n of eq. 4, and the dotted one its threshold tau, unless that lies out of reach.
    Losses with a unit (eq. 2) are drawn relative to the first one.
    """
    ax = _axes(ax, width=7.6)
    ax.axhline(0, color=BLACK, linewidth=0.8)
    by_timestep = recording.correlation.mean(dim=2)  # [snapshots, timesteps]
    probe = {"color": VERMILLION, "linestyle": DASHES[1], "marker": "o", "label": "probe: mean"}
    ax.plot(recording.iterations, recording.decay, **probe)
    band = {"color": ORANGE, "alpha": 0.3, "linewidth": 0, "label": "probe: its timesteps"}
    low, high = by_timestep.amin(dim=1), by_timestep.amax(dim=1)
    ax.fill_between(recording.iterations, low, high, **band)
    settings = recording.provenance.settings
    of_loss, product = settings["statistic"] == "loss", settings["objective"] == "product"
    unit = recording.losses[0] if of_loss and product else 1.0
    n = [step.iteration for step in recording.steps]
    momentum = [step.momentum / unit for step in recording.steps]
    training_lines(ax, n, [loss / unit for loss in recording.losses], momentum)
    if (tau := settings["tau"]) >= min(recording.losses):
        ax.axhline(tau / unit, label=f"stop at τ = {tau:g}", **DOTTED)
        if not of_loss:  # the momentum stops on either side
            ax.axhline(-tau, **DOTTED)
    _legend_beside(ax)
    also = "\n(blue: its square, which is minimised)" if of_loss and not product else ""
    ax.set(xlabel="iterations", ylabel=f"correlation with the original concept{also}")
    return literal(ax)


def correlation_over_timesteps(
    timesteps: Sequence[int], curves: Mapping[str, ArrayLike | Tensor], ax: Axes | None = None
) -> Axes:
    """The normalised correlation at each timestep, one line for each state of the model.

    Args:
        curves: label -> `[timesteps]`; 1 untouched, 0 erased, below 0 overshot.
    """
    ax = _axes(ax, width=7.6)
    ax.axhline(0, color=BLACK, linewidth=0.8)
    ax.axhline(1, linestyle="--", **THIN)
    for index, (label, curve) in enumerate(curves.items()):
        style = {"marker": "o", "markersize": 3.5, **line_style(index)}
        ax.plot(timesteps, curve, label=_entry(label), **style)
    ax.set(xlabel="timestep t (right: nearly pure noise)", ylabel="correlation at this timestep")
    _legend_beside(ax)
    return literal(ax)


def spectrum(
    values: Mapping[str, ArrayLike | Tensor], ax: Axes | None = None, threshold: float | None = None
) -> Axes:
    """Singular values on a logarithmic scale, one line for each matrix.

    Args:
        values: label -> singular values, largest first.
        threshold: what counts as zero, drawn as a line if given.
    """
    ax = _axes(ax)
    for index, (label, singular) in enumerate(values.items()):
        sizes = np.asarray(singular, dtype=float)
        shown = np.where(sizes > 0, sizes, np.nan)  # zero has no place on a logarithmic scale
        style = {"marker": ".", "linewidth": 1.2, **line_style(index)}
        ax.plot(range(1, len(sizes) + 1), shown, label=_entry(label), **style)
    if threshold is not None:
        ax.axhline(threshold, label="threshold", linestyle=":", **THIN)
    ax.set(yscale="log", xlabel="index", ylabel="singular value")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(frameon=False, fontsize=8)
    return literal(ax)


def layer_bars(values: Mapping[str, float], ax: Axes | None = None, label: str = "") -> Axes:
    """One bar for each layer or part of a delta. Keys are blue, values orange, the rest grey.

    Args:
        values: module path (shortened for the label) or any other name -> a number.
        label: what the number is, for the axis.
    """
    ax = _axes(ax, height=0.8 + 0.32 * len(values))
    colour = {"to_k": BLUE, "to_v": ORANGE}
    colours = [colour.get(name.rpartition(".")[2], GREY) for name in values]
    bars = ax.barh(range(len(values)), list(values.values()), color=colours, height=0.7)
    ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    ax.set_yticks(range(len(values)), [short_path(name) for name in values], fontsize=8)
    ax.invert_yaxis()  # the first name on top
    ax.axvline(0, color=BLACK, linewidth=0.8)
    ax.margins(x=0.12)
    if {BLUE, ORANGE} & set(colours):
        ax.set_title("blue: keys, orange: values", fontsize=8, loc="right")
    ax.set(xlabel=label)
    return literal(ax)


def short_path(path: str) -> str:
    """`up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k` -> `up 0.1 to_k`."""
    if not path.endswith(("to_k", "to_v")):
        return path
    for part in ("transformer_blocks.0.", "attentions.", "attn2.", "_blocks", "_block"):
        path = path.replace(part, "")
    return path.replace(".", " ", 1).replace(".to_", " to_")


def cosine_distribution(
    observed: Mapping[str, ArrayLike | Tensor],
    random: ArrayLike | Tensor,
    ax: Axes | None = None,
) -> Axes:
    """Largest principal cosines of many pairs of subspaces, beside those of random subspaces.

    A curve says which share of the pairs lies below a cosine. Pairs whose curve is to the right of
    the grey one share more than chance would give them.

    Args:
        observed: kind of pair -> cosines, 0 to 1.
        random: of random subspaces of the same dimensions; 95 % lie left of the thin line.
    """
    ax = _axes(ax, width=7.6)
    rough = float(np.quantile(random, 0.95))
    ax.axvline(rough, label=f"95 % of random: {rough:.2f}", linestyle=":", **THIN)
    for index, (name, values) in enumerate({"random subspaces": random, **observed}.items()):
        wide = {"color": GREY, "linewidth": 4, "alpha": 0.45}
        style = {"linewidth": 1.8, **line_style(index - 1)} if index else wide
        ax.ecdf(values, label=f"{_entry(name)} (median {np.median(values):.2f})", **style)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(xlim=(0, 1.04), ylim=(0, 1.02), xlabel="largest principal cosine of a pair")
    ax.set(ylabel="share of the pairs below")
    _legend_beside(ax)
    return literal(ax)


def predicted_and_measured(
    predictors: Mapping[str, ArrayLike | Tensor], measured: ArrayLike | Tensor
) -> Sequence[Axes]:
    """One dot for each pair of concepts: what is known beforehand, and the change measured.

    Spearman's rank correlation stands above each panel: 0 says nothing about the change, 1 all of
    its order.

    Args:
        predictors: what it is -> a number a pair, above zero; each has Axes of its own.
        measured: relative change of each pair.
    """
    size = (3.3 * len(predictors), 3.1)
    axes = plt.subplots(1, len(predictors), figsize=size, layout="constrained", squeeze=False)[1][0]
    y = np.asarray(measured, dtype=float).ravel()
    for ax, color, (name, values) in zip(axes, COLOURS, predictors.items(), strict=False):
        x = np.asarray(values, dtype=float).ravel()
        _axes(ax).scatter(x, 100 * y, s=14, color=color, alpha=0.6, linewidth=0)
        ax.set(xscale="log" if x.max() > 10 * x.min() else "linear", yscale="log", xlabel=name)
        _few_ticks(ax.xaxis)
        _few_ticks(ax.yaxis)
        ax.set_title(f"rank correlation {spearmanr(x, y).statistic:.2f}", fontsize=9)
        literal(ax)
    axes[0].set_ylabel("measured change, %")
    return axes


def _few_ticks(axis: Axis) -> None:
    """A logarithmic axis with 1, 2 and 5 of each power of ten, or the powers where many."""
    if axis.get_scale() != "log":
        return
    low, high = axis.get_view_interval()
    many = high > 200 * low
    axis.set_major_locator(LogLocator(subs=(1.0,) if many else (1.0, 2.0, 5.0)))
    axis.set_minor_formatter(NullFormatter())
    if not many:
        axis.set_major_formatter("{x:g}")


# ------------------------------------------------------------------ tables in colours
def heat_map(
    table: pd.DataFrame,
    ax: Axes | None = None,
    *,
    numbers: Callable[[float], str] | None = None,
    diverging: bool = False,
    limit: float | None = None,
    label: str | None = "",
) -> Axes:
    """A table in colours; a cell without a number (NaN) is grey.

    Args:
        table: the names of its rows and columns are the labels.
        numbers: how a number is printed in its cell, if at all, and in up to 15 columns.
        diverging: from blue (-limit) over white (0) to red (limit); else from white (0) to blue.
        limit: the number with the strongest colour; by default the largest absolute one.
        label: what the numbers are, beside the scale of colours; None leaves the scale out.
    """
    rows, columns = table.shape
    ax = _axes(ax, width=2.4 + 0.5 * columns, height=max(3.0, 1.4 + 0.36 * rows))
    largest = float(np.nan_to_num(table.abs()).max())
    limit, many = limit or largest or 1.0, columns > 15
    sns.heatmap(
        table,
        ax=ax,
        cmap="RdBu_r" if diverging else "Blues",
        vmin=-limit if diverging else 0,
        vmax=limit,
        annot=table.map(numbers) if numbers and not many else None,
        fmt="",
        annot_kws={"fontsize": 7.5},
        xticklabels=False,  # seaborn draws them to see whether they overlap
        yticklabels=False,
        cbar=label is not None,
        cbar_kws={"extend": "max" if largest > limit and not diverging else "neither"},
    )
    if label is not None:
        ax.collections[0].colorbar.set_label(label, fontsize=8.5)
        literal(ax.collections[0].colorbar.ax)
    ax.set_facecolor("#dddddd")
    ax.tick_params(length=0, labelsize=6.5 if many else 8.5)
    slanted = {"rotation": 90 if many else 40, "rotation_mode": "anchor", "ha": "right"}
    ax.set_xticks(np.arange(columns) + 0.5, table.columns, va="center", **slanted)
    ax.set_yticks(np.arange(rows) + 0.5, table.index, va="center")
    return literal(ax)


def interference_map(report: Any, ax: Axes | None = None, *, limit: float | None = None) -> Axes:
    """Who disturbs whom: one row for each delta, one column for each concept that is evaluated.

    100 % is what the column's own delta changes. Its own cell is meant and left grey.

    Args:
        report: a `sepme.interference.Interference`.
        limit: the change with the strongest colour, for maps that are to be compared; by default
            the largest that is not meant.
    """
    changes = pd.DataFrame(100 * report.matrix.numpy(), report.erased, report.evaluated)
    own = np.equal.outer(report.erased, report.evaluated)
    ax = heat_map(
        changes.mask(own),
        ax,
        numbers=lambda percent: f"{percent:.{0 if percent >= 9.95 else 1}f}",
        limit=limit and 100 * limit,
        label=f"change of {report.measure},\n% of its own delta's (grey)",
    )
    ax.set(xlabel="what is drawn", ylabel="whose delta is on")
    return ax


# ------------------------------------------------------------------ many pictures
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
        frames: `[rows][columns]` colour of a frame around a picture, None for no frame.
        notes: `[rows][columns]` a short line or two below each picture.
        groups: first row -> heading above it.
        cell: side of a picture in inches.

    Raises:
        SepmeError: no picture, or labels, frames or notes that do not match the pictures.
    """
    rows, columns = _grid_shape(images, row_labels, column_labels, frames, notes)
    groups = groups or {}
    # Where things stand, in inches from the top left.
    lines = max((n.count("\n") + 1 for row in notes or () for n in row if n), default=0)
    gap, heading, below = 0.1, 0.34, 0.04 + 0.12 * lines if lines else 0.0
    left = 1.75 if row_labels else 0.15
    top = (0.5 if title else 0.12) + (0.5 if column_labels else 0.0)
    headings = [heading * sum(first <= row for first in groups) for row in range(rows + 1)]
    xs = [left + column * (cell + gap) for column in range(columns + 1)]
    ys = [top + row * (cell + below + gap) + headings[row] for row in range(rows + 1)]
    width, height = xs[-1] + 0.15, ys[-1] + 0.12 + (0.17 * (footer.count("\n") + 1) * bool(footer))

    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    for r, c in np.ndindex(rows, columns):
        place = (xs[c] / width, 1 - (ys[r] + cell) / height, cell / width, cell / height)
        frame, note = frames[r][c] if frames else None, notes[r][c] if notes else ""
        show_picture(figure.add_axes(place), images[r][c], frame, note)

    def write(x: float, y: float, text: str, ha: str, va: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, ha=ha, va=va, **style)

    for y, label in zip(ys, row_labels or (), strict=False):
        write(left - 0.1, y + cell / 2, fill(label, 22), "right", "center", fontsize=8.5)
    for x, label in zip(xs, column_labels or (), strict=False):
        bold = {"fontsize": 9, "fontweight": "bold"}
        write(x + cell / 2, ys[0] - headings[0] - 0.08, label, "center", "bottom", **bold)
    for row, label in groups.items():
        look = {"fontsize": 9, "color": BLUE, "style": "italic"}
        write(0.15, ys[row] - 0.1, label, "left", "bottom", **look)
    write(0.15, 0.3, title, "left", "center", fontsize=12, fontweight="bold")
    write(0.15, height - 0.08, footer, "left", "bottom", fontsize=8, color=GREY)
    return literal(figure)


def _grid_shape(images: Any, rows: Any, columns: Any, *details: Any) -> tuple[int, int]:
    shape = len(images), len(images[0]) if len(images) else 0
    fits = (rows is None or len(rows) == shape[0]) and (columns is None or len(columns) == shape[1])
    for table in (images, *details):
        fits &= table is None or [len(row) for row in table] == [shape[1]] * shape[0]
    if not fits or 0 in shape:
        raise SepmeError(
            f"A grid of {shape[0]} x {shape[1]} pictures needs at least one of them, a label a row "
            "and a column, and a frame and a note a picture: make them match."
        )
    return shape


def show_picture(
    ax: Axes, image: Tensor | NDArray | None, frame: str | None = None, note: str = ""
) -> None:
    """One picture, enlarged without smoothing, with a frame and a note below it."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=frame is not None, color=frame, linewidth=3)
    if image is None:
        return
    if isinstance(image, Tensor):
        image = image.detach().to("cpu", torch.float32).movedim(0, -1).clamp(0, 1).numpy()
    ax.imshow(image, interpolation="nearest")
    if note:
        below = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center"}
        ax.annotate(note, (0.5, 0), xytext=(0, -4), va="top", fontsize=6.5, color=GREY, **below)


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
        own_scale: every map on its own scale; else the maps of a column share one. The number in a
            corner is the end of that map's scale.
    """
    stack = np.stack([m.detach().float().cpu().numpy() for m in maps.values()])  # [rows, t, h, w]
    ends = np.abs(stack).max(axis=(2, 3))
    ends = np.maximum(ends if own_scale else ends.max(axis=0) + 0 * ends, 1e-12)
    rows, columns = ends.shape
    size = (1.55 + 0.95 * columns, (0.75 if title else 0.4) + 0.98 * rows)
    figure = Figure(figsize=size, dpi=100, facecolor="white", layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    cmap, sign = ("RdBu_r", "±") if diverging else ("magma", "")
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    for r, c in np.ndindex(rows, columns):
        ax, end = axes[r, c], ends[r, c]
        low = -end if diverging else 0.0
        ax.imshow(stack[r, c], cmap=cmap, vmin=low, vmax=end, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        corner = {"transform": ax.transAxes, "ha": "right", "fontsize": 6, "bbox": box}
        ax.text(0.97, 0.04, f"{sign}{end:.2g}", **corner)
    for ax, t in zip(axes[0], timesteps, strict=True):
        ax.set_title(f"t = {t}", fontsize=9)
    for ax, label in zip(axes[:, 0], maps, strict=True):
        style = {"fontsize": 8.5, "rotation": 0, "ha": "right", "va": "center"}
        ax.set_ylabel(fill(label, 18), labelpad=8, **style)
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    return literal(figure)


# ------------------------------------------------------------------ pictures as files
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
