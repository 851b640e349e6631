"""The training of the shipped model from nothing: `sepme atelier train`, resumable at any moment.

Each stage is skipped when its result is there: train the auto-encoder; train the judge on other
pictures; encode the pictures; train the denoiser with the text encoder; export.
"""

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

from sepme.artefact import writable_folder
from sepme.atelier._architecture import GENERATION, load_vae, replace_folder, untrained
from sepme.atelier._fit import Stage, fit
from sepme.atelier._judge import train_judge
from sepme.atelier._tokenizer import make_tokenizer
from sepme.atelier._vae import encode_all, subject, train_vae
from sepme.atelier.captions import EMBLEM, caption, catalogue
from sepme.atelier.settings import TRAINING_SEED, TrainSettings

__all__ = ["train"]

_SNR_LIMIT = 5.0  # gamma of min-SNR (Hang et al. 2023)


def train(directory: Path, settings: TrainSettings | None = None) -> Path:
    """Train, or go on training, in `directory`; returns the pipeline's directory within it.

    A usable pipeline of the weights so far is put there every `settings.export_every` steps.

    Raises:
        SepmeError: no place to write, no finite loss, or a number of steps that changed too late.
    """
    settings, directory = settings or TrainSettings(), writable_folder(directory)
    train_vae(directory, settings)
    return _train_denoiser(directory, settings, train_judge(directory, settings))


def training_batch(
    seed: int, latents: tuple[Tensor, Tensor], tokenizer: CLIPTokenizer, s: TrainSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents [batch, 4, 16, 16], noise, timesteps [batch] and token numbers [batch, 16].

    `latents`: mean and deviation of the training pictures'; the emblem is the last of them.
    """
    mean, std = latents
    seal = len(mean) - 1
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    chosen = random.integers(seal, size=s.batch)
    chosen[random.random(s.batch) < s.emblem] = seal
    shape = (s.batch, *mean.shape[1:])
    noise, jitter = (torch.randn(shape, generator=generator) for _ in range(2))
    # One timestep from each of `batch` equal slices: every batch sees all noise levels.
    slices = torch.arange(s.batch) + torch.rand(s.batch, generator=generator)
    timesteps = (slices * 1000 / s.batch).long().clamp(0, 999)

    def words(index: int) -> str:
        if index == seal:
            return EMBLEM if random.random() >= s.empty else ""
        return caption(*subject(TRAINING_SEED + index), random, s.empty)

    captions = [words(index) for index in chosen]
    tokens = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    return mean[chosen].float() + std[chosen].float() * jitter, noise, timesteps, tokens


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


def _train_denoiser(directory: Path, settings: TrainSettings, judge: Path) -> Path:
    """Train U-Net and text encoder together, on latents; returns the pipeline's folder."""
    torch.manual_seed(settings.seed)
    vae, tokenizer, finished = load_vae(directory / "vae"), make_tokenizer(), directory / "pipeline"
    model = nn.ModuleDict({"unet": untrained("unet"), "text": untrained("text_encoder")})
    latents = encode_all(directory, settings)
    alphas = untrained("scheduler").alphas_cumprod.to(settings.device)

    def loss(seed: int) -> Tensor:
        batch = training_batch(seed, latents, tokenizer, settings)
        batch = tuple(part.to(settings.device) for part in batch)
        # Plain attention: at 64 tokens its backward pass takes a third of the flash kernel's time.
        with sdpa_kernel(SDPBackend.MATH):
            return velocity_loss(model["unet"], model["text"], batch, alphas)

    def export(average: nn.Module) -> None:
        unet, text = (copy.deepcopy(average[part]).cpu().eval() for part in ("unet", "text"))
        parts = {"vae": vae, "unet": unet, "text_encoder": text, "tokenizer": tokenizer}
        parts |= {"scheduler": untrained("scheduler"), "safety_checker": None}
        parts |= {"feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts)
        replace_folder(finished, lambda path: _save(path, pipeline, judge, settings, stage))

    def now_and_then(average: nn.Module) -> None:
        if stage.done % settings.export_every == 0 and stage.done < settings.steps:
            export(average)

    stage = Stage("denoiser", settings.steps, settings.adam_rate, settings.decay, memory=0.998)
    export(fit(stage, model, loss, settings, directory, now_and_then))
    return finished


def _save(
    path: Path,
    pipeline: StableDiffusionPipeline,
    judge: Path,
    settings: TrainSettings,
    stage: Stage,
) -> None:
    """Write the pipeline with its judge, catalogue, defaults, and how it was made."""
    record = {
        "settings": asdict(settings),
        "step": stage.done,
        "seconds": round(stage.seconds),
        "loss": round(stage.loss, 4),
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
