"""Composing and restoring: any subset, in any order, back and forth, and nothing remains."""

import random
from dataclasses import replace
from itertools import chain, combinations, permutations

import pytest
import torch
from torch import Tensor

from sepme.composition import Composition, applied, keeps
from sepme.concept import Concept
from sepme.delta import DenseDelta
from sepme.erasure import PRESETS, erase
from sepme.model import Backbone
from tests.miniature import (
    EXACT,
    INK,
    KEPT,
    NAMES,
    NEON,
    PREDICTIONS,
    QUIET,
    UNRELATED,
    changed,
    fresh,
    latents,
    noise_prediction,
    png,
    shared,
    three_deltas,
)
from tests.refusals import refused
from tests.tolerance import assert_close

SUBSETS = list(chain.from_iterable(combinations(NAMES, n) for n in range(len(NAMES) + 1)))


def composed(backbone: Backbone) -> Composition:
    return Composition(backbone, three_deltas(backbone.prediction_type))


def functional(backbone: Backbone, concepts: tuple[str, ...]) -> dict[str, Tensor]:
    """theta + sum_k Delta_k, added up by hand."""
    deltas = [d for d in three_deltas(backbone.prediction_type) if d.concept in concepts]
    weights = {path: layer.weight.clone() for path, layer in backbone.projections().items()}
    for delta in deltas:
        for path in delta.paths:
            weights[path] += delta.dense(path)
    return weights


# ---------------------------------------------------------------- what composing is
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_subset_is_the_sum_of_its_deltas_and_touches_nothing_else(prediction: str) -> None:
    backbone = shared(prediction)
    before = {prompt: noise_prediction(backbone, prompt) for prompt in ("", *NAMES, *KEPT)}
    x_t, t = torch.randn(2, *backbone.latent_shape), torch.tensor([10, 900])
    embedding = backbone.encode(["neon", "ink"])
    with composed(backbone) as composition, torch.no_grad():
        for subset in SUBSETS:
            with composition.erased(*subset):
                for prompt, original in before.items():
                    now = noise_prediction(backbone, prompt)
                    if prompt in subset:
                        assert changed(original, now) > 0.01, f"{prompt} survives {subset}"
                    else:
                        assert_close(now, original)
                adapters = backbone.epsilon(x_t, t, embedding)
            by_hand = backbone.epsilon(x_t, t, embedding, functional(backbone, subset))
            assert_close(adapters, by_hand)


def test_a_prompt_that_nobody_kept_may_move() -> None:
    """The control: where it says that nothing changes, something could have."""
    backbone = shared()
    original = noise_prediction(backbone, UNRELATED)
    with composed(backbone) as composition, composition.erased(*NAMES):
        assert changed(original, noise_prediction(backbone, UNRELATED)) > 1e-3


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_order_of_erasing_does_not_matter(prediction: str) -> None:
    backbone, results = shared(prediction), []
    for order in permutations(NAMES):
        deltas = sorted(three_deltas(prediction), key=lambda delta: order.index(delta.concept))
        with Composition(backbone, deltas) as composition:
            for name in order:
                composition.erase(name)
            assert composition.active == tuple(sorted(NAMES))
            results.append(latents(backbone))
    assert all(torch.equal(result, results[0]) for result in results)


def test_strength_scales_the_delta() -> None:
    backbone = shared()
    half = {
        path: layer.weight + 0.5 * three_deltas()[0].dense(path)
        for path, layer in backbone.projections().items()
    }
    x_t, t = torch.randn(1, *backbone.latent_shape), torch.tensor([500])
    embedding = backbone.encode(["neon"])
    with torch.no_grad():
        original = backbone.epsilon(x_t, t, embedding)
    with composed(backbone) as composition, torch.no_grad():
        composition.erase("neon", strength=0.5)
        assert composition.strengths == {"neon": 0.5}
        scaled = backbone.epsilon(x_t, t, embedding)
        with backbone.original():  # switching off and on again keeps the strength
            assert torch.equal(backbone.epsilon(x_t, t, embedding), original)
        assert torch.equal(backbone.epsilon(x_t, t, embedding), scaled)
        composition.restore_all()
        assert_close(scaled, backbone.epsilon(x_t, t, embedding, half))


# ---------------------------------------------------------------- restored, bit for bit
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_restored_is_the_original_bit_for_bit(prediction: str) -> None:
    backbone = shared(prediction)
    original, files = latents(backbone), png(backbone.generate(NAMES, seeds=5))
    with composed(backbone) as composition:
        assert torch.equal(latents(backbone), original)  # attached, but off
        composition.erase(*NAMES)
        assert not torch.equal(latents(backbone), original)
        assert png(backbone.generate(NAMES, seeds=5)) != files
        composition.restore(*NAMES)
        assert torch.equal(latents(backbone), original)
        assert png(backbone.generate(NAMES, seeds=5)) == files
        composition.set(dict.fromkeys(NAMES, 0.0))  # no strength is restored too
        assert composition.active == ()
        assert torch.equal(latents(backbone), original)


