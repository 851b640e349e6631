"""G-CiRs: make what the model says about a concept uncorrelated with what it used to say.

`r(c) = eps(x_t, c, t) - eps(x_t, c_0, t)` is what the prompt c adds to the prediction of the empty
prompt c_0. Erasing drives its correlation with the original model's r to zero: to *uncorrelated*,
not to opposite, since below zero the model starts to draw the anti-concept.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Momentum",
    "balance",
    "correlation_loss",
    "noise_difference",
    "normalised_correlation",
]


def noise_difference(eps_c: Tensor, eps_0: Tensor) -> Tensor:
    """`r(c) = eps(x_t, c, t) - eps(x_t, c_0, t)`, `[batch, channels, height, width]`."""
    return eps_c - eps_0


def correlation_loss(r: Tensor, r0: Tensor) -> Tensor:
    """Paper eq. 2: the mean over channels and pixels of `r * r0`, `[batch]`.

    `r` belongs to the model being changed, `r0` to the original one. Where the two agree, the
    loss is the mean square of `r0`.
    """
    return (r * r0).flatten(1).mean(dim=1)


def normalised_correlation(r: Tensor, r0: Tensor) -> Tensor:
    """`L_cor(theta + Delta) / L_cor(theta) = <r, r0> / <r0, r0>`, `[batch]`, without unit.

    1 is the original model, 0 is erased, below 0 is the anti-concept. Unlike eq. 2 it weighs every
    timestep alike, although r0 is far smaller at some than at others. 0 where r0 vanishes.
    """
    size = correlation_loss(r0, r0)
    return correlation_loss(r, r0) / size.clamp_min(torch.finfo(size.dtype).tiny)


def balance(losses: Tensor) -> Tensor:
    """Paper eq. 3: `eta_i = max_k |L_cor(c_k)| / |L_cor(c_i)|`, `[concepts]`.

    With it every concept pulls as hard as the one that is least erased. A constant for the
    gradient. A loss of (almost) zero counts as `eps` times the largest, so that eta stays finite.
    """
    sizes = losses.detach().abs()
    largest = sizes.max()
    if largest == 0:
        return torch.ones_like(sizes)
    return largest / sizes.clamp_min(torch.finfo(sizes.dtype).eps * largest)


@dataclass
class Momentum:
    """Paper eq. 4, for one concept: `m_n = alpha m_{n-1} + (1 - alpha) L_cor(c)`.

    The single images' losses are noisy; this smooths them and says when to stop. `m_0` is the
    first loss, so the statistic starts where the loss does, not at "already erased".

    The paper sums `eta_i L_cor(c_i)` over the concepts. As `eta_i |L_i|` is the same for all, that
    sum only counts signs: of three concepts, two just below zero stop it, however far the third
    is from erased. So every concept has a momentum of its own, as in the authors' code.
    """

    alpha: float = 0.9
    tau: float = 0.0
    """Stop at `m_n <= tau`: 0 in the paper's first version, 1e-4 in its second."""
    earliest: int = 11
    """The first iteration that may stop, counted from 1."""
    both_sides: bool = False
    """Stop at `|m_n| <= tau`: below -tau is as far from erased as above tau."""
    iteration: int = 0
    value: float = math.nan

    def update(self, loss: float | Tensor) -> float:
        """Take in the loss of the next iteration and return `m_n`."""
        loss = float(loss)
        previous = loss if self.iteration == 0 else self.value
        self.value = self.alpha * previous + (1 - self.alpha) * loss  # eq. 4
        self.iteration += 1
        return self.value

    def over(self, losses: Iterable[float]) -> tuple[list[float], int | None]:
        """`m_n` after each of the losses, and the first iteration after which they stop, if any."""
        values, last = [], None
        for loss in losses:
            values.append(self.update(loss))
            if last is None and self.stopped:
                last = self.iteration
        return values, last

    @property
    def stopped(self) -> bool:
        """Whether the statistic says that the concept is erased."""
        m = abs(self.value) if self.both_sides else self.value
        return self.iteration >= self.earliest and m <= self.tau

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint has to hold."""
        return {"iteration": self.iteration, "value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what `state_dict` said."""
        self.iteration, self.value = int(state["iteration"]), state["value"]
