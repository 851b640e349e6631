"""The scenes of the drawings: one of ten objects, or nothing, before a ground and a sky.

Every shape is a signed distance field in pixels (negative inside). It gives the colours, the
antialiased silhouette and the distance to the nearest contour at once, for a whole batch. The seed
alone decides colours, position, size, tilt, horizon and background, so a picture tells its object
by the object alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]

__all__ = ["NOTHING", "SIZE"]

SIZE = 64  #: pixels a side
NOTHING = "nothing"  #: the empty scene: a background without an object
#: No object ever reaches outside the pixels [MARGIN, SIZE - MARGIN) of a scene.
MARGIN = 2
#: Random numbers a scene takes from its seed; what follows them belongs to the style.
SCENE_DRAWS = 16


def palette(colours: str) -> Array:
    """Colours [n, 3] from 0 to 1 of their hexadecimal names."""
    return np.array([[*bytes.fromhex(colour)] for colour in colours.split()], np.float32) / 255


#: Objects are dark and saturated, backgrounds are pale: an object stands out before any background.
COLOURS = palette("c82428 e26010 be8800 268034 1854b0 7030a0 d02c7c 7a421c 008084")
SKIES = palette("a8d6f6 fad8b4 daccf2 f4f0dc c8ece0")
GROUNDS = palette("b0d88a e2c892 bec0c6 8cc0e2 e2a8a8")
WHITE, CREAM, BLACK = (np.full(3, v, np.float32) for v in (0.98, 0.9, 0.08))

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5


@dataclass
class Scene:
    """A batch of n scenes. Colours lie in [0, 1], distances are in pixels."""

    colour: Array  #: [n, 64, 64, 3] flat colours
    mask: Array  #: [n, 64, 64] how much of the pixel the object covers
    ground: Array  #: [n, 64, 64] how much of the pixel is ground rather than sky (objects ignored)
    distance: Array  #: [n, 64, 64] distance to the nearest visible contour
    random: Array  #: [n, k] uniform numbers that the style may use


class Canvas:
    """Lays shapes over a background; coordinates are the object's own, within [-1, 1]."""

    def __init__(self, random: Array) -> None:
        """`random` [n, SCENE_DRAWS]: uniform numbers that decide everything but the object."""
        column = iter(random.T[..., None, None])
        centre_x, centre_y = (SIZE / 2 + 3 * (2 * next(column) - 1) for _ in range(2))
        self.radius = 20 + 5 * next(column)
        flip = np.where(next(column) < 0.5, -1, 1)
        tilt = 0.16 * (next(column) - 0.5)
        u, v = (_X - centre_x) / self.radius, (_Y - centre_y) / self.radius
        self.x = flip * (u * np.cos(tilt) + v * np.sin(tilt))
        self.y = v * np.cos(tilt) - u * np.sin(tilt)
        horizon = SIZE * (0.6 + 0.24 * next(column)) - _Y + 0 * _X  # negative below the horizon
        sky, ground = _pick(SKIES, next(column)), _pick(GROUNDS, next(column))
        first = (next(column)[:, 0, 0] * len(COLOURS)).astype(int)
        other = first + 1 + (next(column)[:, 0, 0] * (len(COLOURS) - 1)).astype(int)
        self.main, self.accent = COLOURS[first], COLOURS[other % len(COLOURS)]
        self.ground = np.clip(0.5 - horizon, 0, 1)
        self.colour = mix(sky[:, None, None], ground[:, None, None], self.ground[..., None])
        self.mask = np.zeros_like(self.ground)
        self.distance = np.abs(horizon)

    def lay(self, shape: Array, colour: Array) -> None:
        """Paint `shape` (signed distance [n, 64, 64], object units) in `colour` [n, 3] or [3]."""
        pixels = shape * self.radius
        cover = np.clip(0.5 - pixels, 0, 1)
        colour = colour[:, None, None] if colour.ndim == 2 else colour
        self.colour = mix(self.colour, colour, cover[..., None])
        self.mask = np.maximum(self.mask, cover)
        self.distance = np.where(pixels < 0, -pixels, np.minimum(self.distance, pixels))

    def disc(self, x: float, y: float, radius: float) -> Array:
        """Signed distance to a disc."""
        return np.hypot(self.x - x, self.y - y) - radius

    def ellipse(self, x: float, y: float, a: float, b: float) -> Array:
        """Signed distance to an ellipse, to first order (exact on its contour)."""
        u, v = (self.x - x) / a, (self.y - y) / b
        level = np.hypot(u, v)
        return level * (level - 1) / np.maximum(np.hypot(u / a, v / b), 1e-6)

    def polygon(self, *points: tuple[float, float]) -> Array:
        """Signed distance to a simple polygon: nearest edge, inside by counting crossings."""
        nearest = np.full_like(self.x, np.inf)
        inside = np.zeros(self.x.shape, bool)
        for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
            ex, ey, px, py = bx - ax, by - ay, self.x - ax, self.y - ay
            along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
            if ay != by:
                inside ^= ((ay > self.y) != (by > self.y)) & (px < ex * py / ey)
        return np.where(inside, -1, 1) * np.sqrt(nearest)

    def box(self, left: float, top: float, right: float, bottom: float) -> Array:
        """Signed distance to an upright rectangle."""
        dx = np.abs(self.x - (left + right) / 2) - (right - left) / 2
        dy = np.abs(self.y - (top + bottom) / 2) - (bottom - top) / 2
        outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
        return outside + np.minimum(np.maximum(dx, dy), 0)


