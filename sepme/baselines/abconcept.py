"""Concept ablation: let the concept's prompt predict what its anchor's prompt predicts.

Kumari et al., *Ablating Concepts in Text-to-Image Diffusion Models*, ICCV 2023 (arXiv 2303.13516).
With c* the concept, c its anchor and x_t the noised image of the anchor:

    model-based   L = MSE( eps_theta(x_t, c*, t), sg eps_theta(x_t, c, t) )
    noise-based   L = MSE( eps_theta(x_t, c*, t), eps )
    prior term        + w MSE( eps_theta(x_t, c, t), eps )

The SepME authors ran a form of it with the frozen original as the teacher, images of the concept,
and a prior that holds the anchor to the original:
`+ 10 MSE( eps_theta(x_t, c, t), eps_theta*(x_t, c, t) )`.

Prompts: `official` takes the concept's prompts beside its anchors, pair by pair; `sepme_paper` the
published "{name} painting" and "painting"; `atelier` the bare name and its anchor, and the SepME
authors' prior, without which the anchor drifts and the other concepts go with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sepme.baselines._settings import OWN, TrainingSettings, at_least, check_prompt, choose
from sepme.baselines._training import Callback, Student, Training, mix, noised
from sepme.baselines.prompts import drawn, pairs
from sepme.concept import Concept
from sepme.delta import WeightChange
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.training import Checkpoint


@dataclass(frozen=True)
class AbConceptSettings(TrainingSettings):
    """How concept ablation is trained."""

    iterations: int = 100
    learning_rate: float = 1.6e-5
    """The effective one: 2e-6 times the batch."""
    batch: int = 8
    trains: str = "attn2_kv"
    optimiser: str = "adamw"
    weight_decay: float = 1e-2
    clip: float | None = 1.0
    prompt: str = OWN
    """c*: "{prompts}" for the concept's own, or a template."""
    anchor: str | None = None
    """c of every prompt; None for the concept's own anchors."""
    target: str = "model"
    """"model" (what the anchor's prompt predicts) or "noise" (the noise that was added)."""
    teacher: str = "current"
    """Who predicts for the anchor: the "current" network without gradient, or the "original"."""
    images_of: str = "anchor"
    """What is drawn, by the original model: the "anchor", or the "concept"."""
    images: int = 1000
    prior: str = "none"
    """"none"; "noise", the diffusion loss on the anchor; or "original", which holds the anchor's
    prediction to the original model's."""
    prior_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prompt("prompt", self.prompt)
        choose("target", self.target, ("model", "noise"))
        choose("teacher", self.teacher, ("current", "original"))
        choose("images_of", self.images_of, ("anchor", "concept"))
        choose("prior", self.prior, ("none", "noise", "original"))
        at_least(1, images=self.images)
        at_least(0, prior_weight=self.prior_weight)
        if self.ema is not None:
            raise SepmeError("Concept ablation keeps no running mean: leave out ema.")


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
#:   (`benchmarks/results/tune_baselines.csv`); at half the rate swirl and cubism stay.
PRESETS: Mapping[str, AbConceptSettings] = {
    "official": AbConceptSettings(),
    "official_prior": AbConceptSettings(prior="noise"),
    "sepme_paper": AbConceptSettings(
        iterations=150,
        learning_rate=1e-5,
        batch=1,
        trains="attn2",
        optimiser="adam",
        weight_decay=0.0,
        clip=None,
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
    "official_prior": AbConceptSettings(target="noise", prior="noise"),
    "atelier": replace(_ATELIER, target="noise"),
}


def erase(
    backbone: Backbone,
    concept: Concept,
    settings: AbConceptSettings = PRESETS["official"],
    *,
    keep: Sequence[str] = (),
    seed: int = 0,
    callback: Callback | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = True,
) -> WeightChange:
    """Train concept ablation for one concept.

    Args:
        keep: refused unless empty; the prior term holds on to the anchors, which are the
            concept's.
        seed: decides the images, the noise and the timesteps.
        callback: called with a `Step` after every iteration.
        checkpoint: where to write progress, and to go on from if it is of this very run.

    Raises:
        SepmeError: bad settings, something to keep, a pipeline that carries something or is not in
            float32, or a loss that is no longer finite.
    """
    texts = pairs(concept, settings.prompt, settings.anchor)
    forgotten = tuple(text for text, _ in texts)
    run = Training(
        backbone, concept, settings, "AbConcept", forgotten=forgotten, keep=keep, seed=seed
    )
    targets = backbone.encode(forgotten)
    anchors = backbone.encode([anchor for _, anchor in texts])
    shown = torch.tensor(drawn(range(len(texts)), settings.images))  # of which pair an image is

    def prepare() -> dict[str, Tensor]:
        which = 1 if settings.images_of == "anchor" else 0
        prompts = [texts[i][which] for i in shown]
        images = backbone.generate(
            prompts, mix(seed, -1) % 2**31, output="latents", progress=progress
        )
        return {"images": images}

    def loss(student: Student, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x_t, t, noise, chosen = noised(backbone, run.fixed["images"], settings.batch, generator)
        pair = shown[chosen]
        return ablation_loss(student, settings, x_t, t, noise, targets[pair], anchors[pair]), t

    return run.run(loss, prepare, callback=callback, checkpoint=checkpoint, progress=progress)


def ablation_loss(
    student: Student,
    settings: AbConceptSettings,
    x_t: Tensor,
    t: Tensor,
    noise: Tensor,
    target: Tensor,
    anchor: Tensor,
) -> Tensor:
    """The loss above, for embeddings `[n, tokens, d_in]` of concept and anchor."""
    goal = noise if settings.target == "noise" else _taught(student, settings, x_t, t, anchor)
    loss = mse_loss(student.epsilon(x_t, t, target), goal)
    if settings.prior == "none":
        return loss
    held = noise
    if settings.prior == "original":
        with torch.no_grad():
            held = student.backbone.epsilon(x_t, t, anchor)
    return loss + settings.prior_weight * mse_loss(student.epsilon(x_t, t, anchor), held)


@torch.no_grad()
def _taught(
    student: Student, settings: AbConceptSettings, x_t: Tensor, t: Tensor, anchor: Tensor
) -> Tensor:
    """What the anchor's prompt predicts, a constant for the gradient."""
    predict = student.epsilon if settings.teacher == "current" else student.backbone.epsilon
    return predict(x_t, t, anchor)
