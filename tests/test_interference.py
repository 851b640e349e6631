"""Angles, energies, sums and measured damage: the theorems, and that each can fail."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sepme.composition import Composition
from sepme.delta import ConceptDelta
from sepme.erasure import erase
from sepme.interference import (
    Interference,
    additivity_residual,
    gram,
    largest_cosines,
    measure_noise,
    measure_pictures,
    overlap,
    own_prompts,
    principal_cosines,
    prompt_energy,
    random_largest_cosines,
    row_space,
    text_change,
)
from sepme.probe import Probe, predicted_noise
from tests.miniature import CONCEPTS, EXACT, NAMES, fresh, three_deltas
from tests.refusals import refused
from tests.test_delta import K, V, make
from tests.tolerance import assert_close

theorem = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(n, n, seed=seed)).Q


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Orthonormal rows of two random subspaces of one space."""
    d = draw(st.integers(2, 20))
    q_a, q_b = (draw(st.integers(1, d)) for _ in range(2))
    seed = draw(st.integers(0, 2**31))
    return rotation(d, seed)[:q_a], rotation(d, seed + 1)[:q_b]


# ------------------------------------------------------------------ angles
@theorem
@given(pairs(), st.integers(0, 2**31))
def test_angles_belong_to_the_spaces_and_not_to_their_bases(
    pair: tuple[Tensor, Tensor], seed: int
) -> None:
    a, b = pair
    cosines = torch.linalg.svdvals(a @ b.T)  # of orthonormal bases, largest first
    mixed = principal_cosines(rotation(len(a), seed) @ a, 3 * rotation(len(b), seed + 1) @ b)
    assert_close(mixed, cosines, scale=1.0)
    turned = rotation(a.shape[1], seed)  # and turning both spaces alike keeps what is between them
    assert_close(principal_cosines(a @ turned, b @ turned), cosines, scale=1.0)
    assert 0 <= mixed.min() <= mixed.max() <= 1
    mean = float((a @ b.T).square().sum()) / min(len(a), len(b))
    assert_close(torch.tensor([overlap(a, b), overlap(b, a)]), torch.tensor([mean] * 2), scale=1.0)


def test_turning_one_of_two_spaces_changes_the_angles() -> None:
    a, b = rotation(9, 0)[:2], rotation(9, 1)[:3]
    change = principal_cosines(a @ rotation(9, 2), b) - principal_cosines(a, b)
    assert change.abs().max() > 0.01


def test_the_same_a_contained_and_an_orthogonal_space() -> None:
    Q = rotation(8, 0)
    assert_close(principal_cosines(Q[:3], 2 * Q[:3].flip(0)), torch.ones(3).double())
    assert_close(overlap(Q[:3], Q[:2]), 1.0)
    assert_close(overlap(Q[:3], Q[3:]), 0.0, scale=1.0)
    assert_close(overlap(Q[:2], Q[1:3]), 0.5)  # one of two directions is shared
    table = largest_cosines({"a": Q[:3], "b": Q[2:4], "c": Q[5:]})
    assert_close(table, torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]).double(), scale=1.0)


# ------------------------------------------------------------------ what chance would do
def test_random_cosines_are_drawn_from_random_spaces() -> None:
    drawn = random_largest_cosines(1, 1, 10, draws=4000)
    assert float(drawn.square().mean()) == pytest.approx(1 / 10, rel=0.1)  # E cos^2 = 1/d
    assert (drawn.diff() >= 0).all()
    assert torch.equal(drawn, random_largest_cosines(1, 1, 10, draws=4000))
    assert not torch.equal(drawn, random_largest_cosines(1, 1, 10, draws=4000, seed=1))
    assert_close(random_largest_cosines(4, 2, 4, draws=3), torch.ones(3).double())  # no room else
    assert random_largest_cosines(4, 4, 20).mean() > random_largest_cosines(1, 4, 20).mean()


