"""What the trained baselines share: which parameters train, the student, and the finished delta.

A method brings its loss and its defaults, nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sepme.artefact import Provenance, versions
from sepme.baselines._settings import TrainingSettings
from sepme.concept import Concept
from sepme.delta import DenseDelta
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.training import Trainer

#: The loss for what was prepared and fresh random numbers, and its timesteps `[batch]`.
Loss = Callable[[Mapping[str, Tensor], torch.Generator], tuple[Tensor, Tensor]]


def select(backbone: Backbone, trains: str) -> dict[str, Tensor]:
    """Path -> original value of every parameter of the UNet that a selector means.

    The paths are looked at as the official codes do: "attn2" is every parameter of a
    cross-attention, biases included; "not_attn2" leaves out the cross-attentions, the embedding of
    the timestep and the output (`conv_norm_out`, `conv_out`). What it keeps are the layers inside.

    Raises:
        SepmeError: nothing matches, or the projections are fused into one.
    """
    backbone.projections()  # refuses fused projections, which a name would silently miss
    outside = ("time_embedding.", "conv_norm_out.", "conv_out.")
    matches: dict[str, Callable[[str], bool]] = {
        "attn2": lambda name: "attn2" in name,
        "attn2_kv": lambda name: "attn2.to_k." in name or "attn2.to_v." in name,
        "not_attn2": lambda name: "attn2" not in name and not name.startswith(outside),
        "all": lambda name: True,
    }
    parameters = backbone.unet.named_parameters()
    found = {name: value.detach() for name, value in parameters if matches[trains](name)}
    if not found:
        raise SepmeError(
            f"The selector '{trains}' matches no parameter of this UNet: use a model with attn2 "
            "layers, or another selector."
        )
    return found


class Student:
    """theta: the UNet with trained copies of some parameters, put in place for one call at a time.

    The frozen original theta* is then the UNet itself: there is no second model, and nothing is
    ever written to the pipeline.
    """

    def __init__(self, backbone: Backbone, settings: TrainingSettings) -> None:
        self.backbone, self.decay = backbone, settings.ema
        self.original = select(backbone, settings.trains)
        copies = {name: value.clone() for name, value in self.original.items()}
        self.parameters = {name: value.requires_grad_() for name, value in copies.items()}
        #: The running mean of the parameters, where the settings ask for one.
        self.average = {name: value.clone() for name, value in self.original.items()}

    def epsilon(self, x_t: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        """eps_theta(x_t, c, t) `[n, c, h, w]`, with gradients to the trained parameters."""
        return self.backbone.epsilon(x_t, t, embedding, self.parameters)

    def averaged_epsilon(self, x_t: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        """The same of the running mean of the parameters."""
        return self.backbone.epsilon(x_t, t, embedding, self.average)

    def follow(self) -> None:
        """theta_mean <- decay theta_mean + (1 - decay) theta."""
        if self.decay is not None:
            mean, now = (list(d.values()) for d in (self.average, self.parameters))
            get_ema_multi_avg_fn(self.decay)(mean, [p.detach() for p in now], None)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average if self.decay is not None else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            self.average[name].copy_(value)

    def changes(self) -> dict[str, Tensor]:
        """What was learnt, in float32: trained (or its running mean) minus original.

        Parameters that the loss never reached (behind the last attention, say) are left out.
        """
        result = self.parameters if self.decay is None else self.average
        found = {n: (result[n] - value).detach().float() for n, value in self.original.items()}
        return {name: change for name, change in found.items() if change.any()} or found


def train(
    student: Student,
    concept: Concept,
    settings: TrainingSettings,
    method: str,
    loss: Loss,
    *,
    forgotten: tuple[str, ...],
    seed: int,
    trainer: Trainer | None,
    prepare: Callable[[], dict[str, Tensor]] = dict,
) -> DenseDelta:
    """Train the student with a loss; `method` is its name in provenance and progress bar."""
    backbone = student.backbone
    optimisers = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    trained = list(student.parameters.values())
    optimiser = optimisers[settings.optimiser](
        trained, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    provenance = Provenance(
        concept=concept.name,
        kind=concept.kind,
        base=backbone.fingerprint,
        base_name=backbone.name,
        forgotten=forgotten,
        kept=(),
        settings=asdict(settings)
        | {"eraser": method, "model_guidance": backbone.guidance, "model_steps": backbone.steps},
        seed=seed,
        iterations=settings.iterations,
        versions=versions(),
    )

    def described(
        fixed: Mapping[str, Tensor], rng: torch.Generator
    ) -> tuple[Tensor, dict[str, object]]:
        value, t = loss(fixed, rng)
        return value, {"timesteps": tuple(t.tolist())}

    def clip() -> None:
        if settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(trained, settings.clip)

    (trainer or Trainer()).train(
        described,
        optimiser,
        settings.iterations,
        seed=seed,
        key=[asdict(concept), provenance.to_dict()],
        title=f"{method}: erasing {concept.name}",
        prepare=prepare,
        state=[student],
        before_step=clip,
        after_step=student.follow,
    )
    return DenseDelta(student.changes(), provenance)


def noised(
    backbone: Backbone, images: Tensor, n: int, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Forward diffusion: `x_t`, `t [n]` (uniform), the noise, and which of the images `[n]`."""
    chosen = torch.randint(len(images), (n,), generator=rng)
    t = torch.randint(backbone.timesteps, (n,), generator=rng).to(backbone.device)
    x_0 = images[chosen]
    noise = torch.randn(x_0.shape, generator=rng).to(x_0)
    return backbone.add_noise(x_0, noise, t), t, noise, chosen
