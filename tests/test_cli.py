"""The command line on the miniature pipeline: what it writes, what it refuses, how it resumes."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from sepme import __version__
from sepme.cli import app
from sepme.cli.main import echo
from sepme.concept import Catalogue, Concept
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS
from sepme.jobs.tasks import _claimed
from sepme.model import ATELIER, Backbone
from tests.tiny import make_tiny_pipeline

#: A file that is neither a delta nor a model nor a concept.
README = Path(__file__).parent.parent / "README.md"
CATALOGUE = Catalogue(
    {
        "neon": Concept("neon", ("neon", "a boat in neon style"), "style", ("", "a boat")),
        "ink": Concept("ink", ("ink", "a boat in ink style"), "style", ("", "a boat")),
        "boat": Concept("boat", ("boat", "a boat in neon style"), "object"),
    },
    aliases={"ship": "boat"},
)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature model on the disk, sampled in three steps, without a catalogue like the hub's."""
    return _saved(tmp_path_factory.mktemp("bare"), seed=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, with other weights, that brings a catalogue."""
    folder = _saved(tmp_path_factory.mktemp("model"), seed=0)
    CATALOGUE.save(folder / "catalogue.json")
    return folder


def _saved(folder: Path, seed: int) -> Path:
    make_tiny_pipeline(seed=seed).save_pretrained(folder)
    (folder / "generation.json").write_text('{"guidance_scale": 4.0, "num_inference_steps": 3}')
    return folder


def sepme(*words: object, ok: bool = True) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if ok:
        assert result.exit_code == 0, result.output
    return result


def refused(*command: object, words: tuple[str, ...]) -> None:
    """The command must end with code 2, and say one sentence on one line of stderr."""
    result = sepme(*command, ok=False)
    assert result.exit_code == 2, result.output
    line = result.stderr.strip()
    assert line.startswith("sepme: "), line
    assert line.endswith("."), line
    assert "\n" not in line, line
    assert "Traceback" not in result.output
    for word in words:
        assert word in line


@pytest.fixture(scope="module")
def deltas(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deltas of neon and boat, in closed form."""
    folder = tmp_path_factory.mktemp("deltas")
    sepme("erase", "neon, ship", "--closed-form", "--out", folder, "--model", model)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default preset, cut short."""
    short = replace(PRESETS["default"], iterations=3, batch=2, images=2)
    monkeypatch.setitem(PRESETS, "default", short)


# ------------------------------------------------------------------ erase
def test_erase_writes_one_file_a_concept_and_skips_what_is_there(deltas: Path, model: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in deltas.iterdir()}
    assert {path.name for path in before} == {"boat.safetensors", "neon.safetensors"}
    delta = ConceptDelta.load(deltas / "neon.safetensors")
    assert delta.forgotten == CATALOGUE["neon"].prompts
    assert {"", "boat", "ink"} <= set(delta.kept)
    result = sepme("erase", "neon,boat", "--closed-form", "--out", deltas, "--model", model)
    assert result.stdout.count("Already erased with these settings") == 1  # closed forms at once
    assert all(str(path) in result.stdout for path in before)
    assert {path: path.stat().st_mtime_ns for path in deltas.iterdir()} == before


def test_the_papers_protocol_forgets_a_bare_name_and_keeps_the_others(
    model: Path, tmp_path: Path
) -> None:
    command = ("erase", "neon, ink", "--closed-form", "--protocol", "paper", "--out", tmp_path)
    sepme(*command, "--model", model)
    delta = ConceptDelta.load(tmp_path / "neon.safetensors")
    assert delta.forgotten == ("neon",)
    seal = {"atelier seal"} & set(CATALOGUE.concepts)
    assert set(delta.kept) == {"", "ink", *seal}
    refused("erase", "neon", "--protocol", "none", words=("protocol = 'none' is unknown",))


def test_other_settings_replace_a_file_only_when_told_to(model: Path, tmp_path: Path) -> None:
    command = ("erase", "ink", "--closed-form", "--out", tmp_path, "--model", model)
    sepme(*command)
    before = (tmp_path / "ink.safetensors").read_bytes()
    refused(*command, "--keep-rtol", 0.1, words=("ink.safetensors", "--overwrite"))
    assert (tmp_path / "ink.safetensors").read_bytes() == before
    sepme(*command, "--keep-rtol", 0.1, "--overwrite")
    assert (tmp_path / "ink.safetensors").read_bytes() != before


def test_words_of_ones_own_on_a_model_without_a_catalogue(bare: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep.txt"
    keep.write_text("a cat\n\na tree\n")
    out = tmp_path / "out"
    command = ("--closed-form", "--keep", "house", "--keep-from", keep, "--model", bare)
    sepme("erase", "neon, red boat", *command, "--out", out)
    delta = ConceptDelta.load(out / "red-boat.safetensors")
    assert delta.concept == "red boat"
    assert set(delta.kept) == {"", "neon", "house", "a cat", "a tree"}


@pytest.mark.usefixtures("quick")
def test_jointly_and_one_by_one_are_not_taken_for_each_other(model: Path, tmp_path: Path) -> None:
    command = ("erase", "neon, ink", "--out", tmp_path, "--model", model)
    sepme(*command, "--joint")
    assert "Already erased" in sepme(*command, "--joint").stdout
    delta = ConceptDelta.load(tmp_path / "ink.safetensors")
    assert delta.provenance.settings["jointly"] == ["neon", "ink"]
    refused(*command, words=("neon.safetensors", "other settings"))


@pytest.mark.usefixtures("quick")
def test_a_later_concept_leaves_the_earlier_ones_alone(model: Path, deltas: Path, tmp_path: Path):
    earlier = deltas / "neon.safetensors"
    command = ("erase", "ink", "--after", earlier, "--out", tmp_path, "--model", model)
    sepme(*command)
    delta = ConceptDelta.load(tmp_path / "ink.safetensors")
    assert delta.provenance.after == (ConceptDelta.load(earlier).digest,)
    assert "Already erased" in sepme(*command).stdout


# ------------------------------------------------------------------ Ctrl-C (tests/borders kills)
def test_ctrl_c_says_how_to_go_on(model: Path, tmp_path: Path, monkeypatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sepme.jobs.tasks.erase_into", interrupt)
    result = sepme("erase", "neon, ink", "--out", tmp_path, "--model", model, ok=False)
    assert result.exit_code == 130
    assert result.stderr.strip() == (
        "sepme: Interrupted. The same command goes on from the last checkpoint."
    )


# ------------------------------------------------------------------ generate, inspect, doctor
@pytest.mark.parametrize(
    ("words", "erased"),
    [
        (["ship"], "boat"),
        (["Ship "], "boat"),
        (["neon, ship"], "neon, boat"),
        (["deltas/neon.safetensors", "ship,"], "neon, boat"),
        (["a, b.safetensors"], "neon"),
        ([], "nothing"),
    ],
)
def test_deltas_are_named_as_concepts_are(
    words: list[str], erased: str, model: Path, deltas: Path, tmp_path: Path, monkeypatch
) -> None:
    shutil.copytree(deltas, tmp_path / "deltas")
    shutil.copy(deltas / "neon.safetensors", tmp_path / "a, b.safetensors")
    monkeypatch.chdir(tmp_path)
    options = [option for word in words for option in ("--erase", word)]
    said = sepme("generate", "a cat", *options, "--steps", 1, "--model", model).stdout
    assert f", {erased} erased, " in said


def test_generate_draws_with_any_subset_erased(
    model: Path, deltas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(name: str, *erased: str) -> bytes:
        out = tmp_path / name
        switched = [word for one in erased for word in ("--erase", deltas / f"{one}.safetensors")]
        sepme("generate", "neon", *switched, "--seed", 3, "--out", out, "--model", model)
        return out.read_bytes()

    original = drawn("original.png")
    assert drawn("again.png") == original
    assert drawn("without.png", "neon") != original
    assert drawn("both.png", "neon", "boat") == drawn("other_order.png", "boat", "neon")
    again = tmp_path / "compose.png"  # the same command by another name
    sepme("compose", "neon", "--seed", 3, "--out", again, "--model", model)
    assert again.read_bytes() == original
    with Image.open(tmp_path / "original.png") as picture:
        assert picture.size == (32, 32)
    monkeypatch.chdir(tmp_path)  # where `erase` writes, a name will do
    (tmp_path / "deltas").symlink_to(deltas)
    sepme("generate", "neon", "--erase", "neon", "--seed", 3, "--out", "name.png", "--model", model)
    assert (tmp_path / "name.png").read_bytes() == (tmp_path / "without.png").read_bytes()


def test_only_what_is_asked_for_is_read(model, bare, deltas, tmp_path, monkeypatch) -> None:
    """A broken catalogue stops nobody who names no concept; hidden files are nobody's deltas."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "mine")
    Path("mine", "catalogue.json").write_text("{")
    sepme("generate", "neon", "--out", "plain.png", "--model", "mine")
    Path("deltas").mkdir()
    shutil.copy(deltas / "neon.safetensors", "deltas/ink-like.safetensors")
    shutil.copy(deltas / "neon.safetensors", "deltas/._neon.safetensors")
    said = ("(there are: ink-like)",)
    refused("generate", "a", "--erase", "neon", "--out", "a.png", "--model", bare, words=said)


def test_inspect_says_what_a_file_holds(deltas: Path, tmp_path: Path) -> None:
    drawing = tmp_path / "spectrum.png"
    result = sepme("inspect", deltas / "neon.safetensors", "--spectrum", drawing)
    for words in ("neon (style)", "closed form", "forgets 2 prompts", "attn2.to_k", "rank"):
        assert words in result.stdout
    listed = sepme("inspect", deltas / "neon.safetensors", "--prompts").stdout
    assert '"a boat in ink style"' in listed
    assert "... and" not in listed
    with Image.open(drawing) as picture:
        assert picture.width > 500
    assert sepme("inspect", "neon").stdout.startswith("concept       neon (style)")  # that ships


def test_doctor_measures_instead_of_guessing(model: Path, monkeypatch) -> None:
    monkeypatch.setattr("sepme.cli._doctor.PACKAGES", ("torch", "no-such-package"))
    result = sepme("doctor", "--model", model)
    assert "no-such-package MISSING" in result.stdout
    for subject in ("Python", "device", "threads", "LPIPS", "fingerprint", "one picture", "memory"):
        assert f"\n{subject} " in result.stdout
    for words in (
        *("drawn alone", "each of 8 at once", "a concept at most", "all takes longer"),
        *("48 passes of the UNet draw 12", "416 forwards and 320 backwards", "peak of erasing"),
    ):
        assert words in result.stdout
    assert Backbone.load(model).fingerprint in result.stdout


def test_version_and_help() -> None:
    assert sepme("--version").stdout == f"sepme {__version__}\n"
    assert "erase" in sepme("--help").stdout


# ------------------------------------------------------------------ the atelier
def test_atelier_paints_and_judges(tmp_path: Path, monkeypatch) -> None:
    from sepme.atelier.judge import Judge

    monkeypatch.setattr(Judge, "load", lambda path=None: Judge())
    out = tmp_path / "boat.png"
    sepme("atelier", "paint", "boat", "neon", "--seed", 5, "--out", out)
    with Image.open(out) as picture:
        assert picture.size == (64, 64)
    lines = sepme("atelier", "judge", out, out).stdout.splitlines()
    assert lines[0].split() == ["picture", *"style object style sure object sure".split()]
    assert len(lines) == 3  # a header and a line a picture
    assert lines[1] == lines[2]


def test_atelier_trains_with_what_was_typed(tmp_path: Path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("sepme.atelier.train.train", lambda *words: asked.append(words) or "here")
    result = sepme("atelier", "train", "--out", tmp_path, "--steps", 7, "--seed", 3)
    ((folder, settings),) = asked
    assert (folder, settings.steps, settings.seed) == (tmp_path, 7, 3)
    assert result.stdout == "The model is in here\n"


def test_atelier_evaluates_into_figures_pictures_and_card(tmp_path: Path, monkeypatch) -> None:
    figures = json.loads((ATELIER / "quality.json").read_text())
    monkeypatch.setattr("sepme.atelier.evaluate.evaluate", lambda *_, **__: figures)
    monkeypatch.setattr("sepme.atelier.evaluate.sample_grid", lambda model: torch.zeros(3, 64, 64))
    command = ("atelier", "evaluate", "--out", tmp_path, "--limits", "It knows no purple.")
    assert str(tmp_path / "README.md") in sepme(*command).stdout
    assert json.loads((tmp_path / "quality.json").read_text()) == figures
    assert "It knows no purple." in (tmp_path / "README.md").read_text()
    assert (tmp_path / "samples.png").is_file()


# ------------------------------------------------------------------ warnings
def warned(*command: object) -> list[str]:
    """What the command says on stderr although it does its work."""
    return [line.removeprefix("sepme: warning: ") for line in sepme(*command).stderr.splitlines()]


def test_words_that_the_model_does_not_know_are_said_once(
    model: Path, bare: Path, tmp_path: Path
) -> None:
    drawn = ("generate", "red, red", "--out", tmp_path / "a.png", "--model", model)
    red = "The word 'red' means nothing to this model, which was never shown it."
    assert warned(*drawn) == [red]
    assert (tmp_path / "a.png").is_file()
    erased = ("erase", "red boat, red house", "--closed-form", "--model", bare)
    assert warned(*erased, "--out", tmp_path / "deltas") == [red]
    known = ("generate", "a boat in the style of neon", "--out", tmp_path / "b.png")
    assert warned(*known, "--model", model) == []


def test_a_concept_without_a_known_word_is_refused(bare: Path, empty: Path) -> None:
    command = ("erase", "neon, Van Gogh", "--closed-form", "--out", empty, "--model", bare)
    refused(*command, words=("no word of 'Van Gogh'", "nothing to forget"))


def test_kept_prompts_that_will_change_too_are_said(model: Path, tmp_path: Path) -> None:
    command = ("erase", "neon", "--closed-form", "--keep-rtol", 0.5, "--model", model)
    (line,) = warned(*command, "--out", tmp_path)
    assert line.startswith("'neon' can hardly be told from ")
    assert line.endswith(" to change too.")


def test_keeping_nothing_is_said_unless_it_is_asked_for(bare: Path, tmp_path: Path) -> None:
    command = ("erase", "neon", "--closed-form", "--model", bare, "--out")
    (line,) = warned(*command, tmp_path / "a")
    assert line.startswith("Nothing but the empty prompt is kept: whatever is like 'neon'")
    assert warned(*command, tmp_path / "b", "--keep", "") == []


def test_many_names_at_once_have_a_short_hidden_file(bare: Path, tmp_path: Path) -> None:
    words = [f"neon {a} {b}" for a in ("boat", "ink", "house", "cat") for b in "abcdefg"]
    command = ("erase", ", ".join(words), "--closed-form", "--keep", "boat", "--model", bare)
    sepme(*command, "--out", tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {word.replace(" ", "-") for word in words}


# ------------------------------------------------------------------ bad input
@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Path]:
    """A folder that must hold nothing afterwards."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["neno"], ("'neno'", "did you mean neon")),
        ([" , "], ("No concept was named",)),
        (["neon", "--preset", "best"], ("'best'", "closed_form, from_zero, faithful")),
        (["neon", "--keep", "Neon"], ("also to be kept",)),
        (["neon", "--joint"], ("two concepts",)),
        (["neon", "--preset", "paper", "--closed-form"], ("leave out --preset",)),
        (["neon", "--preset", "undecoupled", "--keep", "a cat"], ("keeps nothing",)),
        (["neon", "--keep-from", "none.txt"], ("'none.txt'", "No such file", "prompt a line")),
        (["neon", "--keep-from", "."], ("'.'", "give a text file")),
        (
            ["neon", "--after", "neno"],
            ("no file 'neno', nor a delta of that name", "erase it first"),
        ),
        (["neon.safetensors"], ("'neon.safetensors' is a file", "generate PROMPT --erase")),
        (["neon, boat.safetensors"], ("is a file",)),
        ([str(README)], ("README.md' is a file", 'like "neon"')),
    ],
)
def test_erase_refuses(words: list[str], said: tuple[str, ...], model: Path, empty: Path) -> None:
    refused("erase", *words, "--out", empty, "--model", model, words=said)


@pytest.mark.parametrize("options", [("--keep", "neon " * 30), ("--after", "DELTAS/neon")])
@pytest.mark.parametrize("preset", ["closed_form", "default"])
def test_what_the_model_s_words_contradict_is_refused_before_a_folder_is_made(
    options: tuple[str, str], preset: str, model: Path, deltas: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("sepme.jobs.tasks.erase", lambda *_, **__: 1 / 0)
    options = [word.replace("DELTAS/neon", f"{deltas}/neon.safetensors") for word in options]
    command = ("erase", "boat, neon", "--preset", preset, "--out", tmp_path / "a", *options)
    refused(*command, "--model", model, words=("shorten" if "--keep" in options else "twice",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["", "a", "a/b"])
def test_an_erasure_that_fails_takes_the_folders_away_that_it_made(there: str, tmp_path: Path):
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    with pytest.raises(ZeroDivisionError), _claimed(tmp_path / "a" / "b" / ".neon.lock", wait=True):
        raise ZeroDivisionError
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"": set(), "a": {"a"}, "a/b": {"a", "a/b"}}[there]


@pytest.mark.parametrize("command", ["erase neon", "generate neon", "demo", "doctor"])
def test_what_is_no_model_is_refused(command: str, empty: Path) -> None:
    out = [] if command == "doctor" else ["--out", empty / "a.png"]
    said = "catalogue.json" if command == "demo" else "README.md' is a file"
    refused(*command.split(), *out, "--model", README, words=(said,))
    nowhere = empty / "model"
    refused(*command.split(), *out, "--model", nowhere, words=(f"'{nowhere}'",))


@pytest.mark.parametrize(
    "command",
    [("erase", "neon"), ("demo",), ("atelier", "train"), ("course", "build")],
    ids=lambda command: command[0],
)
def test_a_file_in_place_of_the_folder(command: tuple[str, ...], tmp_path: Path) -> None:
    """Refused before a model is loaded or anything is written."""
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, tmp_path / "neon.safetensors"):
        refused(*command, "--out", out, words=(f"'{out}' names a file", "--out"))
    refused("generate", "neon", "--out", file / "a.png", words=("cannot be written to", "--out"))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_generate_refuses(model, bare, deltas, tmp_path, empty) -> None:
    neon, truncated = deltas / "neon.safetensors", tmp_path / "truncated.safetensors"
    truncated.write_bytes(neon.read_bytes()[:-100])
    missing, out = tmp_path / "missing.safetensors", empty / "a.png"
    for command, words in (
        (("--erase", missing, "--out", out), ("missing.safetensors cannot be opened",)),
        (("--erase", "neno", "--out", out), ("'neno'", "there are: none", "erase it first")),
        (("--erase", "neno, neon", "--out", out), ("'neno'",)),
        (("--erase", truncated, "--out", out), ("truncated",)),
        (("--erase", neon, "--out", empty / "a.jpg"), ("end it in .png",)),
        (("--guidance", 0.5, "--out", out), ("guidance = 0.5", "give 0 (no words), 1")),
    ):
        refused("generate", "a", *command, "--model", model, words=words)
    command = ("generate", "a", "--erase", neon, "--out", out, "--model", bare)
    refused(*command, words=("another base model",))


def test_inspect_refuses_what_sepme_did_not_write(model: Path, empty: Path) -> None:
    foreign = model / "unet" / "diffusion_pytorch_model.safetensors"
    refused("inspect", foreign, words=("not written by sepme",))
    refused("inspect", README, words=("README.md is not a whole safetensors file",))
    refused("inspect", empty, words=("There is no file",))
    refused("inspect", "neon, ink", words=("One file is inspected at a time",))


def test_demo_refuses(model: Path, bare: Path, empty: Path) -> None:
    refused("demo", "--out", empty, "--model", bare, words=("brings no catalogue.json",))
    refused("demo", "--erase", "neno", "--out", empty, "--model", model, words=("neon",))


def test_atelier_refuses(tmp_path: Path, empty: Path) -> None:
    refused("atelier", "paint", "boat", "rococo", "--out", empty / "a.png", words=("'rococo'",))
    small = tmp_path / "small.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(small)
    refused("atelier", "judge", small, words=("32 x 32", "64 x 64"))
    small.write_text("no picture")
    refused("atelier", "judge", small, words=("cannot be read as a picture",))


def test_what_a_command_prints_does_not_act_on_a_terminal(capsys: pytest.CaptureFixture) -> None:
    echo("one \x1b[2J line\nand \u202eanother, میخواهم")
    assert capsys.readouterr().out == "one \\x1b[2J line\nand \\u202eanother, میخواهم\n"


# ------------------------------------------------------------------ export
def test_export_writes_a_folder_for_other_programs(
    deltas: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    files = [deltas / f"{name}.safetensors" for name in ("neon", "boat")]
    command = ("export", *files, "--model", model, "--out", out)
    result = sepme(*command, "--format", "kohya", "--rank", 2)
    assert "out/neon-boat.safetensors: relative error 0." in result.stdout
    assert {path.name for path in out.iterdir()} == {"README.md", "neon-boat.safetensors"}
    refused(*command, words=("is there already",))
    sepme(*command, "--overwrite", "--strength", 0.5)
    loaded = ConceptDelta.load(out / "neon-boat.safetensors")
    path = loaded.paths[0]
    one, two = map(ConceptDelta.load, files)
    half = (one.dense(path) + two.dense(path)) / 2
    assert float((loaded.dense(path) - half).abs().max()) <= 1e-6
    refused("export", "oil", "--model", model, "--out", tmp_path / "b", words=("oil",))
    within = ("export", files[0], "--model", model, "--overwrite")
    refused(*within, "--out", deltas, words=("would overwrite",))
    assert not (tmp_path / "b").exists()
