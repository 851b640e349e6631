"""Chapter 03: the loss, its normalised form, the balance of concepts, and when to stop."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sepme.correlation import Momentum, balance, correlation_loss, normalised_correlation
from sepme.course.checks.feedback import as_tensor, check, near, require


@check
def check_correlation(correlation: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`correlation(r, r0)` is eq. 2: one mean over channels and pixels for each sample."""
    r, r0 = _random()
    expected = correlation_loss(r, r0)
    value = correlation(r, r0)
    require(
        not isinstance(value, Tensor) or value.ndim > 0,
        "That is one number for the batch: average over channels and pixels, keep the samples.",
    )
    answer = as_tensor(value, (len(r),), "L_cor")
    require(
        not near(answer, expected * r[0].numel()),
        "You took the sum: eq. 2 is a mean, so that it does not grow with the picture.",
    )
    require(
        not near(answer, normalised_correlation(r, r0)),
        "That is the normalised form, which comes next; eq. 2 has no denominator.",
    )
    require(not near(answer, expected.abs()), "Keep the sign: below 0 lies the anti-concept.")
    require(near(answer, expected), "This is not the mean of r * r0 over channels and pixels.")


@check
def check_normalised(normalised: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`normalised(r, r0)` is <r, r0> / <r0, r0>: 1 untouched, 0 erased, negative overshot."""
    r, r0 = _random()
    one = as_tensor(normalised(r0, r0), (len(r0),), "the normalised correlation")
    require(near(one, torch.ones(len(r0))), "An untouched model (r = r0) must give exactly 1.")
    half = as_tensor(normalised(0.5 * r0, r0), (len(r0),), "the normalised correlation")
    require(
        not near(half, one),
        "Half of r0 also gives 1: you divided by ||r|| ||r0||, a cosine, which cannot see that "
        "half of the concept is gone; divide by <r0, r0>.",
    )
    require(
        not near(half, 2 * one), "Half of r0 gives 2: divide by the original's <r0, r0>, not by r's"
    )
    require(
        near(half, 0.5 * one),
        f"Half of r0 must give 0.5; yours gives {float(half.mean()):.3g}.",
    )
    answer = as_tensor(normalised(r, r0), (len(r),), "the normalised correlation")
    require(near(answer, normalised_correlation(r, r0)), "This is not <r, r0> / <r0, r0>.")


@check
def check_balance(eta: Callable[[Tensor], Tensor]) -> None:
    """`eta(losses)` is eq. 3: max_k |L_k| / |L_i|, a constant for the gradient."""
    losses = torch.tensor([0.4, -0.1, 0.05], dtype=torch.float64)
    expected = balance(losses)
    value = eta(losses.clone().requires_grad_())
    answer = as_tensor(value, (3,), "eta")
    require(
        not near(answer, 1 / expected),
        "Upside down: the concept that is nearly erased gets the largest weight, not the smallest.",
    )
    require((answer > 0).all(), "Weights must be positive: take |L_i| in both places.")
    require(
        near(answer, expected),
        f"For the losses {losses.tolist()} eq. 3 gives {expected.tolist()}, not {answer.tolist()}.",
    )
    require(
        not value.requires_grad,
        "eta must be a constant for the gradient: detach the losses, or each term "
        "becomes max_k |L_k| whatever the weights do.",
    )


@check
def check_stop(stop: Callable[..., int | None]) -> None:
    """`stop(losses, alpha, tau, earliest)` is the first iteration, from 1, with m_n <= tau."""
    falling = [1.0 - 0.05 * n for n in range(40)]
    spike = [0.5] * 14 + [-9.0] + [0.5] * 15
    for losses, alpha, tau, earliest in (
        ([1.0] * 30, 0.9, 0.1, 1),
        (falling, 0.8, 0.0, 11),
        (spike, 0.99, 0.0, 11),
        (falling, 0.5, 0.1, 11),
        (falling, 0.0, 0.0, 1),
        ([-1.0] * 20, 0.9, 0.0, 11),
    ):
        expected = _stop(losses, alpha, tau, earliest)
        answer = stop(losses, alpha, tau, earliest)
        if answer == expected:
            continue
        case = f"alpha = {alpha}, tau = {tau}, losses {[round(x, 2) for x in losses[:3]]} ..."
        require(
            answer is None or answer >= earliest,
            f"{case}: you stop at {answer}, before the earliest iteration {earliest}; "
            "they count from 1.",
        )
        from_zero = _stop([0.0, *losses], alpha, tau, earliest + 1)  # as if m_0 were 0
        require(
            answer is None or from_zero is None or answer != from_zero - 1,
            f"{case}: you stop at {answer}, since your m_0 is 0; it starts at the first loss.",
        )
        require(
            answer != _stop(losses, 0.0, tau, earliest),
            f"{case}: you compare the loss with tau, in place of its running mean.",
        )
        require(
            answer != _stop(losses, 1 - alpha, tau, earliest),
            f"{case}: alpha weighs the past and 1 - alpha the new loss; you have them exchanged.",
        )
        require(
            expected is None or answer != expected - 1,
            f"{case}: you are one too early; iterations count from 1.",
        )
        meant = "never stops: return None" if expected is None else f"stops at {expected}"
        require(False, f"{case}: the training {meant}; yours gives {answer}.")


def _stop(losses: Sequence[float], alpha: float, tau: float, earliest: int) -> int | None:
    momentum = Momentum(alpha, tau, earliest)
    for n, loss in enumerate(losses, start=1):
        momentum.update(loss)
        if momentum.stopped:
            return n
    return None


def _random() -> tuple[Tensor, Tensor]:
    """r and r0 `[3, 4, 8, 8]`: the first sample correlated, the last one against."""
    generator = torch.Generator().manual_seed(0)
    r0, other = torch.randn(2, 3, 4, 8, 8, generator=generator, dtype=torch.float64)
    return torch.tensor([0.5, 0.0, -0.5]).reshape(3, 1, 1, 1) * r0 + other, r0
