"""The demo: what it chooses to show, what it writes, and that the shipped model carries it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from sepme.atelier.captions import catalogue as atelier_catalogue
from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Judge
from sepme.concept import Catalogue, Concept
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS
from sepme.errors import SepmeWarning
from sepme.model import Backbone
from sepme.scenes.demo import DemoGrid, _decay, crossings, demo_table, run_demo
from tests.miniature import fresh, shared
from tests.refusals import refused

ATELIER = atelier_catalogue()
CONCEPTS = ("neon", "swirl", "ink", "boat")
SHIPPED = Path(__file__).parent.parent / "figures" / "shipped" / "report.json"


def grid_of(names: str) -> DemoGrid:
    return DemoGrid(ATELIER, ATELIER.parse(names))


# ------------------------------------------------------------------ what is shown
def test_crossings_name_one_style_and_one_object() -> None:
    found = crossings(ATELIER)
    assert {(crossing.style, crossing.object) for crossing in found} == {
        (style, object) for style in STYLE_NAMES[:-1] for object in OBJECT_NAMES[:-1]
    }
    assert all(c.style in c.prompt and c.object in c.prompt for c in found)


def test_every_erased_row_has_a_counterpart_that_stays() -> None:
    grid = grid_of(",".join(CONCEPTS))
    for name, gone, stays in zip(grid.names, grid.erased_rows, grid.kept_rows, strict=True):
        assert name in (gone.style, gone.object)
        assert not {stays.style, stays.object} & set(grid.names)
        assert (gone.style == stays.style) != (gone.object == stays.object)
    assert len({row.prompt for row in grid.rows}) == 8
    shown = {row.style for row in grid.rows}
    assert not {"pointillism", "mosaic"} <= shown  # the shipped model draws them alike
    assert len(shown) >= 6


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (",".join(CONCEPTS), [(), ("neon",), ("neon", "swirl"), CONCEPTS, CONCEPTS[1:], ()]),
        ("neon", [(), ("neon",), ()]),
        ("ship, ink", [(), ("boat",), ("boat", "ink"), ("ink",), ()]),
    ],
)
def test_columns_show_simultaneous_iterative_and_restored(names: str, columns: list) -> None:
    assert list(grid_of(names).columns.values()) == columns


def test_what_cannot_be_shown() -> None:
    with refused("atelier seal", "neither"):
        grid_of("atelier seal, neon")
    with refused("Nothing is left"):
        grid_of(", ".join(STYLE_NAMES[:-1]))


# ------------------------------------------------------------------ the whole, in miniature
STYLES, OBJECTS = ("neon", "ink"), ("boat", "house")
SMALL = Catalogue(
    {s: Concept(s, (s, *(f"{s} {o}" for o in OBJECTS)), "style") for s in STYLES}
    | {o: Concept(o, (o, *(f"{s} {o}" for s in STYLES)), "object") for o in OBJECTS}
)
QUICK = replace(PRESETS["default"], iterations=3, batch=2, images=2, keep_rtol=0.99)


class Guess:
    """A judge of noise: it sees whatever the mean of a picture points to."""

    def judge(self, images: Tensor) -> SimpleNamespace:
        style = (images.mean((1, 2, 3)) * 1000).long() % len(STYLE_NAMES)
        seen = {"style": style, "object": style % len(OBJECT_NAMES), "emblem": style < 0}
        return SimpleNamespace(**seen)

    def sees(self, images: Tensor, name: str) -> Tensor:
        return self.judge(images).style % 2 == 0


def miniature(
    backbone: Backbone, out: Path, erase: tuple[str, ...] = ("neon",), n: int = 4
) -> dict:
    quiet = {"say": lambda _: None, "progress": False}
    grid = DemoGrid(SMALL, SMALL.parse(",".join(erase)))
    how = {"settings": QUICK, "samples": n, "retained": 4, **quiet}
    return run_demo(backbone, Guess(), out, grid, **how)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo") / "new"
    with pytest.warns(SepmeWarning, match="'neon' can hardly be told"):  # at such a tolerance
        return out, miniature(fresh(), out)


def test_the_report_holds_what_was_promised(small) -> None:
    out, report = small
    assert json.loads((out / "report.json").read_text()) == report
    promised = json.loads(SHIPPED.read_text())
    assert report.keys() == promised.keys()
    for part in ("retained", "restored", "composition", "seconds", "provenance"):
        assert report[part].keys() == promised[part].keys()
    assert report["erased"].keys() == {"neon"}
    assert report["erased"]["neon"].keys() == promised["erased"]["neon"].keys()
    assert report["seconds"]["total"] > report["erased"]["neon"]["seconds"] > 0
    assert report["provenance"]["fingerprint"] == fresh().fingerprint


def test_restored_bit_for_bit_whatever_the_order(small) -> None:
    _, report = small
    assert report["restored"]["bit_exact"] is True
    assert report["restored"]["max_abs_diff"] == 0
    assert report["composition"]["order_independent"] is True


def test_pictures_and_deltas_are_written(small) -> None:
    out, report = small
    for name in ("before_after.png", "correlation_decay.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 500
    fingerprint = report["provenance"]["fingerprint"]
    delta = ConceptDelta.load(out / "deltas" / "neon.safetensors", base=fingerprint)
    assert delta.concept == "neon"
    assert sorted(path.name for path in out.iterdir()) == [
        *("before_after.png", "correlation_decay.png", "deltas", "report.json"),
    ]


@pytest.mark.parametrize(("start", "said"), [("closed_form", True), ("zero", False)])
def test_the_decay_has_a_title_and_says_how_each_training_ended(start: str, said: bool) -> None:
    steps = [SimpleNamespace(iteration=n, momentum=0.5, correlation=(0.5,)) for n in range(1, 4)]
    (ax,) = _decay({"neon": steps}, replace(QUICK, start=start)).axes  # type: ignore[dict-item]
    assert ax.get_title().startswith("What is left of each concept")
    assert ("from the closed form" in ax.get_title()) is said
    assert ax.get_legend().get_texts()[-1].get_text() == "limit of 3 iterations"


def test_the_table_says_the_figures() -> None:
    report = json.loads(SHIPPED.read_text())
    text = demo_table(report)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:4] == ["erased", "concept", "seen", "before"]
    assert ["neon", "100.0%", "0.0%", "20", "24", "4.6"] in lines
    assert ["both", "right", "100.0%", "100.0%", "40"] in lines
    for words in ("0.0009 (mean LPIPS", "bit for bit the original", "makes no difference"):
        assert words in text
    report["restored"] |= {"bit_exact": False, "max_abs_diff": 0.1}
    report["composition"]["order_independent"] = False
    assert "NOT the original (largest difference 0.1)" in demo_table(report)
    assert "MAKES A difference" in demo_table(report)


@pytest.mark.filterwarnings("ignore:'neon' can hardly be told")
def test_without_alexnet_the_table_says_why(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sepme.scenes.demo.alexnet_available", lambda: False)
    report = miniature(fresh(), tmp_path, n=1)
    assert report["retained"]["lpips"] is None
    assert "LPIPS needs AlexNet's weights" in demo_table(report)


def test_bad_input_is_refused_before_any_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for erase, out, samples, words in (
        (("neno",), tmp_path / "a", 1, "neno"),
        (("neon", "ink"), tmp_path / "a", 1, "Nothing is left"),
        (("neon",), tmp_path / "a", 0, "samples = 0"),
        (("neon",), file, 1, "cannot be written"),
    ):
        with refused(words):
            miniature(shared(), out, erase, samples)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ------------------------------------------------------------------ the shipped model
@pytest.mark.slow
def test_the_shipped_model_forgets_composes_and_remembers(
    backbone: Backbone, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In few steps of few pictures: `make demo` runs the whole."""
    model = request.config.getoption("--model")
    report = run_demo(
        Backbone(backbone.pipe, backbone.name, guidance=backbone.guidance, steps=8),
        Judge.load(Path(model) / "judge.safetensors" if model else None),
        tmp_path,
        grid_of("neon, boat"),
        settings=replace(PRESETS["default"], iterations=5, images=8, batch=2),
        samples=4,
        retained=8,
        progress=False,
    )
    for row in report["erased"].values():
        assert row["accuracy_before"] >= 0.75
        assert row["accuracy_after"] <= 0.25
    kept = report["retained"]
    assert kept["accuracy_after"] >= kept["accuracy_before"] - 0.13  # one of eight pictures
    assert report["restored"] == {"bit_exact": True, "max_abs_diff": 0.0, "pictures": 4}
    assert report["composition"]["order_independent"]
