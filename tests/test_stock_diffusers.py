"""What sepme saves, diffusers loads: in a process that never heard of sepme, the same latents."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sepme.composition import Composition
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, erase
from sepme.model import Backbone
from tests.miniature import FROM_ZERO, NEON, QUICK, QUIET, fresh, others, three_deltas
from tests.refusals import refused
from tests.strangers import PROMPTS, starting_noise, strangers_latents
from tests.tolerance import assert_close

#: The adapters of each picture and their strengths, as a stranger would ask for them.
ASKED = {
    "original": {},
    "both": {"ink": 1.0, "neon": 1.0},
    "in_another_order": {"neon": 1.0, "ink": 1.0},
    "half": {"neon": 0.5},
    "dense": {"dense": 1.0},
    "full": {"full": 1.0},
    "sum": {"sum": 1.0},
    "restored": {},
}
#: Written by somebody who has diffusers, peft and the files, and nothing else.
STRANGER = """
pipe = StableDiffusionPipeline.from_pretrained(f"{folder}/model", safety_checker=None)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
for name in {name for adapters in request["asked"].values() for name in adapters}:
    pipe.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)
for name, adapters in request["asked"].items():
    if adapters:
        pipe.enable_lora()
        pipe.set_adapters(list(adapters), list(adapters.values()))
    else:
        pipe.disable_lora()
"""


def deltas(prediction: str) -> dict[str, ConceptDelta]:
    """One of every kind, each under the name of its file."""
    backbone = fresh(prediction)
    neon = erase(backbone, NEON, others(NEON), QUICK, trainer=QUIET)
    dense = replace(FROM_ZERO, parametrisation="dense", method="svd", iterations=2)
    full = replace(PRESETS["undecoupled"], iterations=2, images=1, learning_rate=1e-2)
    ink = three_deltas(prediction)[1]
    undecoupled = erase(backbone, NEON, (), full, trainer=QUIET)
    return {
        "neon": neon,
        "ink": ink,
        "dense": erase(backbone, NEON, others(NEON), dense, trainer=QUIET),
        "full": undecoupled,  # its layers differ in rank
        "sum": undecoupled + 0.5 * ink,  # and here some layers have one term, others two
    }


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stock_diffusers_draws_the_same(tmp_path: Path, prediction: str) -> None:
    backbone, made = fresh(prediction), deltas(prediction)
    backbone.pipe.save_pretrained(tmp_path / "model")
    for name, delta in made.items():
        delta.save(tmp_path / f"{name}.safetensors")
    save_file({"noise": starting_noise(backbone)}, tmp_path / "noise.safetensors")
    drawn = strangers_latents(tmp_path, STRANGER, ASKED)
    assert torch.equal(drawn["restored"], drawn["original"])
    for name, adapters in ASKED.items():
        ours = our_latents(backbone, made, adapters)
        if name == "in_another_order":  # a sum's last bits depend on it; ours is alphabetical
            assert_close(drawn[name], ours)
        else:
            difference = float((drawn[name] - ours).abs().max())
            assert difference <= 1e-6, f"{name}: {difference}"
        assert adapters == {} or not torch.equal(drawn[name], drawn["original"])


def our_latents(
    backbone: Backbone, made: dict[str, ConceptDelta], adapters: dict[str, float]
) -> Tensor:
    chosen = [made[name] for name in adapters]
    with Composition(backbone, chosen) as composition:
        composition.set({made[name].concept: strength for name, strength in adapters.items()})
        return backbone.generate(PROMPTS, seeds=0, output="latents")


def test_a_file_that_came_back_from_the_disk_composes_to_the_same(tmp_path: Path) -> None:
    backbone = fresh()
    delta = three_deltas()[0]
    loaded = ConceptDelta.load(delta.save(tmp_path / "neon.safetensors"), backbone.fingerprint)
    with refused("'neon'", "not for this model"):
        ConceptDelta.load(tmp_path / "neon.safetensors", fresh(seed=1).fingerprint)
    assert torch.equal(
        our_latents(backbone, {"neon": delta}, {"neon": 1.0}),
        our_latents(backbone, {"neon": loaded}, {"neon": 1.0}),
    )
