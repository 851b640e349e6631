"""The one training loop: resumable, the same with and without interruptions."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sepme.atelier.checkpoints import load_checkpoint, named, save_checkpoint, under
from sepme.atelier.optimisers import Optimiser, follow, rate_factor
from sepme.atelier.settings import TrainSettings
from sepme.errors import SepmeError


@dataclass
class Loop:
    """Minimise a loss that depends on the step alone.

    A stop at any moment, even SIGKILL, loses at most `settings.save_seconds` of work, and what
    follows is the same as without the stop: every step seeds its own random numbers.
    """

    name: str  #: what the progress bar says
    model: nn.Module  #: what is trained
    checkpoint: Path
    settings: TrainSettings
    steps: int
    adam_rate: float
    decay: float  #: last share of the steps, over which the learning rate falls
    memory: float  #: of the moving average, at most this
    seconds: float = 0.0  #: spent so far, over all resumptions

    def __post_init__(self) -> None:
        self.model.to(self.settings.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimiser = Optimiser(
            self.model, self.settings.muon_rate, self.adam_rate, self.settings.half
        )
        self.step, self.loss = 0, math.nan
        if (found := load_checkpoint(self.checkpoint)) is not None:
            self._resume(*found)

    def run(
        self, loss_at: Callable[[int], Tensor], after: Callable[[int], None] | None = None
    ) -> nn.Module:
        """Take all the steps that are left; returns the averaged model. `after(step)` follows each.

        Raises SepmeError when the loss is no longer finite.
        """
        before, started = self.seconds, time.monotonic()
        saved = started
        bar = tqdm(range(self.step, self.steps), self.name, self.steps, initial=self.step)
        for step in bar:
            torch.manual_seed(self.settings.seed * 10**9 + step)
            with self.settings.autocast():
                loss = loss_at(step)
            loss.backward()
            self.optimiser.step(rate_factor(step, self.steps, decay=self.decay))
            follow(self.average, self.model, step, self.memory)
            self._note(loss.item())
            bar.set_postfix(loss=f"{self.loss:.4f}", refresh=False)
            self.step, self.seconds = step + 1, before + time.monotonic() - started
            if time.monotonic() - saved > self.settings.save_seconds or self.step == self.steps:
                saved = time.monotonic()
                self._save()
            if after is not None:
                after(self.step)
        return self.average

    def _note(self, loss: float) -> None:
        """Keep a running mean of the loss, and stop when it is lost."""
        if not math.isfinite(loss):
            raise SepmeError(
                f"The training of the {self.name} diverged at step {self.step} (the loss is not "
                "finite): run it again, from the last checkpoint, with a smaller muon_rate."
            )
        self.loss = loss if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * loss

    def _save(self) -> None:
        tensors = named("model", self.model.state_dict())
        tensors |= named("average", self.average.state_dict())
        tensors |= named("optimiser", self.optimiser.tensors())
        state = {"step": self.step, "steps": self.steps, "seconds": self.seconds, "loss": self.loss}
        save_checkpoint(self.checkpoint, tensors, state)

    def _resume(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        decays_from = (1 - self.decay) * min(state["steps"], self.steps)
        if self.steps != state["steps"] and state["step"] > decays_from:
            raise SepmeError(
                f"The learning rate of the {self.name} is already falling at step {state['step']} "
                f"of {state['steps']}: resume with that number of steps, or delete "
                f"{self.checkpoint.name} to start anew."
            )
        self.model.load_state_dict(under(tensors, "model"))
        self.average.load_state_dict(under(tensors, "average"))
        self.optimiser.load_tensors(under(tensors, "optimiser"))
        self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]