def test_a_hundred_random_switches_leave_no_trace() -> None:
    backbone, dice = shared(), random.Random(0)
    original = latents(backbone)
    with composed(backbone) as composition:
        first = {}
        for _ in range(100):
            subset = dice.choice(SUBSETS)
            composition.set({name: dice.choice([0.5, 1.0]) for name in subset})
            if len(subset) == 2 and set(composition.strengths.values()) == {1.0}:
                now = noise_prediction(backbone, "ink")
                assert torch.equal(first.setdefault(subset, now), now)
        assert first, "no subset came back"
        composition.restore_all()
        assert torch.equal(latents(backbone), original)


def test_the_shipped_model_is_restored_bit_for_bit(backbone: Backbone) -> None:
    """The same with the real model and a trained delta."""
    settings = replace(PRESETS["default"], iterations=1, images=2)
    concept = Concept("neon", ("neon",))
    delta = erase(backbone, concept, ["pointillism", "a boat"], settings, trainer=QUIET)
    prompts = ["neon", "a boat"]

    def draw() -> Tensor:
        return backbone.generate(prompts, seeds=0, steps=3, output="latents")

    original, files = draw(), png(backbone.generate(prompts, seeds=0, steps=3))
    with Composition(backbone, [delta]) as composition:
        composition.erase("neon")
        assert not torch.equal(draw(), original)
        composition.restore_all()
        assert torch.equal(draw(), original)
        assert png(backbone.generate(prompts, seeds=0, steps=3)) == files
    assert torch.equal(draw(), original)


# ---------------------------------------------------------------- coming and going
def test_the_block_ends_in_the_state_before_even_by_an_exception() -> None:
    backbone = shared()
    with composed(backbone) as composition:
        composition.set({"neon": 0.5})
        before = latents(backbone)
        with pytest.raises(ZeroDivisionError), composition.erased("ink", "oil"):
            raise ZeroDivisionError
        assert composition.strengths == {"neon": 0.5}
        assert torch.equal(latents(backbone), before)


def test_closing_leaves_the_pipeline_as_it_was() -> None:
    backbone = fresh()
    original = latents(backbone)
    state = {name: tensor.clone() for name, tensor in backbone.unet.state_dict().items()}
    modules = [type(module) for module in backbone.unet.modules()]
    for _ in range(2):  # once more after it was taken off
        composition = composed(backbone)
        composition.erase("neon", "oil")
        assert not torch.equal(latents(backbone), original)
        assert list(backbone.unet.state_dict()) != list(state)
        composition.close()
        composition.close()  # closing what is closed does nothing
        after = backbone.unet.state_dict()
        assert list(after) == list(state)
        assert all(torch.equal(after[name], state[name]) for name in state)
        assert [type(module) for module in backbone.unet.modules()] == modules
        assert not getattr(backbone.unet, "peft_config", {})
        assert torch.equal(latents(backbone), original)


def test_a_failed_block_takes_the_adapters_off() -> None:
    backbone = shared()
    with pytest.raises(ZeroDivisionError), composed(backbone):
        raise ZeroDivisionError
    assert backbone.composition is None


def test_a_new_composition_takes_the_place_of_the_one_before() -> None:
    """As when a notebook's cell is run again."""
    backbone = shared()
    original = latents(backbone)
    first = composed(backbone)
    first.erase("neon")
    with Composition(backbone, three_deltas()[1:]) as second:
        assert torch.equal(latents(backbone), original)
        with refused("not on the pipeline now"):
            first.erase("neon")
        first.close()  # does not reach into the second
        second.erase("ink")
        assert not torch.equal(latents(backbone), original)
    assert torch.equal(latents(backbone), original)


def test_attaching_touches_neither_the_random_state_nor_the_fingerprint() -> None:
    backbone = fresh()
    fingerprint, state = shared().fingerprint, torch.get_rng_state()
    with composed(backbone):
        assert backbone.fingerprint == fingerprint  # computed with the adapters on
        assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------- contradictions
def test_two_deltas_that_do_not_keep_one_another_are_refused_unless_forced() -> None:
    backbone = shared()
    careless = erase(backbone, NEON, KEPT, EXACT)  # knows nothing of ink
    ink = three_deltas()[1]
    assert keeps(ink, careless)
    assert not keeps(careless, ink)
    with Composition(backbone, [careless, ink]) as composition:
        composition.erase("ink")
        with refused("'neon'", "without keeping 'ink'", "force=True"):
            composition.erase("neon")
        assert composition.active == ("ink",)  # as it was
        composition.set(["neon"])  # one at a time is no contradiction
    original = noise_prediction(backbone, "ink")
    with Composition(backbone, [careless, ink], force=True) as composition:
        with composition.erased("neon"):  # the contradiction is real
            assert changed(original, noise_prediction(backbone, "ink")) > 1e-3
        composition.erase("neon", "ink")
        assert composition.active == ("ink", "neon")


