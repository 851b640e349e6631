"""A text-to-image pipeline, seen the way the method sees it.

Prompts become text embeddings, images become latents, latents become noise predictions, and the
matrices that see nothing but text, `attn2.to_k` and `attn2.to_v`, are found, counted and checked.
"""

import hashlib
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, cached_property, wraps
from inspect import signature
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from diffusers import StableDiffusionXLPipeline
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from tqdm.auto import tqdm

from sepme._checks import choose, guided, integer, texts, whole
from sepme._data import shipped
from sepme._layers import make_lean
from sepme.concept import Catalogue, Concept, Vocabulary, refuse_overlap
from sepme.errors import SepmeError, warn
from sepme.loading import (
    KINDS,
    PREDICTION_TYPES,
    Sampling,
    as_ddim,
    check_pipeline,
    check_tokenizers,
    check_unet,
    load_pipeline,
    quiet,
    tensors_of,
    uncompiled,
)
from sepme.shapes import PARTS, Pipeline, kind_of, text_parts

P, R = ParamSpec("P"), TypeVar("R")

__all__ = ["ATELIER", "Backbone", "load_catalogue"]

#: The model that ships with the project.
ATELIER = shipped("atelier")
#: Held by whoever draws, or switches what is on: a cell that draws while a widget draws waits.
IN_USE = threading.RLock()
#: What is drawn, and what diffusers calls it.
OUTPUTS = {"images": "pt", "latents": "latent"}
#: The most pictures that are drawn at once, and the most pixels of all their latents: four pictures
#: of Stable Diffusion 1.x. Neither depends on the machine, so that pictures do not.
PICTURES, PIXELS = 32, 4 * 64**2
#: The parameters of a UNet whose convolutions run faster with the channels last: by a quarter on
#: 1.x's shape on a CPU. The Atelier's (4 million) do not.
LARGE = 10**8
#: Two copies of one model may have been rounded to either of these.
HALVES = (torch.float16, torch.bfloat16)


def load_catalogue(model: str | Path | None = None) -> Catalogue | None:
    """The concepts beside a model (`catalogue.json` in its folder), or None if it brings none.

    Takes what `Backbone.load` takes, and reads nothing else.
    """
    file = (Path(model).expanduser() if model is not None else ATELIER) / "catalogue.json"
    return Catalogue.load(file) if file.is_file() else None


def alone(method: Callable[P, R]) -> Callable[P, R]:
    """Run the method while holding the lock: nobody else draws or switches meanwhile."""

    @wraps(method)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> R:
        with IN_USE:
            return method(*args, **kwargs)

    return waiting


@contextmanager
def gradients_kept(unet: nn.Module) -> Iterator[None]:
    """After the block parameters take gradients as before it, which peft's switches change."""
    before = {parameter: parameter.requires_grad for parameter in unet.parameters()}
    try:
        yield
    finally:
        for parameter, takes in before.items():
            parameter.requires_grad_(takes)


@contextmanager
def own_modes(model: "Backbone") -> Iterator[None]:
    """Take gradients, in the model's own number type, whatever mode of torch the caller is in.

    They are of what is trained alone, also where a user trains the UNet. A UNet that computes its
    activations again would do so with other weights than those trained.
    """
    unet = model.unet
    again = [m for m in unet.modules() if getattr(m, "gradient_checkpointing", False)]
    no_cast, default = torch.autocast(model.device.type, enabled=False), torch.get_default_dtype()
    cpu = torch.device("cpu")  # as a context it makes every call of torch a little slower
    place = cpu if torch.get_default_device() != cpu else nullcontext()
    for module in again:
        module.gradient_checkpointing = False
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad(), no_cast, place, gradients_kept(unet):
            unet.requires_grad_(False)
            yield
    finally:
        torch.set_default_dtype(default)
        for module in again:
            module.gradient_checkpointing = True


