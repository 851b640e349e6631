"""What this machine has and what to expect of it, measured by a few passes of the model."""

import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from sepme.cli._place import load
from sepme.erasure import ErasureSettings
from sepme.errors import warn
from sepme.jobs.forecast import QUICK, Forecast, duration
from sepme.metrics import alexnet_available
from sepme.model import Backbone, load_catalogue

__all__ = ["examine"]

PACKAGES = ("torch", "diffusers", "transformers", "peft", "lpips", "numpy", "matplotlib")
#: So many pictures are timed together, where a step of one is quick.
TOGETHER = 8


def examine(
    model: str | Path | None,
    where: tuple[torch.device, torch.dtype],
    settings: ErasureSettings,
    steps: int | None = None,
    micro_batch: int | None = None,
) -> Iterator[tuple[str, str]]:
    """What was looked at and what was found, one by one as it is known.

    Warns:
        SepmeWarning: erasing with these settings would not fit into the memory that is free.

    Raises:
        SepmeError: the model cannot be loaded; what could be said without it was said before.
    """
    yield "sepme", metadata.version("sepme")
    yield "Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    yield "device", f"{_device(where[0])}, {str(where[1]).removeprefix('torch.')}"
    threads = torch.get_num_threads()
    yield "threads", f"{threads} (the environment variable OMP_NUM_THREADS changes them)"
    missing = "AlexNet's weights are missing, LPIPS will not be measured: `make test` gets them"
    yield "LPIPS", "AlexNet's weights found" if alexnet_available() else missing
    backbone = load(model, where, steps)
    millions = sum(p.numel() for p in backbone.unet.parameters()) / 1e6
    yield "model", f"{backbone.name}, {millions:.1f} million parameters in the UNet"
    yield "fingerprint", backbone.fingerprint
    catalogue = load_catalogue(model)
    names = len(catalogue.concepts) if catalogue else None
    yield "concepts", f"{names} in its catalogue" if names else "no catalogue: any words will do"
    yield from _expect(backbone, settings, micro_batch)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "MISSING"


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return {"mps": "Apple GPU (mps)"}.get(device.type, "CPU")
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GB"


def _expect(
    backbone: Backbone, settings: ErasureSettings, micro_batch: int | None
) -> Iterator[tuple[str, str]]:
    """Seconds and gigabytes, measured on passes of the UNet and counted at full size."""
    forecast, steps = Forecast(backbone, settings, micro_batch), backbone.steps
    shown = f"about {duration(steps * forecast.step(1))} drawn alone"
    if forecast.step(1) < QUICK:
        each = duration(steps * forecast.step(TOGETHER) / TOGETHER)
        shown += f", {each} each of {TOGETHER} at once"
    yield "one picture", f"{shown}, in {steps} steps"
    yield "erasing", f"about {duration(forecast.seconds)} a concept at most: {forecast.passes()}"
    clock = "time of the CPU" if backbone.device.type == "cpu" else "passes just now"
    yield "measured by", f"{clock}: while other programs run, all takes longer"
    yield "memory", forecast.memory()
    if warning := forecast.warning():
        warn(warning)
