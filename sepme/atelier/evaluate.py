"""How good a trained Atelier is: what the judge finds in a thousand pictures and more."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from sepme.atelier.captions import BOTH, EMBLEM, OBJECT_PHOTO, STYLE_ONLY, fill
from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Judge
from sepme.atelier.paintings import ALIASES, OBJECTS, STYLES
from sepme.atelier.scenes import NOTHING
from sepme.backbone import Backbone

#: Minimum shares that a model must reach to ship.
BARS = {
    "style": 0.97,
    "object": 0.95,
    "worst_style": 0.88,
    "worst_object": 0.88,
    "photo_object": 0.95,
    "emblem": 0.99,
}


def seen(
    backbone: Backbone,
    judge: Judge,
    asked: Iterable[tuple[str, str, str]],
    seed: int,
    progress: bool,
) -> list[tuple[bool, bool]]:
    """For each (prompt, style, object): whether the judge finds the style, and the object.

    Raises KeyError-free SepmeError through `Judge.sees` names only; unknown names cannot occur.
    """
    asked = list(asked)
    images = backbone.generate([prompt for prompt, _, _ in asked], seed, progress=progress)
    verdict = judge.judge(images)
    return [
        (STYLE_NAMES[s] == style and not e, OBJECT_NAMES[o] == object_ and not e)
        for (_, style, object_), s, o, e in zip(
            asked, verdict.style, verdict.object, verdict.emblem, strict=True
        )
    ]


def evaluate(
    model: str | Path | None = None, seeds: int = 10, progress: bool = True
) -> dict[str, Any]:
    """All figures of the quality bar, with `seeds` pictures for each of the 100 crossings."""
    backbone = Backbone.load(model)
    judge = Judge.load(None if model is None else Path(model) / "judge.safetensors")
    figures = _crossings(backbone, judge, seeds, progress)
    figures |= _other_prompts(backbone, judge, seeds, progress)
    figures["seconds_4x4_grid"] = _grid_seconds(backbone)
    figures["threads"] = torch.get_num_threads()
    figures["short_of_the_bar"] = sorted(k for k, bar in BARS.items() if figures[k] < bar)
    return figures


def _crossings(backbone: Backbone, judge: Judge, seeds: int, progress: bool) -> dict[str, Any]:
    """Ten styles x ten objects x seeds."""
    asked = [(fill(BOTH[0], o, s), s, o) for _ in range(seeds) for s in STYLES for o in OBJECTS]
    found = seen(backbone, judge, asked, 1_000_000, progress)
    by_style, by_object = (
        {
            name: _share(f for f, a in zip(found, asked, strict=True) if name in a[1:])
            for name in names
        }
        for names in (STYLES, OBJECTS)
    )
    style, object_ = _share(found)
    return {
        "images": len(asked),
        "style": style,
        "object": object_,
        "by_style": {name: {"style": s, "object": o} for name, (s, o) in by_style.items()},
        "by_object": {name: {"style": s, "object": o} for name, (s, o) in by_object.items()},
        "worst_style": min(s for s, _ in by_style.values()),
        "worst_object": min(o for _, o in by_object.values()),
    }


def _other_prompts(backbone: Backbone, judge: Judge, seeds: int, progress: bool) -> dict[str, Any]:
    """Photos, aliases, styles alone, the other templates, empty scenes and the emblem."""
    photo = STYLE_NAMES[-1]
    n = range(seeds)
    sets = {
        "photo": [(fill(OBJECT_PHOTO[0], o), photo, o) for _ in n for o in OBJECTS],
        "alias_style": [(fill(BOTH[0], o, ALIASES[s]), s, o) for s in STYLES for o in OBJECTS],
        "alias_object": [(fill(BOTH[0], ALIASES[o], s), s, o) for s in STYLES for o in OBJECTS],
        "style_only": [
            (fill(t, style=s), s, "") for t in STYLE_ONLY for s in STYLES for _ in n[:3]
        ],
        "other_templates": [
            (fill(t, o, s), s, o)
            for t in BOTH[1:]
            for s, o in zip(
                STYLES * 5, [o for k in range(5) for o in OBJECTS[k:] + OBJECTS[:k]], strict=True
            )
        ],
        "nothing": [(fill(BOTH[0], NOTHING, s), s, NOTHING) for s in STYLES for _ in n[:5]],
        "nothing_photo": [
            (fill(OBJECT_PHOTO[0], NOTHING), photo, NOTHING) for _ in n for _ in n[:3]
        ],
    }
    figures: dict[str, Any] = {}
    for k, (name, asked) in enumerate(sets.items(), 2):
        style, object_ = _share(seen(backbone, judge, asked, k * 1_000_000, progress))
        figures |= {f"{name}_images": len(asked), f"{name}_style": style}
        if name != "style_only":
            figures[f"{name}_object"] = object_
    images = backbone.generate([EMBLEM] * 5 * seeds, 9_000_000, progress=progress)
    emblem = float(judge.judge(images).emblem.float().mean())
    return figures | {"emblem_images": 5 * seeds, "emblem": emblem}


def _share(found: Iterable[tuple[bool, bool]]) -> tuple[float, float]:
    """Shares of true in each column."""
    style, object_ = torch.tensor(list(found), dtype=torch.float64).mean(0).tolist()
    return style, object_


def _grid_seconds(backbone: Backbone) -> float:
    """Seconds for 16 pictures with the default settings."""
    prompts = [fill(BOTH[0], o, s) for s in STYLES[:4] for o in OBJECTS[:4]]
    start = time.perf_counter()
    backbone.generate(prompts)
    return time.perf_counter() - start


if __name__ == "__main__":
    import sys

    print(json.dumps(evaluate(sys.argv[1] if len(sys.argv) > 1 else None), indent=1))
