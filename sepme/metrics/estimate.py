"""Measured values with confidence intervals from the images that they were measured on.

A mean is resampled: the bootstrap of Efron (1979), bias-corrected and accelerated (BCa), by SciPy.
It would call a share of 10 of 10 as certain as one of 10000 of 10000. Wilson's interval (1927) is
made for shares: 10 of 10 gives 72 % to 100 %.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor

from sepme.errors import SepmeError

__all__ = ["Estimate", "estimate_share"]

#: How often an interval covers the value that infinitely many images would give.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A measured value and its 95 % confidence interval, both without unit."""

    mean: float
    low: float  #: the lower end of the interval; nan if one image is all there is
    high: float  #: the upper end
    n: int  #: the number of images; of the smaller set where two sets were compared

    def __str__(self) -> str:
        ends = f"{100 * CONFIDENCE:g} %: {self.low:.4g} to {self.high:.4g}"
        return f"{self.mean:.4g} ({ends}, n = {self.n})"


def estimate_mean(values: ArrayLike | Tensor) -> Estimate:
    """The mean of `values` `[n]`, one for each image, with the BCa interval of 2000 resamples.

    The resamples are drawn from a fixed seed: equal values give an equal interval.
    """
    x = torch.as_tensor(values).double().cpu().numpy()
    mean, n = float(x.mean()), len(x)
    if np.ptp(x) == 0:  # BCa divides by the spread; one image shows none
        end = math.nan if n == 1 else mean
        return Estimate(mean, end, end, n)
    interval = stats.bootstrap(
        (x,), np.mean, n_resamples=2000, confidence_level=CONFIDENCE, method="BCa", rng=0
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), n)


def estimate_share(hits: ArrayLike | Tensor) -> Estimate:
    """The share of `hits` `[n]` (true or false, one for each image) with Wilson's interval.

    Raises:
        SepmeError: there are no values, or one is neither true nor false.
    """
    x = torch.as_tensor(hits).cpu().numpy()
    if x.ndim != 1 or not len(x) or not np.isin(x, (0, 1)).all():
        raise SepmeError("A share counts images that are hits or not: give n times true or false.")
    interval = stats.binomtest(int(x.sum()), len(x)).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(float(x.mean()), float(interval.low), float(interval.high), len(x))
