"""Where a concept stands in a prompt, which prompts a method trains on, and new words for it."""

import torch

from sepme.baselines._inversion import (
    InversionSettings,
    encode,
    invert,
    with_new_words,
)
from sepme.baselines.prompts import OWN, concept_mask, last_subject, pairs, token_ids
from sepme.concept import Concept
from tests.miniature import fresh, shared
from tests.refusals import refused
from tests.tolerance import assert_close

STYLE = Concept("neon", ("neon", "neon style boat"), "style", ("a photo", "a photo of boat"))


# ---------------------------------------------------------------------- prompts
def test_pairs_of_templates_and_of_the_concept_s_own_prompts() -> None:
    assert pairs(STYLE, "{name}") == [("neon", "a photo")]
    assert pairs(STYLE, "{name} painting") == [("neon painting", "a photo")]
    assert pairs(STYLE, "{name} painting", "painting") == [("neon painting", "painting")]
    own = [("neon", "a photo"), ("neon style boat", "a photo of boat")]
    assert pairs(STYLE, OWN) == own
    assert pairs(STYLE, OWN, "x") == [("neon", "x"), ("neon style boat", "x")]
    assert pairs(Concept("neon", ("a neon boat",)), "{name}") == [("neon", "")]


# ---------------------------------------------------------------------- positions
def test_positions_of_words_in_a_padded_prompt() -> None:
    backbone = shared()  # <start> a neon boat <end> <end> ...: padding is the end token itself
    prompt = "a neon boat"
    end = backbone.pipe.tokenizer.eos_token_id
    assert token_ids(backbone, prompt)[4:] == [end] * 6
    assert (last_subject(backbone, prompt), last_subject(backbone, "")) == (3, 0)
    masks = {end: concept_mask(backbone, prompt, "neon", end) for end in ("none", "first", "all")}
    assert masks["none"].nonzero().flatten().tolist() == [2]
    assert masks["first"].nonzero().flatten().tolist() == [2, 4]
    assert masks["all"].nonzero().flatten().tolist() == [2, *range(4, 10)]  # all of the padding


def test_another_padding_token_leaves_one_end() -> None:
    """Stable Diffusion 2.x pads with another token: there "all" and "first" are the same."""
    backbone = fresh()
    backbone.pipe.tokenizer.pad_token = "a</w>"
    first, every = (concept_mask(backbone, "neon", "neon", end) for end in ("first", "all"))
    assert torch.equal(first, every)
    assert first.nonzero().flatten().tolist() == [1, 2]
    assert last_subject(backbone, "neon") == 1


def test_names_of_several_tokens_and_several_places() -> None:
    backbone = shared()
    spelled = backbone.pipe.tokenizer("van", add_special_tokens=False).input_ids
    assert len(spelled) == 3  # letter by letter
    mask = concept_mask(backbone, "van boat van", "van")
    assert mask.nonzero().flatten().tolist() == [1, 2, 3, 5, 6, 7]


def test_a_prompt_without_the_name_or_cut_before_it_is_refused() -> None:
    with refused("'a boat'", "'neon'"):
        concept_mask(shared(), "a boat", "neon")
    with refused("within 10 tokens"):
        concept_mask(shared(), "a painting of the house in a boat neon", "neon")


# ---------------------------------------------------------------------- textual inversion
def test_new_words_stand_where_the_name_stood() -> None:
    backbone = shared()
    plain = token_ids(backbone, "a neon boat")
    ids, mask = with_new_words(backbone, "a neon boat", "neon", 2)
    table = backbone.pipe.text_encoder.get_input_embeddings().num_embeddings
    assert ids.tolist() == [*plain[:2], table, table + 1, *plain[3:-1]]
    assert mask.nonzero().flatten().tolist() == [2, 3]
    for end, more in (("first", [5]), ("all", range(5, 10))):
        _, mask = with_new_words(backbone, "a neon boat", "neon", 2, end)
        assert mask.nonzero().flatten().tolist() == [2, 3, *more]
    with refused("'a boat'"):
        with_new_words(backbone, "a boat", "neon", 2)
    with refused("9 new words"):
        with_new_words(backbone, "neon", "neon", 9)


def test_a_new_word_with_the_name_s_embedding_is_the_name() -> None:
    backbone = shared()
    table = backbone.pipe.text_encoder.get_input_embeddings().weight
    (neon,) = backbone.pipe.tokenizer("neon", add_special_tokens=False).input_ids
    ids, _ = with_new_words(backbone, "a neon boat", "neon", 1)
    same = encode(backbone, ids[None], table[[neon]])
    assert_close(same, backbone.encode(["a neon boat"]))
    other = encode(backbone, ids[None], 2 * table[[neon]])  # the negative control
    assert (other - same).abs().max() > 0.01
    plain = torch.tensor([token_ids(backbone, "a boat")])
    assert_close(encode(backbone, plain, table[:0]), backbone.encode(["a boat"]))


def test_inversion_learns_words_and_touches_nothing_else() -> None:
    backbone = shared()
    before = {n: p.clone() for n, p in backbone.pipe.text_encoder.named_parameters()}
    images = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    prompts = ["neon", "a neon boat"]

    def learn(iterations: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        some = InversionSettings(3, iterations, learning_rate=0.1, batch=2)
        return invert(backbone, "neon", prompts, images, some, generator)

    learnt = learn(4)
    assert learnt.shape == (3, backbone.d_in)
    assert torch.equal(learnt, learn(4))
    assert not torch.equal(learnt, learn(4, seed=1))
    (neon,) = backbone.pipe.tokenizer("neon", add_special_tokens=False).input_ids
    first = learn(1)[0] - before[next(n for n in before if "token_embedding" in n)][neon]
    assert_close(first.abs(), torch.full_like(first, 0.1), scale=1.0)  # Adam's first step
    after = dict(backbone.pipe.text_encoder.named_parameters())
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert all(p.grad is None for p in backbone.unet.parameters())
