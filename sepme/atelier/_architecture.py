"""The parts of the shipped model: a small Stable Diffusion in stock diffusers classes.

Pictures 3 x 64 x 64, latents 4 x 16 x 16 (f = 4), prompts of 16 tokens in 256 dimensions. The text
reaches the U-Net through `attn2.to_k`/`to_v` at 8 x 8 only, where all of an object fits. The shape
of each part is written in one place: its `config.json` in data/atelier.
"""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from sepme._data import shipped
from sepme.artefact import temporary

TOKENS = 16  #: prompt length, with begin- and end-of-text
#: How pictures are made unless told otherwise; written to generation.json.
GENERATION = {"guidance_scale": 4.0, "num_inference_steps": 25}


def untrained(part: str) -> Any:
    """A part with new weights: "vae", "unet", "text_encoder", or "scheduler", which has none."""
    folder = shipped("atelier", part)
    if part == "text_encoder":
        return CLIPTextModel(CLIPTextConfig.from_json_file(folder / "config.json"))
    kinds = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "scheduler": DDIMScheduler}
    return kinds[part].from_config(kinds[part].load_config(folder))


@torch.no_grad()
def standardise(vae: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Make every latent channel z zero-mean, and of unit variance times the scaling factor f.

    `mean`, `std` [4]: those of the encoder's mean output now. With s = 1 / (f std), the 1 x 1
    convolution before the latent becomes s (W x + b - mean), and the one after it undoes that. So
    decode(encode(x)) stays what it was.
    """
    s = 1 / (std.double() * vae.config.scaling_factor)
    n = len(s)
    into, out = vae.quant_conv, vae.post_quant_conv
    weight, bias = into.weight.double(), into.bias.double()
    weight[:n] *= s.view(n, 1, 1, 1)
    bias[:n] = (bias[:n] - mean.double()) * s
    bias[n:] += 2 * torch.log(s)  # the encoder gives the log-variance
    out_weight = out.weight.double()
    out_bias = out.bias.double() + out_weight[:, :, 0, 0] @ mean.double()
    into.weight.copy_(weight), into.bias.copy_(bias)
    out.weight.copy_(out_weight / s.view(1, n, 1, 1)), out.bias.copy_(out_bias)


def to_unit(pictures: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
    """Pictures uint8 [n, 64, 64, 3] -> float [n, 3, 64, 64] in [-1, 1], as the VAE takes them."""
    return torch.as_tensor(pictures).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def load_vae(directory: Path) -> AutoencoderKL:
    """A saved auto-encoder, ready to encode, that does not remember where it came from."""
    vae = untrained("vae")
    vae.load_state_dict(load_file(directory / "diffusion_pytorch_model.safetensors"))
    return vae.eval().requires_grad_(False)


def replace_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a folder, then put it in the place of `path`."""
    with TemporaryDirectory(dir=path.parent, prefix=temporary(path.parent).name) as folder:
        new, old = Path(folder, "new"), Path(folder, "old")
        new.mkdir()
        fill(new)
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
