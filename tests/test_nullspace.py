"""Null spaces by hand, where a delta may act, and what is refused."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sepme.atelier.captions import catalogue
from sepme.concept import Concept
from sepme.erasure import PRESETS
from sepme.errors import SepmeWarning
from sepme.model import Backbone
from sepme.nullspace import (
    NEAR,
    Constraint,
    Embedded,
    constrain,
    null_space,
    pivot_rows,
    reduced_row_echelon,
    row_basis,
)
from tests.miniature import INK, KEPT, NAMES, NEON, OIL, fresh, others, shared
from tests.refusals import refused
from tests.tiny import TOKENS, WIDTH
from tests.tolerance import assert_close

#: By hand: row 2 is twice row 1 plus one third of row 3, so the rank is 2.
A = torch.tensor([[1.0, 2.0, 0.0, 3.0], [2.0, 4.0, 1.0, 8.0], [0.0, 0.0, 3.0, 6.0]])
#: What a delta of neon keeps.
OTHERS = others(NEON)
METHODS = ("svd", "elimination")


# ---------------------------------------------------------------- null spaces by hand
def test_elimination_by_hand() -> None:
    R, pivots = reduced_row_echelon(A.double(), threshold=1e-12)
    assert pivots == [0, 2]
    assert_close(R, torch.tensor([[1.0, 2.0, 0.0, 3.0], [0.0, 0.0, 1.0, 2.0]]).double())


@pytest.mark.parametrize("first", [0.0, 1e-17])  # dividing by 1e-17 would lose the second row
def test_elimination_swaps_rows_where_the_pivot_is_zero_or_tiny(first: float) -> None:
    rows = torch.tensor([[first, 1.0, 3.0], [1.0, 1.0, 5.0]], dtype=torch.float64)
    R, pivots = reduced_row_echelon(rows)
    assert pivots == [0, 1]
    assert_close(R, torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 3.0]]).double())


def test_the_basis_of_elimination_has_unit_length_but_is_not_orthogonal() -> None:
    """x2 = 1, x4 = 0 gives (-2, 1, 0, 0); x2 = 0, x4 = 1 gives (-3, 0, -2, 1); unit lengths."""
    space = null_space(A, method="elimination")
    first = torch.tensor([-2.0, 1.0, 0.0, 0.0]).double() / math.sqrt(5)
    second = torch.tensor([-3.0, 0.0, -2.0, 1.0]).double() / math.sqrt(14)
    assert (space.rank, space.free, space.d_in) == (2, 2, 4)
    assert_close(space.basis, torch.stack([first, second], dim=1))
    assert float(space.basis[:, 0] @ space.basis[:, 1]) == pytest.approx(6 / math.sqrt(70))


def test_svd_space_by_hand() -> None:
    space = null_space(A)
    assert (space.rank, space.free, len(space.spectrum)) == (2, 2, 3)
    assert_close(A.double() @ space.projector, torch.zeros(3, 4).double(), scale=10.0)
    hand = torch.tensor([[-2.0, 1.0, 0.0, 0.0], [-3.0, 0.0, -2.0, 1.0]]).double()
    assert_close(space.project(hand), hand)


def test_the_tolerance_decides_the_rank_and_the_leakage() -> None:
    A = torch.diag(torch.tensor([1.0, 1e-2, 1e-4])).double().repeat(1, 2)
    tight, loose = null_space(A, 1e-6), null_space(A, 1e-3)
    assert (tight.rank, loose.rank) == (3, 2)
    assert loose.threshold == pytest.approx(1e-3 * math.sqrt(2 * (1 + 1e-4 + 1e-8) / 3))
    assert loose.leakage_bound == pytest.approx(1e-4 * math.sqrt(2))
    assert tight.leakage_bound < 1e-14


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_tolerance_is_at_least_a_rounding_of_the_storage_dtype(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    rows = torch.eye(3, 8, dtype=dtype)
    noise = eps * (1 + math.sqrt(3 / 8))
    assert null_space(rows).rtol == pytest.approx(4 * noise)
    assert null_space(rows, rtol=0.0).rtol == pytest.approx(noise)
    assert null_space(rows).basis.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [40, 4000])
def test_what_rounding_makes_of_dependent_rows_does_not_count_as_kept(
    dtype: torch.dtype, rows: int
) -> None:
    """However many the rows. (eps times the largest singular value would grow with them.)"""
    generator = torch.Generator().manual_seed(0)
    few, mixed = (torch.randn(size, generator=generator) for size in ((5, 64), (rows, 5)))
    A = mixed @ few
    found = null_space(A.to(dtype), None)
    assert found.rank == 5
    assert found.rtol < 40 * torch.finfo(dtype).eps


def test_the_tolerance_is_a_share_of_a_rows_length() -> None:
    """No row of usual length has more of it in a free direction, for one prompt as for many."""
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(6, 20, generator=generator).double() * torch.logspace(0, -3, 20).double()
    for copies, size in ((1, 1.0), (1, 1e3), (100, 1.0)):
        rows = size * A.repeat(copies, 1)
        found = null_space(rows, 0.05)
        usual = float(rows.norm(dim=1).square().mean().sqrt())
        assert found.threshold == pytest.approx(0.05 * usual)
        assert float((rows @ found.basis).abs().max()) <= 0.05 * usual
    seen = torch.tensor([[1, 0, 0], [0, 0.04, 0]]).double()  # 0.04 is 0.057 of the usual length ...
    assert [null_space(seen, rtol).rank for rtol in (0.05, 0.06)] == [2, 1]
    assert null_space(seen.repeat(2, 1), 0.06).rank == 2  # ... and counts more in two rows


def test_row_basis_by_hand_and_its_signs() -> None:
    rows = torch.tensor([[3.0, 0.0, 0.0], [-6.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    assert_close(row_basis(rows), torch.eye(3)[:2].double())
    assert_close(row_basis(rows, rtol=0.5), torch.eye(3)[:1].double())


def test_pivot_rows_take_the_farthest_first() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0], [5.0, 0.0, 0.0], [4.0, 3.0, 0.0], [9.0, 9.0, 0.0]])
    assert pivot_rows(rows) == [3, 1]


@pytest.mark.parametrize("method", METHODS)
def test_directions_are_the_row_basis_of_the_projected_rows(method: str) -> None:
    keep, rows = torch.randn(4, 12).double(), torch.randn(2, 12).double()
    space = null_space(keep, method=method)
    Q, R = space.directions(rows), row_basis(space.project(rows))
    assert_close(Q.T @ Q, R.T @ R)
    with refused("inside what is kept"):
        space.directions(keep[:2] * 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(5))
def test_in_half_precision_a_weak_concept_is_told_from_rounding(
    dtype: torch.dtype, seed: int
) -> None:
    """One direction, eight times the rounding of a token, is free; what is kept is not."""
    rng = torch.Generator().manual_seed(seed)
    kept = torch.randn(60, 12, generator=rng) @ torch.randn(12, 64, generator=rng)
    new = torch.nn.functional.normalize(torch.randn(64, generator=rng), dim=0)
    weak = 8 * torch.finfo(dtype).eps * kept.norm(dim=1, keepdim=True)
    space = null_space(kept.to(dtype))
    (Q,) = space.directions((kept[:30] + weak[:30] * new).to(dtype), rtol=0.5)
    free = space.project(new[None])[0].float()
    assert abs(float(Q.float() @ free / free.norm())) > 0.95
    with refused("inside what is kept"):
        space.directions((1.1 * kept[:30]).to(dtype))


def with_nan() -> torch.Tensor:
    rows = torch.ones(4, 8)
    rows[3, 5] = math.nan
    return rows


FULL = torch.cat([torch.eye(4), 1e-3 * torch.eye(4)[:2]])  # the last prompt adds nothing
PROMPTS = ["a boat", "a cat", "a dog"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: null_space(FULL, labels=PROMPTS),
            ("all 4 dimensions", "'a boat' 2", "'a cat' 2", "raise rtol"),
        ),
        (
            lambda: null_space(FULL, method="elimination"),
            ("all 4 dimensions", "keep fewer prompts"),
        ),
        (
            lambda: null_space(with_nan(), labels=PROMPTS[:2]),
            ("Row 3", "'a cat'", "text encoder"),
        ),
        (lambda: row_basis(with_nan()), ("Row 3",)),
        (lambda: null_space(torch.zeros(0, 8)), ("rows [m, d_in]",)),
        (lambda: null_space(torch.zeros(2, 3, 8)), ("rows [m, d_in]",)),
        (lambda: null_space(torch.zeros(2, 8, dtype=torch.long)), ("rows [m, d_in]",)),
        (lambda: null_space(torch.ones(4, 8), labels=PROMPTS), ("3 labels", "4 rows")),
        (lambda: null_space(torch.eye(2, 4), rtol=-1.0), ("rtol",)),
        (lambda: null_space(torch.eye(2, 4), rtol=1.0), ("rtol",)),
        (lambda: null_space(torch.eye(2, 4), rtol=math.nan), ("rtol",)),
        (lambda: null_space(torch.eye(2, 4), method="gauss"), ("'gauss'", "elimination")),
    ],
)
def test_rows_and_tolerances_that_make_no_sense_are_refused(
    make: Callable, words: tuple[str, ...]
) -> None:
    with refused(*words):
        make()


# ---------------------------------------------------------------- where a delta may act
def constrained(concept: Concept = NEON, keep=OTHERS, **choices) -> Constraint:
    return constrain(shared(), concept, keep, **{"keep_rtol": None, "concept_rtol": 0.1} | choices)


@pytest.mark.parametrize("method", METHODS)
def test_no_kept_token_is_seen_and_the_concept_is(method: str) -> None:
    found, svd = constrained(method=method), constrained()
    Q, A = found.basis, found.kept_rows
    assert_close(Q @ Q.T, torch.eye(found.rank, dtype=Q.dtype))
    assert_close((Q.T @ Q).float(), (svd.basis.T @ svd.basis).float())  # the same directions
    assert A.shape == (len(found.kept) * TOKENS, WIDTH)
    assert_close((A @ Q.T).float(), torch.zeros(len(A), found.rank), scale=float(A.norm()))
    assert found.leakage < 1e-5
    assert found.reach > 0.05
    assert found.concept_rows.shape == (TOKENS, WIDTH)


def test_leakage_and_reach_are_lengths_of_projections() -> None:
    found = constrained(keep_rtol=3e-2)
    seen = [float((found.basis @ a).norm() / a.norm()) for a in found.kept_rows]
    reached = [float((found.basis @ e).norm() / e.norm()) for e in found.concept_rows]
    assert found.leakage == pytest.approx(max(seen))
    assert found.reach == pytest.approx((sum(r * r for r in reached) / len(reached)) ** 0.5)
    shortest = float(found.kept_rows.norm(dim=1).min())
    assert found.leakage * shortest <= found.leakage_bound <= found.space.leakage_bound * (1 + 1e-6)


def test_the_damped_form_reaches_as_far_and_touches_less() -> None:
    """It tends to the cut one; where it reaches as much of the concept, it leaks less."""
    one, other = (constrained(method=method).basis for method in ("svd", "damped"))
    assert_close((one.T @ one).float(), (other.T @ other).float(), scale=30.0)
    cut, damped = constrained(keep_rtol=3e-2), constrained(keep_rtol=1.5e-2, method="damped")
    assert damped.rank == cut.rank
    assert damped.reach == pytest.approx(cut.reach, rel=0.05)
    assert damped.leakage_bound < 0.7 * cut.leakage_bound


def test_the_empty_prompt_is_always_kept_and_every_prompt_once() -> None:
    assert constrained(keep=()).kept == ("",)
    assert constrained(keep=("boat", "", "boat", "a cat")).kept == ("", "boat", "a cat")
    assert constrained(keep="boat").kept == ("", "boat")


def test_the_more_is_kept_the_fewer_directions_are_free() -> None:
    ranks = [constrained(keep=OTHERS[:n]).space.rank for n in range(4)]
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1] < WIDTH
    assert constrained(keep=()).reach > constrained().reach
    assert constrained(keep_rtol=0.3).space.free > constrained().space.free


def test_the_concepts_tolerance_decides_how_many_directions_there_are() -> None:
    few, some, all_of_them = (constrained(concept_rtol=rtol) for rtol in (0.5, 0.1, 0.0))
    assert few.rank <= some.rank < all_of_them.rank
    assert_close(some.basis, all_of_them.basis[: some.rank])  # strongest first


def test_a_prompt_that_says_more_than_a_kept_one_can_be_reached() -> None:
    """The tokens after "boat" are new, although those before are kept."""
    assert constrained(Concept("ship", ("a boat ship",)), keep=("a boat",)).reach > 0.05


def test_a_group_shares_its_embeddings_and_each_concept_has_its_own_directions() -> None:
    """`A^T A = G - E^T E`: the damped directions of each are those found for it alone."""
    concepts = [NEON, INK, OIL]
    everything = ("", *KEPT, *NAMES)
    embedded = Embedded.of(shared(), everything)
    for concept in concepts:
        keep = [prompt for prompt in everything[1:] if prompt not in concept.prompts]
        options = {"keep_rtol": 0.05, "concept_rtol": 0.1, "method": "damped"}
        alone = constrain(shared(), concept, keep, **options)
        grouped = constrain(shared(), concept, keep, **options, embedded=embedded)
        assert torch.allclose(grouped.basis, alone.basis, atol=1e-7)
        # The control: with its own prompts among what is kept it finds others.
        wrong = embedded.damped(everything, grouped.concept_rows, 0.05)
        assert not torch.allclose(row_basis(wrong, 0.1)[:1], alone.basis[:1], atol=1e-3)


# ---------------------------------------------------------------- what cannot be told apart
def by_hand(kept: list, own: list, basis: list) -> Constraint:
    """A constraint of given rows `[prompts][tokens][2]` and directions.

    It keeps a, b and c, and forgets the others.
    """
    tokens = [torch.tensor(prompt).double() for prompt in (*kept, *own)]
    prompts = ("a", "b", "c", "neon", "glowing")
    prompts = (*prompts[: len(kept)], *prompts[3 : 3 + len(own)])
    return replace(
        constrained(),
        concept=Concept("neon", prompts[len(kept) :]),
        kept=prompts[: len(kept)],
        embedded=Embedded(dict(zip(prompts, tokens, strict=True))),
        basis=torch.tensor(basis).double(),
    )


def test_exposure_is_a_share_of_what_the_delta_sees_of_its_own() -> None:
    found = by_hand(
        kept=[[[1, 0], [0, 2]], [[1, 0], [4, 3]], [[1, 0], [3, 4]]],  # sees 0, 0.6 and 0.8 ...
        own=[[[1, 0], [0, 5]], [[1, 0], [3, 4]]],  # ... of 1 and 0.8
        basis=[[0.0, 1.0]],
    )
    assert_close(found.exposure, torch.tensor([1.25, 0.75, 1.0]).double())
    found = replace(found, basis=torch.tensor([[1.0, 0.0]]).double())
    assert_close(found.exposure, torch.tensor([1.0, 1.0, 1.0]).double())  # the first token


def test_the_nearest_of_the_entangled_prompts_come_first() -> None:
    kept = [[[1, 0], [0, 9]], [[1, 0], [4, 3]], [[1, 0], [9, 1]]]
    found = by_hand(kept, own=[[[0, 1], [3, 4]], [[0, 1], [0, 5]]], basis=[[0.0, 1.0]])
    assert_close(found.exposure, torch.tensor([1.0, 0.6, 1 / 82**0.5], dtype=torch.float64))
    assert found.entangled == ("b", "a")  # c is out of sight; b is nearer to [3, 4]
    assert "told from kept prompts such as 'b' and 'a'" in found.remark()
    only = by_hand(kept[:1], own=[[[0, 1], [3, 4]]], basis=[[0.0, 1.0]])
    assert "told from the kept prompt 'a' at keep_rtol" in only.remark()
    assert "leave it out" in only.remark()
    tokens = {"": only.embedded.tokens["a"], **only.embedded.tokens}
    always_kept = replace(only, kept=("",), embedded=Embedded(tokens)).remark()
    assert "told from the empty prompt at" in always_kept
    assert "leave" not in always_kept


def test_a_delta_that_will_change_what_is_kept_is_warned_of_and_no_other() -> None:
    found = constrained()
    assert float(found.exposure.max()) < NEAR
    assert (found.entangled, found.remark()) == ((), None)
    with pytest.warns(SepmeWarning, match="'neon' can hardly be told from .* keep_rtol = 0.99"):
        found = constrained(keep_rtol=0.99)  # next to nothing counts as kept
    assert found.entangled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constrained(keep_rtol=0.99, quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [c.name for c in catalogue().concepts.values()])
def test_the_shipped_models_concepts_can_be_told_apart_and_their_aliases_cannot(
    name: str, backbone: Backbone
) -> None:
    """The margin that `NEAR` stands in: less than 0.25 to more than 0.45."""
    known, default = catalogue(), PRESETS["default"]
    concept = known[name]
    options = {"keep_rtol": default.keep_rtol, "concept_rtol": default.concept_rtol}

    def exposed(*more: str) -> Constraint:
        keep = (*known.kept_prompts([concept]), *more)
        return constrain(backbone, concept, keep, method=default.method, quiet=True, **options)

    assert float(exposed().exposure.max()) < 0.25
    for alias in (alias for alias, of in known.aliases.items() if of == name):
        everywhere = [prompt.replace(name, alias) for prompt in concept.prompts]
        for kept in ([alias], everywhere):
            found = exposed(*kept)
            assert float(found.exposure.max()) > 0.8
            assert set(kept) <= set(found.entangled)
            assert min(float(found.exposure[found.kept.index(p)]) for p in kept) > 0.45
            assert found.entangled[0] in kept
            assert repr(found.entangled[0]) in found.remark()


# ---------------------------------------------------------------- requests that cannot be met
@pytest.mark.parametrize("kept", ["neon", " NEON "])
def test_a_prompt_both_forgotten_and_kept_is_refused(kept: str) -> None:
    with refused("'neon'", "also to be kept"):
        constrained(keep=(*KEPT, kept))


def test_an_exhausted_space_names_the_prompts_that_fill_it() -> None:
    words = ("boat", "car", "cat", "fish", "house", "tree", "ink", "oil", "swirl")
    many = [f"{a} {b}" for a in words for b in words if a != b]
    said = ("'neon'", f"of {WIDTH} dimensions", "the largest shares by", "keep fewer")
    with refused(*said) as caught:
        constrained(keep=many)
    assert sum(f"'{prompt}' " in str(caught.value) for prompt in ["", *many]) == 5


def test_a_concept_that_lies_within_what_is_kept_is_refused() -> None:
    """Two words of one embedding: whoever keeps the one cannot forget the other."""
    backbone = fresh()
    words = backbone.pipe.text_encoder.get_input_embeddings().weight
    (neon,), (ink,) = backbone.reads("neon"), backbone.reads("ink")
    with torch.no_grad():
        words[neon] = words[ink]
    with refused("Nothing of 'neon' is free", "keep fewer prompts"):
        constrain(backbone, Concept("neon", ("neon",)), ("ink",), keep_rtol=None, concept_rtol=0.1)


def test_another_method_is_refused() -> None:
    with refused("'magic'", "svd"):
        constrained(INK, keep=KEPT, method="magic")
