"""FID and KID: how far two sets of images are from one another, as Inception sees them.

Both look at one vector of 2048 features for each image (`inception_features`). FID (Heusel et al.
2017) takes each set for a Gaussian and measures the Fréchet distance of the two,

    FID = |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

KID (Binkowski et al. 2018) is the squared maximum mean discrepancy with a cubic kernel. FID has
the longer tradition, but few images overestimate it, by about c / n (Chong and Forsyth 2020), and
below 2048 of them the covariances have not even full rank. That is no trifle: two sets of drawings
of the Atelier that were made the same way are at 0, and measure 57 with 250 in each set, 39 with
500. So compare FIDs of the same number of images only; or use KID, which is unbiased at any number
(0.0009 and 0.0002 there).
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from sepme.errors import SepmeError
from sepme.metrics import _inception
from sepme.metrics.bootstrap import CONFIDENCE, Estimate, check_interval, estimate_from_resamples
from sepme.metrics.folders import Images, batches, open_images, open_pairs, place

#: Inception's features; with fewer images a covariance has not full rank.
DIMENSIONS = 2048
FEW_IMAGES = (
    f"FID of fewer than {DIMENSIONS} images comes out too large: compare it only with FIDs of as "
    "many images, or use KID."
)


# ------------------------------------------------------------------ of images
def measure_fid(
    a: Images,
    b: Images,
    *,
    paired: bool = False,
    confidence: float = CONFIDENCE,
    resamples: int = 200,
    seed: int = 0,
    batch: int = 32,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Estimate:
    """The Fréchet Inception distance of two sets of images, with its bootstrap interval.

    Args:
        a, b: `[n, 3, h, w]` and `[m, 3, h', w']` in [0, 1], or folders; two images each at least.
        paired, confidence, resamples, seed: as for `fid_of_features`.
        batch, device, progress: as for `inception_features`.

    Raises:
        SepmeError: no weights, or what is not two sets of images.
    """
    check_interval(confidence, resamples)
    x, y = _both(a, b, paired, batch, device, progress)
    return fid_of_features(
        x,
        y,
        paired=paired,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        progress=progress,
    )


def measure_kid(
    a: Images,
    b: Images,
    *,
    paired: bool = False,
    confidence: float = CONFIDENCE,
    resamples: int = 1000,
    seed: int = 0,
    batch: int = 32,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Estimate:
    """The kernel Inception distance of two sets of images, with its bootstrap interval.

    Many authors print it times 1000; this is the figure itself.

    Args:
        a, b: as for `measure_fid`.
        paired, confidence, resamples, seed: as for `kid_of_features`.
        batch, device, progress: as for `inception_features`.

    Raises:
        SepmeError: no weights, or what is not two sets of images.
    """
    check_interval(confidence, resamples)
    x, y = _both(a, b, paired, batch, device, progress)
    return kid_of_features(
        x, y, paired=paired, confidence=confidence, resamples=resamples, seed=seed
    )


@torch.no_grad()
def inception_features(
    images: Images,
    *,
    batch: int = 32,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Tensor:
    """What Inception sees in each image, `[n, 2048]` on the CPU.

    Args:
        images: `[n, 3, h, w]` in [0, 1], or a folder; enlarged or reduced to 299 x 299 pixels as
            pytorch-fid does it.
        batch: images a pass.
        device: where the network runs; by default where the images are (a folder is on the CPU).
        progress: show a bar.

    Raises:
        SepmeError: no weights, or what is not images.
    """
    images = open_images(images)
    parts = batches(images, batch, place(images, device), progress=progress)
    return torch.cat([_inception.pooled(part).cpu() for part in parts])


def _both(
    a: Images,
    b: Images,
    paired: bool,
    batch: int,
    device: str | torch.device | None,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """The features of two sets, after both have been looked at."""
    a, b = open_pairs(a, b) if paired else (open_images(a), open_images(b))
    _check_numbers(len(a), len(b), paired)
    x, y = (
        inception_features(images, batch=batch, device=device, progress=progress)
        for images in (a, b)
    )
    return x, y


# ------------------------------------------------------------------ of features
def fid_of_features(
    x: Tensor,
    y: Tensor,
    *,
    paired: bool = False,
    confidence: float = CONFIDENCE,
    resamples: int = 200,
    seed: int = 0,
    progress: bool = False,
) -> Estimate:
    """`frechet_distance` of features that are at hand, with its bootstrap interval.

    The interval says what other images, as many, might have given; it does not hold the bias of
    having few, which the result's `warning` speaks of.

    Args:
        x, y: `[n, d]` and `[m, d]`.
        paired: the i-th of both belong together (drawn from one seed), and are resampled together.
        confidence: between 0 and 1.
        resamples: how many times both sets are drawn anew from themselves; 0 for no interval. Each
            costs a singular value decomposition of `[min(n, d), min(m, d)]`.
        seed: of those draws.
        progress: show a bar over them.

    Raises:
        SepmeError: features that do not fit or are not finite, or fewer than two.
    """
    check_interval(confidence, resamples)
    x, y = _features(x, y, paired)
    n = min(len(x), len(y))
    draws = _draws(len(x), len(y), paired, resamples, seed)
    drawn = (
        frechet_distance(x[i], y[j])
        for i, j in tqdm(draws, desc="resampling", total=resamples, disable=not progress)
    )
    return estimate_from_resamples(
        frechet_distance(x, y),
        drawn,
        n,
        confidence=confidence,
        least=0.0,
        warning=FEW_IMAGES if n < DIMENSIONS else "",
    )


def kid_of_features(
    x: Tensor,
    y: Tensor,
    *,
    paired: bool = False,
    confidence: float = CONFIDENCE,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """`kernel_distance` of features that are at hand, with its bootstrap interval.

    Args:
        x, y: `[n, d]` and `[m, d]`; 24 bytes a pair of images are needed.
        paired: as for `kernel_distance`; pairs are also resampled together.
        confidence, seed: as for `fid_of_features`.
        resamples: how many times both sets are drawn anew from themselves; 0 for no interval.

    Raises:
        SepmeError: features that do not fit or are not finite, or fewer than two.
    """
    check_interval(confidence, resamples)
    x, y = _features(x, y, paired)
    n, m = len(x), len(y)
    of_weights = _discrepancy(x, y, paired)
    value = float(of_weights(torch.ones(1, n).double(), torch.ones(1, m).double()))
    # How often a resample holds each image is all that it changes; k resamples are one product.
    counts = torch.zeros(resamples, n).double(), torch.zeros(resamples, m).double()
    for k, draw in enumerate(_draws(n, m, paired, resamples, seed)):
        for count, index in zip(counts, draw, strict=True):
            count[k] = torch.bincount(index, minlength=count.shape[1])
    drawn = of_weights(*counts)
    drawn = drawn[drawn.isfinite()]  # one image, drawn n times, has no pairs
    return estimate_from_resamples(value, drawn.tolist(), min(n, m), confidence=confidence)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Fréchet distance of the two Gaussians with the means and covariances of `[n, d]`, `[m, d]`.

    With `S_a = A^T A` and `S_b = B^T B`, the eigenvalues of `S_a S_b` are those of
    `(A B^T)(A B^T)^T`, so that `tr (S_a S_b)^(1/2)` is the sum of the singular values of `A B^T`:
    no root of an asymmetric, singular matrix, and nothing larger than the number of images.

    Raises:
        SepmeError: features that do not fit or are not finite, or fewer than two.
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


def kernel_distance(x: Tensor, y: Tensor, paired: bool = False) -> float:
    """Unbiased squared maximum mean discrepancy of `[n, d]` and `[m, d]`; may fall below 0.

    With `k(u, v) = (u . v / d + 1)^3`: the mean of `k(x_i, x_j)` over `i != j`, the same of y, less
    twice the mean of `k(x_i, y_j)`.

    Args:
        x, y: features.
        paired: the i-th of both belong together; leaving out `i = j` in the mixed mean too keeps
            the figure unbiased then (Gretton et al. 2012, lemma 6), and 0 for equal sets.

    Raises:
        SepmeError: features that do not fit or are not finite, or fewer than two.
    """
    x, y = _features(x, y, paired)
    ones = torch.ones(1, len(x)).double(), torch.ones(1, len(y)).double()
    return float(_discrepancy(x, y, paired)(*ones))


def _discrepancy(x: Tensor, y: Tensor, paired: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """A function from weights of the images, `[k, n]` and `[k, m]`, to k discrepancies."""
    k_xx, k_yy, k_xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    k_xx.fill_diagonal_(0)
    k_yy.fill_diagonal_(0)
    if paired:
        k_xy.fill_diagonal_(0)

    def mean(v: Tensor, kernel: Tensor, w: Tensor, apart: bool) -> Tensor:
        """The weighted mean of a kernel's entries, of those beside the diagonal if `apart`."""
        pairs = v.sum(1) * w.sum(1) - ((v * w).sum(1) if apart else 0)
        return ((v @ kernel) * w).sum(1) / pairs

    def of_weights(v: Tensor, w: Tensor) -> Tensor:
        within = mean(v, k_xx, v, apart=True) + mean(w, k_yy, w, apart=True)
        return within - 2 * mean(v, k_xy, w, apart=paired)

    return of_weights


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _draws(
    n: int, m: int, paired: bool, resamples: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices of resampled sets, `[n]` and `[m]`."""
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        i = torch.from_numpy(rng.integers(n, size=n))
        yield i, i if paired else torch.from_numpy(rng.integers(m, size=m))


def _features(x: Tensor, y: Tensor, paired: bool = False) -> tuple[Tensor, Tensor]:
    """Both in double precision on the CPU, after they were looked at."""
    for features in (x, y):
        if not isinstance(features, Tensor):
            raise SepmeError(
                f"Features are a tensor [n, d], not of the type {type(features).__name__}: make "
                "one with torch.from_numpy, or from images with inception_features."
            )
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise SepmeError(
            f"Features are [n, d] and [m, d] with one d, not {list(x.shape)} and {list(y.shape)}."
        )
    _check_numbers(len(x), len(y), paired)
    if not (x.isfinite().all() and y.isfinite().all()):
        raise SepmeError("A feature is not finite: look at the images that it was taken from.")
    return x.detach().cpu().double(), y.detach().cpu().double()


def _check_numbers(n: int, m: int, paired: bool) -> None:
    if min(n, m) < 2:
        raise SepmeError(f"A spread needs at least two images in each set, not {n} and {m}.")
    if paired and n != m:
        raise SepmeError(f"Sets of {n} and {m} images are no pairs: leave out `paired`.")
