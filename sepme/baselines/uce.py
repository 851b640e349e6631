"""UCE, unified concept editing: a ridge regression for every key and value matrix.

Gandikota et al., *Unified Concept Editing in Diffusion Models*, WACV 2024 (arXiv 2308.14761,
eq. 7). With `c_i` the embedding of what is erased, `v_i* = W0 a_i` what its anchor says, and `p_j`
the embeddings of what is preserved, all as columns:

    W = argmin  e sum_i |W c_i - v_i*|^2  +  p sum_j |W p_j - W0 p_j|^2  +  lambda |W - W0|^2
      = (lambda W0 + e sum v_i* c_i^T + p sum W0 p_j p_j^T)
        (lambda I + e sum c_i c_i^T + p sum p_j p_j^T)^-1

What is kept has no guarantee. Not part of the SepME paper's comparison.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sepme._checks import above_zero, at_least
from sepme.baselines._closed import ClosedForm, ClosedFormSettings, rows
from sepme.baselines.prompts import OWN
from sepme.model import Backbone

__all__ = ["PRESETS"]


@dataclass(frozen=True)
class UCESettings(ClosedFormSettings):
    """The formula's weights, and which embeddings enter it."""

    lam: float = 0.5  #: lambda, the weight of |W - W0|^2
    erase_scale: float = 1.0
    preserve_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(lam=self.lam, erase_scale=self.erase_scale)
        at_least(0, preserve_scale=self.preserve_scale)


PRESETS: Mapping[str, UCESettings] = {
    "official": UCESettings(),
    "atelier": UCESettings(prompt=OWN, rows="all"),
}


def uce_shift(c: Tensor, a: Tensor, p: Tensor, settings: UCESettings) -> Tensor:
    """`D [d_in, d_in]` with `W = W0 (I + D)`: the same for all layers, which only apply W0.

    From the formula above, `W - W0 = e W0 sum (a_i - c_i) c_i^T (...)^-1`, with rows for columns.
    """
    e = settings.erase_scale
    identity = torch.eye(c.shape[1], dtype=c.dtype)
    gram = settings.lam * identity + e * c.T @ c + settings.preserve_scale * p.T @ p
    return torch.linalg.solve(gram, e * c.T @ (a - c)).T


def _shift(
    backbone: Backbone, c: Tensor, a: Tensor, kept: tuple[str, ...], settings: UCESettings
) -> Tensor:
    return uce_shift(c, a, rows(backbone, kept, settings.rows), settings)


UCE = ClosedForm("UCE", ("to_k", "to_v"), _shift)