# ------------------------------------------------------------------ prompts in row spaces
@theorem
@given(pairs())
def test_energy_is_shared_out_between_a_space_and_its_complement(
    pair: tuple[Tensor, Tensor],
) -> None:
    rows, Q = pair
    rest = torch.linalg.svd(Q, full_matrices=True).Vh[len(Q) :]
    inside = prompt_energy({"e": rows}, {"Q": Q})[0, 0]
    assert 0 <= inside <= 1
    outside = prompt_energy({"e": rows}, {"rest": rest})[0, 0] if len(rest) else 0.0
    assert_close(inside + outside, 1.0)


def test_energy_is_directed() -> None:
    line, plane = torch.eye(3)[:1], torch.eye(3)[:2]
    table = prompt_energy({"line": line, "plane": plane}, {"line": 5 * line, "plane": plane})
    assert_close(table, torch.tensor([[1.0, 1.0], [0.5, 1.0]]).double())


def test_the_change_of_keys_and_values_is_that_of_the_dense_deltas() -> None:
    deltas = {"neon": make("neon", 0), "boat": make("boat", 1)}
    rows = {"a": normal(5, 6, seed=2), "b": normal(7, 6, seed=3)}
    table = text_change(deltas, rows).float()
    for i, delta in enumerate(deltas.values()):
        for j, E in enumerate(rows.values()):
            dense = torch.cat([E @ delta.dense(path).double().T for path in (K, V)], dim=1)
            assert_close(table[i, j], dense.norm().float())


def test_a_kept_prompt_has_no_energy_and_no_change() -> None:
    backbone, (neon, *_) = fresh(), three_deltas()
    rows = {name: backbone.encode([name])[0] for name in ("neon", "ink", "boat", "house")}
    energy = prompt_energy(rows, {"neon": row_space(neon)})[:, 0]
    change = text_change({"neon": neon}, rows)[0]
    for found in (energy, change):
        own, ink, boat, unrelated = found.tolist()
        assert max(ink, boat) < 1e-5 * own  # kept
        assert unrelated > 1e-3 * own  # neither kept nor forgotten: not protected


# ------------------------------------------------------------------ whole deltas
@theorem
@given(st.integers(0, 1000))
def test_the_gram_matrix_is_that_of_the_dense_deltas(seed: int) -> None:
    deltas = [make(str(i), seed + i) for i in range(4)]
    dense = [torch.cat([d.dense(path).double().flatten() for path in (K, V)]) for d in deltas]
    unit = torch.nn.functional.normalize(torch.stack(dense))
    table = gram(deltas)
    assert_close(table.float(), (unit @ unit.T).float(), scale=1.0)
    assert_close(table.diagonal(), torch.ones(4).double())
    assert table[0, 1].abs() < 1  # nor is everything parallel


def test_scale_sign_and_layers_of_deltas_in_the_gram_matrix() -> None:
    neon, boat = make("neon", 0), make("boat", 1)
    assert_close(gram([neon, 3 * neon])[0, 1], 1.0)
    assert_close(gram([neon, -neon])[0, 1], -1.0)
    assert_close(gram([neon, 3 * boat])[0, 1].float(), gram([neon, boat])[0, 1].float())
    assert gram([only(neon, K), only(boat, V)])[0, 1] == 0  # they share no layer
    assert gram([only(neon, K), only(boat, K)])[0, 1] != 0


def only(delta: ConceptDelta, path: str) -> ConceptDelta:
    return replace(delta, down={path: delta.down[path]}, up={path: delta.up[path]})


def test_the_row_space_of_a_delta() -> None:
    neon, boat = make("neon", 0), make("boat", 1)
    assert_close(overlap(row_space(neon), neon.basis), 1.0)
    both = row_space(neon + boat)
    assert len(both) == 6
    for part in (neon, boat):
        assert_close(overlap(row_space(part), both), 1.0)
    # A direction that every layer maps to zero is not read.
    up = {path: factor * torch.tensor([1.0, 0, 1]) for path, factor in neon.up.items()}
    assert len(row_space(replace(neon, up=up))) == 2


