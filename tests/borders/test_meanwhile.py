"""What users do to a pipeline, and to files, after a delta was attached or a model was wrapped."""

import threading
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from sepme.cli._prompts import read_prompts
from sepme.composition import Composition
from sepme.concept import Catalogue, Concept
from sepme.delta import DenseDelta
from sepme.erasure import erase
from sepme.errors import SepmeWarning
from sepme.model import Backbone
from sepme.scenes.tables import read_table
from tests.miniature import EXACT, NEON, QUICK, QUIET, fresh, latents, others, three_deltas
from tests.refusals import refused


def neon_erased() -> tuple[Backbone, Composition]:
    backbone = fresh()
    composition = Composition(backbone, three_deltas())
    composition.erase("neon")
    return backbone, composition


def text_lora(backbone: Backbone) -> dict[str, torch.Tensor]:
    state = {}
    for name, module in backbone.pipe.text_encoder.named_modules():
        if name.endswith("q_proj"):
            state[f"text_encoder.{name}.lora_A.weight"] = torch.ones(2, module.in_features)
            state[f"text_encoder.{name}.lora_B.weight"] = torch.ones(module.out_features, 2)
    return state


def test_two_backbones_on_one_pipeline_share_what_is_attached() -> None:
    one, first = neon_erased()
    want = {}
    for name in ("neon", "ink"):
        first.set([name])
        want[name] = latents(one)
    second = Composition(Backbone(one.pipe, "again", guidance=4.0, steps=3), three_deltas()[1:2])
    second.erase("ink")
    assert torch.equal(latents(one), want["ink"])
    assert not torch.equal(want["ink"], want["neon"])
    assert one.composition is second


@pytest.mark.parametrize(
    "given", [["neon.safetensors"], {"neon": three_deltas()[0]}, None, [None], 3, "neon"]
)
def test_what_is_no_delta_is_refused_and_leaves_what_is_attached(given: object) -> None:
    backbone, composition = neon_erased()
    with refused("takes a list of ConceptDeltas"):
        Composition(backbone, given)
    assert backbone.composition is composition
    assert composition.active == ("neon",)


def test_a_dense_delta_is_refused_before_anything_is_closed() -> None:
    backbone, composition = neon_erased()
    delta = three_deltas()[0]
    changes = {f"{path}.weight": delta.dense(path) for path in delta.paths}
    with refused("DenseDelta is none"):
        Composition(backbone, [DenseDelta(changes, delta.provenance)])
    assert backbone.composition is composition


def test_an_adapter_of_the_users_that_has_our_name_stays_theirs() -> None:
    backbone = fresh()
    backbone.unet.add_adapter(LoraConfig(target_modules=["to_q"]), adapter_name="sepme_0")
    with Composition(backbone, three_deltas()) as composition:
        composition.erase("neon")
        latents(backbone)
    assert [*backbone.unet.peft_config] == ["sepme_0"]


def test_what_writes_into_an_adapter_leaves_the_delta_alone() -> None:
    backbone, _ = neon_erased()
    delta = three_deltas()[0]
    before = {path: factor.clone() for path, factor in delta.down.items()}
    for name, parameter in backbone.unet.named_parameters():
        if "lora_A" in name:
            parameter.data.add_(1)
    assert all(torch.equal(delta.down[path], before[path]) for path in before)


def test_fused_projections_are_refused_at_the_next_picture() -> None:
    backbone, _ = neon_erased()
    backbone.pipe.fuse_qkv_projections()
    with refused("fuse"):
        latents(backbone)


def test_an_adapter_on_the_text_encoder_is_seen_at_the_next_picture() -> None:
    backbone, composition = neon_erased()
    backbone.pipe.load_lora_weights(text_lora(backbone), adapter_name="words")
    composition.set(["neon"])
    with refused("text encoder"):
        latents(backbone)


def test_a_unet_that_is_compiled_after_wrapping_keeps_its_names() -> None:
    backbone, plain = fresh(), fresh()
    backbone.pipe.unet = torch.compile(backbone.pipe.unet, backend="eager")
    assert backbone.fingerprint == plain.fingerprint
    delta = erase(backbone, NEON, others(NEON), EXACT)
    assert delta.digest == erase(plain, NEON, others(NEON), EXACT).digest


@pytest.mark.parametrize(("strength", "active"), [(0.1 + 0.2 - 0.3, ()), (1 / 3, ("neon",))])
def test_strengths_that_rounding_made(strength: float, active: tuple[str, ...]) -> None:
    backbone, composition = neon_erased()
    composition.set({"neon": strength})
    latents(backbone)
    assert composition.active == active


def test_a_picture_that_is_not_finite_is_said() -> None:
    backbone, composition = neon_erased()
    composition.set({"neon": 1e30})
    with pytest.warns(SepmeWarning, match="not finite"):
        latents(backbone)


def test_who_draws_while_a_model_is_trained_waits() -> None:
    backbone, composition = neon_erased()
    erased, drawn = latents(backbone), []
    thread = threading.Thread(target=lambda: drawn.extend(latents(backbone) for _ in range(4)))
    thread.start()
    erase(backbone, NEON, others(NEON), QUICK, trainer=QUIET)
    thread.join()
    assert all(torch.equal(picture, erased) for picture in drawn)
    assert composition.active == ("neon",)


def test_a_name_outweighs_an_alias() -> None:
    concepts = {name: Concept(name, (name,)) for name in ("neon", "ink")}
    assert Catalogue(concepts, {"neon": "ink", "glow": "neon"})["neon"].name == "neon"


@pytest.mark.parametrize("text", ["prompt\na boat, red\n", "prompt,seed\na boat, red,1\n"])
def test_a_prompt_that_a_comma_would_cut_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "prompts.csv").write_text(text)
    with refused("Row 2", "between double quotes"):
        read_prompts(tmp_path / "prompts.csv")


@pytest.mark.parametrize("ending", ["zip", "xz", "tar", "zst", "gz"])
def test_a_table_is_read_as_what_it_holds(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"table.csv.{ending}"
    file.write_text("kind,method\n")
    with refused("no table of scenes"):
        read_table(file)
