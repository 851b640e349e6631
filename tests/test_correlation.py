"""The G-CiRs loss, its balance and its momentum, by hand."""

import pytest
import torch

from sepme.correlation import (
    Momentum,
    balance,
    correlation_loss,
    noise_difference,
    normalised_correlation,
)
from sepme.model import to_epsilon
from tests.refusals import refused
from tests.tolerance import assert_close


def test_loss_by_hand() -> None:
    eps_c = torch.tensor([[[[3.0, 1.0]]], [[[0.0, 5.0]]]])  # [batch 2, channels 1, 1, 2]
    eps_0 = torch.tensor([[[[1.0, 1.0]]], [[[0.0, 1.0]]]])
    r = noise_difference(eps_c, eps_0)
    assert_close(r.flatten(1), torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    r0 = torch.tensor([[[[5.0, 7.0]]], [[[7.0, -1.0]]]])
    assert_close(correlation_loss(r, r0), torch.tensor([5.0, -2.0]))


def test_normalised_correlation_is_one_for_the_original_and_zero_for_orthogonal() -> None:
    r0 = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [0.0, 0.0]])
    r = torch.tensor([[3.0, 4.0], [-4.0, 3.0], [-6.0, -8.0], [1.0, 1.0]])
    assert_close(normalised_correlation(r, r0), torch.tensor([1.0, 0.0, -2.0, 0.0]))


def test_eta_by_hand() -> None:
    assert_close(balance(torch.tensor([2.0, -1.0, 0.5])), torch.tensor([1.0, 2.0, 4.0]))


def test_eta_is_a_constant_for_the_gradient_and_always_finite() -> None:
    losses = torch.tensor([4.0, 0.0], requires_grad=True)
    eta = balance(losses)
    assert not eta.requires_grad
    assert bool(eta.isfinite().all())
    assert_close(balance(torch.zeros(3)), torch.ones(3))


def test_momentum_by_hand() -> None:
    momentum = Momentum(alpha=0.9)
    assert momentum.update(2.0) == pytest.approx(2.0)
    assert momentum.update(1.0) == pytest.approx(1.9)  # 0.9 * 2 + 0.1 * 1
    assert momentum.update(torch.tensor(-3.0)) == pytest.approx(1.41)  # 0.9 * 1.9 - 0.1 * 3


def test_momentum_never_stops_before_the_eleventh_iteration() -> None:
    momentum = Momentum()
    for _ in range(10):
        momentum.update(-1.0)
        assert not momentum.stopped
    momentum.update(-1.0)
    assert momentum.stopped


def test_momentum_stops_at_tau() -> None:
    above, at = Momentum(tau=1e-4, earliest=1), Momentum(tau=1e-4, earliest=1)
    above.update(1.1e-4)
    at.update(1e-4)
    assert (above.stopped, at.stopped) == (False, True)


def test_to_epsilon_by_hand() -> None:
    alphas_cumprod = torch.tensor([0.64, 0.36])
    output, x_t = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)
    expected = {"epsilon": 2.0, "v_prediction": 0.8 * 2 + 0.6 * 3, "sample": (3 - 0.8 * 2) / 0.6}
    for prediction_type, value in expected.items():
        eps = to_epsilon(output, x_t, torch.tensor([0]), alphas_cumprod, prediction_type)
        assert_close(eps, torch.full((1, 1, 1, 1), value))
    single = to_epsilon(output, x_t, torch.tensor(1), alphas_cumprod, "v_prediction")
    assert_close(single, torch.full((1, 1, 1, 1), 0.6 * 2 + 0.8 * 3))


def test_an_unknown_prediction_type_is_refused() -> None:
    x = torch.zeros(1, 1, 1, 1)
    with refused("'flow'", "epsilon"):
        to_epsilon(x, x, torch.tensor([0]), torch.ones(1), "flow")
