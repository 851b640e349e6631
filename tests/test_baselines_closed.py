"""UCE and the SPEED-style edit as theorems: each is the argmin of its quadratic."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sepme.baselines import BASELINES
from sepme.baselines._closed import rows
from sepme.baselines.prompts import OWN
from sepme.baselines.speed import SPEEDSettings, speed_shift
from sepme.baselines.uce import UCESettings, uce_shift
from sepme.composition import applied
from sepme.concept import Concept
from sepme.nullspace import null_space
from tests.miniature import KEPT, NEON, changed, noise_prediction, shared
from tests.refusals import refused
from tests.tiny import WORDS
from tests.tolerance import assert_close

NEON_BOAT = Concept("neon", ("neon", "neon style boat"), "style", ("a photo", "a photo of boat"))
#: Everything that the formulas take, as sizes and a seed.
SIZES = {
    "d": st.integers(2, 8),
    "m": st.integers(1, 6),
    "k": st.integers(0, 6),
    "out": st.integers(1, 4),
    "seed": st.integers(0, 2**16),
}


def draw(seed: int, *shapes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


# ---------------------------------------------------------------------- UCE
def uce_objective(W: Tensor, W0: Tensor, c: Tensor, a: Tensor, p: Tensor, s: UCESettings) -> Tensor:
    """The quadratic of UCE, written out row by row."""
    total = s.lam * (W - W0).square().sum()
    for c_i, a_i in zip(c, a, strict=True):
        total = total + s.erase_scale * (W @ c_i - W0 @ a_i).square().sum()
    for p_j in p:
        total = total + s.preserve_scale * (W @ p_j - W0 @ p_j).square().sum()
    return total


@given(**SIZES, lam=st.floats(0.1, 2), e=st.floats(0.1, 2), keep=st.floats(0, 2))
def test_uce_is_the_published_formula_and_the_argmin(
    d: int, m: int, k: int, out: int, seed: int, lam: float, e: float, keep: float
) -> None:
    c, a, p, W0, direction = draw(seed, (m, d), (m, d), (k, d), (out, d), (out, d))
    settings = UCESettings(lam=lam, erase_scale=e, preserve_scale=keep)
    W = (W0 + W0 @ uce_shift(c, a, p, settings)).requires_grad_()
    size = float(W0.norm() * (1 + c.norm() + a.norm() + p.norm()) ** 2 * (1 + lam + e + keep))
    numerator = lam * W0 + e * (W0 @ a.T) @ c + keep * (W0 @ p.T) @ p
    gram = lam * torch.eye(d, dtype=W.dtype) + e * c.T @ c + keep * p.T @ p
    assert_close(W, numerator @ torch.linalg.inv(gram), scale=1e3 * size)
    (gradient,) = torch.autograd.grad(uce_objective(W, W0, c, a, p, settings), W)
    assert_close(gradient, torch.zeros_like(gradient), scale=10 * size)
    best = uce_objective(W.detach(), W0, c, a, p, settings)
    for step in (1e-2, -1e-2):  # it is convex: every other matrix is worse
        assert uce_objective(W.detach() + step * direction, W0, c, a, p, settings) > best


def test_the_gradient_tells_another_matrix_apart() -> None:
    """Negative control: with the anchors mixed up the gradient is far from zero."""
    c, a, p, W0 = draw(0, (3, 5), (3, 5), (2, 5), (4, 5))
    settings = UCESettings()
    W = (W0 + W0 @ uce_shift(c, a.flip(0), p, settings)).requires_grad_()
    (gradient,) = torch.autograd.grad(uce_objective(W, W0, c, a, p, settings), W)
    assert gradient.abs().max() > 0.1


def test_uce_by_hand() -> None:
    """d = 1: W = (lambda W0 + W0 a c) / (lambda + c c) = (0.5 + 6) / (0.5 + 4) for W0 = 1."""
    c, a, p = torch.tensor([[2.0]]), torch.tensor([[3.0]]), torch.zeros(0, 1)
    assert_close(1 + uce_shift(c, a, p, UCESettings()), torch.tensor([[6.5 / 4.5]]))
    assert not uce_shift(c, c, p, UCESettings()).any()  # an anchor that is the concept itself


def test_uce_edits_keys_and_values_and_forgets() -> None:
    backbone = shared()
    settings = UCESettings(prompt=OWN, rows="all", lam=1e-3)
    change = BASELINES["uce"].erase(backbone, NEON_BOAT, settings, keep=KEPT)
    assert {p.removesuffix(".weight") for p in change.paths} == set(backbone.projections())
    assert (change.provenance.forgotten, change.provenance.kept) == (NEON_BOAT.prompts, KEPT)
    goal, before = noise_prediction(backbone, "a photo"), noise_prediction(backbone, "neon")
    kept = noise_prediction(backbone, "boat")
    with applied(backbone, change):
        assert changed(goal, noise_prediction(backbone, "neon")) < 0.1 * changed(goal, before)
        assert changed(kept, noise_prediction(backbone, "boat")) < 0.1 * changed(goal, before)


def test_more_to_preserve_is_preserved_better() -> None:
    c, a, p = draw(0, (3, 8), (3, 8), (2, 8))
    moved = [
        float((uce_shift(c, a, p, UCESettings(preserve_scale=s)) @ p.T).norm()) for s in (0, 1, 99)
    ]
    assert moved[0] > moved[1] > 10 * moved[2]


# ---------------------------------------------------------------------- SPEED
@given(**SIZES, ridge=st.floats(0.1, 2))
def test_speed_is_the_published_formula_the_argmin_and_moves_nothing_that_is_kept(
    d: int, m: int, k: int, out: int, seed: int, ridge: float
) -> None:
    c, a, W = draw(seed, (m, d), (m, d), (out, d))
    kept = draw(seed + 1, (max(1, min(k, d - 1)), d))[0]
    space = null_space(kept)
    P, identity = space.projector, torch.eye(d, dtype=torch.float64)
    delta = W @ speed_shift(c, a, space.basis, ridge)
    # Delta P = W (C* C1^T - C1 C1^T) P (C1 C1^T P + rho I)^-1, columns for rows.
    published = W @ (a.T @ c - c.T @ c) @ P @ torch.linalg.inv(c.T @ c @ P + ridge * identity)
    size = float(W.norm() * (1 + c.norm() + a.norm()) ** 3)
    assert_close(delta, published, scale=1e3 * size)
    # The argmin over Delta of |(W + Delta P) C1 - W C*|^2 + rho |Delta P|^2: no gradient is left.
    free = delta.clone().requires_grad_()
    objective = ((W + free @ P) @ c.T - W @ a.T).square().sum()
    objective = objective + ridge * (free @ P).square().sum()
    (gradient,) = torch.autograd.grad(objective, free)
    assert_close(gradient, torch.zeros_like(gradient), scale=1e3 * size)
    moved = kept @ delta.T
    assert_close(moved, torch.zeros_like(moved), scale=float(kept.norm()) * size)


def test_speed_without_the_null_space_would_move_it() -> None:
    """Negative control: with every direction free, what is kept moves."""
    c, a, W, kept = draw(0, (3, 6), (3, 6), (2, 6), (2, 6))
    delta = W @ speed_shift(c, a, torch.eye(6, dtype=torch.float64), 1.0)
    assert (kept @ delta.T).norm() > 0.1


def test_speed_edits_values_only_and_keeps_what_the_network_says() -> None:
    backbone = shared()
    settings = SPEEDSettings(prompt=OWN, rows="all", ridge=1e-6)
    change = BASELINES["speed"].erase(backbone, NEON_BOAT, settings, keep=KEPT)
    values = {path for path in backbone.projections() if path.endswith("to_v")}
    assert {p.removesuffix(".weight") for p in change.paths} == values
    assert change.provenance.kept == ("", *KEPT)
    before = {prompt: noise_prediction(backbone, prompt) for prompt in ("", *KEPT, "neon")}
    with applied(backbone, change):
        for prompt in ("", *KEPT):
            assert changed(before[prompt], noise_prediction(backbone, prompt)) < 1e-4
        assert changed(before["neon"], noise_prediction(backbone, "neon")) > 1e-2
    kept = rows(backbone, change.provenance.kept, "all")
    for path in change.paths:  # e(c_j) Delta = 0 up to the rounding of float32
        moved = kept @ change.changes[path].double().T
        assert_close(moved.float(), torch.zeros(moved.shape), scale=float(kept.norm()))


# ---------------------------------------------------------------------- both
def test_rows_are_the_last_words_or_all() -> None:
    backbone = shared()
    prompts = ("neon", "a neon boat", "")
    embeddings = backbone.encode(prompts).double()
    expected = torch.stack([embeddings[0, 1], embeddings[1, 3], embeddings[2, 0]])
    assert torch.equal(rows(backbone, prompts, "last_subject"), expected)
    assert torch.equal(rows(backbone, prompts, "all"), embeddings.flatten(0, 1))
    assert rows(backbone, (), "all").shape == (0, backbone.d_in)


@pytest.mark.parametrize("name", ["uce", "speed"])
def test_a_closed_form_has_no_chance_in_it_and_keeps_nothing_that_it_forgets(name: str) -> None:
    method, backbone = BASELINES[name], shared()
    first, again, other = (method.erase(backbone, NEON, keep=KEPT, seed=s) for s in (0, 0, 1))
    assert first.digest == again.digest
    assert all(torch.equal(first.changes[p], other.changes[p]) for p in first.paths)
    with refused("neon", "to be kept"):
        method.erase(backbone, NEON, keep=["boat", "Neon"])


def test_speed_says_when_no_room_is_left() -> None:
    crowd = [" ".join((WORDS[i:] + WORDS[:i])[:8]) for i in range(len(WORDS))]
    with refused("lie inside what is kept"):
        BASELINES["speed"].erase(shared(), NEON, keep=crowd)
