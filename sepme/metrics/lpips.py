"""LPIPS (Zhang et al. 2018): how differently AlexNet sees two images.

The network is the `lpips` package's (version 0.1, with its calibrated heads); AlexNet's own
weights come from `sepme.metrics._alexnet`. They are the real ones or there is no answer.
"""

import warnings
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from sepme.errors import SepmeError
from sepme.metrics._alexnet import alexnet_features, cached_file, package_file

#: The smallest side that survives AlexNet's strides.
SMALLEST = 32


def alexnet_available() -> bool:
    """Whether AlexNet's weights are on this machine, so that `lpips_distance` can answer."""
    return cached_file() is not None or package_file() is not None


@torch.no_grad()
def lpips_distance(a: Tensor, b: Tensor, size: int | None = None, batch: int = 64) -> Tensor:
    """LPIPS distance `[n]` between the images of two batches, pair by pair; 0 is identical.

    Args:
        a, b: `[n, 3, h, w]`, values in [0, 1].
        size: compare at this many pixels a side (the paper's protocol: 64); None: as they are.
        batch: pairs a pass.

    Raises:
        SepmeError: no weights, or batches that are not images of one shape with values in [0, 1].
    """
    _check(a, b, size)
    network = _network().to(a.device)
    parts = zip(a.float().split(batch), b.float().split(batch), strict=True)
    distances = [network(_resized(x, size), _resized(y, size), normalize=True) for x, y in parts]
    return torch.cat(distances).flatten()


def _check(a: Tensor, b: Tensor, size: int | None) -> None:
    if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 3 or len(a) == 0:
        raise SepmeError(
            "LPIPS compares two batches of one shape [n, 3, h, w], "
            f"not {list(a.shape)} and {list(b.shape)}."
        )
    if min(a.shape[2:] if size is None else (size,)) < SMALLEST:
        raise SepmeError(f"AlexNet sees nothing below {SMALLEST} pixels: enlarge the images first.")
    for images in (a, b):
        if not (images.min() >= 0 and images.max() <= 1):  # also refuses NaN
            raise SepmeError("LPIPS compares images with values in [0, 1]: rescale them first.")


def _resized(images: Tensor, size: int | None) -> Tensor:
    if size is None or images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True).clamp(0, 1)


@cache
def _network() -> torch.nn.Module:
    """The `lpips` package's network, its AlexNet filled with the real weights."""
    import lpips

    features = alexnet_features()
    # It starts from random weights (every one is overwritten below): leave the caller's seed alone.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's deprecations, which lpips runs into
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    # Its "slice2.3.weight" is torchvision's features "3.weight".
    names = network.net.state_dict().keys()
    network.net.load_state_dict({name: features[name.split(".", 1)[1]] for name in names})
    return network.eval().requires_grad_(False)
