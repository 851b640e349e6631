"""Where a pipeline comes from: a hub id, a diffusers folder, or one `.safetensors` checkpoint.

What cannot be erased from, or would not be the model that its files hold, is refused here.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from logging import CRITICAL
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    ModelMixin,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.utils import logging as diffusers_log
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import safe_open
from transformers import CLIPTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_log

from sepme.artefact import check_whole, read_text, temporary
from sepme.errors import SepmeError, in_words
from sepme.shapes import PARTS, SHAPES, Pipeline, Shape, assembled, kind_of, text_parts

__all__ = ["load_pipeline"]

#: What a UNet's output may mean.
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
#: Why pipelines of other architectures are refused, by a part that only they have.
OTHERS = {
    "transformer": "its text and its picture mix in joint attention blocks, so that after one "
    "block the text's keys and values depend on the picture, and no delta can leave a prompt alone",
    "prior_prior": "it draws from embeddings of pictures",
}
#: What a pipeline may list besides its parts, since it changes no picture that is drawn from words.
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
REFINER = "it is a refiner, which only finishes pictures that another model began"
#: What weights can be loaded in, by name.
TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
}
#: Which kinds of pipeline can be erased from.
KINDS = "Stable Diffusion 1.x, 2.x and XL"


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


def device_named(device: str | torch.device | None) -> torch.device:
    """The device, by default the best one.

    Raises:
        SepmeError: it is not there.
    """
    best = best_device()
    try:
        found = best if device is None else torch.device(device)
        if found.type not in ("cpu", best.type):
            raise RuntimeError
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # torch's answers to a device it lacks
        raise SepmeError(
            f"The device '{device}' is not there for this torch: choose '{best}'."
        ) from error
    return found


def type_named(dtype: str | torch.dtype) -> torch.dtype:
    """The number type, from its name or from torch's own.

    Raises:
        SepmeError: nothing that a model is loaded in.
    """
    if (found := TYPES.get(str(dtype).removeprefix("torch."))) is None:
        raise SepmeError(
            f"dtype = {dtype!r:.80} is nothing to load weights in: choose one of "
            f"{', '.join(TYPES)}."
        )
    return found


def load_pipeline(
    model: str | Path, device: str | torch.device | None, dtype: str | torch.dtype
) -> Pipeline:
    """The pipeline of a diffusers folder, a hub id or one checkpoint, its weights in this type.

    Raises:
        SepmeError: no such place, another kind of pipeline, weights that are missing, incomplete or
            pickled, a checkpoint without CLIP's vocabulary at hand to read prompts with, or a
            device or a number type that is not there.
    """
    path, place, dtype = Path(model), device_named(device), type_named(dtype)
    one_file = path.suffix.lower() in (".safetensors", ".sft") and path.is_file()
    if not one_file:
        _check_place(path)
    with quiet():
        with _refused(path):
            pipe = _from_one_file(path, dtype) if one_file else _from_parts(str(model), dtype)
        try:
            return pipe.to(place)
        except torch.OutOfMemoryError as error:
            raise SepmeError(
                f"The model does not fit into the memory of {place}: load it in half precision, or "
                "on the CPU."
            ) from error


def _from_parts(model: str, dtype: torch.dtype) -> Pipeline:
    index = StableDiffusionPipeline.load_config(model)
    kind = _checked_kind(model, index)
    options = {}
    if kind is StableDiffusionXLPipeline:
        options["force_zeros_for_empty_prompt"] = index.get("force_zeros_for_empty_prompt", True)
    scheduler = getattr(diffusers, index["scheduler"][1])
    pipe = assembled(
        kind,
        **{name: _part(part, name, model, dtype) for name, part in PARTS[kind].items()},
        **{
            name: CLIPTokenizer.from_pretrained(model, subfolder=name)
            for name in text_parts(kind).values()
        },
        scheduler=as_ddim(scheduler.from_pretrained(model, subfolder="scheduler")),
        **options,
    )
    at = Path(model)
    pipe.register_to_config(_name_or_path=str(at.resolve()) if at.exists() else model)
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


def _checked_kind(path: str, index: Mapping[str, Any]) -> type[Pipeline]:
    """The kind of pipeline that a `model_index.json` lists, and not of another."""
    listed = {name: entry for name, entry in index.items() if isinstance(entry, list)}
    there = {name for name, entry in listed.items() if entry[-1:] != [None]}
    others = {name: why for name, why in OTHERS.items() if name in there}
    if "text_encoder_2" in there and listed.get("text_encoder") == [None, None]:
        others["text_encoder_2"] = REFINER
    for why in others.values():
        raise SepmeError(
            f"'{path}' is a {index.get('_class_name')}: {why}, and sepme edits pipelines of "
            f"{KINDS} only."
        )
    second = "text_encoder_2" in there
    kind = StableDiffusionXLPipeline if second else StableDiffusionPipeline
    own = {name: part.__name__ for name, part in PARTS[kind].items()}
    own |= dict.fromkeys(text_parts(kind).values(), "CLIPTokenizer")
    own["scheduler"] = "a scheduler of diffusers"
    for name, wanted in own.items():
        library, found = [*listed.get(name, ()), None, None][:2]
        scheduler = name == "scheduler" and hasattr(getattr(diffusers, str(found), None), "step")
        right = scheduler or str(found).removesuffix("Fast") == wanted
        if library not in ("diffusers", "transformers") or not right:
            raise SepmeError(
                f"'{path}' holds no Stable Diffusion pipeline, since its {name} is "
                f"{found or 'missing'} where {wanted} is needed: give one whose model_index.json "
                "lists it."
            )
    if more := sorted(there - own.keys() - {*LEFT_OUT}):
        raise SepmeError(
            f"'{path}' is a {index.get('_class_name')}, whose {more[0]} takes part in what it "
            f"draws and would be left out: give the {kind.__name__} that it was made of."
        )
    return kind


def _part(
    kind: type[ModelMixin] | type[PreTrainedModel], name: str, model: str, dtype: torch.dtype
) -> ModelMixin | PreTrainedModel:
    """One part with all its weights, from the files of either number type."""
    variants = ("fp16", None) if dtype == torch.float16 else (None, "fp16")
    for variant in variants:
        try:
            part, info = kind.from_pretrained(
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


def as_ddim(scheduler: SchedulerMixin) -> DDIMScheduler:
    """A DDIM scheduler of the same diffusion process, from a scheduler of any class.

    What the classes share in name and meaning is taken over as this class has it, whether said or
    by default, since DDIM's defaults are others. Latents are neither clipped to [-1, 1] nor
    thresholded, which is made for pixels. The last step ends at the first alpha, as Stable
    Diffusion is published, unless the scheduler says that it ends at 1.

    Raises:
        SepmeError: one whose noise is not made by betas at whole timesteps.
    """
    said = scheduler.config
    by_betas = hasattr(scheduler, "alphas_cumprod")
    if not by_betas or said.get("timestep_type", "discrete") != "discrete":
        raise SepmeError(
            f"The pipeline's {type(scheduler).__name__} does not noise by betas at whole timesteps "
            f"as {KINDS} do: give a model that was trained so."
        )
    return DDIMScheduler(
        num_train_timesteps=said["num_train_timesteps"],
        beta_start=said["beta_start"],
        beta_end=said["beta_end"],
        beta_schedule=said["beta_schedule"],
        trained_betas=said.get("trained_betas"),
        rescale_betas_zero_snr=said.get("rescale_betas_zero_snr", False),
        prediction_type=said.get("prediction_type", "epsilon"),
        timestep_spacing=said.get("timestep_spacing", "leading"),
        steps_offset=said.get("steps_offset", 0),
        set_alpha_to_one=said.get("set_alpha_to_one", False),
        clip_sample=False,
        thresholding=False,
    )


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Whatever the libraries raise about a foreign file is one sentence about this place."""
    try:
        yield
    except SepmeError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while (cause := cause.__cause__ or cause.__context__) is not None:
            if isinstance(cause, KeyboardInterrupt):  # Ctrl-C, which a library took for a fault
                raise KeyboardInterrupt from error
        for file in sorted(path.glob("*/*.safetensors") if path.is_dir() else [path]):
            if file.exists():
                check_whole(file)
        what = f"'{path}' holds no Stable Diffusion pipeline that diffusers can load"
        whole = "checkpoint" if path.is_file() else "pipeline with its model_index.json"
        if not path.exists():
            what = f"There is no folder '{path}', nor did the hub give a pipeline of that name"
        raise SepmeError(f"{what} ({type(error).__name__}): give a whole {whole}.") from error


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
def check_pipeline(pipe: Pipeline) -> None:
    """Refuse what cannot draw from words, or would draw something else than its files hold.

    Raises:
        SepmeError: another kind of pipeline, a part that is missing, wrapped or was not loaded,
            weights that are quantised or not finite, a UNet that is told something else than its
            kind's, or a tokenizer with more tokens than its text encoder has embeddings.
    """
    if (kind := kind_of(pipe)) is None:
        raise SepmeError(
            f"A {type(pipe).__name__} does not draw from words alone as Stable Diffusion does: "
            "give a StableDiffusionPipeline, or a StableDiffusionXLPipeline."
        )
    for name in (*PARTS[kind], *text_parts(kind).values()):
        if getattr(pipe, name) is None:
            raise SepmeError(f"The pipeline has no {name}: load a whole one.")
    for name in PARTS[kind]:
        for path, tensor in tensors_of(pipe, name).items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise SepmeError(
                    f"The weight '{name}.{path}' is not finite: load an intact float32 copy."
                )
    check_unet(pipe)
    check_tokenizers(pipe)


