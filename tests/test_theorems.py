"""What the method rests on, stated as theorems and tried on hundreds of random cases.

Each theorem is one `assert_...` function, called on the library's objects in a property test and
then, as a negative control, on objects that violate it: a test that cannot fail shows nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sepme.artefact import Provenance
from sepme.correlation import (
    Momentum,
    balance,
    correlation_loss,
    noise_difference,
    normalised_correlation,
)
from sepme.delta import ConceptDelta
from sepme.model import to_epsilon
from sepme.nullspace import NullSpace, damped_projection, null_space, row_basis
from tests.tolerance import ROUNDINGS, assert_close

theorem = settings(max_examples=200, deadline=None, derandomize=True, database=None)

dtypes = st.sampled_from([torch.float32, torch.float64])
seeds = st.integers(0, 2**31 - 1)
methods = st.sampled_from(["svd", "elimination"])


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Stack:
    """A matrix of kept rows whose rank and conditioning are known."""

    A: Tensor
    rank: int


@st.composite
def stacks(draw: st.DrawFn) -> Stack:
    """`A [m, d] = U diag(s) V^T`, singular values from 1 down to 1/condition, then zeros."""
    d = draw(st.integers(2, 24))
    m = draw(st.integers(1, 32))
    rank = draw(st.integers(1, min(m, d - 1)))
    condition = draw(st.sampled_from([1.0, 10.0, 1e3]))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    seed = draw(seeds)
    U = torch.linalg.qr(normal(m, rank, seed=seed)).Q
    V = torch.linalg.qr(normal(d, rank, seed=seed + 1)).Q
    singular = condition ** -torch.linspace(0, 1, rank, dtype=torch.float64)
    return Stack((scale * (U * singular) @ V.T).to(draw(dtypes)), rank)


def spectral_norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.double(), 2))


# --- The basis ------------------------------------------------------------------------------------


def assert_unit_columns(S: Tensor) -> None:
    assert_close(S.norm(dim=0), torch.ones(S.shape[1]).double())


def assert_orthonormal(S: Tensor) -> None:
    assert_close(S.T @ S, torch.eye(S.shape[1], dtype=S.dtype))


def assert_annihilated(A: Tensor, S: Tensor, bound: float) -> None:
    """`||A x|| <= bound` for every unit x in the span of S."""
    gain = spectral_norm(A.double() @ torch.linalg.qr(S).Q)
    assert gain <= bound, f"||A S|| = {gain:.3e} exceeds {bound:.3e}"


def assert_same_span(S: Tensor, T: Tensor, sine: float) -> None:
    """The largest principal angle between the spans has at most this sine."""
    assert S.shape == T.shape
    S, T = torch.linalg.qr(S).Q, torch.linalg.qr(T).Q
    largest = spectral_norm(T - S @ (S.T @ T))
    assert largest <= sine, f"sine {largest:.3e} exceeds {sine:.3e}"


@theorem
@given(stacks(), methods)
def test_the_basis_is_annihilated_within_the_stated_bound(stack: Stack, method: str) -> None:
    space = null_space(stack.A, method=method)
    assert (space.rank, space.free) == (stack.rank, space.d_in - stack.rank)
    assert_unit_columns(space.basis)
    assert_orthonormal(space.orthonormal)
    assert_annihilated(stack.A, space.basis, space.leakage_bound)
    if method == "svd":
        assert space.leakage_bound <= 2 * space.threshold  # the rest is rounding


def assert_damped(A: Tensor, e: Tensor, x: Tensor, tau: float) -> None:
    """`x = argmin |x - e|^2 + |A x|^2 / tau^2`: its gradient vanishes, and `|A x| <= tau |e| / 2`.

    The bound is the arithmetic-geometric mean: `s tau^2 / (s^2 + tau^2) <= tau / 2` for every s.
    """
    A, e = A.double(), e.double()
    size = float(e.abs().max()) * max(1.0, (spectral_norm(A) / tau) ** 2)
    assert_close(x - e + x @ A.T @ A / tau**2, torch.zeros_like(e), scale=size)
    gain = (x @ A.T).norm(dim=1)
    assert bool((gain <= tau * e.norm(dim=1) / 2 * (1 + 1e-9)).all())


@theorem
@given(stacks(), seeds, st.sampled_from([1e-3, 0.1, 0.9]))
def test_the_damped_projection_weighs_reach_against_leakage(
    stack: Stack, seed: int, rtol: float
) -> None:
    e = normal(3, stack.A.shape[1], seed=seed)
    tau = rtol * float(stack.A.double().norm(dim=1).square().mean().sqrt())
    assert_damped(stack.A, e, damped_projection(stack.A, e, rtol), tau)


@theorem
@given(stacks().filter(lambda stack: stack.A.dtype == torch.float64), seeds)
def test_the_damped_projection_tends_to_the_projection(stack: Stack, seed: int) -> None:
    """With a tolerance t far below the smallest kept singular value s, they differ by (t / s)^2."""
    A, e = stack.A, normal(3, stack.A.shape[1], seed=seed)
    smallest = float(torch.linalg.svdvals(A)[stack.rank - 1] / A.norm(dim=1).square().mean().sqrt())
    rtol = 1e-3 * smallest
    cut = null_space(A).project(e)
    gap = (damped_projection(A, e, rtol) - cut).norm(dim=1)
    assert bool((gap <= 1.01e-6 * e.norm(dim=1)).all())


@pytest.mark.parametrize("wrong", ["raw", "cut"])
def test_neither_the_rows_themselves_nor_their_cut_projection_are_damped(wrong: str) -> None:
    A = torch.diag(torch.tensor([1.0, 0.1, 0.05, 0.0]).double())
    e = torch.ones(1, 4).double()
    x = e if wrong == "raw" else null_space(A, rtol=0.1).project(e)
    with pytest.raises(AssertionError):
        assert_damped(A, e, x, tau=0.1)


@theorem
@given(stacks(), methods)
def test_the_projector_is_one_and_keeps_nothing_of_the_kept_rows(stack: Stack, method: str) -> None:
    space = null_space(stack.A, method=method)
    P = space.projector
    assert_close(P, P.T)
    assert_close(P @ P, P)
    assert_close(P.trace(), float(space.free))
    assert spectral_norm(stack.A.double() @ P) <= space.leakage_bound


@theorem
@given(stacks())
def test_elimination_and_svd_span_the_same_space(stack: Stack) -> None:
    by_svd, by_elimination = null_space(stack.A), null_space(stack.A, method="elimination")
    assert_same_span(by_svd.basis, by_elimination.basis, sine=1e-8)


def test_controls_of_the_basis() -> None:
    A = normal(5, 12, seed=0)
    space = null_space(A)
    wrong = torch.linalg.qr(normal(12, space.free, seed=1)).Q  # orthonormal, but another space
    assert_orthonormal(wrong)
    with pytest.raises(AssertionError, match="exceeds"):
        assert_annihilated(A, wrong, space.leakage_bound)
    with pytest.raises(AssertionError, match="sine"):
        assert_same_span(space.basis, wrong, 1e-6)
    with pytest.raises(AssertionError, match="differs"):
        assert_orthonormal(null_space(A, method="elimination").basis)  # independent, no more
    with pytest.raises(AssertionError, match="differs"):
        assert_unit_columns(2 * space.basis)
    forgot_one = null_space(A[:-1])  # one kept row was left out of the stack
    with pytest.raises(AssertionError, match="exceeds"):
        assert_annihilated(A, forgot_one.basis, forgot_one.leakage_bound)


# --- Tolerance: what is discarded is what leaks ---------------------------------------------------


@st.composite
def decaying(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    """`A [m, d]` with a known geometric spectrum, and a tolerance that cuts into it."""
    d = draw(st.integers(4, 20))
    m = draw(st.integers(2, 24))
    ratio = draw(st.floats(0.2, 0.7))
    spectrum = ratio ** torch.arange(min(m, d), dtype=torch.float64)
    U = torch.linalg.qr(normal(m, len(spectrum), seed=draw(seeds))).Q
    V = torch.linalg.qr(normal(d, len(spectrum), seed=draw(seeds))).Q
    cut = draw(st.integers(1, len(spectrum) - 1))
    rtol = float(spectrum[cut] * 1.01 / spectrum.norm()) * m**0.5  # of a row's length
    assume(rtol < 1)
    return (U * spectrum) @ V.T, spectrum, rtol


def assert_leaks_at_most(A: Tensor, up: Tensor, down: Tensor, singular: float) -> None:
    """`||A Delta^T|| <= sigma ||Delta||`: what a delta can do to the kept rows."""
    leaked = spectral_norm(A @ (up @ down).T)
    allowed = singular * spectral_norm(up @ down)
    assert leaked <= allowed * (1 + 1e-9) + 1e-12, f"leaks {leaked:.3e}, more than {allowed:.3e}"


@theorem
@given(decaying(), seeds)
def test_a_rank_one_delta_leaks_at_most_the_first_discarded_singular_value(
    case: tuple[Tensor, Tensor, float], seed: int
) -> None:
    A, spectrum, rtol = case
    space = null_space(A, rtol)
    discarded = spectrum[space.rank :]
    assert_close(space.leakage_bound, float(discarded[0]), scale=1.0)
    b, x = normal(3, 1, seed=seed), space.basis @ normal(space.free, seed=seed + 1)
    assert_leaks_at_most(A, b, x[None], float(discarded[0]))
    worst = space.basis[:, 0]  # the bound is attained, so no smaller one would do
    assert_close((A @ worst).norm(), discarded[0], scale=1.0)
    assert_close(
        (A @ space.projector).norm(), discarded.norm(), scale=1.0
    )  # all directions at once


def test_control_of_the_leakage() -> None:
    A = torch.diag(torch.tensor([1.0, 0.5, 0.1, 0.01, 0.0], dtype=torch.float64))
    space = null_space(A, rtol=0.2)
    assert space.rank == 2
    b, inside, outside = torch.ones(3, 1).double(), torch.eye(5)[2:3], torch.eye(5)[1:2]
    assert_leaks_at_most(A, b, inside.double(), 0.1)
    with pytest.raises(AssertionError, match="leaks"):
        assert_leaks_at_most(A, b, outside.double(), 0.1)  # a direction that is not discarded
    with pytest.raises(AssertionError, match="leaks"):
        assert_leaks_at_most(A, b, inside.double(), 0.01)  # the singular value after it


# --- A toy diffusion model: text enters through to_k and to_v only --------------------------------

TOKENS, D_IN, WIDTH, PIXELS = 3, 20, 6, 4
PATHS = tuple(f"{layer}.attn2.{name}" for layer in range(2) for name in ("to_k", "to_v"))
Change = Mapping[str, Tensor]


@dataclass(frozen=True)
class Toy:
    """Two layers of cross-attention with residuals; `weights` by path, `[out, in]`."""

    weights: Mapping[str, Tensor]

    @classmethod
    def random(cls, seed: int, dtype: torch.dtype) -> "Toy":
        shapes = dict.fromkeys(PATHS, (WIDTH, D_IN))
        shapes |= {f"{layer}.attn2.{n}": (WIDTH, WIDTH) for layer in range(2) for n in ("q", "out")}
        return cls(
            {
                path: (normal(*shape, seed=seed + i) / math.sqrt(shape[1])).to(dtype)
                for i, (path, shape) in enumerate(shapes.items())
            }
        )

    def epsilon(self, x: Tensor, e: Tensor, change: Change) -> Tensor:
        """Noise `[batch, PIXELS, WIDTH]` predicted from images x for text `e [TOKENS, D_IN]`."""
        for layer in range(2):
            W = {n: self.weights[f"{layer}.attn2.{n}"] for n in ("q", "to_k", "to_v", "out")}
            for name in ("to_k", "to_v"):
                W[name] = W[name] + change.get(f"{layer}.attn2.{name}", 0.0)
            attention = (x @ W["q"].T @ (e @ W["to_k"].T).T / math.sqrt(WIDTH)).softmax(-1)
            x = x + torch.tanh(attention @ (e @ W["to_v"].T) @ W["out"].T)
        return x

    def loss(self, x: Tensor, e_c: Tensor, e_0: Tensor, change: Change) -> Tensor:
        """`L_cor(c)` (paper eq. 2), averaged over the batch of images."""
        r = noise_difference(self.epsilon(x, e_c, change), self.epsilon(x, e_0, change))
        r0 = noise_difference(self.epsilon(x, e_c, {}), self.epsilon(x, e_0, {}))
        return correlation_loss(r, r0).mean()


@dataclass(frozen=True)
class World:
    """A toy model, its images, and the embeddings of the empty prompt and of N concepts."""

    toy: Toy
    x: Tensor
    e_0: Tensor
    concepts: list[Tensor]

    @classmethod
    def random(cls, seed: int, concepts: int, dtype: torch.dtype) -> "World":
        begin = normal(1, D_IN, seed=seed)  # every prompt begins with the same BOS row
        prompts = [
            torch.cat([begin, normal(TOKENS - 1, D_IN, seed=seed + 1 + i)]).to(dtype)
            for i in range(concepts + 1)
        ]
        x = normal(2, PIXELS, WIDTH, seed=seed + 100).to(dtype)
        return cls(Toy.random(seed + 200, dtype), x, prompts[0], prompts[1:])

    def room(self, k: int, method: str = "svd", without: int | None = None) -> NullSpace:
        """The null space for concept k: keeps c_0 and all other concepts, except `without`."""
        kept = [e for j, e in enumerate(self.concepts) if j not in (k, without)]
        return null_space(torch.cat([self.e_0, *kept]), method=method)

    def basis(self, k: int, without: int | None = None) -> Tensor:
        return self.room(k, without=without).directions(self.concepts[k]).to(self.x.dtype)

    def loss(self, k: int, change: Change) -> Tensor:
        return self.toy.loss(self.x, self.concepts[k], self.e_0, change)


worlds = st.builds(World.random, seeds, st.integers(2, 5), dtypes)


def factors(q: int, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A random `B_l [d_out, q]` for every layer: no training is needed for these theorems."""
    return {path: normal(WIDTH, q, seed=seed + i).to(dtype) for i, path in enumerate(PATHS)}


