"""The weight change of a baseline: sums, the file, and that taking it off restores every bit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sepme.artefact import Provenance, canonical_json, versions
from sepme.composition import Composition, applied
from sepme.delta import DenseDelta
from sepme.erasure import erase
from sepme.model import Backbone
from tests.miniature import EXACT, KEPT, NEON, fresh, latents, noise_prediction, others, shared
from tests.refusals import refused
from tests.tolerance import assert_close

K = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.weight"
BIAS = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.bias"


def provenance(backbone: Backbone, concept: str = "neon") -> Provenance:
    return Provenance(
        concept=concept,
        kind="style",
        base=backbone.fingerprint,
        base_name=backbone.name,
        forgotten=(concept,),
        kept=(),
        settings={"eraser": "ESD", "widths": (1, 2)},
        seed=3,
        iterations=7,
        versions=versions(),
    )


def make(backbone: Backbone, *paths: str, seed: int = 0, concept: str = "neon") -> DenseDelta:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: value.shape for name, value in backbone.unet.named_parameters()}
    changes = {path: torch.randn(shapes[path], generator=generator) for path in paths or (K, BIAS)}
    return DenseDelta(changes, provenance(backbone, concept))


def weights(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in backbone.unet.named_parameters()}


def everything(backbone: Backbone) -> list[str]:
    return [name for name, _ in backbone.unet.named_parameters()]


def test_norm_counts_layers_not_parameters() -> None:
    changes = {
        OUT: torch.tensor([[1.0, -2.0]]),
        BIAS: torch.tensor([3.0]),
        K: torch.tensor([[4.0]]),
    }
    change = DenseDelta(changes, provenance(shared()))
    assert change.layers == (K.removesuffix(".weight"), OUT.removesuffix(".weight"))
    assert change.norm() == pytest.approx((1 + 2 + 3 + 4) / 2)  # ||Delta||_1 / M, M = 2
    assert change.norm(2) == pytest.approx(30**0.5 / 2)
    assert (change.concept, change.method, change.base) == ("neon", "ESD", shared().fingerprint)


def test_it_owns_float32_copies() -> None:
    given = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    same = torch.ones(2)
    change = DenseDelta({K: given, BIAS: same}, provenance(shared()))
    same.zero_()
    assert change.changes[K].dtype == torch.float32
    assert not change.changes[K].requires_grad
    assert change.changes[BIAS].sum() == 2
    with pytest.raises(TypeError):
        change.changes[K] = torch.zeros(2)


def test_a_sum_has_what_either_changes() -> None:
    backbone = shared()
    a = make(backbone, K, BIAS)
    b = make(backbone, K, OUT, seed=1, concept="boat")
    total = a + b
    assert total.paths == tuple(sorted((K, OUT, BIAS)))
    assert torch.equal(total.changes[K], a.changes[K] + b.changes[K])
    assert torch.equal(total.changes[BIAS], a.changes[BIAS])
    assert total.provenance.forgotten == ("neon", "boat")
    assert (total.concept, total.method) == ("neon + boat", "sum")
    elsewhere = replace(b, provenance=replace(b.provenance, base="f00d" * 16))
    with refused("different models"):
        a + elsewhere


@pytest.mark.parametrize("which", [[K], [K, BIAS], None], ids=["one", "two", "the whole UNet"])
def test_applied_is_the_edited_model_and_what_comes_back_is_the_original(
    which: list[str] | None,
) -> None:
    backbone = fresh()
    change = make(backbone, *(which or everything(backbone)))
    before, seen, drawn = weights(backbone), noise_prediction(backbone, "neon"), latents(backbone)
    with applied(backbone, change) as live:
        assert live is backbone
        for path, value in backbone.unet.named_parameters():
            expected = before[path] + change.changes.get(path, 0.0)
            assert torch.equal(value, expected)
        assert not torch.equal(noise_prediction(backbone, "neon"), seen)
    after = weights(backbone)
    assert all(torch.equal(before[path], after[path]) for path in before)  # every bit
    assert torch.equal(noise_prediction(backbone, "neon"), seen)
    assert torch.equal(latents(backbone), drawn)
    assert backbone.composition is None


def test_subtracting_would_not_give_the_bits_back() -> None:
    """The negative control of the test above: why the tensors are swapped."""
    backbone = fresh()
    change = make(backbone, K)
    original = weights(backbone)[K]
    assert not torch.equal((original + change.changes[K]) - change.changes[K], original)


def test_the_originals_come_back_after_an_error() -> None:
    backbone = fresh()
    before = weights(backbone)
    with pytest.raises(KeyboardInterrupt), applied(backbone, make(backbone)):
        raise KeyboardInterrupt
    assert all(torch.equal(before[path], value) for path, value in weights(backbone).items())


def test_half_precision_is_changed_in_float32_and_restored() -> None:
    backbone = fresh()
    backbone.pipe.unet.to(torch.bfloat16)
    change = make(backbone)
    before = weights(backbone)
    with applied(backbone, change):
        live = weights(backbone)[K]
        assert live.dtype == torch.bfloat16
        assert torch.equal(live, (before[K].float() + change.changes[K]).bfloat16())
    assert all(torch.equal(before[path], value) for path, value in weights(backbone).items())


def test_nothing_else_may_be_attached() -> None:
    backbone = fresh()
    change, again = make(backbone), make(backbone, seed=1)
    with applied(backbone, change), refused("attached"), applied(backbone, again):
        pass
    delta = erase(backbone, NEON, others(NEON), EXACT)
    with Composition(backbone, [delta]), refused("adapters"), applied(backbone, change):
        pass
    with applied(backbone, change):  # both are gone again
        pass


def test_a_composition_made_inside_takes_the_change_off() -> None:
    backbone = fresh()
    before = weights(backbone)
    delta = erase(backbone, NEON, KEPT, EXACT)
    with applied(backbone, make(backbone)), Composition(backbone, [delta]):
        layer = backbone.unet.get_submodule(K.removesuffix(".weight"))
        assert torch.equal(layer.base_layer.weight, before[K])
    assert all(torch.equal(before[path], value) for path, value in weights(backbone).items())


def test_another_model_is_refused() -> None:
    change = make(shared())
    with refused("another base model"), applied(fresh(seed=1), change):
        pass
    wrong = DenseDelta({K: torch.zeros(1, 1)}, provenance(shared()))
    with refused(K, "[1, 1]"), applied(shared(), wrong):
        pass


def test_a_file_brings_everything_back(tmp_path: Path) -> None:
    change = make(shared())
    path = change.save(tmp_path / "new" / "neon.safetensors")
    back = DenseDelta.load(path, base=change.base)
    assert back.provenance == change.provenance
    assert back.digest == change.digest
    assert all(torch.equal(back.changes[p], change.changes[p]) for p in change.paths)
    assert path.read_bytes() == back.save(tmp_path / "again.safetensors").read_bytes()


def test_files_that_are_refused(tmp_path: Path) -> None:
    change = make(shared())
    path = change.save(tmp_path / "neon.safetensors")
    with refused("neon.pt", ".safetensors"):
        change.save(tmp_path / "neon.pt")
    with refused("missing.safetensors"):
        DenseDelta.load(tmp_path / "missing.safetensors")
    with refused("not for this model"):
        DenseDelta.load(path, base="f00d" * 16)
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(path.read_bytes()[:-5])
    with refused("truncated"):
        DenseDelta.load(truncated)
    edited = load_file(path)
    edited[K][0, 0] += 1
    header = canonical_json({"provenance": change.provenance.to_dict(), "sha256": change.digest})
    save_file(edited, tmp_path / "edited.safetensors", {"sepme_weight_change": header})
    with refused("was changed after"):
        DenseDelta.load(tmp_path / "edited.safetensors")
    save_file(edited, tmp_path / "foreign.safetensors", {"other": json.dumps({})})
    with refused("was not written by sepme"):
        DenseDelta.load(tmp_path / "foreign.safetensors")
    delta = erase(shared(), NEON, KEPT, EXACT)
    with refused("was not written by sepme"):
        DenseDelta.load(delta.save(tmp_path / "delta.safetensors"))


def test_empty_or_infinite_changes_are_refused() -> None:
    with refused("at least one parameter"):
        DenseDelta({}, provenance(shared()))
    with refused(K, "not finite"):
        DenseDelta({K: torch.tensor([float("nan")])}, provenance(shared()))


def test_a_change_is_close_to_what_was_trained() -> None:
    """`original + (trained - original)` is the trained weight up to one rounding."""
    backbone = shared()
    original = weights(backbone)[K]
    trained = original + 1e-3 * torch.randn_like(original)
    assert_close(original + (trained - original), trained)
