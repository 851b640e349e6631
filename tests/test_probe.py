"""Noise differences through a fixed probe, layer by layer, and a training recorded step by step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sepme.composition import Composition
from sepme.concept import Concept
from sepme.correlation import correlation_loss
from sepme.delta import ConceptDelta
from sepme.erasure import ErasureSettings, ErasureStep, erase
from sepme.model import Backbone
from sepme.probe import (
    Probe,
    Recording,
    correlation_by_layer,
    correlation_map,
    correlations,
    cosines,
    magnitude,
    noise_differences,
    predicted_noise,
    record,
)
from tests.miniature import (
    FROM_ZERO,
    INK,
    KEPT,
    NAMES,
    NEON,
    PREDICTIONS,
    QUICK,
    fresh,
    others,
    shared,
    three_deltas,
    watched,
)
from tests.refusals import refused
from tests.tolerance import assert_close

#: A concept with anchors, so that the two references differ.
ANCHORED = Concept("neon", ("neon", "a neon cat", "a neon boat"), anchors=("", "a cat", "boat"))


@pytest.fixture(scope="module", params=PREDICTIONS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return shared(request.param)


@pytest.fixture(scope="module")
def probe(backbone: Backbone) -> Probe:
    return Probe.draw(backbone, ["neon", "a cat"], timesteps=3, seed=2)


# ---------------------------------------------------------------- the probe
def test_a_probe_is_forward_diffusion_of_the_models_own_pictures(backbone: Backbone) -> None:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, with one noise a picture at all t."""
    probe = Probe.draw(backbone, ["neon", "a cat"], timesteps=[900, 0, 400], seed=2)
    assert probe.timesteps == (0, 400, 900)
    x_0 = backbone.generate(["neon", "a cat"], 2, output="latents")
    a = backbone.alphas_cumprod[list(probe.timesteps)].view(3, 1, 1, 1, 1)
    noise = (probe.x_t - a.sqrt() * x_0) / (1 - a).sqrt()
    assert_close(noise[1], noise[2], scale=10.0)
    assert noise.std() == pytest.approx(1.0, abs=0.2)
    assert (noise[2, 0] - noise[2, 1]).abs().max() > 1  # each picture its own


def test_a_probe_depends_on_its_prompt_and_its_seed_only(backbone: Backbone) -> None:
    with Composition(backbone, three_deltas(backbone.prediction_type)) as composition:
        composition.erase(*NAMES)  # what is attached does not matter: the original model draws
        one = Probe.draw(backbone, "neon", 2, seed=1)
    assert one.timesteps == (250, 750)  # the middles of two halves of 0 ... 1000
    assert torch.equal(one.x_t, Probe.draw(backbone, "neon", 2, seed=1).x_t)
    assert not torch.equal(one.x_t, Probe.draw(backbone, "neon", 2, seed=2).x_t)
    both = Probe.draw(backbone, ["neon", "a cat"], 2, seed=1)
    assert_close(both.x_t[:, 0], one.x_t[:, 0], scale=10.0)


# ---------------------------------------------------------------- noise differences
def test_noise_is_predicted_for_each_pictures_own_prompt_and_timestep(backbone: Backbone) -> None:
    probe = Probe.draw(backbone, ["neon", "ink"], (250, 750))
    found = predicted_noise(backbone, probe)
    assert found.shape == probe.x_t.shape
    for time, picture in ((0, 0), (0, 1), (1, 0), (1, 1)):
        t = torch.tensor([probe.timesteps[time]])
        embedding = backbone.encode([probe.prompts[picture]])
        with torch.no_grad():
            one = backbone.epsilon(probe.x_t[time, picture][None], t, embedding)
        assert_close(found[time, picture], one[0], scale=float(one.abs().max()))
    assert not torch.allclose(found[0, 0], found[0, 1])


def test_it_is_the_difference_of_two_predictions(backbone: Backbone, probe: Probe) -> None:
    r = noise_differences(backbone, probe, ["neon", "ink"], ["a cat", ""])
    eps_c, eps_0 = (predicted_noise(backbone, probe, c) for c in (["neon", "ink"], ["a cat", ""]))
    assert_close(r, eps_c - eps_0, scale=float(eps_c.abs().max()))
    assert r.abs().max() > 1e-3
    nothing = noise_differences(backbone, probe, "")  # the empty prompt adds nothing to itself
    assert torch.equal(nothing, torch.zeros_like(nothing))


