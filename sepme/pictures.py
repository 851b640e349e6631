"""Pictures as files: PNG bytes of whatever holds pixels, and back."""

import io
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sepme.errors import SepmeError
from sepme.report import writable_folder


def png(picture: Figure | Tensor | NDArray[np.uint8]) -> bytes:
    """A PNG file of a figure, a `[3, h, w]` tensor in [0, 1] or `[h, w, 3]` bytes.

    It holds no date and no version: the same picture gives the same bytes.
    """
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()
    if isinstance(picture, Tensor):
        picture = (picture * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def read_picture(file: Path, size: int) -> Tensor:
    """A picture file as `[3, size, size]` in [0, 1].

    Raises:
        SepmeError: no picture, or one of another size.
    """
    try:
        with Image.open(file) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise SepmeError(f"{file} cannot be read as a picture: give PNG files.") from error
    height, width, _ = pixels.shape
    if (height, width) != (size, size):
        raise SepmeError(
            f"{file} has {width} x {height} pixels where {size} x {size} are needed: give pictures "
            "that the shipped model drew."
        )
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


def check_name(path: Path) -> None:
    """Refuse, before any work, a name that no PNG file can be written to.

    Raises:
        SepmeError: another ending, a folder of that name, or a folder that cannot be written to.
    """
    if path.suffix.lower() != ".png":
        raise SepmeError(f"{path} is not a name for a picture: end it in .png.")
    if path.is_dir():
        raise SepmeError(f"{path} is a folder: name a file in it.")
    writable_folder(path.parent)
