"""`sepme scenes` and `sepme figures`: what the command line makes of words, and what it refuses."""

import re
from pathlib import Path

import pytest

from sepme.scenes import Plan, read_table
from sepme.scenes.figures import FIGURES
from sepme.scenes.images import MEASURES
from sepme.scenes.methods import METHODS
from sepme.scenes.tables import COLUMNS, RESULTS
from tests.test_cli import refused, sepme

TABLE = RESULTS / "scenes_style.csv"


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Plan, Path]]:
    """What `scenes run` would have done."""
    asked: list[tuple[Plan, Path]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sepme.scenes.run_scenes", lambda *given, **_: asked.append((given[3], given[4]))
    )
    return asked


def test_words_become_a_plan(plans: list, tmp_path: Path) -> None:
    words = [
        "--scenes",
        "Alone0, Alone1",
        "--methods",
        "uce@catalogue,fmn",
        "--concepts",
        "6, 9",
        "--no-fid",
    ]
    out = tmp_path / "tables"
    sepme("scenes", "run", "--kind", "object", *words, "--images", 7, "--out", out)
    scenes, methods = ("Alone0", "Alone1"), ("uce@catalogue", "fmn")
    plan = Plan("object", scenes, methods, images=7, fid=False, concepts=(6, 9))
    assert plans == [(plan, out)]


def test_quick_means_little_unless_something_else_is_said(plans: list) -> None:
    sepme("scenes", "run", "--quick")
    plan = Plan(
        scenes=("Scene1",), methods=("sepme@catalogue", "uce@catalogue"), images=10, fid=False
    )
    assert plans.pop() == (plan, Path("build/scenes/quick"))
    words = ["--methods", "sdd", "--images", 5, "--scenes", "Scene4", "--fid"]
    sepme("scenes", "run", "--quick", *words)
    assert plans.pop()[0] == Plan(scenes=("Scene4",), methods=("sdd",), images=5, fid=True)


def test_all_methods_are_listed() -> None:
    text = re.sub(r"-\s+", "-", sepme("scenes", "run", "--help").output)  # wrapped behind a hyphen
    assert set(METHODS) <= set(re.findall(r"[\w@-]+", text))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--kind", "mood"], "kind = 'mood' is unknown"),
        (["--scenes", "Scene9"], "scene = 'Scene9' is unknown"),
        (["--methods", "magic"], "method = 'magic' is unknown"),
        (["--concepts", "neon"], "'neon' is no list of numbers"),
        (["--concepts", "10"], "no concept 10"),
        (["--images", "10001"], "images = 10001"),
        (["--methods", ""], "at least one scene and one method"),
        (["--scenes", " , "], "at least one scene and one method"),
    ],
)
def test_run_refuses(words: list[str], why: str, plans: list, tmp_path: Path) -> None:
    refused("scenes", "run", *words, words=(why,))
    assert plans == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("measure", MEASURES)
def test_a_table_is_printed_by_method_and_role(measure: str) -> None:
    command = ("scenes", "table", TABLE, "--measure", measure)
    if read_table(TABLE)[measure].notna().any():
        printed = sepme(*command).output
        assert "Scene1 SepME, closed form + training [catalogue]" in printed
        assert "watermark" in printed
    else:
        refused(*command, words=(f"No cell of this table holds {measure}",))


def test_a_table_refuses(tmp_path: Path) -> None:
    command = ("scenes", "table", TABLE, "--measure", "beauty")
    refused(*command, words=("measure = 'beauty' is unknown",))
    refused("scenes", "table", tmp_path / "x.csv", words=("cannot be read",))


def test_merged_tables_are_written(tmp_path: Path) -> None:
    sepme("scenes", "merge", TABLE, "--out", tmp_path / "out")
    assert (tmp_path / "out" / TABLE.name).read_bytes() == TABLE.read_bytes()
    lonely = tmp_path / TABLE.name
    lonely.write_text(",".join(COLUMNS) + "\n")
    refused("scenes", "merge", lonely, "--out", tmp_path / "more", words=("no manifest",))
    assert not (tmp_path / "more").exists()


def test_one_figure_is_drawn_without_the_tables(tmp_path: Path) -> None:
    out = tmp_path / "figures"
    sepme("figures", "--only", "watermark_style", "--out", out)
    assert sorted(path.name for path in out.iterdir()) == [
        *("watermark_style.json", "watermark_style.png", "watermark_style.svg"),
    ]
    assert FIGURES["watermark_style"].caption in (out / "watermark_style.json").read_text()
    refused("figures", "--only", "", "--out", out, words=("No figure was named",))
    refused("figures", "--only", "mona", "--out", out, words=("'mona' is unknown",))
    nowhere = ("--results", tmp_path / "nowhere", "--out", tmp_path / "new")
    refused("figures", *nowhere, words=("There is no folder",))
    assert not (tmp_path / "new").exists()
