"""Every chapter runs on a model of one's own, with concepts of one's own, from top to bottom.

A file of its own, so that these long tests run beside those of `test_notebooks`.
"""

import shutil
from pathlib import Path

import pytest

from sepme.course.notebook import execute, tidy
from sepme.model import ATELIER
from tests.test_notebooks import complaints, each_to_run, words


@pytest.fixture(scope="module")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without judge, catalogue and deltas, as people bring one; quick to sample."""
    folder = tmp_path_factory.mktemp("models") / "mine"
    brings = ("catalogue.json", "judge.safetensors", "deltas", "generation.json")
    shutil.copytree(ATELIER, folder, ignore=shutil.ignore_patterns(*brings))
    (folder / "generation.json").write_text('{"guidance_scale": 4.0, "num_inference_steps": 3}')
    return folder


@pytest.mark.long
@each_to_run
def test_it_runs_on_a_model_of_ones_own(
    path: Path, own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEPME_MODEL", str(own_model))
    monkeypatch.setenv("SEPME_STYLES", "pixel, ink, swirl, cubism, woodcut, watercolor")
    monkeypatch.setenv("SEPME_OBJECTS", "car, cup, fish, star, tree, sun, house")
    executed = execute(path, tmp_path)
    assert complaints(tidy(executed)) == []
    shown = words(executed)
    for part in (
        "`mine`",
        "a model of your own",
        "*pixel* for neon",
        "claims of this chapter hold",
    ):
        assert part in shown
