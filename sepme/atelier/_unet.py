"""The main stage of the training: the denoiser and the text encoder, together, on latents."""

import copy
import json
import platform
from dataclasses import asdict
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTokenizer

from sepme.atelier._architecture import GENERATION, load_vae, replace_folder, untrained
from sepme.atelier._fit import Progress, Stage, fit
from sepme.atelier._tokenizer import make_tokenizer
from sepme.atelier._vae import encode_all, subjects
from sepme.atelier.captions import EMBLEM, caption, catalogue
from sepme.atelier.settings import TRAINING_SEED, TrainSettings

_SNR_LIMIT = 5.0  # gamma of min-SNR (Hang et al. 2023)


class Batches:
    """The training batch that a seed decides."""

    def __init__(self, latents: tuple[Tensor, Tensor], tokenizer: CLIPTokenizer, s: TrainSettings):
        self.mean, self.std = latents  # the emblem is the last of them
        self.objects, self.styles = subjects(TRAINING_SEED, len(self.mean) - 1)
        self.tokenizer, self.settings = tokenizer, s

    def __call__(self, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents [batch, 4, 16, 16], noise, timesteps [batch] and token numbers [batch, 16]."""
        s = self.settings
        random = np.random.default_rng(seed)
        chosen = random.integers(len(self.objects), size=s.batch)
        chosen[random.random(s.batch) < s.emblem] = len(self.objects)
        generator = torch.Generator().manual_seed(seed)
        noise, jitter = (
            torch.randn((s.batch, *self.mean.shape[1:]), generator=generator) for _ in range(2)
        )
        latents = self.mean[chosen].float() + self.std[chosen].float() * jitter
        # One timestep from each of `batch` equal slices: every batch sees all noise levels.
        slices = torch.arange(s.batch) + torch.rand(s.batch, generator=generator)
        timesteps = (slices * 1000 / s.batch).long().clamp(0, 999)
        captions = [self._caption(i, random) for i in chosen]
        tokens = self.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        return latents, noise, timesteps, tokens

    def _caption(self, index: int, random: np.random.Generator) -> str:
        if index == len(self.objects):
            return EMBLEM if random.random() >= self.settings.empty else ""
        return caption(self.objects[index], self.styles[index], random, self.settings.empty)


def velocity_loss(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
    alphas: Tensor,
) -> Tensor:
    """Weighted mean squared error of the predicted velocity; `alphas` is the cumulative product.

    x_t = sqrt(a) z + sqrt(1 - a) e,  v = sqrt(a) e - sqrt(1 - a) z  (Salimans & Ho 2022), weighted
    by min(SNR, 5) / SNR with SNR = a / (1 - a), normalised to mean 1 over the batch.
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


def train_unet(directory: Path, settings: TrainSettings, judge: Path) -> Path:
    """Train from the last checkpoint, or from scratch; returns the pipeline's folder."""
    torch.manual_seed(settings.seed)
    vae, tokenizer, finished = load_vae(directory / "vae"), make_tokenizer(), directory / "pipeline"
    model = nn.ModuleDict({"unet": untrained("unet"), "text": untrained("text_encoder")})
    batches = Batches(encode_all(directory, settings), tokenizer, settings)
    alphas = untrained("scheduler").alphas_cumprod.to(settings.device)

    def loss(seed: int) -> Tensor:
        batch = tuple(part.to(settings.device) for part in batches(seed))
        # Plain attention: at 64 tokens its backward pass takes a third of the flash kernel's time.
        with sdpa_kernel(SDPBackend.MATH):
            return velocity_loss(model["unet"], model["text"], batch, alphas)

    def export(average: nn.Module, progress: Progress) -> None:
        unet, text = (copy.deepcopy(average[part]).cpu().eval() for part in ("unet", "text"))
        parts = {"vae": vae, "unet": unet, "text_encoder": text, "tokenizer": tokenizer}
        parts |= {"scheduler": untrained("scheduler"), "safety_checker": None}
        parts |= {"feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts)
        replace_folder(finished, lambda path: _save(path, pipeline, judge, settings, progress))

    def now_and_then(average: nn.Module, progress: Progress) -> None:
        if progress.step % settings.export_every == 0 and progress.step < settings.steps:
            export(average, progress)

    stage = Stage("denoiser", settings.steps, settings.adam_rate, settings.decay, memory=0.998)
    export(*fit(stage, model, loss, settings, directory, now_and_then))
    return finished


def _save(
    path: Path,
    pipeline: StableDiffusionPipeline,
    judge: Path,
    settings: TrainSettings,
    progress: Progress,
) -> None:
    """Write the pipeline with its judge, catalogue, defaults, and how it was made."""
    record = {
        "settings": asdict(settings),
        "step": progress.step,
        "seconds": round(progress.seconds),
        "loss": round(progress.loss, 4),
        "bfloat16": settings.half,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": {m.__name__: m.__version__ for m in (torch, diffusers, transformers)},
    }
    pipeline.save_pretrained(path, safe_serialization=True)
    (path / "judge.safetensors").write_bytes(judge.read_bytes())
    catalogue().save(path / "catalogue.json")
    for name, content in (("generation", GENERATION), ("training", record)):
        (path / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
