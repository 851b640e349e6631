"""What the trained baselines share: their settings, which parameters train, and the training.

A method brings its loss and its defaults, nothing else.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sepme._checks import above_zero, at_least, below_one, choose, whole
from sepme.artefact import Provenance, versions
from sepme.concept import Concept, evenly
from sepme.delta import DenseDelta
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.training import Trainer, mix

#: What "not_attn2" leaves out besides the cross-attentions.
_OUTSIDE = ("time_embedding.", "conv_norm_out.", "conv_out.")
#: Which parameters of the UNet a method trains, by their paths as the official codes do: the
#: cross-attention, biases included; its keys and values alone; all but it and `_OUTSIDE`; or all.
SELECTORS: Mapping[str, Callable[[str], bool]] = {
    "attn2": lambda name: "attn2" in name,
    "attn2_kv": lambda name: "attn2.to_k." in name or "attn2.to_v." in name,
    "not_attn2": lambda name: "attn2" not in name and not name.startswith(_OUTSIDE),
    "all": lambda name: True,
}


@dataclass(frozen=True)
class TrainingSettings:
    """How a baseline is trained, whatever its loss. Subclasses add the loss."""

    iterations: int = 1000
    learning_rate: float = 1e-5
    batch: int = 1  #: noised images an iteration
    trains: str = "attn2"  #: which parameters, one of `SELECTORS`
    optimiser: str = "adam"  #: "adam" or "adamw"
    weight_decay: float = 0.0  #: of "adamw" only
    clip: float | None = None  #: largest norm of the gradient over all trained parameters
    ema: float | None = None  #: with this decay, the result is the parameters' running mean

    def __post_init__(self) -> None:
        choose(tuple(SELECTORS), trains=self.trains)
        choose(("adam", "adamw"), optimiser=self.optimiser)
        whole(1, iterations=self.iterations, batch=self.batch)
        above_zero(learning_rate=self.learning_rate)
        at_least(0, weight_decay=self.weight_decay)
        if self.weight_decay and self.optimiser != "adamw":
            raise SepmeError("Only optimiser='adamw' decays weights: leave out weight_decay.")
        if self.clip is not None:
            above_zero(clip=self.clip)
        below_one(ema=self.ema)


def select(backbone: Backbone, trains: str) -> dict[str, Tensor]:
    """Path -> original value of every parameter of the UNet that a selector means."""
    backbone.projections()  # refuses missing and fused ones, which a name would silently miss
    parameters = backbone.unet.named_parameters()
    return {name: value.detach() for name, value in parameters if SELECTORS[trains](name)}


class Student:
    """theta: the UNet with trained copies of some parameters, put in place for one call at a time.

    The frozen original theta* is the UNet itself; nothing is ever written to the pipeline.
    """

    def __init__(self, backbone: Backbone, settings: TrainingSettings) -> None:
        self.backbone, self.settings = backbone, settings
        self.original = select(backbone, settings.trains)
        self.parameters = {n: value.clone().requires_grad_() for n, value in self.original.items()}
        followed = {} if settings.ema is None else self.original
        self.average = {name: value.clone() for name, value in followed.items()}

    def epsilon(self, x_t: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        """eps_theta(x_t, c, t) `[n, c, h, w]`, with gradients to the trained parameters."""
        return self.backbone.epsilon(x_t, t, embedding, self.parameters)

    def averaged_epsilon(self, x_t: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        """The same of the parameters' running mean."""
        return self.backbone.epsilon(x_t, t, embedding, self.average)

    def follow(self) -> None:
        """theta_mean <- decay theta_mean + (1 - decay) theta."""
        if self.average:
            mean, now = (list(d.values()) for d in (self.average, self.parameters))
            get_ema_multi_avg_fn(self.settings.ema)(mean, [p.detach() for p in now], None)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            self.average[name].copy_(value)

    def changes(self) -> dict[str, Tensor]:
        """What was learnt, in float32: trained (or its running mean) minus original.

        Parameters that the loss never reached (behind the last attention, say) are left out.
        """
        result = self.average or self.parameters
        found = {n: (result[n] - value).detach().float() for n, value in self.original.items()}
        return {name: change for name, change in found.items() if change.any()} or found


