"""Where a command computes, in which number type, and which of several processes it is."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from sepme._checks import choose
from sepme.errors import SepmeError
from sepme.loading import device_named
from sepme.model import Backbone

__all__ = ["Process", "load", "place"]

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Process:
    """Which of the processes this is that torchrun or accelerate started."""

    rank: int = 0
    of: int = 1
    local: int = 0
    """Its rank on its own machine."""

    @classmethod
    def current(cls) -> "Process":
        """What the environment says: RANK, WORLD_SIZE and LOCAL_RANK.

        Raises:
            SepmeError: numbers that are none, or contradict one another.
        """
        names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
        found = {name: os.environ.get(name, str(usual)) for name, usual in names.items()}
        if all(text.isdecimal() for text in found.values()):
            process = cls(*map(int, found.values()))
            if process.rank < process.of:
                return process
        said = ", ".join(f"{name}={text}" for name, text in found.items())
        raise SepmeError(
            f"The environment says {said}, which numbers no process: let torchrun or accelerate "
            "set these, or unset them."
        )


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
