"""LPIPS (Zhang et al. 2018): how different two images are in the features of AlexNet.

The network and its calibrated heads (version 0.1) are the `lpips` package's. AlexNet's weights are
the published ones, or there is no answer.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sepme.metrics._networks import ALEXNET, alexnet, check_images
from sepme.metrics.estimate import Estimate, estimate_mean

__all__ = ["PAPER_SIZE", "alexnet_available", "lpips_distance", "measure_lpips"]

#: The paper compares images at this many pixels a side, whatever the size they were drawn at.
PAPER_SIZE = 64
#: Pairs a pass of the network.
_BATCH = 64


def alexnet_available() -> bool:
    """Whether AlexNet's weights are installed, which LPIPS and the linear probe need."""
    return ALEXNET.path() is not None


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
    pairs = zip(a.float().split(_BATCH), b.float().to(a.device).split(_BATCH), strict=True)
    distances = [network(_resized(x, size), _resized(y, size), normalize=True) for x, y in pairs]
    return torch.cat(distances).flatten()


def _resized(images: Tensor, size: int | None) -> Tensor:
    if size is None or images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
