"""Chapter 05: principal angles, what chance would give, and the Gram matrix of deltas."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sepme.course.checks.feedback import as_tensor, check, near, require
from sepme.delta import ConceptDelta

#: Draws of random subspaces, and how far their mean may stray: several standard errors.
DRAWS, STRAY = 200, 0.1


@check
def check_angles(angles: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`angles(E, F)` are the principal angles of two row spaces, in radians, smallest first."""
    generator = torch.Generator().manual_seed(0)
    E, F = torch.randn(2, 4, 12, generator=generator, dtype=torch.float64)
    F = F[:2] + 0.5 * E[:2]
    E_q, F_q = (torch.linalg.qr(rows.T).Q.T for rows in (E, F))
    cosines = torch.linalg.svdvals(E_q @ F_q.T)
    answer = as_tensor(angles(E, F), (2,), "the angles (as many as the smaller space has)")
    require(
        not near(answer, cosines) and not near(answer, cosines.flip(0)),
        "Those are the cosines: an angle is their arccosine.",
    )
    require(not near(answer, cosines.acos().rad2deg()), "Those are degrees: keep to radians.")
    require(
        not near(answer, cosines.acos().flip(0)), "Smallest angle first: the largest cosine leads."
    )
    require(
        near(answer, cosines.acos()),
        "These are not the principal angles: rows that are not orthonormal must be made so first.",
    )
    same = as_tensor(angles(E, 3 * E), (4,), "the angles")
    require(
        same.abs().max() < 1e-3,
        "A space makes no angle with itself: clamp the cosines to 1 before the arccosine.",
    )


@check
def check_random_basis(random_basis: Callable[[int, int, torch.Generator], Tensor]) -> None:
    """`random_basis(q, d, generator)` are orthonormal rows `[q, d]`, uniform over directions."""
    generator = torch.Generator().manual_seed(0)
    draws = [as_tensor(random_basis(3, 20, generator), (3, 20), "the basis") for _ in range(DRAWS)]
    require(
        not near(draws[0], draws[1]), "Two draws are the same: hand the generator to torch.randn."
    )
    for Q in draws:
        require(
            near(Q @ Q.T, torch.eye(3), 1e-5),
            "Your rows are not orthonormal: Q Q^T must be the identity; try torch.linalg.qr.",
        )
    overlaps = torch.stack([(draws[0] @ Q.T).square().sum() for Q in draws[1:]])
    require(
        abs(float(overlaps.mean()) - 9 / 20) < STRAY,
        "Your directions are not uniform: start from independent normal numbers.",
    )


@check
def check_expected(expected_overlap: Callable[[int, int, int], float]) -> None:
    """`expected_overlap(q1, q2, d)` is the mean of ||Q1 Q2^T||_F^2 of random subspaces."""
    for q1, q2, d in ((1, 1, 256), (4, 2, 256), (16, 16, 256), (256, 3, 256)):
        answer = float(as_tensor(expected_overlap(q1, q2, d), (), "the expectation"))
        expected = q1 * q2 / d
        if near(answer, expected):
            continue
        require(not near(answer, expected**0.5), "That is the root: the squares of cosines add up.")
        require(
            not near(answer, min(q1, q2) / d),
            "Every pair of directions counts, q1 times q2 of them.",
        )
        require(
            False,
            f"For q1 = {q1}, q2 = {q2}, d = {d} chance gives {expected:.4g}, not {answer:.4g}: one "
            "random direction has 1/d of its length squared along any other.",
        )


@check
def check_gram(
    gram: Callable[[Sequence[ConceptDelta]], Tensor], deltas: Sequence[ConceptDelta]
) -> None:
    """`gram(deltas)` are the cosines of the deltas, taken over all layers, `[n, n]`."""
    layers = [[delta.dense(path).double().flatten() for path in delta.paths] for delta in deltas]
    flat = torch.stack([torch.cat(parts) for parts in layers])
    products = flat @ flat.T
    sizes = products.diag().sqrt()
    expected = products / torch.outer(sizes, sizes)
    answer = as_tensor(gram(deltas), tuple(expected.shape), "the Gram matrix")
    if near(answer, expected):
        return
    require(
        not near(answer, products),
        "These are products, not cosines: divide entry i, j by the sizes of delta i and delta j.",
    )
    require(near(answer, answer.T), "A Gram matrix is symmetric; yours is not.")
    require(
        near(answer.diag(), torch.ones(len(deltas))),
        f"A delta has the cosine 1 with itself; yours has {float(answer[0, 0]):.3g}.",
    )
    require(not near(answer, expected.abs()), "Keep the sign: deltas can pull against each other.")
    first = torch.stack([parts[0] for parts in layers])
    require(
        not near(answer, torch.nn.functional.cosine_similarity(first[:, None], first[None], dim=2)),
        "That is one layer only: add up over all paths before you divide.",
    )
    require(False, "This is not <D_i, D_j> / (||D_i|| ||D_j||) over all layers.")
