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
from sepme.metrics._alexnet import alexnet_available, alexnet_features
from sepme.metrics.bootstrap import CONFIDENCE, Estimate, check_interval, estimate_mean
from sepme.metrics.folders import ImageFolder, Images, batches, open_pairs, place

__all__ = ["PAPER_SIZE", "alexnet_available", "lpips_distance", "measure_lpips"]

#: The smallest side that survives AlexNet's strides.
SMALLEST = 32
#: The paper compares images at this many pixels a side, whatever the size they were drawn at.
PAPER_SIZE = 64


def measure_lpips(
    a: Images,
    b: Images,
    size: int | None = None,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = 2000,
    seed: int = 0,
    batch: int = 64,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Estimate:
    """The mean LPIPS distance of two sets of images, pair by pair, with its bootstrap interval.

    Args:
        a, b, size, batch, device, progress: as for `lpips_distance`.
        confidence, resamples, seed: as for `sepme.metrics.bootstrap.estimate_mean`.

    Raises:
        SepmeError: as either of the two.
    """
    check_interval(confidence, resamples)
    values = lpips_distance(a, b, size, batch, device=device, progress=progress)
    return estimate_mean(values, confidence=confidence, resamples=resamples, seed=seed)


@torch.no_grad()
def lpips_distance(
    a: Images,
    b: Images,
    size: int | None = None,
    batch: int = 64,
    *,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Tensor:
    """LPIPS distance `[n]` between the images of two sets, pair by pair; 0 is identical.

    Args:
        a, b: `[n, 3, h, w]` in [0, 1], or folders whose pictures have the same names.
        size: compare at this many pixels a side, `PAPER_SIZE` as the paper did; None: as they are.
            Its filter is not published; here it is bilinear with antialiasing, Pillow's.
        batch: pairs a pass.
        device: where the network runs; by default where `a` is (a folder is on the CPU).
        progress: show a bar.

    Raises:
        SepmeError: no weights, images that are not of one shape or not in [0, 1], pictures
            without a partner, sides below 32 pixels, or a device that is not there.
    """
    a, b = open_pairs(a, b)
    _check(a, size)
    device = place(a, device)
    network = _network().to(device)
    pairs = zip(
        batches(a, batch, device, progress=progress), batches(b, batch, device), strict=True
    )
    distances = [network(_resized(x, size), _resized(y, size), normalize=True) for x, y in pairs]
    return torch.cat(distances).flatten()


def _check(images: Tensor | ImageFolder, size: int | None) -> None:
    if min(images.shape[2:] if size is None else (size,)) < SMALLEST:
        raise SepmeError(f"AlexNet sees nothing below {SMALLEST} pixels: enlarge the images first.")


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
