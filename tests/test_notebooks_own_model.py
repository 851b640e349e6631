"""Every chapter runs on another model, with concepts of one's own, from top to bottom.

A file of its own, so that these long tests run beside those of `test_notebooks`.
"""

import re
from pathlib import Path

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell

from sepme.course.notebook import execute, tidy
from sepme.model import Backbone
from sepme.nullspace import null_space
from sepme.shapes import CLIP_MERGES, random_pipeline
from tests.test_notebooks import complaints, each_to_run, words

#: Run before chapters that train much: twelve iterations in place of more than this many. Chapter
#: 03 compares its own loop of forty with the library's.
LONGEST = {"03": 40, "04": 12, "06": 12, "10": 12}
#: What stands for a concept of the chapter; elsewhere one's own first style stands for neon.
STANDS = {"09": "*pixel* for Van Gogh", "10": "*car* for boat"}
SHORTEN = """
from sepme.training import Trainer

whole = Trainer.train
Trainer.train = lambda self, loss, optimiser, iterations, **options: whole(
    self, loss, optimiser, 12 if iterations > {longest} else iterations, **options
)
"""

pytestmark = pytest.mark.skipif(
    CLIP_MERGES.path() is None, reason="open-clip-torch is not installed (make does it)"
)


@pytest.fixture(scope="session")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as people bring one, without judge, catalogue and deltas; quick to sample."""
    folder = tmp_path_factory.mktemp("models") / "mine"
    random_pipeline("sd14", miniature=True).save_pretrained(folder)
    (folder / "generation.json").write_text('{"guidance_scale": 4.0, "num_inference_steps": 3}')
    return folder


def test_the_model_has_the_shape_of_stable_diffusion(own_model: Path) -> None:
    backbone = Backbone.load(own_model, device="cpu")
    layers = backbone.projections()
    assert (len(layers), backbone.tokens, backbone.d_in) == (32, 77, 768)
    assert {path.split(".attentions")[0] for path in layers} == {
        *("down_blocks.0", "down_blocks.1", "down_blocks.2", "mid_block"),
        *("up_blocks.1", "up_blocks.2", "up_blocks.3"),
    }
    assert backbone.prediction_type == "epsilon"
    assert backbone.vocabulary.words is None  # any word may be read in pieces
    # The start token is the same in every prompt: each further one has 76 rows of its own.
    names = backbone.encode(["", "Van Gogh", "church"]).flatten(0, 1)
    assert null_space(names, 1e-6).rank == 77 + 2 * 76
    x_t, t = torch.randn(1, *backbone.latent_shape), torch.tensor([500])
    with torch.no_grad():
        empty, named = (backbone.epsilon(x_t, t, backbone.encode([p])) for p in ("", "church"))
    assert 0.05 < float((named - empty).norm() / empty.norm()) < 2  # it listens to the text


@pytest.mark.chapters
@each_to_run
def test_it_runs_on_a_model_of_ones_own(
    path: Path, own_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_model.parent))
    monkeypatch.setenv("SEPME_MODEL", str(own_model))
    many = path.name.startswith("05")  # each prompt that is kept takes 77 rows
    styles, objects = "pixel, ink, swirl, cubism, woodcut", "car, cup, fish, star, tree"
    monkeypatch.setenv("SEPME_STYLES", styles + ", watercolor" * many)
    monkeypatch.setenv("SEPME_OBJECTS", objects + ", sun, house" * many)
    monkeypatch.setenv("SEPME_KEEP", "a photo of a dog")
    monkeypatch.setenv("SEPME_KEEP_RTOL", "0.06")
    chapter = nbformat.read(path, 4)
    if longest := LONGEST.get(path.name[:2]):
        chapter.cells.insert(0, new_code_cell(SHORTEN.format(longest=longest)))
    nbformat.write(chapter, tmp_path / path.name)
    executed = execute(tmp_path / path.name, tmp_path)
    assert complaints(tidy(executed)) == []
    shown = words(executed)
    for part in (
        "`mine`",
        "a model of your own",
        STANDS.get(path.name[:2], "*pixel* for neon"),
        "Your retain set: all prompts of the other concepts, and *a photo of a dog*.",
        "Your tolerance of the null space: 0.06.",
        "claims of this chapter hold",
    ):
        assert part in shown
    assert not re.search(r"\b0 of 0\b", shown)
