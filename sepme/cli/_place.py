"""Where a command computes, and in which number type."""

from pathlib import Path

import torch

from sepme._checks import choose
from sepme.jobs.tasks import Process
from sepme.loading import device_named
from sepme.model import Backbone

__all__ = ["load", "number_type", "place"]

DTYPES = ("float32", "float16", "bfloat16")


def place(device: str | None, dtype: str | None) -> tuple[torch.device, torch.dtype]:
    """Where and in what to compute; by default on this process's own GPU, in float16 there.

    Half precision: float16 rather than bfloat16, since the method lives on small differences
    between two predictions. On the Atelier these differences come out with a cosine of 0.9997 to
    float32's in float16, and of 0.98 in bfloat16.

    Raises:
        SepmeError: a device that is not there, or another number type.
    """
    found = device_named(device)
    if device is None and found.type == "cuda":
        found = torch.device("cuda", Process.current().local % torch.cuda.device_count())
    return found, number_type(dtype or ("float16" if found.type == "cuda" else "float32"))


def number_type(name: str) -> torch.dtype:
    """The number type of this name.

    Raises:
        SepmeError: none of the three.
    """
    choose(DTYPES, dtype=name)
    return getattr(torch, name)


def load(
    model: str | Path | None, where: tuple[torch.device, torch.dtype], steps: int | None = None
) -> Backbone:
    """The model there, sampled in so many steps."""
    backbone = Backbone.load(model, *where)
    backbone.steps = steps or backbone.steps
    return backbone
