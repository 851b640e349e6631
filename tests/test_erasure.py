"""Training a delta: it forgets its concept and nothing else, the same way every time."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor

from sepme.composition import Composition
from sepme.concept import Concept
from sepme.delta import ConceptDelta
from sepme.erasure import (
    PRESETS,
    ErasureSettings,
    ErasureStep,
    added,
    closed_form_shift,
    erase,
    preset,
    zeros,
)
from sepme.model import Backbone
from sepme.nullspace import constrain
from sepme.training import Trainer
from tests.miniature import (
    EXACT,
    FROM_ZERO,
    INK,
    KEPT,
    NAMES,
    NEON,
    OIL,
    PREDICTIONS,
    QUICK,
    QUIET,
    changed,
    constraint_of,
    fresh,
    noise_prediction,
    others,
    shared,
    three_deltas,
    watched,
)
from tests.refusals import refused
from tests.tolerance import assert_close

DENSE = replace(FROM_ZERO, parametrisation="dense", method="svd")
FULL = replace(PRESETS["undecoupled"], iterations=4, batch=2, images=2, learning_rate=1e-2)


def train(
    settings: ErasureSettings = QUICK, backbone: Backbone | None = None, **options
) -> tuple[ConceptDelta, list[ErasureStep]]:
    steps: list[ErasureStep] = []
    backbone = backbone or shared()
    keep = options.pop("keep", others(NEON))
    delta = erase(backbone, NEON, keep, settings, trainer=watched(steps), **options)
    return delta, steps


def with_deltas(backbone: Backbone, prompt: str, *deltas: ConceptDelta) -> Tensor:
    """eps(x_t, c, t) with all of these deltas on."""
    with Composition(backbone, deltas, force=True) as composition:
        composition.erase(*(delta.concept for delta in deltas))
        return noise_prediction(backbone, prompt)


# ---------------------------------------------------------------- what is trained
@pytest.mark.parametrize(
    "settings",
    [FROM_ZERO, DENSE, replace(DENSE, method="elimination"), FULL],
    ids=["lora", "dense", "dense by elimination", "full"],
)
def test_the_factors_stand_for_the_change_that_was_trained(settings: ErasureSettings) -> None:
    """||Delta||_1 / M of the trained weights is that of the delta's `up @ down`."""
    keep = () if settings is FULL else others(NEON)
    seen: list[tuple[float, float]] = []  # before a step, after it
    trainer = Trainer(
        lambda step: seen.append((step.norm, step.deltas()[0].norm())), progress=False
    )
    erase(shared(), NEON, keep, replace(settings, iterations=3, lam=1e-9), trainer=trainer)
    assert [before for before, _ in seen[1:]] == pytest.approx([n for _, n in seen[:-1]], rel=1e-4)


def test_the_dense_form_is_equation_9() -> None:
    """Delta = (w x beta S)^T lies in the span of S's columns, and w starts at zero.

    Adam's first step moves every entry of w by the learning rate, up to its sign.
    """
    settings = replace(DENSE, beta=0.5, iterations=1, relative_rate=False)
    delta, _ = train(settings)
    S = constraint_of(NEON, settings, shared()).space.basis
    for path in delta.paths:
        w = torch.linalg.lstsq(0.5 * S, delta.dense(path).double().T).solution.T
        assert_close(delta.dense(path), (0.5 * w @ S.T).float(), scale=float(w.norm()))
        assert float(w.abs().median()) == pytest.approx(settings.learning_rate, rel=1e-3)


@pytest.mark.parametrize("objective", ["squared", "product"])
@pytest.mark.parametrize(
    "settings",
    [QUICK, FROM_ZERO, replace(DENSE, beta=1e-2), replace(FULL, relative_rate=True)],
    ids=["closed form", "lora", "dense", "full"],
)
def test_the_first_step_removes_the_rate_of_the_correlation(
    settings: ErasureSettings, objective: str
) -> None:
    """Whatever the scale of the basis: rms correlation falls by the rate, to first order.

    The batch is the same in both iterations. The product, over that of the original model, is the
    correlation weighted by r0^2.
    """
    rate = 1e-3
    settings = replace(settings, iterations=2, pool=2, lam=0.0, objective=objective)
    _, (whole, *_) = train(replace(settings, start="zero", objective="product"))  # r r0 = r0^2
    for factor in (1, 2):  # twice the rate removes twice as much
        _, (before, after) = train(replace(settings, learning_rate=factor * rate))
        if objective == "squared":
            removed = before.loss**0.5 - after.loss**0.5
        else:
            removed = (before.loss - after.loss) / whole.loss
        assert removed == pytest.approx(factor * rate, rel=0.1)


