"""SDD, safe self-distillation: let the concept's prompt predict what no prompt predicts.

Kim et al., *Towards Safe Self-Distillation of Internet-Scale Text-to-Image Diffusion Models*,
ICML 2023 workshop (arXiv 2307.05977):

    L = MSE( eps_theta(x_t, c, t), sg eps_theta(x_t, "", t) )

Both predictions are the student's own. x_t is sampled by the running mean of the student (the
teacher, decay 0.999), which is also the result. The prompt is the bare name of the concept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from sepme.baselines._train import Objective, Student, distillation
from sepme.baselines.sampling import SampledSettings, sampled
from sepme.concept import Concept
from sepme.errors import SepmeError

__all__ = ["PRESETS"]


@dataclass(frozen=True)
class SDDSettings(SampledSettings):
    """How SDD is trained."""

    iterations: int = 1500
    optimiser: str = "adamw"
    weight_decay: float = 1e-4
    clip: float | None = 1.0
    ema: float | None = 0.999
    pairing: str = "until"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema is None:
            raise SepmeError("SDD's result is its running mean: give ema, like 0.999.")


#: * `official`: the published code. * `atelier`: rates that erase on the shipped model
#:   (`benchmarks/results/tune_baselines.csv`); a mean over 1000 steps is too slow for so few.
PRESETS: Mapping[str, SDDSettings] = {
    "official": SDDSettings(),
    "atelier": SDDSettings(
        iterations=100, learning_rate=1e-4, batch=2, steps=10, pairing="aligned", ema=0.95
    ),
}


def objective(student: Student, concept: Concept, settings: SDDSettings) -> Objective:
    """SDD's loss for one concept, on pictures that the running mean draws half-way."""
    loss = partial(distillation, student, student)
    return sampled(student, concept, settings, "SDD", student.averaged_epsilon, loss)
