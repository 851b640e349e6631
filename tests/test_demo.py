"""The demo: what it chooses to show, what it writes, and that the shipped model carries it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from sepme.atelier.captions import catalogue as atelier_catalogue
from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Judge
from sepme.concept import Catalogue, Concept
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS
from sepme.errors import SepmeWarning
from sepme.model import Backbone
from sepme.report import demo_table, table
from sepme.scenes.demo import CONCEPTS, Exhibition, _decay, evenly, run_demo, scenes
from tests.refusals import refused
from tests.tiny import make_tiny_pipeline

ATELIER = atelier_catalogue()


def exhibition(names: str) -> Exhibition:
    return Exhibition(ATELIER, ATELIER.parse(names))


# ------------------------------------------------------------------ what is shown
def test_scenes_name_one_style_and_one_object() -> None:
    found = scenes(ATELIER)
    assert {(scene.style, scene.object) for scene in found} == {
        (style, object) for style in STYLE_NAMES[:-1] for object in OBJECT_NAMES[:-1]
    }
    assert all(scene.style in scene.prompt and scene.object in scene.prompt for scene in found)


def test_every_erased_row_has_a_counterpart_that_stays() -> None:
    show = exhibition(",".join(CONCEPTS))
    for name, gone, stays in zip(show.names, show.erased_rows, show.kept_rows, strict=True):
        assert name in (gone.style, gone.object)
        assert not {stays.style, stays.object} & set(show.names)
        assert (gone.style == stays.style) != (gone.object == stays.object)
    assert len({scene.prompt for scene in show.rows}) == 8


def test_the_rows_show_styles_that_cannot_be_taken_for_one_another() -> None:
    """The shipped model's dots of pointillism look like the tiles of a mosaic."""
    shown = {scene.style for scene in exhibition(",".join(CONCEPTS)).rows}
    assert not {"pointillism", "mosaic"} <= shown
    assert len(shown) >= 6


def test_columns_show_simultaneous_iterative_and_restored() -> None:
    columns = exhibition(",".join(CONCEPTS)).columns
    assert list(columns.values()) == [
        (),
        ("neon",),
        ("neon", "swirl"),
        CONCEPTS,
        CONCEPTS[1:],
        (),
    ]
    assert list(exhibition("neon").columns.values()) == [(), ("neon",), ()]
    assert list(exhibition("ship, ink").columns.values()) == [
        (),
        ("boat",),
        ("boat", "ink"),
        ("ink",),
        (),
    ]


def test_what_cannot_be_shown() -> None:
    with refused("atelier seal", "neither"):
        exhibition("atelier seal, neon")
    with refused("Nothing is left"):
        exhibition(", ".join(STYLE_NAMES[:-1]))


def test_evenly() -> None:
    assert evenly("abcdef", 3) == ["a", "c", "e"]
    assert evenly("ab", 5) == ["a", "b", "a", "b", "a"]


# ------------------------------------------------------------------ the whole, in miniature
SMALL = Catalogue(
    {
        **{
            style: Concept(style, (style, f"{style} boat", f"{style} house"), "style")
            for style in ("neon", "ink")
        },
        **{
            object: Concept(object, (object, f"neon {object}", f"ink {object}"), "object")
            for object in ("boat", "house")
        },
    }
)
QUICK = replace(PRESETS["default"], iterations=3, batch=2, images=2, keep_rtol=0.1)


class Guess:
    """A judge of noise: it sees whatever the mean of a picture points to."""

    def judge(self, images: Tensor) -> SimpleNamespace:
        style = (images.mean((1, 2, 3)) * 1000).long() % len(STYLE_NAMES)
        return SimpleNamespace(style=style, object=style % len(OBJECT_NAMES))

    def sees(self, images: Tensor, name: str) -> Tensor:
        return self.judge(images).style % 2 == 0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Backbone]:
    out = tmp_path_factory.mktemp("demo") / "new"
    backbone = Backbone(make_tiny_pipeline(), "miniature", steps=3)
    with pytest.warns(SepmeWarning, match="'neon' can hardly be told"):  # at such a tolerance
        report = run_demo(
            backbone,
            Guess(),  # type: ignore[arg-type]
            out,
            catalogue=SMALL,
            erase=("neon",),
            settings=QUICK,
            samples=4,
            retained=4,
            say=lambda _: None,
            progress=False,
        )
    return out, report, backbone


