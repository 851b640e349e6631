"""Chapter 05: principal angles, what chance would give, and the Gram matrix of deltas."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sepme.course.checks._reply import as_number, as_tensor, checks, compare, near, normal, require
from sepme.delta import ConceptDelta
from sepme.interference import principal_cosines


@checks
def angles(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`angles(E, F)` are the principal angles of two row spaces, in radians, smallest first."""
    E, F = normal(2, 4, 12)
    F = F[:2] + 0.5 * E[:2]
    cosines = principal_cosines(E, F)
    found = as_tensor(answer(E, F), (2,), "the angles (as many as the smaller space has)")
    mistakes = {
        "Those are the cosines: an angle is their arccosine.": cosines,
        "Those are the cosines in ascending order: an angle is their arccosine.": cosines.flip(0),
        "Those are degrees: keep to radians.": cosines.acos().rad2deg(),
        "Smallest angle first: the largest cosine leads.": cosines.acos().flip(0),
    }
    otherwise = "These are not the principal angles: rows must be made orthonormal first."
    compare(found, cosines.acos(), mistakes, otherwise)
    dependent = torch.cat([E[:2], 3 * E[:2], E[:1] - E[1:2]])  # as the rows of prompts are
    fewer = as_tensor(answer(dependent, F), (2,), "the angles of a space with dependent rows")
    rows = "Rows that others make up add no direction: `row_basis` leaves them out, `qr` does not."
    compare(fewer, principal_cosines(E[:2], F).acos(), {}, rows)
    same = as_tensor(answer(E, 3 * E), (4,), "the angles")
    clamp = "A space makes no angle with itself: clamp the cosines to 1 before the arccosine."
    require(same.abs().max() < 1e-3, clamp)


@checks
def random_basis(answer: Callable[[int, int, torch.Generator], Tensor]) -> None:
    """`random_basis(q, d, generator)` are orthonormal rows `[q, d]`, uniform over directions."""
    rng = torch.Generator().manual_seed(0)
    draws = [as_tensor(answer(3, 20, rng), (3, 20), "the basis") for _ in range(400)]
    same = near(draws[0], draws[1])
    require(not same, "Two draws are the same: hand the generator to torch.randn.")
    orthonormal = all(near(Q @ Q.T, torch.eye(3), 1e-5) for Q in draws)
    require(orthonormal, "Your rows are not orthonormal, Q Q^T = 1: try torch.linalg.qr.")
    # ||Q v||^2 of a fixed unit vector v is Beta(3/2, 17/2): mean 3/20, mean square 15/440. Here v
    # is each axis and the diagonal; the bounds are five standard errors or more.
    v = torch.cat([torch.eye(20), torch.full((1, 20), 20**-0.5)]).double()
    shares = torch.stack([(Q @ v.T).square().sum(dim=0) for Q in draws])  # [draws, directions]
    uniform = (shares.mean(dim=0) - 3 / 20).abs().max() < 0.03
    uniform &= abs(shares.square().mean() - 15 / 440) < 0.01
    require(uniform, "Your directions are not uniform: start from independent normal numbers.")


@checks
def expected_overlap(answer: Callable[[int, int, int], float]) -> None:
    """`expected_overlap(q1, q2, d)` is the mean of ||Q1 Q2^T||_F^2 of random subspaces."""
    for q1, q2, d in ((1, 1, 256), (4, 2, 256), (16, 16, 256), (256, 3, 256), (5, 3, 64)):
        found, true = as_number(answer(q1, q2, d), "the expectation"), q1 * q2 / d
        mistakes = {
            "That is the root: the squares of cosines add up.": true**0.5,
            "Every pair of directions counts, q1 times q2 of them.": min(q1, q2) / d,
            "It is right in 256 dimensions only: use the argument `d`.": q1 * q2 / 256,
        }
        told = f"For q1 = {q1}, q2 = {q2}, d = {d} chance gives {true:.4g}, not {found:.4g}"
        compare(found, true, mistakes, f"{told}: a direction has 1/d of its square along another.")


@checks
def gram(
    answer: Callable[[Sequence[ConceptDelta]], Tensor], deltas: Sequence[ConceptDelta]
) -> None:
    """`gram(deltas)` are the cosines of the deltas, taken over all layers, `[n, n]`."""
    deltas = [*deltas, -2 * deltas[0]]  # one that pulls against another, of another length
    layers = [[delta.dense(path).double().flatten() for path in delta.paths] for delta in deltas]
    flat = torch.stack([torch.cat(parts) for parts in layers])
    true = cosine_similarity(flat[:, None], flat[None], dim=2)
    each = map(torch.stack, zip(*layers, strict=True))  # the rows of one layer
    by_layer = torch.stack([cosine_similarity(r[:, None], r[None], dim=2) for r in each])
    found, products = as_tensor(answer(deltas), tuple(true.shape), "the Gram matrix"), flat @ flat.T
    require(near(found, true) or not near(found, products), "These are products, not cosines.")
    require(near(found, found.T), "A Gram matrix is symmetric; yours is not.")
    own = f"A delta has the cosine 1 with itself; yours has {float(found[0, 0]):.3g}."
    require(near(found.diag(), torch.ones(len(deltas))), own)
    mistakes = {
        "Keep the sign: deltas can pull against each other.": true.abs(),
        "That is one layer only: add up over all paths before you divide.": by_layer[0],
        "That is the mean of the layers' cosines: add up the products first.": by_layer.mean(0),
    }
    compare(found, true, mistakes, "This is not <D_i, D_j> / (||D_i|| ||D_j||) over all layers.")
