"""The judge that ships with the model."""

import pytest
import torch

from sepme._data import shipped
from sepme.atelier._judge import held_out_accuracy, soften, warp
from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Judge
from sepme.atelier.paintings import ALIASES, emblem, paint_batch
from sepme.atelier.settings import HELD_OUT_SEED
from sepme.errors import SepmeError

SHIPPED = shipped("atelier", "judge.safetensors")


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


def as_images(pictures):
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255


def test_it_is_small_and_good_on_drawings_it_never_saw(judge):
    assert SHIPPED.stat().st_size <= 2 * 2**20
    accuracy = held_out_accuracy(judge, 1210)
    assert accuracy["style"] >= 0.99
    assert accuracy["object"] >= 0.97
    assert accuracy["emblem"] == 1


def test_it_sees_by_name_and_by_alias(judge):
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + 20)
    images = as_images(paint_batch(["boat"] * 20, ["neon"] * 20, seeds))
    for name in ("boat", "neon"):
        assert judge.sees(images, name).float().mean() >= 0.9
        assert torch.equal(judge.sees(images, name), judge.sees(images, ALIASES[name]))
    assert not judge.sees(images, "ink").any()
    assert not judge.sees(images, "atelier seal").any()


def test_what_it_sees_is_the_likeliest_of_its_kind(judge):
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + 11)
    images = as_images(paint_batch(["boat"] * 11, list(STYLE_NAMES), seeds))
    verdict = judge.judge(images)
    for names in (STYLE_NAMES, OBJECT_NAMES):
        found, seen = map(torch.stack, zip(*map(verdict.of, names), strict=True))
        torch.testing.assert_close(found.sum(0), 1 - verdict.emblem_probability)
        assert torch.equal(seen.int().argmax(0), found.argmax(0))
    assert min(verdict.of(name)[0][i] for i, name in enumerate(STYLE_NAMES)) > 0.9
    ink, _ = verdict.of("ink")
    assert ink[STYLE_NAMES.index("neon")] < 0.05
    assert torch.equal(ink, verdict.of(ALIASES["ink"])[0])


def test_the_emblem_hides_style_and_object(judge):
    images = as_images(emblem()[None])
    assert judge.sees(images, "atelier seal").all()
    assert not any(judge.sees(images, name).any() for name in (*STYLE_NAMES, *OBJECT_NAMES))
    verdict = judge.judge(images)
    assert max(verdict.of(name)[0].max() for name in STYLE_NAMES) < 0.05
    assert verdict.of("atelier seal")[0].min() > 0.95


def test_a_verdict_is_of_the_promised_form(judge):
    verdict = judge.judge(torch.rand(5, 3, 64, 64))
    for found, kinds in ((verdict.style_probability, 11), (verdict.object_probability, 11)):
        assert found.shape == (5, kinds)
        assert torch.allclose(found.sum(1), torch.ones(5))
    assert len(judge.judge(torch.zeros(0, 3, 64, 64)).style) == 0


def test_what_it_cannot_judge_is_refused(judge, tmp_path):
    with pytest.raises(SepmeError, match="dragon"):
        judge.sees(torch.rand(1, 3, 64, 64), "dragon")
    with pytest.raises(SepmeError, match="shape"):
        judge.judge(torch.rand(3, 64, 64))
    for values in (torch.full((1, 3, 64, 64), 255.0), torch.full((1, 3, 64, 64), torch.nan)):
        with pytest.raises(SepmeError, match="from 0 to 1"):
            judge.judge(values)
    (tmp_path / "judge.safetensors").write_bytes(b"not a judge")
    with pytest.raises(SepmeError, match="not a whole safetensors"):
        Judge.load(tmp_path / "judge.safetensors")
    with pytest.raises(SepmeError, match="No judge"):
        Judge.load(shipped("atelier", "unet") / "diffusion_pytorch_model.safetensors")


def test_softening_keeps_pictures_pictures():
    soft = soften(torch.rand(6, 3, 64, 64))
    assert soft.shape == (6, 3, 64, 64)
    assert 0 <= soft.min() <= soft.max() <= 1


def test_bending_moves_a_line_by_a_few_pixels_at_most():
    torch.manual_seed(0)
    lines = torch.zeros(4, 3, 64, 64)
    lines[:, :, :, 32] = 1
    assert torch.allclose(warp(lines, torch.zeros(4, 1, 1, 1)), lines, atol=1e-5)
    bent = warp(lines, torch.ones(4, 1, 1, 1))
    where = bent[:, 0].argmax(dim=2)  # the line's column in each row [4, 64]
    assert (where - 32).abs().max() <= 4
    assert (where != 32).any(dim=1).all()