def delta(world: World, k: int, seed: int, without: int | None = None) -> ConceptDelta:
    Q = world.basis(k, without)
    made = Provenance(f"c{k}", "toy", base="toy", base_name="toy", forgotten=(f"c{k}",), kept=())
    up = factors(len(Q), seed, Q.dtype)
    return ConceptDelta(dict.fromkeys(PATHS, Q), up, made)


def dense(delta: ConceptDelta) -> dict[str, Tensor]:
    return {path: delta.dense(path) for path in delta.paths}


# --- Decoupling -----------------------------------------------------------------------------------


def assert_untouched(e: Tensor, change: Change) -> None:
    """`e(c) Delta_l = 0` for every layer, so keys and values of c stay as they are."""
    for increment in change.values():
        size = float(e.norm()) * float(increment.norm())
        assert_close(e @ increment.T, torch.zeros_like(e @ increment.T), scale=size)


@theorem
@given(worlds, seeds)
def test_a_delta_changes_nothing_for_what_is_kept(world: World, seed: int) -> None:
    change = dense(delta(world, 0, seed))
    for kept in (world.e_0, *world.concepts[1:]):
        assert_untouched(kept, change)
        before = world.toy.epsilon(world.x, kept, {})
        assert_close(world.toy.epsilon(world.x, kept, change), before, scale=10.0)
    with pytest.raises(AssertionError, match="differs"):
        assert_untouched(world.concepts[0], change)  # but it does change its own concept


