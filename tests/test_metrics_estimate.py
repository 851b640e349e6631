"""Confidence intervals: what they must hold, and what they hold in known cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sepme.metrics import Estimate, estimate_share
from sepme.metrics.estimate import estimate_mean
from tests.refusals import refused


# ---------------------------------------------------------------- means
def test_the_interval_of_a_mean_is_near_that_of_the_normal_distribution() -> None:
    x = np.random.default_rng(0).normal(3, 2, 400)
    found = estimate_mean(torch.from_numpy(x))
    low, high = stats.norm.interval(0.95, x.mean(), x.std(ddof=1) / 20)
    assert found.mean == pytest.approx(x.mean())
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)
    assert found.n == 400
    assert found == estimate_mean(x)  # the draws come from a seed of their own


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 100 sets of 40 values with mean 1; the control: a quarter of the width often misses it."""
    sets = [np.random.default_rng(seed).exponential(size=40) for seed in range(100)]
    held = [(e, e.high - e.low) for e in map(estimate_mean, sets)]
    assert np.mean([e.low <= 1 <= e.high for e, _ in held]) == pytest.approx(0.95, abs=0.05)
    assert np.mean([abs(e.mean - 1) <= width / 8 for e, width in held]) < 0.6


def test_values_without_spread_have_an_interval_without_width_and_one_value_has_none() -> None:
    assert estimate_mean([0.25] * 10) == Estimate(0.25, 0.25, 0.25, 10)
    one = estimate_mean([0.25])
    assert (one.mean, one.n) == (0.25, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)


# ---------------------------------------------------------------- shares
@given(st.integers(1, 300), st.floats(0, 1))
def test_a_share_has_wilson_s_interval(n: int, share: float) -> None:
    """`(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`."""
    k = round(share * n)
    z, p = stats.norm.ppf(0.975), k / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    ends = [(p + z * z / (2 * n) + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
    found = estimate_share(torch.arange(n) < k)
    assert (found.mean, found.n) == (pytest.approx(p), n)
    assert (found.low, found.high) == pytest.approx(ends, abs=1e-9)


def test_all_and_none_are_not_certain_as_a_bootstrap_would_say() -> None:
    everything = [True] * 10
    assert estimate_share(everything).low == pytest.approx(0.7225, abs=1e-4)
    assert estimate_share([False] * 10).high == pytest.approx(1 - 0.7225, abs=1e-4)
    assert estimate_share([True] * 1000).low > 0.99
    assert estimate_mean(everything).low == 1  # the control: why a share is not resampled


# ---------------------------------------------------------------- words and refusals
def test_an_estimate_says_what_it_is() -> None:
    found = Estimate(0.5, 0.25, 0.75, 8)
    assert str(found) == "0.5 (95 %: 0.25 to 0.75, n = 8)"


@pytest.mark.parametrize("hits", [[], [[True, False]], [1.0, math.nan], [0.0, 0.5]])
def test_what_is_no_share_is_refused(hits: list) -> None:
    with refused("true or false"):
        estimate_share(hits)
