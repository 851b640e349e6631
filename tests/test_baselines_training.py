"""What all trained baselines share: selectors, the student, resuming, refusals."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sepme.baselines import BASELINES
from sepme.baselines._closed import ClosedForm
from sepme.baselines._inversion import InversionSettings
from sepme.baselines._train import (
    SELECTORS,
    Objective,
    Student,
    TrainingSettings,
    noised,
    select,
    train,
)
from sepme.baselines.abconcept import AbConceptSettings
from sepme.baselines.esd import ESDSettings
from sepme.baselines.fmn import FMNSettings
from sepme.baselines.sdd import SDDSettings
from sepme.baselines.speed import SPEEDSettings
from sepme.baselines.uce import UCESettings
from sepme.composition import Composition, applied
from sepme.delta import DenseDelta
from sepme.erasure import erase as sepme_erase
from sepme.training import Step, Trainer
from tests.miniature import EXACT, KEPT, NEON, QUIET, fresh, noise_prediction, others, shared
from tests.refusals import refused
from tests.tolerance import assert_close

TRAINED = [name for name, b in BASELINES.items() if not isinstance(b.method, ClosedForm)]


def quick(name: str, iterations: int = 3, preset: str = "official", **changes: object) -> object:
    """A preset, cut short."""
    settings = replace(BASELINES[name].presets[preset], iterations=iterations)
    for field, value in {"steps": 4, "images": 3}.items():
        if hasattr(settings, field):
            settings = replace(settings, **{field: value})
    if getattr(settings, "inversion", None) is not None:
        settings = replace(settings, inversion=replace(settings.inversion, words=2, iterations=2))
    return replace(settings, **changes)


def erase(name: str, settings: object = None, *, seed: int = 0, **watched: object) -> DenseDelta:
    trainer = Trainer(**{"progress": False} | watched)
    method = BASELINES[name]
    keep = KEPT if method.uses_keep else ()
    about = (shared(), NEON, settings or quick(name))
    return method.erase(*about, keep=keep, seed=seed, trainer=trainer)


# ---------------------------------------------------------------------- what is trained
def test_selectors_choose_by_module_path() -> None:
    backbone = shared()
    everything = dict(backbone.unet.named_parameters())
    chosen = {trains: select(backbone, trains) for trains in SELECTORS}
    assert set(chosen["all"]) == set(everything)
    assert set(chosen["attn2_kv"]) == {f"{path}.weight" for path in backbone.projections()}
    assert set(chosen["attn2"]) == {name for name in everything if ".attn2." in name}
    # Four matrices and the bias of to_out in each cross-attention.
    assert len(chosen["attn2"]) == 5 * len(backbone.projections()) / 2
    left = set(everything) - set(chosen["not_attn2"]) - set(chosen["attn2"])
    modules = {"time_embedding", "conv_norm_out", "conv_out"}
    assert left == {name for name in everything if name.split(".")[0] in modules}
    assert any("time_emb_proj" in name for name in chosen["not_attn2"])  # inside the blocks
    assert not any(value.requires_grad for value in chosen["all"].values())
    backbone = fresh()
    backbone.pipe.unet.fuse_qkv_projections()
    with refused("fused"):
        select(backbone, "attn2")


def test_the_student_is_the_original_until_it_learns() -> None:
    backbone = shared()
    student = Student(backbone, TrainingSettings(trains="all"))
    generator = torch.Generator().manual_seed(7)
    x_t = torch.randn(4, *backbone.latent_shape, generator=generator)
    t, c = torch.tensor([1, 250, 700, 999]), backbone.encode(["neon"] * 4)
    assert torch.equal(student.epsilon(x_t, t, c), noise_prediction(backbone, "neon"))
    name = next(iter(student.parameters))
    with torch.no_grad():
        student.parameters[name].add_(0.5)
    assert not torch.equal(student.epsilon(x_t, t, c), noise_prediction(backbone, "neon"))
    assert torch.equal(backbone.epsilon(x_t, t, c), noise_prediction(backbone, "neon"))
    assert_close(student.changes()[name], torch.full_like(student.original[name], 0.5), scale=2.0)
    assert list(student.changes()) == [name]  # only what was learnt


def test_the_running_mean_by_hand() -> None:
    student = Student(shared(), TrainingSettings(ema=0.9))
    name, start = next(iter(student.original.items()))
    with torch.no_grad():
        student.parameters[name].add_(1.0)
    student.follow()
    assert_close(student.average[name], start + 0.1, scale=2.0)
    student.follow()
    assert_close(student.average[name], start + 0.19, scale=2.0)
    assert_close(student.changes()[name], torch.full_like(start, 0.19), scale=2.0)


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_trains_what_was_chosen_tells_every_step_and_leaves_the_pipeline(name: str) -> None:
    backbone, steps = shared(), []
    parts = (backbone.pipe.unet, backbone.pipe.text_encoder, backbone.pipe.vae)
    before = [{n: p.clone() for n, p in part.named_parameters()} for part in parts]
    settings = quick(name, batch=2)
    change = erase(name, settings, seed=4, callback=steps.append)
    for part, values in zip(parts, before, strict=True):
        for path, parameter in part.named_parameters():
            assert torch.equal(parameter, values[path])
            assert parameter.grad is None
            assert not parameter.requires_grad
    assert not [hook for m in backbone.unet.modules() for hook in m._forward_hooks]
    assert set(change.paths) <= set(select(backbone, settings.trains))
    assert all(values.any() for values in change.changes.values())
    assert [step.iteration for step in steps] == [1, 2, 3]
    for step in steps:
        assert step.loss >= 0
        assert len(step.timesteps) == 2
        assert all(0 <= t < 1000 for t in step.timesteps)
    made, kept = change.provenance, tuple(KEPT) if BASELINES[name].uses_keep else ()
    assert (made.concept, made.seed, made.kept, made.iterations) == ("neon", 4, kept, 3)
    assert made.base == backbone.fingerprint
    assert made.settings["learning_rate"] == settings.learning_rate
    assert made.settings["eraser"] in ("ESD", "SDD", "AbConcept", "FMN")
    assert all("neon" in prompt for prompt in made.forgotten)


# ---------------------------------------------------------------------- the loop
def first_gradient(settings: TrainingSettings, loss: float = 1.0) -> dict[str, Tensor]:
    """What one iteration of `loss * sum of all parameters` changes."""
    student = Student(shared(), settings)

    def total(*_: object) -> tuple[Tensor, Tensor]:
        return loss * sum(p.sum() for p in student.parameters.values()), torch.tensor([1])

    objective = Objective("test", ("neon",), total)
    return dict(train(student, NEON, objective, trainer=QUIET).changes)


@pytest.mark.parametrize(("optimiser", "decay"), [("adam", 0.0), ("adamw", 0.5)])
def test_the_first_step_is_the_learning_rate_and_adamw_decays(optimiser: str, decay: float) -> None:
    settings = TrainingSettings(
        iterations=1, learning_rate=0.01, optimiser=optimiser, weight_decay=decay
    )
    original = select(shared(), "attn2")
    for name, change in first_gradient(settings).items():
        assert_close(change, -0.01 - 0.01 * decay * original[name], scale=2.0)


def test_a_gradient_is_clipped_over_all_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = torch.optim.Adam.step

    def watched(optimiser: torch.optim.Adam) -> None:
        gradients = [p.grad.flatten() for group in optimiser.param_groups for p in group["params"]]
        seen.append(float(torch.cat(gradients).norm()))
        step(optimiser)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    first_gradient(TrainingSettings(iterations=1, clip=1.0), loss=100.0)
    first_gradient(TrainingSettings(iterations=1), loss=100.0)
    assert seen[0] == pytest.approx(1.0, rel=1e-4)
    assert seen[1] > 100


@pytest.mark.parametrize("name", TRAINED)
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(name: str, tmp_path: Path) -> None:
    settings = quick(name, iterations=5)
    whole = erase(name, settings)
    checkpoint = {"checkpoint": tmp_path / "run", "every": 2}
    steps: list[Step] = []

    def kill(step: Step) -> None:
        if step.iteration == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        erase(name, settings, **checkpoint, callback=kill)
    resumed = erase(name, settings, **checkpoint, callback=steps.append)
    assert [step.iteration for step in steps] == [3, 4, 5]
    assert resumed.digest == whole.digest
    other = erase(name, settings, seed=1, **checkpoint, callback=steps.append)
    assert steps[3].iteration == 1  # the file of another run is no start
    assert other.digest != whole.digest


def test_forward_diffusion_by_hand() -> None:
    backbone = shared()
    images = torch.randn(3, *backbone.latent_shape)
    generator = torch.Generator().manual_seed(0)
    x_t, t, noise, chosen = noised(backbone, images, 16, generator)
    a = backbone.alphas_cumprod[t][:, None, None, None]
    by_hand = a.sqrt() * images[chosen] + (1 - a).sqrt() * noise
    assert_close(x_t, by_hand, scale=10.0)
    assert set(chosen.tolist()) == {0, 1, 2}
    assert t.max() < 1000


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize("name", BASELINES)
def test_a_pipeline_that_carries_something_is_refused(name: str) -> None:
    backbone = fresh()
    delta = sepme_erase(backbone, NEON, others(NEON), EXACT)
    with Composition(backbone, [delta]), refused("carries"):
        BASELINES[name].erase(backbone, NEON, trainer=QUIET)
    change = BASELINES["uce"].erase(backbone, NEON)
    with applied(backbone, change), refused("carries"):
        BASELINES[name].erase(backbone, NEON, trainer=QUIET)


@pytest.mark.parametrize("name", TRAINED)
def test_training_in_half_precision_or_with_prompts_to_keep_is_refused(name: str) -> None:
    backbone = fresh()
    if not BASELINES[name].uses_keep:
        with refused("no use for prompts to keep"):
            BASELINES[name].erase(backbone, NEON, keep=KEPT)
    backbone.pipe.to(torch.bfloat16)
    with refused("float32", "bfloat16"):
        BASELINES[name].erase(backbone, NEON, quick(name), trainer=QUIET)


def test_the_prior_on_the_retain_set_needs_one_and_is_the_only_one_that_takes_it() -> None:
    method = BASELINES["abconcept-retained"]
    with refused("prior='retained'"):
        method.erase(shared(), NEON, quick(method.name), trainer=QUIET)
    with refused("prior='retained'"):
        method.erase(shared(), NEON, quick(method.name, prior="original"), keep=KEPT, trainer=QUIET)


def test_the_prior_on_the_retain_set_holds_what_is_kept() -> None:
    """The larger its weight, the less the predictions for kept prompts move; neon's still do."""
    backbone, moved = shared(), {}
    for weight in (0.0, 100.0):
        how = {"batch": 4, "learning_rate": 3e-3, "prior_weight": weight, "prompt": "{name}"}
        change = erase("abconcept-retained", quick("abconcept-retained", 40, **how))
        before = {prompt: noise_prediction(backbone, prompt) for prompt in ("neon", *KEPT)}
        with applied(backbone, change):
            after = {prompt: noise_prediction(backbone, prompt) for prompt in before}
        moved[weight] = {prompt: (after[prompt] - before[prompt]).norm() for prompt in before}
    for prompt in KEPT:
        assert moved[100.0][prompt] < 0.5 * moved[0.0][prompt]
        assert moved[100.0][prompt] < moved[100.0]["neon"]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (ESDSettings, {"iterations": 0, "batch": 0, "learning_rate": 0, "steps": 0, "clip": 0.0}),
        (ESDSettings, {"iterations": 1.5, "batch": True, "steps": "3"}),
        (AbConceptSettings, {"images": 2.5}),
        (ESDSettings, {"trains": "to_q", "optimiser": "sgd", "weight_decay": 0.1, "ema": 1.0}),
        (ESDSettings, {"eta": -1.0, "sampler": "teacher", "pairing": "late", "prompt": "a dog"}),
        (ESDSettings, {"eta": float("nan"), "guidance": float("inf")}),
        (SDDSettings, {"ema": None}),
        (AbConceptSettings, {"target": "both", "teacher": "student", "images_of": "all"}),
        (AbConceptSettings, {"images": 0, "prior": "yes", "prior_weight": -1}),
        (FMNSettings, {"scores": "scores", "end": "last", "images": 0, "style_prompt": "a style"}),
        (partial(FMNSettings, scores="logits"), {"inversion": InversionSettings()}),
        (InversionSettings, {"words": 0, "iterations": 0, "batch": 0, "learning_rate": 0.0}),
        (UCESettings, {"lam": 0, "rows": "first", "prompt": "a painting", "preserve_scale": -1}),
        (SPEEDSettings, {"ridge": float("inf"), "rtol": 1.0, "rows": "none"}),
    ],
)
def test_bad_settings_are_refused(kind: Callable[..., object], wrong: dict[str, object]) -> None:
    for field, value in wrong.items():
        with refused(field):
            kind(**{field: value})


