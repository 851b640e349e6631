"""Where a pipeline comes from: a hub id, a diffusers folder, or one `.safetensors` checkpoint.

What cannot be erased from, or would not be the model that its files hold, is refused here.
"""

import gzip
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    ModelMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_log
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import safe_open
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_log

from sepme._data import WeightsFile
from sepme.artefact import check_whole, read_text, temporary
from sepme.errors import SepmeError, in_words

__all__ = ["load_pipeline"]

#: The parts that hold weights, as Stable Diffusion's pipelines have them.
PARTS: dict[str, type[ModelMixin] | type[PreTrainedModel]] = {
    "text_encoder": CLIPTextModel,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}
#: What a UNet's output may mean.
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
#: Why pipelines of other architectures are refused, by a part that only they have.
OTHERS = {
    "text_encoder_2": "it has a second text encoder, as Stable Diffusion XL does",
    "transformer": "its text and its picture run through the same layers of a transformer, so that "
    "no layer sees the text alone",
    "prior_prior": "it draws from embeddings of pictures",
}


class Sampling(BaseModel):
    """How a model is sampled: `generation.json` in its folder, by default as in the paper."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    guidance_scale: float = Field(7.5, ge=0, allow_inf_nan=False)
    num_inference_steps: int = Field(100, ge=1, le=1000)

    @field_validator("guidance_scale")
    @classmethod
    def _can_be_drawn_with(cls, scale: float) -> float:
        if 0 < scale < 1:
            raise ValueError("guidance is 0, or 1 and more")
        return scale

    @classmethod
    def beside(cls, model: Path) -> "Sampling":
        """Of the model in this folder.

        Raises:
            SepmeError: a `generation.json` of something else.
        """
        file = model / "generation.json"
        try:
            return cls.model_validate_json(read_text(file)) if file.is_file() else cls()
        except (OSError, ValidationError) as error:
            raise SepmeError(
                f"{file} says nothing that can be sampled with ({in_words(error)}): it must be "
                f"JSON like {cls().model_dump_json()}."
            ) from error


# ------------------------------------------------------------------ loading
def best_device() -> torch.device:
    """The accelerator that is there (CUDA, Apple's GPU), else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def load_pipeline(
    model: str | Path, device: str | torch.device | None, dtype: torch.dtype
) -> StableDiffusionPipeline:
    """The pipeline of a diffusers folder, a hub id or one checkpoint, its weights in this type.

    Raises:
        SepmeError: no such place, another kind of pipeline, weights that are missing, incomplete or
            pickled, a checkpoint without CLIP's vocabulary at hand to read prompts with, or a
            device that is not there.
    """
    path = Path(model)
    one_file = path.suffix == ".safetensors" and path.is_file()
    if not one_file:
        _check_place(path)
    with quiet():
        with _refused(path):
            pipe = _from_one_file(path, dtype) if one_file else _from_parts(str(model), dtype)
        try:
            return pipe.to(device or best_device())
        except (RuntimeError, AssertionError) as error:  # torch's answers to a device it lacks
            raise SepmeError(
                f"The device '{device}' is not there for this torch: choose '{best_device()}'."
            ) from error


