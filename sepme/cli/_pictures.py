"""Pictures that commands read and write."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sepme.artefact import refuse_overwriting, regular, writable_folder
from sepme.errors import SepmeError, warn

__all__ = ["check_name", "picture_files", "read_picture"]


def picture_files(paths: Sequence[Path]) -> list[Path]:
    """The files, where a folder stands for the pictures in it. What else it holds is named.

    Raises:
        SepmeError: a folder without pictures.
    """
    found, known = [], Image.registered_extensions()
    for path in paths:
        inside = sorted(path.glob("[!.]*")) if path.is_dir() else [path]
        others = [f.name for f in inside if f != path and f.suffix.lower() not in known]
        if len(others) == len(inside):
            raise SepmeError(f"{path} holds no pictures: name a folder that does, or files.")
        if others:
            warn(f"These in {path} are left out, being no pictures: {', '.join(others)}.")
        found += [f for f in inside if f.name not in others]
    return found


def read_picture(file: Path, size: int) -> Tensor:
    """A picture file as `[3, size, size]` in [0, 1], upright, and on white where it is transparent.

    Raises:
        SepmeError: no picture, one of another size (found out before it is decoded), or one of more
            than 8 bits a channel.
    """
    try:
        with Image.open(regular(file)) as image:
            if image.size != (size, size):
                raise SepmeError(
                    f"{file} has {image.width} x {image.height} pixels where {size} x {size} are "
                    "needed: give pictures that the shipped model drew."
                )
            if image.mode.startswith(("I", "F")) or ";16" in str(image.tile):  # read as 8
                raise SepmeError(
                    f"{file} has more than 8 bits a channel: save it with 8 bits, as PNG."
                )
            colours = ImageOps.exif_transpose(image).convert("RGBA")
            white = Image.new("RGBA", colours.size, "white")
            pixels = np.array(Image.alpha_composite(white, colours).convert("RGB"))
    except SepmeError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SepmeError(f"{file} cannot be read as a picture: give PNG files.") from error
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


def check_name(path: Path, *inputs: Path, suffix: str = ".png") -> None:
    """Refuse, before any work, a name that no PNG file (or other file) can be written to.

    Raises:
        SepmeError: another ending, a folder of that name, a folder that cannot be written to, or
            one of the files that are read.
    """
    if path.suffix.lower() != suffix:
        raise SepmeError(f"{path} is no name for such a file: end it in {suffix}.")
    if os.path.isdir(path):
        raise SepmeError(f"{path} is a folder: name a file in it.")
    writable_folder(path.parent if os.path.lexists(path) else path)
    refuse_overwriting([path], inputs)
