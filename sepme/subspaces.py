"""Row spaces, the angles between them, and what of a prompt lies in them.

A delta `B Q` sees nothing of the text but its part in the row space of Q, so how two concepts
relate is a matter of two subspaces of the text embedding, and of what random ones would do.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sepme.delta import ConceptDelta
from sepme.errors import SepmeError
from sepme.nullspace import row_basis


def at_least_two(concepts: Collection[Any]) -> None:
    """Raise SepmeError for fewer than two: nothing here can be said of one concept alone."""
    if len(concepts) < 2:
        raise SepmeError("Entanglement is between two concepts: give at least two.")


def pairwise(entry: Callable[[Any, Any], float], rows: Iterable, columns: Iterable) -> Tensor:
    """`entry(row, column)` of every two, `[rows, columns]`, float64."""
    columns = list(columns)
    entries = [[entry(row, column) for column in columns] for row in rows]
    return torch.tensor(entries, dtype=torch.float64)


# ------------------------------------------------------------------ row spaces and angles
def row_space(delta: ConceptDelta) -> Tensor:
    """Orthonormal rows `[q, d_in]`, float64: the directions of the text that a delta reads.

    The row space of all its layers' `B_l Q_l` on top of one another; directions that every B_l
    maps to zero are none of it.

    Raises:
        SepmeError: the delta is zero.
    """
    rows = [torch.linalg.qr(delta.up[path]).R @ delta.down[path] for path in delta.paths]
    if not any(part.any() for part in rows):
        raise SepmeError(f"The delta of {delta.concept!r} is zero, so it reads nothing.")
    return row_basis(torch.cat(rows))


def principal_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of the principal angles of two row spaces, `[min(q_a, q_b)]`, largest first.

    1: a direction that both share; 0: one that is orthogonal to all of the other space. They are
    the singular values of `Q_a Q_b^T` (Björck and Golub 1973), whatever bases are given.

    Args:
        a, b: `[m, d_in]`, rows that span the spaces; they need not be orthonormal.

    Raises:
        SepmeError: different widths, or a matrix that spans nothing.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise SepmeError(
            f"Rows of shape {list(a.shape)} and {list(b.shape)} do not live in one space: give "
            "two matrices [m, d_in] of one model."
        )
    return torch.linalg.svdvals(row_basis(a) @ row_basis(b).T).clamp(0, 1)


def largest_cosine(a: Tensor, b: Tensor) -> float:
    """The first of the `principal_cosines`: how near the two spaces come to sharing a direction."""
    return float(principal_cosines(a, b)[0])


def overlap(a: Tensor, b: Tensor) -> float:
    """`||Q_a Q_b^T||_F^2 / min(q_a, q_b)`, the mean squared cosine of two row spaces, 0 to 1.

    0: orthogonal; 1: one contains the other. Arguments and errors as of `principal_cosines`.
    """
    return float(principal_cosines(a, b).square().mean())


def expected_overlap(q_a: int, q_b: int, d_in: int) -> float:
    """The `overlap` to expect of two random subspaces: `E ||Q_a Q_b^T||_F^2 = q_a q_b / d_in`.

    `Q_b^T Q_b` is a projector of trace q_b; averaged over all rotations it is `q_b / d_in I`.

    Raises:
        SepmeError: a dimension below 1 or above d_in.
    """
    _check_dimensions(q_a, q_b, d_in)
    return q_a * q_b / d_in / min(q_a, q_b)


def random_largest_cosines(
    q_a: int, q_b: int, d_in: int, draws: int = 1000, seed: int = 0
) -> Tensor:
    """The largest principal cosine of `draws` pairs of random subspaces, `[draws]`, ascending.

    Its quantiles say how large a cosine has to be before it means something.

    Raises:
        SepmeError: a dimension below 1 or above d_in, or no draw.
    """
    _check_dimensions(q_a, q_b, d_in)
    if draws < 1:
        raise SepmeError(f"{draws} draws say nothing: give at least 1.")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(draws, d_in, q_b, generator=generator, dtype=torch.float64)
    # One of the two may stand still: let it be spanned by the first q_a coordinates.
    first = torch.linalg.qr(rows).Q[:, :q_a]
    return torch.linalg.matrix_norm(first, 2).clamp(max=1).sort().values


def _check_dimensions(q_a: int, q_b: int, d_in: int) -> None:
    if not (1 <= q_a <= d_in and 1 <= q_b <= d_in):
        raise SepmeError(
            f"Subspaces of {q_a} and {q_b} dimensions do not fit into {d_in}: give 1 to {d_in}."
        )


def largest_cosines(spaces: Mapping[str, Tensor]) -> Tensor:
    """The largest principal cosine of every two of these row spaces, `[n, n]`, 1 on the diagonal.

    Raises:
        SepmeError: fewer than two spaces, or what `principal_cosines` refuses.
    """
    at_least_two(spaces)
    return pairwise(largest_cosine, spaces.values(), spaces.values())


def prompt_energy(rows: Mapping[str, Tensor], spaces: Mapping[str, Tensor]) -> Tensor:
    """How much of each prompt's rows lies in each row space: `||E Q^T||_F^2 / ||E||_F^2`, 0 to 1.

    Directed: what of E lies in Q says nothing of the way back. Where it is 0, a delta that reads
    Q leaves the prompt alone for every image and every timestep (paper eq. 6).

    Args:
        rows: name -> embedding rows E `[m, d_in]` of one or more prompts.
        spaces: name -> rows `[q, d_in]` that span what a delta reads (`row_space`).

    Returns:
        `[rows, spaces]`.

    Raises:
        SepmeError: nothing given, different widths, or rows that are all zero.
    """
    _check_widths(rows, spaces)
    bases = [row_basis(space) for space in spaces.values()]
    return pairwise(_energy, [given.double().cpu() for given in rows.values()], bases)


def _check_widths(rows: Mapping[str, Tensor], spaces: Mapping[str, Tensor]) -> None:
    if not rows or not spaces:
        raise SepmeError("There is nothing to compare: give at least one prompt and one delta.")
    widths = {given.shape[-1] for given in (*rows.values(), *spaces.values())}
    if len(widths) > 1:
        raise SepmeError(
            f"Rows of widths {', '.join(map(str, sorted(widths)))} do not live in one space: "
            "give embeddings and deltas of one model."
        )


def _energy(rows: Tensor, basis: Tensor) -> float:
    size = rows.square().sum()
    if not size > 0:
        raise SepmeError("The rows of a prompt are all zero, so no part of them lies anywhere.")
    return float(((rows @ basis.T).square().sum() / size).clamp(max=1))


# ------------------------------------------------------------------ whole deltas
def text_change(deltas: Mapping[str, ConceptDelta], rows: Mapping[str, Tensor]) -> Tensor:
    """How much each delta changes each prompt's keys and values: `||E Delta^T||_F`, all layers.

    It weighs the energy of E in the row space by what the delta makes of it, and is exactly 0
    where nothing changes (paper eq. 6).

    Args:
        deltas: name -> delta.
        rows: name -> embedding rows E `[m, d_in]` of one or more prompts.

    Returns:
        `[deltas, rows]`, float64, in units of keys and values.

    Raises:
        SepmeError: nothing given, or different widths.
    """
    _check_widths(rows, {name: next(iter(d.down.values())) for name, d in deltas.items()})
    given = [some.double().cpu() for some in rows.values()]
    return pairwise(_text_change, deltas.values(), given)


def _text_change(delta: ConceptDelta, rows: Tensor) -> float:
    squares = [
        (rows @ delta.down[path].double().T @ delta.up[path].double().T).square().sum()
        for path in delta.paths
    ]
    return float(torch.stack(squares).sum().sqrt())


def gram(deltas: Sequence[ConceptDelta]) -> Tensor:
    """`<Delta_i, Delta_j>_F / (||Delta_i||_F ||Delta_j||_F)` over all layers, `[n, n]`, float64.

    From the factors alone: `<B_i Q_i, B_j Q_j>_F = <B_i^T B_j, Q_i Q_j^T>_F`. A layer that only
    one of two deltas changes adds nothing.

    Raises:
        SepmeError: fewer than two deltas, deltas of different models, or one that is zero.
    """
    deltas = list(deltas)
    at_least_two(deltas)
    _one_model(deltas)
    products = pairwise(_inner_product, deltas, deltas)
    sizes = products.diagonal().sqrt()
    for delta, size in zip(deltas, sizes, strict=True):
        if size == 0:
            raise SepmeError(f"The delta of {delta.concept!r} is zero, so it has no direction.")
    return products / torch.outer(sizes, sizes)


def _inner_product(a: ConceptDelta, b: ConceptDelta) -> float:
    total = 0.0
    for path in set(a.paths) & set(b.paths):
        up = a.up[path].double().T @ b.up[path].double()
        total += float((up * (a.down[path].double() @ b.down[path].double().T)).sum())
    return total


def _one_model(deltas: Sequence[ConceptDelta]) -> None:
    if other := [delta for delta in deltas if delta.base != deltas[0].base]:
        raise SepmeError(
            f"The deltas of {deltas[0].concept!r} and {other[0].concept!r} were made for different "
            f"models ({deltas[0].base[:12]} and {other[0].base[:12]}): make both for one."
        )
