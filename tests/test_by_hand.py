"""Each documented formula on numbers that can be checked with a pencil."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sepme.artefact import digest_of
from sepme.composition import keeps
from sepme.concept import Concept
from sepme.correlation import (
    Momentum,
    balance,
    correlation_loss,
    noise_difference,
    normalised_correlation,
)
from sepme.erasure import PRESETS, closed_form_shift, erase, retain_set
from sepme.model import to_epsilon
from sepme.nullspace import Constraint, Embedded, damped_projection, null_space
from sepme.training import mix
from tests.miniature import (
    FROM_ZERO,
    INK,
    KEPT,
    NEON,
    OIL,
    QUICK,
    QUIET,
    shared,
    three_deltas,
    watched,
)
from tests.refusals import refused
from tests.tolerance import assert_close


# ---------------------------------------------------------------- the closed form
def tensor(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def factor(ridge: float = 0.0, keep_weight: float = 0.0, **changes: Tensor) -> Tensor:
    """B of one layer `W = [[1, 2], [0, 1]]` whose delta may act along the first direction only.

    Two concept rows e = (2, 0), (4, 0); anchors a = (0, 2), (0, 0); kept rows k = (1, 5), (3, 5).
    """
    anchors = changes.get("anchors", tensor([0.0, 2.0], [0.0, 0.0]))
    kept, own = tensor([1.0, 5.0], [3.0, 5.0]), tensor([2.0, 0.0], [4.0, 0.0])
    constraint = Constraint(
        Concept("c", ("c",), anchors=("a",)),
        ("",),
        changes.get("Q", tensor([1.0, 0.0])),
        Embedded({"": kept, "c": own, "a": anchors}),
        keep_rtol=None,
        method="svd",
        dtype=torch.float64,
    )
    W = tensor([1.0, 2.0], [0.0, 1.0])
    return W @ closed_form_shift(constraint, ridge=ridge, keep_weight=keep_weight)


def test_the_closed_form_is_least_squares() -> None:
    """G = mean(4, 16) = 10; mean[(a - e)(Q e)] = mean[(-2, 2) 2, (-4, 0) 4] = (-10, 2)."""
    assert_close(factor(), tensor([1.0, 2.0], [0.0, 1.0]) @ tensor([-10.0], [2.0]) / 10)


def test_what_is_kept_shrinks_the_closed_form() -> None:
    """K = mean(1, 9) = 5, weighed by mu: G + mu K = 20 for mu = 2."""
    assert_close(factor(keep_weight=2.0), factor() * 10 / 20)


def test_the_ridge_is_relative_to_the_mean_energy_of_the_directions() -> None:
    """With one direction tr(G)/q = 10; with a second one that e does not reach it is 5."""
    assert_close(factor(ridge=1.0), factor() * 10 / (10 + 10))
    both = factor(ridge=1.0, Q=torch.eye(2, dtype=torch.float64))
    assert_close(both[:, :1], factor() * 10 / (10 + 5))


def test_the_closed_form_goes_to_the_anchor() -> None:
    """An anchor that says what the concept says asks for no change."""
    assert_close(factor(anchors=tensor([2.0, 0.0], [4.0, 0.0])), torch.zeros(2, 1).double())
    e_q, a_q = tensor([2.0], [4.0]), tensor([1.0], [2.0])
    halved = factor(anchors=tensor([1.0, 0.0], [2.0, 0.0]))  # B Q e = W (a - e) exactly
    assert_close(e_q @ halved[:1].T, a_q - e_q)


# ---------------------------------------------------------------- correlation, balance, momentum
def test_the_loss_is_the_mean_product_of_two_noise_differences() -> None:
    eps_c, eps_0 = tensor([[[4.0, 1.0]]], [[[0.0, 5.0]]]), tensor([[[3.0, 3.0]]], [[[0.0, 1.0]]])
    r, r0 = noise_difference(eps_c, eps_0), tensor([[[3.0, 1.0]]], [[[7.0, -1.0]]])
    assert_close(r.flatten(1), tensor([1.0, -2.0], [0.0, 4.0]))
    assert_close(correlation_loss(r, r0), tensor(0.5, -2.0))  # (3 - 2) / 2, -4 / 2
    assert_close(normalised_correlation(r, r0), tensor(0.1, -4 / 50))  # 1 / 10


def test_eta_weighs_by_the_largest_is_a_constant_and_always_finite() -> None:
    eta = balance(tensor(4.0, -1.0, 2.0).requires_grad_())
    assert_close(eta, tensor(1.0, 4.0, 2.0))
    assert not eta.requires_grad
    assert bool(balance(tensor(4.0, 0.0)).isfinite().all())
    assert_close(balance(torch.zeros(3)), torch.ones(3))


def test_the_momentum_starts_at_the_first_loss() -> None:
    momentum = Momentum(alpha=0.75, tau=0.5, earliest=2)
    assert [momentum.update(x) for x in (4.0, 0.0)] == [4.0, 3.0]
    assert not momentum.stopped
    momentum.value = 0.5
    assert momentum.stopped  # at tau itself
    momentum.value = 0.51
    assert not momentum.stopped


def test_by_default_the_momentum_never_stops_before_the_eleventh_iteration() -> None:
    momentum = Momentum()
    stopped = [momentum.update(-1.0) and momentum.stopped for _ in range(11)]
    assert stopped == [False] * 10 + [True]


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("epsilon", 2.0), ("v_prediction", 0.8 * 2 + 0.6 * 3), ("sample", (3 - 0.8 * 2) / 0.6)],
)
def test_every_prediction_is_turned_into_noise(prediction: str, expected: float) -> None:
    """At alpha = 0.64 the model says 2 of x_t = 3."""
    output, x_t = tensor([[[2.0]]]), tensor([[[3.0]]])
    eps = to_epsilon(output, x_t, torch.tensor([0]), tensor(0.64, 0.36), prediction)
    assert_close(eps, tensor([[[expected]]]))
    with refused("'flow'", "epsilon"):
        to_epsilon(output, x_t, torch.tensor([0]), tensor(0.64), "flow")


# ---------------------------------------------------------------- the null space
def test_damping_weighs_by_tau_squared() -> None:
    """sigma = 3 and 1, tau = 1.5: weights 2.25 / (9 + 2.25) and 2.25 / (1 + 2.25), then 1.

    The rows' lengths are 3, 1 and 0, root mean square (10 / 3)^(1/2).
    """
    A = torch.diag(tensor(3.0, 1.0, 0.0))
    damped = damped_projection(A, torch.ones(1, 3).double(), 1.5 / (10 / 3) ** 0.5)[0]
    assert_close(damped, tensor(1 / 5, 9 / 13, 1.0))


@pytest.mark.parametrize(
    ("rows", "dtype", "expected"),
    [
        (8, torch.float32, 12 * 2**-23),  # 4 eps (1 + sqrt(m / d))
        (8, torch.float64, 12 * 2**-52),
        (8, torch.bfloat16, 12 * 2**-7),
        (80_000, torch.float16, 0.5),  # at most a half
    ],
)
def test_the_default_tolerance(rows: int, dtype: torch.dtype, expected: float) -> None:
    A = torch.zeros(rows, 2, dtype=dtype)
    A[:, 0] = 1.0
    assert null_space(A).rtol == pytest.approx(expected)


# ---------------------------------------------------------------- training
def test_lambda_pulls_the_weights_towards_zero() -> None:
    """From zero, |w| has no slope; a step later lambda outweighs everything and Adam turns back."""
    settings = replace(FROM_ZERO, iterations=2, learning_rate=0.01)
    (free, held) = (
        erase(shared(), NEON, KEPT, replace(settings, lam=lam), trainer=QUIET) for lam in (0.0, 1e6)
    )
    assert held.norm() < 0.5 * free.norm()
    steps: list = []
    erase(shared(), NEON, KEPT, replace(settings, lam=1e6), trainer=watched(steps))
    assert steps[1].norm > 0  # what it pulls at is ||Delta||_1 / M


def test_every_iteration_draws_its_own_noise() -> None:
    steps: list = []
    erase(shared(), NEON, KEPT, replace(QUICK, timesteps="uniform"), trainer=watched(steps))
    assert len({step.timesteps for step in steps}) == len(steps)
    assert [mix(2, 3) - mix(2, 2), mix(3, 0) - mix(2, 0)] == [7_919, 1_000_003]


def test_the_first_batch_is_the_first_seeds() -> None:
    """t = floor(u T) with u from the generator of `mix(seed, 0)`, after the choice of images."""
    steps: list = []
    settings = replace(QUICK, timesteps="uniform", iterations=1, pool=0)
    erase(shared(), NEON, KEPT, settings, seed=4, trainer=watched(steps))
    rng = torch.Generator().manual_seed(mix(4, 0))
    torch.randint(settings.images, (settings.batch,), generator=rng)
    expected = (torch.rand(settings.batch, generator=rng) * 1000).long()
    assert steps[0].timesteps == tuple(expected.tolist())


def test_deltas_that_are_on_count_while_a_later_one_is_trained() -> None:
    """A delta that already sends neon to the empty prompt leaves nothing to correlate with."""
    first: list = []
    alone: list = []
    gone = erase(shared(), NEON, KEPT, replace(FROM_ZERO, iterations=40), trainer=QUIET)
    again = Concept("neon again", ("neon",))
    once = replace(FROM_ZERO, iterations=1)
    erase(shared(), again, KEPT, once, after=[gone], trainer=watched(first))
    erase(shared(), again, KEPT, once, trainer=watched(alone))
    assert alone[0].correlation[0] == pytest.approx(1.0, rel=1e-4)
    assert abs(first[0].correlation[0]) < 0.5


def test_a_later_delta_keeps_the_earlier_one_s_prompts_and_not_the_other_way_round() -> None:
    neon = three_deltas()[0]
    assert retain_set(OIL, [OIL], ["boat"], [neon]) == ["boat", "neon"]
    assert retain_set(NEON, [NEON, INK], "boat", []) == ["boat", "ink"]
    early = erase(shared(), NEON, KEPT, PRESETS["closed_form"])
    late = erase(shared(), INK, KEPT, PRESETS["closed_form"], after=[early])
    assert keeps(late, early)
    assert not keeps(early, late)


# ---------------------------------------------------------------- identity
def test_a_digest_is_the_sha256_of_text_names_types_shapes_and_bytes() -> None:
    one = torch.tensor([1.0, 2.0])
    text = json.dumps({"a": 1}, separators=(",", ":"))
    by_hand = hashlib.sha256(text.encode() + b"x torch.float32 [2] " + one.numpy().tobytes())
    assert digest_of({"a": 1}, {"x": one}) == by_hand.hexdigest()
    others = [
        digest_of({"a": 2}, {"x": one}),
        digest_of({"a": 1}, {"y": one}),
        digest_of({"a": 1}, {"x": one[:, None]}),  # the same bytes in another shape
        digest_of({"a": 1}, {"x": one.view(torch.int32)}),  # and as another type
        digest_of({"a": 1}, {"x": one.flip(0)}),
        digest_of({"a": 1}),
    ]
    assert len({by_hand.hexdigest(), *others}) == 7