# ------------------------------------------------------------------ additivity
BOTH = "neon ink"
"""A prompt that neither delta keeps, so that both change it."""


@pytest.fixture(scope="module")
def probes() -> dict[str, Probe]:
    return {prompt: Probe.draw(fresh(), prompt, 3) for prompt in ("neon", "ink", BOTH)}


def residual(a: ConceptDelta, b: ConceptDelta, probe: Probe) -> float:
    with Composition(fresh(), [a, b]) as composition:
        found = additivity_residual(composition, a.concept, b.concept, probe)
        assert composition.active == ()
    return found


def test_two_deltas_add_up_where_only_one_is_read_or_both_are_small(
    probes: Mapping[str, Probe],
) -> None:
    neon, ink, _ = three_deltas()
    assert residual(neon, ink, probes["neon"]) < 1e-3
    assert residual(neon, ink, probes["ink"]) < 1e-3
    large, small = (residual(s * neon, s * ink, probes[BOTH]) for s in (1.0, 0.1))
    assert large > 1e-2  # the network is not linear
    assert small < 0.3 * large  # but smooth: its first order is


def test_a_delta_of_zero_adds_nothing(probes: Mapping[str, Probe]) -> None:
    neon, ink, _ = three_deltas()
    assert residual(neon, 0 * ink, probes[BOTH]) < 1e-6
    assert residual(0 * neon, 0 * ink, probes[BOTH]) == 0


# ------------------------------------------------------------------ who disturbs whom
OWN = torch.eye(3, dtype=torch.bool)


class Bright:
    """A judge that sees everything in bright pictures."""

    def sees(self, images: Tensor, name: str) -> Tensor:
        assert name in NAMES
        return images.mean(dim=(1, 2, 3)) > 0.5


@pytest.fixture(scope="module")
def noise() -> Interference:
    """Of deltas that keep one another's concepts."""
    backbone = fresh()
    asked = {name: Probe.draw(backbone, name, 2) for name in NAMES}
    with Composition(backbone, three_deltas()) as composition:
        return measure_noise(composition, asked)


@pytest.fixture(scope="module")
def pictures() -> Interference:
    prompts = {name: (name, f"{name} cat") for name in NAMES}
    with Composition(fresh(), three_deltas()) as composition:
        return measure_pictures(composition, prompts, ["neon", "ink"], judge=Bright(), seed=3)


def test_a_kept_concept_is_not_disturbed(noise: Interference) -> None:
    assert noise.erased == noise.evaluated == NAMES
    for relative in (noise.matrix, noise.details["keys and values"]):
        assert relative[~OWN].max() < 1e-2
        assert_close(relative[OWN], torch.ones(3).double())


def test_a_concept_that_is_not_kept_is_disturbed() -> None:
    backbone = fresh()
    deltas = [erase(backbone, concept, (), EXACT) for concept in CONCEPTS]
    asked = {name: Probe.draw(backbone, name, 2) for name in NAMES}
    with Composition(backbone, deltas, force=True) as composition:
        found = measure_noise(composition, asked)
        assert composition.active == ()
        alone = measure_noise(composition, {"neon": asked["neon"]}, erased=["ink"])
    assert found.matrix[~OWN].min() > 0.1
    assert alone.erased == ("ink",)
    assert_close(alone.matrix, found.matrix[1:2, :1])  # the yardstick is the same


def test_what_is_measured_is_the_change_of_predicted_noise(noise: Interference) -> None:
    backbone, (neon, ink, _) = fresh(), three_deltas()
    asked = Probe.draw(backbone, "ink", 2)
    before = predicted_noise(backbone, asked)
    change = []
    for delta in (neon, ink):
        with Composition(backbone, [delta]) as composition, composition.erased(delta.concept):
            difference = predicted_noise(backbone, asked) - before
            change.append(float(difference.flatten(2).norm(dim=2).mean()))
    pair = noise.pair("neon", "ink")
    assert pair["predicted noise"] == pytest.approx(change[0] / change[1], rel=1e-3)
    assert pair["change"] == pytest.approx(change[0], rel=1e-3)
    table = noise.to_frame()
    assert list(table) == list(pair) == [noise.measure, *noise.details]
    assert list(table.loc["neon"].index) == list(NAMES)
    for row, column in (("neon", "boat"), ("boat", "ink")):
        with refused("boat", "neon, ink, oil"):
            noise.pair(row, column)


