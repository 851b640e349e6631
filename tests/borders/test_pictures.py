"""Names in figures: each is drawn as it is written, in letters that a font of the system has."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib
import pandas as pd
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text
from torch import Tensor

from sepme import plots
from sepme.cli._inspection import spectrum_figure
from sepme.concept import catalogue_of
from sepme.errors import SepmeWarning
from sepme.scenes import figures, published
from sepme.scenes.demo import DemoGrid, before_after
from sepme.widgets import (
    ResultsState,
    StopRuleState,
    budget,
    interference,
    mixer,
    results,
    stop_rule,
)
from sepme.widgets.decay_player import DecayState
from sepme.widgets.decay_player import render as render_moment
from tests.gallery import CATALOGUE, LOSSES, REPORT, short_recording
from tests.miniature import shared
from tests.test_plots import STEPS
from tests.test_results_widget import ROWS
from tests.test_widgets import drawing

NAMES = (
    "Li$a$",
    "$x_1$",
    r"$\frac$",
    r"$\mathdefault{\frac}$",
    r"\$x\$",
    r"\alpha",
    "50%",
    "a_b^c",
    "_why",
    "{x:g}",
    "<b>&",
)
#: All in one, with letters beyond ASCII that matplotlib's own font has.
HOSTILE = r"_$\x$\$5%^Кف"
#: A name with a letter that no font here has -> where in it that letter stands first.
LACKING = {"葛飾": 0, "김홍": 0, "🦊 fox": 0, "a\x1b[31m": 1}


def lines(figure: Figure) -> list[str]:
    """Every line of text of a figure. One with mathematics comes in pieces, and is not in it."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg")
    texts = ElementTree.fromstring(file.getvalue()).iter("{http://www.w3.org/2000/svg}text")
    return [text.text or "" for text in texts]


def count(name: str, figure: Figure) -> int:
    return sum(line.count(name) for line in lines(figure))


@contextmanager
def no_warning_of_anybody() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ---------------------------------------------------------------------- whatever draws a name
def _heat_map(name: str) -> object:
    table = pd.DataFrame([[1.0, 2.0]], [name], [name, "b"])
    return plots.heat_map(table, numbers=lambda _: name, label=name)


def _grid(name: str) -> Figure:
    around = {"groups": {0: name}, "title": name, "footer": name}
    return plots.image_grid(torch.rand(1, 1, 3, 4, 4), [name], [name], notes=[[name]], **around)


def _demo(name: str) -> Figure:
    catalogue = catalogue_of((name, "ink"), ("boat", "tree"))
    grid = DemoGrid(catalogue, [catalogue[name]])
    pictures = {column: torch.rand(len(grid.rows), 3, 4, 4) for column in grid.columns}
    return before_after(pictures, grid, SimpleNamespace(judge=_verdict))


def _verdict(images: Tensor) -> SimpleNamespace:
    nothing = torch.zeros(len(images), dtype=int)
    return SimpleNamespace(style=nothing, object=nothing)


def _delta(name: str) -> Figure:
    factors = {"up": {name: torch.ones(2, 1)}, "down": {name: torch.ones(1, 2)}}
    return spectrum_figure(SimpleNamespace(paths=[name], **factors))


def _named(name: str) -> object:
    return replace(REPORT, erased=(name, "ink"), evaluated=(name, "ink", "oil"))


def _budget(name: str) -> Figure:
    found = budget.measure(shared(), CATALOGUE, budget.BudgetState("neon", ("ink",)))
    return budget.render(budget.BudgetState(name), budget.Budget(found.constraint, {name: 3}))


def _player(name: str) -> Figure:
    recording = replace(short_recording(shared()), prompt=name)
    return render_moment(DecayState(name, 0, recording.timesteps[0]), recording)


def _pair(name: str) -> Figure:
    pictures = torch.rand(1, 3, 4, 4)
    return interference.render(interference.PairState(name, "ink"), _named(name), [pictures] * 2)


def _results(name: str) -> Figure:
    return results.render(ResultsState(), ROWS, published().assign(concept=name))


#: What draws a name, and in how many places.
DRAWINGS: dict[str, tuple[int, Callable[[str], object]]] = {
    "decay": (1, lambda name: plots.correlation_decay({name: STEPS["neon"]}, tau=0.1, limit=9)),
    "timesteps": (1, lambda name: plots.correlation_over_timesteps([1, 2], {name: [1.0, 0.5]})),
    "spectrum": (1, lambda name: plots.spectrum({name: [3.0, 1, 0]})),
    "layers": (2, lambda name: plots.layer_bars({name: 0.5}, label=name)),
    "cosines": (1, lambda name: plots.cosine_distribution({name: [0.5]}, [0.2])),
    "predicted": (1, lambda name: plots.predicted_and_measured({name: [1.0, 2]}, [0.1, 0.2])[0]),
    "heat map": (5, _heat_map),
    "interference": (2, lambda name: plots.interference_map(_named(name))),
    "grid": (6, _grid),
    "noise": (2, lambda name: plots.noise_maps({name: torch.rand(1, 2, 2)}, [1], title=name)),
    "demo": (3, _demo),
    "delta": (1, _delta),
    "mixer": (2, lambda name: mixer.render(mixer.MixerState(name, {name: 1.0}), drawing())),
    "budget": (3, _budget),
    "player": (2, _player),
    "pair": (4, _pair),
    "results": (9, _results),
    "stop rule": (1, lambda name: stop_rule.render(StopRuleState(name), LOSSES)),
}


