"""Composing and restoring: any subset, in any order, back and forth, and nothing remains."""

import random
from dataclasses import replace
from itertools import chain, combinations, permutations

import pytest
import torch
from torch import Tensor

from sepme.composition import Composition, keeps
from sepme.concept import Concept
from sepme.erasure import PRESETS, erase
from sepme.model import Backbone
from tests.miniature import (
    CONCEPTS,
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
    others,
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
        with refused("'neon'", "attached: none"):
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


def test_a_composition_of_nothing_does_nothing() -> None:
    backbone = shared()
    with Composition(backbone, []) as composition:
        composition.set([])
        composition.restore_all()
        assert composition.active == ()


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
    with Composition(backbone, [careless, ink], force=True) as composition:
        composition.erase("neon", "ink")
        assert composition.active == ("ink", "neon")


def test_the_contradiction_is_real() -> None:
    """The control: the delta that is refused does disturb the other concept."""
    backbone = shared()
    careless = erase(backbone, NEON, KEPT, EXACT)
    original = noise_prediction(backbone, "ink")
    with Composition(backbone, [careless]) as composition, composition.erased("neon"):
        assert changed(original, noise_prediction(backbone, "ink")) > 1e-3


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
        with refused("strength nan", "'neon'"):
            composition.erase("neon", strength=float("nan"))
        assert composition.active == ()
        composition.set("neon")  # one name is one name, not four letters
        assert composition.active == ("neon",)


def test_a_pipeline_with_adapters_of_somebody_else_is_refused() -> None:
    backbone = fresh()
    state = three_deltas()[0].lora_state_dict()
    backbone.unet.load_lora_adapter(state, prefix="unet", adapter_name="crayons")
    with refused("adapters crayons", "unload_lora_weights"):
        composed(backbone)
    backbone.pipe.unload_lora_weights()
    composed(backbone).close()


def test_every_delta_keeps_what_it_was_asked_to() -> None:
    for concept, delta in zip(CONCEPTS, three_deltas(), strict=True):
        assert delta.kept == ("", *others(concept))
        assert delta.forgotten == concept.prompts
