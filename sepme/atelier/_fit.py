"""How each part of the shipped model is trained: Muon and AdamW, a falling rate, an average."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from sepme.atelier.settings import TrainSettings
from sepme.errors import SepmeError
from sepme.training import Step, Trainer

#: Coefficients of the quintic Newton-Schulz iteration (K. Jordan et al., "Muon", 2024).
_QUINTIC = (3.4445, -4.7750, 2.0315)
#: Layers at the rim of a network and embeddings, which AdamW trains.
_RIM = ("conv_in", "conv_out", "embedding", "quant_conv")


def orthogonalise(gradients: Tensor, steps: int = 5, half: bool = False) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: gradients [n, rows, columns] -> the same.

    X <- a X + (b X X' + c (X X')^2) X drives every singular value towards 1; bfloat16 suffices.
    """
    a, b, c = _QUINTIC
    x = gradients / (gradients.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    x = x.bfloat16() if half else x
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT.contiguous() if tall else x
    for _ in range(steps):
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).to(gradients.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update is orthogonalised.

    `torch.optim.Muon` refuses convolutions, which are most of a U-Net, and updates matrices one by
    one; here those of the same shape are orthogonalised together.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], settings: TrainSettings) -> None:
        super().__init__(parameters, {"lr": settings.muon_rate, "momentum": 0.95})
        self.half = settings.half

    @torch.no_grad()
    def step(self) -> None:
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in (p for p in group["params"] if p.grad is not None):
                buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"]).flatten(1)
                alike[tuple(update.shape)].append((parameter, update))
            for (rows, columns), members in alike.items():
                updates = orthogonalise(torch.stack([u for _, u in members]), half=self.half)
                rate = group["lr"] * max(1, rows / columns) ** 0.5
                for (parameter, _), update in zip(members, updates, strict=True):
                    parameter.sub_(update.view_as(parameter), alpha=rate)


def rate_factor(step: int, steps: int, warm_up: int = 50, decay: float = 0.25) -> float:
    """Share of the full learning rate at `step` of `steps`: warm-up, constant, linear decay to 1 %.

    Before the decay starts, `steps` may be changed without changing what was done so far.
    """
    rising = min(1.0, (step + 1) / warm_up)
    falling = min(1.0, (steps - step) / max(1.0, decay * steps))
    return rising * max(0.01, falling)


@dataclass
class Stage:
    """The training of one network, and how far it is, over all its resumptions."""

    name: str
    steps: int
    adam_rate: float
    decay: float  #: last share of the steps, over which the learning rate falls
    memory: float  #: of the moving average: the largest weight of what it was before
    done: int = 0  #: steps so far
    seconds: float = 0.0
    loss: float = math.nan  #: a running mean

    def __post_init__(self) -> None:
        self._last = time.monotonic()

    def average(self, averaged: list[Tensor], newest: list[Tensor], count: Tensor) -> None:
        """An exponential moving average with a short memory in the first steps."""
        memory = min(self.memory, (int(count) + 1) / (int(count) + 10))
        torch._foreach_lerp_(averaged, newest, 1 - memory)

    def note(self, step: Step) -> None:
        """Count one more step."""
        now = time.monotonic()
        self.done, self.seconds, self._last = step.iteration, self.seconds + now - self._last, now
        mean = 0.98 * self.loss + 0.02 * step.loss
        self.loss = step.loss if math.isnan(self.loss) else mean

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.done, "seconds": self.seconds, "loss": self.loss, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuses another number of steps once the learning rate falls towards the first."""
        self.done, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]
        before = state["steps"]
        if before != self.steps and self.done > (1 - self.decay) * min(before, self.steps):
            raise SepmeError(
                f"The learning rate of the {self.name} is already falling at step {self.done} of "
                f"{before}: resume with that number of steps, or delete its checkpoint to start "
                "anew."
            )


def fit(
    stage: Stage,
    model: nn.Module,
    loss: Callable[[int], Tensor],
    settings: TrainSettings,
    folder: Path,
    callback: Callable[[nn.Module], object] = lambda average: None,
) -> nn.Module:
    """Train a model, or go on from its checkpoint in `folder`; returns its moving average.

    Args:
        loss: gets a seed that differs from step to step, which has also seeded torch.
        callback: gets the moving average after each step.
    """
    model.to(settings.device)
    rim = [p for name, p in model.named_parameters() if p.ndim < 2 or any(r in name for r in _RIM)]
    others = set(model.parameters()) - set(rim)
    muon = Muon([p for p in model.parameters() if p in others], settings)
    adam = torch.optim.AdamW(rim, stage.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
    factor = partial(rate_factor, steps=stage.steps, decay=stage.decay)
    rates = [LambdaLR(optimiser, factor) for optimiser in (muon, adam)]
    average = AveragedModel(model, multi_avg_fn=stage.average).requires_grad_(False)

    def seeded_loss(_: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        torch.manual_seed(generator.initial_seed())
        with settings.autocast():
            return loss(generator.initial_seed()), {}

    def after_step() -> None:
        muon.step()
        muon.zero_grad()
        for rate in rates:
            rate.step()
        average.update_parameters(model)

    def note(step: Step) -> None:
        stage.note(step)
        callback(average.module)

    Trainer(note, folder / f"{stage.name}.checkpoint", settings.save_every).train(
        seeded_loss,
        adam,
        stage.steps,
        seed=settings.seed,
        key={"stage": stage.name, "seed": settings.seed},
        title=stage.name,
        state=(model, average, muon, *rates, stage),
        before_step=lambda: nn.utils.clip_grad_norm_(rim, 1.0),
        after_step=after_step,
    )
    return average.module
