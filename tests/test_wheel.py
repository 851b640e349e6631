"""sepme works installed: from a wheel that is built from a source archive of this tree."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from setuptools import find_packages

from sepme._data import cache, shipped
from sepme.scenes import published
from tests.test_house import ROOT, tomllib

FOLDERS = ("sepme", "data", "docs", "notebooks", "tests", "benchmarks")
#: Where the fresh environment is asked, and what it must answer.
QUESTIONS = """
import json, sepme
from sepme._data import shipped
from sepme.model import load_catalogue
from sepme.scenes import published
from sepme.scenes.tables import RESULTS
print(json.dumps({
    "package": sepme.__file__, "data": str(shipped()), "concepts": len(load_catalogue().concepts),
    "published": len(published()), "measured": sorted(f.name for f in RESULTS.glob("*.csv")),
}))
"""


def test_every_package_is_named_for_the_wheel() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert named == sorted([*find_packages(ROOT, include=["sepme*"]), "sepme.data"])


def test_a_clone_finds_its_own_data_and_keeps_its_cache_elsewhere(monkeypatch, tmp_path) -> None:
    assert shipped("paper", "README.md").is_file()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache("deltas") == tmp_path / "sepme" / "deltas"


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints, typed in `cwd` without a path to this tree in the environment."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def files(folder: Path) -> set[str]:
    """The files below a folder, without compiled modules."""
    found = (f for f in folder.rglob("*") if f.is_file() and f.suffix != ".pyc")
    return {f.relative_to(folder).as_posix() for f in found}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked source archive of this tree."""
    folder = tmp_path_factory.mktemp("source")
    tree = folder / "tree"
    for name in FOLDERS:
        copytree(ROOT / name, tree / name, ignore=ignore_patterns("__pycache__", "build"))
    for file in ROOT.iterdir():
        if file.is_file():
            (tree / file.name).write_bytes(file.read_bytes())
    make = "import setuptools.build_meta as backend; backend.build_sdist('..')"
    run(sys.executable, "-c", make, cwd=tree)
    (packed,) = folder.glob("*.tar.gz")
    with tarfile.open(packed) as file:
        file.extractall(folder, filter="data")
    return folder / packed.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def fresh(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a fresh environment with the wheel in it, and nothing else of ours.

    Its site-packages come first. A .pth file adds the running ones, which hold the dependencies;
    a folder that is added in this way has its own .pth files ignored, and with them an editable
    sepme.
    """
    folder = tmp_path_factory.mktemp("fresh")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, archive, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    into = ("--python", scripts / "python", "install", "--no-deps", "--no-index")
    run(*pip, *into, wheel, cwd=folder)
    paths = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(run(scripts / "python", "-c", paths, cwd=folder).strip())
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


@pytest.mark.slow
def test_the_archive_holds_the_course_and_the_wheel_the_data(archive, fresh) -> None:
    (installed,) = (fresh.parent / "lib").rglob("site-packages/sepme")
    data = {f"data/{name}" for name in files(ROOT / "data")}
    assert files(installed) == files(ROOT / "sepme") | data
    assert files(archive / "notebooks") == files(archive.parent / "tree" / "notebooks")
    assert {"Makefile", "constraints.txt"} <= files(archive)


@pytest.mark.slow
def test_installed_it_erases_draws_and_finds_its_tables(fresh: Path, tmp_path: Path) -> None:
    answers = json.loads(run(fresh / "python", "-c", QUESTIONS, cwd=tmp_path))
    own = fresh.parent.resolve()
    assert own in Path(answers["package"]).resolve().parents
    assert own in Path(answers["data"]).resolve().parents
    assert answers["concepts"] == 21
    assert answers["published"] == len(published())
    tables = ["ablation", "correlation_and_judge", "scenes_object", "scenes_style"]
    assert answers["measured"] == [f"{table}.csv" for table in tables]
    package = Path(answers["package"]).parent
    shortly_before = files(package)
    run(fresh / "sepme", "erase", "neon", "--closed-form", cwd=tmp_path)
    delta = "deltas/neon.safetensors"
    run(fresh / "sepme", "generate", "a boat in neon style", "--erase", delta, cwd=tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"deltas", "picture.png"}
    assert files(package) == shortly_before
