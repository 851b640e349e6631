"""Pictures that commands read and write."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sepme.artefact import writable_folder
from sepme.errors import SepmeError

__all__ = ["check_name", "read_picture"]


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