@theorem
@given(worlds, seeds)
def test_a_delta_built_without_a_kept_prompt_changes_it(world: World, seed: int) -> None:
    """The control of the theorem above, on as many cases."""
    change = dense(delta(world, 0, seed, without=1))
    with pytest.raises(AssertionError, match="differs"):
        assert_untouched(world.concepts[1], change)


def test_iterative_erasure_touches_neither_earlier_concept_nor_their_deltas() -> None:
    """Erase c0 and c1, later c2 with both among what is kept: for c0 and c1 nothing changes."""
    world = World.random(0, 3, torch.float64)
    earlier = delta(world, 0, 1) + delta(world, 1, 2)
    later = earlier + delta(world, 2, 3)
    for k in (0, 1):
        assert_close(world.loss(k, dense(later)), world.loss(k, dense(earlier)), scale=10.0)
    with pytest.raises(AssertionError, match="differs"):
        assert_close(world.loss(2, dense(later)), world.loss(2, dense(earlier)), scale=10.0)


# --- Separability of the losses (S-29..33) --------------------------------------------------------


def assert_separable(world: World, deltas: list[ConceptDelta]) -> None:
    """`L_cor(c_i)` of all deltas together is that of delta i alone."""
    total = sum(deltas[1:], start=deltas[0])
    for i, alone in enumerate(deltas):
        assert_close(world.loss(i, dense(total)), world.loss(i, dense(alone)), scale=10.0)


