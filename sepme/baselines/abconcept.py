"""Concept ablation: let the concept's prompt predict what its anchor's prompt predicts.

Kumari et al., *Ablating Concepts in Text-to-Image Diffusion Models*, ICCV 2023 (arXiv 2303.13516).
With c* the concept, c its anchor and x_t the noised image of the anchor:

    model-based   L = MSE( eps_theta(x_t, c*, t), sg eps_theta(x_t, c, t) )
    noise-based   L = MSE( eps_theta(x_t, c*, t), eps )
    prior term        + w MSE( eps_theta(x_t, c, t), eps )

The SepME authors ran a form of it with the frozen original as the teacher, images of the concept,
and a prior that holds the anchor to the original:
`+ 10 MSE( eps_theta(x_t, c, t), eps_theta*(x_t, c, t) )`.

Our variant takes a retain set, with x_t the noised image of k from it:
`+ w MSE( eps_theta(x_t, k, t), eps_theta*(x_t, k, t) )`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sepme._checks import at_least, choose, whole
from sepme.baselines._train import (
    SEPME_PAPER,
    Objective,
    Student,
    TrainingSettings,
    distillation,
    drawn,
    noised,
)
from sepme.baselines.prompts import OWN, check_prompt, pairs
from sepme.concept import Concept, evenly
from sepme.errors import SepmeError

__all__ = ["PRESETS"]


@dataclass(frozen=True)
class AbConceptSettings(TrainingSettings):
    """How concept ablation is trained."""

    iterations: int = 100
    learning_rate: float = 1.6e-5  # the effective one: 2e-6 times the batch
    batch: int = 8
    trains: str = "attn2_kv"
    optimiser: str = "adamw"
    weight_decay: float = 1e-2
    clip: float | None = 1.0
    prompt: str = OWN  #: c*: "{prompts}" for the concept's own, or a template
    anchor: str | None = None  #: c of every prompt; None for the concept's own anchors
    target: str = "model"  #: what the anchor's prompt predicts, or the "noise" that was added
    teacher: str = "current"  #: what predicts for the anchor: this network, or the "original"
    images_of: str = "anchor"  #: what the original model draws: the "anchor", or the "concept"
    images: int = 1000
    #: "none"; "noise", the diffusion loss on the anchor; "original", which holds the anchor's
    #: prediction to the original model's; or "retained", which holds those of the retain set.
    prior: str = "none"
    prior_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prompt(prompt=self.prompt)
        choose(("model", "noise"), target=self.target)
        choose(("current", "original"), teacher=self.teacher)
        choose(("anchor", "concept"), images_of=self.images_of)
        choose(("none", "noise", "original", "retained"), prior=self.prior)
        whole(1, images=self.images)
        at_least(0, prior_weight=self.prior_weight)


_ATELIER = AbConceptSettings(
    iterations=120,
    prompt="{name}",
    learning_rate=2e-3,
    batch=4,
    weight_decay=0.0,
    images=32,
    prior="original",
)

#: * `official`: the published code, model-based without the prior term. * `sepme_paper`: what the
#:   SepME authors ran (50 to 150 iterations). * `atelier`: rates that erase on the shipped model
#:   (`benchmarks/results/tune_baselines.csv`); at half the rate swirl and cubism stay, and without
#:   the prior the anchor drifts, and the other concepts with it.
PRESETS: Mapping[str, AbConceptSettings] = {
    "official": AbConceptSettings(),
    "sepme_paper": AbConceptSettings(
        **SEPME_PAPER,
        iterations=150,
        batch=1,
        prompt="{name} painting",
        anchor="painting",
        teacher="original",
        images_of="concept",
        prior="original",
        prior_weight=10.0,
    ),
    "atelier": _ATELIER,
}
PRESETS_NOISE: Mapping[str, AbConceptSettings] = {
    "official": AbConceptSettings(target="noise"),
    "atelier": replace(_ATELIER, target="noise"),
}
#: With the retain set in the prior, which nobody published: `official` has the published rates.
PRESETS_RETAINED: Mapping[str, AbConceptSettings] = {
    "official": AbConceptSettings(prior="retained"),
    "atelier": replace(_ATELIER, prior="retained", images=64),
}


def objective(
    student: Student, concept: Concept, settings: AbConceptSettings, keep: Sequence[str] = ()
) -> Objective:
    """The loss of concept ablation for one concept, on images that the original draws once.

    Raises:
        SepmeError: prompts to keep without the prior that uses them, or the other way round.
    """
    if bool(keep) != (settings.prior == "retained"):
        raise SepmeError("AbConcept takes prompts to keep and prior='retained' only together.")
    backbone = student.backbone
    forgotten, anchors = zip(*pairs(concept, settings.prompt, settings.anchor), strict=True)
    c, c_anchor, c_kept = map(backbone.conditioning, (forgotten, anchors, keep or anchors))
    shown = torch.tensor(evenly(range(len(c)), settings.images))  # of which pair an image is
    kept = torch.tensor(evenly(range(len(c_kept)), settings.images))  # of which prompt

    def prepare(seed: int) -> dict[str, Tensor]:
        prompts = {"images": anchors if settings.images_of == "anchor" else forgotten}
        prompts |= {"retained": keep} if keep else {}
        return {name: drawn(backbone, p, settings.images, seed) for name, p in prompts.items()}

    def loss(fixed: Mapping[str, Tensor], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        x_t, t, noise, chosen = noised(backbone, fixed["images"], settings.batch, rng)
        pair = shown[chosen]
        value = ablation_loss(student, settings, x_t, t, noise, c[pair], c_anchor[pair])
        held = (x_t, t, noise, c_anchor[pair])
        if keep:
            *about, chosen = noised(backbone, fixed["retained"], settings.batch, rng)
            held = (*about, c_kept[kept[chosen]])
        return value + settings.prior_weight * prior_loss(student, settings, *held), t

    return Objective("AbConcept", forgotten, loss, prepare, tuple(keep))


def ablation_loss(
    student: Student,
    settings: AbConceptSettings,
    x_t: Tensor,
    t: Tensor,
    noise: Tensor,
    c: Tensor,
    anchor: Tensor,
) -> Tensor:
    """The first term, for embeddings `[n, tokens, d_in]` of concept and anchor."""
    if settings.target == "noise":
        return mse_loss(student.epsilon(x_t, t, c), noise)
    teacher = student if settings.teacher == "current" else student.backbone
    return distillation(student, teacher, x_t, t, c, anchor)


def prior_loss(
    student: Student, settings: AbConceptSettings, x_t: Tensor, t: Tensor, noise: Tensor, c: Tensor
) -> Tensor:
    """The prior without its weight, for embeddings `[n, tokens, d_in]` of what it holds."""
    if settings.prior == "none":
        return x_t.new_zeros(())
    if settings.prior == "noise":
        return mse_loss(student.epsilon(x_t, t, c), noise)
    return distillation(student, student.backbone, x_t, t, c, c)
