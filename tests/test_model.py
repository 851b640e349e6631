"""The pipeline as the method sees it: text in, noise predictions and pictures out."""

import json
from pathlib import Path

import pytest
import torch

from sepme._layers import LeanConv2d
from sepme.artefact import same_model
from sepme.composition import Composition
from sepme.model import Backbone
from tests.miniature import (
    NAMES,
    PREDICTIONS,
    fresh,
    latents,
    noise_prediction,
    shared,
    three_deltas,
)
from tests.tiny import TOKENS, WIDTH
from tests.tolerance import assert_close


# ---------------------------------------------------------------- loading
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature model on the disk."""
    path = tmp_path_factory.mktemp("models") / "miniature"
    fresh("v_prediction").pipe.save_pretrained(path)
    return path


def test_a_folder_gives_the_same_model_back(folder: Path) -> None:
    loaded, original = Backbone.load(folder, device="cpu"), fresh("v_prediction")
    assert loaded.name == "miniature"
    assert loaded.prediction_type == "v_prediction"
    assert loaded.fingerprint == original.fingerprint
    assert (loaded.guidance, loaded.steps) == (7.5, 100)  # the paper's
    loaded.guidance, loaded.steps = original.guidance, original.steps
    assert torch.equal(latents(loaded), latents(original))


def test_a_large_model_has_its_channels_last_and_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = fresh()
    monkeypatch.setattr("sepme.model.LARGE", 0)
    moved = fresh()
    weights = [backbone.unet.conv_in.weight for backbone in (plain, moved)]
    last = [weight.is_contiguous(memory_format=torch.channels_last) for weight in weights]
    assert last == [False, True]
    assert [type(b.unet.conv_in) is LeanConv2d for b in (plain, moved)] == [False, True]
    assert moved.fingerprint == plain.fingerprint
    assert_close(noise_prediction(moved, NAMES[0]), noise_prediction(plain, NAMES[0]))
    before = noise_prediction(moved, NAMES[0])
    with Composition(moved, three_deltas()) as composition:
        composition.erase(NAMES[0])
        assert not torch.equal(noise_prediction(moved, NAMES[0]), before)
        composition.restore(NAMES[0])
        assert torch.equal(noise_prediction(moved, NAMES[0]), before)


def test_a_folder_may_say_how_it_is_to_be_sampled(folder: Path) -> None:
    file = folder / "generation.json"
    file.write_text(json.dumps({"guidance_scale": 4, "num_inference_steps": 25}))
    try:
        loaded = Backbone.load(folder, device="cpu")
    finally:
        file.unlink()
    assert (loaded.guidance, loaded.steps) == (4.0, 25)


def test_the_shipped_model_says_what_it_is(backbone: Backbone) -> None:
    assert backbone.prediction_type in ("epsilon", "v_prediction")
    assert backbone.encode(["neon"]).shape == (1, backbone.tokens, backbone.d_in)
    assert len(backbone.projections()) == 2 * len(
        [n for n, _ in backbone.unet.named_modules() if n.endswith("attn2")]
    )
    image = backbone.generate(["neon"], steps=1)
    assert image.shape == (1, 3, 64, 64)


# ---------------------------------------------------------------- what it is made of
def test_the_fingerprint_is_of_the_weights_and_of_nothing_else() -> None:
    backbone = fresh()
    assert backbone.fingerprint == shared().fingerprint
    assert len(backbone.fingerprint) == 64
    other = fresh()
    weight = next(iter(other.projections().values())).weight
    weight.data[0, 0] *= 1.01
    assert not same_model(other.fingerprint, backbone.fingerprint)  # one weight, by one percent


def test_the_layers_that_see_only_text_are_found_and_counted() -> None:
    backbone = shared()
    layers, weights = backbone.projections(), backbone.cross_attention()
    assert len(layers) == 2 * 4
    assert all(path.endswith(("attn2.to_k", "attn2.to_v")) for path in layers)
    assert all(layer.in_features == WIDTH == backbone.d_in for layer in layers.values())
    assert len(weights) == 4 * 4
    assert all(torch.equal(weights[path], layer.weight) for path, layer in layers.items())


def test_with_adapters_on_it_still_finds_the_original_layers() -> None:
    backbone = fresh()
    layers, weights = backbone.projections(), backbone.cross_attention()
    original = noise_prediction(backbone, "neon")
    with Composition(backbone, three_deltas()) as composition, composition.erased(*NAMES):
        assert backbone.projections() == layers
        assert list(backbone.cross_attention()) == list(weights)
        with backbone.original():
            assert torch.equal(noise_prediction(backbone, "neon"), original)
        erased = noise_prediction(backbone, "neon")
        assert not torch.equal(erased, original)
        with pytest.raises(ZeroDivisionError), backbone.original():
            raise ZeroDivisionError
        assert torch.equal(noise_prediction(backbone, "neon"), erased)


# ---------------------------------------------------------------- text and noise
def test_embeddings_have_the_models_length_and_do_not_depend_on_their_neighbours() -> None:
    backbone = shared()
    many = ["neon", "", "a very long prompt of more words than it can hold", *["boat"] * 70]
    embeddings = backbone.encode(many)
    assert embeddings.shape == (73, TOKENS, WIDTH)
    assert not embeddings.requires_grad
    for index in (0, 1, 2, 72):
        assert_close(embeddings[index], backbone.encode([many[index]])[0])
    assert_close(backbone.encode("neon"), embeddings[:1])  # one prompt is one prompt
    assert_close(embeddings[0, 0], embeddings[1, 0])  # all share their first token


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_epsilon_is_the_noise_whatever_the_model_predicts(prediction: str) -> None:
    """If the UNet's output is right for (x_0, noise), epsilon is that noise."""
    backbone = shared(prediction)
    x_t, t = torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    embedding = backbone.encode(["neon", "boat", ""])
    with torch.no_grad():
        output = backbone.unet(x_t, t, embedding).sample
        eps = backbone.epsilon(x_t, t, embedding)
    a = backbone.pipe.scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    expected = output if prediction == "epsilon" else a.sqrt() * output + (1 - a).sqrt() * x_t
    assert_close(eps, expected)


