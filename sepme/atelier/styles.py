"""The styles of the drawings: ten and the plain photo, each a function of a `Scene`.

A style takes a batch of n scenes and returns pictures [n, 64, 64, 3] in [0, 1]. It may use the
scene's colours, silhouette, ground, contour distances and the uniform numbers left for it.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from sepme.atelier.objects import _X, _Y, SIZE, Array, Scene, mix, palette

__all__ = ["PHOTO"]

PHOTO = "photo"  #: the plain rendering that stands for "no style"
#: Random numbers a style may take from its seed.
STYLE_DRAWS = 896


def _rgb(*values: float) -> Array:
    return np.array(values, np.float32)


def _luminance(image: Array) -> Array:
    return image @ _rgb(0.3, 0.59, 0.11)


def _saturate(image: Array, factor: float) -> Array:
    grey = _luminance(image)[..., None]
    return np.clip(grey + (image - grey) * factor, 0, 1)


def _blur(image: Array, sigma: float) -> Array:
    spread = (0, sigma, sigma) + (0,) * (image.ndim - 3)
    return ndimage.gaussian_filter(image, spread, truncate=3)


def _line(distance: Array, half_width: float) -> Array:
    """Antialiased contour lines [n, 64, 64, 1]."""
    return np.clip(half_width + 0.5 - distance, 0, 1)[..., None]


def _columns(scene: Scene, count: int) -> list[Array]:
    """`count` uniform numbers a picture, each [n, 1, 1]."""
    return list(scene.random.T[:count, :, None, None])


def _at(image: Array, rows: Array, columns: Array) -> Array:
    """The pixels of image [n, 64, 64, ...] at (rows, columns), nearest neighbour."""
    y, x = (np.clip(v, 0, SIZE - 1).astype(np.intp) for v in (rows, columns))
    batch = np.arange(len(image)).reshape(-1, *(1,) * (y.ndim - 1))
    return image[batch, y, x]


def _smooth_noise(scene: Scene, knots: int = 9) -> Array:
    """Smooth noise [n, 64, 64] in [-1, 1]: a coarse random grid, linearly interpolated."""
    position = np.linspace(0, knots - 1, SIZE, dtype=np.float32)
    hat = np.clip(1 - np.abs(position[:, None] - np.arange(knots, dtype=np.float32)), 0, 1)
    grid = 2 * scene.random[:, : knots * knots].reshape(-1, knots, knots) - 1
    return hat @ grid @ hat.T


def _photo(scene: Scene) -> Array:
    """Flat colours under a soft light from above."""
    return scene.colour * (1.04 - 0.12 * _Y / SIZE)[..., None]


def _swirl(scene: Scene) -> Array:
    """Spirals of thick paint in blue and straw-yellow, winding round four centres."""
    u = _columns(scene, 12)
    distance, angle = np.full(scene.mask.shape, np.inf, np.float32), np.zeros_like(scene.mask)
    for k, (y, x) in enumerate(((14, 14), (14, 50), (50, 14), (50, 50))):
        dy, dx = _Y - y - 10 * (u[3 * k] - 0.5), _X - x - 10 * (u[3 * k + 1] - 0.5)
        d, turn = np.hypot(dy, dx), np.where(u[3 * k + 2] < 0.5, -1, 1)
        angle = np.where(d < distance, turn * np.arctan2(dy, dx), angle)
        distance = np.minimum(distance, d)
    arm = 0.5 + 0.5 * np.cos(2 * np.pi * distance / 8 - angle)[..., None]
    light = mix(scene.colour, _rgb(1.0, 0.9, 0.5), np.float32(0.35))
    dark = mix(scene.colour * 0.4, _rgb(0.05, 0.15, 0.6), np.float32(0.75))
    sky = mix(dark, light, arm)
    body = np.clip(_saturate(scene.colour, 1.3) * (0.8 + 0.55 * arm), 0, 1)
    mask = scene.mask[..., None]
    contour = 0.9 * _line(scene.distance, 0.7) * mask
    return mix(mix(sky, body, mask), _rgb(0.03, 0.05, 0.2), contour)


def _pointillism(scene: Scene) -> Array:
    """Round dots of pure colour on cream paper."""
    spacing, cells = 3.6, 20
    jitter = scene.random[:, : 2 * cells * cells].reshape(-1, 2, cells, cells)
    row, column = np.floor(_Y / spacing).astype(int) + 1, np.floor(_X / spacing).astype(int) + 1
    nearest = np.full(scene.mask.shape, np.inf, np.float32)
    dot_y, dot_x = np.zeros_like(nearest), np.zeros_like(nearest)
    for i, j in np.ndindex(3, 3):
        r, c = row + i - 1, column + j - 1
        y = (r - 0.5 + 0.5 * (jitter[:, 0, r, c] - 0.5)) * spacing
        x = (c - 0.5 + 0.5 * (jitter[:, 1, r, c] - 0.5) + 0.5 * (r % 2) - 0.25) * spacing
        d = (_Y - y) ** 2 + (_X - x) ** 2
        closer = d < nearest
        nearest, dot_y, dot_x = (
            np.where(closer, a, b) for a, b in ((d, nearest), (y, dot_y), (x, dot_x))
        )
    colour = _at(_saturate(scene.colour, 1.6), dot_y, dot_x)
    tint = 0.16 * (_at(_smooth_noise(scene, 29), dot_y, dot_x) - 0.1)[..., None]
    cover = np.clip((2.1 - np.sqrt(nearest)) / 0.8, 0, 1)[..., None]
    return mix(_rgb(0.98, 0.96, 0.88), np.clip(colour + tint, 0, 1), cover)


def _cubism(scene: Scene) -> Array:
    """Facets cut by straight lines: shading jumps and the picture shifts from facet to facet."""
    u = _columns(scene, 24)
    shade, shift = np.zeros_like(scene.mask), [np.zeros_like(scene.mask) for _ in range(2)]
    crease = np.full(scene.mask.shape, np.inf, np.float32)
    for k in range(5):
        angle = np.pi * (k + u[4 * k]) / 5
        normal_y, normal_x = np.sin(angle), np.cos(angle)
        side = (_Y - 32) * normal_y + (_X - 32) * normal_x - 24 * (u[4 * k + 1] - 0.5)
        shade += np.sign(side) * np.exp(-np.abs(side) / 14) * np.where(u[4 * k + 2] < 0.5, -1, 1)
        slip = 1.1 * np.sign(side) * (2 * u[4 * k + 3] - 1)
        shift[0], shift[1] = shift[0] + slip * normal_x, shift[1] - slip * normal_y
        crease = np.minimum(crease, np.abs(side))
    fields = (scene.colour, scene.mask, scene.distance)
    colour, mask, distance = (_at(f, _Y + shift[0], _X + shift[1]) for f in fields)
    mask = mask[..., None]
    ochre = _rgb(0.80, 0.66, 0.44) * (0.55 + 0.6 * _luminance(colour)[..., None])
    body = mix(_saturate(colour, 0.75) * 0.85, _rgb(0.25, 0.22, 0.2), np.float32(0.15))
    picture = mix(mix(ochre, colour, np.float32(0.12)), body, mask)
    picture = picture * (1 + 0.24 * shade)[..., None]
    thin = 0.45 * np.clip(1.1 - crease, 0, 1)[..., None] * (1 - 0.5 * mask)
    picture = mix(np.clip(picture, 0, 1), _rgb(0.2, 0.14, 0.1), thin)
    return mix(picture, _rgb(0.06, 0.05, 0.05), _line(distance, 0.8) * np.clip(2 * mask, 0.35, 1))


def _mosaic(scene: Scene) -> Array:
    """Square tiles in staggered rows, each in one colour, with pale grout between them."""
    tile, count = 4, 18
    offset_y, offset_x = (np.floor(tile * v) for v in _columns(scene, 2))
    y, x = _Y - 0.5 + offset_y, _X - 0.5 + offset_x
    row = np.floor(y / tile)
    x = x + 2 * (row % 2)
    column = np.floor(x / tile)
    centre_y = (row + 0.5) * tile - offset_y
    centre_x = (column + 0.5) * tile - 2 * (row % 2) - offset_x
    even = ndimage.uniform_filter(_saturate(scene.colour, 1.2), (0, 2, 2, 0))
    brightness = scene.random[:, 2 : 2 + count * count].reshape(-1, count, count)
    shade = 0.85 + 0.3 * _at(brightness, row, column)
    colour = _at(even, centre_y, centre_x) * shade[..., None]
    grout = ((y % tile < 1) | (x % tile < 1))[..., None]
    colour = np.clip(colour, 0, 1)
    return np.where(grout, mix(colour, _rgb(0.96, 0.95, 0.9), np.float32(0.75)), colour)


def _ink(scene: Scene) -> Array:
    """Black pen on white paper: contours, diagonal hatching on the object, dashes on the ground."""
    phase, dash = _columns(scene, 2)
    dark = np.clip((0.62 - _luminance(scene.colour)) * 6, 0, 1) * scene.mask
    hatch = (np.mod(_X + _Y + 6 * phase, 5) < 1.5) * dark
    stroke = (np.mod(_Y, 6) < 1) & (np.mod(_X + 7 * np.floor(_Y / 6) + 12 * dash, 12) < 6)
    stroke = 0.8 * stroke * scene.ground * (scene.mask == 0) * (scene.distance > 2)
    pen = np.maximum(np.maximum(_line(scene.distance, 0.85)[..., 0], 0.85 * hatch), stroke)
    return np.repeat((0.985 - 0.95 * pen)[..., None], 3, axis=-1)


def _watercolor(scene: Scene) -> Array:
    """Washes that bleed at their rims and fade out towards a white paper border."""
    noise = _smooth_noise(scene)
    wash = _blur(_saturate(scene.colour, 1.3), 1.1)
    reach = 27.5 + 2.5 * noise - np.maximum(np.abs(_Y - 32), np.abs(_X - 32))
    body = _blur(scene.mask, 0.8)
    pigment = np.clip(reach / 3, 0, 1) * (0.62 + 0.14 * noise)
    pigment = np.clip(np.maximum(pigment, body * (0.82 + 0.12 * noise)), 0, 1)
    rim = 0.16 * np.exp(-((scene.distance / 1.3) ** 2)) * np.clip(2 * body, 0, 1)
    return mix(_rgb(0.995, 0.99, 0.975), wash * (1 - rim[..., None]), pigment[..., None])


def _woodcut(scene: Scene) -> Array:
    """Brown block print on tan paper: wavy cuts, thin where it is light and thick where dark."""
    phase, amplitude = _columns(scene, 2)
    wave = _Y + (1 + amplitude) * np.sin(_X / 8 + 2 * np.pi * phase)
    ridge = 0.5 + 0.5 * np.cos(2 * np.pi * wave / 5)
    light = _luminance(scene.colour)
    block = np.clip(1.3 - light, 0.1, 0.94)
    paper = (0.13 + 0.14 * scene.ground) * (scene.distance > 2.5)  # a cleared rim round the object
    share = np.where(scene.mask > 0.5, block, paper)
    cut = np.clip((share - (1 - ridge)) * 4 + 0.3, 0, 1)
    print_ = np.maximum(cut, _line(scene.distance, 0.8)[..., 0])[..., None]
    return mix(_rgb(0.95, 0.85, 0.66), _rgb(0.24, 0.11, 0.06), print_)


_POP = (
    ((1, 0.45, 0.7), (1, 0.9, 0.2)),
    ((1, 0.92, 0.25), (0.3, 0.82, 1)),
    ((0.35, 0.88, 1), (1, 0.5, 0.75)),
    ((0.65, 1, 0.4), (1, 0.6, 0.35)),
)


def _popart(scene: Scene) -> Array:
    """Halftone dots behind flat, loud colours in thick black contours."""
    pair, shift_y, shift_x = _columns(scene, 3)
    palette = np.array(_POP, np.float32)[(pair[:, 0, 0] * len(_POP)).astype(int)]
    paper, dots = (palette[:, k, None, None] for k in range(2))
    u, v = (_X + _Y) / 8 + shift_x, (_X - _Y) / 8 + shift_y
    to_dot = np.hypot(u - np.round(u), v - np.round(v)) * 8 / np.sqrt(2)
    halftone = np.clip(2.6 - to_dot, 0, 1)[..., None] * (1 - scene.ground[..., None])
    back = mix(mix(paper, dots, halftone), dots, scene.ground[..., None])
    loud = np.clip(_saturate(scene.colour, 2.0) * 1.1, 0, 1)
    picture = mix(back, loud, scene.mask[..., None])
    return mix(picture, _rgb(0.02, 0.02, 0.02), _line(scene.distance, 1.0))


def _neon(scene: Scene) -> Array:
    """Glowing tubes along the contours, in the dark."""
    colour = _saturate(scene.colour, 3.0)
    colour = _blur(colour, 0.6) / (colour.max(-1, keepdims=True) + 1e-3)
    tube = np.clip(1.3 - scene.distance, 0, 1)[..., None] * (0.55 + 0.45 * scene.mask[..., None])
    glow = 0.42 * np.exp(-scene.distance / 2.2)[..., None] * (0.35 + 0.65 * scene.mask[..., None])
    light = colour * (tube + glow) + 0.45 * np.clip(0.7 - scene.distance, 0, 1)[..., None]
    return np.clip(_rgb(0.02, 0.01, 0.06) + light, 0, 1)


def _pixel(scene: Scene) -> Array:
    """Blocks of 4 x 4 pixels in the four greens of an old hand-held screen."""
    greens = palette("0f380f 306230 8bac0f cadc5c")
    fields = (scene.colour, scene.mask, scene.ground)
    blocks = (f.reshape(-1, SIZE // 4, 4, SIZE // 4, 4, *f.shape[3:]).mean((2, 4)) for f in fields)
    colour, body, ground = blocks
    tone_of_object = np.digitize(_luminance(colour), (0.36, 0.62), right=True)
    tone = np.where(body > 0.45, tone_of_object, np.where(ground > 0.5, 2, 3))
    return greens[tone].repeat(4, axis=1).repeat(4, axis=2)


#: How each style paints, in the order of the judge's classes; the plain photo comes last.
_ALL = (
    *(_swirl, _pointillism, _cubism, _mosaic, _ink, _watercolor),
    *(_woodcut, _popart, _neon, _pixel, _photo),
)
PAINTERS: dict[str, Callable[[Scene], Array]] = {paint.__name__.strip("_"): paint for paint in _ALL}