def test_a_delta_gives_what_its_composition_gives(backbone: Backbone, probe: Probe) -> None:
    delta = three_deltas(backbone.prediction_type)[0]
    r0 = noise_differences(backbone, probe, "neon")
    by_weights = noise_differences(backbone, probe, "neon", delta=delta)
    with Composition(backbone, [delta]) as composition, composition.erased("neon"):
        eps_c, eps_0 = (predicted_noise(backbone, probe, [c] * 2) for c in ("neon", ""))
        again = noise_differences(backbone, probe, "neon", delta=delta)
        untouched = noise_differences(backbone, probe, "neon")
    assert_close(by_weights, eps_c - eps_0, scale=float(probe.x_t.abs().max()))
    assert torch.equal(again, by_weights)  # what is attached does not matter
    assert torch.equal(untouched, r0)
    assert (by_weights - r0).abs().max() > 0.1 * r0.abs().max()


def test_an_anchor_is_what_the_original_model_says_of_it(backbone: Backbone, probe: Probe) -> None:
    """A delta that spoils the anchor too must not pass for one that reaches it."""
    delta = three_deltas(backbone.prediction_type)[0]
    spoilt = noise_differences(backbone, probe, "ink", "neon", delta)
    expected = noise_differences(backbone, probe, "ink", "neon")
    assert_close(spoilt, expected, scale=float(probe.x_t.abs().max()))  # "ink" is kept
    paper = noise_differences(backbone, probe, "", delta=delta)
    assert torch.equal(paper, torch.zeros_like(paper))  # S-27: both by the changed model


# ---------------------------------------------------------------- measures of maps
def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def test_the_correlation_map_is_equation_2_before_its_mean() -> None:
    r, r0 = maps(2, 3, 4, 5, 5), maps(2, 3, 4, 5, 5).flip(0)
    loss = correlation_loss(r.flatten(0, 1), r0.flatten(0, 1)).view(2, 3)
    assert_close(correlation_map(r, r0).mean(dim=(-2, -1)), loss, scale=1.0)
    assert (correlation_map(r, r) >= 0).all()
    assert_close(correlation_map(r, r).sqrt(), magnitude(r))


def test_the_correlation_is_one_zero_and_minus_one_where_it_should_be() -> None:
    r0 = maps(2, 3, 2, 5, 5)
    sideways = torch.stack([r0[:, :, 1], -r0[:, :, 0]], dim=2)  # orthogonal at every pixel
    for r, expected in ((r0, 1.0), (-r0, -1.0), (0.5 * r0, 0.5), (sideways, 0.0)):
        assert_close(correlations(r, r0), torch.full((2, 3), expected), scale=1.0)


def test_cosines_of_opposite_orthogonal_and_scaled_concepts() -> None:
    a, b = torch.zeros(2, 1, 3, 4, 4), torch.zeros(2, 1, 3, 4, 4)
    a[:, :, 0], b[:, :, 1] = 1.0, 2.0
    expected = torch.tensor([[1.0, -1, 0], [-1, 1, 0], [0, 0, 1]])
    assert_close(cosines(torch.stack([a, -3 * a, b])), expected.expand(2, 3, 3))
    # Nor does it feel how strongly one picture answers.
    differences = maps(3, 2, 4, 4, 5, 5)
    louder = differences * torch.tensor([1.0, 10, 0.1, 3]).view(4, 1, 1, 1)
    assert_close(cosines(louder), cosines(differences), scale=1.0)


# ---------------------------------------------------------------- layer by layer
def test_a_layer_alone_does_less_than_all_together(backbone: Backbone, probe: Probe) -> None:
    delta = three_deltas(backbone.prediction_type)[0]
    neon = replace(probe, prompts=("neon", "neon"))
    r0 = noise_differences(backbone, neon)
    whole = float(correlations(noise_differences(backbone, neon, delta=delta), r0).mean())
    every = correlation_by_layer(backbone, neon, delta, parts={"all": delta.paths})
    assert every["all"] == pytest.approx(whole, abs=1e-5)
    alone = correlation_by_layer(backbone, neon, delta)
    assert tuple(alone) == delta.paths
    assert len({round(value, 6) for value in alone.values()}) == len(alone)  # no two layers alike
    silent = correlation_by_layer(backbone, neon, 0.0 * delta)
    assert list(silent.values()) == pytest.approx([1.0] * len(silent), abs=1e-5)


def test_where_the_values_are_silenced_nothing_is_left(backbone: Backbone, probe: Probe) -> None:
    """Without values the text says nothing: r = 0 whatever the keys do."""
    values = {p: m.weight for p, m in backbone.projections().items() if p.endswith("to_v")}
    silence = replace(
        three_deltas(backbone.prediction_type)[0],
        down={path: torch.eye(backbone.d_in) for path in values},
        up={path: -weight for path, weight in values.items()},
    )
    remaining = correlation_by_layer(backbone, probe, silence, parts={"values": list(values)})
    assert remaining["values"] == pytest.approx(0.0, abs=1e-4)


# ---------------------------------------------------------------- recordings
@pytest.fixture(scope="module")
def recorded() -> tuple[ConceptDelta, Recording]:
    settings = replace(FROM_ZERO, iterations=5)
    return record(shared(), ANCHORED, KEPT, settings, timesteps=3, every=2, progress=False)


