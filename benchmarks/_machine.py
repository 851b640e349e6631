"""What the benchmarks of speed share: the models, the clock, and the machine in words."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from sepme.model import Backbone
from sepme.shapes import random_pipeline


def backbone(shape: str, pixels: int = 128, dtype: torch.dtype = torch.float32) -> Backbone:
    """The shipped model, or random weights of a published shape that draws so many pixels."""
    if shape == "atelier":
        return Backbone.load(dtype=dtype)
    pipe = random_pipeline(shape, dtype=dtype).to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.unet.register_to_config(sample_size=pixels // 8)
    return Backbone(pipe, shape, steps=1)


def now() -> float:
    """Seconds, once the device has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def watched(seconds: dict[str, float], what: str, owner: object, name: str) -> Iterator[None]:
    """Within the block, add to `seconds[what]` what calls of `owner.name` take."""
    whole = getattr(owner, name)

    def timed(*args: Any, **options: Any) -> Any:
        start = now()
        result = whole(*args, **options)
        seconds[what] = seconds.get(what, 0.0) + now() - start
        return result

    with patch.object(owner, name, timed):
        yield


def hardware() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{device}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, float32."