def test_a_prompt_of_both_concepts_needs_no_keeping() -> None:
    backbone = shared()
    both = "neon ink"
    neon, ink = (Concept(concept.name, (*concept.prompts, both)) for concept in (NEON, INK))
    deltas = [
        erase(backbone, neon, (*KEPT, "ink"), EXACT),
        erase(backbone, ink, (*KEPT, "neon"), EXACT),
    ]
    with Composition(backbone, deltas) as composition:
        composition.erase("neon", "ink")
        assert composition.active == ("ink", "neon")


# ---------------------------------------------------------------- dense deltas
WEIGHT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
BIAS = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.bias"


def dense(backbone: Backbone, *paths: str, seed: int = 0) -> DenseDelta:
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(backbone.unet.named_parameters())
    changes = {p: torch.randn(parameters[p].shape, generator=generator) for p in paths}
    made = replace(three_deltas()[0].provenance, base=backbone.fingerprint)
    return DenseDelta(changes, made)


def weights(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in backbone.unet.named_parameters()}


def unchanged(backbone: Backbone, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(before[path], value) for path, value in weights(backbone).items())


@pytest.mark.parametrize("which", [[WEIGHT], [WEIGHT, BIAS], None], ids=["one", "two", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float", "half"])
def test_a_dense_delta_is_added_in_float32_and_every_bit_comes_back(
    which: list[str] | None, dtype: torch.dtype
) -> None:
    backbone = fresh()
    seen, drawn = noise_prediction(backbone, "neon"), latents(backbone)
    backbone.pipe.unet.to(dtype)
    before = weights(backbone)
    change = dense(backbone, *(which or before))
    with applied(backbone, change) as live:
        assert live is backbone
        for path, value in weights(backbone).items():
            expected = before[path].float() + change.changes.get(path, 0.0)
            assert torch.equal(value, expected.to(dtype))
        if dtype == torch.float32:
            assert not torch.equal(noise_prediction(backbone, "neon"), seen)
    assert unchanged(backbone, before)
    assert backbone.composition is None
    if dtype == torch.float32:
        assert torch.equal(noise_prediction(backbone, "neon"), seen)
        assert torch.equal(latents(backbone), drawn)
    with pytest.raises(KeyboardInterrupt), applied(backbone, change):
        raise KeyboardInterrupt
    assert unchanged(backbone, before)


def test_subtracting_would_not_give_the_bits_back() -> None:
    """The negative control of the test above: why the tensors are swapped."""
    change, original = dense(shared(), WEIGHT), weights(shared())[WEIGHT]
    assert not torch.equal((original + change.changes[WEIGHT]) - change.changes[WEIGHT], original)


def test_several_dense_deltas_are_added_up() -> None:
    backbone = fresh()
    a, b, before = dense(backbone, WEIGHT), dense(backbone, WEIGHT, BIAS, seed=1), weights(backbone)
    with applied(backbone, a, b):
        expected = before[WEIGHT] + (a.changes[WEIGHT] + b.changes[WEIGHT])
        assert torch.equal(weights(backbone)[WEIGHT], expected)
    assert unchanged(backbone, before)


def test_nothing_else_may_be_attached_beside_a_dense_delta() -> None:
    backbone = fresh()
    before, change = weights(backbone), dense(backbone, WEIGHT)
    with applied(backbone, change), refused("attached"), applied(backbone, change):
        pass
    with composed(backbone), refused("adapters"), applied(backbone, change):
        pass
    with applied(backbone, change), composed(backbone):  # the composition takes it off
        layer = backbone.unet.get_submodule(WEIGHT.removesuffix(".weight"))
        assert torch.equal(layer.base_layer.weight, before[WEIGHT])
    assert unchanged(backbone, before)
    with refused("another base model"), applied(fresh(seed=1), change):
        pass
    wrong = DenseDelta({WEIGHT: torch.zeros(1, 1)}, change.provenance)
    with refused(WEIGHT, "[1, 1]"), applied(backbone, wrong):
        pass


# ---------------------------------------------------------------- bad input
def test_what_cannot_be_composed_is_refused_and_nothing_is_attached() -> None:
    backbone = shared()
    neon = three_deltas()[0]
    keys = list(backbone.unet.state_dict())
    with refused("Two deltas", "'neon'"):
        Composition(backbone, [neon, neon])
    with refused("'neon'", "another base model"):
        Composition(fresh(seed=1), [neon])
    assert list(backbone.unet.state_dict()) == keys
    with composed(backbone) as composition:
        with refused("'water'", "attached: ink, neon, oil"):
            composition.erase("water")
        with refused("'water'", "nothing to restore"):
            composition.restore("water")
        with refused("strength of 'neon' = nan"):
            composition.erase("neon", strength=float("nan"))
        assert composition.active == ()
        composition.set("neon")  # one name is one name, not four letters
        assert composition.active == ("neon",)
