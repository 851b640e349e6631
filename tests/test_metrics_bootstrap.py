"""Confidence intervals: what they must hold, and what they hold in known cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sepme.metrics import Estimate, estimate_mean, estimate_share
from sepme.metrics.bootstrap import estimate_from_resamples
from tests.refusals import refused


# ---------------------------------------------------------------- means
def test_the_interval_of_a_mean_is_near_that_of_the_normal_distribution() -> None:
    x = np.random.default_rng(0).normal(3, 2, 400)
    found = estimate_mean(torch.from_numpy(x), resamples=4000)
    low, high = stats.norm.interval(0.95, x.mean(), x.std(ddof=1) / 20)
    assert found.mean == pytest.approx(x.mean())
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)
    assert (found.n, found.confidence, found.warning) == (400, 0.95, "")


def covered(confidence: float) -> float:
    """How many of 200 intervals, of 40 values of mean 1 each, hold 1."""
    intervals = [
        estimate_mean(
            np.random.default_rng(seed).exponential(size=40), confidence=confidence, resamples=300
        )
        for seed in range(200)
    ]
    return float(np.mean([found.low <= 1 <= found.high for found in intervals]))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    assert covered(0.95) == pytest.approx(0.95, abs=0.05)
    assert covered(0.5) == pytest.approx(0.5, abs=0.1)  # the control: a narrow one misses


def test_the_draws_come_from_the_seed_alone() -> None:
    x = np.random.default_rng(0).random(30)
    first = estimate_mean(x, seed=1)
    np.random.seed(77)
    torch.manual_seed(77)
    assert estimate_mean(x, seed=1) == first
    assert estimate_mean(x, seed=2) != first


def test_what_shows_no_spread_says_so() -> None:
    same = estimate_mean([0.25] * 10)
    assert (same.mean, same.low, same.high) == (0.25, 0.25, 0.25)
    assert "no spread" in same.warning
    one = estimate_mean([0.25])
    assert (one.low, one.high) == (None, None)
    assert "no spread" in one.warning
    assert estimate_mean([0.0, 1.0], resamples=0).low is None


# ---------------------------------------------------------------- shares
def wilson(k: int, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval by its formula."""
    z = stats.norm.ppf((1 + confidence) / 2)
    p, centre = k / n, (k / n + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - half, centre + half


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0.5, 0.99))
def test_a_share_has_wilson_s_interval(n: int, share: float, confidence: float) -> None:
    k = round(share * n)
    found = estimate_share(torch.arange(n) < k, confidence=confidence)
    low, high = wilson(k, n, confidence)
    assert found.mean == pytest.approx(k / n)
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)
    assert found.low - 1e-12 <= found.mean <= found.high + 1e-12


def test_all_and_none_are_not_certain_as_a_bootstrap_would_say() -> None:
    everything = [True] * 10
    assert estimate_share(everything).low == pytest.approx(0.7225, abs=1e-4)
    assert estimate_share([False] * 10).high == pytest.approx(1 - 0.7225, abs=1e-4)
    assert estimate_share([True] * 1000).low > 0.99
    resampled = estimate_mean(np.array(everything, float))
    assert resampled.low == resampled.high == 1  # the control: why a share is not resampled


# ---------------------------------------------------------------- other figures
def test_resamples_are_laid_around_the_figure() -> None:
    drawn = np.linspace(10, 20, 101)  # mean 15, biased: the figure is 4
    found = estimate_from_resamples(4.0, drawn, 7, confidence=0.8)
    assert found == Estimate(4.0, pytest.approx(0.0), pytest.approx(8.0), 7, 0.8)
    assert estimate_from_resamples(1.0, drawn, 7, confidence=0.8, least=0.0).low == 0
    assert estimate_from_resamples(4.0, [], 7).low is None


def test_an_estimate_is_a_number_and_says_what_it_is() -> None:
    found = Estimate(0.5, 0.25, 0.75, 8)
    assert float(found) == 0.5
    assert str(found) == "0.5 (95 %: 0.25 to 0.75, n = 8)"
    assert str(Estimate(0.5, None, None, 1)) == "0.5 (n = 1)"


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, math.nan]])
def test_what_has_no_average_is_refused(values: list) -> None:
    with refused("finite"):
        estimate_mean(values)
    with refused("finite"):
        estimate_share(values)


def test_what_makes_no_interval_is_refused() -> None:
    for confidence in (0.0, 1.0, 95.0):
        with refused("0.95"):
            estimate_mean([1.0, 2.0], confidence=confidence)
        with refused("0.95"):
            estimate_share([1, 0], confidence=confidence)
    with refused("-1 resamples"):
        estimate_mean([1.0, 2.0], resamples=-1)
    with refused("true and false"):
        estimate_share([0.0, 0.5])
