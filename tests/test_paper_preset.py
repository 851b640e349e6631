"""The preset `paper` is what was published, and it runs."""

from dataclasses import replace

import pytest
import torch

from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, ErasureSettings, ErasureStep, erase
from tests.miniature import NEON, QUIET, constraint_of, others, shared, watched
from tests.tolerance import assert_close

#: The published values, each with its place in the paper.
PUBLISHED = {
    "parametrisation": "dense",  # eq. 9, 10
    "method": "elimination",  # eq. 8: each solution scaled to unit length
    "start": "zero",
    "objective": "product",  # eq. 2
    "iterations": 1000,
    "batch": 1,  # one image per iteration
    "timesteps": "uniform",
    "learning_rate": 0.1,
    "beta": 1e-4,
    "lam": 1e-6,
    "alpha": 0.9,
    "tau": 0.0,
    "earliest_stop": 11,  # the code never stops before
}


def test_the_undecoupled_preset_differs_where_the_paper_says_so_and_runs() -> None:
    paper, undecoupled = PRESETS["paper"], PRESETS["undecoupled"]
    assert undecoupled == replace(
        paper,
        parametrisation="full",
        learning_rate=1e-5,
        method=undecoupled.method,  # nothing is kept, so neither of the two says anything
        beta=undecoupled.beta,
    )
    settings = replace(undecoupled, iterations=2, images=1)
    recorded = erase(shared(), NEON, (), settings, trainer=QUIET).provenance.settings
    assert (recorded["learning_rate"], recorded["parametrisation"]) == (1e-5, "full")


@pytest.fixture(scope="module")
def run() -> tuple[ConceptDelta, list[ErasureStep]]:
    """The preset as it is, but for the number of iterations and of images."""
    steps: list[ErasureStep] = []
    settings = replace(PRESETS["paper"], iterations=12, images=2)
    delta = erase(shared(), NEON, others(NEON), settings, trainer=watched(steps))
    return delta, steps


def test_the_preset_holds_the_published_values_and_a_delta_records_them(run) -> None:
    paper, recorded = PRESETS["paper"], run[0].provenance.settings
    assert {name: getattr(paper, name) for name in PUBLISHED} == PUBLISHED
    expected = PUBLISHED | {"iterations": 12}
    assert {name: recorded[name] for name in expected} == expected
    assert set(recorded) == {*ErasureSettings.__dataclass_fields__, "eraser", "guidance", "steps"}


def test_its_loss_is_equation_2_on_one_image_a_step(run) -> None:
    steps = run[1]
    assert [len(step.timesteps) for step in steps] == [1] * 12
    assert steps[0].norm == 0  # w starts at zero, so that the loss starts at the mean square of r
    assert steps[0].loss > 0
    assert steps[0].correlation[0] == pytest.approx(1.0, rel=1e-5)
    assert all(step.eta == (1.0,) for step in steps)


def test_every_solution_of_its_basis_has_unit_length_and_moves_by_beta() -> None:
    """Adam's first step moves an entry of w by at most its learning rate, so Delta by lr beta S.

    By less than that here: times beta, the gradients are as small as Adam's epsilon.
    """
    backbone, settings = shared(), replace(PRESETS["paper"], iterations=1, images=2)
    S = constraint_of(NEON, settings, backbone).space.basis
    assert_close(S.norm(dim=0), torch.ones(S.shape[1], dtype=S.dtype))
    delta = erase(backbone, NEON, others(NEON), settings, trainer=QUIET)
    path = delta.paths[0]
    w = torch.linalg.lstsq(S, delta.dense(path).double().T).solution.T / 1e-4
    assert_close(delta.dense(path), (1e-4 * w @ S.T).float(), scale=1e-4)
    assert 0.001 < float(w.abs().max()) < 0.1


def test_it_keeps_what_it_keeps(run) -> None:
    delta, steps = run
    rows = shared().encode(["", *others(NEON)]).flatten(0, 1)
    for path in delta.paths:
        change = delta.dense(path)
        assert change.ne(0).any()
        leaked = float((rows @ change.T).norm(dim=1).max())
        bound = PRESETS["paper"].keep_rtol * float(torch.linalg.matrix_norm(rows, 2))
        assert leaked <= bound * float(torch.linalg.matrix_norm(change, 2)) * 1.01
    assert delta.kept == ("", *others(NEON))
    assert steps[-1].norm > 0
