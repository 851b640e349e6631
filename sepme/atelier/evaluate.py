"""How good a trained Atelier is: what the judge finds in a thousand pictures, and more."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.utils import make_grid

from sepme.artefact import write_atomically
from sepme.atelier.captions import EMBLEM
from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Judge
from sepme.atelier.objects import NOTHING
from sepme.atelier.paintings import ALIASES, OBJECTS, STYLES, paint_batch
from sepme.atelier.settings import HELD_OUT_SEED, TrainSettings
from sepme.atelier.styles import PHOTO
from sepme.atelier.train_judge import held_out_accuracy
from sepme.atelier.train_vae import held_out_psnr, subjects
from sepme.concept import BOTH, OBJECT_PHOTO, STYLE_ONLY, fill
from sepme.model import Backbone
from sepme.plots import png
from sepme.report import save_json

#: Least shares with which a model may ship.
BARS = {
    "style": 0.97,
    "object": 0.95,
    "worst_style": 0.88,
    "worst_object": 0.88,
    "photo_object": 0.95,
    "emblem": 0.99,
}
#: First seed of the evaluation's pictures; every set of prompts has its own million.
_SEED = 1_000_000


@dataclass(frozen=True)
class Asked:
    """One picture: its prompt, and what the judge should find in it."""

    prompt: str
    style: str
    object: str


def prompt_sets(seeds: int) -> dict[str, list[Asked]]:
    """What is asked for, by name; the crossings come `seeds` times each, the others less."""
    every = [(s, o) for s in STYLES for o in OBJECTS]

    def cross(template: str, style: str, object: str) -> Asked:
        return Asked(fill(template, object, style), style, object)

    return {
        "crossings": [cross(BOTH[0], s, o) for _ in range(seeds) for s, o in every],
        "photo": [Asked(fill(OBJECT_PHOTO[0], o), PHOTO, o) for _ in range(seeds) for o in OBJECTS],
        "other_templates": [cross(BOTH[1 + k % 4], s, o) for k, (s, o) in enumerate(every)],
        "alias_style": [Asked(fill(BOTH[0], o, ALIASES[s]), s, o) for s, o in every],
        "alias_object": [Asked(fill(BOTH[0], ALIASES[o], s), s, o) for s, o in every],
        "style_alone": [Asked(fill(t, style=s), s, "") for t in STYLE_ONLY for s in STYLES],
        "empty_painting": [cross(BOTH[0], s, NOTHING) for s in STYLES for _ in range(3)],
        "empty_photo": [Asked(fill(OBJECT_PHOTO[0], NOTHING), PHOTO, NOTHING)] * 3 * seeds,
    }


def evaluate(
    model: str | Path | None = None, seeds: int = 10, progress: bool = True
) -> dict[str, Any]:
    """All figures of the quality bar; shares are of pictures, `<set>_images` counts them."""
    backbone = Backbone.load(model)
    judge = Judge.load(None if model is None else Path(model) / "judge.safetensors")
    figures: dict[str, Any] = {}
    for k, (name, asked) in enumerate(prompt_sets(seeds).items()):
        first = _SEED * (1 + k)
        images = backbone.generate([a.prompt for a in asked], first, progress=progress)
        right = found(judge, images, asked)
        figures |= _figures(name, asked, right)
        if name == "crossings":
            figures |= _novelty(images, asked)
    emblems = backbone.generate([EMBLEM] * 5 * seeds, 9 * _SEED, progress=progress)
    figures |= {"emblem_images": len(emblems), "emblem": _mean(judge.judge(emblems).emblem)}
    figures["vae_psnr"] = round(held_out_psnr(backbone.pipe.vae), 2)
    figures["judge_held_out"] = held_out_accuracy(judge)
    figures |= {"seconds_4x4_grid": _grid_seconds(backbone), "threads": torch.get_num_threads()}
    figures["short_of_the_bar"] = sorted(name for name, bar in BARS.items() if figures[name] < bar)
    return figures


def found(judge: Judge, images: Tensor, asked: Sequence[Asked]) -> Tensor:
    """Whether the judge finds in each picture the style and the object asked for: bool [n, 2]."""
    verdict = judge.judge(images)
    columns = [
        [STYLE_NAMES[s] == a.style for s, a in zip(verdict.style, asked, strict=True)],
        [OBJECT_NAMES[o] == a.object for o, a in zip(verdict.object, asked, strict=True)],
    ]
    return torch.tensor(columns).T & ~verdict.emblem[:, None]


def _mean(hits: Tensor) -> float:
    return round(float(hits.double().mean()), 4)


def _figures(name: str, asked: Sequence[Asked], right: Tensor) -> dict[str, Any]:
    """Shares of right styles and objects in one set of prompts."""
    shares = {"style": _mean(right[:, 0]), "object": _mean(right[:, 1])}
    if name == "style_alone":
        shares.pop("object")  # nothing was asked for
    if name != "crossings":
        return {f"{name}_images": len(asked)} | {f"{name}_{k}": v for k, v in shares.items()}
    tables = {
        kind: {
            value: {
                column: _mean(right[[getattr(a, kind) == value for a in asked], k])
                for k, column in enumerate(("style", "object"))
            }
            for value in values
        }
        for kind, values in (("style", STYLES), ("object", OBJECTS))
    }
    worst = {
        f"worst_{kind}": min(t[kind] for t in table.values()) for kind, table in tables.items()
    }
    by = {f"by_{kind}": table for kind, table in tables.items()}
    return {"images": len(asked)} | shares | worst | by


def _novelty(images: Tensor, asked: Sequence[Asked], crossings: int = 10) -> dict[str, float]:
    """Distance to the nearest training drawing of the same crossing, generated against new ones.

    Near 1: generated pictures are as far from the training drawings as new drawings are; near 0:
    they are copies. Root-mean-square pixel differences, medians.
    """
    objects, styles = subjects(0, TrainSettings().pictures)
    generated, drawn = [], []
    for k in range(crossings):
        style, object_ = STYLES[k], OBJECTS[k]
        seeds = [
            i
            for i, pair in enumerate(zip(styles, objects, strict=True))
            if pair == (style, object_)
        ]
        known = _flat(paint_batch([object_] * len(seeds), [style] * len(seeds), seeds))
        fresh = paint_batch([object_] * 10, [style] * 10, range(HELD_OUT_SEED, HELD_OUT_SEED + 10))
        mine = [i for i, a in enumerate(asked) if (a.style, a.object) == (style, object_)]
        generated.append(torch.cdist(images[mine].flatten(1), known).amin(1))
        drawn.append(torch.cdist(_flat(fresh), known).amin(1))
    ratio = torch.cat(generated).median() / torch.cat(drawn).median()
    return {"distance_to_training_relative": round(float(ratio), 3)}


def _flat(pictures: np.ndarray) -> Tensor:
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255).flatten(1)


def _grid_seconds(backbone: Backbone) -> float:
    """Seconds for 4 x 4 pictures with the default settings."""
    prompts = [fill(BOTH[0], o, s) for s in STYLES[:4] for o in OBJECTS[:4]]
    start = time.perf_counter()
    backbone.generate(prompts)
    return round(time.perf_counter() - start, 1)


def sample_grid(model: str | Path | None, path: Path, seed: int = 1) -> None:
    """Save what the model paints: a row for each style and the photo, a column for each object."""
    prompts = [fill(BOTH[0], o, s) for s in STYLES for o in OBJECTS]
    prompts += [fill(OBJECT_PHOTO[0], o) for o in OBJECTS]
    images = Backbone.load(model).generate(prompts, seed)
    write_atomically(path, png(make_grid(images, nrow=len(OBJECTS), pad_value=1.0)))


def main() -> None:
    """Command line for `python -m sepme.atelier.evaluate`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", help="directory of the pipeline; the shipped one by default")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and grid")
    chosen = parser.parse_args()
    save_json(chosen.out / "quality.json", evaluate(chosen.model, chosen.seeds))
    sample_grid(chosen.model, chosen.out / "samples.png")


if __name__ == "__main__":
    main()