def test_each_concept_of_a_group_has_its_own_first_step() -> None:
    """Equation 3 weighs the losses; the weights do not change what a step removes."""
    steps: list[ErasureStep] = []
    settings = replace(QUICK, iterations=2, pool=1, learning_rate=1e-3, batch=1)
    erase(shared(), [NEON, INK], KEPT, settings, trainer=watched(steps))
    before, after = (torch.tensor(step.correlation) for step in steps)
    assert float(before.abs().max() / before.abs().min()) > 1.01
    assert (before.abs() - after.abs()).tolist() == pytest.approx([1e-3, 1e-3], rel=0.1)


@pytest.mark.parametrize("settings", [FROM_ZERO, DENSE], ids=["lora", "dense"])
@pytest.mark.parametrize("method", ["svd", "elimination"])
def test_the_delta_lies_where_the_constraint_lets_it(
    settings: ErasureSettings, method: str
) -> None:
    """e(c_j) Delta = 0 for all that is kept; the LoRA form lies in Q's span (claim 1) besides."""
    backbone = shared()
    delta, _ = train(replace(settings, method=method, iterations=2))
    constraint = constrain(
        backbone, NEON, others(NEON), keep_rtol=None, concept_rtol=settings.concept_rtol
    )
    kept = constraint.kept_rows.float()
    for path in delta.paths:
        change = delta.dense(path)
        size = float(change.norm() * kept.norm(dim=1).max())
        assert size > 0
        assert_close(kept @ change.T, torch.zeros(len(kept), len(change)), scale=size)
        if settings.parametrisation == "lora":
            Q = constraint.basis.float()
            assert_close(change @ Q.T @ Q, change, scale=float(change.norm()))
    assert set(delta.paths) == set(backbone.projections())
    assert delta.kept == ("", *others(NEON))


# ---------------------------------------------------------------- what it does
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("settings", [QUICK, FROM_ZERO, DENSE], ids=["default", "zero", "dense"])
def test_it_forgets_the_concept_and_keeps_the_rest(
    settings: ErasureSettings, prediction: str
) -> None:
    backbone = shared(prediction)
    before = {prompt: noise_prediction(backbone, prompt) for prompt in ("", *KEPT, *NAMES)}
    settings = replace(settings, iterations=12)
    delta, steps = train(settings, backbone)
    if settings.start == "zero":  # where Delta = 0 the two models agree, whatever they predict
        assert steps[0].correlation[0] == pytest.approx(1.0, rel=1e-5)
    assert abs(steps[-1].correlation[0]) < 0.3
    for prompt in ("", *KEPT, "ink", "oil"):  # eps(x_t, c_0) is the original's too
        assert_close(with_deltas(backbone, prompt, delta), before[prompt])
    assert changed(before["neon"], with_deltas(backbone, "neon", delta)) > 0.01


def test_a_concept_that_was_not_kept_does_move() -> None:
    """The control of what is kept."""
    backbone = shared()
    careless, _ = train(keep=KEPT)
    original = noise_prediction(backbone, "ink")
    assert changed(original, with_deltas(backbone, "ink", careless)) > 1e-3


def test_training_never_changes_the_model() -> None:
    backbone = fresh()
    state = {name: tensor.clone() for name, tensor in backbone.unet.state_dict().items()}
    train(replace(QUICK, iterations=2), backbone)
    after = backbone.unet.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], state[name]) for name in state)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_tolerance_of_what_is_kept_bounds_what_leaks(prediction: str) -> None:
    """With the default tolerance a little leaks; the constraint says how much at most."""
    backbone = shared(prediction)
    settings = replace(QUICK, keep_rtol=PRESETS["default"].keep_rtol, iterations=2)
    delta, _ = train(settings, backbone)
    constraint = constraint_of(NEON, settings, backbone)
    for path in delta.paths:
        change = delta.dense(path).double()
        moved = (constraint.kept_rows @ change.T).norm(dim=1).max()
        largest = torch.linalg.matrix_norm(change, 2)
        assert moved <= largest * constraint.leakage_bound * (1 + 1e-4)


