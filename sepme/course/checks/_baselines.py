"""Chapter 06: ESD's target in both notations, UCE's ridge regression, and SPEED's constraint."""

from collections.abc import Callable

import torch
from torch import Tensor

from sepme.baselines.esd import esd_target
from sepme.baselines.speed import speed_shift
from sepme.baselines.uce import UCESettings, uce_shift
from sepme.course.checks._reply import as_number, as_tensor, checks, compare, near, normal, require


@checks
def target(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """`target(eps_c, eps_0, eta)` is what ESD wants the concept's prompt to predict."""
    eps_c, eps_0 = normal(2, 2, 4, 8, 8)
    r = eps_c - eps_0
    for eta in (1.0, 0.0, 2.5):
        towards, from_c = eps_0 + eta * r, eps_c - eta * r
        mistakes = {
            "That is guidance towards the concept: ESD turns the sign of r(c) around.": towards,
            "That is where r(c) should go: add that of the empty prompt.": -eta * r,
            "You start at eps_c, as the rewrite does with its factor; eta starts at eps_0.": from_c,
        }
        found = as_tensor(answer(eps_c, eps_0, eta), tuple(r.shape), "the target")
        otherwise = f"With eta = {eta:g} this is not eps_0 - eta (eps_c - eps_0)."
        compare(found, esd_target(eps_c, eps_0, eta), mistakes, otherwise)


@checks
def eta_of(answer: Callable[[float], float]) -> None:
    """`eta_of(factor)` is the eta whose target is the rewrite's eps_c - factor (eps_c - eps_0)."""
    for factor in (2.0, 1.0, 3.5):
        eta = as_number(answer(factor), "eta")
        mistakes = {"That is the same target twice; one starts at eps_c, one at eps_0.": factor}
        otherwise = f"With factor = {factor:g} and your eta = {eta:g} the two targets differ"
        compare(eta, factor - 1, mistakes, f"{otherwise}: write both as eps_0 + ... r(c).")


@checks
def uce(answer: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """`uce(W0, C, A, P, lam)` is the edited matrix: C says what A said, P says what it said."""
    W0, C, A, P = _matrices()

    def edited(a: Tensor, p: Tensor, lam: float = 0.5) -> Tensor:
        return W0 + W0 @ uce_shift(C, a, p, UCESettings(lam=lam))

    def solved(lam: float) -> Tensor:
        value = answer(W0, C, A, P, lam)
        transposed = isinstance(value, Tensor) and value.shape == W0.T.shape
        require(not transposed, "Your matrix is transposed: W applies to a column.")
        return as_tensor(value, tuple(W0.shape), "W")

    gram = 0.5 * torch.eye(6) + C.T @ C + P.T @ P
    without = torch.linalg.solve(gram, C.T @ (A @ W0.T) + P.T @ (P @ W0.T)).T
    mistakes = {
        "That is the change alone: return W0 and the change.": edited(A, P) - W0,
        "What is preserved is missing: P belongs into both sums.": edited(A, P[:0]),
        "lambda stands in the inverse only: lambda W0 belongs into the other factor.": without,
        "Nothing has changed: the goal of C is what the original says of A, W0 a.": edited(C, P),
    }
    otherwise = "This is not the minimum: set the derivative to zero and solve for W."
    compare(solved(0.5), edited(A, P), mistakes, otherwise)
    same = near(solved(5.0), edited(A, P, 5.0))
    require(same, "It is right for lambda = 0.5 only: use the argument `lam`.")


@checks
def speed(answer: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """`speed(W0, C, A, S, rho)` is the change that fits C to A without moving what S keeps."""
    W0, C, A, K = _matrices()
    S = torch.linalg.svd(K).Vh[len(K) :].T  # columns: the null space of what is kept
    found = as_tensor(answer(W0, C, A, S, 0.1), tuple(W0.shape), "the change")
    true, all_free = (W0 @ speed_shift(C, A, s, 0.1) for s in (S, torch.eye(6).double()))
    require(not near(found, W0 + true), "That is the edited matrix: return the change alone.")
    kept = float((K @ found.T).abs().max())
    require(kept < 1e-6, f"What is kept moves by up to {kept:.2g}: let the change end in S^T.")
    mistakes = {
        "You projected at the end: put S into the problem before you solve it.": all_free @ S @ S.T,
        "The change is zero: it keeps everything and erases nothing.": 0 * W0,
    }
    otherwise = "It is not the best such change: fit B with (C S) B^T = (A - C) W0^T by ridge."
    compare(found, true, mistakes, otherwise)


def _matrices() -> tuple[Tensor, ...]:
    """W0 `[5, 6]` and rows C `[2, 6]`, A `[2, 6]`, and two more rows that stay `[2, 6]`."""
    return normal(11, 6).split([5, 2, 2, 2])
