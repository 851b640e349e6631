"""What every chapter opens with: the model, the concepts, the banner, the claims."""

import re
from pathlib import Path

import nbformat
import pytest
import torch

from sepme.composition import shipped_deltas
from sepme.concept import Catalogue, Concept, catalogue_of
from sepme.course import chapter
from sepme.course.chapter import (
    PAPER_OBJECTS,
    PAPER_STYLES,
    ChapterCatalogue,
    Claims,
    banner,
    choose_concepts,
    is_shipped,
    of_kind,
    open_model,
    seen,
    with_tolerance,
)
from sepme.course.notebook import chapters
from sepme.erasure import PRESETS, erase
from sepme.model import Backbone
from sepme.training import Trainer
from tests.miniature import EXACT, NEON, QUICK, fresh
from tests.refusals import refused
from tests.test_notebooks import words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without judge and catalogue, like a Stable Diffusion of one's own."""
    path = tmp_path_factory.mktemp("models") / "mine"
    fresh().pipe.save_pretrained(path)
    return path


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """A miniature that is taken for the shipped model."""
    backbone = fresh()
    backbone.name = "atelier"
    manifest = {"fingerprint": backbone.fingerprint}
    monkeypatch.setattr(chapter, "read_manifest", lambda _: manifest)
    return backbone


# ---------------------------------------------------------------- the model and its concepts
def test_an_argument_outweighs_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEPME_MODEL", str(folder))
    backbone, judge, _ = open_model()
    assert (backbone.name, judge) == ("mine", None)
    assert seen(judge, torch.zeros(2, 3, 64, 64)) == ["", ""]
    monkeypatch.setenv("SEPME_MODEL", "no/such/folder")
    assert open_model(folder)[0].name == "mine"
    with refused("no/such/folder"):
        open_model()


def test_names_of_ones_own_replace_the_catalogue(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = open_model(folder)[2]
    assert of_kind(catalogue, "style") == list(PAPER_STYLES)
    assert len(PAPER_STYLES) == len(PAPER_OBJECTS) == 9
    assert of_kind(catalogue, "object") == list(PAPER_OBJECTS)
    catalogue_of(["Monet"], ["dog"]).save(folder / "catalogue.json")
    assert list(open_model(folder)[2].concepts) == ["Monet", "dog"]
    monkeypatch.setenv("SEPME_STYLES", "oil")
    monkeypatch.setenv("SEPME_OBJECTS", "cat")
    assert list(open_model(folder)[2].concepts) == ["oil", "cat"]
    assert list(open_model(folder, styles="oil, ink")[2].concepts) == ["oil", "ink", "cat"]
    (folder / "catalogue.json").unlink()


def test_a_retain_set_and_a_tolerance_of_ones_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"styles": "oil, ink", "objects": "cat"}
    whole = open_model(folder, **words)[2]
    oil = whole["oil"]
    assert whole.kept_prompts([oil]) == catalogue_of(["oil", "ink"], ["cat"]).kept_prompts([oil])
    assert with_tolerance(PRESETS, whole) == PRESETS
    monkeypatch.setenv("SEPME_KEEP", "a house, oil, a  boat")
    monkeypatch.setenv("SEPME_KEEP_RTOL", "0.02")
    more = open_model(folder, **words)[2]
    assert more.kept_prompts([oil]) == (*whole.kept_prompts([oil]), "a house", "a boat")
    assert {one.keep_rtol for one in with_tolerance(PRESETS, more).values()} == {0.02}
    given = open_model(folder, **words, keep="a dog", keep_rtol=0)[2]
    assert given.kept_prompts([oil]) == (*whole.kept_prompts([oil]), "a dog")
    assert with_tolerance(PRESETS, given)["default"].keep_rtol == 0
    for wrong in ("a little", "1", "-0.1", "nan"):
        with refused(repr(wrong), "0.02"):
            open_model(folder, keep_rtol=wrong)


def test_a_concept_stands_for_itself_and_others_for_those_that_are_missing() -> None:
    catalogue = catalogue_of(["Monet", "ink", "Degas"], ["dog", "cat"])
    chosen = choose_concepts(catalogue, style=("neon", "ink", "swirl"), object=("boat",))
    assert chosen == {"neon": "Monet", "ink": "ink", "swirl": "Degas", "boat": "dog"}
    assert list(chosen) == ["neon", "ink", "swirl", "boat"]
    with refused("needs 3 concepts of the kind 'object'", "has 2", "SEPME_OBJECTS"):
        choose_concepts(catalogue, object=("boat", "house", "car"))


def test_the_deltas_beside_a_model_are_found_and_must_be_its_own(folder: Path) -> None:
    backbone = open_model(folder)[0]
    assert shipped_deltas(backbone) == shipped_deltas(fresh()) == {}
    (folder / "deltas").mkdir()
    neon = erase(backbone, NEON, ["a cat"], EXACT)
    neon.save(folder / "deltas" / "neon.safetensors")
    assert shipped_deltas(backbone)["neon"].digest == neon.digest
    fresh(seed=5).pipe.unet.save_pretrained(folder / "unet")  # now it is another model
    with refused("not for this model"):
        shipped_deltas(open_model(folder)[0])