def uncompiled(module: torch.nn.Module) -> torch.nn.Module:
    """The module itself; `torch.compile` wraps it, and renames every layer."""
    return getattr(module, "_orig_mod", module)


def tensors_of(pipe: Pipeline, part: str) -> dict[str, torch.Tensor]:
    """The tensors of a part, by name.

    Raises:
        SepmeError: a part within a wrapper, or tensors that are not there as they were trained.
    """
    module = uncompiled(getattr(pipe, part))
    if not isinstance(module, ModelMixin | PreTrainedModel):
        raise SepmeError(
            f"The {part} is wrapped in a {type(module).__name__}: put the model that is inside "
            "into the pipeline."
        )
    for name, tensor in (tensors := module.state_dict()).items():
        why = None
        if not isinstance(tensor, torch.Tensor) or tensor.itemsize == 1:
            why = "is quantised: load the model in float32, float16 or bfloat16"
        elif "_orig_mod" in name:
            why = f"belongs to a compiled layer: compile the whole {part}, or none of it"
        elif tensor.is_meta and any(hasattr(layer, "_hf_hook") for layer in module.modules()):
            why = "is offloaded: load the pipeline again without that"
        elif tensor.is_meta:
            why = "was never loaded: copy the whole model again"
        if why is not None:
            raise SepmeError(f"The weight '{part}.{name}' {why}.")
    return tensors


