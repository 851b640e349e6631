"""The training of the shipped model: optimiser, schedule, checkpoints, interruption."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sepme.atelier._architecture import SCALING_FACTOR, make_scheduler, make_vae, standardise
from sepme.atelier._tokenizer import make_tokenizer
from sepme.atelier.checkpoints import load_checkpoint, save_checkpoint, write_directory
from sepme.atelier.loop import Loop
from sepme.atelier.optimisers import orthogonalise, rate_factor
from sepme.atelier.settings import TrainSettings
from sepme.atelier.train import train
from sepme.atelier.train_unet import Batches
from sepme.errors import SepmeError
from tests.tolerance import assert_close

SETTINGS = TrainSettings(precision="fp32", save_seconds=0)


def small_loop(directory: Path, steps: int = 40, name: str = "loop") -> Loop:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    return Loop(
        name, model, directory / "loop.safetensors", SETTINGS, steps, 1e-2, decay=0.25, memory=0.9
    )


def fit(loop: Loop, stop_at: int | None = None, pause: float = 0.0) -> dict[str, torch.Tensor]:
    """Run the loop on random regressions; stop with an exception at a step if asked to."""

    def loss_at(step: int) -> torch.Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        time.sleep(pause)
        return (loop.model(torch.randn(8, 6)) - 1).square().mean()

    return loop.run(loss_at).state_dict()


def test_an_interrupted_training_ends_as_if_it_had_not_been(tmp_path):
    whole = fit(small_loop(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        fit(small_loop(tmp_path / "cut"), stop_at=17)
    resumed = small_loop(tmp_path / "cut")
    assert resumed.step == 17
    for name, value in fit(resumed).items():
        assert torch.equal(value, whole[name]), name


def test_sigkill_at_any_moment_leaves_a_checkpoint_to_go_on_from(tmp_path):
    code = (
        "import pathlib, tests.test_atelier_training as t;"
        f"t.fit(t.small_loop(pathlib.Path({str(tmp_path / 'cut')!r})), pause=0.05)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not (tmp_path / "cut" / "loop.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = small_loop(tmp_path / "cut")
    assert resumed.step > 0
    whole = fit(small_loop(tmp_path / "whole"))
    for name, value in fit(resumed).items():
        assert torch.equal(value, whole[name]), name


def test_the_number_of_steps_may_change_until_the_rate_falls(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(small_loop(tmp_path, steps=40), stop_at=20)
    assert small_loop(tmp_path, steps=60).step == 20
    with pytest.raises(KeyboardInterrupt):
        fit(small_loop(tmp_path, steps=40), stop_at=35)
    with pytest.raises(SepmeError, match="already falling"):
        small_loop(tmp_path, steps=60)


def test_a_lost_training_stops_and_says_so(tmp_path):
    loop = small_loop(tmp_path)
    with pytest.raises(SepmeError, match="diverged"):
        loop.run(lambda step: loop.model(torch.randn(2, 6)).sum() * float("nan"))
    assert not list(tmp_path.iterdir())


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


def test_standardise_changes_the_latents_but_not_the_pictures():
    torch.manual_seed(0)
    vae, pictures = make_vae().eval(), torch.rand(8, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.encode(pictures).latent_dist
        shown = vae.decode(before.mean).sample
        mean, std = before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3))
        standardise(vae, mean, std)
        after = vae.encode(pictures).latent_dist
        assert_close(vae.decode(after.mean).sample, shown)
    scaled = after.mean * SCALING_FACTOR
    assert_close(scaled.std((0, 2, 3)), torch.ones(4))
    assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), scale=1.0)
    assert_close(after.std * std.view(1, 4, 1, 1) * SCALING_FACTOR, before.std)


def test_batches_come_from_seed_and_step_alone():
    latents = (torch.randn(122, 4, 16, 16), torch.zeros(122, 4, 16, 16))
    batches = [Batches(latents, make_tokenizer(), TrainSettings()) for _ in range(2)]
    batches[0](3)
    for a, b in zip(batches[0](7), batches[1](7), strict=True):
        assert torch.equal(a, b)
    _, _, timesteps, tokens = batches[0](8)
    assert tokens.shape == (32, 16)
    assert torch.equal(timesteps * 32 // 1000, torch.arange(32))  # one from each slice
    assert make_scheduler().config.prediction_type == "v_prediction"


def test_checkpoints_are_whole_or_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    assert load_checkpoint(path) is None
    save_checkpoint(path, {"x": torch.arange(4)}, {"step": 3})
    tensors, state = load_checkpoint(path)
    assert torch.equal(tensors["x"], torch.arange(4))
    assert state == {"step": 3}
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SepmeError, match="damaged"):
        load_checkpoint(path)


def test_a_directory_is_replaced_only_when_the_new_one_is_finished(tmp_path):
    target = tmp_path / "model"
    write_directory(target, lambda path: (path / "a").write_text("old"))

    def fail(path: Path) -> None:
        (path / "a").write_text("half")
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - any OSError does
        write_directory(target, fail)
    assert (target / "a").read_text() == "old"
    write_directory(target, lambda path: (path / "a").write_text("new"))
    assert (target / "a").read_text() == "new"


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"precision": "int4"}, {"vae_batch": -1}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(SepmeError, match=f"(?i){next(iter(wrong))}"):
        TrainSettings(**wrong)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SepmeError, match="folder"):
        train(tmp_path / "file" / "inside")


@pytest.mark.slow
def test_the_whole_training_runs_and_makes_a_pipeline(tmp_path, monkeypatch):
    from sepme.atelier import train_judge
    from sepme.model import Backbone

    monkeypatch.setattr(train_judge, "_PICTURES", 121)
    monkeypatch.setattr(train_judge, "_ROUND_TRIPS", 11)
    settings = TrainSettings(steps=2, vae_steps=2, judge_steps=2, pictures=121, batch=4)
    made = train(tmp_path, settings)
    assert {p.name for p in made.iterdir()} >= {"unet", "catalogue.json", "judge.safetensors"}
    assert Backbone.load(made).generate(["a photo of a boat"], 0, steps=2).shape == (1, 3, 64, 64)
    first = load_file(made / "unet" / "diffusion_pytorch_model.safetensors")
    again = train(tmp_path, settings)  # nothing is left to do: the same model
    for name, value in load_file(again / "unet" / "diffusion_pytorch_model.safetensors").items():
        assert torch.equal(value, first[name])