def _from_parts(model: str, dtype: torch.dtype) -> StableDiffusionPipeline:
    _check_index(model, StableDiffusionPipeline.load_config(model))
    pipe = StableDiffusionPipeline(
        **{name: _part(name, model, dtype) for name in PARTS},
        tokenizer=CLIPTokenizer.from_pretrained(model, subfolder="tokenizer"),
        scheduler=as_ddim(DDIMScheduler.load_config(model, subfolder="scheduler")),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.register_to_config(_name_or_path=model)
    return pipe


def _check_place(path: Path) -> None:
    """Refuse what can be neither a pipeline's folder nor a hub id, before anything is asked for."""
    if (path / "model_index.json").is_file():
        return
    if path.is_dir():
        what = f"The folder '{path}' holds no Stable Diffusion pipeline"
    elif path.exists():
        what = f"'{path}' is a file and no Stable Diffusion pipeline"
    elif path.is_absolute() or len(path.parts) > 2:  # "name" and "owner/name" may be hub ids
        what = f"There is no folder '{path}', and so no Stable Diffusion pipeline in it"
    else:
        return
    raise SepmeError(
        f"{what}: give a folder with a model_index.json, a .safetensors file, or a hub id."
    )


def _check_index(path: str, index: Mapping[str, Any]) -> None:
    """Refuse a pipeline of another kind by what its `model_index.json` lists."""
    own = {name: kind.__name__ for name, kind in PARTS.items()} | {"tokenizer": "CLIPTokenizer"}
    listed = {name: entry for name, entry in index.items() if isinstance(entry, list)}
    for name, entry in listed.items():
        if entry[-1:] != [None] and (why := OTHERS.get(name)):
            raise SepmeError(
                f"'{path}' is a {index.get('_class_name')}: {why}, and sepme edits pipelines of "
                "Stable Diffusion 1.x and 2.x only."
            )
    for name, kind in own.items():
        library, found = [*listed.get(name, ()), None, None][:2]
        if library not in ("diffusers", "transformers") or str(found).removesuffix("Fast") != kind:
            raise SepmeError(
                f"'{path}' holds no Stable Diffusion pipeline, since its {name} is "
                f"{found or 'missing'} where {kind} is needed: give one whose model_index.json "
                "lists it."
            )


def _part(name: str, model: str, dtype: torch.dtype) -> ModelMixin | PreTrainedModel:
    """One part with all its weights, from the files of either number type."""
    variants = ("fp16", None) if dtype == torch.float16 else (None, "fp16")
    for variant in variants:
        try:
            part, info = PARTS[name].from_pretrained(
                model,
                subfolder=name,
                variant=variant,
                torch_dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
            )
            break
        except OSError as error:
            if variant == variants[-1]:
                _refuse_without_weights(Path(model, name), error)
                raise
    if missing := sorted(info["missing_keys"]):
        raise SepmeError(
            f"The {name} of '{model}' lacks {len(missing)} of its weights, first '{missing[0]}': "
            "copy the whole model again."
        )
    return part


def _refuse_without_weights(folder: Path, error: OSError) -> None:
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        how = "only as pickles, which can run code" if any(folder.glob("*.bin")) else "not at all"
        raise SepmeError(
            f"'{folder.parent}' holds the weights of its {folder.name} {how}: give a folder that "
            "diffusers' save_pretrained wrote, with safetensors."
        ) from error


def as_ddim(config: Mapping[str, Any]) -> DDIMScheduler:
    """A DDIM scheduler from the config of any class.

    What it says by default counts as said, since DDIM's defaults are others. What it does not name
    is off in other classes, and on in DDIM's unless it is said: clipping the predicted x_0 to
    [-1, 1] (latents are larger), and an alpha of 1 at the end.
    """
    said = {name: value for name, value in config.items() if name != "_use_default_values"}
    return DDIMScheduler.from_config({"clip_sample": False, "set_alpha_to_one": False} | said)


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Whatever the libraries raise about a foreign file is one sentence about this place."""
    try:
        yield
    except SepmeError:
        raise
    except Exception as error:
        for file in sorted(path.glob("*/*.safetensors") if path.is_dir() else [path]):
            if file.exists():
                check_whole(file)
        what = f"'{path}' holds no Stable Diffusion pipeline that diffusers can load"
        if not path.exists():
            what = f"There is no folder '{path}', nor did the hub give a pipeline of that name"
        raise SepmeError(
            f"{what} ({type(error).__name__}): give a whole pipeline with its model_index.json."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Neither progress bars for small files nor remarks: what is wrong, we say in our own words."""
    libraries = (diffusers_log, transformers_log)
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in libraries]
    for log in libraries:
        log.set_verbosity(CRITICAL)
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, (verbosity, bars) in zip(libraries, before, strict=True):
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()


