"""A second model, of Stable Diffusion 1.x's structure: what people bring as a model of their own.

77 tokens of CLIP's own vocabulary, embeddings of width 768, a UNet of four levels with 16 `attn2`,
PNDM. Only the layers inside are small, and all weights are random: it draws noise.
"""

from pathlib import Path

import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from sepme.loading import clip_tokenizer
from tests.tiny import listening, text_encoder, vae

TOKENS, WIDTH, VOCABULARY = 77, 768, 49408


def _unet() -> UNet2DConditionModel:
    return listening(
        UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 8, 16, 16),  # 320, 640, 1280, 1280 in Stable Diffusion
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=4,
        )
    )


def save_miniature_sd(folder: Path) -> Path:
    """Write the pipeline as a diffusers folder: 64x64 images, latents `[4, 8, 8]`, 0.2 GB."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        StableDiffusionPipeline(
            vae=vae(4),
            text_encoder=text_encoder(VOCABULARY, WIDTH, 12, 64, TOKENS),
            tokenizer=clip_tokenizer(),
            unet=_unet(),
            scheduler=PNDMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                skip_prk_steps=True,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
    return folder
