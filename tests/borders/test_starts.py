"""How commands start: what cannot end well is refused before any work, and nothing is written."""

import os
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sepme.artefact import refuse_overwriting, writable_folder
from sepme.cli import app
from sepme.concept import Catalogue, Concept
from sepme.course.build import TEACHER
from sepme.model import ATELIER, Backbone
from sepme.scenes.protocol import EVALUATED
from sepme.scenes.tables import RESULTS
from tests.refusals import refused
from tests.tiny import make_tiny_pipeline

ROOT = Path(__file__).parents[2]
LATEST = 2**63 - 1


class Work(Exception):
    """The command has begun to work."""


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a delta, tables, a teacher's notebook, and other names for them."""
    at = tmp_path_factory.mktemp("inputs")
    make_tiny_pipeline().save_pretrained(at / "model")
    (at / "model" / "generation.json").write_text('{"guidance_scale": 4, "num_inference_steps": 3}')
    shutil.copy(ATELIER / "judge.safetensors", at / "model")
    Catalogue(
        {
            "neon": Concept("neon", ("neon", "a boat in neon style"), "style", ("", "a boat")),
            "ink": Concept("ink", ("ink", "a boat in ink style"), "style", ("", "a boat")),
            "boat": Concept(
                "boat", ("boat", "a boat in neon style", "a boat in ink style"), "object"
            ),
        }
    ).save(at / "model" / "catalogue.json")
    command = ["erase", "neon", "--closed-form", "--out", f"{at}/deltas", "--model", f"{at}/model"]
    assert CliRunner().invoke(app, command).exit_code == 0
    for name in ("neon.png", "neon-1.png"):
        shutil.copy(at / "deltas" / "neon.safetensors", at / "deltas" / name)
    shutil.copytree(at / "deltas", at / "model" / "deltas")
    (at / "keep.txt").write_text("a cat\n")
    os.link(at / "keep.txt", at / "deltas" / "ink.safetensors")
    (at / "tables").mkdir()
    for suffix in ("csv", "json"):
        shutil.copy(RESULTS / f"scenes_style.{suffix}", at / "tables")
    for folder in (
        "teacher",
        "built",
        "hard/solution",
        "damaged",
        "folder-9.png",
        "folder.safetensors",
    ):
        (at / folder).mkdir(parents=True)
    (at / "damaged" / "scenes_object.csv").write_text("kind,method\nobject,magic\n")
    source = at / "teacher" / "00_exercises.ipynb"
    shutil.copy(TEACHER / source.name, source)
    os.link(source, at / "hard" / "solution" / source.name)
    links = {"built/student": "teacher", "linked": "tables", "unet": "model/unet"}
    for link, target in (links | {"dangling": "nowhere", "loop": "loop"}).items():
        (at / link).symlink_to(at / target)
    return at