@pytest.mark.filterwarnings("ignore::sepme.errors.SepmeWarning")  # random weights entangle words
def test_deltas_that_are_missing_are_erased_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chapter, "CACHE", tmp_path)
    monkeypatch.setitem(PRESETS, "default", QUICK)
    oil, cat = Concept("oil", ("oil", "oil style cat"), "style"), Concept("cat", ("cat",), "object")
    backbone, known = fresh(), Catalogue({"oil": oil, "cat": cat})
    catalogue = ChapterCatalogue(known.concepts, keep_rtol=1e-2)
    made = chapter.deltas_of(backbone, catalogue, ["oil"])["oil"]
    (file,) = tmp_path.rglob("*.safetensors")
    written = file.stat().st_mtime_ns
    assert chapter.deltas_of(backbone, catalogue, ["oil"])["oil"].digest == made.digest
    assert file.stat().st_mtime_ns == written
    assert set(made.kept) == set(known.kept_prompts([known["oil"]]))
    assert made.provenance.settings["keep_rtol"] == 1e-2


# ---------------------------------------------------------------- what it says of itself
def test_the_banner_names_the_model_and_what_stands_for_what(shipped: Backbone) -> None:
    text = banner(fresh(seed=1), {"neon": "Monet", "ink": "ink"}, minutes=2, gigabytes=1.5).data
    for part in ("`tiny`", "a model of your own", "cpu", "2 minutes", "1.5 GB"):
        assert part in text
    assert "read *Monet* for neon." in text
    text = banner(shipped, {"ink": "ink"}, minutes=2, gigabytes=1).data
    assert "ships with sepme" in text
    assert "read" not in text
    assert "retain set" not in text
    own = ChapterCatalogue(catalogue_of(["ink"], ["cat"]).concepts, {}, ("a dog",), 0.02)
    text = banner(shipped, {"ink": "ink"}, own, minutes=2, gigabytes=1).data
    assert "Your retain set: all prompts of the other concepts, and *a dog*." in text
    assert "Your tolerance of the null space: 0.02." in text


def test_a_claim_that_fails_ends_the_chapter_only_as_it_was_written(shipped: Backbone) -> None:
    claim = Claims(shipped, {"neon": "neon"})
    claim("one is one", True)
    with pytest.raises(AssertionError, match="The text says that one is two"):
        claim("one is two", torch.tensor([True, False]))

    more = ChapterCatalogue(catalogue_of(["neon"], []).concepts, {}, keep=("a dog",))
    for own in (
        Claims(shipped, {"neon": "Monet"}),
        Claims(shipped, {"neon": "neon"}, more),
        Claims(fresh(seed=1), {"neon": "neon"}),
    ):
        own("one is one", torch.tensor([True, True]))
        own("one is two", False)
        assert own.made == [("one is one", True), ("one is two", False)]
        table = own.table().data
        assert "1 of 2 claims" in table
        assert re.findall("<td>(.*?)</td>", table) == ["one is one", "yes", "one is two", "NO"]


def test_a_claim_that_nothing_can_check_is_not_run_and_not_counted(shipped: Backbone) -> None:
    judge = None
    claim = Claims(shipped, {})
    claim("one is one", True)
    claim("neon is seen", judge and judge.sees(torch.zeros(1, 3, 64, 64), "neon"))
    claim("all of nothing are red", torch.zeros(0, dtype=torch.bool))
    table = claim.table().data
    assert "1 of 1 claims of this chapter hold for this model. 2 could not be checked" in table
    assert re.findall("<td>(.*?)</td>", table)[1::2] == ["yes", "not run", "not run"]
    claim.made = claim.made[1:]
    assert "<p>2 could not be checked" in claim.table().data  # and not "0 of 0"


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_every_claim_was_run_and_holds_for_the_shipped_model(path: Path) -> None:
    (table,) = re.findall(r"<th>holds</th>.*?</table>", words(nbformat.read(path, 4)), re.S)
    answers = set(re.findall(r"<td>(yes|NO|not run)</td>", table))
    assert answers == {"yes"}


def test_the_live_decay_collects_every_step() -> None:
    live = chapter.LiveDecay("neon", every=2)
    erase(fresh(), NEON, ["a cat"], QUICK, trainer=Trainer(callback=live, progress=False))
    assert [step.iteration for step in live.steps] == [1, 2, 3, 4, 5]


def test_the_shipped_model_is_known_by_its_weights(backbone: Backbone) -> None:
    assert is_shipped(Backbone(backbone.pipe, "elsewhere"))
    assert not is_shipped(Backbone(fresh().pipe, "atelier"))
