"""What ships in data/atelier: complete, small, safe, documented and as good as it says."""

import json
import re
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from transformers import CLIPTokenizer

from sepme.atelier import evaluate as evaluation
from sepme.atelier._architecture import GENERATION, TOKENS, load_vae
from sepme.atelier._tokenizer import make_tokenizer
from sepme.atelier.captions import catalogue
from sepme.atelier.card import write_card
from sepme.atelier.evaluate import Asked, by_concept, evaluate, found, prompt_sets, shares
from sepme.atelier.judge import Judge
from sepme.atelier.paintings import OBJECTS, STYLES
from sepme.concept import BOTH, Catalogue, fill
from sepme.model import ATELIER, Backbone

QUALITY = json.loads((ATELIER / "quality.json").read_text())


def test_it_is_small_has_no_pickles_and_does_not_say_on_which_machine_it_was_made():
    files = [f for f in ATELIER.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 48 * 2**20
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".md", ".png", ".txt"}
    for file in (f for f in files if f.suffix == ".json"):
        assert "_name_or_path" not in file.read_text(), file


def test_catalogue_tokenizer_and_defaults_are_those_of_the_code():
    assert Catalogue.load(ATELIER / "catalogue.json") == catalogue()
    assert json.loads((ATELIER / "generation.json").read_text()) == GENERATION
    shipped = CLIPTokenizer.from_pretrained(ATELIER / "tokenizer")
    assert shipped.get_vocab() == make_tokenizer().get_vocab()
    assert shipped.model_max_length == TOKENS


def test_the_card_is_what_the_code_writes_from_what_was_recorded(tmp_path):
    card = (ATELIER / "README.md").read_text()
    hardware = re.search(r"of the steps\. (.*)\n", card)[1]
    limits = re.search(r"^Limits: .* 64 x 64 pixels\. (.*)$", card, re.MULTILINE)[1]
    assert write_card(ATELIER, QUALITY, tmp_path, hardware, limits).read_text() == card


def test_it_is_as_good_as_it_must_be():
    assert QUALITY["images"] >= 1000
    assert QUALITY["short_of_the_bar"] == []
    assert QUALITY["seconds_4x4_grid"] <= 15


def test_shares_of_right_pictures_by_hand():
    """Each crossing once: ink is wrong in all styles, of the boats only the neon one is right."""
    asked = prompt_sets(1)["crossings"]
    object_ = [a.object != "boat" or a.style == "neon" for a in asked]
    right = pd.DataFrame({"style": [a.style != "ink" for a in asked], "object": object_})
    assert shares(right) == {"images": 100, "style": 0.9, "object": 0.91}
    tables = by_concept(asked, right)
    assert tables["worst_style"] == 0
    assert tables["worst_object"] == 0.1
    assert tables["by_style"]["neon"] == {"style": 1, "object": 1}
    assert tables["by_object"]["boat"] == {"style": 0.9, "object": 0.1}
    assert (list(tables["by_style"]), list(tables["by_object"])) == (list(STYLES), list(OBJECTS))


@pytest.mark.slow
def test_an_evaluation_finds_the_figures_that_ship_and_no_more(monkeypatch):
    monkeypatch.setattr(evaluation, "held_out_accuracy", lambda judge: {"images": 0})
    few = partial(evaluation._novelty, crossings=2)
    monkeypatch.setattr(evaluation, "_novelty", few)
    vae = load_vae(ATELIER / "vae")
    noise = SimpleNamespace(
        pipe=SimpleNamespace(vae=vae), generate=lambda p, *_, **__: torch.rand(len(p), 3, 64, 64)
    )
    figures = evaluate(noise, Judge.load(), seeds=1)
    assert figures.keys() == QUALITY.keys()
    assert figures["vae_psnr"] == QUALITY["vae_psnr"]
    assert {"style", "object", "emblem"} <= set(figures["short_of_the_bar"])
    assert figures["distance_to_training_relative"] > 1.5


@pytest.mark.slow
def test_it_paints_what_it_is_asked_for():
    objects = OBJECTS[1:] + OBJECTS[:1]  # flower in swirl, fish in pointillism ...
    asked = [Asked(fill(BOTH[0], o, s), s, o) for s, o in zip(STYLES, objects, strict=True)]
    backbone = Backbone.load(device="cpu")
    right = found(Judge.load(), backbone.generate([a.prompt for a in asked], 77), asked).mean()
    assert right["style"] >= 0.9
    assert right["object"] >= 0.8
