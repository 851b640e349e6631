"""Whatever scheduler a model comes with, it is sampled by the DDIM of its own diffusion process."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from sepme.loading import as_ddim
from sepme.model import Backbone
from tests.refusals import refused
from tests.tiny import make_tiny_pipeline

#: `scheduler/scheduler_config.json` of Stable Diffusion v1.4, as it was published: it names neither
#: the prediction type nor the spacing of the timesteps.
PUBLISHED = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
#: Every class that Stable Diffusion is shipped or used with, and how it spaces timesteps unasked;
#: one of them names no spacing, and is sampled with DDIM's own.
SPACING: dict[type[SchedulerMixin], str] = {
    PNDMScheduler: "leading",
    DDIMScheduler: "leading",
    DDPMScheduler: "leading",
    EulerDiscreteScheduler: "linspace",
    EulerAncestralDiscreteScheduler: "linspace",
    LMSDiscreteScheduler: "linspace",
    HeunDiscreteScheduler: "linspace",
    DPMSolverMultistepScheduler: "linspace",
    DPMSolverSinglestepScheduler: "leading",
    UniPCMultistepScheduler: "linspace",
    DEISMultistepScheduler: "linspace",
    KDPM2DiscreteScheduler: "linspace",
    KDPM2AncestralDiscreteScheduler: "linspace",
}
PROMPTS = ["neon", "a boat"]
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers on numpy
#: What other models are published with: zero terminal SNR and its spacing, v-prediction, SDXL's.
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
ZERO_SNR |= {"timestep_spacing": "trailing"}
OTHERWISE: list[dict[str, Any]] = [
    ZERO_SNR,
    {"timestep_spacing": "leading"},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"trained_betas": torch.linspace(0.001, 0.01, 1000).tolist()},
]


def explicit(**fields: Any) -> DDIMScheduler:
    """What stock diffusers is given: every field of DDIM's that matters."""
    return DDIMScheduler(
        **{
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "trained_betas": None,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "prediction_type": "epsilon",
            "thresholding": False,
            "timestep_spacing": "leading",
            "rescale_betas_zero_snr": False,
            **fields,
        }
    )


def drawn_by_diffusers(scheduler: DDIMScheduler) -> Tensor:
    pipe = make_tiny_pipeline()
    pipe.scheduler = scheduler
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    noise = torch.stack([torch.randn(4, 8, 8, generator=g) for g in generators])
    how = {"num_inference_steps": 7, "guidance_scale": 4.0, "output_type": "latent"}
    return pipe(PROMPTS, latents=noise, **how).images


def drawn_by_us(backbone: Backbone) -> Tensor:
    return backbone.generate(PROMPTS, seeds=5, steps=7, guidance=4.0, output="latents")


def wrapped(scheduler: SchedulerMixin) -> Backbone:
    pipe = make_tiny_pipeline()
    pipe.scheduler = scheduler
    return Backbone(pipe, "tiny")


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("kind", SPACING, ids=lambda kind: kind.__name__)
def test_a_pipeline_with_any_scheduler_draws_as_stock_ddim(
    kind: type[SchedulerMixin], tmp_path: Path
) -> None:
    """A live one, one that was saved, and one whose files say no more than was published."""
    expected = drawn_by_diffusers(explicit(timestep_spacing=SPACING[kind]))
    scheduler = kind.from_config(PUBLISHED)
    assert difference(drawn_by_us(wrapped(scheduler)), expected) < 1e-5

    pipe = make_tiny_pipeline()
    pipe.scheduler = scheduler
    pipe.save_pretrained(tmp_path)
    assert difference(drawn_by_us(Backbone.load(tmp_path, device="cpu")), expected) < 1e-5

    config = tmp_path / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(PUBLISHED | {"_class_name": kind.__name__}))
    assert difference(drawn_by_us(Backbone.load(tmp_path, device="cpu")), expected) < 1e-5


@pytest.mark.parametrize("kind", SPACING, ids=lambda kind: kind.__name__)
def test_what_a_scheduler_says_of_the_process_is_kept(kind: type[SchedulerMixin]) -> None:
    names = inspect.signature(kind).parameters
    understood = [fields for fields in OTHERWISE if fields.keys() <= names.keys()]
    assert understood
    for fields in understood:
        made = as_ddim(kind.from_config(PUBLISHED | fields))
        wanted = explicit(**{"timestep_spacing": SPACING[kind]} | fields)
        assert {**made.config, "_use_default_values": []} == {
            **wanted.config,
            "_use_default_values": [],
        }
        assert torch.equal(made.alphas_cumprod, wanted.alphas_cumprod)


def test_zero_terminal_snr_is_drawn_as_it_says() -> None:
    """Its last alpha is 0, which only v-prediction can start from."""
    backbone = wrapped(EulerDiscreteScheduler.from_config(PUBLISHED | ZERO_SNR))
    assert backbone.alphas_cumprod[-1] == 0
    assert difference(drawn_by_us(backbone), drawn_by_diffusers(explicit(**ZERO_SNR))) < 1e-5


@pytest.mark.parametrize("kind", [PNDMScheduler, EulerDiscreteScheduler])
def test_taking_over_the_config_alone_would_draw_something_else(
    kind: type[SchedulerMixin],
) -> None:
    """The control: these configs name no `clip_sample`, and DDIM's default clips latents."""
    naive = DDIMScheduler.from_config(kind.from_config(PUBLISHED).config)
    assert naive.config.clip_sample
    x_t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    naive.set_timesteps(7)
    right = as_ddim(kind.from_config(PUBLISHED))
    right.set_timesteps(7)
    t = right.timesteps[0]
    steps = [s.step(torch.zeros_like(x_t), t, x_t).prev_sample for s in (naive, right)]
    assert difference(*steps) > 0.5
    expected = drawn_by_diffusers(explicit(timestep_spacing=SPACING[kind]))
    assert difference(drawn_by_diffusers(naive), expected) > 0.1


def test_every_field_of_ddim_is_said() -> None:
    """But those of clipping and thresholding, which are off."""
    made = as_ddim(PNDMScheduler.from_config(PUBLISHED))
    by_default = set(made.config["_use_default_values"])
    assert by_default == {"dynamic_thresholding_ratio", "clip_sample_range", "sample_max_value"}


@pytest.mark.parametrize("end", [True, False])
def test_what_is_said_of_the_last_step_is_kept(end: bool) -> None:
    made = as_ddim(explicit(set_alpha_to_one=end, clip_sample=True, thresholding=True))
    assert made.config.set_alpha_to_one == end
    assert (made.config.clip_sample, made.config.thresholding) == (False, False)


@pytest.mark.parametrize(
    "scheduler",
    [
        EDMEulerScheduler(),
        FlowMatchEulerDiscreteScheduler(),
        EulerDiscreteScheduler(timestep_type="continuous", sigma_min=0.002, sigma_max=700.0),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_another_diffusion_process_is_refused(scheduler: SchedulerMixin) -> None:
    with refused(type(scheduler).__name__, "betas"):
        wrapped(scheduler)
