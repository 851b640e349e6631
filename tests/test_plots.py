"""Plots: data in, Axes out, nothing global touched."""

from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from sepme import plots
from sepme.cli._pictures import read_picture
from tests.refusals import refused


def step(iteration: int, correlation: tuple[float, ...], momentum: float) -> SimpleNamespace:
    """As much of an eraser's step as a plot looks at."""
    return SimpleNamespace(iteration=iteration, correlation=correlation, momentum=momentum)


STEPS = {name: [step(i, (1 / i, 0.5 / i), 1 / i) for i in range(1, 6)] for name in ("neon", "boat")}
PRODUCT = {"objective": "product", "statistic": "loss"}
RECORDING = SimpleNamespace(
    iterations=(0, 5),
    decay=(1.0, 0.2),
    correlation=torch.tensor([[[1.0], [1.0]], [[0.5], [-0.1]]]),  # [snapshots, timesteps, pictures]
    steps=STEPS["neon"],
    losses=tuple(0.02 / i for i in range(1, 6)),
    provenance=SimpleNamespace(settings=PRODUCT | {"tau": 0.01}),
)
TABLE = pd.DataFrame([[np.nan, 40, 2.0], [2, np.nan, 2]], ["a", "b"], ["x", "y", "z"])


def interference(n: int = 3) -> SimpleNamespace:
    """As much of an `Interference` as a plot looks at."""
    matrix = torch.full((n, n), 0.02, dtype=torch.float64).fill_diagonal_(1)
    matrix[0, 1] = 0.4
    names = tuple(f"c{i}" for i in range(n))
    return SimpleNamespace(erased=names, evaluated=names, matrix=matrix, measure="pictures")


DRAWINGS = {
    "decay": lambda ax: plots.correlation_decay(STEPS, ax, tau=0.01),
    "spectrum": lambda ax: plots.spectrum({"k": torch.tensor([3.0, 1, 0])}, ax, threshold=0.1),
    "timesteps": lambda ax: plots.correlation_over_timesteps([1, 500], {"a": [1.0, 0.5]}, ax),
    "recorded": lambda ax: plots.recorded_decay(RECORDING, ax),
    "layers": lambda ax: plots.layer_bars({"mid_block.attn2.to_k": 0.5, "all": 0.1}, ax, "left"),
    "cosines": lambda ax: plots.cosine_distribution({"a": [0.5]}, [0.2], ax),
    "interference": lambda ax: plots.interference_map(interference(), ax),
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
def test_a_plot_without_axes_makes_its_own_and_always_the_same(name: str) -> None:
    files = set()
    for _ in range(2):
        ax = DRAWINGS[name](None)
        assert isinstance(ax, Axes)
        files.add(plots.png(ax.figure))
        plt.close(ax.figure)
    assert len(files) == 1


def test_the_decay_shows_correlation_momentum_zero_and_threshold() -> None:
    ax = plots.correlation_decay(STEPS, Figure().subplots(), tau=0.01)
    lines = [list(line.get_ydata()) for line in ax.lines]
    assert [0, 0] in lines
    assert [0.01, 0.01] in lines
    assert [s.momentum for s in STEPS["neon"]] in lines
    assert [np.mean(s.correlation) for s in STEPS["neon"]] in lines
    assert {"neon", "boat"} <= {text.get_text() for text in ax.get_legend().get_texts()}


def test_the_decay_marks_how_each_training_ended() -> None:
    def at(*momenta: float) -> list[SimpleNamespace]:
        return [step(n, (m,), m) for n, m in enumerate(momenta, 1)]

    runs = {"stopped": at(1, 0.1), "late": at(1, 0.5, 0.2), "last": at(1, 0.5, 0.1)}
    ax = plots.correlation_decay(runs, Figure().subplots(), tau=0.1, limit=3)
    marks = {
        (line.get_marker(), line.get_xdata()[0], line.get_ydata()[0])
        for line in ax.lines
        if len(line.get_xdata()) == 1
    }
    assert marks == {("o", 2, 0.1), ("x", 3, 0.2), ("o", 3, 0.1)}
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend[-2:] == ["stopped by $m_n$", "limit of 3 iterations"]
    running = plots.correlation_decay(runs, Figure().subplots(), tau=0.1)  # nothing has ended yet
    assert all(len(line.get_xdata()) > 1 for line in running.lines)


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


def test_a_grid_shows_every_picture_with_its_words_and_nothing_overlaps() -> None:
    rows, columns = ["second prompt", "a painting in the style of watercolor"], ["a", "b\nc", "d"]
    figure = plots.image_grid(
        PICTURES,
        rows,
        columns,
        notes=[["", "watercolor, mountain\nΔ 50.3 %", "identical"]] * 2,
        groups={0: "gone", 1: "stays"},
        title="Title",
        footer="two\nlines",
        cell=1.2,
    )
    assert len(figure.axes) == 6
    notes = [text for ax in figure.axes for text in ax.texts]
    assert [note.get_text() for note in notes[:2]] == [
        "watercolor, mountain\nΔ 50.3 %",
        "identical",
    ]
    words = {text.get_text().replace("\n", " ") for text in figure.texts}
    assert words >= {*rows, "a", "b c", "d", "gone", "stays", "Title", "two lines"}
    assert plt.get_fignums() == []  # nothing is left open behind the caller's back

    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in (*figure.texts, *notes)]
    boxes += [ax.get_window_extent() for ax in figure.axes]
    for i, one in enumerate(boxes):
        assert figure.bbox.x0 <= one.x0 < one.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= one.y0 < one.y1 <= figure.bbox.y1
        assert not any(one.overlaps(other) for other in boxes[:i])


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
    assert np.abs(shown[0] / 255 - shown[1]).max() < 1 / 255 + 1e-6


