"""How good a trained Atelier is: what the judge finds in over a thousand pictures."""

import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torchvision.utils import make_grid

from sepme.atelier._architecture import to_unit
from sepme.atelier._judge import held_out_accuracy
from sepme.atelier._vae import held_out_psnr, subject
from sepme.atelier.captions import EMBLEM
from sepme.atelier.judge import Asked, Judge, found
from sepme.atelier.objects import NOTHING
from sepme.atelier.paintings import ALIASES, OBJECTS, STYLES, paint_batch
from sepme.atelier.settings import HELD_OUT_SEED, TrainSettings
from sepme.atelier.styles import PHOTO
from sepme.concept import BOTH, OBJECT_PHOTO, STYLE_ONLY, fill
from sepme.model import Backbone

__all__ = ["evaluate", "sample_grid"]

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


def prompt_sets(seeds: int) -> dict[str, list[Asked]]:
    """The prompts, by the name of their set; each crossing comes `seeds` times, the others less."""
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
    backbone: Backbone, judge: Judge, seeds: int = 10, progress: bool = True
) -> dict[str, Any]:
    """All figures of quality.json: shares of pictures; `<set>_images` counts the pictures.

    Args:
        seeds: pictures of each style with each object.
    """
    figures: dict[str, Any] = {}
    for k, (name, asked) in enumerate(prompt_sets(seeds).items()):
        images = backbone.generate([a.prompt for a in asked], _SEED * (1 + k), progress=progress)
        right = found(judge, images, asked)
        if name == "crossings":
            figures |= shares(right) | by_concept(asked, right) | _novelty(images, asked)
        else:
            figures |= {f"{name}_{key}": value for key, value in shares(right).items()}
    figures.pop("style_alone_object")  # no object was asked for
    emblems = backbone.generate([EMBLEM] * 5 * seeds, 9 * _SEED, progress=progress)
    seen = judge.judge(emblems).emblem.double().mean()
    figures |= {"emblem_images": len(emblems), "emblem": round(float(seen), 4)}
    figures["vae_psnr"] = round(held_out_psnr(backbone.pipe.vae), 2)
    figures["judge_held_out"] = held_out_accuracy(judge)
    start = time.perf_counter()
    backbone.generate([fill(BOTH[0], o, s) for s in STYLES[:4] for o in OBJECTS[:4]])
    figures["seconds_4x4_grid"] = round(time.perf_counter() - start, 1)
    figures["threads"] = torch.get_num_threads()
    figures["short_of_the_bar"] = sorted(name for name, bar in BARS.items() if figures[name] < bar)
    return figures


def shares(right: pd.DataFrame) -> dict[str, float]:
    """How many pictures there are, and the shares with the right style and the right object."""
    return {"images": len(right)} | right.mean().round(4).to_dict()


def by_concept(asked: Sequence[Asked], right: pd.DataFrame) -> dict[str, Any]:
    """The same shares for each style and each object, and the worst of them."""
    tables = {
        kind: right.groupby([getattr(a, kind) for a in asked]).mean().round(4).loc[list(names)]
        for kind, names in (("style", STYLES), ("object", OBJECTS))
    }
    worst = {f"worst_{kind}": float(table[kind].min()) for kind, table in tables.items()}
    return worst | {f"by_{kind}": table.to_dict("index") for kind, table in tables.items()}


def _novelty(images: Tensor, asked: Sequence[Asked], crossings: int = 10) -> dict[str, float]:
    """Distance to the nearest training drawing of the same crossing, relative to new drawings'.

    Near 0 generated pictures are copies. Root-mean-square pixel differences, medians.
    """
    generated, drawn = [], []
    for crossing in list(zip(OBJECTS, STYLES, strict=True))[:crossings]:
        seeds = [s for s in range(TrainSettings().pictures) if subject(s) == crossing]
        known = _flat(*crossing, seeds)
        fresh = _flat(*crossing, range(HELD_OUT_SEED, HELD_OUT_SEED + 10))
        mine = [i for i, a in enumerate(asked) if (a.object, a.style) == crossing]
        generated.append(torch.cdist(images[mine].flatten(1), known).amin(1))
        drawn.append(torch.cdist(fresh, known).amin(1))
    ratio = torch.cat(generated).median() / torch.cat(drawn).median()
    return {"distance_to_training_relative": round(float(ratio), 3)}


def _flat(object: str, style: str, seeds: Sequence[int]) -> Tensor:
    """Drawings of one crossing as rows of values in [0, 1]."""
    pictures = paint_batch([object] * len(seeds), [style] * len(seeds), seeds)
    return ((to_unit(pictures) + 1) / 2).flatten(1)


def sample_grid(backbone: Backbone, seed: int = 1) -> Tensor:
    """What the model draws: a row for each style and the photo, a column for each object."""
    prompts = [fill(BOTH[0], o, s) for s in STYLES for o in OBJECTS]
    prompts += [fill(OBJECT_PHOTO[0], o) for o in OBJECTS]
    return make_grid(backbone.generate(prompts, seed), nrow=len(OBJECTS), pad_value=1.0)