# ---------------------------------------------------------------- nothing computed twice
def test_a_pool_of_noised_images_is_passed_by_the_original_model_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, passes = fresh(), []
    epsilon = model.epsilon

    def counting(*args) -> Tensor:
        passes.append(torch.is_grad_enabled())
        return epsilon(*args)

    monkeypatch.setattr(model, "epsilon", counting)
    settings = replace(FROM_ZERO, iterations=12)
    for pool, of_the_original in ((0, 12), (6, 3)):  # batches of two
        passes.clear()
        _, steps = train(replace(settings, pool=pool), model)
        assert (passes.count(False), passes.count(True)) == (of_the_original, 12)
        assert steps[-1].correlation[0] < 0.3
    seen = {step.timesteps for step in steps}
    assert 1 < len(seen) <= 3


def test_other_settings_of_a_training_draw_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, drawn = fresh(), []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda *a, **k: drawn.append(a) or generate(*a, **k))
    monkeypatch.setattr("sepme.erasure._DRAWN", {})
    train(replace(QUICK, iterations=1, images=3), model)
    train(replace(QUICK, iterations=2, images=3, learning_rate=0.5), model)
    assert len(drawn) == 1
    model.steps = 2  # another number of steps gives other images
    train(replace(QUICK, iterations=1, images=3), model)
    train(replace(QUICK, iterations=1, images=3), model, seed=1)
    assert len(drawn) == 3
    model.pipe.scheduler = EulerDiscreteScheduler.from_config(model.pipe.scheduler.config)
    train(replace(QUICK, iterations=1, images=3), model)  # so does another scheduler
    assert len(drawn) == 4