def test_noise_is_added_as_the_schedule_says() -> None:
    backbone, t = shared(), torch.tensor([3, 700])
    x_0, noise = torch.randn(2, 2, 4, 8, 8)
    a = backbone.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    expected = a.sqrt() * x_0 + (1 - a).sqrt() * noise
    assert_close(backbone.add_noise(x_0, noise, t), expected)


def test_other_weights_stand_in_for_one_call_and_carry_gradients() -> None:
    backbone = shared()
    path, layer = next(iter(backbone.projections().items()))
    original = noise_prediction(backbone, "neon")
    x_t, t, embedding = torch.randn(1, 4, 8, 8), torch.tensor([500]), backbone.encode(["neon"])
    weight = (2 * layer.weight.detach()).requires_grad_()
    changed = backbone.epsilon(x_t, t, embedding, {path: weight})
    changed.square().sum().backward()
    assert weight.grad.ne(0).any()
    assert all(parameter.grad is None for parameter in backbone.unet.parameters())
    assert torch.equal(noise_prediction(backbone, "neon"), original)
    other = fresh()
    other.projections()[path].weight.data.mul_(2)
    with torch.no_grad():
        assert_close(changed.detach(), other.epsilon(x_t, t, embedding))


# ---------------------------------------------------------------- pictures
def test_a_picture_depends_on_its_prompt_and_seed_and_on_nothing_else() -> None:
    backbone, prompts = shared(), ["neon", "boat", "", "ink", "house"]
    pictures = backbone.generate(prompts, seeds=3)
    assert pictures.shape == (5, 3, 32, 32)
    assert pictures.device.type == "cpu"
    assert 0 <= float(pictures.min()) < float(pictures.max()) <= 1
    state = torch.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(backbone.generate(prompts, seeds=[3, 4, 5, 6, 7]), pictures)
    torch.set_rng_state(state)
    assert_close(backbone.generate(prompts, seeds=3, batch=2), pictures)
    assert_close(backbone.generate(["ink"], seeds=6), pictures[3:4])
    assert not torch.equal(backbone.generate(["ink"], seeds=7), pictures[3:4])
    assert torch.equal(torch.get_rng_state(), state)


