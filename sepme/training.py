"""The one training loop. SepME, the baselines and the shipped model bring their loss, no more.

A run is decided by its seed: iteration n draws all its random numbers from one generator, seeded
by `mix(seed, n)`. So a run that was stopped at any moment and goes on from its checkpoint ends in
the same bytes, on the same machine and with the same number of threads; with another number a
delta differs by some 1e-5 of its size (`benchmarks/README.md`).
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sepme._checks import whole
from sepme.artefact import digest_of, write_atomically
from sepme.errors import SepmeError

__all__ = ["Step", "Trainer", "mix"]


@dataclass(frozen=True)
class Step:
    """One iteration as a callback sees it."""

    iteration: int
    """Counted from 1."""
    loss: float
    timesteps: tuple[int, ...] = ()
    """The timestep of every sample of the batch."""


class Stateful(Protocol):
    """What a checkpoint holds besides parameters and optimiser: a momentum, a moving average."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Trainer:
    """How a training is watched and resumed, whatever is trained."""

    callback: Callable[[Any], None] | None = None
    """Called with a `Step` after every iteration."""
    checkpoint: Path | None = None
    """File that holds the run now and then. Only an identical run can resume from it. The caller
    deletes it, once the result is safe."""
    every: int = 5
    """Iterations between two checkpoints."""
    progress: bool = True
    """Whether to show a progress bar."""

    def __post_init__(self) -> None:
        whole(1, every=self.every)
        if self.checkpoint is not None:
            object.__setattr__(self, "checkpoint", Path(self.checkpoint))

    def train(
        self,
        loss: Callable[[Mapping[str, Tensor], torch.Generator], tuple[Tensor, Mapping[str, Any]]],
        optimiser: torch.optim.Optimizer,
        iterations: int,
        *,
        seed: int = 0,
        key: Any,
        title: str,
        report: type[Step] = Step,
        prepare: Callable[[], dict[str, Tensor]] = dict,
        state: Sequence[Stateful] = (),
        scale: float = 1.0,
        before_step: Callable[[], object] = lambda: None,
        after_step: Callable[[], object] = lambda: None,
    ) -> None:
        """Minimise a loss over the optimiser's parameters.

        Args:
            loss: gets what `prepare` made and the iteration's generator. Returns the value to
                descend on, and the fields of `report` besides `iteration` and `loss`.
            iterations: the most. Where parts of `state` say whether they are `stopped`, the
                training ends as soon as all of these are.
            seed: with the iteration it decides everything random.
            key: JSON values that decide the run. A checkpoint of another key is not used.
            title, report: what the progress bar says, and what the callback gets.
            prepare: makes what is needed once (pictures of the concept, inverted words). A resumed
                run reads it from the checkpoint.
            state: what changes during the run besides parameters and optimiser.
            scale: of the loss on the way back, and of nothing else (`Backbone.loss_scale`).
            before_step: called between the gradient and the step (clipping).
            after_step: called after the step (moving average, learning rate).

        Raises:
            SepmeError: the loss is no longer finite, or the file named as the checkpoint is none.
        """
        key = digest_of(key)
        done, fixed = self._resume(key, optimiser, state)
        if done >= iterations:
            return
        if fixed is None:
            fixed = prepare()
            self._save(key, optimiser, state, done, fixed)
        with tqdm(total=iterations, initial=done, desc=title, disable=not self.progress) as bar:
            while done < iterations and not _stopped(state):
                value, found = loss(fixed, torch.Generator().manual_seed(mix(seed, done)))
                done += 1
                step = report(**{"iteration": done, "loss": float(value.detach()), **found})
                _check_finite(step)
                _backward(value, optimiser, scale)
                before_step()
                optimiser.step()
                after_step()
                bar.update()
                bar.set_postfix(loss=f"{step.loss:.2e}", refresh=False)
                if self.callback is not None:
                    self.callback(step)
                if done % self.every == 0:
                    self._save(key, optimiser, state, done, fixed)

    # ------------------------------------------------------------------ to the disk and back
    def _save(
        self,
        key: str,
        optimiser: torch.optim.Optimizer,
        state: Sequence[Stateful],
        done: int,
        fixed: Mapping[str, Tensor],
    ) -> None:
        if self.checkpoint is None:
            return
        content = {
            "key": key,
            "done": done,
            "fixed": dict(fixed),
            "parameters": [p.detach() for p in _parameters(optimiser)],
            "optimiser": optimiser.state_dict(),
            "state": [part.state_dict() for part in state],
        }
        file = io.BytesIO()
        torch.save(content, file)
        write_atomically(self.checkpoint, file.getvalue())

    def _resume(
        self, key: str, optimiser: torch.optim.Optimizer, state: Sequence[Stateful]
    ) -> tuple[int, dict[str, Tensor] | None]:
        """Finished iterations, and what was prepared; (0, None) where there is nothing to use."""
        file = self.checkpoint  # empty where the power failed right after it was written
        if file is None or not file.is_file() or not file.stat().st_size:
            return 0, None
        parameters = _parameters(optimiser)
        try:
            saved = torch.load(
                self.checkpoint, map_location=parameters[0].device, weights_only=True
            )
            known = saved["key"]
        except Exception as error:  # torch raises many kinds for a file that is no checkpoint
            raise SepmeError(
                f"'{self.checkpoint}' is no checkpoint of a training, and would be overwritten: "
                "delete it, or name another file."
            ) from error
        if known != key:
            return 0, None
        with torch.no_grad():
            for parameter, value in zip(parameters, saved["parameters"], strict=True):
                parameter.copy_(value)
        optimiser.load_state_dict(saved["optimiser"])
        for part, content in zip(state, saved["state"], strict=True):
            part.load_state_dict(content)
        return saved["done"], saved["fixed"]


def _stopped(state: Sequence[Stateful]) -> bool:
    """Whether all parts that can say so have stopped."""
    stops = [part.stopped for part in state if hasattr(part, "stopped")]
    return bool(stops) and all(stops)


def _backward(loss: Tensor, optimiser: torch.optim.Optimizer, scale: float) -> None:
    """The loss's gradients. They are `scale` times as large only until they are complete."""
    optimiser.zero_grad()
    (scale * loss).backward()
    for parameter in _parameters(optimiser):
        if parameter.grad is not None:
            parameter.grad /= scale


def _check_finite(step: Step) -> None:
    if not math.isfinite(step.loss):
        raise SepmeError(
            f"The loss of iteration {step.iteration} is {step.loss}: lower the learning rate, or "
            "check the model's weights."
        )


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimiser.param_groups for p in group["params"]]


def mix(seed: int, index: int) -> int:
    """A seed of its own for every iteration (below zero: for what is prepared)."""
    return (seed * 1_000_003 + index * 7_919 + 2**40) % 2**62
