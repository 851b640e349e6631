"""`sepme scenes` and `sepme figures`: what the command line makes of words, and what it refuses."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sepme.cli import app
from sepme.scenes import Plan, read_table
from sepme.scenes.figures import FIGURES
from sepme.scenes.images import MEASURES
from sepme.scenes.methods import METHODS
from sepme.scenes.tables import COLUMNS, RESULTS

TABLE = RESULTS / "scenes_style.csv"


def sepme(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


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
    words = ["--scenes", "Alone0, Alone1", "--methods", "uce,fmn", "--concepts", "6, 9", "--no-fid"]
    out = tmp_path / "tables"
    result = sepme("scenes", "run", "--kind", "object", *words, "--images", 7, "--out", out)
    assert result.exit_code == 0, result.output
    ((plan, folder),) = plans
    assert plan == Plan(
        "object", ("Alone0", "Alone1"), ("uce", "fmn"), images=7, fid=False, concepts=(6, 9)
    )
    assert folder == out


def test_all_methods_are_listed() -> None:
    text = re.sub(r"-\s+", "-", sepme("scenes", "run", "--help").output)  # wrapped behind a hyphen
    words = set(re.findall(r"[\w-]+", text))
    assert set(METHODS) <= words


def test_what_is_said_goes_before_what_quick_means(plans: list) -> None:
    words = ["--methods", "sdd", "--images", 5, "--scenes", "Scene4", "--fid"]
    assert sepme("scenes", "run", "--quick", *words).exit_code == 0
    ((plan, _),) = plans
    assert plan == Plan(scenes=("Scene4",), methods=("sdd",), images=5, fid=True)


def test_quick_is_one_scene_of_two_methods(plans: list) -> None:
    assert sepme("scenes", "run", "--quick").exit_code == 0
    ((plan, folder),) = plans
    assert (plan.scenes, plan.methods, plan.images, plan.fid) == (
        ("Scene1",), ("sepme", "uce"), 10, False,
    )  # fmt: skip
    assert folder == Path("build/scenes/quick")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--kind", "mood"], "kind = 'mood' is unknown"),
        (["--scenes", "Scene9"], "Scene 'Scene9' is unknown"),
        (["--methods", "magic"], "method = 'magic' is unknown"),
        (["--concepts", "neon"], "'neon' is no list of numbers"),
        (["--concepts", "10"], "no concept 10"),
        (["--methods", ""], "at least one scene and one method"),
        (["--scenes", " , "], "at least one scene and one method"),
    ],
)
def test_run_refuses(words: list[str], why: str, plans: list, tmp_path: Path) -> None:
    result = sepme("scenes", "run", *words)
    assert result.exit_code == 2
    assert why in " ".join(result.output.split())
    assert plans == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("measure", MEASURES)
def test_a_table_is_printed_by_method_and_role(measure: str) -> None:
    result = sepme("scenes", "table", TABLE, "--measure", measure)
    if read_table(TABLE)[measure].notna().any():
        assert result.exit_code == 0, result.output
        assert "Scene1 sepme" in result.output
        assert "watermark" in result.output
    else:
        assert result.exit_code == 2
        assert f"No cell of this table holds {measure}" in " ".join(result.output.split())


def test_a_table_refuses(tmp_path: Path) -> None:
    assert (
        "Measure 'beauty' is unknown"
        in sepme("scenes", "table", TABLE, "--measure", "beauty").output
    )
    assert "cannot be read" in " ".join(sepme("scenes", "table", tmp_path / "x.csv").output.split())


def test_merged_tables_are_written(tmp_path: Path) -> None:
    result = sepme("scenes", "merge", TABLE, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / TABLE.name).read_bytes() == TABLE.read_bytes()
    lonely = tmp_path / TABLE.name
    lonely.write_text(",".join(COLUMNS) + "\n")
    assert "no manifest" in " ".join(
        sepme("scenes", "merge", lonely, "--out", tmp_path / "more").output.split()
    )
    assert not (tmp_path / "more").exists()


def test_one_figure_is_drawn_without_the_tables(tmp_path: Path) -> None:
    result = sepme("figures", "--only", "watermark_style", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("watermark_style.json", "watermark_style.png", "watermark_style.svg"),
    ]
    assert FIGURES["watermark_style"].caption in (tmp_path / "watermark_style.json").read_text()
    assert "No figure was named" in sepme("figures", "--only", "", "--out", tmp_path).output
    nowhere = sepme("figures", "--results", tmp_path / "nowhere", "--out", tmp_path / "new")
    assert "There is no folder" in nowhere.output
    assert not (tmp_path / "new").exists()
    assert "'mona' is unknown" in sepme("figures", "--only", "mona", "--out", tmp_path).output
