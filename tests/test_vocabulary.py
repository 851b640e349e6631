"""The words that a model was made for, and what is said of the others."""

import warnings

import pytest
from transformers import CLIPTokenizer

from sepme.atelier._tokenizer import make_tokenizer
from sepme.atelier.captions import catalogue, vocabulary
from sepme.cli.tasks import ErasureTask, erase_into
from sepme.concept import Concept, Vocabulary
from sepme.errors import SepmeError, SepmeWarning
from sepme.nullspace import constrain
from tests.miniature import EXACT, KEPT, NEON, shared
from tests.refusals import refused
from tests.tiny import END, START, WORDS, tiny_tokenizer

ATELIER = Vocabulary.of(make_tokenizer())


def open_tokenizer() -> CLIPTokenizer:
    """As for Stable Diffusion, in small: its merges end where the vocabulary was full."""
    merges = [("n", "e"), ("ne", "o"), ("b", "o"), ("i", "n"), ("in", "k</w>")]
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{c}</w>" for c in letters), *map("".join, merges), START, END]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=10
    )


# ---------------------------------------------------------------- which words
def test_a_closed_vocabulary_is_the_words_that_it_was_made_of() -> None:
    assert {word for word in vocabulary() if len(word) > 1} <= ATELIER.words
    longer = {word for word in WORDS if len(word) > 1}
    assert Vocabulary.of(tiny_tokenizer()).words == longer


def test_every_prompt_of_the_catalogue_is_known() -> None:
    known = catalogue()
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
    """The tokenizer of Stable Diffusion also reads most words in pieces, and knows them."""
    vocabulary = Vocabulary.of(open_tokenizer())
    assert vocabulary.words is None
    assert len(vocabulary.tokenizer.tokenize("mckernan")) > 1
    assert vocabulary.unknown(["mckernan"]) == ()
    assert vocabulary.knows_any(["mckernan"])
    assert vocabulary.remark(["mckernan"]) is None


def test_a_prompt_is_meaningless_if_it_has_words_and_none_is_known() -> None:
    assert not ATELIER.knows_any(["elephant", "Van Gogh"])
    assert ATELIER.knows_any(["elephant", "a zebra"])
    assert ATELIER.knows_any(["", "!"])  # no words at all


# ---------------------------------------------------------------- what is said
def test_the_remark_is_one_sentence_with_a_hint_where_a_word_is_near() -> None:
    assert ATELIER.remark(["a boat"]) is None
    assert ATELIER.remark(["a zebra", "zebra"]) == (
        "The word 'zebra' means nothing to this model, which was never shown it."
    )
    assert ATELIER.remark(["a watercolour of Boats by Van Gogh"]) == (
        "The words 'watercolour' (did you mean 'watercolor'?), 'Boats' (did you mean 'boat'?), "
        "'Van', 'Gogh' mean nothing to this model, which was never shown them."
    )


def room(concept: Concept, keep=KEPT, **choices):
    return constrain(shared(), concept, keep, keep_rtol=None, concept_rtol=0.1, **choices)


def test_erasing_warns_of_unknown_words_forgotten_or_kept() -> None:
    with pytest.warns(SepmeWarning, match="The word 'red' means nothing") as caught:
        room(Concept.from_text("red boat"), keep=("house",))
    assert caught[0].filename == __file__  # the line that asked, not one of ours
    with pytest.warns(SepmeWarning, match="The word 'Monet' means nothing"):
        room(NEON, keep=(*KEPT, "Monet"))


def test_known_words_and_a_mere_look_raise_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        room(NEON)
        room(Concept.from_text("red boat"), keep=("house",), quiet=True)


def test_a_concept_of_which_no_word_is_known_cannot_be_forgotten(tmp_path) -> None:
    monet = Concept("Monet", ("Monet", "Claude Monet"))
    with refused("knows no word of 'Monet'", "nothing to forget"):
        room(monet)
    with pytest.warns(SepmeWarning, match="'Monet', 'Claude'"):
        room(Concept("Monet", (*monet.prompts, "a painting in the style of Monet")))
    jobs = [ErasureTask((concept,), KEPT, EXACT) for concept in (NEON, monet)]
    with pytest.raises(SepmeError, match="knows no word of 'Monet'"):
        erase_into(tmp_path, jobs, shared(), say=lambda _: None)
    assert list(tmp_path.iterdir()) == []  # refused before the first was erased
