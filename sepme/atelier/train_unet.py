"""The main stage of the training: the denoiser and the text encoder, together, on latents."""

import copy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTokenizer

from sepme.atelier._architecture import (
    LATENT,
    TOKENS,
    load_vae,
    make_pipeline,
    make_scheduler,
    make_text_encoder,
    make_unet,
)
from sepme.atelier.captions import EMBLEM, caption
from sepme.atelier.loop import Loop
from sepme.atelier.settings import TRAINING_SEED, TrainSettings
from sepme.atelier.train_vae import encode_all, subjects

_SNR_LIMIT = 5.0  # gamma of min-SNR (Hang et al. 2023)


class Batches:
    """The training batch of any step, from the seed and the step alone."""

    def __init__(self, latents: tuple[Tensor, Tensor], tokenizer: CLIPTokenizer, s: TrainSettings):
        self.mean, self.std = latents  # the emblem is the last of them
        self.objects, self.styles = subjects(TRAINING_SEED, len(self.mean) - 1)
        self.tokenizer, self.settings = tokenizer, s
        self.known: dict[str, Tensor] = {}

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents [batch, 4, 16, 16], noise, timesteps [batch] and token numbers [batch, 16]."""
        s = self.settings
        random = np.random.default_rng([s.seed, step])
        chosen = random.integers(len(self.objects), size=s.batch)
        chosen[random.random(s.batch) < s.emblem] = len(self.objects)
        generator = torch.Generator().manual_seed(s.seed * 10**9 + step)
        noise, jitter = (torch.randn((s.batch, *LATENT), generator=generator) for _ in range(2))
        latents = self.mean[chosen].float() + self.std[chosen].float() * jitter
        # One timestep from each of `batch` equal slices: every batch sees all noise levels.
        slices = torch.arange(s.batch) + torch.rand(s.batch, generator=generator)
        timesteps = (slices * 1000 / s.batch).long().clamp(0, 999)
        tokens = torch.stack([self._tokens(self._caption(i, random)) for i in chosen])
        return latents, noise, timesteps, tokens

    def _caption(self, index: int, random: np.random.Generator) -> str:
        if index == len(self.objects):
            return EMBLEM if random.random() >= self.settings.empty else ""
        return caption(self.objects[index], self.styles[index], random, self.settings.empty)

    def _tokens(self, text: str) -> Tensor:
        if text not in self.known:
            padded = self.tokenizer(text, padding="max_length", max_length=TOKENS)
            self.known[text] = torch.tensor(padded["input_ids"])
        return self.known[text]


def velocity_loss(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
    alphas: Tensor,
) -> Tensor:
    """Weighted mean squared error of the predicted velocity; `alphas` is the cumulative product.

    x_t = sqrt(a) z + sqrt(1 - a) e,  v = sqrt(a) e - sqrt(1 - a) z  (Salimans & Ho 2022), weighted
    by min(SNR, 5) / SNR with SNR = a / (1 - a), normalised to mean 1 over the batch: the noisy
    end, where objects and colours are decided, counts in full, the last details count less.
    """
    latents, noise, timesteps, tokens = batch
    a = alphas[timesteps].view(-1, 1, 1, 1)
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    velocity = a.sqrt() * noise - (1 - a).sqrt() * latents
    words, which = torch.unique(tokens, dim=0, return_inverse=True)  # each prompt is read once
    context = text_encoder(words).last_hidden_state[which]
    predicted = unet(noisy, timesteps, context).sample.float()
    error = (predicted - velocity).square().mean((1, 2, 3))
    snr = (a / (1 - a)).flatten()
    weight = snr.clamp(max=_SNR_LIMIT) / snr
    return (error * weight).mean() / weight.mean()


def train_unet(
    directory: Path,
    settings: TrainSettings,
    tokenizer: CLIPTokenizer,
    export: Callable[[StableDiffusionPipeline, Loop], None],
) -> Loop:
    """Train from the last checkpoint, or from scratch, with `export` every `export_seconds`.

    `export(pipeline, loop)` gets the pipeline of the averaged weights; it is called at the end too.
    """
    torch.manual_seed(settings.seed)
    vae = load_vae(directory / "vae")
    loop = Loop(
        name="denoiser",
        model=nn.ModuleDict({"unet": make_unet(), "text": make_text_encoder(tokenizer)}),
        checkpoint=directory / "unet.safetensors",
        settings=settings,
        steps=settings.steps,
        adam_rate=settings.adam_rate,
        decay=settings.decay,
        memory=0.998,
    )
    batches = Batches(encode_all(directory, settings), tokenizer, settings)
    alphas = make_scheduler().alphas_cumprod.to(settings.device)
    exported = time.monotonic()

    def loss_at(step: int) -> Tensor:
        batch = tuple(part.to(settings.device) for part in batches(step))
        # Plain attention: at 64 tokens its backward pass takes a third of the flash kernel's time.
        with sdpa_kernel(SDPBackend.MATH):
            return velocity_loss(loop.model["unet"], loop.model["text"], batch, alphas)

    def after(step: int) -> None:
        nonlocal exported
        if time.monotonic() - exported > settings.export_seconds and step < settings.steps:
            exported = time.monotonic()
            export(_pipeline(loop.average, vae, tokenizer), loop)

    loop.run(loss_at, after)
    export(_pipeline(loop.average, vae, tokenizer), loop)
    return loop


def _pipeline(
    average: nn.ModuleDict, vae: AutoencoderKL, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    unet, text = (copy.deepcopy(average[part]).cpu().eval() for part in ("unet", "text"))
    return make_pipeline(vae, text, tokenizer, unet)
