"""Where a delta may act: nowhere that a kept prompt would feel it."""

import warnings
from dataclasses import replace

import pytest
import torch

from sepme.atelier.captions import catalogue
from sepme.concept import Concept
from sepme.erasure import PRESETS
from sepme.errors import SepmeError, SepmeWarning
from sepme.model import Backbone
from sepme.nullspace import NEAR, Constraint, constrain
from tests.miniature import INK, KEPT, NEON, others, shared
from tests.refusals import refused
from tests.tiny import TOKENS, WIDTH
from tests.tolerance import assert_close

#: What a delta of neon keeps.
OTHERS = others(NEON)


def room(concept: Concept = NEON, keep=OTHERS, **choices) -> Constraint:
    choices = {"keep_rtol": None, "concept_rtol": 0.1} | choices
    return constrain(shared(), concept, keep, **choices)


@pytest.mark.parametrize("method", ["svd", "elimination"])
def test_no_kept_token_is_seen_and_the_concept_is(method: str) -> None:
    found = room(method=method)
    Q, A = found.basis, found.kept_rows
    assert_close(Q @ Q.T, torch.eye(found.rank, dtype=Q.dtype))
    assert A.shape == (len(found.kept) * TOKENS, WIDTH)
    assert_close((A @ Q.T).float(), torch.zeros(len(A), found.rank), scale=float(A.norm()))
    assert found.leakage < 1e-5
    assert found.reach > 0.05
    assert found.concept_rows.shape == (TOKENS, WIDTH)


def test_both_bases_leave_the_same_directions() -> None:
    one, other = room().basis, room(method="elimination").basis
    assert_close((one.T @ one).float(), (other.T @ other).float())


def test_leakage_and_reach_are_lengths_of_projections() -> None:
    found = room(keep_rtol=3e-3)
    seen = [float((found.basis @ a).norm() / a.norm()) for a in found.kept_rows]
    reached = [float((found.basis @ e).norm() / e.norm()) for e in found.concept_rows]
    assert found.leakage == pytest.approx(max(seen))
    assert found.reach == pytest.approx((sum(r * r for r in reached) / len(reached)) ** 0.5)
    shortest = float(found.kept_rows.norm(dim=1).min())
    assert found.leakage * shortest <= found.leakage_bound <= found.space.leakage_bound * (1 + 1e-6)


def test_the_damped_form_reaches_as_far_and_touches_less() -> None:
    """It tends to the cut one; where it reaches as much of the concept, it leaks less."""
    one, other = (room(method=method).basis for method in ("svd", "damped"))
    assert_close((one.T @ one).float(), (other.T @ other).float(), scale=30.0)
    cut, damped = room(keep_rtol=3e-3), room(keep_rtol=1.5e-3, method="damped")
    assert damped.rank == cut.rank
    assert damped.reach == pytest.approx(cut.reach, rel=0.05)
    assert damped.leakage_bound < 0.7 * cut.leakage_bound


def test_the_empty_prompt_is_always_kept_and_every_prompt_once() -> None:
    assert room(keep=()).kept == ("",)
    assert room(keep=("boat", "", "boat", "a cat")).kept == ("", "boat", "a cat")
    assert room(keep="boat").kept == ("", "boat")


def test_what_is_kept_takes_room() -> None:
    ranks = [room(keep=OTHERS[:n]).space.rank for n in range(4)]
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1] < WIDTH
    assert room(keep=()).reach > room().reach  # the more is kept, the less is in reach


def test_more_tolerance_leaves_more_room_and_weak_directions_can_be_had() -> None:
    assert room(keep_rtol=3e-2).space.free > room(keep_rtol=None).space.free
    assert room(concept_rtol=0.5).rank <= room(concept_rtol=0.1).rank < room(concept_rtol=0.0).rank
    strong, weak = room(concept_rtol=0.1).basis, room(concept_rtol=0.0).basis
    assert_close(strong, weak[: len(strong)])  # strongest first


def test_a_prompt_that_says_more_than_a_kept_one_still_has_room() -> None:
    """The tokens after "boat" are new, although those before are kept."""
    assert room(Concept("ship", ("a boat ship",)), keep=("a boat",)).reach > 0.05


# ---------------------------------------------------------------- what cannot be told apart
def by_hand(kept: list, own: list, basis: list) -> Constraint:
    """A room of given rows `[prompts][tokens][2]` and directions, called after their place."""
    tensor = {name: torch.tensor(rows).double() for name, rows in (("kept", kept), ("own", own))}
    return replace(
        room(),
        kept=tuple("abc"[: len(kept)]),
        kept_rows=tensor["kept"].flatten(0, 1),
        concept_rows=tensor["own"].flatten(0, 1),
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
    always_kept = replace(only, kept=("",)).remark()
    assert "told from the empty prompt at" in always_kept
    assert "leave" not in always_kept


def test_words_that_mean_different_things_are_told_apart() -> None:
    found = room()
    assert float(found.exposure.max()) < NEAR
    assert found.entangled == ()
    assert found.remark() is None


def test_a_delta_that_will_change_what_is_kept_is_warned_of() -> None:
    """With this tolerance next to nothing counts as kept."""
    with pytest.warns(SepmeWarning, match="'neon' can hardly be told from .* keep_rtol = 0.5"):
        found = room(keep_rtol=0.5)
    assert found.entangled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        room(keep_rtol=0.5, quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [c.name for c in catalogue().concepts.values()])
def test_the_shipped_models_concepts_can_be_told_apart_and_their_aliases_cannot(
    name: str, backbone: Backbone
) -> None:
    """The margin that `NEAR` stands in: less than 0.25 to more than 0.8."""
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
            assert found.entangled[0] in kept
            assert repr(found.entangled[0]) in found.remark()


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize("kept", ["neon", " NEON ", "Neon"])
def test_a_prompt_both_forgotten_and_kept_is_refused(kept: str) -> None:
    with refused("'neon'", "also to be kept"):
        room(keep=(*KEPT, kept))


def test_an_exhausted_space_names_the_prompts_that_fill_it() -> None:
    words = ("boat", "car", "cat", "fish", "house", "tree", "ink", "oil", "swirl")
    many = [f"{a} {b}" for a in words for b in words if a != b]
    with refused("'neon'", f"of {WIDTH} dimensions", "the largest shares by", "keep fewer"):
        room(keep=many)
    with pytest.raises(SepmeError) as caught:
        room(keep=many)
    assert sum(f"'{prompt}' " in str(caught.value) for prompt in ["", *many]) == 5


def test_a_concept_that_lies_within_what_is_kept_is_refused() -> None:
    """Longer than the model reads, the two prompts are the same to it."""
    words = "a painting of a boat in the style of"
    with refused("Nothing of 'neon' is free", "keep fewer prompts"):
        room(Concept("neon", (f"{words} neon",)), keep=(f"{words} ink",))


def test_another_method_is_refused() -> None:
    with refused("'magic'", "svd"):
        room(INK, keep=KEPT, method="magic")