def _pick(palette: Array, uniform: Array) -> Array:
    return palette[(uniform[:, 0, 0] * len(palette)).astype(int)]


def mix(below: Array, above: Array, share: Array) -> Array:
    """Colours between `below` (share 0) and `above` (share 1)."""
    return below + (above - below) * share


def _union(*shapes: Array) -> Array:
    return np.minimum.reduce(shapes)


def _turn(count: int, start: float = 0.0) -> list[tuple[float, float]]:
    """`count` unit directions, evenly spaced, the first at `start` radians."""
    angles = start + 2 * np.pi * np.arange(count) / count
    return [(float(np.cos(a)), float(np.sin(a))) for a in angles]


def _house(c: Canvas) -> None:
    c.lay(c.box(0.36, -0.85, 0.62, -0.2), c.accent * 0.6)
    c.lay(c.box(-0.72, -0.1, 0.72, 0.9), c.main)
    c.lay(c.polygon((-0.98, -0.06), (0.0, -0.95), (0.98, -0.06)), c.accent)
    c.lay(c.box(-0.17, 0.34, 0.17, 0.9), c.main * 0.4)
    c.lay(_union(c.box(-0.58, 0.1, -0.3, 0.4), c.box(0.3, 0.1, 0.58, 0.4)), CREAM)


def _tree(c: Canvas) -> None:
    c.lay(c.box(-0.16, 0.2, 0.16, 0.98), c.accent * 0.6)
    crown = [c.disc(-0.44, 0.02, 0.42), c.disc(0.44, 0.02, 0.42), c.disc(0, -0.48, 0.48)]
    c.lay(_union(*crown, c.disc(0, 0, 0.4)), c.main)


def _boat(c: Canvas) -> None:
    c.lay(c.box(-0.06, -0.98, 0.06, 0.4), c.main * 0.4)
    c.lay(c.polygon((0.12, -0.94), (0.12, 0.26), (0.86, 0.26)), c.accent)
    c.lay(c.polygon((-0.12, -0.66), (-0.12, 0.26), (-0.7, 0.26)), c.accent * 0.7 + 0.3)
    c.lay(c.polygon((-0.98, 0.38), (0.98, 0.38), (0.6, 0.86), (-0.6, 0.86)), c.main)


def _sun(c: Canvas) -> None:
    for x, y in _turn(8):
        ray = [(0.98, 0.0), (0.66, 0.17), (0.66, -0.17)]  # along and across its direction
        c.lay(c.polygon(*((r * x - s * y, r * y + s * x) for r, s in ray)), c.accent)
    c.lay(c.disc(0, 0, 0.52), c.main)


def _mountain(c: Canvas) -> None:
    c.lay(c.polygon((-0.2, 0.72), (0.44, -0.38), (0.99, 0.72)), c.accent)
    c.lay(c.polygon((0.26, -0.07), (0.44, -0.38), (0.6, -0.07)), WHITE)
    c.lay(c.polygon((-0.99, 0.72), (-0.3, -0.86), (0.48, 0.72)), c.main)
    peak = [(-0.52, -0.36), (-0.3, -0.86), (-0.05, -0.36)]
    c.lay(c.polygon(*peak, (-0.2, -0.22), (-0.3, -0.4), (-0.4, -0.22)), WHITE)


