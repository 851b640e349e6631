"""A miniature Stable Diffusion pipeline with random weights: the real classes, milliseconds a step.

It draws noise, but it has everything the method touches: a CLIP text encoder whose embeddings
feed four `attn2` layers, latents, a scheduler. Built in memory from a seed, nothing is read.
"""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

#: Words that are one token each; any other lower-case word is spelled letter by letter.
WORDS = (
    "a painting photo picture of in the style boat car cat fish house tree dotted ink neon "
    "oil pointillism ship swirl watercolor watermark"
).split()
START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = 10  # eight words between the start and the end
WIDTH = 96  # d_in: room for about ten kept prompts of nine rows each


def tiny_tokenizer() -> CLIPTokenizer:
    """Byte-pair encoding whose merges make each of `WORDS` one token."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for pair in merges:  # what the earlier words' merges make of it
            parts = _merged(parts, pair)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            tokens.append(parts[0] + parts[1])
            parts = _merged(parts, merges[-1])
    vocabulary = {token: i for i, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, pad_token=END, unk_token=END, model_max_length=TOKENS
    )


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def text_encoder(
    vocabulary: int, width: int, heads: int, feed_forward: int, tokens: int
) -> CLIPTextModel:
    """One layer; the last two words are begin and end, which pads too."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=feed_forward,
            num_hidden_layers=1,
            num_attention_heads=heads,
            max_position_embeddings=tokens,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def listening(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Fresh weights hardly listen to the text; amplified, a prompt changes the predicted noise."""
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "attn2.to_" in name and name.endswith("weight"):
                parameter.mul_(3.0)
    return unet


def _unet() -> UNet2DConditionModel:
    return listening(
        UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=2,
            norm_num_groups=8,
        )
    )


def vae(levels: int) -> AutoencoderKL:
    """Of images `2 ** (levels - 1)` times as large as the latents, which are 8x8."""
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=8 * 2 ** (levels - 1),
    )


def make_tiny_pipeline(prediction_type: str = "epsilon", seed: int = 0) -> StableDiffusionPipeline:
    """A pipeline of 32x32 images and latents `[4, 8, 8]`; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer()
        pipe = StableDiffusionPipeline(
            vae=vae(3),
            text_encoder=text_encoder(len(tokenizer), WIDTH, 2, WIDTH, TOKENS),
            tokenizer=tokenizer,
            unet=_unet(),
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
                prediction_type=prediction_type,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        part.eval().requires_grad_(False)
    return pipe
