"""`sepme scenes` and `sepme figures`: what the command line makes of words, and what it refuses."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sepme.cli import app
from sepme.figures import FIGURES, RESULTS
from sepme.scenes import Plan
from sepme.scenes.measures import MEASURES
from sepme.scenes.run import HEADER

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
        (["--kind", "mood"], "Kind 'mood' is unknown"),
        (["--scenes", "Scene9"], "Scene 'Scene9' is unknown"),
        (["--methods", "magic"], "Method 'magic' is unknown"),
        (["--concepts", "neon"], "'neon' is no list of numbers"),
        (["--concepts", "10"], "no concept 10"),
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
    assert result.exit_code == 0, result.output
    if measure in ("acc", "lpips"):
        assert "sepme" in result.output
        assert "watermark" in result.output


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
    lonely.write_text(",".join(HEADER) + "\n")
    assert "no manifest" in " ".join(
        sepme("scenes", "merge", lonely, "--out", tmp_path / "more").output.split()
    )
    assert not (tmp_path / "more").exists()


def test_one_figure_is_drawn_without_the_tables(tmp_path: Path) -> None:
    result = sepme("figures", "--only", "watermark", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("README.md", "watermark.json", "watermark.png", "watermark.svg"),
    ]
    assert FIGURES["watermark"].caption in (tmp_path / "README.md").read_text()
    assert "'mona' is unknown" in sepme("figures", "--only", "mona", "--out", tmp_path).output
