"""The presets `paper`, `paper_first` and `authors` are what was published, and they run."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, ErasureSettings, ErasureStep, erase
from sepme.model import Backbone
from sepme.training import Trainer
from tests.miniature import NEON, QUIET, constraint_of, fresh, others, shared, watched
from tests.tolerance import assert_close

#: The published values, each with its place in the paper.
PUBLISHED = {
    "parametrisation": "dense",  # eq. 9, 10
    "method": "elimination",  # eq. 8: each solution scaled to unit length
    "keep_rtol": 0.0,  # the authors' code eliminates the raw floats
    "start": "zero",
    "reference": "empty",  # c_0
    "objective": "product",  # eq. 2
    "statistic": "loss",  # eq. 4
    "iterations": 1000,
    "batch": 1,  # one image per iteration
    "pool": 0,  # new noise in every iteration
    "timesteps": "uniform",
    "learning_rate": 0.1,
    "beta": 1e-4,
    "lam": 1e-6,
    "alpha": 0.9,
    "tau": 1e-4,  # the later version, which gives the rates too
    "earliest_stop": 12,  # the code asks for i > 10 and counts from 0
}


def test_the_other_published_presets_differ_where_their_sources_do() -> None:
    paper = PRESETS["paper"]
    assert PRESETS["paper_first"] == replace(paper, tau=0.0)
    assert PRESETS["authors"] == replace(paper, accumulate=True, iterations=1001)


def test_faithful_departs_from_the_paper_in_what_it_lists() -> None:
    """The start, the exact null space, alpha and the earliest stop are the published ones."""
    paper, faithful = PRESETS["paper"], PRESETS["faithful"]
    names = ErasureSettings.__dataclass_fields__
    departures = {name for name in names if getattr(paper, name) != getattr(faithful, name)}
    assert departures == {
        *("parametrisation", "method", "beta"),  # the row space of e(c) P
        "reference",  # a phrase, as S-27 allows
        *("objective", "tau", "batch", "timesteps"),  # every timestep counts
        *("learning_rate", "iterations", "lam"),
    }


class Linear:
    """A toy in which every number follows by hand: eps(x, c) = 1000 (W e_1(c))_1 everywhere.

    e_1 is the first token after the start, W one of the projections. So r = r_0 + 1000 Delta_1 d
    with d = e_1(c) - e_1(c_0), and as r_0 never changes, L_cor = r r_0 has the same gradient
    g = 1000 r_0 d with respect to Delta_1 at every step.
    """

    def __init__(self, model: Backbone) -> None:
        self.path, self.layer = next(iter(model.projections().items()))

    def epsilon(self, x: Tensor, t: Tensor, text: Tensor, weights=None) -> Tensor:
        return 1000 * self.layer(text)[:, 1, 0, None, None, None] * torch.ones_like(x)


@pytest.mark.parametrize(
    ("accumulate", "by_hand"),
    [(True, (1.0, 1.9651, 2.9231)), (False, (1.0, 2.0, 3.0))],
    ids=["gradients accumulate", "gradients are zeroed"],
)
def test_authors_takes_the_steps_that_follow_by_hand(
    monkeypatch: pytest.MonkeyPatch, accumulate: bool, by_hand: tuple[float, ...]
) -> None:
    """Three steps of Adam (0.9, 0.999) from zero. No gradient is zeroed, so step n sees n g.

    m_1 = 0.1 g,   v_1 = 0.001 g^2:    1st step = lr g / |g| = lr
    m_2 = 0.29 g,  v_2 = 0.004999 g^2: 2nd = lr (0.29/0.19) / sqrt(0.004999/0.001999) = 0.9651 lr
    m_3 = 0.561 g, v_3 = 0.013994 g^2: 3rd = lr (0.561/0.271) / sqrt(0.013994/0.002997) = 0.9580 lr

    With gradients that are zeroed every step is lr: the negative control.
    """
    model, positions = fresh(), []
    toy = Linear(model)
    monkeypatch.setattr(model, "epsilon", toy.epsilon)
    settings = replace(PRESETS["authors"], iterations=3, images=1, lam=0.0, beta=1.0)
    settings = replace(settings, accumulate=accumulate)
    S = constraint_of(NEON, settings, model).space.basis
    for n in (1, 2, 3):
        some = replace(settings, iterations=n)
        change = erase(model, NEON, others(NEON), some, trainer=QUIET).dense(toy.path)[0].double()
        positions.append(torch.linalg.lstsq(S, change[:, None]).solution[:, 0])
    d = (model.encode(["neon"]) - model.encode([""]))[0, 1].double()
    r0 = 1000 * float(toy.layer.weight[0].double() @ d)
    for w, steps in zip(positions, by_hand, strict=True):
        torch.testing.assert_close(w, -0.1 * steps * (r0 * S.T @ d).sign(), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("accumulate", [True, False])
def test_a_resumed_run_has_the_gradients_of_the_iterations_before(
    tmp_path, accumulate: bool
) -> None:
    class Stop(Exception):
        pass

    def stop(step: ErasureStep) -> None:
        if step.iteration == 4:
            raise Stop

    file, settings = tmp_path / "run", replace(PRESETS["authors"], iterations=6, images=2)
    settings = replace(settings, learning_rate=10.0, accumulate=accumulate)
    about = (shared(), NEON, others(NEON), settings)
    with pytest.raises(Stop):
        erase(*about, trainer=Trainer(callback=stop, checkpoint=file, every=3, progress=False))
    resumed = erase(*about, trainer=Trainer(checkpoint=file, progress=False))
    assert resumed.digest == erase(*about, trainer=QUIET).digest


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
    names = set(ErasureSettings.__dataclass_fields__)
    assert set(recorded) == {*names, "eraser", "guidance", "steps", "dtype"}


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
    """To rounding: the null space is exact, so no tolerance leaks."""
    delta, steps = run
    rows = shared().encode(["", *others(NEON)]).flatten(0, 1)
    for path in delta.paths:
        change = delta.dense(path)
        assert change.ne(0).any()
        leaked = float((rows @ change.T).norm(dim=1).max())
        assert leaked <= 1e-5 * float(rows.norm(dim=1).max()) * float(change.norm())
    assert delta.kept == ("", *others(NEON))
    assert steps[-1].norm > 0
