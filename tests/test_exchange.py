"""What sepme exports, other programs read; what they export, sepme reads."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sepme import exchange, loading
from sepme.composition import Composition, applied
from sepme.concept import Concept
from sepme.delta import ConceptDelta, DenseDelta
from sepme.exchange import export, import_lora, truncated
from sepme.loading import CLIP_MERGES
from sepme.model import Backbone
from tests.miniature import EXACT, KEPT, NEON, fresh, latents, shared, three_deltas
from tests.miniature_sd import save_miniature_sd
from tests.refusals import refused
from tests.test_stock_diffusers import PROMPTS, starting_noise

#: sd-scripts' names of what a UNet of 1.x reads text with, written down by hand.
BLOCKS = """
down_blocks_0_attentions_0 down_blocks_0_attentions_1
down_blocks_1_attentions_0 down_blocks_1_attentions_1
down_blocks_2_attentions_0 down_blocks_2_attentions_1
mid_block_attentions_0
up_blocks_1_attentions_0 up_blocks_1_attentions_1 up_blocks_1_attentions_2
up_blocks_2_attentions_0 up_blocks_2_attentions_1 up_blocks_2_attentions_2
up_blocks_3_attentions_0 up_blocks_3_attentions_1 up_blocks_3_attentions_2
""".split()
KOHYA = {
    f"lora_unet_{block}_transformer_blocks_0_attn2_{matrix}"
    for block in BLOCKS
    for matrix in ("to_k", "to_v")
}
#: Written by somebody who has diffusers, peft and the files, and nothing else.
STRANGER = """
import json, sys
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
noise, drawn = load_file(f"{folder}/noise.safetensors")["noise"], {}
for name, file in request["asked"].items():
    whole = f"{folder}/{name}" if file is None else f"{folder}/model"
    pipe = StableDiffusionPipeline.from_pretrained(whole, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    if file:
        pipe.load_lora_weights(f"{folder}/{name}", weight_name=file)
    drawn[name] = pipe(
        request["prompts"], latents=noise, num_inference_steps=3, guidance_scale=4.0,
        output_type="latent",
    ).images
save_file(drawn, f"{folder}/drawn.safetensors")
assert not [name for name in sys.modules if name.split(".")[0] == "sepme"]
"""
F32 = {"dtype": torch.float32}


def changes(delta: ConceptDelta) -> dict[str, Tensor]:
    return {path: delta.dense(path).double() for path in delta.paths}


def furthest(delta: ConceptDelta, other: ConceptDelta) -> float:
    """The largest difference of a layer, in the Frobenius norm, relative to the layer."""
    one, two = changes(delta), changes(other)
    assert one.keys() == two.keys()
    return max(float((one[p] - two[p]).norm() / one[p].norm()) for p in one)


def strangers_latents(folder: Path, asked: dict[str, str | None]) -> dict[str, Tensor]:
    request = json.dumps({"asked": asked, "prompts": PROMPTS})
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


# ---------------------------------------------------------------------- others read it
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stock_diffusers_draws_the_same_from_every_export(tmp_path: Path, prediction: str) -> None:
    backbone, (neon, ink, _) = fresh(prediction), three_deltas(prediction)
    backbone.pipe.save_pretrained(tmp_path / "model")
    save_file({"noise": starting_noise(backbone)}, tmp_path / "noise.safetensors")
    strengths, asked = {"ink": 0.5}, {"model": None}
    for format in ("peft", "kohya", "folder"):
        made = export(backbone, [neon, ink], tmp_path / format, format, strengths=strengths, **F32)
        assert made.error < 1e-6
        asked[format] = None if format == "folder" else made.weights.name
    drawn = strangers_latents(tmp_path, asked)
    original = backbone.generate(PROMPTS, seeds=0, output="latents")
    with Composition(backbone, [neon, ink]) as composition:
        composition.set({"neon": 1.0} | strengths)
        erased = backbone.generate(PROMPTS, seeds=0, output="latents")
    assert float((drawn.pop("model") - original).abs().max()) <= 1e-5
    assert float((original - erased).abs().max()) > 1e-2
    for name, found in drawn.items():
        assert float((found - erased).abs().max()) <= 1e-5, name
