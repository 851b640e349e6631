"""What every measure takes: images as a tensor, or a folder of PNG and JPEG files.

A folder is checked whole, each file decoded once, before any work starts; then it is read a batch
at a time, so that it may be larger than the memory. `open_images` gives both the same few manners:
`len`, `shape`, `device`, and a slice that is a tensor.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from sepme.errors import SepmeError

SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class ImageFolder:
    """The PNG and JPEG files of a folder, sorted by name; its subfolders are not looked into."""

    path: Path
    files: tuple[Path, ...]
    shape: tuple[int, int, int, int]
    """`[n, 3, h, w]`, as a tensor of all of them would have it."""

    @classmethod
    def open(cls, path: str | Path) -> "ImageFolder":
        """Look at every picture of a folder.

        Raises:
            SepmeError: no folder, no pictures in it, a broken one, or pictures of several sizes.
        """
        path = Path(path)
        if not path.is_dir():
            raise SepmeError(f"{path} is no folder: give one that holds PNG or JPEG files.")
        files = tuple(sorted(file for file in path.iterdir() if _is_picture(file)))
        if not files:
            raise SepmeError(f"{path} holds no PNG or JPEG file: name the folder right above them.")
        first, size = files[0], _pixels(files[0]).shape
        for file in files[1:]:
            if (other := _pixels(file).shape) != size:
                raise SepmeError(
                    f"{file} has {other[1]} x {other[0]} pixels where {first.name} has {size[1]} x "
                    f"{size[0]}: give a folder whose pictures are of one size."
                )
        return cls(path, files, (len(files), 3, size[0], size[1]))

    @property
    def names(self) -> tuple[str, ...]:
        """The files' names without their endings."""
        return tuple(file.stem for file in self.files)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, which: slice) -> Tensor:
        """Some pictures `[k, 3, h, w]` in [0, 1].

        Raises:
            SepmeError: a file that has been broken or taken away since the folder was opened.
        """
        pixels = torch.from_numpy(np.stack([_pixels(file) for file in self.files[which]]))
        return pixels.permute(0, 3, 1, 2) / 255


Images: TypeAlias = Tensor | ImageFolder | str | Path
"""`[n, 3, h, w]` in [0, 1], or the folder that holds them."""


def open_images(images: Images) -> Tensor | ImageFolder:
    """Images that have been looked at.

    Raises:
        SepmeError: a tensor of another shape or with values outside [0, 1], or what
            `ImageFolder.open` refuses.
    """
    if isinstance(images, str | Path):
        return ImageFolder.open(images)
    if isinstance(images, ImageFolder):
        return images
    if not isinstance(images, Tensor):
        raise SepmeError(
            f"Images are a tensor [n, 3, h, w] or a folder, not of the type "
            f"{type(images).__name__}: make one with torch.from_numpy or torch.stack."
        )
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise SepmeError(
            f"Images are tensors of shape [n, 3, h, w] with at least one image, not "
            f"{list(images.shape)}."
        )
    if not (images.is_floating_point() and images.min() >= 0 and images.max() <= 1):  # or NaN
        raise SepmeError("Images have floating point values in [0, 1]: rescale them first.")
    return images


def open_pairs(a: Images, b: Images) -> tuple[Tensor | ImageFolder, Tensor | ImageFolder]:
    """Two sets whose i-th images belong together; files in two folders do so by their names.

    Raises:
        SepmeError: what `open_images` refuses, other shapes, or names that only one folder has.
    """
    a, b = open_images(a), open_images(b)
    if isinstance(a, ImageFolder) and isinstance(b, ImageFolder) and a.names != b.names:
        alone = sorted(set(a.names) ^ set(b.names)) or list(a.names)
        raise SepmeError(
            f"The pictures of {a.path} and {b.path} are compared by their names, and {alone[0]!r} "
            "has no partner: give two folders with the same names in them."
        )
    if a.shape != b.shape:
        raise SepmeError(
            "Images that are compared one by one must be of one shape [n, 3, h, w], not "
            f"{list(a.shape)} and {list(b.shape)}."
        )
    return a, b


def place(images: Tensor | ImageFolder, device: str | torch.device | None) -> torch.device:
    """Where to look at images: the device, or where they are if it is None.

    Raises:
        SepmeError: a device that this build of torch lacks.
    """
    try:
        return torch.empty(0, device=device or images.device).device
    except (RuntimeError, AssertionError) as error:  # torch's answers to a device it lacks
        raise SepmeError(
            f"The device '{device}' is not there for this build of torch: leave it out, or choose "
            "another."
        ) from error


def batches(
    images: Tensor | ImageFolder, batch: int, device: torch.device, *, progress: bool = False
) -> Iterator[Tensor]:
    """All images in order, `batch` at a time, as float32 on the device.

    Raises:
        SepmeError: a batch of no images, before the first is read.
    """
    if batch < 1:
        raise SepmeError(f"A batch of {batch} images holds none: choose 1 or more.")
    starts = range(0, len(images), batch)
    bar = tqdm(starts, desc="looking", disable=not progress, leave=False)
    return (images[start : start + batch].float().to(device) for start in bar)


def labelled_folders(path: str | Path) -> dict[str, ImageFolder]:
    """The subfolders of a folder by name, each with the pictures of one concept.

    Raises:
        SepmeError: no folder, no subfolder, or one that `ImageFolder.open` refuses.
    """
    path = Path(path)
    if not path.is_dir():
        raise SepmeError(f"{path} is no folder: give one that holds a folder for each concept.")
    inside = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not inside:
        raise SepmeError(f"{path} has no folder in it: make one for each concept's pictures.")
    return {folder.name: ImageFolder.open(folder) for folder in inside}


def _is_picture(file: Path) -> bool:
    visible = not file.name.startswith(".")
    return visible and file.suffix.lower() in SUFFIXES and file.is_file()


def _pixels(file: Path) -> np.ndarray:
    """A file's pixels `[h, w, 3]`, one byte each; what is transparent shows its own colour."""
    try:
        with Image.open(file) as image:
            if image.mode[0] in "IF":  # converting these would clip them without a word
                raise SepmeError(f"{file} has more than 8 bits a channel: save it with 8.")
            return np.array(image.convert("RGB"))
    except SepmeError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SepmeError(
            f"{file} cannot be read as a picture: replace it by a whole PNG or JPEG file, or take "
            "it away."
        ) from error
