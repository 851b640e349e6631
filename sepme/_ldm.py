"""The other direction of what diffusers reads: a pipeline's tensors by their original names.

The names are those of the checkpoints that were published (CompVis, Stability AI).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sepme.shapes import Pipeline


def _table(text: str) -> dict[str, str]:
    """Pairs of a name of diffusers and the original one."""
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


_UNET = _table("""
    time_embedding.linear_1  time_embed.0        time_embedding.linear_2  time_embed.2
    add_embedding.linear_1   label_emb.0.0       add_embedding.linear_2   label_emb.0.2
    conv_in                  input_blocks.0.0    conv_norm_out            out.0
    mid_block.attentions.0   middle_block.1      conv_out                 out.2
    mid_block.resnets.0      middle_block.0      mid_block.resnets.1      middle_block.2
""")
_RESNET = _table("""
    norm1          in_layers.0     conv1          in_layers.2
    norm2          out_layers.0    conv2          out_layers.3
    time_emb_proj  emb_layers.1    conv_shortcut  skip_connection
""")
_VAE = _table("""
    mid_block.resnets.0     mid.block_1    conv_shortcut  nin_shortcut
    mid_block.resnets.1     mid.block_2    conv_norm_out  norm_out
    mid_block.attentions.0  mid.attn_1     group_norm     norm
    to_out.0                proj_out       to_q           q
    to_k                    k              to_v           v
""")
_OPEN_CLIP = _table("""
    embeddings.position_embedding.weight  positional_embedding     final_layer_norm  ln_final
    embeddings.token_embedding            token_embedding          layer_norm1       ln_1
    encoder.layers                        transformer.resblocks    layer_norm2       ln_2
    mlp.fc1                               mlp.c_fc                 self_attn         attn
    mlp.fc2                               mlp.c_proj
""")
for i in range(4):
    for j in range(2):
        _UNET[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{3 * i + j + 1}.0"
        _UNET[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{3 * i + j + 1}.1"
        _VAE[f"down_blocks.{i}.resnets.{j}"] = f"down.{i}.block.{j}"
    for j in range(3):
        _UNET[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{3 * i + j}.0"
        _UNET[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{3 * i + j}.1"
        _VAE[f"up_blocks.{i}.resnets.{j}"] = f"up.{3 - i}.block.{j}"
    _UNET[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{3 * (i + 1)}.0.op"
    # In 1.x and 2.x the first of these blocks has no attention before it.
    _UNET[f"up_blocks.{i}.upsamplers.0"] = f"output_blocks.{3 * i + 2}.{min(i, 1) + 1}"
    _VAE[f"down_blocks.{i}.downsamplers.0"] = f"down.{i}.downsample"
    _VAE[f"up_blocks.{i}.upsamplers.0"] = f"up.{3 - i}.upsample"


def _named(name: str, table: Mapping[str, str]) -> str:
    """The name with its parts exchanged; dots keep `down_blocks.1` apart from `down_blocks.10`."""
    name = f".{name}."
    for theirs, original in table.items():
        name = name.replace(f".{theirs}.", f".{original}.")
    return name[1:-1]


def unet_name(path: str, xl: bool) -> str:
    """What the original UNet calls a module or parameter, without its prefix."""
    names = _UNET | ({"up_blocks.0.upsamplers.0": "output_blocks.2.2"} if xl else {})
    return _named(_named(path, names), _RESNET if ".resnets." in path else {})


def checkpoint(pipe: Pipeline) -> dict[str, Tensor]:
    """All weights by the names of 1.x, 2.x (by the width of its text) or XL."""
    xl, text = hasattr(pipe, "text_encoder_2"), _text(pipe.text_encoder)
    vae = {_named(name, _VAE): tensor for name, tensor in pipe.vae.state_dict().items()}
    for name, tensor in vae.items():
        if ".attn_1." in name and tensor.ndim == 2:  # there a convolution of 1 x 1
            vae[name] = tensor[..., None, None]
    parts = {
        "model.diffusion_model": {unet_name(n, xl): t for n, t in pipe.unet.state_dict().items()},
        "first_stage_model": vae,
    }
    if xl:
        second = _open_clip(_text(pipe.text_encoder_2))
        second["text_projection"] = second.pop("text_projection.weight").T
        parts["conditioner.embedders.0.transformer.text_model"] = text
        parts["conditioner.embedders.1.model"] = second
    elif pipe.text_encoder.config.hidden_size == 1024:
        parts["cond_stage_model.model"] = _open_clip(text)
    else:
        parts["cond_stage_model.transformer.text_model"] = text
    return {f"{at}.{n}": t.contiguous() for at, part in parts.items() for n, t in part.items()}


def _text(encoder: torch.nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("text_model."): t for name, t in encoder.state_dict().items()}


def _open_clip(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP keeps queries, keys and values in one matrix."""
    state = {}
    for name, tensor in text.items():
        if ".k_proj" in name or ".v_proj" in name:
            continue
        if ".q_proj" in name:
            parts = [text[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            name, tensor = name.replace("q_proj.", "in_proj_"), torch.cat(parts)
        state[_named(name, _OPEN_CLIP)] = tensor
    return state
