"""Concepts, prompt templates, what people type, and the words that a model knows."""

import re
import warnings
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from sepme.atelier._tokenizer import make_tokenizer
from sepme.atelier.captions import catalogue as atelier_catalogue
from sepme.atelier.captions import vocabulary
from sepme.concept import (
    Catalogue,
    Concept,
    Vocabulary,
    catalogue_of,
    evenly,
    fill,
    parse_names,
    refuse_overlap,
    slug,
    with_article,
)
from sepme.errors import SepmeWarning
from sepme.nullspace import Constraint, constrain
from tests.miniature import KEPT, shared
from tests.refusals import refused
from tests.tiny import END, START, WORDS, tiny_tokenizer

NEON = Concept("neon", ("neon", "a boat in neon style"), "style", ("", "a boat"))
BOAT = Concept("boat", ("boat", "a boat in neon style", "a photo of a boat"), "object")
POINTILLISM = Concept("pointillism", ("pointillism",), "style")
KNOWN = Catalogue(
    {concept.name: concept for concept in (NEON, BOAT, POINTILLISM)},
    aliases={"ship": "boat", "dotted": "pointillism"},
)
ATELIER = Vocabulary.of(make_tokenizer())


# ---------------------------------------------------------------- concepts and what people type
def test_a_concept_of_one_prompt_and_its_default_anchor() -> None:
    assert Concept("neon", "neon").prompts == ("neon",)
    assert Concept.from_text(" Van Gogh ") == Concept("Van Gogh", ("Van Gogh",))
    assert POINTILLISM.anchors == ("",)
    assert NEON.anchors == ("", "a boat")


def test_names_aliases_and_case() -> None:
    assert parse_names(" pointillism,  van   gogh,, pointillism ") == ["pointillism", "van gogh"]
    assert KNOWN.parse("Neon, ship") == [NEON, BOAT]
    assert KNOWN.parse("boat, ship, BOAT") == [BOAT]


def test_kept_prompts_belong_to_no_forgotten_concept() -> None:
    assert KNOWN.kept_prompts([NEON]) == ("", "boat", "a photo of a boat", "pointillism")
    assert KNOWN.kept_prompts([NEON, BOAT]) == ("", "pointillism")
    assert KNOWN.kept_prompts([NEON, BOAT, POINTILLISM]) == ("",)


def test_a_catalogue_survives_the_disk(tmp_path) -> None:
    assert Catalogue.load(KNOWN.save(tmp_path / "catalogue.json")) == KNOWN


def test_file_names_and_evenly_spread_items() -> None:
    assert slug("Van Gogh") == "van-gogh"
    assert re.fullmatch("concept-[0-9a-f]{8}", slug("../.."))
    assert evenly("abcdef", 3) == ["a", "c", "e"]
    assert evenly("ab", 5) == ["a", "b", "a", "b", "a"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Concept(" ", ("neon",)), ("name",)),
        (lambda: Concept("neon", ()), ("neon", "no prompts")),
        (lambda: Concept("neon", ("neon", " ")), ("neon", "empty prompt")),
        (lambda: Concept("neon", ("a", "b"), anchors=("c",)), ("2 prompts", "1 anchors")),
        (lambda: parse_names(" , "), ("No concept",)),
        (lambda: KNOWN.parse("boat, neom"), ("'neom'", "mean neon?", "neon, boat, pointillism")),
        (lambda: KNOWN.parse("zebra"), ("'zebra'", "neon, boat, pointillism")),
        (lambda: refuse_overlap(NEON, ["", " NEON"]), ("'neon'", "also to be kept")),
        (lambda: Catalogue({"glow": NEON}), ("'neon'", "'glow'")),
        (lambda: Catalogue({"neon": NEON}, aliases={"ship": "boat"}), ("'ship'", "'boat'")),
        (lambda: Catalogue.load("nowhere.json"), ("nowhere.json",)),
        (lambda: catalogue_of([], []), ("at least one",)),
        (lambda: catalogue_of(["ink", "Ink"], []), ("twice",)),
        (lambda: catalogue_of(["ink"], ["ink"]), ("twice",)),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable, words: tuple[str, ...]) -> None:
    refuse_overlap(NEON, ["", "boat"])  # makes sense
    with refused(*words):
        make()


@pytest.mark.parametrize("text", ["", "[]", '{"concepts": [{"title": "neon"}]}', '{"concepts": 3}'])
def test_something_else_is_not_a_catalogue(text: str, tmp_path) -> None:
    (tmp_path / "catalogue.json").write_text(text)
    with refused("not a catalogue"):
        Catalogue.load(tmp_path / "catalogue.json")


# ---------------------------------------------------------------- prompt templates
def test_articles() -> None:
    assert with_article("house") == "a house"
    assert with_article("english springer") == "an english springer"
    assert with_article("Impressionism") == "an Impressionism"
    assert with_article("nothing") == "nothing"
    assert fill("a photo of {ao}", "scenery", uncounted="scenery") == "a photo of scenery"


