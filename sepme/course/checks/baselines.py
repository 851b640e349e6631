"""Chapter 06: ESD's target in both notations, UCE's ridge regression, and SPEED's constraint."""

from collections.abc import Callable

import torch
from torch import Tensor

from sepme.baselines.esd import esd_target
from sepme.baselines.speed import speed_shift
from sepme.baselines.uce import UCESettings, uce_shift
from sepme.course.checks.feedback import as_tensor, check, near, require


@check
def check_target(target: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """`target(eps_c, eps_0, eta)` is what ESD wants the concept's prompt to predict."""
    eps_c, eps_0 = torch.randn(2, 2, 4, 8, 8, generator=_generator(), dtype=torch.float64)
    for eta in (1.0, 0.0, 2.5):
        answer = as_tensor(target(eps_c, eps_0, eta), tuple(eps_c.shape), "the target")
        expected = esd_target(eps_c, eps_0, eta)
        if near(answer, expected):
            continue
        require(
            not near(answer, eps_0 + eta * (eps_c - eps_0)),
            "That is guidance towards the concept: ESD turns the sign of r(c) around.",
        )
        require(
            not near(answer, -eta * (eps_c - eps_0)),
            "That is where r(c) should go; the target is a prediction: add that of the empty "
            "prompt.",
        )
        require(
            not near(answer, eps_c - eta * (eps_c - eps_0)),
            "You start from the concept's prediction, as the rewrite does with its factor; with "
            "eta one starts from the empty prompt's.",
        )
        require(False, f"With eta = {eta:g} this is not eps_0 - eta (eps_c - eps_0).")


@check
def check_eta(eta_of: Callable[[float], float]) -> None:
    """`eta_of(factor)` is the eta whose target is the rewrite's eps_c - factor (eps_c - eps_0)."""
    for factor in (2.0, 1.0, 3.5):
        answer = float(as_tensor(eta_of(factor), (), "eta"))
        require(
            answer != factor,
            "The same number would be the same target twice; one of the two starts from the "
            "concept's prediction, the other from the empty prompt's.",
        )
        require(
            near(answer, factor - 1),
            f"With factor = {factor:g} and your eta = {answer:g} the two targets differ: write "
            "both as eps_0 plus a multiple of r(c) and compare.",
        )


@check
def check_uce(uce: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """`uce(W0, C, A, P, lam)` is the edited matrix: C says what A said, P says what it said."""
    W0, C, A, P = _matrices()
    settings = UCESettings(lam=0.5)

    def edited(a: Tensor, p: Tensor) -> Tensor:
        return W0 + W0 @ uce_shift(C, a, p, settings)

    expected = edited(A, P)
    value = uce(W0, C, A, P, 0.5)
    if isinstance(value, Tensor) and value.shape != W0.shape:
        require(
            value.shape != W0.T.shape,
            "Your matrix is transposed: W applies to a column, so W is [d_out, d_in].",
        )
    answer = as_tensor(value, tuple(W0.shape), "W")
    if near(answer, expected):
        require(
            near(as_tensor(uce(W0, C, A, P, 5.0), tuple(W0.shape), "W"), _ridge(W0, C, A, P, 5.0)),
            "It is right for lambda = 0.5 only: use the argument `lam`.",
        )
        return
    require(
        not near(answer, expected - W0),
        "That is the change alone: return the edited matrix, W0 and the change.",
    )
    require(
        not near(answer, edited(A, P[:0])),
        "What is preserved is missing: P belongs into both sums.",
    )
    gram = 0.5 * torch.eye(6) + C.T @ C + P.T @ P
    without = torch.linalg.solve(gram, C.T @ (A @ W0.T) + P.T @ (P @ W0.T)).T
    require(
        not near(answer, without),
        "lambda stands in the inverse only: lambda W0 belongs into the other factor too, or the "
        "weights are drawn to zero instead of to W0.",
    )
    require(
        not near(answer, edited(C, P)),
        "Nothing has changed: the goal of C is what the original matrix says of A, W0 a.",
    )
    require(
        False,
        "This is not the minimum: set the derivative with respect to W to zero and solve for W.",
    )


@check
def check_speed(speed: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """`speed(W0, C, A, S, rho)` is the change that fits C to A without moving what S keeps."""
    W0, C, A, K = _matrices()
    S = torch.linalg.svd(K).Vh[len(K) :].T  # columns: the null space of what is kept
    answer = as_tensor(speed(W0, C, A, S, 0.1), tuple(W0.shape), "the change")
    expected = W0 @ speed_shift(C, A, S, 0.1)
    if near(answer, expected):
        return
    require(
        not near(answer, W0 + expected),
        "That is the edited matrix: return the change alone.",
    )
    kept = float((K @ answer.T).abs().max())
    require(
        kept < 1e-6,
        f"What is kept moves by up to {kept:.2g}: the change must read the text through S alone, "
        "so let it end in S^T.",
    )
    late = W0 @ speed_shift(C, A, torch.eye(6, dtype=torch.float64), 0.1) @ S @ S.T
    require(
        not near(answer, late),
        "You solved without the constraint and projected at the end: that keeps what is to be "
        "kept, but of all such changes another fits C best; put S into the problem before you "
        "solve it.",
    )
    require(answer.abs().max() > 0, "The change is zero: it keeps everything and erases nothing.")
    require(
        False,
        "It keeps what is to be kept, and is not the best such change: fit B with "
        "(C S) B^T = (A - C) W0^T by ridge regression; the change is B S^T.",
    )


def _ridge(W0: Tensor, C: Tensor, A: Tensor, P: Tensor, lam: float) -> Tensor:
    return W0 + W0 @ uce_shift(C, A, P, UCESettings(lam=lam))


def _matrices() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W0 `[5, 6]` and rows C `[2, 6]`, A `[2, 6]`, and two more rows that stay `[2, 6]`."""
    generator = _generator()
    W0 = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    C, A, P = torch.randn(3, 2, 6, generator=generator, dtype=torch.float64)
    return W0, C, A, P


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
