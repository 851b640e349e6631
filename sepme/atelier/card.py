"""The model card of a trained Atelier, from what its training and evaluation recorded."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sepme._words import in_markdown
from sepme.artefact import write_atomically
from sepme.atelier.evaluate import BARS

__all__ = ["write_card"]

_TEMPLATE = Path(__file__).with_name("card.template")
#: What is asked for in the table of prompts, and how `evaluate` calls its figures.
_ASKED = {
    "a painting of a house in the style of ink": "",
    "a photo of a house": "photo_",
    "the other templates": "other_templates_",
    "the style's alias": "alias_style_",
    "the object's alias": "alias_object_",
    "the style alone": "style_alone_",
    "a painting of nothing in the style of ink": "empty_painting_",
    "a photo of nothing": "empty_photo_",
}


def write_card(
    model: Path, quality: Mapping[str, Any], out: Path, hardware: str = "", limits: str = ""
) -> Path:
    """Write the card of the pipeline in `model` to README.md in `out`.

    Args:
        quality: what `evaluate` found.
        hardware: which machine trained it, in a sentence.
        limits: what was seen to be wrong with its pictures.
    """
    training, generation = (
        json.loads((model / f"{name}.json").read_text("utf-8"))
        for name in ("training", "generation")
    )
    settings = training["settings"]
    figures = settings | quality | {f"bar_{name}": bar for name, bar in BARS.items()}
    figures |= {f"judge_{name}": value for name, value in quality["judge_held_out"].items()}
    text = _TEMPLATE.read_text("utf-8").format(
        generation=generation,
        quality=quality,
        settings=settings,
        share={name: _share(v) for name, v in figures.items() if isinstance(v, float)},
        minutes=round(training["seconds"] / 60),
        short=", ".join(quality["short_of_the_bar"]) or "none",
        styles=", ".join(map(in_markdown, quality["by_style"])),
        objects=", ".join(map(in_markdown, quality["by_object"])),
        by_style=_table("style", quality),
        by_object=_table("object", quality),
        rows="\n".join(_row(name, prefix, quality) for name, prefix in _ASKED.items()),
        hashes="\n".join(f"| {in_markdown(n)} | `{digest}` |" for n, digest in _hashes(model)),
        hardware=hardware,
        limits=limits,
    )
    return write_atomically(out / "README.md", text.encode())


def _share(value: float) -> str:
    """0.985 -> "98.5 %"."""
    return f"{100 * value:.1f} %".replace(".0 %", " %")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(in_markdown, cells))} |"


def _table(kind: str, quality: Mapping[str, Any]) -> str:
    """One column for each style or object."""
    shares = {name: _share(row[kind]) for name, row in quality[f"by_{kind}"].items()}
    head, rule = _line(["", *shares]).replace("|  |", "| |"), "|---" * (len(shares) + 1) + "|"
    return "\n".join([head, rule, _line([f"{kind} right", *shares.values()])])


def _row(name: str, prefix: str, quality: Mapping[str, Any]) -> str:
    shares = [quality.get(prefix + kind) for kind in ("style", "object")]
    found = ["-" if share is None else _share(share) for share in shares]
    return _line([name, str(quality[prefix + "images"]), *found])


def _hashes(model: Path) -> list[tuple[str, str]]:
    """Name and sha256 of every weights file of the pipeline; deltas carry their own."""
    files = sorted(f for f in model.rglob("*.safetensors") if f.parent.name != "deltas")
    return [
        (f.relative_to(model).as_posix(), hashlib.sha256(f.read_bytes()).hexdigest()) for f in files
    ]