def test_a_frame_surrounds_its_picture_only() -> None:
    figure = plots.image_grid(PICTURES[:1], frames=[[None, plots.ERASED, None]])
    framed = [ax.spines["left"].get_visible() for ax in figure.axes]
    assert framed == [False, True, False]
    assert figure.axes[1].spines["top"].get_edgecolor()[:3] == to_rgb(plots.ERASED)


# ------------------------------------------------------------------ noise differences
MAPS = {
    "before": torch.tensor([[[1.0, -2]], [[0, 8]]]),
    "after": torch.tensor([[[0.5, 0]], [[0, -16]]]),
}


def limits(figure: Figure) -> list[tuple[float, float]]:
    return [ax.images[0].get_clim() for ax in figure.axes]


def test_diverging_maps_are_centred_at_zero_and_comparable_in_their_column() -> None:
    figure = plots.noise_maps(MAPS, [10, 900], title="Title")
    assert limits(figure) == [(-2, 2), (-16, 16)] * 2
    assert [ax.get_title() for ax in figure.axes] == ["t = 10", "t = 900", "", ""]
    assert [ax.texts[0].get_text() for ax in figure.axes] == ["±2", "±16"] * 2


def test_a_map_may_have_its_own_scale_and_begin_at_zero() -> None:
    assert limits(plots.noise_maps(MAPS, [10, 900], own_scale=True))[2:] == [(-0.5, 0.5), (-16, 16)]
    sizes = {name: values.abs() for name, values in MAPS.items()}
    assert limits(plots.noise_maps(sizes, [10, 900], diverging=False))[0] == (0, 2)
    silent = limits(plots.noise_maps({"": torch.zeros(1, 2, 2)}, [5]))
    assert silent[0][0] < 0 < silent[0][1]  # zero is white also where there is nothing else


def test_a_loss_with_a_unit_is_drawn_relative_to_the_first() -> None:
    ax = plots.recorded_decay(RECORDING, Figure().subplots())
    lines = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert lines["each iteration"] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert lines["probe: mean"] == [1.0, 0.2]
    assert lines["stop at τ = 0.01"][0] == pytest.approx(0.5)
    settings = PRODUCT | {"tau": -99.0}  # out of reach
    unreachable = vars(RECORDING) | {"provenance": SimpleNamespace(settings=settings)}
    ax = plots.recorded_decay(SimpleNamespace(**unreachable), Figure().subplots())
    assert not any("τ" in str(line.get_label()) for line in ax.lines)


def test_a_layer_is_named_shortly_and_keys_differ_from_values() -> None:
    path = "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_"
    values = {f"{path}k": 0.1, f"{path}v": 0.2, "all keys": 0.3}
    ax = plots.layer_bars(values, Figure().subplots())
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        "up 0.1 to_k",
        "up 0.1 to_v",
        "all keys",
    ]
    assert len({bar.get_facecolor() for bar in ax.patches}) == 3


