"""Commands that are killed: what they leave goes, and what they end in is what it would have been.

`benchmarks/kill.py` does the same ten times a command and signal.
"""

import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sepme import loading
from sepme.artefact import save_json, temporary, write_atomically
from sepme.atelier._architecture import replace_folder
from sepme.concept import Catalogue, Concept
from sepme.course.build import TEACHER
from sepme.errors import SepmeError
from tests.test_benchmarks import benchmark
from tests.tiny import make_tiny_pipeline

KILL = benchmark("kill")
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


def left_by(pid: int, folder: Path) -> Path:
    """What a process of this number leaves in a folder when it is killed while it writes."""
    left = folder / f".sepme-{pid}-{pid}.tmp"
    left.write_text("half")
    return left


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# ------------------------------------------------------------------ what is left is swept up
@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_atomically(folder / "other.txt", b"new"),
        lambda folder: save_json(folder / "other.json", {}),
        lambda folder: replace_folder(folder / "other", lambda new: (new / "a").write_text("")),
    ],
)
def test_the_next_write_sweeps_up_after_the_dead_and_spares_the_living(
    write: Callable[[Path], object], dead: int, tmp_path: Path
) -> None:
    file, alive = left_by(dead, tmp_path), left_by(os.getppid(), tmp_path)
    foreign = [tmp_path / name for name in (f".notes.{dead}.tmp", ".sepme-notes.tmp", "a.tmp")]
    for path in foreign:
        path.write_text("mine")
    folder = tmp_path / f".sepme-{dead}-1.tmpabc"
    folder.mkdir()
    (folder / "half").write_text("half")
    write(tmp_path)
    assert not file.exists()
    assert not folder.exists()
    assert alive.read_text() == "half"
    assert [path.read_text() for path in foreign] == ["mine"] * 3
    assert len(list(tmp_path.iterdir())) == 5  # these and what was written


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch):
    file = write_atomically(tmp_path / "a.txt", b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for failure, error in ((interrupted, KeyboardInterrupt), (os.rmdir, SepmeError)):
        monkeypatch.setattr("os.replace", lambda new, path, fail=failure: fail(new))
        with pytest.raises(error):
            write_atomically(file, b"new")
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_name_as_long_as_the_disk_takes_can_be_written(tmp_path: Path) -> None:
    file = write_atomically(tmp_path / ("a" * 251 + ".txt"), b"new")
    assert file.read_bytes() == b"new"
    assert temporary(tmp_path).parent == tmp_path


# ------------------------------------------------------------------ Ctrl-C
#: While an object is deleted, Python itself does not hear Ctrl-C.
DELETED = """
class Deleted:
    def __del__(self):
        raise KeyboardInterrupt
Deleted()
import time
for _ in range(1000):
    time.sleep(0.01)
"""


@pytest.mark.parametrize("typer", ["raise KeyboardInterrupt", DELETED])
def test_ctrl_c_during_the_imports_is_one_line(typer: str, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(typer)
    ended = subprocess.run(
        [sys.executable, "-m", "sepme", "demo"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 130
    assert ended.stderr.strip() == "sepme: Interrupted before anything was done: run it again."


def test_ctrl_c_while_a_library_loads_is_no_fault_of_the_model(tmp_path: Path) -> None:
    def reads() -> None:
        try:
            raise KeyboardInterrupt
        except BaseException:
            raise OSError("Unable to load vocabulary from file.")  # noqa: B904

    with pytest.raises(KeyboardInterrupt), loading._refused(tmp_path):
        reads()


# ------------------------------------------------------------------ whole commands
@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_pipeline().save_pretrained(folder)
    (folder / "generation.json").write_text('{"guidance_scale": 4.0, "num_inference_steps": 3}')
    concepts = {n: Concept(n, (n, f"a boat in {n} style"), "style") for n in ("neon", "ink")}
    Catalogue(concepts).save(folder / "catalogue.json")
    return folder


def ends_the_same(
    words: list[str],
    folder: Path,
    signals: list[signal.Signals] = SIGNALS,
    loading: float = math.inf,
) -> None:
    """Killed by one signal after the other, the command ends in the bytes of a whole run."""
    killed = KILL.Kills(words, folder, loading)
    assert killed.reference
    outcome = killed.chain(signals)
    assert outcome.wrong == ()
    assert outcome.kills == len(signals)


@pytest.mark.long
def test_erase(model: Path, tmp_path: Path) -> None:
    words = ["erase", "neon, ink", "--preset", "from_zero", "--model", str(model)]
    ends_the_same(words, tmp_path, [signal.SIGKILL, signal.SIGINT])


@pytest.mark.long
def test_course_build(tmp_path: Path) -> None:
    ends_the_same(KILL.COMMANDS["course"], tmp_path, loading=KILL.loading(KILL.LIGHT))


@pytest.mark.long
def test_figures(tmp_path: Path) -> None:
    ends_the_same(KILL.COMMANDS["tables"], tmp_path, loading=KILL.loading(KILL.LIGHT))


def test_what_differs_is_found(tmp_path: Path) -> None:
    """The comparison sees another byte, a missing file, and what is left over."""
    shutil.copy(TEACHER / "00_exercises.ipynb", tmp_path / "a.ipynb")
    (tmp_path / "b.json").write_text('{"seconds": 3, "digest": "a"}')
    reference = KILL.files(tmp_path)
    (tmp_path / "b.json").write_text('{"seconds": 4, "digest": "a"}')
    assert KILL.differences(tmp_path, reference) == []
    (tmp_path / "b.json").write_text('{"seconds": 3, "digest": "b"}')
    (tmp_path / "a.ipynb").unlink()
    (tmp_path / "empty").mkdir()
    left_by(1, tmp_path)
    different = KILL.differences(tmp_path, reference)
    assert different == [".sepme-1-1.tmp", "a.ipynb", "b.json", "empty/"]
    run = KILL.Run
    for code, said in ((1, ""), (0, "Traceback"), (130, ""), (-signal.SIGINT, "")):
        assert list(KILL.complaints(run(code, said or "?", 0), signal.SIGINT))
    for code, said in ((0, ""), (130, "sepme: Interrupted. Go on.")):
        assert not list(KILL.complaints(run(code, said, 0), signal.SIGINT))
