"""Plots: data in, Axes out, nothing global touched."""

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from sepme import plots
from tests.refusals import refused


@dataclass(frozen=True)
class Step:
    """As much of an eraser's step as a plot looks at."""

    iteration: int
    correlation: tuple[float, ...]
    momentum: float


STEPS = {name: [Step(i, (1 / i, 0.5 / i), 1 / i) for i in range(1, 6)] for name in ("neon", "boat")}
DRAWINGS = {
    "decay": lambda ax: plots.correlation_decay(STEPS, ax, tau=0.01),
    "bars": lambda ax: plots.accuracy_bars({"neon": 1.0, "b": 0.5}, {"neon": 0.0, "b": 0.5}, ax),
    "spectrum": lambda ax: plots.spectrum({"k": torch.tensor([3.0, 1, 0])}, ax, threshold=0.1),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_plot_draws_on_the_axes_it_is_given(name: str) -> None:
    ax = Figure().subplots()
    before, open_figures = dict(mpl.rcParams), plt.get_fignums()
    assert DRAWINGS[name](ax) is ax
    assert ax.has_data()
    assert ax.get_xlabel()
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == open_figures


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_plot_without_axes_makes_its_own(name: str) -> None:
    ax = DRAWINGS[name](None)
    assert isinstance(ax, Axes)
    ax.figure.canvas.draw()
    plt.close(ax.figure)


def test_the_decay_shows_correlation_momentum_zero_and_threshold() -> None:
    ax = plots.correlation_decay(STEPS, Figure().subplots(), tau=0.01)
    lines = [list(line.get_ydata()) for line in ax.lines]
    assert [0, 0] in lines
    assert [0.01, 0.01] in lines
    assert [step.momentum for step in STEPS["neon"]] in lines
    assert [np.mean(step.correlation) for step in STEPS["neon"]] in lines
    assert {"neon", "boat"} <= {text.get_text() for text in ax.get_legend().get_texts()}


def test_lines_differ_in_colour_and_in_dashes() -> None:
    styles = [plots.line_style(i) for i in range(35)]
    assert len({(s["color"], str(s["linestyle"])) for s in styles}) == 35
    assert len({s["color"] for s in styles[:7]}) == 7
    assert styles[0]["linestyle"] != styles[1]["linestyle"]


# ------------------------------------------------------------------ grids
PICTURES = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _shown(figure: Figure) -> np.ndarray:
    """The figure's pixels `[h, w, 3]` in [0, 1]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


def test_a_grid_shows_every_picture_once_with_its_words() -> None:
    figure = plots.image_grid(
        PICTURES,
        ["first prompt", "second prompt"],
        ["original", "erased", "restored"],
        notes=[["", "Δ 3 %", "identical"]] * 2,
        groups={0: "gone", 1: "stays"},
        title="Title",
        footer="Footer",
    )
    assert len(figure.axes) == 6
    words = {text.get_text() for text in figure.texts}
    assert {"first prompt", "original", "gone", "stays", "Title", "Footer"} <= words
    assert {note for ax in figure.axes for note in (t.get_text() for t in ax.texts)} == {
        "Δ 3 %",
        "identical",
    }
    assert plt.get_fignums() == []  # nothing is left open behind the caller's back


def test_nothing_in_a_grid_overlaps() -> None:
    figure = plots.image_grid(
        PICTURES,
        ["a painting of a mountain in the style of watercolor"] * 2,
        ["original", "without\nneon", "all\ngiven back"],
        notes=[["watercolor, mountain\nΔ 50.3 %"] * 3] * 2,
        groups={0: "gone", 1: "stays"},
        title="Title",
        footer="two\nlines",
        cell=1.2,
    )
    figure.canvas.draw()
    texts = [*figure.texts, *(t for ax in figure.axes for t in ax.texts)]
    boxes = [text.get_window_extent() for text in texts]
    boxes += [ax.get_window_extent() for ax in figure.axes]
    for i, one in enumerate(boxes):
        assert figure.bbox.x0 <= one.x0 < one.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= one.y0 < one.y1 <= figure.bbox.y1
        assert not any(one.overlaps(other) for other in boxes[:i]), texts[min(i, len(texts) - 1)]


def test_pictures_are_enlarged_without_smoothing() -> None:
    picture = torch.zeros(3, 2, 2)
    picture[0, 0, 0] = 1  # red, top left
    pixels = _shown(plots.image_grid([[picture]]))
    red = np.isclose(pixels, (1, 0, 0), atol=0.01).all(-1)
    black = np.isclose(pixels, (0, 0, 0), atol=0.01).all(-1)
    side = np.sqrt(red.sum())
    assert side > 50
    assert black.sum() == pytest.approx(3 * red.sum(), rel=0.05)


def test_bytes_arrays_and_gaps_are_welcome() -> None:
    array = (PICTURES[0, 0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    figure = plots.image_grid([[array, None], [PICTURES[0, 0], None]])
    shown = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    assert len(shown) == 2
    assert np.abs(shown[0] - shown[1]).max() < 1 / 255 + 1e-6


def test_a_frame_surrounds_its_picture_only() -> None:
    figure = plots.image_grid(PICTURES[:1], frames=[[None, plots.ERASED, None]])
    framed = [ax.spines["left"].get_visible() for ax in figure.axes]
    assert framed == [False, True, False]
    assert figure.axes[1].spines["top"].get_edgecolor()[:3] == to_rgb(plots.ERASED)


def test_bad_input() -> None:
    with refused("no picture"):
        plots.image_grid([])
    with refused("2 x 3", "match"):
        plots.image_grid(PICTURES, row_labels=["only one"])
    with refused("match"):
        plots.image_grid(PICTURES, notes=[["a"]])
    with refused("no training step"):
        plots.correlation_decay({"neon": []})
    with refused("same names"):
        plots.accuracy_bars({"neon": 1.0}, {"boat": 1.0})
    with refused("no spectrum"):
        plots.spectrum({})