def test_pictures_are_compared_with_the_original_model_s(pictures: Interference) -> None:
    assert (pictures.erased, pictures.evaluated) == (("neon", "ink"), NAMES)
    backbone, prompts = fresh(), pictures.prompts["ink"]
    before = backbone.generate(prompts, 3)
    assert_close(pictures.before["ink"], before, scale=1.0)
    with Composition(backbone, three_deltas()) as composition, composition.erased("neon"):
        after = backbone.generate(prompts, 3)
    assert_close(pictures.after["neon", "ink"], after, scale=1.0)
    change = float((after - before).abs().mean())
    assert pictures.pair("neon", "ink")["change"] == pytest.approx(change, rel=1e-3)
    # oil is only evaluated: its own delta is the yardstick and no row
    assert pictures.details["change"][0, 2] / pictures.matrix[0, 2] > 0
    assert ("oil", "neon") not in pictures.after


def test_the_judge_is_asked_about_the_evaluated_concept(pictures: Interference) -> None:
    def share(images: Tensor) -> float:
        return float((images.mean(dim=(1, 2, 3)) > 0.5).double().mean())

    assert pictures.pair("ink", "oil")["seen"] == share(pictures.after["ink", "oil"])
    first = [share(pictures.before[name]) for name in NAMES]
    assert pictures.details["seen before"].tolist() == [first, first]


def test_own_prompts_are_those_that_no_other_delta_forgets() -> None:
    shared = ("a neon boat", "a boat in neon")
    neon = make("neon", forgotten=("neon", "neon style", "some neon", *shared))
    boat = make("boat", 1, forgotten=("boat", *shared))
    assert own_prompts({"neon": neon}, 5)["neon"] == neon.forgotten
    found = own_prompts({"neon": neon, "boat": boat}, 2)
    assert found == {"neon": ("neon", "neon style"), "boat": ("boat",)}
    with refused("boat", "prompts"):
        own_prompts({"neon": neon, "boat": make("boat", 1, forgotten=shared)})


# ------------------------------------------------------------------ refusals
def test_deltas_that_cannot_be_compared_are_refused() -> None:
    neon, boat = make("neon", 0), make("boat", 1)
    with refused("different models"):
        gram([neon, make("boat", 1, base="decaf" * 8)])
    with refused("'boat'", "zero"):
        row_space(0 * boat)


def test_a_trial_is_refused_before_it_begins() -> None:
    neon, ink, _ = three_deltas()
    with Composition(fresh(), [neon, 0 * ink]) as composition:
        for prompts, erased, word in (
            ({"neon": ["neon"]}, ["oil"], "attached: neon, ink"),
            ({"neon": ["neon"], "oil": ["oil"]}, None, "'oil'"),
            ({"neon": ["neon"]}, ["neon"], "two concepts"),
            ({"ink": ["ink"]}, ["neon", "neon"], "once"),
            ({"ink": ["ink"]}, [], "at least one"),
            ({"neon": [], "ink": ["ink"]}, None, "no prompt"),
            ({"ink": ["ink"]}, ["neon"], "'ink' changes nothing"),  # no yardstick
        ):
            with refused(word):
                measure_pictures(composition, prompts, erased)


def test_what_is_not_finite_is_refused(probes: Mapping[str, Probe]) -> None:
    neon, ink, _ = three_deltas()
    with Composition(fresh(), [neon, 1e30 * ink]) as composition, refused("'ink'", "not finite"):
        measure_noise(composition, {"neon": probes["neon"]}, ["ink"])
