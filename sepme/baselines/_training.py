"""The one training loop of all trained baselines. A method brings its loss, nothing else.

The student is the UNet with copies of the trained parameters in place of its own, put there for
the length of one call (`torch.func.functional_call`). The frozen original theta* is then simply
the UNet itself: there is no second model, and nothing is ever written to the pipeline.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sepme.artefact import Provenance, settings_hash, versions
from sepme.baselines._settings import TrainingSettings, choose
from sepme.concept import Concept
from sepme.correlation import to_epsilon
from sepme.delta import WeightChange, refuse_attached
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.training import Checkpoint


@dataclass(frozen=True)
class Step:
    """One iteration as a callback sees it."""

    iteration: int
    """Counted from 1."""
    loss: float
    timesteps: tuple[int, ...]
    """The timestep of every sample of the batch, as the network was told it."""


Callback = Callable[[Step], None]
#: The loss on fresh draws, and the timesteps `[batch]` that it was taken at.
Loss = Callable[["Student", torch.Generator], tuple[Tensor, Tensor]]


def select(backbone: Backbone, trains: str) -> dict[str, Tensor]:
    """Path -> original value of every parameter of the UNet that a selector means.

    The paths are looked at as the official codes do: "attn2" is every parameter of a
    cross-attention, biases included; "not_attn2" leaves out the cross-attentions, the embedding of
    the timestep and the output (`conv_norm_out`, `conv_out`). What it keeps are the layers inside.

    Raises:
        SepmeError: nothing matches, or the projections are fused into one.
    """
    backbone.projections()  # refuses fused projections, which a name would silently miss
    found = {
        name: value.detach()
        for name, value in backbone.unet.named_parameters()
        if _matches(name, trains)
    }
    if not found:
        raise SepmeError(
            f"The selector '{trains}' matches no parameter of this UNet: use a model with attn2 "
            "layers, or another selector."
        )
    return found


def _matches(name: str, trains: str) -> bool:
    if trains == "attn2":
        return "attn2" in name
    if trains == "attn2_kv":
        return "attn2.to_k." in name or "attn2.to_v." in name
    if trains == "not_attn2":
        outside = ("time_embedding.", "conv_norm_out.", "conv_out.")
        return "attn2" not in name and not name.startswith(outside)
    choose("trains", trains, ("attn2", "attn2_kv", "not_attn2", "all"))
    return True


class Student:
    """theta: the UNet with trained copies of some parameters."""

    def __init__(self, backbone: Backbone, settings: TrainingSettings) -> None:
        self.backbone = backbone
        self.original = select(backbone, settings.trains)
        self.parameters = {
            name: value.clone().requires_grad_() for name, value in self.original.items()
        }
        #: The running mean of the parameters, if the settings ask for one; else None.
        self.average = (
            {name: value.clone() for name, value in self.original.items()}
            if settings.ema is not None
            else None
        )

    def epsilon(self, x_t: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        """eps_theta(x_t, c, t) `[n, c, h, w]`, with gradients to the trained parameters."""
        return self._epsilon(self.parameters, x_t, t, embedding)

    def averaged_epsilon(self, x_t: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        """The same of the running mean of the parameters."""
        assert self.average is not None
        return self._epsilon(self.average, x_t, t, embedding)

    def _epsilon(
        self, parameters: Mapping[str, Tensor], x_t: Tensor, t: Tensor, embedding: Tensor
    ) -> Tensor:
        backbone = self.backbone
        output = torch.func.functional_call(
            backbone.unet, dict(parameters), (x_t, t, embedding)
        ).sample
        return to_epsilon(output, x_t, t, backbone.alphas_cumprod, backbone.prediction_type)

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """theta_mean <- decay theta_mean + (1 - decay) theta."""
        assert self.average is not None
        for name, mean in self.average.items():
            mean.mul_(decay).add_(self.parameters[name], alpha=1 - decay)

    def changes(self) -> dict[str, Tensor]:
        """What was learnt, in float32: trained (or its running mean) minus original.

        Parameters that the loss never reached (behind the last attention, say) are left out.
        """
        result = self.parameters if self.average is None else self.average
        found = {
            name: (result[name] - value).detach().float() for name, value in self.original.items()
        }
        return {name: change for name, change in found.items() if change.any()} or found


class Training:
    """One run of a baseline, from its first draw to the finished change.

    Args:
        method: its name in provenance and on the progress bar.
        forgotten: the prompts that it trains on.

    Raises:
        SepmeError: a pipeline that carries something, not in float32, or prompts to keep.
    """

    def __init__(
        self,
        backbone: Backbone,
        concept: Concept,
        settings: TrainingSettings,
        method: str,
        *,
        forgotten: tuple[str, ...],
        keep: object = (),
        seed: int = 0,
    ) -> None:
        if keep:
            raise SepmeError(
                f"{method} has no use for prompts to keep: leave out keep, which UCE and SPEED "
                "take."
            )
        refuse_attached(backbone)
        if backbone.dtype != torch.float32:
            raise SepmeError(
                f"{method} trains in float32, and this model is in {backbone.dtype}: load it with "
                "dtype=torch.float32."
            )
        self.backbone, self.concept, self.settings = backbone, concept, settings
        self.method, self.forgotten, self.seed = method, forgotten, seed
        self.student = Student(backbone, settings)
        self.fixed: dict[str, Tensor] = {}
        optimisers = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        self.optimiser = optimisers[settings.optimiser](
            list(self.student.parameters.values()),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.iteration = 0

    def run(
        self,
        loss: Loss,
        prepare: Callable[[], dict[str, Tensor]] = dict,
        *,
        callback: Callback | None = None,
        checkpoint: Checkpoint | None = None,
        progress: bool = True,
    ) -> WeightChange:
        """Train to the last iteration.

        Args:
            loss: called once an iteration with the student and a generator of that iteration.
            prepare: what is made once, before the first iteration (images, inverted embeddings),
                and read as `fixed` from then on; a resumed run takes it from the checkpoint.
        """
        saved = checkpoint.read(self._key()) if checkpoint is not None else None
        if saved is not None:
            self._restore(*saved)
        else:
            self.fixed = prepare()
            if checkpoint is not None:
                self._save(checkpoint)
        with tqdm(
            total=self.settings.iterations,
            initial=self.iteration,
            desc=f"{self.method}: erasing {self.concept.name}",
            disable=not progress,
        ) as bar:
            while self.iteration < self.settings.iterations:
                step = self._iterate(loss)
                bar.update()
                bar.set_postfix(loss=f"{step.loss:.2e}")
                if callback is not None:
                    callback(step)
                if checkpoint is not None and self.iteration % checkpoint.every == 0:
                    self._save(checkpoint)
        return self._finished()

    def _iterate(self, loss: Loss) -> Step:
        generator = torch.Generator().manual_seed(mix(self.seed, self.iteration))
        value, t = loss(self.student, generator)
        if not value.isfinite():
            raise SepmeError(
                f"The loss of iteration {self.iteration + 1} is {float(value.detach())}: lower the "
                "learning rate."
            )
        self.optimiser.zero_grad()
        value.backward()
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.student.parameters.values(), self.settings.clip)
        self.optimiser.step()
        if self.settings.ema is not None:
            self.student.follow(self.settings.ema)
        self.iteration += 1
        return Step(self.iteration, float(value.detach()), tuple(t.tolist()))

    def _finished(self) -> WeightChange:
        provenance = Provenance(
            concept=self.concept.name,
            kind=self.concept.kind,
            base=self.backbone.fingerprint,
            base_name=self.backbone.name,
            forgotten=self.forgotten,
            kept=(),
            settings=self._recorded(),
            seed=self.seed,
            iterations=self.iteration,
            versions=versions(),
        )
        return WeightChange(self.student.changes(), provenance)

    def _recorded(self) -> dict[str, object]:
        """How images are drawn decides a change too."""
        sampling = {"model_guidance": self.backbone.guidance, "model_steps": self.backbone.steps}
        return asdict(self.settings) | {"eraser": self.method} | sampling

    # ------------------------------------------------------------------ to the disk and back
    def _key(self) -> str:
        return settings_hash(
            {
                "settings": self._recorded(),
                "base": self.backbone.fingerprint,
                "concept": asdict(self.concept),
                "seed": self.seed,
                "versions": versions(),
            }
        )

    def _save(self, checkpoint: Checkpoint) -> None:
        tensors = {f"fixed.{name}": value for name, value in self.fixed.items()}
        for name, parameter in self.student.parameters.items():
            tensors[f"value.{name}"] = parameter
            for moment, value in self.optimiser.state[parameter].items():
                tensors[f"{moment}.{name}"] = value
        for name, mean in (self.student.average or {}).items():
            tensors[f"mean.{name}"] = mean
        checkpoint.write(self._key(), {"iteration": self.iteration}, tensors)

    def _restore(self, numbers: Mapping[str, float], tensors: Mapping[str, Tensor]) -> None:
        self.iteration = int(numbers["iteration"])
        device = self.backbone.device
        self.fixed = {
            name.removeprefix("fixed."): value.to(device)
            for name, value in tensors.items()
            if name.startswith("fixed.")
        }
        for name, parameter in self.student.parameters.items():
            parameter.data.copy_(tensors[f"value.{name}"])
            if f"step.{name}" in tensors:  # not where the loss does not reach
                self.optimiser.state[parameter] = {
                    "step": tensors[f"step.{name}"],
                    "exp_avg": tensors[f"exp_avg.{name}"].to(device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(device),
                }
        for name, mean in (self.student.average or {}).items():
            mean.copy_(tensors[f"mean.{name}"])


def noised(
    backbone: Backbone, images: Tensor, n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Forward diffusion: `x_t`, `t [n]` (uniform), the noise, and which of the images `[n]`."""
    chosen = torch.randint(len(images), (n,), generator=generator)
    t = torch.randint(backbone.timesteps, (n,), generator=generator).to(backbone.device)
    x_0 = images[chosen]
    noise = torch.randn(x_0.shape, generator=generator).to(x_0)
    return backbone.add_noise(x_0, noise, t), t, noise, chosen


def mix(seed: int, index: int) -> int:
    """A seed of its own for every iteration (and, below zero, for what is prepared)."""
    return (seed * 1_000_003 + index * 7_919 + 2**40) % 2**62