# ------------------------------------------------------------------ what can be worked with
def check_pipeline(pipe: StableDiffusionPipeline) -> None:
    """Refuse what cannot draw from words, or would draw something else than its files hold.

    Raises:
        SepmeError: another kind of pipeline, a part that is missing or was not loaded, weights that
            are not finite, a UNet that takes more than noise and words, or a tokenizer with more
            tokens than the text encoder has embeddings.
    """
    if not isinstance(pipe, StableDiffusionPipeline):
        raise SepmeError(
            f"A {type(pipe).__name__} does not draw from words alone as Stable Diffusion does: "
            "give a StableDiffusionPipeline."
        )
    for name in (*PARTS, "tokenizer"):
        if getattr(pipe, name) is None:
            raise SepmeError(f"The pipeline has no {name}: load a whole one.")
    for name in PARTS:
        _check_weights(name, getattr(pipe, name))
    config, latents = pipe.unet.config, pipe.vae.config.latent_channels
    if (config.in_channels, config.out_channels) != (latents, latents):
        raise SepmeError(
            f"This UNet takes {config.in_channels} channels and gives {config.out_channels} where "
            f"a picture has {latents}, as those that paint into a given picture do: load a model "
            "that draws from words."
        )
    if not isinstance(config.sample_size, int):
        raise SepmeError(
            f"The UNet's config gives {config.sample_size!r} for the size of its latents: give a "
            "whole number."
        )
    told = [n for n in ("class_embed_type", "addition_embed_type") if config.get(n)]
    if told:
        raise SepmeError(
            f"This UNet is told more than words (its config has '{told[0]}'): load a pipeline of "
            "the shape of Stable Diffusion 1.x or 2.x."
        )
    rows, vocabulary = pipe.text_encoder.get_input_embeddings().num_embeddings, pipe.tokenizer.vocab
    if len(vocabulary) <= len(pipe.tokenizer.all_special_tokens):
        raise SepmeError("The pipeline's tokenizer has no vocabulary: copy the whole model again.")
    if (largest := max(vocabulary.values())) >= rows:
        raise SepmeError(
            f"The tokenizer has the token {largest} and the text encoder {rows} embeddings: load "
            "the two that belong together, or resize the embeddings."
        )
    # Without its config a tokenizer takes any length, and the text encoder would fail.
    room = pipe.text_encoder.config.max_position_embeddings
    pipe.tokenizer.model_max_length = min(pipe.tokenizer.model_max_length, room)


