"""A SPEED-style edit: closed form inside the null space of what is kept, values only.

After Li et al., *SPEED: Scalable, Precise, and Efficient Concept Erasure for Diffusion Models*
(arXiv 2503.07392). With `C1` the embeddings of what is erased and `C*` of its anchors as columns,
and `P` the projector onto the null space of what is kept:

    Delta = argmin |(W + Delta P) C1 - W C*|^2 + rho |Delta P|^2
    Delta P = W (C* C1^T - C1 C1^T) P (C1 C1^T P + rho I)^-1

It is computed in coordinates of the null space, `P = S S^T`, where the inverse is of a small
symmetric matrix. "Style", because its filtering and augmentation of the kept prompts are left out,
and the empty prompt is always kept in place of its constraint on that and on the start token.
Not part of the SepME paper's comparison.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sepme._checks import above_zero, below_one
from sepme.baselines._closed import ClosedForm, ClosedFormSettings, rows
from sepme.baselines.prompts import OWN
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.nullspace import null_space

__all__ = ["PRESETS"]


@dataclass(frozen=True)
class SPEEDSettings(ClosedFormSettings):
    """Which embeddings are edited, and how sharply the kept ones are kept, at all their tokens."""

    #: Tolerance of the null space, relative to the largest singular value of what is kept; None for
    #: what the model's dtype rounds away.
    rtol: float | None = None
    ridge: float = 1.0  #: rho; 1 as published

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(ridge=self.ridge)
        below_one(rtol=self.rtol)


PRESETS: Mapping[str, SPEEDSettings] = {
    "official": SPEEDSettings(),
    "atelier": SPEEDSettings(prompt=OWN, rows="all", rtol=3e-3, ridge=0.1),
}


def speed_shift(c: Tensor, a: Tensor, S: Tensor, ridge: float) -> Tensor:
    """`D [d_in, d_in]` with `Delta P = W D`, for rows `c`, `a` `[m, d_in]` and a basis S `[d, f]`.

    `D = (C* - C1) (S^T C1)^T ((S^T C1)(S^T C1)^T + rho I)^-1 S^T`.
    """
    free = c @ S  # [m, f]
    gram = free.T @ free + ridge * torch.eye(S.shape[1], dtype=c.dtype)
    return torch.linalg.solve(gram, free.T @ (a - c)).T @ S.T


def _shift(
    backbone: Backbone, c: Tensor, a: Tensor, kept: tuple[str, ...], settings: SPEEDSettings
) -> Tensor:
    # The tolerance floors at what the embeddings were stored in, so they keep that dtype here.
    A, rtol = rows(backbone, kept, "all"), settings.rtol
    if rtol is not None:  # of the largest singular value, in units of a row's length
        rtol *= float(torch.linalg.matrix_norm(A, 2) / A.norm()) * len(A) ** 0.5
        if rtol >= 1:
            raise SepmeError(
                f"rtol = {settings.rtol} of the largest singular value is more than a kept token: "
                "lower it."
            )
    space = null_space(A.to(backbone.dtype), rtol, labels=kept)
    space.directions(c.to(backbone.dtype))  # refuses a concept of which nothing is free
    return speed_shift(c, a, space.basis, settings.ridge)


SPEED = ClosedForm("SPEED", ("to_v",), _shift, always_kept=("",))