def check_unet(pipe: Pipeline) -> None:
    """Refuse a UNet that is told something else than noise, a timestep and a prompt."""
    config, latents, kind = pipe.unet.config, pipe.vae.config.latent_channels, kind_of(pipe)
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
    xl = kind is StableDiffusionXLPipeline
    told = {"addition_embed_type": "text_time" if xl else None, "class_embed_type": None}
    told |= {"encoder_hid_dim_type": None, "time_cond_proj_dim": None}
    # An IP-Adapter sets an attribute of the config, and leaves its entry.
    if wrong := [name for name, value in told.items() if getattr(config, name, None) != value]:
        raise SepmeError(
            f"This UNet is told something else than the words of a {kind.__name__} (its config has "
            f"'{wrong[0]}': {getattr(config, wrong[0])!r}): load a pipeline of the shape of "
            f"{KINDS} without an IP-Adapter."
        )
    # The six numbers of a picture's size, and what the second text encoder makes of a prompt.
    if xl and config.projection_class_embeddings_input_dim != (
        6 * config.addition_time_embed_dim + pipe.text_encoder_2.config.projection_dim
    ):
        raise SepmeError(
            "This UNet does not take the size of a picture as Stable Diffusion XL does, in six "
            "numbers beside the pooled text: load the base model."
        )


def check_tokenizers(pipe: Pipeline) -> None:
    """Refuse tokens that a text encoder was not trained on; each tokenizer cuts where all can."""
    parts = text_parts(kind_of(pipe))
    room = min(_checked_room(pipe, *names) for names in parts.items())
    for name in parts.values():
        getattr(pipe, name).model_max_length = room