@dataclass(frozen=True)
class Objective:
    """What a method minimises for one concept."""

    method: str  #: its name in provenance and progress bar
    forgotten: tuple[str, ...]
    #: The loss for what was prepared and fresh random numbers, and its timesteps `[batch]`.
    loss: Callable[[Mapping[str, Tensor], torch.Generator], tuple[Tensor, Tensor]]
    #: What is made once before the training, from the seed.
    prepare: Callable[[int], dict[str, Tensor]] = lambda seed: {}
    kept: tuple[str, ...] = ()  #: the retain set, of a method that trains with one


def train(
    student: Student,
    concept: Concept,
    objective: Objective,
    seed: int = 0,
    trainer: Trainer | None = None,
) -> DenseDelta:
    """Minimise the objective; the result is what the student has learnt."""
    backbone, settings = student.backbone, student.settings
    trained = list(student.parameters.values())
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimiser]
    made = provenance(
        backbone,
        concept,
        asdict(settings) | {"model_guidance": backbone.guidance, "model_steps": backbone.steps},
        objective.method,
        forgotten=objective.forgotten,
        kept=objective.kept,
        seed=seed,
        iterations=settings.iterations,
    )

    def loss(fixed: Mapping[str, Tensor], rng: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        value, t = objective.loss(fixed, rng)
        return value, {"timesteps": tuple(t.tolist())}

    (trainer or Trainer()).train(
        loss,
        kind(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay),
        settings.iterations,
        seed=seed,
        key=[asdict(concept), made.to_dict()],
        title=f"{objective.method}: erasing {concept.name}",
        prepare=lambda: objective.prepare(seed),
        state=[student],
        scale=backbone.loss_scale,
        before_step=lambda: clip_grad_norm_(trained, settings.clip or math.inf),
        after_step=student.follow,
    )
    return DenseDelta(student.changes(), made)


def provenance(
    backbone: Backbone, concept: Concept, settings: dict[str, Any], method: str, **how: Any
) -> Provenance:
    """How a baseline's change was made; `how` is what depends on the kind of method."""
    return Provenance(
        concept=concept.name,
        kind=concept.kind,
        base=backbone.fingerprint,
        base_name=backbone.name,
        settings=settings | {"eraser": method},
        versions=versions(),
        **how,
    )


#: What the SepME authors' own settings of a baseline have in common.
SEPME_PAPER: Mapping[str, Any] = {
    "learning_rate": 1e-5,
    "trains": "attn2",
    "optimiser": "adam",
    "weight_decay": 0.0,
    "clip": None,
}


def distillation(
    student: Student, teacher: Student | Backbone, x_t: Tensor, t: Tensor, c: Tensor, target: Tensor
) -> Tensor:
    """`MSE(eps_theta(x_t, c, t), sg eps_teacher(x_t, target, t))`, embeddings `[n, tokens, d]`."""
    with torch.no_grad():
        goal = teacher.epsilon(x_t, t, target)
    return mse_loss(student.epsilon(x_t, t, c), goal)


def drawn(backbone: Backbone, prompts: Sequence[str], images: int, seed: int) -> Tensor:
    """Latents `[images, c, h, w]` that the original draws once, before the training."""
    return backbone.generate(evenly(prompts, images), mix(seed, -1) % 2**31, output="latents")


def noised(
    backbone: Backbone, images: Tensor, n: int, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Forward diffusion: `x_t`, `t [n]` (uniform), the noise, and which of the images `[n]`."""
    chosen = torch.randint(len(images), (n,), generator=rng)
    t = torch.randint(backbone.timesteps, (n,), generator=rng).to(backbone.device)
    x_0 = images[chosen]
    noise = torch.randn(x_0.shape, generator=rng).to(x_0)
    return backbone.add_noise(x_0, noise, t), t, noise, chosen
