"""Stable Diffusion's architectures: what the parts of 1.x, 2.x and XL are, by published configs.

A single checkpoint says nothing of its shape, so `sepme.loading` looks it up here. With random
weights the same configs stand in for the real model where only its shape matters.
"""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    ModelMixin,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
)

from sepme._checks import choose
from sepme._data import WeightsFile

__all__ = ["random_pipeline"]

Pipeline: TypeAlias = StableDiffusionPipeline | StableDiffusionXLPipeline
_SD: dict[str, type[ModelMixin] | type[PreTrainedModel]] = {
    "text_encoder": CLIPTextModel,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}
#: The parts that hold weights, by kind of pipeline. Each text encoder has a tokenizer.
PARTS = {
    StableDiffusionPipeline: _SD,
    StableDiffusionXLPipeline: _SD | {"text_encoder_2": CLIPTextModelWithProjection},
}


def kind_of(pipe: object) -> type[Pipeline] | None:
    """Which of the kinds a pipeline is, or None."""
    return next((kind for kind in PARTS if isinstance(pipe, kind)), None)


def text_parts(kind: type[Pipeline]) -> dict[str, str]:
    """The names of a kind's text encoders, each with its tokenizer's."""
    encoders = (name for name in PARTS[kind] if name.startswith("text_encoder"))
    return {name: name.replace("text_encoder", "tokenizer") for name in encoders}


def assembled(kind: type[Pipeline], **parts: Any) -> Pipeline:
    """A pipeline that gives back what it draws: neither checked for safety nor watermarked."""
    if kind is StableDiffusionXLPipeline:
        return kind(**parts, add_watermarker=False)
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return kind(**parts, **nothing)


# ------------------------------------------------------------------ the published configs
@dataclass(frozen=True)
class Shape:
    """One architecture: what is published of it and is not what diffusers takes for granted."""

    kind: type[Pipeline]
    parts: Mapping[str, Mapping[str, Any]]  #: the config of every part that holds weights
    scheduler: SchedulerMixin  #: the one that it is published with
    pads: tuple[str, ...]  #: what each tokenizer fills a prompt up with

    @property
    def width(self) -> int:
        """d_in, of a text embedding."""
        return self.parts["unet"]["cross_attention_dim"]

    @property
    def tokenizers(self) -> dict[str, CLIPTokenizer]:
        names = text_parts(self.kind).values()
        return {name: clip_tokenizer(pad) for name, pad in zip(names, self.pads, strict=True)}