# ---------------------------------------------------------------------- the registry
def test_every_baseline_has_what_a_runner_needs() -> None:
    for name, method in BASELINES.items():
        assert method.name == name
        assert {"official", "atelier"} <= set(method.presets)
    assert {n for n, m in BASELINES.items() if "sepme_paper" in m.presets} == {
        *("esd-x", "abconcept", "fmn"),
    }
    with refused("ESD-u", "'sepme_paper'"):
        BASELINES["esd-u"].preset("sepme_paper")


def published(name: str, preset: str = "official", **expected: object) -> None:
    assert expected.items() <= asdict(BASELINES[name].presets[preset]).items()


def test_the_published_numbers() -> None:
    """The table "Baselines, exactly" of the method's description."""
    esd = {"eta": 1, "steps": 50, "guidance": 3, "batch": 1}
    published("esd-x", **esd, learning_rate=1e-5, iterations=1000, trains="attn2")
    published("esd-x", "sepme_paper", **esd, learning_rate=1e-5, iterations=1000, trains="attn2")
    published("esd-x", "rewrite", **esd, learning_rate=5e-5, iterations=200, trains="attn2")
    published("esd-u", **esd, learning_rate=1e-5, iterations=1000, trains="not_attn2")
    published("esd-x-strict", **esd, learning_rate=5e-5, iterations=200, trains="attn2_kv")
    adamw, adam = {"optimiser": "adamw", "clip": 1}, {"optimiser": "adam", "trains": "attn2"}
    published("sdd", **adamw, learning_rate=1e-5, weight_decay=1e-4, iterations=1500)
    published("sdd", trains="attn2", ema=0.999, guidance=3)
    for name in ("abconcept", "abconcept-noise"):
        published(name, **adamw, learning_rate=1.6e-5, weight_decay=1e-2, iterations=100)
        published(name, trains="attn2_kv", batch=8, images_of="anchor")
    prompts = {"prompt": "{name} painting", "anchor": "painting", "images_of": "concept"}
    terms = {"teacher": "original", "prior": "original", "prior_weight": 10}
    published("abconcept", "sepme_paper", **adam, **prompts, **terms)
    published("fmn", **adamw, learning_rate=2e-6, weight_decay=0.01, iterations=35, trains="all")
    published("fmn", scores="probabilities", images=10)
    prompts = {"prompt": "a painting of {name}", "reference": "a painting of"}
    published("fmn", "sepme_paper", **adam, **prompts, learning_rate=1e-5, scores="logits")
    published("uce", lam=0.5, rows="last_subject")