def test_report_holds_what_was_promised(small: tuple[Path, dict[str, Any], Backbone]) -> None:
    out, report, backbone = small
    assert json.loads((out / "report.json").read_text()) == report
    wanted = {"accuracy_before", "accuracy_after", "iterations", "seconds"}
    assert report["erased"].keys() == {"neon"}
    assert wanted <= report["erased"]["neon"].keys()
    assert {"accuracy_before", "accuracy_after", "lpips"} <= report["retained"].keys()
    assert report["seconds"]["total"] > report["erased"]["neon"]["seconds"] > 0
    assert report["provenance"]["fingerprint"] == backbone.fingerprint


def test_restored_bit_for_bit_whatever_the_order(small) -> None:
    _, report, _ = small
    assert report["restored"]["bit_exact"] is True
    assert report["restored"]["max_abs_diff"] == 0
    assert report["composition"]["order_independent"] is True


def test_pictures_and_deltas_are_written(small) -> None:
    out, _, backbone = small
    for name in ("before_after.png", "correlation_decay.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 500
    delta = ConceptDelta.load(out / "deltas" / "neon.safetensors", base=backbone.fingerprint)
    assert delta.concept == "neon"
    assert sorted(path.name for path in out.iterdir()) == [
        "before_after.png",
        "correlation_decay.png",
        "deltas",
        "report.json",
    ]


@pytest.mark.parametrize(("start", "said"), [("closed_form", True), ("zero", False)])
def test_the_decay_has_a_title_and_says_how_each_training_ended(start: str, said: bool) -> None:
    steps = [SimpleNamespace(iteration=n, momentum=0.5, correlation=(0.5,)) for n in range(1, 4)]
    trained = [SimpleNamespace(delta=SimpleNamespace(concept="neon"), steps=steps)]
    (ax,) = _decay(trained, replace(QUICK, start=start)).axes  # type: ignore[arg-type]
    assert ax.get_title().startswith("What is left of each concept")
    assert ("from the closed form" in ax.get_title()) is said
    assert ax.get_legend().get_texts()[-1].get_text() == "limit of 3 iterations"


def test_the_table_says_the_figures(small) -> None:
    _, report, _ = small
    text = demo_table(report)
    assert "neon" in text
    assert "bit for bit the original" in text
    assert "makes no difference" in text


@pytest.mark.filterwarnings("ignore:'neon' can hardly be told")
def test_without_alexnet_the_table_says_why(small, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sepme.scenes.demo.alexnet_available", lambda: False)
    report = run_demo(
        small[2],
        Guess(),  # type: ignore[arg-type]
        tmp_path,
        catalogue=SMALL,
        erase=("neon",),
        settings=QUICK,
        samples=1,
        retained=1,
        say=lambda _: None,
        progress=False,
    )
    assert report["retained"]["lpips"] is None
    assert "LPIPS needs AlexNet's weights" in demo_table(report)


def test_bad_input_is_refused_before_any_work(small, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for erase, out, samples, words in (
        (("neno",), tmp_path / "a", 1, "neno"),
        (("neon", "ink"), tmp_path / "a", 1, "Nothing is left"),
        (("neon",), tmp_path / "a", 0, "at least one picture"),
        (("neon",), file, 1, "cannot be written"),
    ):
        with refused(words):
            run_demo(small[2], Guess(), out, catalogue=SMALL, erase=erase, samples=samples)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_tables_line_up() -> None:
    assert table(("name", "n"), [("a", 1), ("longer", 22)]) == (
        "name     n\n------  --\na        1\nlonger  22"
    )


# ------------------------------------------------------------------ the shipped model
@pytest.mark.slow
def test_the_shipped_model_forgets_composes_and_remembers(
    backbone: Backbone, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    torch.manual_seed(0)
    model = request.config.getoption("--model")
    report = run_demo(
        backbone,
        Judge.load(Path(model) / "judge.safetensors" if model else None),
        tmp_path,
        catalogue=ATELIER,
        erase=("neon", "boat"),
        samples=8,
        retained=16,
        progress=False,
    )
    for row in report["erased"].values():
        assert row["accuracy_before"] >= 0.75
        assert row["accuracy_after"] <= 0.25
    kept = report["retained"]
    assert kept["accuracy_after"] >= kept["accuracy_before"] - 0.13  # two of sixteen pictures
    assert report["restored"] == {"bit_exact": True, "max_abs_diff": 0.0, "pictures": 4}
    assert report["composition"]["order_independent"]
