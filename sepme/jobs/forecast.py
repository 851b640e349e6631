"""How long erasing takes on this device, and what memory it needs, before anything is trained.

What a pass computes and holds is counted at full size, on tensors without content. How fast the
device computes is measured on passes of about a second, at smaller latents where a model is large.
"""

import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import Any

import psutil
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from sepme.erasure import ErasureSettings, added, zeros
from sepme.model import Backbone

__all__ = ["Forecast", "duration", "gigabytes"]

#: A pass that takes more seconds is not made larger to measure better.
QUICK = 0.5
#: What libraries hold beside the tensors: in the shape of Stable Diffusion 1.x the process grew by
#: 1.14 times the tensors in float32, and by 1.23 times in bfloat16.
BESIDE = 1.2
#: Operations of attention on the CPU, which torch counts on GPUs only.
_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
ATTENTION = {
    _attention: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    _attention_backward: lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4]),
}
#: A pass of so many pictures, with latents of this height and width.
Pass = Callable[[int, int], object]


@dataclass(frozen=True)
class Forecast:
    """What drawing takes, and erasing one concept with these settings."""

    model: Backbone
    settings: ErasureSettings
    micro_batch: int | None = None
    concepts: int = 1
    """Erased jointly, so that all their passes are held until the way back."""
    _counts: dict[tuple[str, int, int], tuple[int, int]] = field(default_factory=dict, repr=False)

    @property
    def side(self) -> int:
        return self.model.latent_shape[-1]

    @property
    def at_once(self) -> int:
        """Images in one pass of the training."""
        return min(self.micro_batch or self.settings.batch, self.settings.batch)

    @property
    def _together(self) -> int:
        """Pictures that are drawn at once."""
        return min(self.model.together, self.settings.images)

    def step(self, pictures: int) -> float:
        """Seconds of a step of the sampler, with so many pictures at once."""
        if self._alone > QUICK:  # nothing is gained by drawing more at once
            return pictures * self._alone
        return measured(self._drawing, pictures, self.side, self.model.device, self._count)

    @cached_property
    def _alone(self) -> float:
        return measured(self._drawing, 1, self.side, self.model.device, self._count)

    @cached_property
    def seconds(self) -> float:
        """Of one concept at most, texts and null space aside."""
        settings, device = self.settings, self.model.device
        if settings.iterations == 0:
            return 0.0  # the closed form passes nothing through the UNet
        steps = settings.sampling_steps(self.model) * ceil(settings.images / self._together)
        # The original model is asked as in a sampler's step: twice an image.
        original = self.step(self.at_once) * self._batches
        changed = measured(self._training, self.at_once, self.side, device, self._count)
        parts = ceil(settings.batch / self.at_once)
        return steps * self.step(self._together) + parts * (
            original + settings.iterations * changed
        )

    @cached_property
    def operations(self) -> int:
        """Floating-point operations of an iteration of the training, forwards and back."""
        parts = ceil(self.settings.batch / self.at_once)
        return parts * self._count(self._training, self.at_once, self.side)[0]

    @cached_property
    def peak(self) -> int:
        """Bytes at the peak, beside the model."""
        if self.settings.iterations == 0:
            return 0
        drawn = self._count(self._drawing, self._together, self.side)[1]
        trained = self._count(self._training, self.at_once, self.side)[1]
        held = 1 if self.at_once < self.settings.batch else self.concepts
        return int(BESIDE * max(drawn, held * trained))

    def warning(self) -> str | None:
        """A sentence, where the peak is more than what is free."""
        free, device = free_memory(self.model.device), self.model.device
        if self.peak <= free:
            return None
        do = ["a smaller model, or a machine with more memory"]
        if self.model.dtype == torch.float32:  # of the halves, the one that is fast there
            do.insert(0, f"--dtype {'bfloat16' if device.type == 'cpu' else 'float16'}")
        if self.at_once > 1:
            do.insert(0, f"--micro-batch {max(1, int(self.at_once * free / self.peak))}")
        return (
            f"Training would take about {gigabytes(self.peak)} beside the model, and "
            f"{gigabytes(free)} are free on {device}: give {' or '.join(do[:2])}."
        )

    def memory(self) -> str:
        """What is taken, what the peak adds to it, and what is free, in words."""
        taken, where = psutil.Process().memory_info().rss, "of the machine's memory"
        if self.model.device.type == "cuda":
            taken, where = torch.cuda.memory_allocated(self.model.device), "of the GPU's memory"
        free = gigabytes(free_memory(self.model.device))
        return (
            f"{gigabytes(taken)} {where} taken by now, about {gigabytes(self.peak)} more at the "
            f"peak of erasing; {free} are free"
        )

    def passes(self) -> str:
        """Which passes of the UNet there are, in words."""
        settings, again = self.settings, self.at_once < self.settings.batch
        if settings.iterations == 0:
            return "no pass of the UNet: the closed form needs none"
        guided = 1 + (self.model.guidance > 1)
        drawn = settings.images * settings.sampling_steps(self.model) * guided
        samples, changed = settings.iterations * settings.batch, 1 + self._asks_twice
        forwards = 2 * self._batches * settings.batch + samples * changed * (1 + again)
        return (
            f"{drawn} passes of the UNet draw {settings.images} pictures; up to "
            f"{settings.iterations} iterations of {settings.batch} pass {forwards} forwards and "
            f"{samples * changed} backwards"
        )

    @property
    def _batches(self) -> int:
        """Batches that the original model is asked about: one an iteration, or the pool."""
        settings = self.settings
        return ceil(settings.pool / settings.batch) if settings.pool else settings.iterations

    @property
    def _asks_twice(self) -> bool:
        """Whether the changed model is asked for c_0 too, since nothing keeps the empty prompt."""
        return self.settings.parametrisation == "full" and self.settings.reference == "empty"

    def _count(self, work: Pass, batch: int, side: int) -> tuple[int, int]:
        """`counted`, once."""
        key = (work.__name__, batch, side)
        if key not in self._counts:
            self._counts[key] = counted(work, batch, side)
        return self._counts[key]

    @torch.no_grad()
    def _drawing(self, batch: int, side: int) -> None:
        """A step of the sampler: every picture with its prompt and without."""
        self.model.epsilon(*_inputs(self.model, 2 * batch, side))

    def _training(self, batch: int, side: int) -> None:
        """The changed model's part of an iteration, forwards and back, with what is trained."""
        model, settings = self.model, self.settings
        # Directions: as many as a prompt has tokens, or the whole space.
        rows = {"lora": model.tokens, "dense": model.d_in, "full": None}[settings.parametrisation]
        W = {path: w.requires_grad_() for path, w in zeros(model, rows).items()}
        moments = [torch.zeros_like(w) for w in W.values() for _ in range(2)]  # Adam's
        R = None if rows is None else torch.zeros(rows, model.d_in, device=model.device)
        inputs = _inputs(model, batch, side)

        def changed() -> Tensor:
            with added(model, [(R, W)]) as weights:
                return model.epsilon(*inputs, weights).float()

        again = self.at_once < settings.batch  # a micro-batch keeps nothing for the way back
        eps = [
            checkpoint(changed, use_reentrant=False) if again else changed()
            for _ in range(1 + self._asks_twice)
        ]
        (model.loss_scale * torch.stack(eps).square().mean()).backward()
        del moments  # held until here


