"""The shapes of the shipped model: a small Stable Diffusion in stock diffusers classes.

Pictures 3 x 64 x 64, latents 4 x 16 x 16 (f = 4), prompts of 16 tokens in 256 dimensions. The text
reaches the U-Net through `attn2.to_k`/`to_v` at 8 x 8 only, where all of an object fits.
"""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 16  #: prompt length, with begin- and end-of-text
WIDTH = 256  #: text width = cross-attention width
LATENT = (4, 16, 16)
#: Stable Diffusion's constant; the auto-encoder is standardised so that it fits (`standardise`).
SCALING_FACTOR = 0.18215
#: How pictures are made unless told otherwise; written to generation.json.
GENERATION = {"guidance_scale": 4.0, "num_inference_steps": 25}


def make_vae() -> AutoencoderKL:
    """The auto-encoder, 64 x 64 x 3 <-> 16 x 16 x 4, purely convolutional."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, 64),
        layers_per_block=1,
        latent_channels=LATENT[0],
        norm_num_groups=16,
        sample_size=64,
        scaling_factor=SCALING_FACTOR,
        mid_block_add_attention=False,
    )


def make_unet() -> UNet2DConditionModel:
    """The denoiser: two resolutions (16, 8), cross-attention at 8 x 8."""
    return UNet2DConditionModel(
        sample_size=LATENT[1],
        in_channels=LATENT[0],
        out_channels=LATENT[0],
        layers_per_block=1,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The prompt encoder: two CLIP layers over the tokenizer's vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            hidden_act="quick_gelu",
        )
    )


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule; the model predicts the velocity v."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def make_pipeline(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    """The four parts as one stock pipeline (no safety checker: it only paints ten objects)."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def standardise(vae: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Make every latent channel zero-mean with standard deviation 1 / SCALING_FACTOR, in place.

    `mean`, `std` [4]: those of the encoder's mean output now. With s = 1 / (std * 0.18215), the
    1 x 1 convolution before the latent becomes s * (W x + b - mean) and the one after it undoes
    that, so decode(encode(x)) stays what it was and 0.18215 * z has unit variance.
    """
    s = 1 / (std.double() * SCALING_FACTOR)
    n = LATENT[0]
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
    vae = make_vae()
    vae.load_state_dict(load_file(directory / "diffusion_pytorch_model.safetensors"))
    return vae.eval().requires_grad_(False)


def replace_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a folder, then put it in the place of `path`."""
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        fill(new)
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
