"""Chapter 03: the loss, its normalised form, the balance of concepts, and when to stop."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sepme.correlation import Momentum, balance, correlation_loss, normalised_correlation
from sepme.course.checks._reply import NotYet, as_tensor, checks, compare, near, normal, require


@checks
def correlation(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`correlation(r, r0)` is eq. 2: one mean over channels and pixels for each sample."""
    r, r0 = _pair()
    value, true = answer(r, r0), correlation_loss(r, r0)
    single = isinstance(value, Tensor) and value.ndim == 0
    require(not single, "That is one number for the batch: average over channels and pixels only.")
    mistakes = {
        "You took the sum: eq. 2 is a mean, so it does not grow with the picture.": 256 * true,
        "That is the normalised form; eq. 2 has no denominator.": normalised_correlation(r, r0),
        "Keep the sign: below 0 lies the anti-concept.": true.abs(),
    }
    otherwise = "This is not the mean of r * r0 over channels and pixels."
    compare(as_tensor(value, (3,), "L_cor"), true, mistakes, otherwise)


@checks
def normalised(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`normalised(r, r0)` is <r, r0> / <r0, r0>: 1 untouched, 0 erased, negative overshot."""
    r, r0 = _pair()
    results = (answer(changed, r0) for changed in (r0, 0.5 * r0, r))
    one, half, some = (as_tensor(v, (3,), "the normalised correlation") for v in results)
    require(near(one, torch.ones(3)), "An untouched model (r = r0) must give exactly 1.")
    mistakes = {
        "Half of r0 also gives 1: a cosine does not see that half of the concept is gone.": one,
        "Half of r0 gives 2: divide by the original's <r0, r0>, not by r's.": 2 * one,
    }
    compare(half, 0.5 * one, mistakes, f"Half of r0 gives {float(half.mean()):.3g}, not 0.5.")
    require(near(some, normalised_correlation(r, r0)), "This is not <r, r0> / <r0, r0>.")


@checks
def eta(answer: Callable[[Tensor], Tensor]) -> None:
    """`eta(losses)` is eq. 3: max_k |L_k| / |L_i|, a constant for the gradient."""
    losses = torch.tensor([0.4, -0.1, 0.05], dtype=torch.float64)
    value, true = answer(losses.clone().requires_grad_()), balance(losses)
    found = as_tensor(value, (3,), "eta")
    mistakes = {"Upside down: what is nearly erased gets the largest weight.": 1 / true}
    otherwise = f"For {losses.tolist()} eq. 3 gives {true.tolist()}, not {found.tolist()}."
    compare(found.abs(), true, mistakes, otherwise)
    require((found > 0).all(), "Weights must be positive: take |L_i| in both places.")
    require(not value.requires_grad, "eta must be a constant for the gradient: detach the losses.")


@checks
def stop(answer: Callable[..., int | None]) -> None:
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
        true, n = _stop(losses, alpha, tau, earliest), answer(losses, alpha, tau, earliest)
        if n == true:
            continue
        case = f"alpha = {alpha}, tau = {tau}, losses {[round(x, 2) for x in losses[:3]]} ..."
        early = n is not None and n < earliest
        require(not early, f"{case}: {n} is before the earliest iteration {earliest}, from 1.")
        from_zero = _stop([0.0, *losses], alpha, tau, earliest + 1)  # as if m_0 were 0
        exchanged = _stop(losses, 1 - alpha, tau, earliest)
        mistakes = {
            "since your m_0 is 0; it starts at the first loss": from_zero and from_zero - 1,
            "the loss itself, in place of its running mean": _stop(losses, 0.0, tau, earliest),
            "alpha weighs the past; you have them exchanged": exchanged,
            "one too early; iterations count from 1": true and true - 1,
        }
        known = (text for text, wrong in mistakes.items() if n is not None and n == wrong)
        raise NotYet(f"{case}: it stops at {true}, not at {n} ({next(known, 'see (4)')}).")


def _stop(losses: Sequence[float], alpha: float, tau: float, earliest: int) -> int | None:
    """The iteration after which rule (4) ends a training with these losses, or None."""
    return Momentum(alpha, tau, earliest).over(losses)[1]


def _pair() -> tuple[Tensor, Tensor]:
    """r and r0 `[3, 4, 8, 8]`: the first sample correlated, the last one against."""
    r0, other = normal(2, 3, 4, 8, 8)
    return torch.tensor([0.5, 0.0, -0.5]).reshape(3, 1, 1, 1) * r0 + other, r0