def _clip(width: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
    """The config of a text encoder. The vocabulary is what transformers takes for granted."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width}
    return sizes | {"num_hidden_layers": layers, "num_attention_heads": heads, **others}


_LARGE = _clip(768, 12, 12)  # CLIP ViT-L/14
_HUGE = _clip(1024, 23, 16, hidden_act="gelu")  # OpenCLIP ViT-H/14 without its last layer
_GIANT = _clip(1280, 32, 20, hidden_act="gelu", projection_dim=1280)  # OpenCLIP ViT-bigG/14
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
_VAE_XL = _VAE | {"scaling_factor": 0.13025, "sample_size": 1024, "force_upcast": True}
_UNET = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2}
_UNET_14 = _UNET | {"cross_attention_dim": 768, "sample_size": 64}
_UNET_21 = _UNET | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}
_UNET_21 |= {"use_linear_projection": True, "sample_size": 96}
_UNET_XL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,  # six numbers of 256, and 1280 of the text
    "sample_size": 128,
}
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_NOISE = _BETAS | {"steps_offset": 1}
_END = "<|endoftext|>"
SHAPES: Mapping[str, Shape] = {
    "sd14": Shape(
        StableDiffusionPipeline,
        {"text_encoder": _LARGE, "unet": _UNET_14, "vae": _VAE},
        PNDMScheduler(**_NOISE, skip_prk_steps=True, set_alpha_to_one=False),
        (_END,),
    ),
    "sd21": Shape(
        StableDiffusionPipeline,
        {"text_encoder": _HUGE, "unet": _UNET_21, "vae": _VAE},
        DDIMScheduler(
            **_NOISE, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction"
        ),
        ("!",),
    ),
    "sdxl": Shape(
        StableDiffusionXLPipeline,
        {"text_encoder": _LARGE, "text_encoder_2": _GIANT, "unet": _UNET_XL, "vae": _VAE_XL},
        EulerDiscreteScheduler(**_NOISE, timestep_spacing="leading"),
        (_END, "!"),
    ),
}

#: The merges that CLIP's vocabulary is made of. Nothing else of the package is read.
CLIP_MERGES = WeightsFile(
    "CLIP's tokenizer",
    "open-clip-torch==3.3.0",
    "open_clip/bpe_simple_vocab_16e6.txt.gz",
    "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
)


def clip_tokenizer(pad: str = _END) -> CLIPTokenizer:
    """CLIP's tokenizer, from the file of merges that its authors published.

    Args:
        pad: what a prompt is filled up with; "!" for the text encoders that OpenCLIP trained.

    Raises:
        SepmeError: the package that carries the file is not installed.
    """
    letters = sorted(ByteLevel.alphabet())  # one for each byte
    letters += [f"{letter}</w>" for letter in letters]
    lines = gzip.decompress(CLIP_MERGES.read()).decode().splitlines()[1:]
    # CLIP's 49,408 tokens: the letters, as many merges as fit, and the two that follow.
    merges = [tuple(line.split()) for line in lines[: 49408 - len(letters) - 2]]
    tokens = [*letters, *map("".join, merges), "<|startoftext|>", _END]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        pad_token=pad,
        unk_token=_END,
        model_max_length=77,
    )


# ------------------------------------------------------------------ random weights
#: What is smaller in a miniature. All layers of the UNet and all widths of the text stay.
_CHANNELS = (8, 16, 24, 24)
_FEW = {"num_hidden_layers": 2, "intermediate_size": 64}
_SMALL: Mapping[str, Mapping[str, Any]] = {
    "text_encoder": _FEW,
    "text_encoder_2": _FEW,
    "unet": {"attention_head_dim": 4, "norm_num_groups": 4, "sample_size": 8},
    "vae": {"block_out_channels": (8,) * 4, "norm_num_groups": 4, "sample_size": 64},
}
#: How much larger some weights' deviation is: a prompt has to change what is predicted, and the
#: output follows a SiLU, which leaves about half of a unit normal.
_GAINS = {".attn2.": 1.5, "conv_out": 2.0}


def miniature_of(shape: Shape) -> Shape:
    """The same layers under the same names, the text as wide; channels and depth are few."""
    parts = {name: {**config, **_SMALL[name]} for name, config in shape.parts.items()}
    levels = len(shape.parts["unet"]["block_out_channels"])
    parts["unet"]["block_out_channels"] = _CHANNELS[:levels]
    return replace(shape, parts=parts)


def random_pipeline(
    name: str, *, miniature: bool = False, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Pipeline:
    """A pipeline of a published shape with random weights: it draws noise, as fast as the real one.

    All activations are of order one, and the predicted noise depends on the prompt. The same seed
    and number type give the same weights.

    Args:
        name: "sd14", "sd21" (768 pixels, v-prediction) or "sdxl" (base).
        miniature: few channels, latents of 8x8 and text encoders of two layers. The UNet's layers
            and the widths of the text are the real ones.
        dtype: what the weights are drawn in. In half precision the parts of "sdxl" take 6.9 GB.

    Raises:
        SepmeError: no such shape, or the package with CLIP's vocabulary is not installed.
    """
    choose(tuple(SHAPES), name=name)
    shape = miniature_of(SHAPES[name]) if miniature else SHAPES[name]
    rng = torch.Generator().manual_seed(seed)
    kinds = PARTS[shape.kind].items()
    parts = {part: _random(kind, shape.parts[part], rng, dtype) for part, kind in kinds}
    scheduler = type(shape.scheduler).from_config(shape.scheduler.config)
    return assembled(shape.kind, **parts, **shape.tokenizers, scheduler=scheduler)


def _random(
    kind: type[nn.Module], config: Mapping[str, Any], rng: torch.Generator, dtype: torch.dtype
) -> nn.Module:
    """One part: N(0, gain^2 / fan-in) for what multiplies; norms and biases as they start."""
    with init_empty_weights():  # nothing is drawn that would be overwritten
        by_config = issubclass(kind, PreTrainedModel)
        part = kind(kind.config_class(**config)) if by_config else kind(**config)
    for path, module in part.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            values = torch.empty(parameter.shape, dtype=dtype)
            if values.ndim == 1:
                values.fill_(float(name == "weight"))
            else:
                fan_in = 1 if isinstance(module, nn.Embedding) else values[0].numel()
                gain = next((g for key, g in _GAINS.items() if key in f"{path}.{name}"), 1.0)
                values.normal_(std=gain / fan_in**0.5, generator=rng)
            setattr(module, name, nn.Parameter(values, requires_grad=False))
    return part.eval()
