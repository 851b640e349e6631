"""What decides a delta besides the model, the concept and the seed; and the named choices of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sepme.errors import SepmeError


def _choose(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise SepmeError(f"{name} = '{value}' is unknown: choose one of {', '.join(known)}.")


@dataclass(frozen=True)
class ErasureSettings:
    """Everything that decides a delta, besides the model, the concept and the seed.

    The defaults are the preset "default", chosen in small trials on models trained before the
    shipped one and measured on that in `benchmarks/README.md`. They keep the method's shape
    (decorrelate, inside the null space of what is kept, stop on the momentum) and change three
    things about it:

    * **The start** is the closed form instead of zero. What the text decides at the noisiest
      timesteps (neon's black background) weighs next to nothing in a mean over uniform t of an
      epsilon-space product, so that training from zero leaves it standing.
    * **The correlation is normalised** per sample, so that every timestep counts alike, and
      *squared*, so that the anti-concept (a negative correlation) is as wrong as the concept.
    * **Few directions.** The rows e(c) P of a concept lie almost along one line; the directions
      after the first few carry little of it and touch the rest as much as the first ones do.
    """

    parametrisation: str = "lora"
    """"lora" (B Q), "dense" (w x beta S, eq. 9) or "full" (every attn2 weight, undecoupled)."""
    method: str = "svd"
    """Basis of the null space: "svd", or "elimination" as published."""
    keep_rtol: float | None = 3e-3
    """Tolerance of the null space of what is kept, relative to its largest singular value; None
    for the least that the model's dtype allows."""
    concept_rtol: float = 0.1
    """Directions of e(c) P weaker than this times the strongest are left out."""
    start: str = "closed_form"
    """"closed_form", or "zero" as published."""
    objective: str = "squared"
    """"squared" normalised correlation, or "product" (eq. 2)."""
    iterations: int = 40
    """The most iterations; 1000 as published."""
    batch: int = 8
    """Noised images an iteration; 1 as published."""
    images: int = 16
    """Images of the concept, drawn by the original model."""
    timesteps: str = "stratified"
    """"stratified" over the batch, or "uniform" as published."""
    learning_rate: float = 5e-3
    beta: float = 1.0
    """Scale of the dense basis, beta of eq. 9; 1e-4 as published (with learning rate 0.1)."""
    lam: float = 0.0
    """Weight lambda of ||Delta||_1 / M; 1e-6 as published."""
    alpha: float = 0.9
    tau: float = 0.1
    """Stop at m_n <= tau; 0 as published. A tenth of the original correlation is as near to none
    as the noise of a batch of 8 can tell."""
    earliest_stop: int = 11

    def __post_init__(self) -> None:
        _choose("method", self.method, ("svd", "elimination"))
        _choose("parametrisation", self.parametrisation, ("lora", "dense", "full"))
        _choose("start", self.start, ("closed_form", "zero"))
        _choose("objective", self.objective, ("squared", "product"))
        _choose("timesteps", self.timesteps, ("stratified", "uniform"))
        for name in ("iterations", "batch", "images", "earliest_stop"):
            if getattr(self, name) < 1:
                raise SepmeError(f"{name} = {getattr(self, name)} makes no sense: give at least 1.")
        for name in ("learning_rate", "beta"):
            if not 0 < getattr(self, name) < math.inf:
                raise SepmeError(
                    f"{name} = {getattr(self, name)} makes no sense: give a number above 0."
                )
        if not 0 <= self.lam < math.inf:
            raise SepmeError(f"lam = {self.lam} makes no sense: give 0 or more.")
        for name in ("alpha", "keep_rtol", "concept_rtol"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise SepmeError(f"{name} = {value} makes no sense: give at least 0, below 1.")
        if not math.isfinite(self.tau):
            raise SepmeError(f"tau = {self.tau} is no number: give one, like 0.")
        if self.start == "closed_form" and self.parametrisation != "lora":
            raise SepmeError(
                "The closed form starts the 'lora' parametrisation only: use start='zero' with "
                f"'{self.parametrisation}'."
            )


_PAPER = ErasureSettings(
    parametrisation="dense",
    method="elimination",
    start="zero",
    objective="product",
    iterations=1000,
    batch=1,
    timesteps="uniform",
    learning_rate=0.1,
    beta=1e-4,
    lam=1e-6,
    tau=0.0,
)

#: * `default`: what small trials favoured; measured on the Atelier in `benchmarks/README.md`.
#: * `paper`: objective and hyperparameters as published, for SD v1.4.
#: * `paper_rescaled`: the published objective and schedule with rates that move the Atelier, where
#:   the published ones give steps too small to see (`benchmarks/README.md`).
#: * `undecoupled`: the published variant for what must never come back.
PRESETS: Mapping[str, ErasureSettings] = {
    "default": ErasureSettings(),
    "paper": _PAPER,
    "paper_rescaled": replace(_PAPER, learning_rate=0.01, beta=1.0, lam=0.0),
    "undecoupled": replace(
        _PAPER, parametrisation="full", method="svd", learning_rate=1e-5, beta=1.0
    ),
}


def preset(name: str) -> ErasureSettings:
    """The settings of a preset by name."""
    if name not in PRESETS:
        raise SepmeError(f"Preset '{name}' is unknown: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
