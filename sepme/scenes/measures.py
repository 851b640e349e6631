"""What one cell of the tables says: pictures of one concept in one state beside the original's."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sepme.atelier.judge import Judge
from sepme.metrics import (
    PAPER_SIZE,
    Estimate,
    estimate_share,
    fid_of_features,
    kid_of_features,
    measure_lpips,
)
from sepme.scenes.pictures import as_images

#: The measures in the order of their columns.
MEASURES = ("acc", "lpips", "fid", "kid")


@dataclass(frozen=True)
class Cell:
    """The measures of one concept in one state; a measure that was not asked for is None."""

    acc: Estimate
    """Share of pictures in which the judge sees the concept."""
    lpips: Estimate | None
    """Against the original's pictures of the same noise, at 64 x 64, AlexNet."""
    fid: Estimate | None
    kid: Estimate | None
    identical: float
    """Share of pictures that equal the original's in every pixel."""

    def columns(self) -> dict[str, Any]:
        """Flat, for a table: each measure with the ends of its interval."""
        row: dict[str, Any] = {}
        for name in MEASURES:
            estimate = getattr(self, name)
            row[name] = estimate and estimate.mean
            row[f"{name}_low"] = estimate and estimate.low
            row[f"{name}_high"] = estimate and estimate.high
        return row | {"identical": self.identical, "images": self.acc.n}


COLUMNS = [f"{m}{end}" for m in MEASURES for end in ("", "_low", "_high")] + ["identical", "images"]


def measure(
    pictures: Tensor,
    original: Tensor,
    concept: str,
    judge: Judge,
    *,
    lpips: bool = True,
    features: tuple[Tensor, Tensor] | None = None,
) -> Cell:
    """The measures of pictures `[n, 3, h, w]` (bytes) that should show, or not show, a concept.

    Args:
        original: the original model's pictures of the same prompts and noise.
        lpips: whether to compute it; it needs AlexNet's weights.
        features: of both, from `sepme.metrics.inception_features`, for FID and KID.
    """
    same = (pictures == original).flatten(1).all(dim=1)
    x, y = as_images(pictures), as_images(original)
    kid = fid = None
    if features is not None:
        fid = fid_of_features(*features, paired=True, resamples=100)
        kid = kid_of_features(*features, paired=True, resamples=200)
    return Cell(
        acc=estimate_share(judge.sees(x, concept)),
        lpips=measure_lpips(x, y, PAPER_SIZE) if lpips else None,
        fid=fid,
        kid=kid,
        identical=float(same.double().mean()),
    )
