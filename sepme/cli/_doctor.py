"""What this machine has and what to expect of it, measured by one small pass of the model."""

import platform
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
import torch

from sepme.erasure import ErasureSettings
from sepme.loading import best_device
from sepme.metrics.lpips import alexnet_available
from sepme.model import Backbone, load_catalogue

__all__ = ["examine"]

PACKAGES = ("torch", "diffusers", "transformers", "peft", "lpips", "numpy", "matplotlib")
#: A pass of many pictures is timed only where a pass of one takes less than this many seconds.
QUICK = 0.5
#: So many.
TOGETHER = 8


def examine(model: str | Path | None = None) -> Iterator[tuple[str, str]]:
    """What was looked at and what was found, one by one as it is known.

    Raises:
        SepmeError: the model cannot be loaded; what could be said without it was said before.
    """
    yield "sepme", metadata.version("sepme")
    yield "Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield "packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    yield "device", _device()
    threads = torch.get_num_threads()
    yield "threads", f"{threads} (the environment variable OMP_NUM_THREADS changes them)"
    missing = "AlexNet's weights are missing, LPIPS will not be measured: `make test` gets them"
    yield "LPIPS", "AlexNet's weights found" if alexnet_available() else missing
    backbone = Backbone.load(model)
    millions = sum(p.numel() for p in backbone.unet.parameters()) / 1e6
    yield "model", f"{backbone.name}, {millions:.1f} million parameters in the UNet"
    yield "fingerprint", backbone.fingerprint
    catalogue = load_catalogue(model)
    names = len(catalogue.concepts) if catalogue else None
    yield "concepts", f"{names} in its catalogue" if names else "no catalogue: any words will do"
    yield from _expect(backbone)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "MISSING"


def _device() -> str:
    device = best_device()
    if device.type != "cuda":
        return {"mps": "Apple GPU (mps)"}.get(device.type, "CPU")
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GB"


def _expect(backbone: Backbone) -> Iterator[tuple[str, str]]:
    """Seconds and gigabytes, extrapolated from passes of the UNet on this machine."""
    alone = _pass_seconds(backbone, 2)  # a picture takes two a step: with and without its prompt
    shared = _pass_seconds(backbone, 2 * TOGETHER) / TOGETHER if alone < QUICK else None
    settings, steps = ErasureSettings(), backbone.steps
    # An iteration passes the batch three times forwards; going back costs two passes more.
    passes = settings.images * steps * 2 + settings.iterations * 5 * settings.batch
    longest = _seconds(passes * (shared or alone) / 2)
    together = f", {_seconds(steps * shared)} each of {TOGETHER} at once" if shared else ""
    yield "one picture", f"about {_seconds(steps * alone)} drawn alone{together}"
    yield (
        "erasing",
        f"about {longest} a concept at most: {settings.images} pictures are drawn, "
        f"then come up to {settings.iterations} iterations of training",
    )
    yield (
        "timed by",
        f"a pass of the UNet just now, {1000 * alone:.0f} ms for one picture, and there are "
        f"{steps} in a picture: while other programs run, all takes longer",
    )
    on_gpu = torch.cuda.is_available()
    memory = torch.cuda.max_memory_allocated() if on_gpu else psutil.Process().memory_info().rss
    yield "memory", f"{memory / 2**30:.1f} GB taken by this check"


def _seconds(seconds: float) -> str:
    """One or two digits, all that such an estimate is worth."""
    if seconds >= 120:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1g} s"


@torch.no_grad()
def _pass_seconds(backbone: Backbone, batch: int) -> float:
    """Seconds of one pass of the UNet, the quicker of two, after one that warms up."""
    latents = torch.zeros(batch, *backbone.latent_shape).to(backbone.device, backbone.dtype)
    text = backbone.conditioning([""]).expand(batch, -1, -1)
    t = torch.full((batch,), 500, device=backbone.device)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        backbone.epsilon(latents, t, text).flatten()[0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
