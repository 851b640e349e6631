"""The training of the shipped model: optimiser, schedule, batches, interruption."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sepme.atelier import _judge, _vae
from sepme.atelier._architecture import replace_folder, standardise, untrained
from sepme.atelier._fit import Muon, Stage, fit, orthogonalise, rate_factor
from sepme.atelier._tokenizer import make_tokenizer
from sepme.atelier.settings import TrainSettings
from sepme.atelier.train import train, training_batch, velocity_loss
from sepme.errors import SepmeError
from sepme.model import ATELIER, Backbone
from tests.tolerance import assert_close

SETTINGS = TrainSettings(precision="fp32", save_every=4)


def small_fit(folder, steps: int = 40, stop_at: int | None = None) -> tuple[dict, int]:
    """The average of a small network after random regressions, and the steps that it took now.

    It has what a checkpoint may forget: Muon's momentum, the statistics of batch norm, dropout.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Linear(5, 4))
    taken = 0

    def loss(seed: int) -> torch.Tensor:
        nonlocal taken
        taken += 1
        return (model(torch.randn(8, 6)) - 1).square().mean()

    def stop(average: nn.Module) -> None:
        if stage.done == stop_at:
            raise KeyboardInterrupt

    stage = Stage("small", steps, adam_rate=1e-2, decay=0.25, memory=0.9)
    return fit(stage, model, loss, SETTINGS, folder, stop).state_dict(), taken


def test_an_interrupted_training_ends_as_if_it_had_not_been(tmp_path):
    whole, taken = small_fit(tmp_path / "whole")
    assert taken == 40
    with pytest.raises(KeyboardInterrupt):
        small_fit(tmp_path / "cut", stop_at=18)
    resumed, taken = small_fit(tmp_path / "cut")
    assert taken == 40 - 16  # since the last checkpoint
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_the_number_of_steps_may_change_until_the_rate_falls(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        small_fit(tmp_path, stop_at=21)
    assert small_fit(tmp_path, steps=36)[1] == 36 - 20
    with pytest.raises(SepmeError, match="already falling at step 36 of 36"):
        small_fit(tmp_path, steps=60)


def test_the_rate_warms_up_stays_and_falls():
    assert rate_factor(0, 1000) == pytest.approx(1 / 50)
    assert rate_factor(100, 1000) == rate_factor(700, 1000) == 1.0
    assert rate_factor(875, 1000) == pytest.approx(0.5)
    assert rate_factor(700, 1000) == rate_factor(700, 2000)
    assert rate_factor(999, 1000) == pytest.approx(0.01)


@pytest.mark.parametrize("shape", [(2, 12, 30), (3, 30, 12)])
def test_orthogonalise_brings_singular_values_near_one(shape):
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.3
    assert values.max() < 1.4


def test_muon_moves_against_the_gradient_by_its_rate_in_every_direction():
    """The first step of W [r, c] is lr sqrt(max(1, r / c)) U V', U S V' being the gradient."""
    weight, gradient = nn.Parameter(torch.zeros(12, 3)), torch.randn(12, 3)
    weight.grad = gradient.clone()
    Muon([weight], replace(SETTINGS, muon_rate=0.1)).step()
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    along = (u.mT @ -weight.detach() @ v.mT) / (0.1 * 2)
    assert ((along.diagonal() - 1).abs() < 0.4).all()
    assert_close(along, along.diagonal().diag(), scale=1.0)


def test_standardise_changes_the_latents_but_not_the_pictures():
    torch.manual_seed(0)
    vae, pictures = untrained("vae").eval(), torch.rand(8, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.encode(pictures).latent_dist
        shown = vae.decode(before.mean).sample
        mean, std = before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3))
        standardise(vae, mean, std)
        after = vae.encode(pictures).latent_dist
        assert_close(vae.decode(after.mean).sample, shown)
    scaling = vae.config.scaling_factor
    scaled = after.mean * scaling
    assert_close(scaled.std((0, 2, 3)), torch.ones(4))
    assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), scale=1.0)
    assert_close(after.std * std.view(1, 4, 1, 1) * scaling, before.std)


