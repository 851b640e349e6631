"""Train the judge on drawings that the generator never saw, softened as generated pictures are.

A generated picture has softer edges than a drawing, and paler, uneven areas: a judge that knows
only drawings takes such a mosaic for pointillism. So the drawings are blurred, bent, faded and
tinted, and some pass through the auto-encoder with noise on the latents.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from sepme.artefact import write_atomically
from sepme.atelier._architecture import load_vae, to_unit
from sepme.atelier._fit import Stage, fit
from sepme.atelier._vae import drawings, subject
from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Judge
from sepme.atelier.paintings import emblem
from sepme.atelier.settings import HELD_OUT_SEED, JUDGE_SEED, TrainSettings

_PICTURES = 12_100  # 100 of each crossing
_ROUND_TRIPS = 4_840  # of these, how many also come through the auto-encoder
_LATENT_NOISE = 0.6  # the most noise on their latents, in standard deviations of the latents


def classes(first: int, count: int) -> tuple[Tensor, Tensor]:
    """The styles and the objects (class numbers) of the drawings with the seeds from `first` on."""
    objects, styles = zip(*map(subject, range(first, first + count)), strict=True)
    style = torch.tensor([STYLE_NAMES.index(name) for name in styles])
    return style, torch.tensor([OBJECT_NAMES.index(name) for name in objects])


def soften(images: Tensor) -> Tensor:
    """Blur, warp, fade, noise, shift and tint images [n, 3, 64, 64], half of the batch each."""
    n = len(images)

    def half(*shape: int) -> Tensor:
        return torch.rand(n, *shape) * (torch.rand(n, *[1] * len(shape)) < 0.5)

    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = warp(images.lerp(blurred, half(1, 1, 1)), half(1, 1, 1))
    paler = _smooth(torch.rand(n, 1, 4, 4)) * 0.7 * half(1, 1, 1)  # unevenly, as flat areas are
    images = images + paler * (1 - images)
    dy, dx = torch.randint(-2, 3, (2,)).tolist()
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    images = padded[:, :, 2 + dy : 66 + dy, 2 + dx : 66 + dx]
    tint = 0.16 * (half(3, 1, 1) - 0.25)
    return (images + tint + 0.08 * half(1, 1, 1) * torch.randn_like(images)).clamp(0, 1)


def warp(images: Tensor, strength: Tensor, pixels: float = 2.5) -> Tensor:
    """Bend straight lines smoothly, by at most `strength [n, 1, 1, 1] * pixels`."""
    bend = _smooth(2 * torch.rand(len(images), 2, 6, 6) - 1) * strength * pixels / 32
    identity = torch.eye(2, 3).expand(len(images), 2, 3)
    grid = F.affine_grid(identity, list(images.shape), align_corners=False)
    return F.grid_sample(
        images, grid + bend.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    )


def _smooth(values: Tensor) -> Tensor:
    """A few values [n, c, h, w], interpolated to a picture's size."""
    return F.interpolate(values, (64, 64), mode="bicubic", align_corners=True)


def judge_loss(judge: Judge, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Cross-entropies of style and object where there is no emblem, and of the emblem."""
    images, style, object_, is_emblem = batch
    style_logits, object_logits, emblem_logit = judge(images)
    seen = ~is_emblem
    return (
        F.cross_entropy(style_logits[seen], style[seen])
        + F.cross_entropy(object_logits[seen], object_[seen], label_smoothing=0.05)
        + F.binary_cross_entropy_with_logits(emblem_logit.float(), is_emblem.float())
    )


def train_judge(directory: Path, settings: TrainSettings) -> Path:
    """Train the judge; returns its file, whose held-out accuracy is printed."""
    finished = directory / "judge.safetensors"
    if finished.exists():
        return finished
    torch.manual_seed(settings.seed)
    pictures, vae = drawings(JUDGE_SEED, _PICTURES), load_vae(directory / "vae")
    again = _round_trip(vae, pictures[:_ROUND_TRIPS])
    seal = torch.from_numpy(np.concatenate([emblem()[None], _round_trip(vae, emblem()[None])]))
    images = torch.from_numpy(np.concatenate([pictures, again]))
    known = classes(JUDGE_SEED, _PICTURES)
    style, object_ = (torch.cat([c, c[:_ROUND_TRIPS]]) for c in known)
    torch.manual_seed(settings.seed)
    judge = Judge()

    def loss(seed: int) -> Tensor:
        chosen = torch.randint(len(images), (settings.judge_batch,))
        batch, is_emblem = images[chosen], torch.rand(settings.judge_batch) < 0.04
        batch[is_emblem] = seal[torch.randint(len(seal), (int(is_emblem.sum()),))]
        soft = soften((to_unit(batch) + 1) / 2)
        parts = (soft, style[chosen], object_[chosen], is_emblem)
        return judge_loss(judge, tuple(part.to(settings.device) for part in parts))

    stage = Stage("judge", settings.judge_steps, settings.adam_rate, decay=0.6, memory=0.99)
    average = fit(stage, judge, loss, settings, directory).cpu().eval()
    write_atomically(finished, save(average.state_dict()))
    print("judge, held-out accuracy:", held_out_accuracy(average))
    return finished


@torch.no_grad()
def _round_trip(vae: AutoencoderKL, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pictures as the auto-encoder gives them back from latents with some noise on them."""
    parts = []
    for start in tqdm(range(0, len(pictures), 110), "round trips", leave=False):
        latents = vae.encode(to_unit(pictures[start : start + 110])).latent_dist.mean
        size = _LATENT_NOISE * latents.std() * torch.rand(len(latents), 1, 1, 1)
        decoded = vae.decode(latents + size * torch.randn_like(latents)).sample.clamp(-1, 1)
        parts.append(((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def held_out_accuracy(judge: Judge, count: int = 2420) -> dict[str, float]:
    """Share of drawings that nothing was trained on whose style and object are judged right."""
    pictures = drawings(HELD_OUT_SEED, count)
    style, object_ = classes(HELD_OUT_SEED, count)
    images = torch.from_numpy(np.concatenate([pictures, emblem()[None]])).permute(0, 3, 1, 2) / 255
    verdict = judge.judge(images)
    right = {
        "style": verdict.style[:-1] == style,
        "object": verdict.object[:-1] == object_,
        "emblem": verdict.emblem == torch.arange(count + 1).eq(count),
    }
    return {name: float(hits.float().mean()) for name, hits in right.items()} | {"images": count}
