"""Whose deltas a model takes follows its weights, whatever is done to them; so does the scheduler.

What is done happens on the pipeline, which belongs to its user, and not through the backbone.
"""

from collections.abc import Callable

import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    RePaintScheduler,
    TCDScheduler,
)
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from sepme.composition import Composition, applied
from sepme.delta import DenseDelta
from sepme.erasure import erase
from sepme.loading import as_ddim
from sepme.model import Backbone
from sepme.probe import Probe
from tests.borders.test_pipeline import lora
from tests.miniature import EXACT, NEON, QUICK, QUIET, fresh, latents, others, three_deltas
from tests.refusals import refused
from tests.tiny import make_tiny_pipeline

DELTA = three_deltas()[0]


def fuse(backbone: Backbone, part: str, ends: tuple[str, ...]) -> None:
    state = lora(getattr(backbone.pipe, part), part, ends, 1e-2)
    backbone.pipe.load_lora_weights(state, adapter_name="style")
    backbone.pipe.fuse_lora(components=[part])


def fuse_and_unload(part: str, *ends: str) -> Callable[[Backbone], None]:
    def change(backbone: Backbone) -> None:
        fuse(backbone, part, ends)
        backbone.pipe.unload_lora_weights()

    return change


def weight(backbone: Backbone) -> nn.Parameter:
    return backbone.unet.get_parameter("conv_in.weight")


def others_part(part: str) -> Callable[[Backbone], None]:
    return lambda backbone: setattr(backbone.pipe, part, getattr(make_tiny_pipeline(seed=1), part))


def swap_rows(values: nn.Parameter) -> None:
    """Which leaves their sum as it is."""
    values.data[[3, 7]] = values.data[[7, 3]]


