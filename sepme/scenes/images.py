"""The images of the scenes: drawn once for each state, and measured against the original's."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sepme import metrics
from sepme.artefact import digest_of, write_atomically
from sepme.atelier.judge import Judge
from sepme.composition import applied
from sepme.delta import ConceptDelta, DenseDelta
from sepme.model import Backbone

#: The measures in the order of their columns, and what axes call them.
MEASURES = {
    "acc": "classifier accuracy, %",
    "lpips": "LPIPS against the original",
    "fid": "FID against the original",
    "kid": "KID against the original",
}

__all__ = ["MEASURES"]

#: What a method makes to erase a concept.
Change: TypeAlias = ConceptDelta | DenseDelta


def has_bfloat16() -> bool:
    """Whether this machine multiplies in bfloat16; without it that is 20 times slower."""
    cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return cpu or torch.cuda.is_available()


@dataclass(frozen=True)
class Sampling:
    """How images are drawn."""

    steps: int = 10  #: the Atelier's own 25 make no difference to its judge (benchmarks/README.md)
    guidance: float = 4.0
    #: Mixed precision: 2.3 times as fast where the machine has it. A table says which it was.
    bfloat16: bool = field(default_factory=has_bfloat16)
    batch: int = 50


@dataclass(frozen=True)
class ImageCache:
    """Images and their features on the disk, each set in a file named by what decides it."""

    backbone: Backbone
    folder: Path
    sampling: Sampling

    def key(self, changes: Sequence[Change], prompts: Sequence[str], seeds: Sequence[int]) -> str:
        """What decides the images: the model, the changes in any order, prompts, sampling."""
        content = {
            "base": self.backbone.fingerprint,
            "state": sorted(change.digest for change in changes),
            "prompts": list(prompts),
            "seeds": list(seeds),
            "sampling": asdict(self.sampling),
        }
        return digest_of(content)[:24]

    def draw(
        self, changes: Sequence[Change], prompts: Sequence[str], seeds: Sequence[int]
    ) -> Tensor:
        """`[n, 3, h, w]` bytes with these changes on, from the disk or drawn now."""
        how = asdict(self.sampling)
        mixed = how.pop("bfloat16")

        def make() -> Tensor:
            device = self.backbone.device.type
            with (
                applied(self.backbone, *changes) as model,
                torch.autocast(device, torch.bfloat16, enabled=mixed),
            ):
                return (model.generate(prompts, seeds, **how) * 255).round().byte()

        return self._cached(self.key(changes, prompts, seeds), make)

    def features(self, images: Tensor) -> Tensor:
        """`[n, 2048]` Inception features of images in bytes, from the disk or computed now."""
        digest = hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()[:24]
        return self._cached(f"features-{digest}", lambda: metrics.inception_features(images / 255))

    def _cached(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The one tensor of a file; made anew if the file is missing or was cut off."""
        file = self.folder / f"{name}.safetensors"
        try:
            (tensor,) = load_file(file).values()
        except (OSError, SafetensorError, ValueError):
            tensor = make().contiguous()
            write_atomically(file, save({"tensor": tensor}))
        return tensor


def measure(
    images: Tensor,
    original: Tensor,
    concept: str,
    judge: Judge,
    features: Sequence[Tensor] | None = None,
) -> dict[str, float]:
    """The measures of one concept in one state, as columns of the table.

    LPIPS (64 x 64, AlexNet) is among them where AlexNet's weights are installed.

    Args:
        images: `[n, 3, h, w]` bytes, drawn in this state.
        original: the original model's images of the same prompts and noise.
        features: of both, from `sepme.metrics.inception_features`, for FID and KID.
    """
    x, y = images / 255, original / 255
    found = {"acc": metrics.estimate_share(judge.sees(x, concept))}
    if metrics.alexnet_available():
        found["lpips"] = metrics.measure_lpips(x, y, metrics.PAPER_SIZE)
    if features is not None:
        found["fid"] = metrics.fid_of_features(*features, paired=True, resamples=100)
        found["kid"] = metrics.kid_of_features(*features, paired=True, resamples=200)
    same = (images == original).flatten(1).all(dim=1)
    row = {"identical": float(same.double().mean()), "images": len(images)}
    for name, e in found.items():
        row |= {name: e.mean, f"{name}_low": e.low, f"{name}_high": e.high}
    return row
