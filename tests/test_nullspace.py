"""Null spaces by hand, and what they refuse."""

import math

import pytest
import torch

from sepme.nullspace import null_space, pivot_rows, reduced_row_echelon, row_basis
from tests.refusals import refused
from tests.tolerance import assert_close

#: By hand: row 2 is twice row 1 plus one third of row 3, so the rank is 2.
A = torch.tensor([[1.0, 2.0, 0.0, 3.0], [2.0, 4.0, 1.0, 8.0], [0.0, 0.0, 3.0, 6.0]])


def test_elimination_by_hand() -> None:
    R, pivots = reduced_row_echelon(A.double(), threshold=1e-12)
    assert pivots == [0, 2]
    assert_close(R, torch.tensor([[1.0, 2.0, 0.0, 3.0], [0.0, 0.0, 1.0, 2.0]]).double())


def test_elimination_swaps_rows_where_the_pivot_is_zero_or_tiny() -> None:
    for first in (0.0, 1e-17):  # dividing by 1e-17 would lose the second row altogether
        rows = torch.tensor([[first, 1.0, 3.0], [1.0, 1.0, 5.0]], dtype=torch.float64)
        R, pivots = reduced_row_echelon(rows)
        assert pivots == [0, 1]
        assert_close(R, torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 3.0]]).double())


def test_elimination_basis_by_hand() -> None:
    """x2 = 1, x4 = 0 gives (-2, 1, 0, 0); x2 = 0, x4 = 1 gives (-3, 0, -2, 1); unit lengths."""
    space = null_space(A, method="elimination")
    first = torch.tensor([-2.0, 1.0, 0.0, 0.0]).double() / math.sqrt(5)
    second = torch.tensor([-3.0, 0.0, -2.0, 1.0]).double() / math.sqrt(14)
    assert (space.rank, space.free, space.d_in) == (2, 2, 4)
    assert_close(space.basis, torch.stack([first, second], dim=1))


def test_elimination_solutions_are_not_orthogonal() -> None:
    basis = null_space(A, method="elimination").basis
    assert float(basis[:, 0] @ basis[:, 1]) == pytest.approx(6 / math.sqrt(70))


def test_svd_space_by_hand() -> None:
    space = null_space(A)
    assert (space.rank, space.free, len(space.spectrum)) == (2, 2, 3)
    assert_close(A.double() @ space.projector, torch.zeros(3, 4).double(), scale=10.0)
    hand = torch.tensor([[-2.0, 1.0, 0.0, 0.0], [-3.0, 0.0, -2.0, 1.0]]).double()
    assert_close(space.project(hand), hand)


def test_the_tolerance_decides_the_rank_and_the_leakage() -> None:
    A = torch.diag(torch.tensor([1.0, 1e-2, 1e-4])).double()
    tight, loose = null_space(A[:, :3].repeat(1, 2), 1e-6), null_space(A.repeat(1, 2), 1e-3)
    assert (tight.rank, loose.rank) == (3, 2)
    assert loose.threshold == pytest.approx(1e-3 * math.sqrt(2))
    assert loose.leakage_bound == pytest.approx(1e-4 * math.sqrt(2))
    assert tight.leakage_bound < 1e-14


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_default_tolerance_follows_the_storage_dtype(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    rows = torch.eye(3, 8, dtype=dtype)
    assert null_space(rows).rtol == min(8 * eps, math.sqrt(eps))
    assert null_space(rows, rtol=0.0).rtol == eps
    assert null_space(rows).basis.dtype == torch.float64


def test_row_basis_by_hand_and_its_signs() -> None:
    rows = torch.tensor([[3.0, 0.0, 0.0], [-6.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    assert_close(row_basis(rows), torch.eye(3)[:2].double())
    assert_close(row_basis(rows, rtol=0.5), torch.eye(3)[:1].double())


def test_directions_are_the_row_basis_of_the_projected_rows() -> None:
    rows = torch.randn(2, 12, generator=torch.Generator().manual_seed(0)).double()
    keep = torch.randn(4, 12, generator=torch.Generator().manual_seed(1)).double()
    for method in ("svd", "elimination"):
        space = null_space(keep, method=method)
        Q, R = space.directions(rows), row_basis(space.project(rows))
        assert_close(Q.T @ Q, R.T @ R)


def test_pivot_rows_take_the_farthest_first() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0], [5.0, 0.0, 0.0], [4.0, 3.0, 0.0], [9.0, 9.0, 0.0]])
    assert pivot_rows(rows) == [3, 1]


def test_an_exhausted_space_names_the_prompts_that_fill_it() -> None:
    keep = torch.cat([torch.eye(4), 1e-3 * torch.eye(4)[:2]])  # the last prompt adds nothing
    with refused("all 4 dimensions", "'a boat' 2", "'a cat' 2", "raise rtol"):
        null_space(keep, labels=["a boat", "a cat", "a dog"])
    with refused("all 4 dimensions", "keep fewer prompts"):
        null_space(keep, method="elimination")


def test_rows_that_are_not_finite_are_refused_by_name() -> None:
    keep = torch.ones(4, 8)
    keep[3, 5] = math.nan
    with refused("Row 3", "'a cat'", "text encoder"):
        null_space(keep, labels=["a boat", "a cat"])
    with refused("Row 3"):
        row_basis(keep)


def test_nothing_to_keep_and_wrong_shapes_are_refused() -> None:
    for rows in (torch.zeros(0, 8), torch.zeros(2, 3, 8), torch.zeros(2, 8, dtype=torch.long)):
        with refused("rows [m, d_in]"):
            null_space(rows)
    with refused("3 labels", "4 rows"):
        null_space(torch.ones(4, 8), labels=["a", "b", "c"])


def test_a_concept_inside_what_is_kept_is_refused() -> None:
    keep = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    for method in ("svd", "elimination"):
        with refused("inside what is kept"):
            null_space(keep, method=method).directions(keep[:2] * 7)


@pytest.mark.parametrize("rtol", [-1.0, 1.0, math.nan])
def test_an_impossible_tolerance_is_refused(rtol: float) -> None:
    with refused("rtol"):
        null_space(torch.eye(2, 4), rtol=rtol)


def test_an_unknown_method_is_refused() -> None:
    with refused("'gauss'", "elimination"):
        null_space(torch.eye(2, 4), method="gauss")
