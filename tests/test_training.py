"""Interrupted and gone on with, a training ends in the same delta, byte for byte."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from sepme.erasure import ErasureSettings, ErasureStep, erase
from sepme.model import Backbone
from sepme.training import Trainer
from tests.miniature import FROM_ZERO, INK, KEPT, NEON, QUICK, shared
from tests.refusals import refused

ROOT = Path(__file__).parent.parent
DENSE = replace(FROM_ZERO, parametrisation="dense", method="svd")


def train(
    checkpoint: Path | None,
    settings: ErasureSettings = QUICK,
    callback: Callable[[ErasureStep], None] | None = None,
    *,
    every: int = 1,
    seed: int = 0,
    joint: bool = False,
) -> bytes:
    """What comes out, as bytes: a digest covers every bit of a delta."""
    trainer = Trainer(callback, checkpoint, every, progress=False)
    concepts = [NEON, INK] if joint else [NEON]
    deltas = erase(shared(), concepts, KEPT, settings, seed=seed, trainer=trainer)
    return b"".join(delta.digest.encode() for delta in deltas)


@cache
def uninterrupted() -> bytes:
    return train(None)


def interrupted(checkpoint: Path, *settings: ErasureSettings, at: int = 3, **options) -> None:
    """Train as `train` does, and be interrupted at the end of an iteration."""

    def callback(step: ErasureStep) -> None:
        if step.iteration == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(checkpoint, *settings, callback=callback, **options)


def iteration_in(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["done"]


# ---------------------------------------------------------------- going on
@pytest.mark.parametrize("iteration", range(1, QUICK.iterations + 1))
def test_an_interruption_at_any_iteration_changes_nothing(tmp_path: Path, iteration: int) -> None:
    checkpoint = tmp_path / "run.ckpt"
    interrupted(checkpoint, at=iteration, every=2)
    assert iteration_in(checkpoint) == (iteration - 1) // 2 * 2
    assert train(checkpoint, every=2) == uninterrupted()


@pytest.mark.parametrize(
    ("settings", "joint"),
    [(DENSE, False), (QUICK, True), (replace(QUICK, objective="product", lam=1e-3), False)],
    ids=["dense", "joint", "product"],
)
def test_so_it_is_for_every_kind_of_training(
    tmp_path: Path, settings: ErasureSettings, joint: bool
) -> None:
    checkpoint = tmp_path / "run.ckpt"
    interrupted(checkpoint, settings, at=4, joint=joint)
    assert train(checkpoint, settings, joint=joint) == train(None, settings, joint=joint)


def test_interrupted_again_and_again(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.ckpt"
    for iteration in range(2, QUICK.iterations + 1):
        interrupted(checkpoint, at=iteration)
    assert train(checkpoint) == uninterrupted()


def test_every_later_step_is_that_of_the_run_without_interruption(tmp_path: Path) -> None:
    """The delta does not depend on the momentum until it stops; the steps show it earlier."""
    checkpoint, whole, rest = tmp_path / "run.ckpt", [], []
    train(None, callback=whole.append)
    interrupted(checkpoint)
    train(checkpoint, callback=rest.append)
    assert rest == whole[2:]


def test_what_was_done_is_not_done_again(tmp_path: Path, monkeypatch) -> None:
    checkpoint, seen = tmp_path / "run.ckpt", []
    interrupted(checkpoint, at=4)
    monkeypatch.setattr(Backbone, "generate", None)  # the images are in the checkpoint
    train(checkpoint, callback=lambda step: seen.append(step.iteration))
    assert seen == [4, 5]


def test_a_finished_run_is_taken_from_its_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.ckpt"
    whole, seen = train(checkpoint), []
    assert train(checkpoint, callback=seen.append) == whole
    assert seen == []  # no iteration is left to do


def test_an_interruption_while_writing_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch
) -> None:
    checkpoint = tmp_path / "run.ckpt"
    interrupted(checkpoint)
    before = checkpoint.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sepme.artefact.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            train(checkpoint)
    assert checkpoint.read_bytes() == before
    assert list(tmp_path.iterdir()) == [checkpoint]
    assert train(checkpoint) == uninterrupted()


#: Trains like `train`, in a process of its own, with a pause after every iteration.
VICTIM = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.test_training import train
train(Path(sys.argv[1]), callback=lambda step: time.sleep(0.2))
"""


def test_a_killed_process_is_gone_on_with(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.ckpt"
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, str(checkpoint)], cwd=ROOT)
    try:
        while not (checkpoint.exists() and iteration_in(checkpoint) >= 2):
            assert victim.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
    finally:
        victim.kill()
        victim.wait()
    assert iteration_in(checkpoint) < QUICK.iterations
    assert train(checkpoint) == uninterrupted()


# ---------------------------------------------------------------- what is not to be gone on with
def with_other_guidance(path: Path) -> None:
    backbone = shared()
    backbone.guidance = 2.0
    try:
        interrupted(path)
    finally:
        backbone.guidance = 4.0


def truncated(path: Path) -> None:
    interrupted(path)
    path.write_bytes(path.read_bytes()[:-100])


def foreign(content: object) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


class Malicious:
    """A pickle that would run code when it is read."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("it-ran"),)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: interrupted(path, seed=1),
        lambda path: interrupted(path, replace(QUICK, lam=0.1)),
        with_other_guidance,
        lambda path: path.write_bytes(b""),
    ],
    ids="seed settings guidance zero".split(),
)
def test_a_checkpoint_of_something_else_is_not_gone_on_with(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    checkpoint = tmp_path / "run.ckpt"
    spoil(checkpoint)
    assert train(checkpoint) == uninterrupted()


@pytest.mark.parametrize(
    "spoil",
    [
        truncated,
        foreign(torch.ones(1)),
        foreign([]),
        foreign({}),
        foreign({"key": Malicious()}),
        lambda path: path.write_text("my shopping list"),
    ],
    ids="truncated tensor list empty malicious shopping".split(),
)
def test_what_is_no_checkpoint_is_neither_run_nor_written_over(
    tmp_path: Path, spoil: Callable[[Path], None], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "run.ckpt"
    spoil(checkpoint)
    before = checkpoint.read_bytes()
    with refused("is no checkpoint of a training"):
        train(checkpoint)
    assert [*tmp_path.iterdir()] == [checkpoint]
    assert checkpoint.read_bytes() == before


def test_a_checkpoint_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with refused("run.ckpt", "cannot be written"):
        train(tmp_path / "file" / "run.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
