"""ESD, erased stable diffusion: teach the network its own negative guidance.

Gandikota et al., *Erasing Concepts from Diffusion Models*, ICCV 2023 (arXiv 2303.07345, eq. 7):

    L = MSE( eps_theta(x_t, c, t),
             eps_theta*(x_t, "", t) - eta [eps_theta*(x_t, c, t) - eps_theta*(x_t, "", t)] )

x_t is sampled by the student with guidance for the prompt c and stopped at a random step. The
later rewrite writes the target as `eps*(c) - f [eps*(c) - eps*("")]` with f = 2; it is the same
number as eta = f - 1 = 1. Variants differ in what is trained: ESD-x the cross-attention, ESD-u all
else, ESD-x-strict the keys and values only.

Prompts: the bare name of the concept, as published. With prompt="{prompts}" it is one of its own at
random each iteration; on the Atelier that erases no better and harms other concepts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sepme._checks import at_least, choose
from sepme.baselines._train import Objective, Student
from sepme.baselines.sampling import SampledSettings, sampled
from sepme.concept import Concept

__all__ = ["PRESETS"]


@dataclass(frozen=True)
class ESDSettings(SampledSettings):
    """How ESD is trained. `trains` makes the variant: "attn2", "not_attn2" or "attn2_kv"."""

    pairing: str = "compvis"
    eta: float = 1.0  #: strength of the negative guidance; the rewrite's factor minus one
    sampler: str = "student"  #: what draws x_t: the "student", or the "original" as in the rewrite

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, eta=self.eta)
        choose(("student", "original"), sampler=self.sampler)


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


def objective(student: Student, concept: Concept, settings: ESDSettings) -> Objective:
    """ESD's loss for one concept, on pictures that are sampled half-way."""

    def loss(x_t: Tensor, t: Tensor, c: Tensor, c_0: Tensor) -> Tensor:
        with torch.no_grad():
            both = [torch.cat(pair) for pair in ((x_t, x_t), (t, t), (c, c_0))]
            target = esd_target(*student.backbone.epsilon(*both).chunk(2), settings.eta)
        return mse_loss(student.epsilon(x_t, t, c), target)

    predict = student.epsilon if settings.sampler == "student" else student.backbone.epsilon
    return sampled(student, concept, settings, "ESD", predict, loss)


def esd_target(eps_c: Tensor, eps_0: Tensor, eta: float) -> Tensor:
    """`eps*("") - eta [eps*(c) - eps*("")]`: what the concept's prompt should predict."""
    return eps_0 - eta * (eps_c - eps_0)
