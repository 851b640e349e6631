"""A second model, of Stable Diffusion 1.x's structure: what people bring as a model of their own.

77 tokens of CLIP's own vocabulary, embeddings of width 768, a UNet of four levels with 16 `attn2`,
PNDM. Only the layers inside are small, and all weights are random: it draws noise.
"""

import gzip
from pathlib import Path

import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from sepme.metrics._networks import WeightsFile
from tests.tiny import END, START, listening, text_encoder, vae

#: The merges that CLIP's vocabulary is made of. Nothing else of the package is read.
MERGES = WeightsFile(
    "CLIP's tokenizer",
    "open-clip-torch==3.3.0",
    "open_clip/bpe_simple_vocab_16e6.txt.gz",
    "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
)
TOKENS, WIDTH, VOCABULARY = 77, 768, 49408


def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer of Stable Diffusion 1.x, which pads with the end-of-text token."""
    letters = sorted(ByteLevel.alphabet())  # one for each byte
    letters += [f"{letter}</w>" for letter in letters]
    lines = gzip.decompress(MERGES.read()).decode().splitlines()[1:]
    merges = [tuple(line.split()) for line in lines[: VOCABULARY - len(letters) - 2]]
    tokens = [*letters, *map("".join, merges), START, END]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        pad_token=END,
        unk_token=END,
        model_max_length=TOKENS,
    )


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