def _inputs(model: Backbone, batch: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    place = {"device": model.device, "dtype": model.dtype}
    x_t = torch.zeros(batch, model.latent_shape[0], side, side, **place)
    text = torch.zeros(batch, model.tokens + model.xl, model.d_in, **place)  # see `conditioning`
    return x_t, torch.full((batch,), 500, device=model.device), text


# ------------------------------------------------------------------ counted
class _Living(TorchDispatchMode):
    """The bytes of the tensors that are alive, and their peak."""

    now = peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if all(returned.alias_info is None for returned in func._schema.returns):  # no view
            for tensor in tree_leaves(made):
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage()
                    self._add(storage.nbytes())
                    weakref.finalize(storage, self._add, -storage.nbytes())
        return made

    def _add(self, change: int) -> None:
        self.now += change
        self.peak = max(self.peak, self.now)


def counted(work: Pass, batch: int, side: int) -> tuple[int, int]:
    """Floating-point operations of a pass, and the bytes of its tensors at their peak."""
    counter, living = FlopCounterMode(display=False, custom_mapping=ATTENTION), _Living()
    with FakeTensorMode(allow_non_fake_inputs=True), counter, living:
        work(batch, side)
    return counter.get_total_flops(), living.peak


# ------------------------------------------------------------------ measured
def measured(
    work: Pass,
    batch: int,
    side: int,
    device: torch.device,
    count: Callable[[Pass, int, int], tuple[int, int]] = counted,
) -> float:
    """Seconds of a pass: of itself, or beyond two smaller ones in proportion to the operations."""
    found: list[tuple[tuple[int, int], float]] = []
    for size in _growing(batch, side):
        try:
            took = _seconds(work, *size, device)
            if took < QUICK:
                took = min(took, _seconds(work, *size, device))
        except torch.OutOfMemoryError:
            break  # the warning says so
        found.append((size, took))
        if took > QUICK and len(found) > 1:
            break
    size, took = found[-1]
    if size == (batch, side) or len(found) < 2:
        return took
    smaller, less = found[-2]
    few, some, all_ = (count(work, *each)[0] for each in (smaller, size, (batch, side)))
    return took + (all_ - some) * max(took - less, 0) / (some - few)


def _growing(batch: int, side: int) -> Iterator[tuple[int, int]]:
    """Ever larger passes: one picture from latents of 8 x 8 on, then more of them, then all."""
    yield from ((1, 2**power) for power in range(3, 10) if 2**power < side)
    yield from ((2**power, side) for power in range(20) if 2**power < batch)
    yield batch, side


def _seconds(work: Pass, batch: int, side: int, device: torch.device) -> float:
    """Of one pass. On the CPU, what this process computes, whatever else the machine does."""
    wall, computed = time.perf_counter(), time.process_time()
    work(batch, side)
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    wall, computed = time.perf_counter() - wall, time.process_time() - computed
    # A thread that waits for another computes too, as the system counts it: so the less of the two.
    return min(wall, computed / torch.get_num_threads()) if device.type == "cpu" else wall


def free_memory(device: torch.device) -> int:
    """Bytes that are free where this device computes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def gigabytes(memory: float) -> str:
    """As one reads it: 0.05 GB, 1.8 GB, 14 GB."""
    return f"{memory / 1e9:.2g} GB"


def duration(seconds: float) -> str:
    """One or two digits, all that such an estimate is worth."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1g} s"
