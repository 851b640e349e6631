"""Small files that a training and an evaluation leave for people: grids and JSON."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sepme.files import write_atomically

_GAP = 2  # white pixels between pictures


def picture_grid(
    pictures: Tensor | NDArray[np.uint8], columns: int, path: Path, zoom: int = 1
) -> Path:
    """Save pictures, float [n, 3, h, w] in [0, 1] or uint8 [n, h, w, 3], row by row as one PNG."""
    if isinstance(pictures, Tensor):
        pictures = (pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    n, height, width, _ = pictures.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (height + _GAP), columns * (width + _GAP), 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = (height + _GAP) * (i // columns), (width + _GAP) * (i % columns)
        sheet[top : top + height, left : left + width] = picture
    image = Image.fromarray(sheet[:-_GAP, :-_GAP])
    image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    encoded = io.BytesIO()
    image.save(encoded, "PNG", optimize=True)
    return write_atomically(path, encoded.getvalue())


def write_json(path: Path, content: Any) -> Path:
    """Save something as indented JSON."""
    return write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