def test_a_catalogue_by_hand() -> None:
    catalogue = catalogue_of(["Monet"], ["dog"])
    assert dict(zip(catalogue["monet"].prompts, catalogue["monet"].anchors, strict=True)) == {
        "Monet": "a photo",
        "a painting in the style of Monet": "a photo",
        "Monet style": "a photo",
        "a Monet painting": "a photo",
        "a painting of a dog in the style of Monet": "a photo of a dog",
        "Monet style dog": "a photo of a dog",
    }
    assert dict(zip(catalogue["dog"].prompts, catalogue["dog"].anchors, strict=True)) == {
        "a painting of a dog": "a painting of scenery",
        "a dog": "scenery",
        "dog": "scenery",
        "a photo of a dog": "a photo of scenery",
        "a painting of a dog in the style of Monet": "a painting of scenery in the style of Monet",
        "Monet style dog": "Monet style scenery",
    }


names = st.text("abcdefgh", min_size=1, max_size=5)


@given(st.lists(names, min_size=2, max_size=6, unique=True), st.data())
def test_what_names_two_concepts_belongs_to_both(names: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(names)))
    styles, objects = names[:cut], names[cut:]
    catalogue = catalogue_of(styles, objects)
    for style in styles:
        for thing in objects:
            both = set(catalogue[style].prompts) & set(catalogue[thing].prompts)
            assert fill("a painting of {ao} in the style of {s}", thing, style) in both
            kept = catalogue.kept_prompts([catalogue[style]])
            assert not both & set(kept)
            assert f"a photo of {with_article(thing)}" in kept


def test_the_ateliers_concepts_are_made_the_same_way() -> None:
    shipped = atelier_catalogue().concepts
    styles, objects = (
        [c.name for c in shipped.values() if c.kind == kind] for kind in ("style", "object")
    )
    made = catalogue_of(styles, objects, nothing="nothing").concepts
    assert made.items() <= shipped.items()


# ---------------------------------------------------------------- known words
def test_a_closed_vocabulary_is_the_words_that_it_was_made_of() -> None:
    assert {word for word in vocabulary() if len(word) > 1} <= ATELIER.words
    assert Vocabulary.of(tiny_tokenizer()).words == {word for word in WORDS if len(word) > 1}
    known = atelier_catalogue()
    assert ATELIER.unknown([*known.kept_prompts([]), *known.aliases]) == ()


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("", ()),
        ("a painting of a boat in the style of neon", ()),
        ("  Neon\tBOAT, boat's 3!", ()),
        ("an elephant in neon style", ("elephant",)),
        ("Van Gogh's elephants, van elephants", ("Van", "Gogh", "elephants")),
        ("un café étrange", ("un", "café", "étrange")),
    ],
)
def test_unknown_words_are_found_as_they_were_typed(prompt: str, unknown: tuple) -> None:
    assert ATELIER.unknown([prompt]) == unknown


def test_where_pieces_were_learnt_no_word_is_unknown() -> None:
    """Like Stable Diffusion's tokenizer, whose merges end where the vocabulary was full."""
    merges = [("n", "e"), ("ne", "o"), ("b", "o"), ("i", "n"), ("in", "k</w>")]
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{c}</w>" for c in letters), *map("".join, merges), START, END]
    indices = {token: i for i, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=indices, merges=merges, model_max_length=10)
    open_vocabulary = Vocabulary.of(tokenizer)
    assert open_vocabulary.words is None
    assert len(tokenizer.tokenize("mckernan")) > 1
    assert open_vocabulary.unknown(["mckernan"]) == ()
    assert open_vocabulary.knows_any(["mckernan"])
    assert open_vocabulary.remark(["mckernan"]) is None


def test_a_prompt_is_meaningless_if_it_has_words_and_none_is_known() -> None:
    assert not ATELIER.knows_any(["elephant", "Van Gogh"])
    assert ATELIER.knows_any(["elephant", "a zebra"])
    assert ATELIER.knows_any(["", "!"])  # no words at all


def test_the_remark_is_one_sentence_with_a_hint_where_a_word_is_near() -> None:
    assert ATELIER.remark(["a boat"]) is None
    assert ATELIER.remark(["a zebra", "zebra"]) == (
        "The word 'zebra' means nothing to this model, which was never shown it."
    )
    assert ATELIER.remark(["a watercolour of Boats by Van Gogh"]) == (
        "The words 'watercolour' (did you mean 'watercolor'?), 'Boats' (did you mean 'boat'?), "
        "'Van', 'Gogh' mean nothing to this model, which was never shown them."
    )


def constrained(*prompts: str, keep=KEPT, quiet: bool = False) -> Constraint:
    concept = Concept(prompts[0], prompts)
    return constrain(shared(), concept, keep, keep_rtol=None, concept_rtol=0.1, quiet=quiet)


def test_erasing_warns_of_unknown_words_forgotten_or_kept_and_of_no_others() -> None:
    with pytest.warns(SepmeWarning, match="The word 'red' means nothing") as caught:
        constrained("red boat", keep=("house",))
    assert caught[0].filename == __file__  # the caller's line, not one of ours
    with pytest.warns(SepmeWarning, match="The word 'Monet' means nothing"):
        constrained("neon", keep=(*KEPT, "Monet"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constrained("neon")
        constrained("red boat", keep=("house",), quiet=True)


def test_a_concept_of_which_no_word_is_known_cannot_be_forgotten() -> None:
    with refused("knows no word of 'Monet'", "nothing to forget"):
        constrained("Monet", "Jan Monet")
    with pytest.warns(SepmeWarning, match="'Monet', 'Jan'"):
        constrained("Monet", "Jan Monet", "style of Monet")