@theorem
@given(worlds, seeds)
def test_other_deltas_cannot_change_the_loss_of_a_concept(world: World, seed: int) -> None:
    assert_separable(world, [delta(world, k, seed + 10 * k) for k in range(len(world.concepts))])


def joint_gradients(world: World, bases: list[Tensor], seed: int) -> list[list[Tensor]]:
    """`d L_cor(c_i) / d B_k` at a random point; [i][k], all layers stacked."""
    ups = [factors(len(Q), seed + 10 * k, Q.dtype) for k, Q in enumerate(bases)]
    leaves = [{path: B.requires_grad_() for path, B in up.items()} for up in ups]
    total = {path: sum(up[path] @ Q for up, Q in zip(leaves, bases, strict=True)) for path in PATHS}
    flat = [up[path] for up in leaves for path in PATHS]
    table = []
    for i in range(len(bases)):
        gradient = torch.autograd.grad(world.loss(i, total), flat, retain_graph=True)
        per_concept = [gradient[k * len(PATHS) : (k + 1) * len(PATHS)] for k in range(len(bases))]
        table.append([torch.cat(parts, dim=1) for parts in per_concept])
    return table


def assert_no_gradient_across(table: list[list[Tensor]]) -> None:
    for i, row in enumerate(table):
        for k, gradient in enumerate(row):
            if i != k:
                assert_close(gradient, torch.zeros_like(gradient), scale=100.0)


