"""Chapter 02: solutions by hand, projectors, and the tolerance for a leakage."""

from collections.abc import Callable

import torch
from torch import Tensor

from sepme.course.checks.feedback import as_tensor, check, near, require
from sepme.errors import SepmeError
from sepme.nullspace import null_space


@check
def check_solutions(solutions: Callable[[], Tensor], A: Tensor) -> None:
    """`solutions()` is a basis `[d_in, free]` of unit-length solutions of A x = 0 (eq. 8)."""
    A = A.double()
    free = A.shape[1] - int(torch.linalg.matrix_rank(A))
    S = solutions()
    require(isinstance(S, Tensor) and S.ndim == 2, "Return a matrix, one solution a column.")
    require(
        tuple(S.shape) != (free, A.shape[1]),
        "Your solutions are rows: transpose, so that each is a column.",
    )
    require(
        S.shape[1] == free,
        f"There are {free} free unknowns, so {free} solutions, not {S.shape[1]}: is every row of A "
        "independent of the others?",
    )
    S = as_tensor(S, (A.shape[1], free), "the basis")
    for i in range(free):
        product = A @ S[:, i]
        require(
            product.abs().max() < 1e-5,
            f"A times your column {i} is {[round(x, 3) for x in product.tolist()]}, not zero.",
        )
    require(
        int(torch.linalg.matrix_rank(S, atol=1e-6)) == free,
        "Your columns are multiples of each other: set one free unknown to 1 and the others to 0.",
    )
    require(
        near(S.norm(dim=0), torch.ones(free)),
        "Your columns solve A x = 0 but are not of unit length: divide each by its norm.",
    )


@check
def check_projector(projector: Callable[[Tensor], Tensor]) -> None:
    """`projector(S)` projects orthogonally on the span of any basis S, orthonormal or not."""
    generator = torch.Generator().manual_seed(0)
    S = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    P = as_tensor(projector(S), (6, 6), "the projector")
    require(
        near(P, P.T, 1e-6), "Your projector is not symmetric: did you forget to transpose a factor?"
    )
    require(
        near(P @ P, P, 1e-6),
        "Your projector is not idempotent (P P differs from P): the columns of S are not "
        "orthonormal, so S S^T alone will not do.",
    )
    require(
        not near(P @ S, torch.zeros_like(S)) and (P @ S).norm() > 1e-6,
        "Your projector removes S and keeps the rest: return the other half of the identity.",
    )
    require(near(P @ S, S, 1e-6), "P S must be S: what lies in the span stays as it is.")
    require(
        near(P.trace(), 3.0, 1e-6),
        f"The trace of P is the dimension of the span, 3; yours is {float(P.trace()):.3g}.",
    )


@check
def check_tolerance(tolerance: Callable[[Tensor, float], float], A: Tensor) -> None:
    """`tolerance(A, leakage)` leaves as much room as possible without leaking more."""
    spectrum = torch.linalg.svdvals(A.double())
    for allowed in (30.0, 3.0, 0.3):
        rtol = tolerance(A, allowed)
        require(
            not isinstance(rtol, Tensor) or rtol.numel() == 1, "Return one number, the tolerance."
        )
        try:
            space = null_space(A.float(), rtol=float(rtol))
        except SepmeError as error:
            require(False, f"null_space refuses {float(rtol):.3g}: {error}")
        require(
            space.leakage_bound <= allowed,
            f"Asked for a leakage of {allowed:g}, your tolerance {float(rtol):.2e} leaks up to "
            f"{space.leakage_bound:.2g}: it is relative to the largest singular value, "
            f"{float(spectrum[0]):.3g}.",
        )
        room = A.shape[1] - int((spectrum > allowed).sum())
        require(
            space.free == room,
            f"Asked for a leakage of {allowed:g}, your tolerance {float(rtol):.2e} leaves "
            f"{space.free} dimensions free where {room} are possible: allow as much as you may.",
        )
