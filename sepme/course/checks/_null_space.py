"""Chapter 02: solutions by hand, projectors, and the tolerance for a leakage."""

from collections.abc import Callable

import torch
from torch import Tensor

from sepme.concept import evenly
from sepme.course.checks._reply import NotYet, as_number, as_tensor, checks, near, normal, require
from sepme.errors import SepmeError
from sepme.nullspace import null_space, reduced_row_echelon


@checks
def solutions(answer: Callable[[], Tensor], A: Tensor) -> None:
    """`solutions()` are the unit-length solutions of A x = 0, one a free unknown (eq. 8)."""
    A, S = A.double(), answer()
    free = A.shape[1] - int(torch.linalg.matrix_rank(A))
    require(isinstance(S, Tensor) and S.ndim == 2, "Return a matrix, one solution a column.")
    require(tuple(S.shape) != (free, A.shape[1]), "Your solutions are rows: transpose them.")
    count = f"There are {free} free unknowns, so {free} solutions, not {S.shape[1]}"
    require(S.shape[1] == free, f"{count}: is every row of A independent of the others?")
    S = as_tensor(S, (A.shape[1], free), "the basis")
    for i, product in enumerate((A @ S).T):
        numbers = [round(x, 3) for x in product.tolist()]
        require(product.abs().max() < 1e-5, f"A times your column {i} is {numbers}, not zero.")
    multiples = "Your columns are multiples of each other: set one free unknown to 1, others to 0."
    require(int(torch.linalg.matrix_rank(S, atol=1e-6)) == free, multiples)
    lengths = "Your columns solve A x = 0 but are not of unit length: divide each by its norm."
    require(near(S.norm(dim=0), torch.ones(free)), lengths)
    pivots = reduced_row_echelon(A, 1e-9)[1]
    unknowns = [j for j in range(A.shape[1]) if j not in pivots]
    values = S[unknowns] / S[unknowns].abs().amax(dim=0)  # [free, free]: a single 1 a column
    single = near(values.sum(dim=0), torch.ones(free)) and int((values.abs() > 1e-5).sum()) == free
    named = " and ".join(f"x{j + 1}" for j in unknowns)
    mixed = f"Your columns solve A x = 0, but {named} are free: set one to 1 and the others to 0."
    require(single, mixed)


@checks
def projector(answer: Callable[[Tensor], Tensor]) -> None:
    """`projector(S)` projects orthogonally on the span of any basis S, orthonormal or not."""
    S = normal(6, 3)
    P = as_tensor(answer(S), (6, 6), "the projector")
    require(near(P, P.T, 1e-6), "P is not symmetric: did you forget to transpose a factor?")
    twice = "P is not idempotent (P P differs from P): S is not orthonormal, so S S^T will not do."
    require(near(P @ P, P, 1e-6), twice)
    require((P @ S).norm() > 1e-6, "P removes S and keeps the rest: return the other half.")
    require(near(P @ S, S, 1e-6), "P S must be S: what lies in the span stays as it is.")
    trace = f"The trace of P is the dimension of the span, 3; yours is {float(P.trace()):.3g}."
    require(near(P.trace(), 3.0, 1e-6), trace)


@checks
def tolerance(answer: Callable[[Tensor, float], float], A: Tensor) -> None:
    """`tolerance(A, leakage)` leaves as many dimensions free as possible without leaking more."""
    for rows in (A, A[::2] / 7):  # neither a row's length nor their number is a constant
        spectrum = torch.linalg.svdvals(rows.double())
        length = float(rows.double().norm(dim=1).square().mean().sqrt())
        relative = f"it is relative to the root mean square length of a row, {length:.3g}"
        for allowed in _beside(spectrum, length):
            rtol = as_number(answer(rows, allowed), "the tolerance")
            try:
                space = null_space(rows.float(), rtol=rtol)
            except SepmeError as error:
                raise NotYet(f"null_space refuses {rtol:.3g}: {error}") from error
            asked = f"Asked for a leakage of {allowed:.4g}, your tolerance {rtol:.2e}"
            leaks = f"{asked} leaks up to {space.leakage_bound:.4g}"
            require(space.leakage_bound <= allowed, f"{leaks}: {relative}.")
            most = rows.shape[1] - int((spectrum > allowed).sum())
            little = f"{asked} leaves {space.free} dimensions free where {most} are possible"
            require(space.free == most, f"{little}: {relative}.")


def _beside(spectrum: Tensor, length: float) -> list[float]:
    """Leakages just above and below a few singular values that stand alone, within half a row."""
    s = spectrum.tolist()
    alone = [
        s[k]
        for k in range(1, len(s) - 1)
        if s[k - 1] > 1.01 * s[k] > 1.02 * s[k + 1] and 0.5 > s[k] / length > 0.01
    ]
    return [near_it * value for value in evenly(alone, 3) for near_it in (1.001, 0.999)]