@theorem
@given(st.builds(World.random, seeds, st.integers(2, 3), dtypes), seeds)
def test_joint_training_is_separate_training(world: World, seed: int) -> None:
    """`dL_cor(c_i)/dDelta_k = 0` for i != k: the joint objective moves each delta on its own."""
    bases = [world.basis(k) for k in range(len(world.concepts))]
    assert_no_gradient_across(joint_gradients(world, bases, seed))


def test_controls_of_the_separability() -> None:
    world = World.random(0, 3, torch.float64)
    with pytest.raises(AssertionError, match="differs"):
        assert_separable(world, [delta(world, 0, 1, without=1), delta(world, 1, 2)])
    bases = [world.basis(0, without=1), world.basis(1)]
    with pytest.raises(AssertionError, match="differs"):
        assert_no_gradient_across(joint_gradients(world, bases, seed=3))


# --- Row space: the dense form and the LoRA form are one ------------------------------------------
#
# Dense:  Delta = beta w S^T, S [d_in, free] an orthonormal null basis.   w <- w - mu dL/dw
# LoRA:   Delta = B Q, Q [q, d_in] an orthonormal basis of the rows of E P.  B <- B - nu dL/dB
#
# With G = dL/dDelta the chain rule gives dL/dw = beta G S and dL/dB = G Q^T, so one step is
#     dense  Delta <- Delta - mu beta^2 G S S^T = Delta - mu beta^2 G P,
#     LoRA   Delta <- Delta - nu G Q^T Q.
# The loss sees Delta only in the product E Delta^T (what is kept contributes nothing), so the rows
# of G are combinations of the rows of E, those of G P of the rows of E P, and G P = G Q^T Q. From
# zero, with nu = mu beta^2, both descents therefore visit the same matrices Delta.
#
# This holds for plain gradient descent (with momentum too), for lambda = 0, and for an orthonormal
# S. With the solutions of elimination S S^T is not P: other steps, though the same null space. Adam
# rescales each coordinate, which no change of basis survives. The controls show all three.


def descend_dense(
    world: World, S: Tensor, beta: float, mu: float, steps: int
) -> tuple[Change, dict[str, Tensor]]:
    """Gradient descent on `w [d_out, free]` from zero: the increments, and the last gradients."""
    w = {path: torch.zeros(WIDTH, S.shape[1], dtype=S.dtype) for path in PATHS}
    return _descend(world, w, lambda w: {path: beta * w[path] @ S.T for path in PATHS}, mu, steps)


