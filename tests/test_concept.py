"""Concepts and what people type."""

import pytest

from sepme.concept import Catalogue, Concept, parse_names, refuse_overlap
from tests.refusals import refused

NEON = Concept("neon", ("neon", "a boat in neon style"), "style", ("", "a boat"))
BOAT = Concept("boat", ("boat", "a boat in neon style", "a photo of a boat"), "object")
POINTILLISM = Concept("pointillism", ("pointillism",), "style")


@pytest.fixture
def catalogue() -> Catalogue:
    concepts = {concept.name: concept for concept in (NEON, BOAT, POINTILLISM)}
    return Catalogue(concepts, aliases={"ship": "boat", "dotted": "pointillism"})


def test_anchors_default_to_the_empty_prompt() -> None:
    assert POINTILLISM.anchors == ("",)
    assert NEON.anchors == ("", "a boat")


def test_a_single_string_is_one_prompt() -> None:
    assert Concept("neon", "neon").prompts == ("neon",)
    assert Concept.from_text(" Van Gogh ") == Concept("Van Gogh", ("Van Gogh",))


def test_parse_names_splits_cleans_and_drops_repetitions() -> None:
    assert parse_names(" pointillism,  van   gogh,, pointillism ") == ["pointillism", "van gogh"]


def test_catalogue_parses_names_aliases_and_case(catalogue: Catalogue) -> None:
    assert catalogue.parse("Neon, ship") == [NEON, BOAT]
    assert catalogue.parse("boat, ship, BOAT") == [BOAT]


def test_kept_prompts_belong_to_no_forgotten_concept(catalogue: Catalogue) -> None:
    assert catalogue.kept_prompts([NEON]) == ("", "boat", "a photo of a boat", "pointillism")
    assert catalogue.kept_prompts([NEON, BOAT]) == ("", "pointillism")
    assert catalogue.kept_prompts([NEON, BOAT, POINTILLISM]) == ("",)


def test_catalogue_survives_json_and_disk(catalogue: Catalogue, tmp_path) -> None:
    assert Catalogue.load(catalogue.save(tmp_path / "catalogue.json")) == catalogue


def test_a_concept_without_name_or_prompts_is_refused() -> None:
    with refused("name"):
        Concept(" ", ("neon",))
    with refused("neon", "no prompts"):
        Concept("neon", ())


def test_the_empty_prompt_cannot_be_forgotten() -> None:
    with refused("neon", "empty prompt"):
        Concept("neon", ("neon", " "))


def test_anchors_must_match_the_prompts() -> None:
    with refused("2 prompts", "1 anchors"):
        Concept("neon", ("neon", "neon boat"), anchors=("boat",))


def test_typing_nothing_is_refused() -> None:
    with refused("No concept"):
        parse_names(" , ")


def test_an_unknown_concept_names_near_matches_and_all_known(catalogue: Catalogue) -> None:
    with refused("'neom'", "did you mean neon?", "neon, boat, pointillism"):
        catalogue.parse("boat, neom")
    with refused("'zebra'", "neon, boat, pointillism"):
        catalogue.parse("zebra")


def test_a_concept_cannot_be_forgotten_and_kept() -> None:
    refuse_overlap(NEON, ["", "boat"])
    with refused("'neon'", "also to be kept"):
        refuse_overlap(NEON, ["", " NEON"])


def test_an_inconsistent_catalogue_is_refused() -> None:
    with refused("'neon'", "'glow'"):
        Catalogue({"glow": NEON})
    with refused("'ship'", "'boat'"):
        Catalogue({"neon": NEON}, aliases={"ship": "boat"})


@pytest.mark.parametrize("text", ["", "[]", '{"concepts": [{"title": "neon"}]}', '{"concepts": 3}'])
def test_something_else_is_not_a_catalogue(text: str, tmp_path) -> None:
    (tmp_path / "catalogue.json").write_text(text)
    with refused("not a catalogue"):
        Catalogue.load(tmp_path / "catalogue.json")


def test_a_missing_catalogue_is_refused(tmp_path) -> None:
    with refused("nowhere.json"):
        Catalogue.load(tmp_path / "nowhere.json")