def test_batches_come_from_their_seed_alone():
    latents = (torch.randn(122, 4, 16, 16), torch.zeros(122, 4, 16, 16))
    about = (latents, make_tokenizer(), TrainSettings())
    for a, b in zip(training_batch(7, *about), training_batch(7, *about), strict=True):
        assert torch.equal(a, b)
    _, _, timesteps, tokens = training_batch(8, *about)
    assert tokens.shape == (32, 16)
    assert torch.equal(timesteps * 32 // 1000, torch.arange(32))  # one from each slice


def test_the_loss_of_the_velocity_by_hand():
    """Two latents of one value each, a network that answers 0 and one that answers v."""
    z, e = torch.tensor([2.0, 1.0]), torch.tensor([0.5, -1.0])
    a = torch.tensor([0.9, 0.5])  # SNR 9 and 1, weights 5/9 and 1
    v = a.sqrt() * e - (1 - a).sqrt() * z
    weight = torch.tensor([5 / 9, 1.0])
    expected = (weight * v**2).sum() / weight.sum()

    class Out:
        def __init__(self, values):
            self.sample = self.last_hidden_state = values

    def loss(answer):
        batch = (z.view(2, 1, 1, 1), e.view(2, 1, 1, 1), torch.tensor([0, 1]), torch.zeros(2, 16))
        text = lambda words: Out(torch.zeros(len(words), 1))  # noqa: E731
        return velocity_loss(lambda *_: Out(answer.view(2, 1, 1, 1)), text, batch, a)

    assert_close(loss(torch.zeros(2)), expected)
    assert loss(v) == 0


def test_a_directory_is_replaced_only_when_the_new_one_is_finished(tmp_path):
    target = tmp_path / "model"
    replace_folder(target, lambda path: (path / "a").write_text("old"))

    def fail(path):
        (path / "a").write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        replace_folder(target, fail)
    assert (target / "a").read_text() == "old"
    replace_folder(target, lambda path: (path / "a").write_text("new"))
    assert (target / "a").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"precision": "int4"}, {"vae_batch": -1}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(SepmeError, match=f"(?i){next(iter(wrong))}"):
        TrainSettings(**wrong)


def files(folder):
    """The files of a pipeline that its training writes."""
    written = {f.relative_to(folder) for f in folder.rglob("*.*") if f.parent.name != "deltas"}
    return written - {Path(name) for name in ("README.md", "quality.json", "samples.png")}


@pytest.mark.slow
def test_the_whole_training_runs_and_makes_a_pipeline(tmp_path, monkeypatch):
    for name, value in (("_PICTURES", 22), ("_ROUND_TRIPS", 11), ("held_out_accuracy", id)):
        monkeypatch.setattr(_judge, name, value)
    monkeypatch.setattr(_vae, "held_out_psnr", lambda vae: 0.0)
    settings = TrainSettings(
        steps=2, vae_steps=2, judge_steps=2, pictures=22, batch=4, save_every=1, export_every=1
    )
    made = train(tmp_path, settings)
    assert files(made) == files(ATELIER)
    for part in ("unet", "vae", "text_encoder"):
        config = (json.loads((f / part / "config.json").read_text()) for f in (made, ATELIER))
        assert next(config) == next(config)
    assert Backbone.load(made).generate(["a photo of a boat"], 0, steps=2).shape == (1, 3, 64, 64)
    first = load_file(made / "unet" / "diffusion_pytorch_model.safetensors")
    again = train(tmp_path, settings)  # nothing is left to do: the same model
    for name, value in load_file(again / "unet" / "diffusion_pytorch_model.safetensors").items():
        assert torch.equal(value, first[name])
