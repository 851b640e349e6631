"""What every chapter opens with: the model, the cast, the banner, the claims."""

from pathlib import Path

import pytest
import torch

from sepme.concept import PAPER_OBJECTS, PAPER_STYLES, Catalogue, catalogue_of
from sepme.course.chapter import (
    Claims,
    LiveDecay,
    banner,
    cast,
    deltas_of,
    is_shipped,
    of_kind,
    open_model,
    seen,
    shipped_deltas,
)
from sepme.erasure import PRESETS, closed_form, erase
from tests.miniature import NEON, QUICK, fresh
from tests.refusals import refused


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without judge and catalogue, like a Stable Diffusion of one's own."""
    path = tmp_path_factory.mktemp("models") / "mine"
    fresh().pipe.save_pretrained(path)
    return path


# ---------------------------------------------------------------- the model and its concepts
def test_the_environment_chooses_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEPME_MODEL", str(folder))
    backbone, judge, _ = open_model()
    assert (backbone.name, judge) == ("mine", None)


def test_an_argument_outweighs_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEPME_MODEL", "elsewhere")
    assert open_model(folder)[0].name == "mine"


def test_a_model_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEPME_MODEL", "no/such/folder")
    with refused("no/such/folder"):
        open_model()


def test_a_model_without_catalogue_gets_the_papers_words(folder: Path) -> None:
    catalogue = open_model(folder)[2]
    assert of_kind(catalogue, "style") == list(PAPER_STYLES)
    assert of_kind(catalogue, "object") == list(PAPER_OBJECTS)


def test_words_of_ones_own_come_before_any_catalogue(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = open_model(folder, styles="oil, ink", objects="cat")[2]
    assert list(catalogue.concepts) == ["oil", "ink", "cat"]
    monkeypatch.setenv("SEPME_STYLES", "Monet")
    monkeypatch.setenv("SEPME_OBJECTS", "dog")
    assert list(open_model(folder)[2].concepts) == ["Monet", "dog"]
    catalogue_of(["Monet"], ["dog"]).save(folder / "catalogue.json")
    monkeypatch.delenv("SEPME_STYLES")
    monkeypatch.delenv("SEPME_OBJECTS")
    assert list(open_model(folder)[2].concepts) == ["Monet", "dog"]
    (folder / "catalogue.json").unlink()


@pytest.fixture
def catalogue() -> Catalogue:
    return catalogue_of(["Monet", "ink", "Degas"], ["dog", "cat"])


def test_a_concept_plays_itself_and_others_fill_the_parts(catalogue: Catalogue) -> None:
    parts = cast(catalogue, style=("neon", "ink", "swirl"), object=("boat",))
    assert parts == {"neon": "Monet", "ink": "ink", "swirl": "Degas", "boat": "dog"}
    assert list(parts) == ["neon", "ink", "swirl", "boat"]


def test_too_small_a_cast_is_refused(catalogue: Catalogue) -> None:
    with refused("needs 3 concepts of the kind 'object'", "has 2", "SEPME_OBJECTS"):
        cast(catalogue, object=("boat", "house", "car"))


def test_the_deltas_beside_a_model_are_found_and_must_be_its_own(folder: Path) -> None:
    backbone = open_model(folder)[0]
    assert shipped_deltas(backbone) == shipped_deltas(fresh()) == {}
    (folder / "deltas").mkdir()
    neon = closed_form(backbone, NEON, ["a cat"], keep_rtol=None)
    neon.save(folder / "deltas" / "neon.safetensors")
    assert shipped_deltas(backbone)["neon"].digest == neon.digest
    fresh(seed=5).pipe.unet.save_pretrained(folder / "unet")  # now it is another model
    with refused("not for this model"):
        shipped_deltas(open_model(folder)[0])


@pytest.mark.filterwarnings("ignore::sepme.errors.SepmeWarning")  # random weights entangle words
def test_deltas_that_are_missing_are_erased_and_found_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sepme.course.chapter.CACHE", tmp_path)
    monkeypatch.setitem(PRESETS, "default", QUICK)
    backbone, catalogue = fresh(), catalogue_of(["oil"], ["cat"])
    made = deltas_of(backbone, catalogue, ["oil"])
    (file,) = tmp_path.rglob("*.safetensors")
    written = file.stat().st_mtime_ns
    assert deltas_of(backbone, catalogue, ["oil"])["oil"].digest == made["oil"].digest
    assert file.stat().st_mtime_ns == written
    assert set(made["oil"].kept) == set(catalogue.kept_prompts([catalogue["oil"]]))


# ---------------------------------------------------------------- what it says of itself
def test_the_banner_says_which_model_speaks() -> None:
    backbone = fresh()
    text = banner(backbone, minutes=2, gigabytes=1.5).data
    for part in ("`tiny`", "a model of your own", "cpu", "2 minutes", "1.5 GB"):
        assert part in text
    backbone.name = "atelier"
    assert is_shipped(backbone)
    assert "ships with sepme" in banner(backbone, minutes=2, gigabytes=1.5).data


def test_the_banner_says_who_plays_whom() -> None:
    text = banner(fresh(), {"neon": "Monet", "ink": "ink"}, minutes=2, gigabytes=1).data
    assert "read *Monet* for neon." in text
    assert "read" not in banner(fresh(), {"ink": "ink"}, minutes=2, gigabytes=1).data


def test_a_claim_that_fails_ends_the_chapter_only_as_it_was_written() -> None:
    backbone = fresh()
    backbone.name = "atelier"
    claim = Claims(backbone, {"neon": "neon"})
    claim("one is one", True)
    with pytest.raises(AssertionError, match="The text says that one is two"):
        claim("one is two", torch.tensor([True, False]))

    for own in (Claims(backbone, {"neon": "Monet"}), Claims(fresh(), {"neon": "neon"})):
        own("one is one", torch.tensor([True, True]))
        own("one is two", False)
        assert own.made == [("one is one", True), ("one is two", False)]
        assert "1 of 2 claims" in own.table().data
        assert "| one is two | **no** |" in own.table().data


def test_without_a_judge_nothing_is_seen() -> None:
    assert seen(None, torch.zeros(2, 3, 64, 64)) == ["", ""]


def test_the_live_decay_collects_every_step() -> None:
    live = LiveDecay("neon", every=2)
    erase(fresh(), NEON, ["a cat"], QUICK, callback=live, progress=False)
    assert [step.iteration for step in live.steps] == [1, 2, 3, 4, 5]
