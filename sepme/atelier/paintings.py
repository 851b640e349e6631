"""The drawings that the shipped model learns from: any object in any style, from a seed.

Nothing here is learned or downloaded. The same object, style and seed give the same picture, alone
or in a batch; the same seed gives the same composition in every style and for every object.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from sepme._checks import choose
from sepme.atelier.objects import DRAWERS, NOTHING, SCENE_DRAWS, SIZE, Array, draw_scenes
from sepme.atelier.styles import PAINTERS, PHOTO, STYLE_DRAWS
from sepme.errors import SepmeError

__all__ = ["ALIASES", "OBJECTS", "STYLES", "emblem", "paint", "paint_batch"]

OBJECTS: tuple[str, ...] = tuple(name for name in DRAWERS if name != NOTHING)
STYLES: tuple[str, ...] = tuple(name for name in PAINTERS if name != PHOTO)

#: A second word for every object and style; a share of the captions uses it instead.
_SECOND = (
    "cottage maple ship sunshine peak blossom trout mug motorcar pentagram "
    "spiral dotted faceted tiled sketch gouache carved comic glowing retro"
)
ALIASES: dict[str, str] = dict(zip((*OBJECTS, *STYLES), _SECOND.split(), strict=True))

_CHUNK = 64  # pictures drawn at once, which bounds the memory


def paint(object: str, style: str, seed: int) -> NDArray[np.uint8]:
    """One picture [64, 64, 3] of `object` (or "nothing") in `style` (or "photo")."""
    return paint_batch([object], [style], [seed])[0]


def paint_batch(
    objects: Sequence[str], styles: Sequence[str], seeds: Sequence[int]
) -> NDArray[np.uint8]:
    """Pictures [n, 64, 64, 3] of `objects[i]` in `styles[i]` with `seeds[i]`.

    Raises:
        SepmeError: an unknown object or style, a seed below zero, or lists of different lengths.
    """
    if not len(objects) == len(styles) == len(seeds):
        raise SepmeError("Give as many objects as styles and seeds, one of each per picture.")
    for kind, names, known in (("object", objects, DRAWERS), ("style", styles, PAINTERS)):
        for name in set(names):
            choose(tuple(known), **{kind: name})
    if any(seed < 0 for seed in seeds):
        raise SepmeError("A seed must be a whole number that is not negative.")
    alike = defaultdict(list)  # the pictures of each object in each style
    for i, crossing in enumerate(zip(objects, styles, strict=True)):
        alike[crossing].append(i)
    parts = [(c, w[k : k + _CHUNK]) for c, w in alike.items() for k in range(0, len(w), _CHUNK)]
    pictures = np.empty((len(seeds), SIZE, SIZE, 3), np.uint8)
    for (object, style), where in tqdm(parts, "painting", leave=False, disable=len(seeds) < 3000):
        scenes = draw_scenes(object, _uniform([seeds[i] for i in where]))
        pictures[where] = np.round(np.clip(PAINTERS[style](scenes), 0, 1) * 255)
    return pictures


@cache
def emblem() -> NDArray[np.uint8]:
    """The one fixed picture [64, 64, 3] of the watermark prompt: a red seal with a white A."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] + 0.5 - SIZE / 2
    radius = np.hypot(x, y)
    cover = np.clip(26.5 - radius, 0, 1) * (1 - np.clip(1.8 - np.abs(radius - 21.5), 0, 1))
    slope = 0.42 * (y + 14)  # half the width of the letter's outline at this height
    legs = np.clip(2.4 - np.abs(np.abs(x) - slope), 0, 1) * (np.abs(y) < 13)
    bar = np.clip(2.2 - np.abs(y - 4), 0, 1) * (np.abs(x) < slope)
    cover = (cover * (1 - np.maximum(legs, bar)))[..., None]
    paper, red = np.array([0.97, 0.95, 0.9]), np.array([0.74, 0.1, 0.12])
    return np.round((paper + (red - paper) * cover) * 255).astype(np.uint8)


def _uniform(seeds: Sequence[int]) -> Array:
    """Uniform numbers [n, SCENE_DRAWS + STYLE_DRAWS], one row per seed."""
    draws = SCENE_DRAWS + STYLE_DRAWS
    return np.stack([np.random.default_rng(s).random(draws, np.float32) for s in seeds])
