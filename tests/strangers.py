"""Stock diffusers in a process of its own, used by somebody who has never heard of sepme."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sepme.model import Backbone

PROMPTS = ["neon", "ink", "a neon boat", "house"]
_BEGIN = """
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
"""
_END = """
    drawn[name] = pipe(
        request["prompts"], latents=noise, num_inference_steps=3, guidance_scale=4.0,
        output_type="latent",
    ).images
save_file(drawn, f"{folder}/drawn.safetensors")
assert not [name for name in sys.modules if name.split(".")[0] == "sepme"]
"""


def starting_noise(backbone: Backbone) -> Tensor:
    """What `generate(..., seeds=0)` starts from."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    return torch.stack([torch.randn(backbone.latent_shape, generator=g) for g in generators])


def strangers_latents(folder: Path, script: str, asked: dict[str, Any]) -> dict[str, Tensor]:
    """What the script draws: it has diffusers, peft and the files, and nothing else.

    For each name that is asked for it leaves the pipeline in `pipe`; the folder holds the noise.
    """
    request = json.dumps({"asked": asked, "prompts": PROMPTS})
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _BEGIN + script + _END, str(folder), request],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return load_file(folder / "drawn.safetensors")
