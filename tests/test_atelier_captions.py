"""Captions, the catalogue of concepts, and the vocabulary that holds their words."""

from collections import Counter

import numpy as np
import pytest

from sepme.atelier._tokenizer import make_tokenizer
from sepme.atelier.captions import (
    BOTH,
    EMBLEM,
    OBJECT_ONLY,
    OBJECT_PHOTO,
    STYLE_ONLY,
    caption,
    catalogue,
    fill,
    vocabulary,
)
from sepme.atelier.objects import NOTHING
from sepme.atelier.paintings import ALIASES, OBJECTS, STYLES


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def drawn():
    random = np.random.default_rng(0)
    return Counter(caption("car", "ink", random) for _ in range(4000))


def test_every_word_is_one_token_and_every_other_falls_into_pieces(tokenizer):
    for word in vocabulary():
        assert len(tokenizer(word)["input_ids"]) == 3, word
    ids = tokenizer("a Dragon, swirl!", padding="max_length", max_length=16)["input_ids"]
    assert len(ids) == 16
    assert make_tokenizer().get_vocab() == tokenizer.get_vocab()


def test_every_prompt_fits_with_room_to_spare(tokenizer):
    prompts = catalogue().kept_prompts([])
    assert max(len(ids) for ids in tokenizer(list(prompts))["input_ids"]) <= 13


def test_shares_of_empty_captions_and_aliases(drawn):
    total = drawn.total()
    assert drawn[""] / total == pytest.approx(0.1, abs=0.02)
    for word, alias in (("car", "motorcar"), ("ink", "sketch")):
        counts = [sum(n for text, n in drawn.items() if w in text.split()) for w in (word, alias)]
        assert counts[1] / sum(counts) == pytest.approx(0.15, abs=0.02)


def test_a_caption_says_nothing_that_is_not_in_the_picture(drawn):
    own = {"car", "ink", ALIASES["car"], ALIASES["ink"]}
    others = {*OBJECTS, *STYLES, *ALIASES.values(), NOTHING, "photo"} - own
    assert not others & {word for text in drawn for word in text.split()}


def test_every_anchor_is_a_caption_the_model_learns():
    known = {fill(t, o, s) for t in BOTH for o in (*OBJECTS, NOTHING) for s in STYLES}
    known |= {fill(t, o) for t in (*OBJECT_ONLY, *OBJECT_PHOTO) for o in (*OBJECTS, NOTHING)}
    known |= {"a photo", "a painting", *(fill(t, style=s) for t in STYLE_ONLY for s in STYLES)}
    for concept in catalogue().concepts.values():
        assert set(concept.anchors) <= known
        assert concept.name == EMBLEM or set(concept.prompts) <= known
        assert not set(concept.anchors) & set(concept.prompts)


def test_the_catalogue_has_what_is_promised():
    found = catalogue()
    kinds = Counter(concept.kind for concept in found.concepts.values())
    assert kinds == {"style": 10, "object": 10, "watermark": 1}
    assert found.parse("dotted, ship") == [found["pointillism"], found["boat"]]
    words = {w for c in found.concepts.values() for p in c.prompts for w in p.split()}
    assert not words & set(ALIASES.values())
    ink = dict(zip(found["ink"].prompts, found["ink"].anchors, strict=True))
    assert ink["a painting of a boat in the style of ink"] == "a photo of a boat"
    boat = dict(zip(found["boat"].prompts, found["boat"].anchors, strict=True))
    assert boat["ink style boat"] == "ink style nothing"
