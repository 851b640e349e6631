"""Sampling with DDIM up to some step, and which timestep the half-finished picture is said to have.

Two baselines train on pictures that a model has drawn half-way. The random step p counts the
sampling grid from the noisiest timestep (p = 0) to the cleanest; each p owns a bin of timesteps,
`[T (steps - p - 1) / steps, T (steps - p) / steps)`. A picture that has p steps behind it stands at
the grid's timestep p, inside that bin. The official codes do not all pair the two so:

* "aligned": p steps are done, t is uniform in the bin of p.
* "grid": the same picture, t is the grid's own timestep. ESD's later rewrite for diffusers.
* "compvis": ESD's original code. It leaves out the noisiest step of the grid, and stops two steps
  late: the picture stands at the grid's timestep p + 2, so it is 39 to 58 timesteps cleaner (of
  1000, with 50 steps) than the network is told. Its last two bins get finished pictures.
* "until": SDD's code. As "aligned", except for p = 0, which it never stops at: the network sees a
  finished picture and is told that it is noise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from sepme.errors import SepmeError
from sepme.model import Backbone

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]

#: Name -> (p, steps) -> which steps of the grid are done.
PAIRINGS: Mapping[str, Callable[[int, int], range]] = {
    "aligned": lambda p, steps: range(p),
    "grid": lambda p, steps: range(p),
    "compvis": lambda p, steps: range(1, min(p + 2, steps)),
    "until": lambda p, steps: range(p or steps),
}


@dataclass(frozen=True, eq=False)
class Grid:
    """The timesteps that DDIM visits, noisiest first, and how clean the picture is at each."""

    timesteps: Tensor
    """`[steps]`."""
    alphas: Tensor
    """`[steps + 1]`, abar at each timestep; the last is that of the finished picture."""

    @classmethod
    def of(cls, backbone: Backbone, steps: int) -> "Grid":
        if not 1 <= steps <= backbone.timesteps:
            raise SepmeError(f"steps = {steps} is not possible: give 1 to {backbone.timesteps}.")
        scheduler = DDIMScheduler.from_config(backbone.pipe.scheduler.config)
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps.to(backbone.device)
        final = scheduler.final_alpha_cumprod.reshape(1).to(backbone.device)
        return cls(timesteps, torch.cat([backbone.alphas_cumprod[timesteps], final]))

    def __len__(self) -> int:
        return len(self.timesteps)

    def bin(self, p: int, total: int) -> tuple[int, int]:
        """First timestep of the bin of step p, and the first after it, of `total` timesteps."""
        steps = len(self)
        return round((steps - p - 1) * total / steps), round((steps - p) * total / steps)

    def draw(self, pairing: str, total: int, n: int, generator: torch.Generator) -> "Stop":
        """A random step of the grid, and n timesteps for the pictures that stop there."""
        p = int(torch.randint(len(self), (1,), generator=generator))
        done = PAIRINGS[pairing](p, len(self))
        if pairing == "grid":
            return Stop(done, self.timesteps[p].expand(n))
        t = torch.randint(*self.bin(p, total), (n,), generator=generator)
        return Stop(done, t.to(self.timesteps.device))


@dataclass(frozen=True, eq=False)
class Stop:
    """Where sampling stops, and what the network is told about it."""

    done: range
    """The steps of the grid that are done."""
    t: Tensor
    """`[n]`."""


@torch.no_grad()
def sample(
    predict: Predict,
    grid: Grid,
    noise: Tensor,
    embedding: Tensor,
    empty: Tensor,
    guidance: float,
    done: range,
) -> Tensor:
    """x_t after the steps `done` of DDIM (eta = 0) with guidance, from `noise [n, c, h, w]`.

    Args:
        predict: `eps(x_t, t, e)`; it is asked for both prompts at once.
        embedding, empty: `[n, tokens, d_in]`.
    """
    x, n = noise, len(noise)
    both = torch.cat([empty, embedding])
    for i in done:
        t = grid.timesteps[i].expand(2 * n)
        eps_0, eps_c = predict(torch.cat([x, x]), t, both).chunk(2)
        eps = eps_0 + guidance * (eps_c - eps_0)
        a, a_next = grid.alphas[i], grid.alphas[i + 1]
        x_0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        x = a_next.sqrt() * x_0 + (1 - a_next).sqrt() * eps  # DDIM, eq. 12 with sigma = 0
    return x