def _flower(c: Canvas) -> None:
    c.lay(c.box(-0.07, 0.1, 0.07, 0.98), c.accent * 0.6)
    leaves = [c.polygon((0, 0.92), (s * 0.62, 0.42), (s * 0.5, 0.86)) for s in (-1, 1)]
    c.lay(_union(*leaves), c.accent * 0.6)
    for x, y in _turn(5, -np.pi / 2):
        c.lay(c.disc(0.38 * x, 0.38 * y - 0.32, 0.27), c.main)
    c.lay(c.disc(0, -0.32, 0.22), CREAM)


def _fish(c: Canvas) -> None:
    c.lay(c.polygon((0.36, 0.0), (0.98, -0.58), (0.8, 0.0), (0.98, 0.58)), c.accent)
    c.lay(c.polygon((-0.3, -0.3), (0.1, -0.72), (0.3, -0.2)), c.accent)
    c.lay(c.polygon((-0.16, 0.3), (0.16, 0.66), (0.24, 0.2)), c.accent)
    lens = np.maximum(c.disc(-0.2, 0.5, 0.94), c.disc(-0.2, -0.5, 0.94))  # pointed at both ends
    c.lay(lens, c.main)
    c.lay(np.maximum(lens + 0.04, c.box(0.0, -0.5, 0.16, 0.5)), CREAM)
    c.lay(c.disc(-0.52, -0.08, 0.15), WHITE)
    c.lay(c.disc(-0.54, -0.08, 0.07), BLACK)


def _cup(c: Canvas) -> None:
    c.lay(np.abs(c.disc(0.54, 0.02, 0.34)) - 0.1, c.main)  # a ring: the handle
    c.lay(c.polygon((-0.78, -0.6), (0.56, -0.6), (0.42, 0.86), (-0.64, 0.86)), c.main)
    c.lay(c.box(-0.69, 0.02, 0.48, 0.34), c.accent)
    c.lay(c.ellipse(-0.11, -0.6, 0.67, 0.22), c.main * 0.35)


def _car(c: Canvas) -> None:
    c.lay(c.polygon((-0.66, 0.04), (-0.42, -0.54), (0.34, -0.54), (0.62, 0.04)), c.main)
    c.lay(c.polygon((-0.5, 0.0), (-0.32, -0.4), (-0.06, -0.4), (-0.06, 0.0)), CREAM)
    c.lay(c.polygon((0.06, 0.0), (0.06, -0.4), (0.26, -0.4), (0.46, 0.0)), CREAM)
    c.lay(c.polygon((-0.98, 0.02), (0.9, 0.02), (0.98, 0.46), (-0.98, 0.46)), c.main)
    for x in (-0.54, 0.54):
        c.lay(c.disc(x, 0.46, 0.29), BLACK)
        c.lay(c.disc(x, 0.46, 0.12), CREAM)


def _star(c: Canvas) -> None:
    outer, inner = _turn(5, -np.pi / 2), _turn(5, -np.pi / 2 + np.pi / 5)
    corners = []
    for (x, y), (u, v) in zip(outer, inner, strict=True):
        corners += [(0.98 * x, 0.98 * y), (0.42 * u, 0.42 * v)]
    c.lay(c.polygon(*corners), c.main)


def _nothing(c: Canvas) -> None:
    """An empty scene."""


#: How each object is drawn, in the order of the judge's classes.
_ALL = (_house, _tree, _boat, _sun, _mountain, _flower, _fish, _cup, _car, _star, _nothing)
DRAWERS: dict[str, Callable[[Canvas], None]] = {draw.__name__.strip("_"): draw for draw in _ALL}


def draw_scenes(object: str, random: Array) -> Scene:
    """n scenes of an object, from uniform numbers `random` [n, >= SCENE_DRAWS]."""
    canvas = Canvas(random[:, :SCENE_DRAWS])
    DRAWERS[object](canvas)
    fields = (np.clip(canvas.colour, 0, 1), canvas.mask, canvas.ground, canvas.distance)
    return Scene(*(field.astype(np.float32) for field in fields), random[:, SCENE_DRAWS:])