def test_latents_decode_to_the_pictures() -> None:
    backbone = shared()
    drawn = backbone.generate(["neon", "ink"], output="latents")
    assert drawn.shape == (2, *backbone.latent_shape)
    vae = backbone.pipe.vae
    with torch.no_grad():
        decoded = vae.decode(drawn / vae.config.scaling_factor).sample
    pictures = (decoded / 2 + 0.5).clamp(0, 1)
    assert_close(backbone.generate("neon"), pictures[:1])


@pytest.mark.parametrize(("guidance", "steps"), [(0.0, 3), (1.0, 3), (2.5, 2), (None, 3)])
def test_guidance_is_what_multiplies_the_noise_difference(
    guidance: float | None, steps: int
) -> None:
    """Every picture follows `eps_0 + g r`, computed here step by step; also at 0 and at 1."""
    backbone = shared()
    scheduler = backbone.pipe.scheduler
    drawn = backbone.generate("neon", 5, steps=steps, guidance=guidance, output="latents")
    x = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(5))
    scheduler.set_timesteps(steps)
    g = backbone.guidance if guidance is None else guidance
    c, c_0 = backbone.encode(["neon", ""]).split(1)
    for t in scheduler.timesteps:
        with torch.no_grad():
            eps, eps_0 = (backbone.epsilon(x, t[None], e) for e in (c, c_0))
        x = scheduler.step(eps_0 + g * (eps - eps_0), t, x).prev_sample
    assert_close(drawn, x, scale=30.0)


def test_without_guidance_every_prompt_gives_the_empty_prompts_picture() -> None:
    backbone = shared()
    unheard = backbone.generate(["neon", "boat"], [5, 5], guidance=0.0)
    assert torch.equal(unheard[0], unheard[1])
    assert_close(unheard[:1], backbone.generate("", 5))
    assert not torch.equal(unheard[:1], backbone.generate("neon", 5, guidance=1.0))


def test_every_sampling_step_is_reported_and_can_end_the_sampling() -> None:
    backbone, seen = shared(), []

    def stop_at_four(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 4:
            raise InterruptedError

    watched = backbone.generate(["neon"] * 3, batch=2, on_step=lambda *n: seen.append(n))
    assert seen == [(n, 6) for n in range(1, 7)]  # three steps for each of two batches
    assert torch.equal(watched, backbone.generate(["neon"] * 3, batch=2))
    seen.clear()
    with pytest.raises(InterruptedError):
        backbone.generate(["neon"] * 3, batch=2, on_step=stop_at_four)
    assert len(seen) == 4


def read(backbone: Backbone, **how: object) -> int:
    """How often the layers that read the text compute while two pictures are drawn, on average."""
    calls, layers = [], [*backbone.projections().values()]
    hooks = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in layers]
    backbone.generate(["neon", "boat"], batch=1, **how)
    for hook in hooks:
        hook.remove()
    return len(calls) // len(layers)


def test_a_text_is_read_once_for_all_steps() -> None:
    """The same bytes as when each step reads it again, as who is called after each may want it."""
    backbone = fresh()
    with Composition(backbone, three_deltas()) as composition:
        for erased in ((), ("neon", "ink")):
            composition.set(erased)
            again = {"on_step": lambda *_: None}
            assert torch.equal(backbone.generate("neon"), backbone.generate("neon", **again))
            if erased:  # else the layers themselves remember, hooks and all
                assert (read(backbone), read(backbone, **again)) == (2, 2 * backbone.steps)
    assert not any("forward" in vars(module) for module in backbone.unet.modules())


def test_deltas_may_be_switched_between_two_steps() -> None:
    backbone = fresh()
    with Composition(backbone, three_deltas()) as composition:
        original = latents(backbone)

        def late(done: int, _: int) -> None:
            composition.set(["neon"] if done == 1 else composition.active)

        switched = backbone.generate(["neon"], output="latents", on_step=late)
        composition.set(["neon"])
        erased = backbone.generate(["neon"], output="latents")
        composition.restore_all()
        kept = backbone.generate(["neon"], output="latents")
        assert torch.equal(latents(backbone), original)
    assert not torch.equal(switched, kept)
    assert not torch.equal(switched, erased)