@dataclass
class Backbone:
    """One Stable-Diffusion-shaped pipeline with what erasing needs to ask of it.

    In Stable Diffusion XL a prompt reaches the UNet in two ways. The embeddings of both text
    encoders, side by side, go through `attn2` alone, and there the theorem holds as it does for 1.x
    and 2.x: a prompt that a delta does not see changes nothing. What the second encoder makes of
    the whole prompt, one pooled vector, is added to the time embedding. No delta changes that path:
    kept prompts stay as they are, but the concept keeps that channel too. Every prompt is taken
    with its own pooled vector, so r(c) = eps(c) - eps(c_0) is all that c adds, by either path.

    Attributes:
        pipe: the diffusers pipeline, in evaluation mode, without gradients, with a DDIM scheduler.
        name: what the model is called in provenance and on banners.
        guidance: default guidance scale.
        steps: default number of sampling steps.
    """

    pipe: Pipeline
    name: str
    guidance: float = Sampling().guidance_scale
    steps: int = Sampling().num_inference_steps
    #: What was hashed last, in short, and its digests.
    _hashed: tuple[Any, tuple[str, ...]] = field(default=(None, ()), init=False, repr=False)
    #: The last composition, on whatever UNet the pipeline had then.
    _last: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_pipeline(self.pipe)
        self.pipe.scheduler = as_ddim(self.pipe.scheduler)
        self.pipe.set_progress_bar_config(disable=True)
        if self.together < PICTURES:  # pictures so large are decoded one by one
            self.pipe.vae.enable_slicing()
        if sum(weight.numel() for weight in self.unet.parameters()) > LARGE:
            self.unet.to(memory_format=torch.channels_last)
            self.pipe.vae.to(memory_format=torch.channels_last)
            make_lean(self.unet)
        for part in PARTS[kind_of(self.pipe)]:
            module = uncompiled(getattr(self.pipe, part))
            setattr(self.pipe, part, module.eval().requires_grad_(False))
        self.projections()  # a pipeline that cannot be edited is refused before any work
        choose(PREDICTION_TYPES, prediction_type=self.prediction_type)

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = torch.float32,
    ) -> "Backbone":
        """Load the shipped model (None), a diffusers folder, a `.safetensors` file, or a hub id.

        Args:
            dtype: what the weights are loaded in, "float16" for example; a delta fits whatever.

        Raises:
            SepmeError: no such model, one that cannot be drawn or erased from (`sepme.loading` says
                why), or a device or a number type that is not there.
        """
        if not isinstance(model, str | os.PathLike | None):
            raise SepmeError(
                f"{model!r:.80} is no path: name a folder, a .safetensors file, or a hub id."
            )
        model = model and os.path.expanduser(model)
        path = Path(model) if model is not None else ATELIER
        if model is None and not path.is_dir():
            raise SepmeError(f"The shipped model is missing: restore {path}, or install it again.")
        sampling = Sampling.beside(path)
        with IN_USE, torch.inference_mode(False):  # accelerate patches torch while it loads
            pipe = load_pipeline(model or path, device, dtype)
        name = path.name if path.exists() else str(model)
        return cls(pipe, name, sampling.guidance_scale, sampling.num_inference_steps)

    # ------------------------------------------------------------------ what it is made of
    @property
    def unet(self) -> nn.Module:
        return uncompiled(self.pipe.unet)

    @property
    def composition(self) -> Any:
        """What is attached to the UNet now (`sepme.composition`), by whichever pipeline."""
        return getattr(self.unet, "_sepme_composition", None)

    @composition.setter
    def composition(self, attached: Any) -> None:
        self.unet._sepme_composition = attached

    @property
    def device(self) -> torch.device:
        return self.pipe.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.pipe.unet.dtype

    @property
    def prediction_type(self) -> str:
        """What the UNet's output means: "epsilon" (SD v1.x) or "v_prediction" (the Atelier)."""
        return self.pipe.scheduler.config.prediction_type

    @property
    def _text(self) -> dict[str, tuple[nn.Module, Any]]:
        """Each text encoder by its name, with its tokenizer; two in Stable Diffusion XL."""
        names = text_parts(kind_of(self.pipe)).items()
        return {e: (getattr(self.pipe, e), getattr(self.pipe, t)) for e, t in names}

    @property
    def xl(self) -> bool:
        """Whether it is Stable Diffusion XL, with two text encoders and a pooled embedding."""
        return isinstance(self.pipe, StableDiffusionXLPipeline)

    @property
    def d_in(self) -> int:
        """Width of a text embedding, the input width of every `to_k` and `to_v`."""
        return sum(encoder.config.hidden_size for encoder, _ in self._text.values())

    @property
    def tokens(self) -> int:
        return self.pipe.tokenizer.model_max_length

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words that the model was made for."""
        return Vocabulary.of(self.pipe.tokenizer)

    @property
    def timesteps(self) -> int:
        return self.pipe.scheduler.config.num_train_timesteps

    @property
    def sampler(self) -> tuple[Any, ...]:
        """What decides a picture besides weights, prompt, seed and steps."""
        scheduler = self.pipe.scheduler
        return type(scheduler), str(scheduler.config), self.guidance

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        config = self.pipe.unet.config
        return (config.in_channels, config.sample_size, config.sample_size)

    @property
    def loss_scale(self) -> float:
        """What a training multiplies its loss by for the way back through the UNet.

        In float16 a gradient is lost that was divided by the many numbers of a picture's latents.
        In the other types a power of two changes no bit of the result, and spares time: behind a
        gate that is shut, a gradient falls below the smallest normal number, and a processor takes
        ten times as long for those that do.
        """
        return math.prod(self.latent_shape) if self.dtype == torch.float16 else 2.0**60

    @property
    def together(self) -> int:
        """How many pictures are drawn at once where nobody says another number."""
        _, height, width = self.latent_shape
        return min(PICTURES, max(1, PIXELS // (height * width)))

    @property
    def alphas_cumprod(self) -> Tensor:
        """`[T]`, the cumulative products of 1 - beta of the pipeline's scheduler.

        Raises:
            SepmeError: a scheduler of another kind, which somebody put in its place.
        """
        scheduler = self.pipe.scheduler
        alphas = getattr(scheduler, "alphas_cumprod", None)
        if alphas is None:
            raise SepmeError(
                f"A {type(scheduler).__name__} does not add noise as Stable Diffusion was trained "
                "with: put a DDIMScheduler in its place."
            )
        return alphas

    @property
    def text_adapters(self) -> dict[str, Tensor]:
        """What adapters on the text encoders add to embeddings, by place; empty for none."""
        found = {}
        for name, (encoder, _) in self._text.items():
            for path, layer in encoder.named_modules():
                if not isinstance(layer, LoraLayer) or layer.disable_adapters:
                    continue
                at = name.removeprefix("text_encoder") + path
                scales, sizes = layer.scaling, layer.lora_magnitude_vector  # DoRA has both
                on = [a for a in layer.active_adapters if scales.get(a) or a in sizes]
                for key, tensor in layer.state_dict().items():
                    part, _, adapter = key.partition(".")
                    adapter, _, rest = adapter.partition(".")
                    if part.startswith("lora_") and adapter in on:  # its name changes nothing
                        scale = scales[adapter] if part.endswith("B") else 1
                        found[f"{at}.{on.index(adapter)}.{part}.{rest}"] = scale * tensor
        return found

    @property
    def fingerprint(self) -> str:
        """What decides embeddings and predictions now, in 64 hexadecimal digits.

        Half of them are sha256 of the weights and text adapters rounded to float16, half of them
        rounded to bfloat16: of two copies of one model, in any two of the number types float32,
        float16 and bfloat16, at least one half is the same (`sepme.artefact.same_model`), unless
        one was rounded to float16 and the other to bfloat16.

        Raises:
            SepmeError: adapters are fused into the weights, which are then nobody's.
        """
        self.refuse_fused()
        adapters = sorted(self.text_adapters.items())
        if not adapters:
            return "".join(self._weights)
        digests = map(_digest, [adapters] * 2, HALVES)
        both = zip(self._weights, digests, strict=True)
        return "".join(hashlib.sha256("".join(pair).encode()).hexdigest()[:32] for pair in both)

    @property
    def _weights(self) -> tuple[str, ...]:
        """The digests of the original UNet and text encoders, one for each of `HALVES`.

        Embeddings that were appended, as textual inversion does, are not part of the model. They
        are hashed again when the weights' sketches, which take far less time, are others: LoRAs
        are fused into `weight.data`, and neither the tensor's address nor its version tells.
        """
        original = {}
        for part in (*self._text, "unet"):
            for name, tensor in tensors_of(self.pipe, part).items():
                if "lora_" not in name:
                    original[f"{part}.{name.replace('.base_layer', '')}"] = tensor
        original |= getattr(self.composition, "originals", {})
        for part, (_, tokenizer) in self._text.items():
            named = (name for name in original if name.startswith(f"{part}."))
            table = next(name for name in named if name.endswith("token_embedding.weight"))
            original[table] = original[table][: tokenizer.vocab_size]
        short = tuple(original), _sketch([*original.values()])
        if self._hashed[0] != short:
            self._hashed = short, tuple(_digest(sorted(original.items()), h) for h in HALVES)
        return self._hashed[1]

    def refuse_fused(self) -> None:
        """Raise SepmeError if adapters are fused into the weights."""
        parts = (self.unet, *(encoder for encoder, _ in self._text.values()))
        modules = itertools.chain.from_iterable(part.modules() for part in parts)
        if any(isinstance(module, LoraLayer) and module.merged for module in modules):
            raise SepmeError(
                "The pipeline's adapters are fused into its weights: load the model again, since "
                "pipe.unfuse_lora() leaves rounding behind, and deltas no longer fit."
            )

    def projections(self) -> dict[str, nn.Linear]:
        """Module path -> the key and value projections that see only text (theta_II).

        Raises:
            SepmeError: no cross-attention found, projections fused into one or passed by, or
                a wrong width.
        """
        modules = dict(self.unet.named_modules())
        if fused := [n for n in modules if n.endswith((".to_kv", ".to_qkv"))]:
            raise SepmeError(
                f"The projections of '{fused[0]}' are fused: load the pipeline again and leave out "
                "fuse_qkv_projections()."
            )
        listening = {n: m for n, m in modules.items() if n.endswith("attn2.processor")}
        if own := [n for n, m in listening.items() if [*m.parameters()]]:
            raise SepmeError(
                f"'{own[0]}' ({type(listening[own[0]]).__name__}) has weights of its own, past "
                "which a delta would change nothing: load the pipeline again without it."
            )
        found = {
            n: getattr(m, "base_layer", m)
            for n, m in modules.items()
            if n.endswith(("attn2.to_k", "attn2.to_v"))
        }
        if not found:
            raise SepmeError(
                "This UNet has no 'attn2.to_k' or 'attn2.to_v' layer: use a pipeline of the shape "
                f"of {KINDS}."
            )
        if wrong := [n for n, m in found.items() if m.in_features != self.d_in]:
            raise SepmeError(
                f"'{wrong[0]}' takes {found[wrong[0]].in_features} inputs where the text embedding "
                f"has {self.d_in}: this architecture is not supported."
            )
        return found

    def cross_attention(self) -> dict[str, Tensor]:
        """Module path -> the original weight of every matrix of every `attn2` (to_q, k, v, out)."""
        return {
            name.removesuffix(".base_layer"): module.weight.detach()
            for name, module in self.unet.named_modules()
            if ".attn2." in name and "lora_" not in name and isinstance(module, nn.Linear)
        }

    @contextmanager
    def original(self) -> Iterator[None]:
        """Within the block the model answers as if no adapter were attached, and others wait.

        Raises:
            SepmeError: adapters are fused into the weights.
        """
        with IN_USE, gradients_kept(self.unet):
            self.refuse_fused()
            layers = [m for m in self.unet.modules() if isinstance(m, BaseTunerLayer)]
            switched_on = [layer for layer in layers if not layer.disable_adapters]
            composition, self.composition = self.composition, None
            for layer in switched_on:
                layer.enable_adapters(False)
            try:
                yield
            finally:
                if self.composition is not None:  # a callback's
                    self.composition.close()
                self.composition = composition
                for layer in switched_on:
                    layer.enable_adapters(True)

    # ------------------------------------------------------------------ text, noise, pictures
    def reads(self, prompt: str) -> tuple[int, ...]:
        """The token ids of a whole prompt. Prompts of the same ids are one to the model."""
        return tuple(self.pipe.tokenizer.convert_tokens_to_ids(self._pieces(prompt)))

    @alone  # a tokenizer remembers how it was asked last, and can answer one at a time
    def _pieces(self, prompt: str) -> list[str]:
        """The tokens of a whole prompt; a word that textual inversion gave several has them all."""
        with quiet():  # of its own limit, which we say in our words
            written = self.pipe.maybe_convert_prompt(prompt, self.pipe.tokenizer)
            return self.pipe.tokenizer.tokenize(written, verbose=False)

    def learnt(self, prompts: Iterable[str]) -> dict[str, str]:
        """Digests of the embeddings of the prompts' tokens that textual inversion appended.

        They are no part of the model's fingerprint, and compared as fingerprints are.
        """
        own = self.pipe.tokenizer.vocab_size
        added = {t for t, index in self.pipe.tokenizer.get_added_vocab().items() if index >= own}
        if not added:  # of most models, and then no prompt need be read
            return {}
        said, found = {piece for prompt in prompts for piece in self._pieces(prompt)}, {}
        for token in sorted(added & said):
            rows = [
                (name, encoder.get_input_embeddings().weight[words.convert_tokens_to_ids(token)])
                for name, (encoder, words) in self._text.items()
            ]
            found[token] = "".join(_digest(rows, half) for half in HALVES)
        return found

    def warn_of_cut(self, prompts: Iterable[str]) -> None:
        """Warn of the first prompt that is longer than the model takes."""
        if (sentence := self.cut(prompts)) is not None:
            warn(sentence)

    def refuse_unclear(self, *requests: tuple[Concept, Sequence[str]]) -> None:
        """Refuse texts to erase with that would not mean to the model what they say.

        Each request is a concept and what is kept when it is erased; a text is read once for all.

        Raises:
            SepmeError: a prompt to forget, to keep or to put in its place that is longer than the
                model takes, or one both forgotten and kept.
        """
        said = [text for c, keep in requests for text in (*c.prompts, *c.anchors, *keep)]
        reads = {text: self.reads(text) for text in dict.fromkeys(said)}
        if (sentence := self.cut(reads)) is not None:
            raise SepmeError(sentence)
        for concept, keep in requests:
            refuse_overlap(concept, keep, reads.__getitem__)

    def cut(self, prompts: Iterable[str]) -> str | None:
        """A sentence about the first prompt whose end the model does not read, or None.

        Raises:
            SepmeError: a tokenizer that was changed, and does not fit its text encoder any more.
        """
        check_tokenizers(self.pipe)
        room = self.tokens - self.pipe.tokenizer.num_special_tokens_to_add()
        for prompt in texts(prompts):
            pieces = self._pieces(prompt)
            if len(pieces) > room:
                lost = "".join(pieces[room:]).replace("</w>", " ").strip()
                return (
                    f"The prompt '{prompt}' has {len(pieces)} tokens and this model reads {room}, "
                    f"so that '{lost}' falls off: shorten it."
                )
        return None

    @torch.no_grad()
    @alone
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings e(c) `[n, tokens, d_in]` of prompts padded to the model's length.

        It is what `attn2` reads, and so what a null space is made of. For `epsilon` take
        `conditioning`, which is the same in 1.x and 2.x.

        Raises:
            SepmeError: no prompt.

        Warns:
            SepmeWarning: a prompt that is longer than the model takes.
        """
        return self._encoded(prompts)[0]

    @torch.no_grad()
    @alone
    def conditioning(self, prompts: Sequence[str]) -> Tensor:
        """All that the UNet is told of prompts, as `epsilon` takes it: `encode(prompts)`.

        In Stable Diffusion XL it is `[n, tokens + 1, d_in]`: the last row holds the pooled
        embedding, filled up with zeros. There the empty prompt c_0 is what guidance is measured
        against, zeros altogether (`force_zeros_for_empty_prompt` in its config). Every delta leaves
        zeros alone, since Delta 0 = 0.
        """
        prompts = texts(prompts)
        embeddings, pooled = self._encoded(prompts)
        if pooled is None:
            return embeddings
        row = nn.functional.pad(pooled, (0, self.d_in - pooled.shape[1]))
        told = torch.cat([embeddings, row[:, None]], dim=1)
        if self.pipe.config.force_zeros_for_empty_prompt:
            told[[not prompt for prompt in prompts]] = 0.0
        return told

    def _encoded(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Embeddings `[n, tokens, d_in]`, and in XL pooled ones `[n, projection_dim]`."""
        if not (prompts := texts(prompts)):
            raise SepmeError("There is no prompt to encode: give at least one.")
        self.warn_of_cut(prompts)
        # In blocks: a UNet's text encoder is small beside hundreds of prompts' activations.
        with _plainly(self.pipe):
            if self.xl:
                parts = [prompts[i : i + 64] for i in range(0, len(prompts), 64)]
                unguided = {"do_classifier_free_guidance": False}
                found = [self.pipe.encode_prompt(part, **unguided)[::2] for part in parts]
                embeddings, pooled = map(torch.cat, zip(*found, strict=True))
                return embeddings.to(self.dtype), pooled.to(self.dtype)
            options = {"padding": "max_length", "max_length": self.tokens, "truncation": True}
            written = self.pipe.maybe_convert_prompt(prompts, self.pipe.tokenizer)
            ids = self.pipe.tokenizer(written, return_tensors="pt", **options).input_ids
            blocks = [self.pipe.text_encoder(part.to(self.device))[0] for part in ids.split(64)]
            return torch.cat(blocks).to(self.dtype), None

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Forward diffusion of x_0 `[n, c, h, w]` to timesteps `[n]`, by any scheduler's alphas."""
        a = _at(t, self.alphas_cumprod, latents)
        return a.sqrt() * latents + (1 - a).sqrt() * noise  # sqrt(abar_t) x_0 + sqrt(1-abar_t) eps

    def epsilon(
        self, x_t: Tensor, t: Tensor, embedding: Tensor, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Predicted noise eps(x_t, c, t) `[n, c, h, w]`, whatever the UNet itself predicts.

        `embedding` is the prompts' `conditioning`. `weights` (module or parameter path -> tensor)
        replace the UNet's own in this one call, so that a trained increment can be differentiated
        without touching the model.
        """
        text = (
            self._split(embedding, x_t.shape) if self.xl else {"encoder_hidden_states": embedding}
        )
        if weights:
            named = {self._parameter_name(path): weight for path, weight in weights.items()}
            output = torch.func.functional_call(self.unet, named, (x_t, t), text).sample
        else:  # the same, without the time that looking for the parameters takes
            output = self.unet(x_t, t, **text).sample
        return to_epsilon(output, x_t, t, self.alphas_cumprod, self.prediction_type)

    def _split(self, conditioning: Tensor, shape: torch.Size) -> dict[str, Any]:
        """What XL's UNet takes of a `conditioning`, and the size of the picture, uncropped."""
        if conditioning.shape[1] != self.tokens + 1:
            raise SepmeError(
                f"Stable Diffusion XL takes {self.tokens + 1} rows a prompt, the pooled embedding "
                f"last, and not {conditioning.shape[1]}: give what conditioning(prompts) returns."
            )
        pooled = conditioning[:, -1, : self.pipe.text_encoder_2.config.projection_dim]
        height, width = (n * self.pipe.vae_scale_factor for n in shape[-2:])
        sizes = pooled.new_tensor([height, width, 0, 0, height, width]).expand(len(pooled), -1)
        added = {"text_embeds": pooled, "time_ids": sizes}
        return {"encoder_hidden_states": conditioning[:, :-1], "added_cond_kwargs": added}

    def _request(self, prompts: list[str]) -> dict[str, Any]:
        """What the pipeline is asked to draw; XL takes the same `conditioning` as `epsilon`."""
        if not self.xl:
            return {"prompt": prompts}
        shape = self.latent_shape
        c, c_0 = (self._split(self.conditioning(c), shape) for c in (prompts, [""] * len(prompts)))
        height, width = (n * self.pipe.vae_scale_factor for n in shape[-2:])
        return {
            "prompt_embeds": c["encoder_hidden_states"],
            "pooled_prompt_embeds": c["added_cond_kwargs"]["text_embeds"],
            "negative_prompt_embeds": c_0["encoder_hidden_states"],
            "negative_pooled_prompt_embeds": c_0["added_cond_kwargs"]["text_embeds"],
            "height": height,
            "width": width,
        }

    def _parameter_name(self, path: str) -> str:
        """peft wraps a layer and calls the original one `base_layer`."""
        module, _, name = path.rpartition(".")
        if name not in ("weight", "bias"):
            module, name = path, "weight"
        wrapped = isinstance(self.unet.get_submodule(module), BaseTunerLayer)
        return f"{module}.base_layer.{name}" if wrapped else f"{module}.{name}"

    @torch.no_grad()
    @alone
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Iterable[int] | int = 0,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        batch: int | None = None,
        output: str = "images",
        progress: bool = False,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Sample one picture for each of n prompts.

        Args:
            seeds: one a picture (its noise), or the first of n in a row; 0 to 2**63 - 1.
            steps: sampling steps, by default the model's own.
            guidance: g of `eps_0 + g r(c)`, by default the model's own; 0, or 1 and more.
            batch: how many pictures are drawn at once, by default `together`.
            output: "images" `[n, 3, H, W]` in [0, 1] on the CPU, or "latents" `[n, c, h, w]`.
            on_step: called after each step of a batch with the numbers of steps done and in all;
                what it raises ends the sampling.

        All of a picture's noise comes from its own seed, that of an ancestral scheduler too. The
        same batch gives the same bytes on the same machine; another batch moves a picture by some
        1e-5 of its range.

        Raises:
            SepmeError: no prompt, seeds that do not match, numbers that cannot be sampled with, or
                adapters that were switched behind a composition's back.

        Warns:
            SepmeWarning: a prompt that is longer than the model takes, or pictures not finite.
        """
        prompts = texts(prompts)
        seeds = _whole_numbers(seeds, len(prompts))
        steps = self.steps if steps is None else steps
        guidance = self.guidance if guidance is None else guidance
        batch = self.together if batch is None else batch
        choose(tuple(OUTPUTS), output=output)
        self._check_request(prompts, seeds, steps, guidance, batch)
        if guidance == 0:  # eps_0 + 0 r(c): diffusers would draw g = 1 instead
            prompts = [""] * len(prompts)
        parts = [slice(start, start + batch) for start in range(0, len(prompts), batch)]
        how = {"num_inference_steps": integer(steps), "guidance_scale": float(guidance)}
        how |= {"output_type": OUTPUTS[output]}
        if on_step is not None:
            how |= {"callback_on_step_end": _counting(on_step, len(parts))}
        pictures = []
        for part in tqdm(parts, desc="generating", disable=not progress, leave=False):
            # A prompt that is cut has been warned of.
            with quiet(), _plainly(self.pipe) as dtype, self._read_once(on_step is None):
                how |= self._noise(seeds[part], dtype)
                pictures.append(self.pipe(**self._request(prompts[part]), **how).images)
        result = torch.cat(pictures)
        if not result.isfinite().all():
            remedy = "give less guidance or deltas less strength, or load the model in float32"
            warn(f"What was drawn is not finite: {remedy}.")
        return result if output == "latents" else result.float().cpu()

    @contextmanager
    def _read_once(self, wanted: bool) -> Iterator[None]:
        """Within the block keys and values of a text are computed once, and not in every step.

        They depend on nothing but the text and the weights. Who is called after each step
        (`on_step`) may switch deltas; who compiled the UNet would compile it again.
        """
        wanted = wanted and self.pipe.unet is self.unet
        names = ("attn2.to_k", "attn2.to_v") if wanted else ()
        layers = [layer for name, layer in self.unet.named_modules() if name.endswith(names)]
        before = [vars(layer).get("forward") for layer in layers]
        for layer in layers:
            layer.forward = _remembering(layer.forward)
        try:
            yield
        finally:
            for layer, forward in zip(layers, before, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward

    def _noise(self, seeds: Sequence[int], dtype: torch.dtype) -> dict[str, Any]:
        """Each picture's first noise, and where its scheduler takes more of it from."""
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        place = {"dtype": torch.float32, "device": "cpu"}
        noise = torch.empty(len(generators), *self.latent_shape, **place)
        for one, generator in zip(noise, generators, strict=True):
            one.normal_(generator=generator)
        return {"latents": noise.to(dtype), "generator": generators}

    def _check_request(
        self, prompts: list[str], seeds: Sequence[int], steps: int, guidance: float, batch: int
    ) -> None:
        whole(1, batch=batch)
        if len(prompts) != len(seeds) or not prompts:
            raise SepmeError(
                f"{len(prompts)} prompts and {len(seeds)} seeds do not go together: give at least "
                "one prompt, and one seed a picture."
            )
        whole(1, self.timesteps, steps=steps)
        guided(guidance)
        check_unet(self.pipe)
        self.alphas_cumprod  # noqa: B018 - refuses what Stable Diffusion cannot be drawn with
        scheduler = self.pipe.scheduler
        try:
            with quiet():
                scheduler.set_timesteps(integer(steps))
            signature(scheduler.step).bind("model_output", "timestep", "sample")
        except Exception as error:  # whatever a class makes of numbers that it does not take
            raise SepmeError(
                f"A {type(scheduler).__name__} cannot draw in {steps} steps: give another number, "
                "or put a DDIMScheduler in its place."
            ) from error
        if self.composition is not None:
            self.composition.check()
        elif self._last is not None:
            self._last.refuse_exchanged()
        self.warn_of_cut(prompts)


def _remembering(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function, which is not called again for the very tensor that it was called with."""
    given, made = None, None

    def once(text: Tensor, *more: Any, **options: Any) -> Tensor:
        nonlocal given, made
        if text is not given:
            given, made = text, forward(text, *more, **options)
        return made

    return once


def _counting(on_step: Callable[[int, int], None], batches: int) -> Callable[..., dict]:
    """What diffusers calls after each step; it tells the numbers of steps done and in all."""
    done = itertools.count(1)

    def after_step(pipe: Any, _index: int, _t: Any, values: dict) -> dict:
        on_step(next(done), pipe.num_timesteps * batches)  # a scheduler may pass twice for a step
        return values

    return after_step


@contextmanager
def _plainly(pipe: Pipeline) -> Iterator[torch.dtype]:
    """Within the block a pipeline gives back what its weights draw, and is then as it was.

    No picture is blacked out or watermarked, no LoRA drops any of its weights out, and parts of
    different number types are given what they take. It yields the UNet's number type.
    """
    parts = {name: uncompiled(getattr(pipe, name)) for name in PARTS[kind_of(pipe)]}
    training = [m for part in parts.values() for m in part.modules() if m.training]
    extras = {n: vars(pipe)[n] for n in ("safety_checker", "watermark") if n in vars(pipe)}
    hooks = []
    dtypes = {name: part.dtype for name, part in parts.items()}
    if len({*dtypes.values()}) > 1:
        vae = parts["vae"]
        takers = (parts["unet"], vae.decoder, getattr(vae, "post_quant_conv", None))
        hooks = [m.register_forward_pre_hook(_cast, with_kwargs=True) for m in takers if m]
    vars(pipe).update(dict.fromkeys(extras))
    for module in training:
        module.training = False
    try:
        yield dtypes["unet"]
    finally:
        vars(pipe).update(extras)
        for module in training:
            module.training = True
        for hook in hooks:
            hook.remove()


def _cast(module: nn.Module, given: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """What a part is given, and what it is told of a text, in its own number type."""
    dtype = next(module.parameters()).dtype
    text = {name: x.to(dtype) for name, x in named.items() if name == "encoder_hidden_states"}
    return (given[0].to(dtype), *given[1:]), named | text


@torch.no_grad()
def _sketch(tensors: Sequence[Tensor]) -> int:
    """A short form of the values and of where they stand, in the time that their sum takes."""
    first = tensors[0].device
    with torch.autocast(first.type, enabled=False):  # the caller's would round
        small = [tensor.flatten() for tensor in tensors if tensor.ndim < 2]
        sums = [torch.cat([values.to(first, torch.float32) for values in small])]
        for tensor in tensors:
            if tensor.ndim == 4 and not tensor.is_contiguous():  # channels last: as they lie
                tensor = tensor.permute(0, 2, 3, 1)
            if tensor.ndim > 1:
                rows = tensor.flatten(1).float()
                sums.append((rows @ _factors(rows.shape[1], rows.device)).to(first))
    return hash(torch.cat(sums).cpu().numpy().tobytes())


@cache
def _factors(n: int, device: torch.device) -> Tensor:
    """One for each of n places."""
    return torch.arange(n, dtype=torch.float32, device=device).cos()


def _digest(tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> str:
    """Half a sha256 over names, shapes, and bytes in this number type."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        values = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor
        digest.update(values.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _whole_numbers(seeds: Iterable[int] | int, n: int) -> list[int]:
    """The seeds as Python's integers, whatever library they come from."""
    try:
        try:
            first = integer(seeds)
        except TypeError:
            found = [integer(seed) for seed in seeds]
        else:
            found = [*range(first, first + n)]
    except TypeError as error:
        raise SepmeError(f"seeds = {seeds!r} are no whole numbers: give one a picture.") from error
    if wrong := [seed for seed in found if not 0 <= seed < 2**63]:
        raise SepmeError(f"The seed {wrong[0]} is not possible: give 0 to 2**63 - 1.")
    return found


def _at(t: Tensor, alphas_cumprod: Tensor, x: Tensor) -> Tensor:
    """`abar_t`, to be multiplied with x `[n, ...]`."""
    return alphas_cumprod.to(x)[t].reshape(-1, *[1] * (x.ndim - 1))


def to_epsilon(
    model_output: Tensor, x_t: Tensor, t: Tensor, alphas_cumprod: Tensor, prediction_type: str
) -> Tensor:
    """The noise that the model predicts, whatever it was trained to predict.

    From `x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps` and `v = sqrt(a_t) eps - sqrt(1 - a_t) x_0`
    (Salimans & Ho 2022, appendix D).

    Args:
        model_output, x_t: `[batch, channels, height, width]`.
        t: integer timesteps, `[batch]` or a single one.
        alphas_cumprod: `a_t` for every timestep, `[timesteps]`.
        prediction_type: "epsilon", "v_prediction" or "sample".

    Raises:
        SepmeError: another prediction type.
    """
    choose(PREDICTION_TYPES, prediction_type=prediction_type)
    if prediction_type == "epsilon":
        return model_output
    a = _at(t, alphas_cumprod, x_t)
    if prediction_type == "v_prediction":
        return a.sqrt() * model_output + (1 - a).sqrt() * x_t
    return (x_t - a.sqrt() * model_output) / (1 - a).sqrt()  # the model predicts x_0
