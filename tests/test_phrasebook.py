"""Prompts from templates, and the catalogue that follows from words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepme.atelier.captions import catalogue as atelier_catalogue
from sepme.concept import PAPER_OBJECTS, PAPER_STYLES, catalogue_of, fill, with_article
from tests.refusals import refused

words = st.text("abcdefgh", min_size=1, max_size=5)


def test_articles() -> None:
    assert with_article("house") == "a house"
    assert with_article("english springer") == "an english springer"
    assert with_article("Impressionism") == "an Impressionism"
    assert with_article("nothing") == "nothing"
    assert fill("a photo of {ao}", "scenery", uncounted="scenery") == "a photo of scenery"


def test_a_catalogue_by_hand() -> None:
    catalogue = catalogue_of(["Monet"], ["dog"])
    assert catalogue["monet"].prompts == (
        "Monet",
        "a painting in the style of Monet",
        "Monet style",
        "a Monet painting",
        "a painting of a dog in the style of Monet",
        "Monet style dog",
    )
    assert catalogue["monet"].anchors == (*("a photo",) * 4, *("a photo of a dog",) * 2)
    assert dict(zip(catalogue["dog"].prompts, catalogue["dog"].anchors, strict=True)) == {
        "a painting of a dog": "a painting of scenery",
        "a dog": "scenery",
        "dog": "scenery",
        "a photo of a dog": "a photo of scenery",
        "a painting of a dog in the style of Monet": "a painting of scenery in the style of Monet",
        "Monet style dog": "Monet style scenery",
    }


@given(st.lists(words, min_size=2, max_size=6, unique=True), st.data())
def test_what_names_two_concepts_belongs_to_both(names: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(names)))
    styles, objects = names[:cut], names[cut:]
    catalogue = catalogue_of(styles, objects)
    for style in styles:
        for thing in objects:
            shared = set(catalogue[style].prompts) & set(catalogue[thing].prompts)
            assert fill("a painting of {ao} in the style of {s}", thing, style) in shared
            kept = catalogue.kept_prompts([catalogue[style]])
            assert not shared & set(kept)
            assert f"a photo of {with_article(thing)}" in kept


def test_the_papers_words_make_nine_of_each() -> None:
    assert (len(PAPER_STYLES), len(PAPER_OBJECTS)) == (9, 9)
    assert len(catalogue_of(PAPER_STYLES, PAPER_OBJECTS).concepts) == 18


def test_the_ateliers_concepts_are_made_the_same_way() -> None:
    shipped = atelier_catalogue()
    kinds = {
        kind: [c.name for c in shipped.concepts.values() if c.kind == kind]
        for kind in ("style", "object")
    }
    made = catalogue_of(kinds["style"], kinds["object"], nothing="nothing")
    for name, concept in made.concepts.items():
        assert concept == shipped.concepts[name]


@pytest.mark.parametrize(
    ("styles", "objects", "why"),
    [([], [], "at least one"), (["ink", "Ink"], [], "twice"), (["ink"], ["ink"], "twice")],
)
def test_bad_words_are_refused(styles: list[str], objects: list[str], why: str) -> None:
    with refused(why):
        catalogue_of(styles, objects)