def drawn(what: str, name: str) -> Figure:
    made = DRAWINGS[what][1](name)
    figure = made if isinstance(made, Figure) else made.figure
    plt.close(figure)
    return figure


@pytest.mark.parametrize("what", DRAWINGS)
def test_a_name_is_drawn_as_it_is_written_wherever_it_stands(what: str) -> None:
    for name in (HOSTILE, *(NAMES if what in ("spectrum", "heat map") else ())):
        with no_warning_of_anybody():
            figure = drawn(what, name)
            assert count(name, figure) == DRAWINGS[what][0], (name, lines(figure))


def test_every_function_that_draws_names_is_among_them() -> None:
    source = Path(__file__).read_text()
    missing = {name for name in plots.__all__ if f"plots.{name}(" not in source}
    assert missing == {"ERASED", "line_style", "png", "recorded_decay"}


def test_without_it_names_are_mathematics_and_boxes() -> None:
    figure = Figure()
    figure.text(0.5, 0.5, "Li$a$")
    assert count("Li$a$", figure) == 0
    assert count("Li$a$", plots.literal(figure)) == 1
    figure.text(0.1, 0.1, "葛")
    with pytest.warns(UserWarning, match="missing from font"):
        lines(figure)


def test_our_own_mathematics_and_numbers_on_axes_stay() -> None:
    ax = plots.correlation_decay(STEPS, Figure().subplots(), limit=9)
    own = {text.get_text() for text in ax.get_legend().get_texts() if text.get_parse_math()}
    assert {plots.MOMENTUM, plots.STOPPED} & own
    ax = plots.spectrum({"a": [1e3, 1, 1e-3]}, Figure().subplots())
    for _ in range(2):  # the second time the numbers are there
        assert not any("mathdefault" in line for line in lines(plots.literal(ax.figure)))


def test_a_figure_of_the_paper_is_drawn_so_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def titled(_: object) -> Figure:
        figure = Figure()
        figure.suptitle(HOSTILE)
        return figure

    monkeypatch.setitem(figures.FIGURES, "mine", figures.Entry("A title.", titled))
    figures.draw_figures(tmp_path / "out", tmp_path, only=["mine"], say=lambda _: None)
    assert HOSTILE.replace("<", "&lt;") in (tmp_path / "out" / "mine.svg").read_text()


# ---------------------------------------------------------------------- letters and fonts
@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No letter has been looked for yet, and a font that is added is taken away again."""
    monkeypatch.setattr(plots, "_FAMILIES", {})
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    yield
    plt.close("all")
    fontManager._findfont_cached.cache_clear()


def font_with(letters: str, file: Path, family: str) -> None:
    """Make a font of boxes for these letters alone, and tell matplotlib of it."""
    names = [".notdef", *(f"u{ord(letter):04X}" for letter in letters)]
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (500, 700), (500, 0)):
        pen.lineTo(corner)
    pen.closePath()
    box = pen.glyph()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(letter): f"u{ord(letter):04X}" for letter in letters})
    font.setupGlyf(dict.fromkeys(names, box))
    font.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(file)
    fontManager.addfont(file)


@pytest.mark.parametrize("name", LACKING)
@pytest.mark.parametrize("what", ["heat map", "spectrum", "grid"])
def test_letters_of_no_font_are_shown_as_numbers_with_one_warning(
    what: str, name: str, forgotten: None
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            figure = drawn(what, name)
            assert count(f"U+{ord(name[LACKING[name]]):04X}", figure) == DRAWINGS[what][0]
    assert [warning.category for warning in caught] == [SepmeWarning]
    assert f"U+{ord(name[LACKING[name]]):04X}" in str(caught[0].message)
    assert str(caught[0].message).isprintable()


def test_letters_of_another_font_are_drawn_in_it(forgotten: None, tmp_path: Path) -> None:
    font_with("葛飾", tmp_path / "boxes.ttf", "Boxes")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    fontManager.ttflist.append(replace(fontManager.ttflist[0], fname=str(tmp_path / "broken.ttf")))
    with no_warning_of_anybody():
        figure = drawn("heat map", "葛飾 ink")
        assert count("葛飾 ink", figure) == DRAWINGS["heat map"][0]
    fonts = {
        tuple(text.get_fontfamily()) for text in figure.findobj(Text) if "葛" in text.get_text()
    }
    assert fonts == {("sans-serif", "Boxes")}


def test_no_font_is_opened_for_letters_that_are_there(
    forgotten: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = SimpleNamespace(ttflist=[SimpleNamespace(name="Closed", fname=None)])
    monkeypatch.setattr(plots, "fontManager", closed)
    assert count("Ксения", drawn("spectrum", "Ксения")) == 1
    with pytest.raises(TypeError):  # it is opened now
        drawn("spectrum", "葛飾")
