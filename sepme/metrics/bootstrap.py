"""How far a figure can be trusted: confidence intervals from the images it was measured on.

A mean is resampled (the bootstrap of Efron 1979, bias-corrected and accelerated, SciPy's). A
proportion is not: where all images are right, or none, every resample is the same, and the
bootstrap would call 10 of 10 as certain as 10000 of 10000. Wilson's interval (1927) is made for
proportions and stays honest there: 10 of 10 gives 72 % to 100 %.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor

from sepme.errors import SepmeError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A measured figure and the interval that it can be trusted to."""

    mean: float
    """The figure itself, without unit."""
    low: float | None
    high: float | None
    """None where there was nothing, or too little, to resample."""
    n: int
    """The number of images; that of the smaller set where two were compared."""
    confidence: float = CONFIDENCE
    """How often such an interval covers what more images would show."""
    warning: str = ""
    """A sentence on what the figure must not be taken for; empty if there is nothing to say."""

    def __float__(self) -> float:
        return self.mean

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.4g} (n = {self.n})"
        sure = f"{100 * self.confidence:g} %"
        return f"{self.mean:.4g} ({sure}: {self.low:.4g} to {self.high:.4g}, n = {self.n})"


def estimate_mean(
    values: ArrayLike | Tensor,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """The mean of values, one for each image, with the BCa bootstrap interval.

    Args:
        values: `[n]`.
        confidence: between 0 and 1.
        resamples: how many times n values are drawn from the n with replacement; 0 for no interval.
        seed: of those draws.

    Raises:
        SepmeError: no values, values that are not finite, or another confidence or number.
    """
    x = _values(values)
    check_interval(confidence, resamples)
    mean, n = float(x.mean()), len(x)
    if n == 1 or not resamples:
        alone = "One image shows no spread." if n == 1 else ""
        return Estimate(mean, None, None, n, confidence, alone)
    if np.ptp(x) == 0:
        same = "All images gave the same value, so that resampling shows no spread."
        return Estimate(mean, mean, mean, n, confidence, same)
    interval = stats.bootstrap(
        (x,), np.mean, n_resamples=resamples, confidence_level=confidence, method="BCa", rng=seed
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), n, confidence)


def estimate_share(hits: ArrayLike | Tensor, *, confidence: float = CONFIDENCE) -> Estimate:
    """The share of images that are hits, with Wilson's interval; nothing is drawn.

    Args:
        hits: `[n]`, true or false.
        confidence: between 0 and 1.

    Raises:
        SepmeError: no values, values other than true and false, or another confidence.
    """
    x = _values(hits)
    check_interval(confidence)
    if not np.isin(x, (0, 1)).all():
        raise SepmeError("A share is of images that are hits or not: give true and false.")
    interval = stats.binomtest(int(x.sum()), len(x)).proportion_ci(confidence, method="wilson")
    return Estimate(float(x.mean()), float(interval.low), float(interval.high), len(x), confidence)


def estimate_from_resamples(
    value: float,
    resampled: Iterable[float],
    n: int,
    *,
    confidence: float = CONFIDENCE,
    least: float = -np.inf,
    warning: str = "",
) -> Estimate:
    """A figure of sets of images, with what it became on resampled sets.

    The interval is the quantiles' distance from the resamples' mean, laid around the figure. A
    resample repeats some images and leaves others out; a distance between sets sees that as a
    difference, so that resamples lie above the figure on the whole. How they scatter is what tells
    how the figure would on other images; where they lie does not.

    Args:
        value: the figure.
        resampled: the same of resampled sets; empty for no interval.
        n: number of images.
        least: what the figure cannot fall below.
    """
    drawn = np.fromiter(resampled, float)
    check_interval(confidence)
    if not drawn.size:
        return Estimate(value, None, None, n, confidence, warning)
    tail = (1 - confidence) / 2
    low, high = value + np.quantile(drawn, (tail, 1 - tail)) - drawn.mean()
    return Estimate(value, max(float(low), least), float(high), n, confidence, warning)


def _values(values: ArrayLike | Tensor) -> np.ndarray:
    x = np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=float)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise SepmeError(
            f"An average is of one finite value for each image, of at least one; these are of "
            f"shape {list(x.shape)}."
        )
    return x


def check_interval(confidence: float, resamples: int = 0) -> None:
    """Refuse, before any work, what no interval can be made with.

    Raises:
        SepmeError: a confidence that is not between 0 and 1, or a negative number of resamples.
    """
    if not 0 < confidence < 1:
        raise SepmeError(f"A confidence of {confidence:g} means nothing: choose one like 0.95.")
    if resamples < 0:
        raise SepmeError(
            f"{resamples} resamples cannot be drawn: choose a thousand, or 0 for none."
        )
