"""SDD, safe self-distillation: let the concept's prompt predict what no prompt predicts.

Kim et al., *Towards Safe Self-Distillation of Internet-Scale Text-to-Image Diffusion Models*,
ICML 2023 workshop (arXiv 2307.05977):

    L = MSE( eps_theta(x_t, c, t), sg eps_theta(x_t, "", t) )

Both predictions are the student's own. x_t is sampled by the running mean of the student (the
teacher, decay 0.999), which is also the result.

Prompts: the bare name of the concept, as published (several concepts would be drawn joined by
commas; here each gets its own change, and changes add up). `atelier` takes the concept's own
prompts, one at random each iteration, and draws each by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sepme._checks import at_least, choose
from sepme.baselines._settings import TrainingSettings, check_prompt
from sepme.baselines._train import Student, train
from sepme.baselines.prompts import pairs
from sepme.baselines.sampling import PAIRINGS, Grid, sample
from sepme.concept import Concept
from sepme.delta import DenseDelta
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.training import Trainer

__all__ = ["PRESETS", "erase"]


@dataclass(frozen=True)
class SDDSettings(TrainingSettings):
    """How SDD is trained."""

    iterations: int = 1500
    optimiser: str = "adamw"
    weight_decay: float = 1e-4
    clip: float | None = 1.0
    ema: float | None = 0.999
    prompt: str = "{name}"
    """What is erased: the bare name, another template, or "{prompts}" for the concept's own."""
    steps: int = 50
    """Steps of a whole DDIM sampling."""
    guidance: float = 3.0
    """Of the sampling."""
    pairing: str = "until"
    """Which timestep goes with x_t, see `sepme.baselines.sampling`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prompt("prompt", self.prompt)
        at_least(1, steps=self.steps)
        at_least(0, guidance=self.guidance)
        choose(tuple(PAIRINGS), pairing=self.pairing)
        if self.ema is None:
            raise SepmeError("SDD's result is its running mean: give ema, like 0.999.")


#: * `official`: the published code. * `atelier`: rates that erase on the shipped model
#:   (`benchmarks/results/tune_baselines.csv`); a mean over 1000 steps is too slow for so few.
PRESETS: Mapping[str, SDDSettings] = {
    "official": SDDSettings(),
    "atelier": SDDSettings(
        iterations=100,
        learning_rate=1e-4,
        batch=2,
        steps=10,
        pairing="aligned",
        ema=0.95,
    ),
}


def erase(
    backbone: Backbone,
    concept: Concept,
    settings: SDDSettings = PRESETS["official"],
    *,
    seed: int = 0,
    trainer: Trainer | None = None,
) -> DenseDelta:
    """Train SDD for one concept; see `Baseline.erase`."""
    student, n = Student(backbone, settings), settings.batch
    texts = tuple(text for text, _ in pairs(concept, settings.prompt))
    embeddings, empty = backbone.encode(texts), backbone.encode([""])
    grid = Grid(backbone, settings.steps)

    def loss(_: object, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        c = embeddings[torch.randint(len(texts), (n,), generator=rng)]
        c_0 = empty.expand_as(c)
        done, t = grid.draw(settings.pairing, n, rng)
        noise = torch.randn(n, *backbone.latent_shape, generator=rng).to(c)
        x_t = sample(student.averaged_epsilon, grid, noise, c, c_0, settings.guidance, done)
        return sdd_loss(student, x_t, t, c, c_0), t

    options = {"forgotten": texts, "seed": seed, "trainer": trainer}
    return train(student, concept, settings, "SDD", loss, **options)


def sdd_loss(student: Student, x_t: Tensor, t: Tensor, c: Tensor, c_0: Tensor) -> Tensor:
    """`MSE(eps_theta(x_t, c, t), sg eps_theta(x_t, "", t))`."""
    with torch.no_grad():
        target = student.epsilon(x_t, t, c_0)
    return mse_loss(student.epsilon(x_t, t, c), target)
