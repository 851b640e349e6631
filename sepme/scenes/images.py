"""The images of the scenes: drawn once a model state, and measured against the original's."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sepme.artefact import canonical_json, write_atomically
from sepme.atelier.judge import Judge
from sepme.metrics import (
    PAPER_SIZE,
    estimate_share,
    fid_of_features,
    kid_of_features,
    measure_lpips,
)
from sepme.model import Backbone

#: The measures in the order of their columns, and what axes call them.
MEASURES = {
    "acc": "classifier accuracy, %",
    "lpips": "LPIPS against the original",
    "fid": "FID against the original",
    "kid": "KID against the original",
}

__all__ = ["MEASURES"]


@dataclass(frozen=True)
class Sampling:
    """How images are drawn."""

    steps: int = 10
    """Fewer than the Atelier's own 25: its judge sees no difference (`benchmarks/README.md`)."""
    guidance: float = 4.0
    bfloat16: bool = True
    """Draw in mixed precision: 2.3 times as fast on a CPU with bfloat16 instructions."""
    batch: int = 50


@dataclass(frozen=True)
class ImageCache:
    """Images and their features on the disk, each set in a file named by what decides it."""

    backbone: Backbone
    folder: Path
    sampling: Sampling

    def key(self, state: Sequence[str], prompts: Sequence[str], seeds: Sequence[int]) -> str:
        """What decides the images: the model, the changes that are on, prompts, seeds, sampling.

        Args:
            state: digests of the changes, in any order.
        """
        content = {
            "base": self.backbone.fingerprint,
            "state": sorted(state),
            "prompts": list(prompts),
            "seeds": list(seeds),
            "sampling": vars(self.sampling),
        }
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:24]

    def draw(
        self,
        state: Sequence[str],
        prompts: Sequence[str],
        seeds: Sequence[int],
        on: Callable[[], AbstractContextManager],
    ) -> Tensor:
        """`[n, 3, h, w]` bytes, from the disk or drawn now, within `on()`."""
        sampling = self.sampling

        def make() -> Tensor:
            device = self.backbone.device.type
            with on(), torch.autocast(device, torch.bfloat16, enabled=sampling.bfloat16):
                drawn = self.backbone.generate(
                    prompts,
                    seeds,
                    steps=sampling.steps,
                    guidance=sampling.guidance,
                    batch=sampling.batch,
                )
            return (drawn * 255).round().byte()

        return self._cached(self.key(state, prompts, seeds), make)

    def features(self, images: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
        """`[n, d]` features of images in bytes, from the disk or computed now."""
        digest = hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()[:24]
        return self._cached(f"features-{digest}", lambda: of(images.float() / 255).contiguous())

    def _cached(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The one tensor of a file; made anew if the file is missing or was cut off."""
        file = self.folder / f"{name}.safetensors"
        try:
            (tensor,) = load_file(file).values()
        except (OSError, SafetensorError, ValueError):
            tensor = make()
            write_atomically(file, save({"tensor": tensor}))
        return tensor


def measure(
    images: Tensor,
    original: Tensor,
    concept: str,
    judge: Judge,
    *,
    lpips: bool = True,
    features: Sequence[Tensor] | None = None,
) -> dict[str, float | None]:
    """The measures of one concept in one state, as columns of the table; None: not measured.

    Args:
        images: `[n, 3, h, w]` bytes, drawn in this state.
        original: the original model's images of the same prompts and noise.
        lpips: whether to compute it (64 x 64, AlexNet); it needs AlexNet's weights.
        features: of both, from `sepme.metrics.inception_features`, for FID and KID.
    """
    x, y = images.float() / 255, original.float() / 255
    found = {"acc": estimate_share(judge.sees(x, concept))}
    if lpips:
        found["lpips"] = measure_lpips(x, y, PAPER_SIZE)
    if features is not None:
        found["fid"] = fid_of_features(*features, paired=True, resamples=100)
        found["kid"] = kid_of_features(*features, paired=True, resamples=200)
    row: dict[str, float | None] = {}
    for name in MEASURES:
        estimate = found.get(name)
        row[name] = estimate and estimate.mean
        row[f"{name}_low"] = estimate and estimate.low
        row[f"{name}_high"] = estimate and estimate.high
    same = (images == original).flatten(1).all(dim=1)
    return row | {"identical": float(same.double().mean()), "images": len(images)}
