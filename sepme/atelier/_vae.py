"""First stages of the training: the auto-encoder, and the latents of all pictures."""

from itertools import product
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm.auto import tqdm

from sepme.artefact import write_atomically
from sepme.atelier._architecture import load_vae, replace_folder, standardise, to_unit, untrained
from sepme.atelier._fit import Stage, fit
from sepme.atelier.objects import DRAWERS
from sepme.atelier.paintings import emblem, paint_batch
from sepme.atelier.settings import HELD_OUT_SEED, TRAINING_SEED, TrainSettings
from sepme.atelier.styles import PAINTERS

_CROSSINGS = list(product(DRAWERS, PAINTERS))
_CROP = 32  # the auto-encoder learns on crops: it is convolutional


def subject(seed: int) -> tuple[str, str]:
    """Object and style of the drawing with this seed: every crossing in turn."""
    return _CROSSINGS[seed % len(_CROSSINGS)]


def drawings(first: int, count: int) -> NDArray[np.uint8]:
    """The drawings [count, 64, 64, 3] with the seeds from `first` on."""
    seeds = range(first, first + count)
    objects, styles = zip(*map(subject, seeds), strict=True)
    return paint_batch(objects, styles, seeds)


def vae_loss(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """L1 + MSE + 1/4 gradient difference + 2e-4 KL divergence, of pictures in [-1, 1]."""
    posterior = vae.encode(pictures).latent_dist
    error = vae.decode(posterior.sample()).sample.float() - pictures
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.25 * edges + 2e-4 * divergence


def train_vae(directory: Path, settings: TrainSettings) -> None:
    """Train the auto-encoder on crops of the pictures, and write it to `directory/vae`."""
    if (directory / "vae").exists():
        return
    pictures = drawings(TRAINING_SEED, settings.pictures)
    torch.manual_seed(settings.seed)
    vae = untrained("vae")

    def loss(seed: int) -> Tensor:
        return vae_loss(vae, _crops(pictures, settings, seed).to(settings.device))

    rate = 2 * settings.adam_rate
    stage = Stage("auto-encoder", settings.vae_steps, rate, decay=0.6, memory=0.995)
    average = fit(stage, vae, loss, settings, directory).eval()
    latents, _ = _encode(average, pictures[:2420], settings)
    average = average.cpu()
    standardise(average, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    replace_folder(directory / "vae", average.save_pretrained)
    print(f"auto-encoder: {held_out_psnr(average):.2f} dB on held-out drawings")


def _crops(pictures: NDArray[np.uint8], settings: TrainSettings, seed: int) -> Tensor:
    """Random crops [vae_batch, 3, 32, 32] of random pictures."""
    random = np.random.default_rng(seed)
    whole = pictures[np.sort(random.integers(len(pictures), size=settings.vae_batch))]
    whole[random.random(len(whole)) < settings.emblem] = emblem()
    corners = random.integers(64 - _CROP + 1, size=(len(whole), 2))
    crops = [p[y : y + _CROP, x : x + _CROP] for p, (y, x) in zip(whole, corners, strict=True)]
    return to_unit(np.stack(crops))


@torch.no_grad()
def _encode(
    vae: AutoencoderKL, pictures: NDArray[np.uint8], settings: TrainSettings
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [n, 4, 16, 16] of the latents, not yet scaled."""
    parts = []
    for start in tqdm(range(0, len(pictures), 200), "latents", leave=False):
        batch = to_unit(pictures[start : start + 200]).to(vae.device)
        with settings.autocast():
            posterior = vae.encode(batch).latent_dist
        parts.append((posterior.mean.float().cpu(), posterior.std.float().cpu()))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


@torch.no_grad()
def held_out_psnr(vae: AutoencoderKL, count: int = 242) -> float:
    """Mean peak signal-to-noise ratio [dB] of reconstructed drawings that were never trained on."""
    original = to_unit(drawings(HELD_OUT_SEED, count))
    parts = original.split(11)  # few at once, for the processor's cache
    again = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in parts])
    error = ((again.clamp(-1, 1) - original) / 2).square().mean((1, 2, 3))
    return float((-10 * torch.log10(error)).mean())


def encode_all(directory: Path, settings: TrainSettings) -> tuple[Tensor, Tensor]:
    """Scaled latents of all training pictures, the emblem last: mean and deviation, float16."""
    path = directory / "latents.safetensors"
    if not path.exists():
        vae = load_vae(directory / "vae").to(settings.device)
        pictures = np.concatenate([drawings(TRAINING_SEED, settings.pictures), emblem()[None]])
        latents = _encode(vae, pictures, settings)
        mean, std = (part * vae.config.scaling_factor for part in latents)
        write_atomically(path, save({"mean": mean.half(), "std": std.half()}))
    stored = load_file(path)
    return stored["mean"], stored["std"]