def _check_weights(part: str, module: torch.nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_meta:
            raise SepmeError(
                f"The weight '{part}.{name}' was never loaded: copy the whole model again."
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise SepmeError(
                f"The weight '{part}.{name}' is not finite: load an intact float32 copy."
            )


# ------------------------------------------------------------------ one file
#: The merges that CLIP's vocabulary is made of. Nothing else of the package is read.
CLIP_MERGES = WeightsFile(
    "CLIP's tokenizer",
    "open-clip-torch==3.3.0",
    "open_clip/bpe_simple_vocab_16e6.txt.gz",
    "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
)
_CLIP = {"vocab_size": 49408, "max_position_embeddings": 77}
_CLIP |= {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
_UNET = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2}
#: The parts of Stable Diffusion by the width of their text embeddings, where they differ from what
#: diffusers and transformers take for granted (their published configs).
SHAPES: dict[int, dict[str, dict[str, Any]]] = {
    768: {  # 1.x
        "text_encoder": _CLIP
        | {"hidden_size": 768, "intermediate_size": 3072}
        | {"num_hidden_layers": 12, "num_attention_heads": 12},
        "unet": _UNET | {"cross_attention_dim": 768, "sample_size": 64},
        "vae": _VAE,
    },
    1024: {  # 2.x
        "text_encoder": _CLIP
        | {"hidden_size": 1024, "intermediate_size": 4096, "hidden_act": "gelu"}
        | {"num_hidden_layers": 23, "num_attention_heads": 16},
        "unet": _UNET
        | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}
        | {"use_linear_projection": True, "sample_size": 96},
        "vae": _VAE,
    },
}
#: The noise schedule of all of them.
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE |= {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
_CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
_TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def clip_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's tokenizer, from the file of merges that its authors published.

    Args:
        pad: what a prompt is filled up with; "!" in Stable Diffusion 2.x.

    Raises:
        SepmeError: the package that carries the file is not installed.
    """
    letters = sorted(ByteLevel.alphabet())  # one for each byte
    letters += [f"{letter}</w>" for letter in letters]
    lines = gzip.decompress(CLIP_MERGES.read()).decode().splitlines()[1:]
    merges = [tuple(line.split()) for line in lines[: _CLIP["vocab_size"] - len(letters) - 2]]
    tokens = [*letters, *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        pad_token=pad,
        unk_token="<|endoftext|>",
        model_max_length=77,
    )


def _from_one_file(path: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        inputs = {name: file.get_slice(name).get_shape()[1] for name in names & {_CONV_IN, _TO_K}}
    width, channels = inputs.get(_TO_K), inputs.get(_CONV_IN, 4)
    if width not in SHAPES or channels != 4:
        found = "there is none of a UNet" if width is None else f"here {width} and {channels}"
        if any(name.startswith("conditioner.embedders.1.") for name in names):
            found = OTHERS["text_encoder_2"]
        raise SepmeError(
            f"'{path}' is no checkpoint of Stable Diffusion 1.x or 2.x, whose text is 768 or 1024 "
            f"wide and whose noise has 4 channels ({found}): give one, or a diffusers folder."
        )
    # So named, what a killed process leaves is swept up by the next one.
    with tempfile.TemporaryDirectory(prefix=temporary(Path(tempfile.gettempdir())).name) as folder:
        _write_configs(Path(folder), width)
        pipe = StableDiffusionPipeline.from_single_file(
            str(path), config=folder, local_files_only=True, torch_dtype=dtype, safety_checker=None
        )
    if width == 1024 and _predicts_noise(pipe):  # 2.x base, of 512 pixels
        pipe.unet.register_to_config(sample_size=64)
    elif width == 1024:
        pipe.scheduler.register_to_config(prediction_type="v_prediction")
    return pipe


def _write_configs(folder: Path, width: int) -> None:
    """A diffusers folder without weights, which says what the checkpoint's tensors are."""
    clip_tokenizer("!" if width == 1024 else "<|endoftext|>").save_pretrained(folder / "tokenizer")
    DDIMScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None] * 2}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"], "feature_extractor": [None, None]}
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"], "image_encoder": [None, None]}
    for name, kind in PARTS.items():
        index[name] = [kind.__module__.partition(".")[0], kind.__name__]
        (folder / name).mkdir()
        config = {"_class_name": kind.__name__, **SHAPES[width][name]}
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps(index))


@torch.no_grad()
def _predicts_noise(pipe: StableDiffusionPipeline) -> bool:
    """Whether a checkpoint of 2.x predicts noise rather than v, which its file does not say.

    At the last timestep x_t is nearly all noise, so a model that predicts noise gives x_t back, and
    one that predicts `v = sqrt(a) eps - sqrt(1 - a) x_0` does not.
    """
    unet, generator = pipe.unet, torch.Generator().manual_seed(0)
    x_t = torch.randn(1, unet.config.in_channels, 32, 32, generator=generator).to(unet.dtype)
    text = torch.zeros(1, 77, unet.config.cross_attention_dim, dtype=unet.dtype)
    output = unet(x_t, 999, text).sample
    likeness = torch.cosine_similarity(output.double().flatten(), x_t.double().flatten(), dim=0)
    return bool(likeness > 0.5)