def descend_lora(
    world: World, Q: Tensor, nu: float, steps: int, optimiser: type = torch.optim.SGD
) -> Change:
    """Gradient descent on `B [d_out, q]` from zero."""
    B = {path: torch.zeros(WIDTH, len(Q), dtype=Q.dtype) for path in PATHS}
    return _descend(world, B, lambda B: {p: B[p] @ Q for p in PATHS}, nu, steps, optimiser)[0]


def _descend(world, parameters, increments, rate, steps, optimiser=torch.optim.SGD):
    for parameter in parameters.values():
        parameter.requires_grad_()
    step = optimiser(parameters.values(), lr=rate)
    for _ in range(steps):
        step.zero_grad()
        world.loss(0, increments(parameters)).backward()
        step.step()
    change = {path: increment.detach() for path, increment in increments(parameters).items()}
    return change, {path: parameter.grad for path, parameter in parameters.items()}


def assert_same_function(world: World, one: Change, other: Change) -> None:
    """Equal increments, hence the same keys and values of c_k, hence the same predictions."""
    size = max(float(increment.abs().max()) for increment in one.values())
    assert size > 0, "nothing was learned"
    e = world.concepts[0]
    for path in PATHS:
        assert_close(one[path], other[path], scale=10 * size)
        assert_close(e @ one[path].T, e @ other[path].T, scale=10 * size * float(e.abs().max()))


def assert_rows_within(gradient: Tensor, Q: Tensor) -> None:
    """Each row of the gradient is a combination of the rows of Q."""
    outside = gradient - gradient @ Q.T @ Q
    assert_close(outside, torch.zeros_like(outside), scale=float(gradient.abs().max()))


BETA, MU = 0.3, 2.0


@theorem
@given(worlds)
def test_dense_and_lora_descent_give_the_same_delta(world: World) -> None:
    S = world.room(0).basis.to(world.x.dtype)
    by_dense, _ = descend_dense(world, S, BETA, MU, steps=3)
    by_lora = descend_lora(world, world.basis(0), MU * BETA**2, steps=3)
    assert_same_function(world, by_dense, by_lora)


@theorem
@given(worlds, methods)
def test_the_gradient_of_w_stays_in_the_row_space_of_the_concept(world: World, method: str) -> None:
    """In the coordinates of S the row space is that of `E S`; this needs no orthonormal S."""
    S = world.room(0, method).basis
    _, gradients = descend_dense(world, S.to(world.x.dtype), BETA, MU, steps=3)
    rows = row_basis(world.concepts[0].double() @ S, rtol=1e-4).to(world.x.dtype)
    for gradient in gradients.values():
        assert_rows_within(gradient, rows)
    assert len(rows) <= TOKENS - 1 < S.shape[1]  # BOS is kept, so it is no direction


def test_controls_of_the_row_space() -> None:
    world = World.random(0, 2, torch.float64)
    S, Q, nu = world.room(0).basis, world.basis(0), MU * BETA**2
    by_lora = descend_lora(world, Q, nu, steps=3)
    by_dense, gradients = descend_dense(world, S, BETA, MU, steps=3)
    assert_same_function(world, by_dense, by_lora)
    solutions = world.room(0, "elimination").basis
    different = {
        "another step size": descend_lora(world, Q, MU * BETA, steps=3),
        "a direction is missing": descend_lora(world, Q[:1], nu, steps=3),
        "S is not orthonormal": descend_dense(world, solutions, BETA, MU, steps=3)[0],
        "Adam": descend_lora(world, Q, nu, steps=3, optimiser=torch.optim.Adam),
    }
    for change in different.values():
        with pytest.raises(AssertionError, match="differs"):
            assert_same_function(world, by_dense, change)
    with pytest.raises(AssertionError, match="differs"):
        assert_rows_within(gradients[PATHS[0]], row_basis(world.concepts[1] @ S + S[:TOKENS]))


# --- Momentum, balance, and what the model predicts -----------------------------------------------


def assert_recursion(values: list[float], losses: list[float], alpha: float) -> None:
    """`m_n = alpha m_{n-1} + (1 - alpha) L_n`, written out as one weighted sum of all losses."""
    for n, value in enumerate(values):
        past = [alpha ** (n - i) * (1 - alpha) * loss for i, loss in enumerate(losses[: n + 1])]
        unrolled = sum(past) + alpha ** (n + 1) * losses[0]  # m_0 is the first loss
        assert_close(value, unrolled, scale=max(map(abs, losses)) + 1.0)