#: What makes another model of a pipeline, after it was wrapped and its fingerprint taken.
CHANGES: dict[str, Callable[[Backbone], object]] = {
    "fuses a LoRA of self-attention": fuse_and_unload("unet", "attn1.to_q"),
    "fuses a LoRA of cross-attention": fuse_and_unload("unet", "attn2.to_k", "attn2.to_v"),
    "fuses a LoRA of the text encoder": fuse_and_unload("text_encoder", "q_proj"),
    "replaces the UNet": others_part("unet"),
    "replaces the text encoder": others_part("text_encoder"),
    "writes into the data": lambda backbone: weight(backbone).data[0, 0].add_(1e-3),
    "replaces the data": lambda backbone: setattr(weight(backbone), "data", weight(backbone) * 1.1),
    "turns the sign": lambda backbone: weight(backbone).data.neg_(),
    "loads a state": lambda backbone: backbone.unet.conv_in.load_state_dict(
        make_tiny_pipeline(seed=1).unet.conv_in.state_dict()
    ),
    "swaps two words": lambda backbone: swap_rows(
        backbone.pipe.text_encoder.get_input_embeddings().weight
    ),
    "swaps two keys": lambda backbone: swap_rows(
        backbone.unet.get_parameter("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    ),
    "mirrors a kernel": lambda backbone: weight(backbone).data.copy_(weight(backbone).flip(3)),
    "swaps two biases": lambda backbone: swap_rows(backbone.unet.get_parameter("conv_in.bias")),
    "rounds it": lambda backbone: backbone.pipe.unet.to(torch.float16).to(torch.float32),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_model_is_another(what: str) -> None:
    backbone = fresh()
    before = backbone.fingerprint
    CHANGES[what](backbone)
    assert backbone.fingerprint != before
    again = Backbone(backbone.pipe, "wrapped again", guidance=4.0, steps=3)
    assert backbone.fingerprint == again.fingerprint
    if what != "rounds it":  # which float16 copies share with it
        with refused("another base model"):
            Composition(backbone, [DELTA])
    assert erase(backbone, NEON, others(NEON), EXACT).base == backbone.fingerprint


@pytest.mark.parametrize("what", sorted(CHANGES.keys() - {"rounds it"}))
def test_a_model_that_is_changed_while_a_delta_is_on_is_not_drawn(what: str) -> None:
    backbone = fresh()
    composition = Composition(backbone, [DELTA])
    composition.restore_all()
    CHANGES[what](backbone)
    latents(backbone)  # with nothing erased it is the user's model, as they made it
    with refused("were changed since"):
        composition.erase("neon")
        latents(backbone)
    composition.close()
    latents(backbone)


def test_what_changes_nothing_keeps_the_identity_and_is_not_hashed_again(monkeypatch) -> None:
    backbone, twin = fresh(), make_tiny_pipeline()
    before, hashed = backbone.fingerprint, []
    monkeypatch.setattr("sepme.model._digest", lambda *_: hashed.append(1) or "")
    backbone.pipe.unet, backbone.pipe.text_encoder = twin.unet, twin.text_encoder
    backbone.pipe.load_lora_weights(lora(backbone.unet, "unet", ("to_q",)), adapter_name="style")
    with Composition(backbone, [DELTA]) as composition:
        composition.erase("neon")
        latents(backbone)
        assert backbone.fingerprint == before
    for half in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", half):
            assert backbone.fingerprint == before
    assert hashed == []


def test_a_dense_delta_that_is_on_leaves_the_identity_of_the_original() -> None:
    backbone = fresh()
    before, drawn = backbone.fingerprint, latents(backbone)
    changes = {f"{path}.weight": DELTA.dense(path) for path in DELTA.paths}
    with applied(backbone, DenseDelta(changes, DELTA.provenance)):
        assert backbone.fingerprint == before
        assert not torch.equal(latents(backbone), drawn)
        unet, backbone.pipe.unet = backbone.pipe.unet, make_tiny_pipeline(seed=1).unet
        replaced = latents(backbone)
    assert torch.equal(latents(backbone), replaced)  # nothing is written into another UNet
    backbone.pipe.unet = unet
    assert torch.equal(latents(backbone), drawn)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize(
    "does",
    [
        lambda backbone: erase(backbone, NEON, others(NEON), EXACT),
        lambda backbone: Composition(backbone, [DELTA]),
        lambda backbone: Probe.draw(backbone, ["neon"], 2),
        lambda backbone: backbone.fingerprint,
    ],
)
def test_nothing_is_asked_of_weights_that_something_is_fused_into(part: str, does) -> None:
    backbone = fresh()
    fuse(backbone, part, ("attn1.to_q",) if part == "unet" else ("q_proj",))
    before = weight(backbone).clone()
    with refused("fused", "unfuse_lora"):
        does(backbone)
    assert torch.equal(weight(backbone), before)


# ---------------------------------------------------------------------- on the text encoder
def adapted(name: str = "words", layer: str = "q_proj", **how: object) -> Backbone:
    """With an adapter on the text encoder, of the same weights for the same layer."""
    backbone = fresh()
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=[layer], **{"init_lora_weights": False} | how)
    backbone.pipe.text_encoder.add_adapter(config, adapter_name=name)
    return backbone


@pytest.mark.parametrize(
    ("layer", "how", "part"),
    [
        ("q_proj", {}, "lora_A"),
        ("q_proj", {"use_dora": True, "init_lora_weights": True}, "magnitude"),
        ("q_proj", {"lora_bias": True}, "lora_B.words.bias"),
        ("token_embedding", {}, "lora_embedding_A"),
        ("token_embedding", {}, "lora_embedding_B"),
    ],
)
def test_whatever_part_of_an_adapter_changes_embeddings_is_seen(
    layer: str, how: dict, part: str
) -> None:
    backbone = adapted(layer=layer, **how)
    before, embedding = backbone.fingerprint, backbone.encode(["neon"])
    assert before != fresh().fingerprint
    (found,) = (p for n, p in backbone.pipe.text_encoder.named_parameters() if part in n)
    found.data.add_(1)
    assert not torch.equal(backbone.encode(["neon"]), embedding)
    assert backbone.fingerprint != before


def test_an_adapter_counts_by_what_it_adds_and_not_by_its_name() -> None:
    backbone = adapted()
    assert adapted("style").fingerprint == backbone.fingerprint
    backbone.pipe.text_encoder.set_adapter("words")
    for layer in backbone.pipe.text_encoder.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale("words", 0)
    assert torch.equal(backbone.encode(["neon"]), fresh().encode(["neon"]))
    assert backbone.fingerprint == fresh().fingerprint
    Composition(backbone, [DELTA]).close()


# ---------------------------------------------------------------------- another scheduler
SCHEDULERS = (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)


def sampled_by(scheduler: type, **how: object) -> Backbone:
    """A scheduler that was set after wrapping."""
    backbone = fresh()
    backbone.pipe.scheduler = scheduler.from_config(backbone.pipe.scheduler.config, **how)
    return backbone


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_seed_decides_a_picture_whatever_the_scheduler_and_the_batch(scheduler: type) -> None:
    backbone = sampled_by(scheduler)
    options = {"steps": 4, "output": "latents"}
    together = backbone.generate(["neon", "ink", "neon"], [3, 4, 3], **options)
    torch.manual_seed(99)  # of which nothing is drawn
    torch.testing.assert_close(together[2], together[0], rtol=1e-3, atol=1e-3)
    alone = backbone.generate(["ink"], 4, **options)[0]
    torch.testing.assert_close(alone, together[1], rtol=1e-3, atol=1e-3)
    assert torch.equal(backbone.generate(["neon", "ink", "neon"], [3, 4, 3], **options), together)
    assert not torch.allclose(backbone.generate(["ink"], 5, **options)[0], alone, rtol=0.1)


def test_an_sde_solver_draws_its_noise_from_the_seed_too() -> None:
    backbone = sampled_by(DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++")
    one, two = (backbone.generate(["ink"], 4, steps=4, output="latents") for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_noise_is_added_by_its_equation_whatever_the_scheduler(scheduler: type) -> None:
    plain, backbone = fresh(), sampled_by(scheduler)
    x_0, noise = torch.randn(2, 3, *plain.latent_shape)
    t = torch.tensor([0, 500, 999])
    wanted = as_ddim(plain.pipe.scheduler).add_noise(x_0, noise, t)
    assert torch.equal(plain.add_noise(x_0, noise, t), wanted)
    torch.testing.assert_close(backbone.add_noise(x_0, noise, t), wanted)


@pytest.mark.parametrize("scheduler", [EulerAncestralDiscreteScheduler, HeunDiscreteScheduler])
def test_erasing_and_counting_steps_work_with_another_scheduler(scheduler: type) -> None:
    backbone, seen = sampled_by(scheduler), []
    erase(backbone, NEON, others(NEON), QUICK, trainer=QUIET)
    backbone.generate(["neon", "ink"], steps=3, batch=1, on_step=lambda *at: seen.append(at))
    assert seen == [(n, len(seen)) for n in range(1, len(seen) + 1)]


@pytest.mark.parametrize(
    ("scheduler", "how", "steps"),
    [
        (LCMScheduler, {}, 51),
        (TCDScheduler, {}, 100),
        *((PNDMScheduler, {"skip_prk_steps": False}, steps) for steps in (1, 2, 3)),
        (RePaintScheduler, {}, 4),
        (CogVideoXDPMScheduler, {}, 4),
    ],
)
def test_steps_that_a_scheduler_does_not_take_are_said(
    scheduler: type, how: dict, steps: int
) -> None:
    with refused(scheduler.__name__, f"{steps} steps", "DDIMScheduler"):
        sampled_by(scheduler, **how).generate(["neon"], steps=steps)


@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler, EDMEulerScheduler])
def test_a_scheduler_of_other_models_is_refused(scheduler: type) -> None:
    backbone = fresh()
    backbone.pipe.scheduler = scheduler()
    for does in (latents, lambda backbone: erase(backbone, NEON, others(NEON), QUICK)):
        with refused(scheduler.__name__, "DDIMScheduler"):
            does(backbone)