# ------------------------------------------------------------------ tables in colours
def drawn(ax: Axes) -> tuple[tuple[float, float], list[str]]:
    """Where the colours end, and what is printed in the cells."""
    return ax.collections[0].get_clim(), [text.get_text() for text in ax.texts]


def test_a_heat_map_prints_its_numbers_and_leaves_missing_ones_grey() -> None:
    ax = plots.heat_map(TABLE, Figure().subplots(), numbers="{:.1f}".format, label="change")
    assert drawn(ax) == ((0, 40), ["40.0", "2.0", "2.0", "2.0"])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["x", "y", "z"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert to_hex(ax.get_facecolor()) == "#dddddd"  # what shows through a cell without a number
    assert ax.collections[0].colorbar.ax.get_ylabel() == "change"


def test_a_diverging_heat_map_is_centred_at_zero() -> None:
    assert drawn(plots.heat_map(-TABLE, Figure().subplots(), diverging=True)) == ((-40, 40), [])
    ax = plots.heat_map(TABLE, Figure().subplots(), diverging=True, limit=1, label=None)
    assert drawn(ax)[0] == (-1, 1)
    assert len(ax.figure.axes) == 1  # no scale beside it
    nothing = plots.heat_map(0 * TABLE, Figure().subplots())
    assert drawn(nothing)[0] == (0, 1)


def test_the_map_prints_what_was_measured_and_leaves_the_own_grey() -> None:
    ax = plots.interference_map(interference(), Figure().subplots())
    assert drawn(ax) == ((0, 40), ["40", "2.0", "2.0", "2.0", "2.0", "2.0"])
    limited = plots.interference_map(interference(), Figure().subplots(), limit=1.0)
    assert drawn(limited)[0] == (0, 100)
    assert drawn(plots.interference_map(interference(16), Figure().subplots()))[1] == []  # too many


# ------------------------------------------------------------------ what is shared, and foretold
def test_the_distribution_of_cosines_shows_every_pair_and_chance() -> None:
    observed, chance = {"styles": torch.tensor([0.9, 0.2])}, torch.linspace(0, 0.5, 101)
    ax = plots.cosine_distribution(observed, chance, Figure().subplots())
    curves = {line.get_label(): line.get_xydata() for line in ax.lines}
    below = [[0.2, 0], [0.2, 0.5], [0.9, 1]]
    assert curves["styles (median 0.55)"] == pytest.approx(np.array(below), abs=1e-6)
    assert len(curves["random subspaces (median 0.25)"]) == 102
    assert curves["95 % of random: 0.47"][0, 0] == pytest.approx(0.475)


def test_prediction_and_measurement_are_ranked() -> None:
    measured = torch.tensor([0.1, 0.2, 0.4])
    known = {"good": [1.0, 2, 3], "bad": [3.0, 2, 1], "wide": [1e-3, 1, 1e3]}
    axes = plots.predicted_and_measured(known, measured)
    plt.close(axes[0].figure)
    titles = [ax.get_title() for ax in axes]
    assert titles == [f"rank correlation {r}" for r in ("1.00", "-1.00", "1.00")]
    assert [ax.get_xscale() for ax in axes] == ["linear", "linear", "log"]


# ------------------------------------------------------------------ files and bad input
def test_a_picture_survives_its_file(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(plots.png(PICTURES[0, 0]))
    again = read_picture(file, 8)
    assert torch.equal(again, (PICTURES[0, 0] * 255).round() / 255)
    assert plots.png((again * 255).byte().permute(1, 2, 0).numpy()) == file.read_bytes()
    with refused("8 x 8", "9 x 9"):
        read_picture(file, 9)
    file.write_bytes(b"no picture")
    with refused("picture.png"):
        read_picture(file, 8)


def test_pictures_that_make_no_grid_are_refused() -> None:
    for nothing in ([], [[]]):
        with refused("at least one"):
            plots.image_grid(nothing)
    with refused("2 x 3", "match"):
        plots.image_grid(PICTURES, row_labels=["only one"])
    with refused("match"):
        plots.image_grid(PICTURES, notes=[["a"]])
    with refused("no training step"):
        plots.correlation_decay({"neon": []})