@lru_cache(maxsize=8)  # it takes 24 ms, and is asked for before whatever is drawn
def _largest_token(words: CLIPTokenizer, _size: int) -> int:
    return max(words.vocab.values())


def _checked_room(pipe: Pipeline, encoder: str, tokenizer: str) -> int:
    """How many tokens a text encoder and its tokenizer take; they have to belong together."""
    texts, words = getattr(pipe, encoder), getattr(pipe, tokenizer)
    rows = len(texts.get_input_embeddings().weight)
    if len(words) <= len(words.all_special_tokens):
        raise SepmeError(f"The pipeline's {tokenizer} has no vocabulary: copy the model again.")
    if (largest := _largest_token(words, len(words))) >= rows:
        raise SepmeError(
            f"The {tokenizer} has the token {largest} and the {encoder} {rows} embeddings: load "
            "the two that belong together, or resize the embeddings."
        )
    for side in ("padding_side", "truncation_side"):
        if getattr(words, side) != "right":
            raise SepmeError(
                f"The {tokenizer} has {side} = '{getattr(words, side)}', and the {encoder} was "
                "trained with 'right': set it back."
            )
    # Without its config a tokenizer takes any length, and the text encoder would fail.
    return min(words.model_max_length, texts.config.max_position_embeddings)


# ------------------------------------------------------------------ one file
_UNET = "model.diffusion_model."
_CONV_IN = f"{_UNET}input_blocks.0.0.weight"
#: The first layers that read the text: of 1.x and 2.x, and of XL.
_TO_K = f"{_UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_TO_K_XL = f"{_UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"


def _from_one_file(path: Path, dtype: torch.dtype) -> Pipeline:
    with safe_open(path, framework="pt") as file:
        found = {
            n: file.get_slice(n).get_shape() for n in {_CONV_IN, _TO_K, _TO_K_XL} & {*file.keys()}
        }
    width = found.get(_TO_K, found.get(_TO_K_XL, [0, 0]))[1]
    channels = found.get(_CONV_IN, [0, 4])[1]
    shape = next((shape for shape in SHAPES.values() if shape.width == width), None)
    if shape is None or channels != 4:
        what = f"here {width} and {channels}" if width else "there is none of a UNet"
        if width == SHAPES["sdxl"].parts["text_encoder_2"]["hidden_size"]:
            what = REFINER
        raise SepmeError(
            f"'{path}' is no checkpoint of {KINDS}, whose text is 768, 1024 or 2048 wide and whose "
            f"noise has 4 channels ({what}): give one, or a diffusers folder."
        )
    options = {"add_watermarker": False} if shape.kind is StableDiffusionXLPipeline else {}
    # So named, what a killed process leaves is swept up by the next one.
    with tempfile.TemporaryDirectory(prefix=temporary(Path(tempfile.gettempdir())).name) as folder:
        _write_configs(Path(folder), shape)
        file = path
        if path.suffix != ".safetensors":  # which diffusers goes by
            (file := Path(folder, "model.safetensors")).symlink_to(path.resolve())
        pipe = shape.kind.from_single_file(
            str(file), config=folder, local_files_only=True, torch_dtype=dtype, **options
        )
        for name in PARTS[shape.kind]:
            tensors_of(pipe, name)  # what the file lacks is on no device yet
    if shape is SHAPES["sd21"] and _predicts_noise(pipe):  # 2.x base, of 512 pixels
        pipe.unet.register_to_config(sample_size=64)
        pipe.scheduler.register_to_config(prediction_type="epsilon")
    return pipe


def _write_configs(folder: Path, shape: Shape) -> None:
    """A diffusers folder without weights, which says what the checkpoint's tensors are."""
    index: dict[str, Any] = {"_class_name": shape.kind.__name__}
    index |= dict.fromkeys(LEFT_OUT, [None] * 2)
    for name, tokenizer in shape.tokenizers.items():
        tokenizer.save_pretrained(folder / name)
        index[name] = ["transformers", "CLIPTokenizer"]
    as_ddim(shape.scheduler).save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    for name, kind in PARTS[shape.kind].items():
        index[name] = [kind.__module__.partition(".")[0], kind.__name__]
        (folder / name).mkdir()
        config = {"_class_name": kind.__name__, **shape.parts[name]}
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
