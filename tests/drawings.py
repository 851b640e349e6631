"""Training paintings of the Atelier as images: real pictures that cost nothing to make."""

import torch
from torch import Tensor

from sepme.atelier.paintings import OBJECTS, paint_batch


def drawings(style: str, n: int, first: int = 0) -> Tensor:
    """`[n, 3, 64, 64]` in [0, 1]: all objects in turn in one style, from the seed `first` on."""
    objects = [OBJECTS[i % len(OBJECTS)] for i in range(n)]
    painted = paint_batch(objects, [style] * n, range(first, first + n))
    return torch.from_numpy(painted).permute(0, 3, 1, 2) / 255
