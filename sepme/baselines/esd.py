"""ESD, erased stable diffusion: teach the network its own negative guidance.

Gandikota et al., *Erasing Concepts from Diffusion Models*, ICCV 2023 (arXiv 2303.07345, eq. 7):

    L = MSE( eps_theta(x_t, c, t),
             eps_theta*(x_t, "", t) - eta [eps_theta*(x_t, c, t) - eps_theta*(x_t, "", t)] )

x_t is sampled by the student with guidance for the prompt c and stopped at a random step. The
later rewrite writes the target as `eps*(c) - f [eps*(c) - eps*("")]` with f = 2; it is the same
number as eta = f - 1 = 1. Variants differ in what is trained: ESD-x the cross-attention, ESD-u all
else, ESD-x-strict the keys and values only.

Prompts: the bare name of the concept, as published. With prompt="{prompts}" it is one of the
concept's own at random each iteration, as the code does with a list of words; on the Atelier that
erases no better and harms other concepts, since such prompts name those too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
class ESDSettings(TrainingSettings):
    """How ESD is trained. `trains` makes the variant: "attn2", "not_attn2" or "attn2_kv"."""

    prompt: str = "{name}"
    """What is erased: the bare name, another template, or "{prompts}" for the concept's own."""
    eta: float = 1.0
    """Strength of the negative guidance; the rewrite's factor minus one."""
    steps: int = 50
    """Steps of a whole DDIM sampling."""
    guidance: float = 3.0
    """Of the sampling."""
    sampler: str = "student"
    """Who draws x_t: the "student" as published, or the "original" as in the rewrite."""
    pairing: str = "compvis"
    """Which timestep goes with x_t, see `sepme.baselines.sampling`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prompt("prompt", self.prompt)
        at_least(0, eta=self.eta)
        at_least(1, steps=self.steps)
        at_least(0, guidance=self.guidance)
        choose(("student", "original"), sampler=self.sampler)
        choose(tuple(PAIRINGS), pairing=self.pairing)
        if self.ema is not None:
            raise SepmeError("ESD keeps no running mean: leave out ema.")


_REWRITE = ESDSettings(iterations=200, learning_rate=5e-5, sampler="original", pairing="grid")
_ATELIER = ESDSettings(iterations=150, learning_rate=1e-4, batch=4, steps=10, pairing="aligned")

#: * `official`: the original code, ESD-x. * `rewrite`: the later code for diffusers.
#: * `sepme_paper`: as the SepME authors ran it; they report 50, 200 and 1000 iterations.
#: * `atelier`: rates that erase on the shipped model (`benchmarks/results/tune_baselines.csv`).
PRESETS: Mapping[str, ESDSettings] = {
    "official": ESDSettings(),
    "rewrite": _REWRITE,
    "sepme_paper": ESDSettings(),
    "atelier": _ATELIER,
}
PRESETS_U: Mapping[str, ESDSettings] = {
    "official": ESDSettings(trains="not_attn2"),
    "rewrite": replace(_REWRITE, trains="not_attn2"),
    "atelier": replace(_ATELIER, trains="not_attn2", learning_rate=6e-5, batch=2),
}
PRESETS_X_STRICT: Mapping[str, ESDSettings] = {
    "official": replace(_REWRITE, trains="attn2_kv"),  # the rewrite alone has this variant
    "atelier": replace(_ATELIER, trains="attn2_kv", learning_rate=5e-4, batch=2),
}


def erase(
    backbone: Backbone,
    concept: Concept,
    settings: ESDSettings = PRESETS["official"],
    *,
    seed: int = 0,
    trainer: Trainer | None = None,
) -> DenseDelta:
    """Train ESD for one concept; see `Baseline.erase`."""
    student, n = Student(backbone, settings), settings.batch
    texts = tuple(text for text, _ in pairs(concept, settings.prompt))
    embeddings, empty = backbone.encode(texts), backbone.encode([""])
    grid = Grid(backbone, settings.steps)
    sampler = student.epsilon if settings.sampler == "student" else backbone.epsilon

    def loss(_: object, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        c = embeddings[torch.randint(len(texts), (n,), generator=rng)]
        c_0 = empty.expand_as(c)
        done, t = grid.draw(settings.pairing, n, rng)
        noise = torch.randn(n, *backbone.latent_shape, generator=rng).to(c)
        x_t = sample(sampler, grid, noise, c, c_0, settings.guidance, done)
        with torch.no_grad():
            both = [torch.cat(pair) for pair in ((x_t, x_t), (t, t), (c, c_0))]
            target = esd_target(*backbone.epsilon(*both).chunk(2), settings.eta)
        return mse_loss(student.epsilon(x_t, t, c), target), t

    options = {"forgotten": texts, "seed": seed, "trainer": trainer}
    return train(student, concept, settings, "ESD", loss, **options)


def esd_target(eps_c: Tensor, eps_0: Tensor, eta: float) -> Tensor:
    """`eps*("") - eta [eps*(c) - eps*("")]`: what the concept's prompt should predict."""
    return eps_0 - eta * (eps_c - eps_0)