@pytest.fixture(autouse=True)
def _idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working folder, and no model that could be loaded or trained."""

    def work(*_: object, **__: object) -> None:
        raise Work

    monkeypatch.setattr(Backbone, "load", work)
    for name in ("sepme.atelier.train.train", "sepme.atelier.paintings.paint"):
        monkeypatch.setattr(name, work)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)


def run(words: str | list[str], at: Path) -> Result:
    words = words.split() if isinstance(words, str) else words
    return CliRunner().invoke(app, [word.replace("@", str(at)) for word in words])


def is_refused(result: Result, *words: str) -> None:
    """One sentence on stderr, and nothing in the working folder."""
    assert result.exit_code == 2, (result.output, result.exception)
    said = result.stderr.strip()
    assert said.startswith("sepme: ")
    assert said.endswith(".")
    assert not re.search(r"\n|[.!?] [A-Z]", said), f"more than one sentence: {said}"
    for word in words:
        assert word in said
    assert list(Path().iterdir()) == []


def bytes_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------ nothing over an input
@pytest.mark.parametrize(
    "command",
    [
        "course build --teacher @/teacher --students @/teacher",
        "course build --teacher @/teacher --students @/deltas/../teacher",
        "course build --teacher @/teacher --out @/built",
        "course build --teacher @/teacher --out @/hard",
        "course build --teacher @/built/student --students @/teacher",
        "course build --teacher @/teacher --out @/new --students @/new/solution",
        "scenes merge @/tables/scenes_style.csv --out @/tables",
        "scenes merge @/tables/scenes_style.csv --out @/deltas/../linked",
        "figures --results @/tables --out @/tables",
        "figures --results @/linked --out @/tables",
        f"figures --out {ROOT}/data/paper",
        "erase neon --after @/deltas/neon.safetensors --overwrite --out @/deltas --model @/model",
        "erase ink --keep-from @/keep.txt --overwrite --out @/deltas --model @/model",
        "erase neon --model @/model --out @/unet",
        "generate neon --erase @/deltas/neon.png --out @/deltas/neon.png --model @/model",
        "generate a --erase @/deltas/neon-1.png --out @/deltas/neon.png --images 2 --model @/model",
        "compose neon --erase @/deltas/neon.png --out @/unet/../../deltas/neon.png --model @/model",
        "inspect @/deltas/neon.png --spectrum @/deltas/neon.png",
        "demo --erase neon --model @/model --out @/model",
        f"atelier train --out {ATELIER}",
    ],
)
def test_an_input_is_never_written_over(command: str, at: Path) -> None:
    before = bytes_in(at)
    is_refused(run(command, at), "would overwrite", "--out")
    assert bytes_in(at) == before


def test_an_input_by_any_name_and_nothing_else(tmp_path: Path) -> None:
    file, folder = tmp_path / "a" / "file", tmp_path / "a" / "folder"
    folder.mkdir(parents=True)
    file.write_text("mine")
    os.link(file, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(file)
    (tmp_path / "b").symlink_to("a")
    names = ("a/file", "a/folder/../file", "hard", "soft", "b/file", "b/folder", "a/folder/x/y")
    for name in names:
        with refused(f"{name}' would overwrite"):
            refuse_overwriting([tmp_path / "new", tmp_path / name], [file, folder])
    others = [tmp_path / name for name in ("a", "a/new", "a/files", "file", "c/d", "a/folder2")]
    refuse_overwriting(others, [file, folder, tmp_path / "not there"])


# ------------------------------------------------------------------ all options are looked at first
WRONG = {
    "erase": [
        "",
        "neno",
        "neon --seed -1",
        f"neon --seed {LATEST + 1}",
        "neon --seed one",
        "neon --preset best",
        "neon --protocol none",
        "neon --preset paper --closed-form",
        "neon --preset undecoupled --keep cat",
        "neon --keep NEON",
        "neon --keep-from nowhere.txt",
        "neon --keep-rtol 1",
        "neon --keep-rtol nan",
        "neon --after nowhere.safetensors",
        "neon --joint",
        "neon --sneed 3",
        "neon --out neon.safetensors",
        *("neon --after @/loop", "neon --keep-from @/loop", "neon --out @/loop"),
    ],
    "generate": [
        "",
        "neon --seed -1",
        f"neon --seed {LATEST + 1}",
        f"neon --seed {LATEST} --images 2",
        f"neon --images 10 --out {'a' * 250}.png",
        "neon --images 3 --seed 7 --out @/folder.png",
        "neon --steps 0",
        "neon --steps 1001",
        "neon --guidance 0.5",
        "neon --guidance -1",
        "neon --guidance nan",
        "neon --guidance inf",
        "neon --erase nowhere.safetensors",
        "neon --erase @/loop",
        "neon --out picture.jpg",
        "neon --out .",
    ],
    "import": [
        *("", "@/lora.safetensors neon", "@/lora.safetensors neno --out a.safetensors"),
        "@/lora.safetensors neon --out i.txt",
        "@/lora.safetensors neon --out @/folder.safetensors",
        "@/lora.safetensors neon --overwrite --out @/folder.safetensors",
        "@/lora.safetensors neon --out @/deltas/neon.safetensors",
        "@/lora.safetensors neon --overwrite --out @/lora.safetensors",
        "@/loop neon --out @/loop",
    ],
    "demo": [
        "--erase neno",
        "--erase ,",
        "--erase neon,ink,boat",
        "--samples 0",
        "--samples 10001",
        "--retained 0",
        "--retained 1000000000",
        "--seed -1",
        f"--seed {LATEST + 1}",
        "--out neon.safetensors",
    ],
    "scenes run": [
        "--kind mood",
        "--scenes Scene9",
        "--scenes ,",
        "--methods magic",
        "--concepts 10",
        "--concepts six",
        "--images 1",
        "--images 10001",
        "--seed -1",
        f"--seed {LATEST + 1}",
        "--out x.safetensors",
    ],
    "scenes merge": ["", "nowhere.csv", "nowhere.csv --out merged", "@/tables/scenes_style.csv"],
    "scenes table": ["nowhere.csv", "@/tables/scenes_style.csv --measure beauty"],
    "figures": [
        *("--only mona", "--only ,", "--results nowhere", "--results @/keep.txt"),
        "--results @/damaged",
    ],
    "inspect": [
        "nowhere",
        "@/keep.txt",
        "@/deltas/neon.safetensors --spectrum a.jpg",
        "@/keep.txt --spectrum a.png",
    ],
    "course build": [
        "--teacher nowhere",
        "--teacher @/keep.txt",
        "--students @/keep.txt",
        "--out a.safetensors",
    ],
    "atelier train": [
        "",
        "--out a --steps 0",
        "--out a --pictures 0",
        "--out a --pictures 10000001",
        "--out a --batch 0",
        "--out a --device abacus",
        "--out a --device cuda:99",
        "--out a --seed -1",
    ],
    "atelier evaluate": [
        "",
        "--out a --seeds 0",
        "--out a --seeds 10001",
        "--out a --model @/model",
    ],
    "atelier paint": ["boat", "boat neon --seed -1", f"boat neon --seed {LATEST + 1}"],
    "atelier judge": ["", "nowhere.png", "@/keep.txt"],
}
#: Commands that take a folder or a picture's name, and what they need besides.
OUTPUTS = {
    **dict.fromkeys(
        ["generate neon", "import @/keep.txt neon", "erase neon", "demo --erase neon"],
        "--model @/model",
    ),
    **dict.fromkeys(["scenes run", "figures", "course build", "atelier paint boat neon"], ""),
    "scenes merge": "@/tables/scenes_style.csv",
    "atelier train": "",
    "atelier evaluate": "",
}
#: Where nothing can be written: below a file or a link to nothing or itself, under a long name.
PLACES = (
    "@/keep.txt/out",
    "@/dangling/out",
    "@/loop/out",
    "a" * 300,
    "a/" + "b" * 300 + "/c",
    "/proc/out",
)


@pytest.mark.parametrize(
    ("command", "options"), [(name, options) for name, wrong in WRONG.items() for options in wrong]
)
def test_a_wrong_option_is_refused_before_any_work(command: str, options: str, at: Path) -> None:
    model = " --model @/model" if command in ("erase", "generate", "import", "demo") else ""
    is_refused(run(f"{command} {options}{model}", at))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[:20])
@pytest.mark.parametrize("command", OUTPUTS)
def test_a_place_that_cannot_be_written_to(command: str, place: str, at: Path) -> None:
    place += ".png" if command.startswith(("generate", "atelier paint")) else ""
    place += ".safetensors" if command.startswith("import") else ""
    is_refused(run(f"{command} {OUTPUTS[command]} --out {place}", at), "cannot be written to")


@pytest.mark.parametrize(
    "command",
    [
        *(f"{each} {more}" for each, more in OUTPUTS.items() if "erase" in each or "demo" in each),
        f"generate neon --seed {LATEST} --steps 1000 --guidance 0 --model @/model --out new/a.png",
        "erase neon --out new/folder --keep-rtol 0 --model @/model",
        "import @/keep.txt neon --out new/a.safetensors --model @/model",
        "import @/keep.txt neon --out @/deltas/neon.safetensors --overwrite --model @/model",
        f"demo --erase neon --seed {LATEST} --samples 10000 --model @/model --out new",
        "scenes run --no-fid --images 2 --concepts 9 --out new",
        "atelier train --out new --device cpu --batch 10000",
        "atelier evaluate --out new --seeds 10000",
        "atelier paint boat neon --out new/a.png",
    ],
)
def test_what_is_right_gets_to_work_and_has_written_nothing_yet(command: str, at: Path) -> None:
    assert isinstance(run(command, at).exception, Work)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("command", ["generate neon", "generate neon --out new.png", "erase neon"])
def test_within_a_model_s_folder_the_model_is_a_dot(command: str, at: Path, monkeypatch) -> None:
    monkeypatch.chdir(at / "model")
    more = " --out ../new" if command.startswith("erase") else ""
    assert isinstance(run(f"{command}{more} --model .", at).exception, Work)
    result = run("generate neon --model . --out unet/a.png", at)
    assert result.exit_code == 2
    assert "would overwrite 'unet'" in result.stderr


def test_a_folder_is_not_made_until_something_is_in_it(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "new", tmp_path / "a" / ".." / "b" / "c"):
        assert writable_folder(folder) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize("seed", [0, 1, LATEST])
def test_the_last_seed_leaves_room_for_the_pictures_after_it(seed: int) -> None:
    for evaluated in EVALUATED.values():
        seeds = [evaluated.seeds(index, 10_000, seed) for index in range(10)]
        assert all(each.start >= 0 and each.stop <= 2**63 for each in seeds)
        assert seed or seeds[3] == range(30_000, 40_000)  # as it has always been


@pytest.mark.parametrize("option", ["--out=~/x.png", "--out ~/x.png"])
def test_a_tilde_is_the_home_wherever_it_stands(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.png").mkdir()
    is_refused(run(f"atelier paint boat neon {option}", tmp_path), f"{tmp_path}/x.png is a folder")
