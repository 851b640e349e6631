"""What sepme saves, diffusers loads: in a process that never heard of sepme, the same latents."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sepme.composition import Composition
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, erase
from sepme.model import Backbone
from tests.miniature import FROM_ZERO, NEON, QUICK, QUIET, fresh, others, three_deltas
from tests.refusals import refused
from tests.tolerance import assert_close

PROMPTS = ["neon", "ink", "a neon boat", "house"]
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
import json, sys, warnings
import torch
torch.set_num_threads(1)
try:
    import torchvision
except RuntimeError:  # a torchvision built for another torch: diffusers needs two schemas only
    sys.modules.pop("torchvision", None)
    for name in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

folder, request = sys.argv[1], json.loads(sys.argv[2])
pipe = StableDiffusionPipeline.from_pretrained(f"{folder}/model", safety_checker=None)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
for name in {name for adapters in request["asked"].values() for name in adapters}:
    pipe.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)
noise, drawn = load_file(f"{folder}/noise.safetensors")["noise"], {}
for name, adapters in request["asked"].items():
    if adapters:
        pipe.enable_lora()
        pipe.set_adapters(list(adapters), list(adapters.values()))
    else:
        pipe.disable_lora()
    drawn[name] = pipe(
        request["prompts"], latents=noise, num_inference_steps=3, guidance_scale=4.0,
        output_type="latent",
    ).images
save_file(drawn, f"{folder}/drawn.safetensors")
assert not [name for name in sys.modules if name.split(".")[0] == "sepme"]
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


def strangers_latents(folder: Path) -> dict[str, Tensor]:
    request = json.dumps({"asked": ASKED, "prompts": PROMPTS})
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STRANGER, str(folder), request],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return load_file(folder / "drawn.safetensors")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stock_diffusers_draws_the_same(tmp_path: Path, prediction: str) -> None:
    backbone, made = fresh(prediction), deltas(prediction)
    backbone.pipe.save_pretrained(tmp_path / "model")
    for name, delta in made.items():
        delta.save(tmp_path / f"{name}.safetensors")
    save_file({"noise": starting_noise(backbone)}, tmp_path / "noise.safetensors")
    drawn = strangers_latents(tmp_path)
    assert torch.equal(drawn["restored"], drawn["original"])
    for name, adapters in ASKED.items():
        ours = our_latents(backbone, made, adapters)
        if name == "in_another_order":  # a sum's last bits depend on it; ours is alphabetical
            assert_close(drawn[name], ours)
        else:
            difference = float((drawn[name] - ours).abs().max())
            assert difference <= 1e-6, f"{name}: {difference}"
        assert adapters == {} or not torch.equal(drawn[name], drawn["original"])


def starting_noise(backbone: Backbone) -> Tensor:
    """What `generate(..., seeds=0)` starts from."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    return torch.stack([torch.randn(backbone.latent_shape, generator=g) for g in generators])


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
