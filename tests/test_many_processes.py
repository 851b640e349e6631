"""Erasing on any device and in several processes: what is chosen, shared, foretold and resumed."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from sepme.cli._place import place
from sepme.concept import Concept
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, erase
from sepme.errors import SepmeError
from sepme.jobs.forecast import Forecast, counted, duration, measured
from sepme.jobs.tasks import Process, erase_into, plan
from tests.miniature import NEON, QUICK, QUIET, fresh, others, shared
from tests.test_cli import CATALOGUE, refused, sepme
from tests.tiny import make_tiny_pipeline

NAMES = ("neon", "ink", "boat")
LIST = ("erase", ", ".join(NAMES), "--iterations", 2, "--images", 2, "--batch", 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature model on the disk, sampled in three steps."""
    folder = tmp_path_factory.mktemp("model")
    make_tiny_pipeline().save_pretrained(folder)
    (folder / "generation.json").write_text('{"guidance_scale": 4.0, "num_inference_steps": 3}')
    CATALOGUE.save(folder / "catalogue.json")
    return folder


# ------------------------------------------------------------------ options
def test_what_was_typed_decides_the_delta_and_is_recorded(model: Path, tmp_path: Path) -> None:
    command = ("erase", "neon", "--model", model, "--out", tmp_path, "--device", "cpu")
    command += ("--iterations", 2, "--images", 3, "--batch", 2, "--steps", 4)
    sepme(*command, "--dtype", "bfloat16")
    found = ConceptDelta.load(tmp_path / "neon.safetensors").provenance
    said = {"iterations": 2, "images": 3, "batch": 2, "steps": 4, "dtype": "bfloat16"}
    assert said.items() <= found.settings.items()
    refused(*command, words=("neon.safetensors", "other settings"))  # float32
    sepme(*command, "--overwrite")
    found = ConceptDelta.load(tmp_path / "neon.safetensors").provenance
    assert found.settings["dtype"] == "float32"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_erases_and_draws(dtype: str, model: Path, tmp_path: Path) -> None:
    half = ("--model", model, "--dtype", dtype, "--steps", 2)
    sepme("erase", "neon", "--iterations", 2, "--images", 2, "--out", tmp_path, *half)
    delta = ("--erase", tmp_path / "neon.safetensors", "--images", 2, "--batch", 1, "--seed", 5)
    result = sepme("generate", "neon", *delta, *half, "--out", tmp_path / "a.png")
    drawn = [tmp_path / "a-5.png", tmp_path / "a-6.png"]
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == list(map(str, drawn))
    assert drawn[0].read_bytes() != drawn[1].read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cuda:7"], "'cuda:7' is not there"),
        (["--device", "meta"], "'meta' is not there"),
        (["--device", "toaster"], "'toaster' is not there"),
        (["--dtype", "float8"], "dtype = 'float8' is unknown"),
        (["--batch", "0"], "greater than or equal to 1"),
        (["--steps", "1001"], "less than or equal to 1000"),
        (["--closed-form", "--iterations", "3"], "trains nothing"),
    ],
)
def test_what_cannot_be_computed_with_is_refused_before_the_model_is_read(
    words: list[str], said: str, tmp_path: Path
) -> None:
    refused("erase", "neon", *words, "--model", tmp_path, "--out", tmp_path / "o", words=(said,))
    assert list(tmp_path.iterdir()) == []


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert Process.current() == Process(rank=5, of=8, local=3)
    monkeypatch.setattr("sepme.loading.best_device", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.empty", lambda *_, **__: None)
    assert place(None, None) == (torch.device("cuda:1"), torch.float16)
    assert place("cpu", None) == (torch.device("cpu"), torch.float32)
    assert place("cuda:0", "bfloat16") == (torch.device("cuda:0"), torch.bfloat16)
    for wrong in ("8", "-1", "first", ""):
        monkeypatch.setenv("RANK", wrong)
        with pytest.raises(SepmeError, match=f"RANK={wrong}, WORLD_SIZE=8"):
            Process.current()


# ------------------------------------------------------------------ large pictures
def test_large_pictures_are_drawn_few_at_once_and_decoded_one_by_one() -> None:
    assert shared().together == 32
    assert not shared().pipe.vae.use_slicing
    pipe = make_tiny_pipeline()
    for side, together in ((16, 32), (64, 4), (96, 1), (128, 1)):
        pipe.unet.register_to_config(sample_size=side)
        large = replace(fresh(), pipe=pipe)
        assert large.together == together
        assert large.pipe.vae.use_slicing == (together < 32)
    several = large.generate(["neon", "ink"], steps=1)
    one = large.generate(["ink"], seeds=1, steps=1)
    assert torch.equal(several[1], one[0])  # also with nothing said of batches


# ------------------------------------------------------------------ many processes
def start(folder: Path, model: Path, rank: int = 0, of: int = 1, *words: object):
    """The command in a process of its own."""
    ranks = {"RANK": str(rank), "WORLD_SIZE": str(of), "LOCAL_RANK": str(rank)}
    command = [*LIST, "--model", model, "--out", folder, *words]
    return subprocess.Popen(
        [sys.executable, "-m", "sepme", *map(str, command)],
        env=os.environ | ranks | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_any_number_of_processes_ends_in_the_same_files(model: Path, tmp_path: Path) -> None:
    alone, shares, twice = (tmp_path / name for name in ("alone", "shares", "twice"))
    done(start(alone, model))
    assert len(contents(alone)) == len(NAMES)
    said = [done(one) for one in [start(shares, model, rank, 2) for rank in range(2)]]
    assert contents(shares) == contents(alone)
    assert [text.count("prompts kept") for text in said] == [2, 1]
    said = [done(one) for one in [start(twice, model) for _ in range(2)]]  # by hand
    assert contents(twice) == contents(alone)
    assert sum(text.count("prompts kept") for text in said) == len(NAMES)  # none twice


@pytest.mark.slow
def test_a_killed_process_is_resumed_by_any_number(model: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    longer = ("--iterations", 40, "--preset", "from_zero")
    done(start(whole, model, 0, 1, *longer))
    process, checkpoint = start(killed, model, 1, 2, *longer), killed / ".ink.checkpoint"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (killed / ".ink.lock").exists()
    done(start(killed, model, 0, 1, *longer))
    assert contents(killed) == contents(whole)


def test_what_another_process_is_at_comes_last(tmp_path: Path) -> None:
    concepts = [Concept(name, (name,)) for name in NAMES]
    short = replace(PRESETS["default"], iterations=1, images=1, batch=1, pool=1)  # a task each
    tasks, said = plan(concepts, (), None, short), []
    lock = FileLock(tmp_path / ".neon.lock")
    lock.acquire()

    def say(sentence: str) -> None:
        said.append(sentence)
        if sentence.startswith("Waiting"):
            lock.release()

    erase_into(tmp_path, tasks, shared(), say=say, progress=False)
    assert [next(name for name in NAMES if name in text) for text in said] == [
        *("ink", "boat", "neon", "neon")
    ]
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.safetensors" for name in NAMES}


# ------------------------------------------------------------------ what it takes
class _Counted:
    """How many samples pass the UNet, forwards and back."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self.forwards = self.backwards = 0
        unet.register_forward_pre_hook(self.go)  # what is computed again need not end
        unet.register_forward_hook(self.see)

    def go(self, _module: object, given: tuple) -> None:
        self.forwards += len(given[0])

    def see(self, _module: object, _given: tuple, output: object) -> None:
        if output[0].requires_grad:
            output[0].register_hook(lambda gradient: self.back(len(gradient)))

    def back(self, samples: int) -> None:
        self.backwards += samples


@pytest.mark.parametrize("changes", [{}, {"batch": 4}, {"pool": 5}, {"parametrisation": "full"}])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_the_passes_that_are_foretold_are_those_that_are_made(
    changes: dict, micro_batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sepme.erasure._DRAWN", {})  # nothing was drawn before
    if "parametrisation" in changes:
        changes = changes | {"start": "zero", "reference": "empty", "method": "svd"}
    settings, backbone = replace(QUICK, **changes), fresh()
    foretold = Forecast(backbone, settings, micro_batch).passes()
    drawn, *_, iterations, batch, forwards, backwards = (
        int(word) for word in foretold.split() if word.isdecimal()
    )
    seen = _Counted(backbone.unet)
    erase(backbone, NEON, others(NEON), settings, trainer=QUIET, micro_batch=micro_batch)
    assert (iterations, batch) == (settings.iterations, settings.batch)
    assert (seen.forwards, seen.backwards) == (drawn + forwards, backwards)


def test_the_closed_form_passes_nothing() -> None:
    foretold = Forecast(shared(), PRESETS["closed_form"])
    assert (foretold.seconds, foretold.peak) == (0, 0)
    assert foretold.passes().startswith("no pass")


def test_what_is_counted_by_hand() -> None:
    """y = w x with x `[n, side]` in float32: 2 n side side operations; x, w and y live."""

    def product(n: int, side: int) -> None:
        x = torch.zeros(n, side)
        x @ torch.zeros(side, side)
        torch.zeros(n)  # y is dead by now

    assert counted(product, 3, 5) == (2 * 3 * 5 * 5, 4 * (15 + 25 + 15))


def test_what_is_measured_of_a_small_part_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose time is `1 + operations / 1e6` seconds; only small passes are tried."""
    tried = []

    def product(n: int, side: int) -> None:
        torch.zeros(n * side, 100) @ torch.zeros(100, 50)

    def seconds(_work: object, n: int, side: int, _device: object) -> float:
        tried.append((n, side))
        return 1 + 2 * n * side * 100 * 50 / 1e6

    monkeypatch.setattr("sepme.jobs.forecast._seconds", seconds)
    found = measured(product, 6, 64, torch.device("cpu"))
    assert found == pytest.approx(1 + 2 * 6 * 64 * 5000 / 1e6)
    assert tried == [(1, 8), (1, 16)]


def test_memory_that_will_not_do_is_said_before_with_what_to_do(monkeypatch) -> None:
    settings = replace(QUICK, batch=8)
    forecast = Forecast(shared(), settings)
    assert forecast.warning() is None
    less = Forecast(shared(), settings, micro_batch=2)
    assert less.peak < forecast.peak / 2
    monkeypatch.setattr("sepme.jobs.forecast.free_memory", lambda _: forecast.peak // 3)
    assert "give --micro-batch 2 or --dtype bfloat16." in forecast.warning()


def test_erase_says_before_what_a_large_model_takes(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = (*LIST, "--model", model, "--out", tmp_path)
    monkeypatch.setattr("sepme.jobs.tasks.LARGE", 0)
    monkeypatch.setattr("sepme.jobs.forecast.free_memory", lambda _: 1000)
    result = sepme(*command)
    assert "would take about" in result.stderr
    assert "at most on this device alone: for a concept, 8 passes of the UNet" in result.stdout
    assert "alone" not in sepme(*command).stdout  # all is there


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.04 s"), (42, "42 s"), (119, "119 s"), (600, "10 minutes"), (7200, "2 hours")],
)
def test_hours_are_called_hours(seconds: float, words: str) -> None:
    assert duration(seconds) == words
    assert duration(7 * 86400) == "7 days"
