"""Sampling with DDIM up to a random step, and the timestep that the network gets with the result.

ESD and SDD train on pictures that a model has drawn half-way. The random step p counts the sampling
grid from the noisiest timestep (p = 0) to the cleanest. Each p has a bin of timesteps,
`[T (steps - p - 1) / steps, T (steps - p) / steps)`, and the grid's timestep p lies in it. The
official codes pair pictures and timesteps in different ways:

* "aligned": p steps are done, t is uniform in the bin of p.
* "grid": the same picture, t is the grid's own timestep. ESD's later rewrite for diffusers.
* "compvis": ESD's original code. It leaves out the noisiest step of the grid and stops two steps
  late: the picture is 39 to 58 timesteps cleaner (of 1000, with 50 steps) than t says.
* "until": SDD's code. As "aligned", but finished for p = 0, where t says that it is noise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sepme._checks import at_least, choose, whole
from sepme.baselines._train import Objective, Student, TrainingSettings
from sepme.baselines.prompts import check_prompt, pairs
from sepme.concept import Concept
from sepme.loading import as_ddim
from sepme.model import Backbone

__all__ = ["Grid"]

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]

#: Name -> (p, steps) -> which steps of the grid are done.
PAIRINGS: Mapping[str, Callable[[int, int], range]] = {
    "aligned": lambda p, steps: range(p),
    "grid": lambda p, steps: range(p),
    "compvis": lambda p, steps: range(1, min(p + 2, steps)),
    "until": lambda p, steps: range(p or steps),
}


class Grid:
    """The timesteps that DDIM visits, noisiest first."""

    def __init__(self, backbone: Backbone, steps: int) -> None:
        # The predictions are noise already, whatever the UNet itself predicts.
        self.scheduler = as_ddim(backbone.pipe.scheduler)
        self.scheduler.register_to_config(prediction_type="epsilon")
        self.scheduler.set_timesteps(steps, device=backbone.device)
        self.timesteps = self.scheduler.timesteps  #: `[steps]`
        self.total = backbone.timesteps

    def __len__(self) -> int:
        return len(self.timesteps)

    def bin(self, p: int) -> tuple[int, int]:
        """First timestep of the bin of step p, and the first after it."""
        steps = len(self)
        return round((steps - p - 1) * self.total / steps), round((steps - p) * self.total / steps)

    def draw(self, pairing: str, n: int, rng: torch.Generator) -> tuple[range, Tensor]:
        """A random stop: the steps that are done, and the timesteps `[n]` for the network."""
        p = int(torch.randint(len(self), (1,), generator=rng))
        done = PAIRINGS[pairing](p, len(self))
        if pairing == "grid":
            return done, self.timesteps[p].expand(n)
        return done, torch.randint(*self.bin(p), (n,), generator=rng).to(self.timesteps.device)


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

    `predict` is `eps(x_t, t, e)`; `embedding` and `empty` are `[n, tokens, d_in]`.
    """
    x, both = noise, torch.cat([empty, embedding])
    for i in done:
        t = grid.timesteps[i]
        eps_0, eps_c = predict(torch.cat([x, x]), t.expand(2 * len(x)), both).chunk(2)
        x = grid.scheduler.step(eps_0 + guidance * (eps_c - eps_0), t, x).prev_sample
    return x


@dataclass(frozen=True)
class SampledSettings(TrainingSettings):
    """How a method is trained on pictures that are drawn half-way in every iteration."""

    prompt: str = "{name}"  #: what is erased: a template, or "{prompts}" for the concept's own
    steps: int = 50  #: of a whole DDIM sampling
    guidance: float = 3.0  #: of the sampling
    pairing: str = "aligned"  #: which timestep goes with x_t, one of `PAIRINGS`

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prompt(prompt=self.prompt)
        whole(1, steps=self.steps)
        at_least(0, guidance=self.guidance)
        choose(tuple(PAIRINGS), pairing=self.pairing)


def sampled(
    student: Student,
    concept: Concept,
    settings: SampledSettings,
    method: str,
    predict: Predict,
    loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Objective:
    """Train on half-finished pictures: prompts, stop and noise are drawn anew each iteration.

    Args:
        predict: draws the pictures.
        loss: of x_t, t, and the embeddings of the prompts and of the empty one.
    """
    backbone, n = student.backbone, settings.batch
    texts = tuple(text for text, _ in pairs(concept, settings.prompt))
    embeddings, empty = backbone.conditioning(texts), backbone.conditioning([""])
    grid = Grid(backbone, settings.steps)

    def total(_: object, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        c = embeddings[torch.randint(len(texts), (n,), generator=rng)]
        c_0 = empty.expand_as(c)
        done, t = grid.draw(settings.pairing, n, rng)
        noise = torch.randn(n, *backbone.latent_shape, generator=rng).to(c)
        x_t = sample(predict, grid, noise, c, c_0, settings.guidance, done)
        return loss(x_t, t, c, c_0), t

    return Objective(method, texts, total)