finite = st.floats(-100, 100)


@theorem
@given(st.lists(finite, min_size=1, max_size=30), st.floats(0, 1), finite, st.integers(1, 15))
def test_momentum_is_the_weighted_sum_and_stops_when_it_says(
    losses: list[float], alpha: float, tau: float, earliest: int
) -> None:
    momentum, values = Momentum(alpha, tau, earliest), []
    for n, loss in enumerate(losses, start=1):
        values.append(momentum.update(loss))
        assert momentum.stopped == (n >= earliest and values[-1] <= tau)
    assert_recursion(values, losses, alpha)
    slack = 1e-9
    assert min(losses) - slack <= values[-1] <= max(losses) + slack  # it is an average


@theorem
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8), seeds, st.floats(1e-3, 1e3), dtypes)
def test_eta_makes_every_concept_pull_as_hard_as_the_least_erased(
    sizes: list[float], seed: int, scale: float, dtype: torch.dtype
) -> None:
    losses = (torch.tensor(sizes) * normal(len(sizes), seed=seed).sign()).to(dtype)
    eta = balance(losses)
    assert_close((eta * losses).abs(), losses.abs().max().expand_as(losses))
    assert float(eta.min()) == 1.0
    assert_close(balance(losses * scale), eta, scale=float(eta.max()))


@theorem
@given(seeds, st.floats(0.01, 0.99), dtypes)
def test_every_prediction_type_gives_the_same_epsilon(
    seed: int, a: float, dtype: torch.dtype
) -> None:
    x_0, eps = normal(2, 3, 2, 2, seed=seed).to(dtype), normal(2, 3, 2, 2, seed=seed + 1).to(dtype)
    alphas_cumprod, t = torch.tensor([0.5, a], dtype=dtype), torch.tensor([1, 1])
    x_t = math.sqrt(a) * x_0 + math.sqrt(1 - a) * eps
    v = math.sqrt(a) * eps - math.sqrt(1 - a) * x_0
    for output, kind in ((eps, "epsilon"), (v, "v_prediction"), (x_0, "sample")):
        assert_close(to_epsilon(output, x_t, t, alphas_cumprod, kind), eps, scale=50.0)


@theorem
@given(seeds, st.floats(-3, 3), dtypes)
def test_the_normalised_correlation_reads_off_the_factor(
    seed: int, factor: float, dtype: torch.dtype
) -> None:
    """`r = f r0 + anything orthogonal to r0` has normalised correlation f, whatever its size."""
    r0, other = normal(2, 30, seed=seed), normal(2, 30, seed=seed + 1)
    orthogonal = other - r0 * (r0 * other).sum(1, keepdim=True) / (r0 * r0).sum(1, keepdim=True)
    r = factor * r0 + orthogonal
    measured = normalised_correlation(r.to(dtype), r0.to(dtype))
    assert_close(measured, torch.full((2,), factor, dtype=dtype), scale=10.0)


def test_controls_of_momentum_balance_and_epsilon() -> None:
    losses = [3.0, 1.0, -2.0]
    momentum = Momentum(alpha=0.9)
    values = [momentum.update(loss) for loss in losses]
    assert_recursion(values, losses, 0.9)
    with pytest.raises(AssertionError, match="differs"):
        assert_recursion(values, losses, 0.8)
    sizes = torch.tensor([2.0, 1.0])
    with pytest.raises(AssertionError, match="differs"):
        assert_close(sizes / sizes.max() * sizes, sizes.max().expand(2))  # eta upside down
    x = torch.ones(1, 1)
    with pytest.raises(AssertionError, match="differs"):
        assert_close(to_epsilon(x, 2 * x, torch.tensor([0]), torch.tensor([0.5]), "sample"), x)


def test_control_of_the_tolerance_helper() -> None:
    """One rounding passes; a difference of more than `ROUNDINGS` of them does not."""
    one = torch.ones(2)
    eps = torch.finfo(torch.float32).eps
    assert_close(one + eps, one)
    with pytest.raises(AssertionError, match="differs"):
        assert_close(one * (1 + 2 * ROUNDINGS * eps), one)
    with pytest.raises(AssertionError, match="shapes"):
        assert_close(one, torch.ones(3))
    with pytest.raises(AssertionError, match="differs"):
        assert_close(one * math.nan, one)