def test_a_training_from_zero_starts_untouched_and_decays(
    recorded: tuple[ConceptDelta, Recording],
) -> None:
    _, recording = recorded
    assert recording.iterations == (0, 2, 4, 5)  # the last one too
    assert_close(recording.correlation[0], torch.ones(3, 3))
    assert_close(recording.maps[0], recording.original, scale=float(recording.original.abs().max()))
    assert recording.decay[0] == pytest.approx(1.0, rel=1e-5)
    assert recording.decay[-1] < 0.8


def test_a_training_from_the_closed_form_starts_erased_already() -> None:
    """The control: snapshot 0 shows the start, whatever the start is."""
    _, recording = record(shared(), NEON, others(NEON), QUICK, timesteps=2, progress=False)
    assert recording.decay[0] < 0.9


@pytest.mark.parametrize("settings", [QUICK, FROM_ZERO], ids=["default", "zero"])
def test_looking_on_changes_nothing(settings: ErasureSettings, tmp_path: Path) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    heard: list[ErasureStep] = []
    looking = {"every": 1, "timesteps": 2, "callback": heard.append, "progress": False}
    delta, recording = record(shared(), NEON, others(NEON), settings, seed=3, **looking)
    assert torch.equal(torch.get_rng_state(), state)
    steps: list[ErasureStep] = []
    plain = erase(shared(), NEON, others(NEON), settings, seed=3, trainer=watched(steps))
    files = [
        made.save(tmp_path / f"{index}.safetensors").read_bytes()
        for index, made in enumerate((delta, plain))
    ]
    assert files[0] == files[1]
    assert recording.steps == tuple(steps) == tuple(heard)
    assert recording.provenance == plain.provenance


def test_the_last_snapshot_is_the_delta_that_comes_out(
    recorded: tuple[ConceptDelta, Recording],
) -> None:
    delta, recording = recorded
    probe = Probe.draw(shared(), ["neon", "a neon cat", "a neon boat"], 3)
    references = ["", "a cat", "boat"]
    r0 = noise_differences(shared(), probe, references=references)
    r = noise_differences(shared(), probe, references=references, delta=delta)
    assert torch.equal(recording.original, r0[:, 0])
    assert torch.equal(recording.maps[-1], r[:, 0])
    assert torch.equal(recording.correlation[-1], correlations(r, r0))
    assert torch.equal(recording.image, shared().generate("neon", 0)[0])


@pytest.mark.parametrize(("reference", "expected"), [("anchor", "a cat"), ("empty", "")])
def test_the_maps_are_measured_against_what_the_training_is(reference: str, expected: str) -> None:
    settings = replace(FROM_ZERO, iterations=1, reference=reference)
    _, recording = record(
        shared(), ANCHORED, KEPT, settings, prompts=["a neon cat"], timesteps=2, progress=False
    )
    assert recording.prompt == "a neon cat"
    probe = Probe.draw(shared(), "a neon cat", 2)
    r0 = noise_differences(shared(), probe, references=expected)
    assert torch.equal(recording.original, r0[:, 0])


@pytest.mark.parametrize("statistic", ["correlation", "loss"])
@pytest.mark.parametrize("objective", ["squared", "product"])
def test_the_losses_are_what_the_momentum_averages(objective: str, statistic: str) -> None:
    """Eq. 4 over `losses` gives the momentum of every step."""
    settings = replace(FROM_ZERO, objective=objective, statistic=statistic)
    _, recording = record(shared(), NEON, others(NEON), settings, timesteps=1, progress=False)
    m = recording.losses[0]
    for loss, step in zip(recording.losses, recording.steps, strict=True):
        m = settings.alpha * m + (1 - settings.alpha) * loss
        assert step.momentum == pytest.approx(m)


# ---------------------------------------------------------------- bad input
def test_what_makes_no_sense_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = shared()
    probe = Probe.draw(backbone, ["neon", "a cat"], 1)
    monkeypatch.setattr(Backbone, "generate", None)  # no picture is drawn
    for timesteps in ([], [1000], [-1, 5], 0):
        with refused("timestep", "0 to 999"):
            Probe.draw(backbone, "neon", timesteps)
    with refused("3 prompts for 2 pictures"):
        noise_differences(backbone, probe, ["neon"] * 3)
    with refused("'neon'", "another base model"):
        noise_differences(fresh(seed=1), probe, delta=three_deltas()[0])
    for options, word in (
        ({"every": 0}, "every = 0"),
        ({"prompts": ["a dog"]}, "'neon' itself"),
        ({"prompts": []}, "at least one"),
        ({"timesteps": [2000]}, "timestep"),
    ):
        with refused(word):
            record(backbone, NEON, KEPT, QUICK, **options)
    with refused("also to be kept"):  # what `erase` refuses is refused here
        record(backbone, INK, ["ink"], QUICK)
