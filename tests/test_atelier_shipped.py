"""What ships in data/atelier: complete, small, safe, documented and as good as it says."""

import json

import pytest
import torch
from transformers import CLIPTokenizer

from sepme.atelier._architecture import GENERATION, TOKENS
from sepme.atelier._tokenizer import make_tokenizer
from sepme.atelier.captions import catalogue
from sepme.atelier.card import hashes
from sepme.atelier.evaluate import Asked, found
from sepme.atelier.judge import Judge
from sepme.atelier.paintings import OBJECTS, STYLES
from sepme.concept import BOTH, Catalogue, fill
from sepme.model import ATELIER, Backbone


def test_it_is_small_and_has_no_pickles():
    files = [f for f in ATELIER.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 48 * 2**20
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".md", ".png", ".txt"}


def test_it_does_not_say_on_which_machine_it_was_made():
    for file in ATELIER.rglob("*.json"):
        assert "_name_or_path" not in file.read_text(), file


def test_catalogue_tokenizer_and_defaults_are_those_of_the_code():
    assert Catalogue.load(ATELIER / "catalogue.json") == catalogue()
    assert json.loads((ATELIER / "generation.json").read_text()) == GENERATION
    shipped = CLIPTokenizer.from_pretrained(ATELIER / "tokenizer")
    assert shipped.get_vocab() == make_tokenizer().get_vocab()
    assert shipped.model_max_length == TOKENS


def test_the_card_names_every_weights_file_with_its_hash():
    card = (ATELIER / "README.md").read_text()
    for name, digest in hashes(ATELIER):
        assert f"| {name} | `{digest}` |" in card


def test_the_figures_come_from_enough_pictures():
    quality = json.loads((ATELIER / "quality.json").read_text())
    assert quality["images"] >= 1000
    assert quality["style"] >= 0.97
    assert quality["seconds_4x4_grid"] <= 15


@pytest.mark.slow
def test_it_paints_what_it_is_asked_for():
    asked = [
        Asked(fill(BOTH[0], o, s), s, o)
        for s, o in zip(STYLES * 2, OBJECTS + OBJECTS[1:] + OBJECTS[:1], strict=True)
    ]
    backbone = Backbone.load(device="cpu")
    right = found(Judge.load(), backbone.generate([a.prompt for a in asked], 77), asked)
    style, object_ = torch.unbind(right.float().mean(0))
    assert style >= 0.9
    assert object_ >= 0.8