@pytest.mark.parametrize(("share", "steps"), [(1.0, 3), (0.5, 2), (0.01, 1)])
def test_images_take_a_share_of_the_models_steps(
    share: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = fresh(), []
    generate = model.generate
    monkeypatch.setattr(
        model, "generate", lambda *a, **k: asked.append(k["steps"]) or generate(*a, **k)
    )
    monkeypatch.setattr("sepme.erasure._DRAWN", {})
    delta, _ = train(replace(QUICK, iterations=1, image_steps=share), model)
    assert asked == [steps]
    assert delta.provenance.settings["steps"] == steps


# ---------------------------------------------------------------- whatever it is computed in
@pytest.mark.parametrize("settings", [FROM_ZERO, DENSE, FULL], ids=["lora", "dense", "full"])
def test_what_is_added_to_the_layers_is_the_changed_weight(settings: ErasureSettings) -> None:
    """`x W0^T + (x R^T) W^T = x (W0 + W R)^T`, so Delta is never built."""
    model, keep = shared(), () if settings is FULL else others(NEON)
    delta = erase(model, NEON, keep, replace(settings, iterations=2), trainer=QUIET)
    terms = [(delta.down[path], {path: delta.up[path]}) for path in delta.paths]
    x_t = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    t, c = torch.tensor([100, 700]), model.encode(["neon", "boat"])
    theta = model.cross_attention()
    changed_weights = {path: theta[path] + delta.dense(path) for path in delta.paths}
    with torch.no_grad():
        with added(model, terms):
            eps = model.epsilon(x_t, t, c)
        assert_close(eps, model.epsilon(x_t, t, c, changed_weights))
        assert changed(model.epsilon(x_t, t, c), eps) > 1e-4  # and the hooks are gone again


@pytest.mark.parametrize("concepts", [NEON, [NEON, INK]], ids=["alone", "jointly"])
def test_a_small_micro_batch_gives_the_same_delta(concepts: Concept | list[Concept]) -> None:
    settings, keep = replace(FROM_ZERO, batch=5), (*KEPT, "oil")

    def trained(micro_batch: int | None) -> list[ConceptDelta]:
        found = erase(shared(), concepts, keep, settings, trainer=QUIET, micro_batch=micro_batch)
        return found if isinstance(found, list) else [found]

    for whole, parts, one in zip(trained(None), trained(2), trained(1), strict=True):
        for path in whole.paths:
            assert changed(whole.dense(path), parts.dense(path)) < 1e-3
            assert changed(whole.dense(path), one.dense(path)) < 1e-3


@pytest.mark.parametrize("settings", [FROM_ZERO, DENSE, FULL], ids=["lora", "dense", "full"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_trains_a_float32_delta(
    dtype: torch.dtype, settings: ErasureSettings
) -> None:
    model, steps = fresh(), []
    model.pipe.to(dtype)
    keep = () if settings is FULL else others(NEON)
    settings = replace(settings, iterations=12, keep_rtol=0.03)
    delta = erase(model, NEON, keep, settings, trainer=watched(steps))
    assert {tensor.dtype for tensor in delta.up.values()} == {torch.float32}
    assert steps[0].correlation[0] == pytest.approx(1.0, abs=0.05)
    assert steps[-1].correlation[0] < 0.3
    assert next(model.unet.parameters()).dtype == dtype


def test_in_float16_the_loss_is_scaled_by_the_numbers_of_the_latents() -> None:
    """Divided by the many entries of r, a gradient would be too small for the number type."""
    model = fresh()
    assert model.loss_scale == 2.0**60
    model.pipe.to(torch.float16)
    assert model.loss_scale == math.prod(model.latent_shape)
    W, tiny = torch.ones(1, requires_grad=True), 1e-8 / model.loss_scale

    def loss(*_: object) -> tuple[Tensor, dict[str, float]]:
        return (W.to(torch.float16).float() * tiny).sum(), {}

    for scale, gradient in ((1.0, 0.0), (model.loss_scale * 1e4, tiny)):
        sgd, found = torch.optim.SGD([W], 0.0), []
        note = partial(lambda to: to.append(float(W.grad)), found)
        QUIET.train(loss, sgd, 1, key=0, title="", scale=scale, before_step=note)
        assert found == [pytest.approx(gradient, rel=0.01)]


@pytest.mark.parametrize("settings", [FROM_ZERO, DENSE, FULL], ids=["lora", "dense", "full"])
def test_in_float32_the_scale_of_the_loss_changes_no_bit(
    settings: ErasureSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = () if settings is FULL else others(NEON)
    scaled, _ = train(settings, keep=keep)
    for scale, same in ((1.0, True), (3.0, False)):  # no power of two: every product is rounded
        monkeypatch.setattr(Backbone, "loss_scale", scale)
        assert (train(settings, keep=keep)[0].digest == scaled.digest) is same


def test_the_scale_keeps_gradients_behind_shut_gates_from_being_subnormal() -> None:
    """A processor takes ten times as long for numbers below the smallest normal one."""
    model = Backbone.load()
    gate = model.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj")
    rng = torch.Generator().manual_seed(0)
    x_t, t = torch.randn(4, *model.latent_shape, generator=rng), torch.full((4,), 500)
    c = model.encode(["a boat in neon style"] * 4)
    subnormal = {}
    for scale in (1.0, model.loss_scale):
        passed = []
        hook = gate.register_full_backward_hook(lambda _, into, out, to=passed: to.append(out[0]))
        W = {path: weight.requires_grad_() for path, weight in zeros(model, 1).items()}
        with added(model, [(torch.ones(1, model.d_in), W)]) as weights:
            (scale * model.epsilon(x_t, t, c, weights).square().mean()).backward()
        hook.remove()
        size = passed[0].abs()
        subnormal[scale] = int(((size > 0) & (size < torch.finfo(size.dtype).tiny)).sum())
    before, after = subnormal.values()
    assert before > 100 > after


# ---------------------------------------------------------------- the same every time
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path) -> None:
    first, _ = train(seed=1)
    torch.manual_seed(99)  # the caller's random state decides nothing ...
    state = torch.get_rng_state()
    second, _ = train(seed=1)
    assert torch.equal(torch.get_rng_state(), state)  # ... and is left alone
    other, _ = train(seed=2)
    files = [
        delta.save(tmp_path / f"{index}.safetensors").read_bytes()
        for index, delta in enumerate((first, second, other))
    ]
    assert files[0] == files[1] != files[2]


def test_what_is_attached_to_the_pipeline_does_not_matter() -> None:
    alone, _ = train()
    backbone = shared()
    with Composition(backbone, three_deltas()) as composition, composition.erased(*NAMES):
        attached, _ = train()
    assert alone.digest == attached.digest


def test_the_provenance_says_how_to_make_it_again() -> None:
    delta, steps = train(seed=5)
    made = delta.provenance
    assert (made.concept, made.kind, made.forgotten) == ("neon", "concept", ("neon",))
    assert (made.seed, made.iterations, made.base_name) == (5, len(steps), "tiny")
    assert made.base == fresh().fingerprint
    recorded = dict(made.settings)
    others_too = tuple(recorded.pop(key) for key in ("eraser", "guidance", "steps", "dtype"))
    assert others_too == ("sepme", 4.0, 3, "float32")
    assert ErasureSettings(**recorded) == QUICK


# ---------------------------------------------------------------- step by step
def test_the_callback_sees_every_step_with_finite_numbers() -> None:
    _, steps = train()
    assert [step.iteration for step in steps] == list(range(1, QUICK.iterations + 1))
    for step in steps:
        numbers = [step.loss, step.momentum, *step.correlation, *step.eta]
        assert all(math.isfinite(x) for x in (*numbers, *step.correlation_by_timestep))
        assert len(step.timesteps) == len(step.correlation_by_timestep) == QUICK.batch
        assert len(step.correlation) == len(step.eta) == 1
        assert math.isnan(step.norm)  # lambda is 0


def test_a_step_gives_copies_of_the_unfinished_delta() -> None:
    seen: list[ConceptDelta] = []

    def look(step: ErasureStep) -> None:
        seen.append(step.deltas()[0])
        for up in step.deltas()[0].up.values():
            up.zero_()  # what is done to a copy decides nothing

    delta = erase(
        shared(), NEON, others(NEON), FROM_ZERO, trainer=Trainer(callback=look, progress=False)
    )
    assert [one.provenance.iterations for one in seen] == [1, 2, 3, 4, 5]
    assert seen[-1].digest == delta.digest == train(FROM_ZERO)[0].digest


def test_without_iterations_the_delta_is_the_start(monkeypatch) -> None:
    monkeypatch.setattr(Backbone, "generate", None)  # no picture is drawn
    assert train(replace(FROM_ZERO, iterations=0))[0].norm() == 0
    start, steps = train(replace(QUICK, iterations=0))
    constraint = constraint_of(NEON, QUICK, shared())
    shift = closed_form_shift(constraint)
    for path, layer in shared().projections().items():
        assert_close(start.up[path], (layer.weight.double() @ shift).float())
    assert steps == []


@pytest.mark.parametrize("statistic", ["correlation", "loss"])
@pytest.mark.parametrize("objective", ["squared", "product"])
def test_the_momentum_is_equation_4_over_its_statistic(objective: str, statistic: str) -> None:
    """Of the loss, or of the normalised correlation."""
    _, steps = train(replace(FROM_ZERO, objective=objective, statistic=statistic))
    measured = [step.loss if statistic == "loss" else step.correlation[0] for step in steps]
    m = measured[0]
    for step, measure in zip(steps, measured, strict=True):
        m = 0.9 * m + 0.1 * measure
        assert step.momentum == pytest.approx(m)


@pytest.mark.parametrize("earliest", [1, 3])
def test_it_stops_on_the_momentum_but_not_before_it_may(earliest: int) -> None:
    delta, steps = train(replace(QUICK, tau=1e9, earliest_stop=earliest))
    assert len(steps) == delta.provenance.iterations == earliest


def test_it_stops_at_the_threshold_itself() -> None:
    _, steps = train()
    reached = min(step.momentum for step in steps[:3])
    stopped = train(replace(QUICK, tau=reached))[1]
    first = next(i for i, step in enumerate(steps) if step.momentum <= reached)
    assert len(stopped) == first + 1


def test_stratified_timesteps_cover_the_whole_range_and_uniform_ones_do_not() -> None:
    strata = [[t * 4 // 1000 for t in step.timesteps] for step in train(replace(QUICK, batch=4))[1]]
    assert strata == [[0, 1, 2, 3]] * len(strata)
    uniform = train(replace(QUICK, batch=4, timesteps="uniform"))[1]
    assert [[t * 4 // 1000 for t in step.timesteps] for step in uniform] != strata


# ---------------------------------------------------------------- several at once
def jointly(settings: ErasureSettings, **options) -> tuple[list[ConceptDelta], list[ErasureStep]]:
    steps: list[ErasureStep] = []
    trainer = watched(steps)
    deltas = erase(shared(), [NEON, INK], (*KEPT, "oil"), settings, trainer=trainer, **options)
    return deltas, steps


def test_joint_training_gives_what_separate_training_gives() -> None:
    """S-29..33 on the real objective: the first concept sees the same noise in both runs.

    The one thing that couples the two runs is eta, a positive factor of each concept's loss, which
    Adam's first step does not feel.
    """
    settings = replace(FROM_ZERO, iterations=1)
    (joint, _), _ = jointly(settings)
    alone = erase(shared(), NEON, (*KEPT, "oil", "ink"), settings, trainer=QUIET)
    assert joint.kept == alone.kept
    for path in alone.paths:
        assert_close(joint.dense(path), alone.dense(path), scale=float(alone.dense(path).norm()))


def test_joint_training_weighs_each_loss_by_its_eta() -> None:
    """Eq. 3 is minimised. With one sample a batch, L_cor(c_i) is its correlation squared."""
    _, steps = jointly(replace(FROM_ZERO, batch=1, iterations=4))
    for step in steps:
        weighted = [eta * c**2 for eta, c in zip(step.eta, step.correlation, strict=True)]
        assert step.loss == pytest.approx(sum(weighted), rel=1e-4)
    assert max(steps[-1].eta) > 1.1  # the control: eta weighs the two differently


def test_the_norm_of_a_joint_run_is_that_of_the_sum() -> None:
    """`||sum_k Delta_k||_1 / M` (S-34), which is less than the sum of the norms."""
    seen = []
    trainer = Trainer(callback=lambda step: seen.append((step.norm, step.deltas())), progress=False)
    settings = replace(FROM_ZERO, lam=1e-9)
    erase(shared(), [NEON, INK], (*KEPT, "oil"), settings, trainer=trainer)
    before, (norm, _) = seen[-2][1], seen[-1]  # a step measures what the one before has left
    paths = before[0].paths
    size = sum(float(sum(d.dense(p) for d in before).abs().sum()) for p in paths) / len(paths)
    apart = sum(float(d.dense(p).abs().sum()) for d in before for p in paths) / len(paths)
    assert norm == pytest.approx(size, rel=1e-4)
    assert norm < 0.99 * apart


def test_a_joint_run_stops_each_concept_by_itself_and_goes_on_with_the_others() -> None:
    """One concept at its threshold ends neither the run nor the other's training.

    `eta_i L_i` is the same for all, so a statistic over all of them only counts signs: two
    concepts just below zero would stop a third that is as it was.
    """
    free = replace(FROM_ZERO, iterations=14, earliest_stop=3)
    _, steps = jointly(free)
    momenta = []
    for k in range(len(steps[0].correlation)):
        m, values = steps[0].correlation[k], []
        for step in steps:
            values.append(m := 0.9 * m + 0.1 * step.correlation[k])
        momenta.append(values)
    lowest = [min(values) for values in momenta]
    first, last = lowest.index(min(lowest)), lowest.index(max(lowest))
    tau = (lowest[first] + lowest[last]) / 2  # only some concepts reach it
    snapshots, stopped = {}, []

    def look(step: ErasureStep) -> None:
        snapshots[step.iteration] = step.deltas()[first]
        stopped.append(step)

    settings = replace(free, tau=tau)
    about = (shared(), [NEON, INK], (*KEPT, "oil"), settings)
    deltas = erase(*about, trainer=Trainer(callback=look, progress=False))
    at = next(n for n, m in enumerate(momenta[first], 1) if m <= tau and n >= 3)
    assert deltas[first].provenance.iterations == at < 14
    assert deltas[last].provenance.iterations == len(stopped) == 14
    assert stopped[at].eta[first] == 0 < stopped[at].eta[last]
    assert stopped[at].momentum > tau  # of the concept that is farthest from its stop
    assert deltas[first].digest == snapshots[at].digest  # it stays as it was at its stop


def test_joint_training_forgets_all_and_each_delta_is_its_own() -> None:
    backbone = shared()
    deltas, steps = jointly(replace(FROM_ZERO, iterations=12))
    assert len(steps[0].correlation) == len(steps[0].eta) == 2
    assert min(steps[0].eta) == 1.0  # eq. 3: the least erased concept has weight one
    assert max(abs(c) for c in steps[-1].correlation) < 0.3
    for delta, concept, other in ((deltas[0], NEON, INK), (deltas[1], INK, NEON)):
        assert delta.concept == concept.name
        assert other.name in delta.kept
        before = noise_prediction(backbone, other.name)
        assert_close(with_deltas(backbone, other.name, delta), before)
        assert changed(before, with_deltas(backbone, other.name, *deltas)) > 0.01


def test_a_group_in_closed_form_is_each_concept_alone() -> None:
    """Nothing is trained jointly, so each is what it would be if the others were only kept."""
    settings = replace(EXACT, keep_rtol=1e-3)
    together = erase(shared(), [NEON, INK, OIL], KEPT, settings)
    for concept, delta in zip((NEON, INK, OIL), together, strict=True):
        alone = erase(shared(), concept, others(concept), settings)
        about = (delta.forgotten, set(delta.kept), dict(delta.provenance.settings))
        assert about == (
            alone.forgotten,
            set(alone.kept),
            dict(alone.provenance.settings),
        )
        for path in delta.paths:
            assert changed(alone.dense(path), delta.dense(path)) < 1e-5


# ---------------------------------------------------------------- one after the other
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_later_concept_leaves_the_earlier_ones_erased_and_their_files_alone(
    prediction: str, tmp_path
) -> None:
    backbone = shared(prediction)
    keep = ("", *KEPT)
    earlier = erase(backbone, [NEON, INK], keep, QUICK, trainer=QUIET)
    files = [delta.save(tmp_path / f"{delta.concept}.safetensors") for delta in earlier]
    bytes_before = [file.read_bytes() for file in files]
    erased = {name: with_deltas(backbone, name, *earlier) for name in ("neon", "ink")}
    loaded = [ConceptDelta.load(file, backbone.fingerprint) for file in files]

    later = erase(backbone, OIL, keep, QUICK, after=loaded, trainer=QUIET)

    assert later.kept == (*keep, "neon", "ink")
    assert later.provenance.after == tuple(delta.digest for delta in earlier)
    assert [file.read_bytes() for file in files] == bytes_before
    for name, before in erased.items():
        assert_close(with_deltas(backbone, name, *earlier, later), before)
    original = noise_prediction(backbone, "oil")
    assert changed(original, with_deltas(backbone, "oil", *earlier, later)) > 0.01
    with Composition(backbone, [*earlier, later]) as composition:  # needs no force
        composition.erase(*NAMES)
        composition.set(["oil"])


# ---------------------------------------------------------------- for what must never come back
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_undecoupled_erasure_moves_every_cross_attention_weight(prediction: str) -> None:
    backbone = shared(prediction)
    steps: list[ErasureStep] = []
    delta = erase(backbone, NEON, (), FULL, trainer=watched(steps))
    layers = backbone.cross_attention()
    assert set(delta.paths) == set(layers)
    ends = {path.rsplit("attn2.", 1)[1] for path in delta.paths}
    assert ends == {"to_q", "to_k", "to_v", "to_out.0"}
    assert all(delta.dense(path).ne(0).any() for path in delta.paths)
    assert all(delta.dense(path).shape == layers[path].shape for path in delta.paths)
    assert delta.kept == ()
    assert steps[0].correlation[0] == pytest.approx(1.0, rel=1e-4)
    for prompt in ("", "boat", "neon"):  # nothing is kept, not even the empty prompt
        original = noise_prediction(backbone, prompt)
        assert changed(original, with_deltas(backbone, prompt, delta)) > 1e-3


@pytest.mark.parametrize(("reference", "vanishes"), [("empty", True), ("anchor", False)])
def test_where_both_predictions_come_from(reference: str, vanishes: bool) -> None:
    """r(c; theta + Delta) takes eps(c_0) from the changed model, an anchor's from the original.

    With all values silenced the text says nothing, so that r = 0 against the changed model's own
    empty prompt, although its predictions of both c and c_0 are far from the original's.
    """
    backbone = shared()
    values = {p: layer.weight for p, layer in backbone.projections().items() if "to_v" in p}
    silence = ConceptDelta(
        {path: torch.eye(backbone.d_in) for path in values},
        {path: -weight for path, weight in values.items()},
        replace(three_deltas()[0].provenance, concept="everything", kept=()),
    )
    assert changed(noise_prediction(backbone, ""), with_deltas(backbone, "", silence)) > 0.01
    _, steps = train(replace(FROM_ZERO, iterations=1, reference=reference), after=[silence])
    assert (abs(steps[0].correlation[0]) < 1e-3) == vanishes


@pytest.mark.parametrize(
    ("anchors", "reference", "expected"),
    [
        (("a neon cat", "neon"), "anchor", 1.0),  # the other prompt's
        (("neon", "a neon cat"), "empty", 1.0),
        ((), "anchor", 1.0),  # a concept without anchors is measured against the empty prompt
    ],
)
def test_each_prompt_is_measured_against_its_own_anchor(
    anchors: tuple[str, ...], reference: str, expected: float
) -> None:
    concept = Concept("neon", ("neon", "a neon cat"), anchors=anchors)
    settings = replace(FROM_ZERO, iterations=1, batch=8, images=4, reference=reference)
    steps: list[ErasureStep] = []
    erase(shared(), concept, KEPT, settings, trainer=watched(steps))
    assert steps[0].correlation_by_timestep == pytest.approx([expected] * 8, rel=1e-5)


# ---------------------------------------------------------------- bad input
def test_what_makes_no_sense_is_refused_before_any_work(monkeypatch) -> None:
    backbone = shared()
    monkeypatch.setattr(Backbone, "generate", None)  # no picture is drawn
    neon = three_deltas()[0]
    with refused("no concept"):
        erase(backbone, [], KEPT, QUICK)
    with refused("'neon'", "twice"):
        erase(backbone, [NEON, INK, NEON], KEPT, QUICK)
    with refused("'neon'", "twice"):
        erase(backbone, NEON, KEPT, QUICK, after=[neon])
    with refused("'ink'", "also to be kept"):
        erase(backbone, INK, (*KEPT, " INK "), QUICK)
    with refused("'neon'", "another base model"):
        erase(fresh(seed=1), INK, KEPT, QUICK, after=[neon])


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"parametrisation": "sparse"}, ("parametrisation = 'sparse'", "lora, dense, full")),
        ({"method": "magic"}, ("method = 'magic'", "damped, svd, elimination")),
        ({"start": "warm"}, ("start = 'warm'", "closed_form, zero")),
        ({"reference": "noise"}, ("reference = 'noise'", "anchor, empty")),
        ({"objective": "cubed"}, ("objective = 'cubed'", "squared, product")),
        ({"timesteps": "last"}, ("timesteps = 'last'", "stratified, uniform")),
        ({"iterations": -1}, ("iterations = -1", "at least 0")),
        ({"batch": 0}, ("batch = 0", "at least 1")),
        ({"images": -1}, ("images = -1", "at least 1")),
        ({"earliest_stop": 0}, ("earliest_stop = 0", "at least 1")),
        ({"learning_rate": -0.1}, ("learning_rate = -0.1", "above 0")),
        ({"learning_rate": math.nan}, ("learning_rate = nan", "above 0")),
        ({"learning_rate": math.inf}, ("learning_rate = inf", "above 0")),
        ({"beta": 0.0}, ("beta = 0.0", "above 0")),
        ({"lam": -1.0}, ("lam = -1.0", "at least 0")),
        ({"alpha": 1.0}, ("alpha = 1.0", "below 1")),
        ({"keep_rtol": 2.0}, ("keep_rtol = 2.0", "below 1")),
        ({"concept_rtol": -0.1}, ("concept_rtol = -0.1", "at least 0")),
        ({"tau": math.inf}, ("tau = inf", "give a number")),
        ({"parametrisation": "dense"}, ("closed form", "start='zero'", "'dense'")),
        ({"parametrisation": "dense", "start": "zero"}, ("damped", "method='svd'", "'dense'")),
    ],
)
def test_settings_that_make_no_sense_are_refused(choice: dict, words: tuple[str, ...]) -> None:
    with refused(*words):
        ErasureSettings(**choice)


def test_presets_by_name() -> None:
    assert preset("default") == ErasureSettings()
    with refused("'magic'", "default, closed_form, from_zero, faithful, paper"):
        preset("magic")
