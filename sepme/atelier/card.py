"""The model card of a trained Atelier, from what its training and evaluation recorded."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sepme.artefact import write_atomically
from sepme.atelier.evaluate import BARS

_TEXT = """# The Atelier

A small text-to-image model: ten objects in ten styles, plain photos and one emblem, 64 x 64 pixels.
It is a stock diffusers `StableDiffusionPipeline` (U-Net with `attn2.to_k`/`to_v`, CLIP text encoder
and tokenizer, `AutoencoderKL`, DDIM, v-prediction), trained from scratch on drawings that
`sepme.atelier` makes. No picture, weight or word of anybody else's is in it.

![a row for each style and the photo, a column for each object](samples.png)

Rows: {styles}, photo. Columns: {objects}. All from `a painting of a house in the style of ink` and
its like, guidance {guidance}, {sampling} DDIM steps, not selected.

## How it was made
`sepme atelier train --out runs/atelier` makes it anew, on a CPU or a GPU; stop it and start it
again whenever you like.

| part | what | training |
|---|---|---|
| drawings | {pictures} of 10 objects and "nothing" x 10 styles and photo; object, background, colours and position independent | drawn by seed |
| AutoencoderKL | f = 4, 4 latents, channels 32, 48, 64 | {vae_steps} steps of {vae_batch} crops; {psnr} dB on held-out drawings |
| U-Net + CLIP text encoder | (64, 128) channels, cross-attention at 8 x 8; text 256 wide, 2 layers, 16 tokens | {steps} steps of {batch}, {minutes} minutes |
| judge | convolutional classifier, on other drawings | {judge_steps} steps; held out: style {judge_style}, object {judge_object} (n = {judge_images}) |

Muon ({muon_rate}) on matrices and convolutions, AdamW ({adam_rate}) on the rest; stratified
timesteps; min-SNR-5; {empty} empty prompts; moving average of the weights; constant rate, falling
linearly over the last {decay} of the steps. {hardware}

## What it can do
The judge's findings, guidance {guidance}, {sampling} steps. Short of the bar: {short}.

| prompts | pictures | style right | object right |
|---|---|---|---|
{rows}

- worst style {worst_style} (bar {bar_worst_style}), worst object {worst_object} (bar {bar_worst_object})
- emblem ("atelier seal"): {emblem} of {emblem_images} pictures (bar {bar_emblem})
- 4 x 4 pictures: {grid_seconds} s on {threads} CPU thread(s)
- distance to the nearest training drawing, relative to that of new drawings: {novelty} (0 = copies)

| | {style_head} |
|---|{style_rule}|
| style right | {style_row} |

| | {object_head} |
|---|{object_rule}|
| object right | {object_row} |

Limits: it knows these words and no others; one object a picture; 64 x 64 pixels. {limits}

## Deltas
`deltas/` holds one delta for each of the twenty concepts, erased with the default settings while
everything else is kept (`sepme erase`), so that any set of them can be switched off at once.

## Files
| file | sha256 |
|---|---|
{hashes}
"""  # noqa: E501 - rows of Markdown tables

_SETS = {
    "a painting of a house in the style of ink": "",
    "a photo of a house": "photo_",
    "the other templates": "other_templates_",
    "the style's alias": "alias_style_",
    "the object's alias": "alias_object_",
    "the style alone": "style_alone_",
    "a painting of nothing in the style of ink": "empty_painting_",
    "a photo of nothing": "empty_photo_",
}


def write_card(directory: Path, hardware: str, limits: str) -> Path:
    """Write README.md from training.json, generation.json and quality.json in `directory`.

    `hardware` says what machine trained it, `limits` what was seen to be wrong with the pictures.
    """
    training, generation, quality = (
        json.loads((directory / f"{name}.json").read_text("utf-8"))
        for name in ("training", "generation", "quality")
    )
    values = training["settings"] | {f"bar_{name}": share(bar) for name, bar in BARS.items()}
    values |= {name: share(quality[name]) for name in ("worst_style", "worst_object", "emblem")}
    for kind in ("style", "object"):
        table = {name: row[kind] for name, row in quality[f"by_{kind}"].items()}
        values[f"{kind}s"] = ", ".join(table)
        values[f"{kind}_head"], values[f"{kind}_rule"] = " | ".join(table), "|".join(["---"] * 10)
        values[f"{kind}_row"] = " | ".join(map(share, table.values()))
        values[f"judge_{kind}"] = share(quality["judge_held_out"][kind])
    values |= {name: share(values[name]) for name in ("empty", "decay")}
    text = _TEXT.format_map(
        values
        | {
            "guidance": generation["guidance_scale"],
            "sampling": generation["num_inference_steps"],
            "minutes": round(training["seconds"] / 60),
            "psnr": quality["vae_psnr"],
            "judge_images": quality["judge_held_out"]["images"],
            "short": ", ".join(quality["short_of_the_bar"]) or "nothing",
            "emblem_images": quality["emblem_images"],
            "grid_seconds": quality["seconds_4x4_grid"],
            "threads": quality["threads"],
            "novelty": quality["distance_to_training_relative"],
            "rows": "\n".join(_row(name, prefix, quality) for name, prefix in _SETS.items()),
            "hashes": "\n".join(f"| {name} | `{digest}` |" for name, digest in hashes(directory)),
            "hardware": hardware,
            "limits": limits,
        }
    )
    return write_atomically(directory / "README.md", text.encode())


def share(value: float) -> str:
    """0.985 -> "98.5 %"."""
    return f"{100 * value:.1f} %".replace(".0 %", " %")


def hashes(directory: Path) -> list[tuple[str, str]]:
    """Name and sha256 of every weights file below `directory`; deltas carry their own."""
    files = sorted(f for f in directory.rglob("*.safetensors") if f.parent.name != "deltas")
    return [
        (f.relative_to(directory).as_posix(), hashlib.sha256(f.read_bytes()).hexdigest())
        for f in files
    ]


def _row(name: str, prefix: str, quality: Mapping[str, Any]) -> str:
    columns = [
        share(quality[prefix + k]) if prefix + k in quality else "-" for k in ("style", "object")
    ]
    return f"| {name} | {quality[prefix + 'images']} | {columns[0]} | {columns[1]} |"
