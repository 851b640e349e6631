"""Folders of images: read as they are, or refused in a sentence before anything is measured."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sepme.metrics import ImageFolder, labelled_folders, open_images
from sepme.metrics.fid import fid_of_features
from sepme.metrics.folders import batches, open_pairs, place
from tests.refusals import refused


def pixels(n: int, height: int = 5, width: int = 7) -> np.ndarray:
    """`[n, h, w, 3]`, noise that a seed decides."""
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def save(folder: Path, images: np.ndarray, names: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for image, name in zip(images, names, strict=True):
        Image.fromarray(image).save(folder / name)
    return folder


def as_tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255


def test_a_folder_reads_as_the_tensor_of_its_pictures(tmp_path: Path) -> None:
    images = pixels(3)
    folder = open_images(save(tmp_path, images[[2, 0, 1]], ["c.png", "a.png", "b.PNG"]))
    assert isinstance(folder, ImageFolder)
    assert folder.names == ("a", "b", "c")
    assert folder.shape == (3, 3, 5, 7)
    assert torch.equal(folder[0:3], as_tensor(images))
    assert torch.equal(folder[1:2], as_tensor(images[1:2]))
    assert open_images(folder) is folder


def test_only_pictures_right_in_the_folder_count(tmp_path: Path) -> None:
    save(tmp_path, pixels(1), ["a.png"])
    save(tmp_path / "deeper.png", pixels(1, 9, 9), ["b.png"])  # a folder with a picture's name
    (tmp_path / ".hidden.png").write_bytes(b"nothing")
    (tmp_path / "notes.json").write_text("{}")
    assert ImageFolder.open(tmp_path).names == ("a",)


def test_a_jpeg_and_a_grey_or_transparent_png_are_pictures_of_three_channels(
    tmp_path: Path,
) -> None:
    image = Image.fromarray(np.full((8, 8, 3), 128, np.uint8))
    image.save(tmp_path / "a.jpeg", quality=95)
    image.convert("L").save(tmp_path / "b.png")
    image.convert("RGBA").save(tmp_path / "c.png")
    read = ImageFolder.open(tmp_path)[0:3]
    assert read.shape == (3, 3, 8, 8)
    assert (read - 128 / 255).abs().max() <= 1 / 255


def test_batches_hold_every_image_once_and_in_order() -> None:
    images = torch.rand(7, 3, 4, 4, dtype=torch.float64)
    parts = list(batches(images, 3, place(images, None)))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat(parts), images.float())


def test_labelled_folders_are_named_by_their_concept(tmp_path: Path) -> None:
    save(tmp_path / "Van Gogh", pixels(2), ["a.png", "b.png"])
    save(tmp_path / "boat", pixels(1), ["a.png"])
    (tmp_path / ".ipynb_checkpoints").mkdir()
    found = labelled_folders(tmp_path)
    assert {name: len(folder) for name, folder in found.items()} == {"Van Gogh": 2, "boat": 1}


# ---------------------------------------------------------------- refusals
def test_a_device_that_is_not_there_and_a_batch_of_nothing_are_refused() -> None:
    images = torch.zeros(1, 3, 4, 4)
    assert place(images, "cpu") == place(images, None) == images.device
    with refused("'xpu:7'"):
        place(images, "xpu:7")
    with refused("batch of 0"):
        batches(images, 0, images.device)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 4, 4), torch.zeros(1, 1, 4, 4), torch.zeros(0, 3, 4, 4)],
)
def test_a_tensor_that_is_no_images_is_refused(images: Tensor) -> None:
    with refused("[n, 3, h, w]", str(list(images.shape))):
        open_images(images)


@pytest.mark.parametrize(
    "images",
    [
        torch.full((1, 3, 4, 4), 255.0),
        torch.full((1, 3, 4, 4), -0.1),
        torch.full((1, 3, 4, 4), torch.nan),
        torch.ones(1, 3, 4, 4, dtype=torch.uint8),
    ],
)
def test_values_outside_0_to_1_are_refused(images: Tensor) -> None:
    with refused("[0, 1]"):
        open_images(images)


@pytest.mark.parametrize("images", [np.zeros((1, 3, 8, 8)), [torch.zeros(3, 8, 8)], None])
def test_what_is_no_tensor_is_refused(images: object) -> None:
    with refused(type(images).__name__, "torch.from_numpy"):
        open_images(images)
    with refused(type(images).__name__, "torch.from_numpy"):
        fid_of_features(images, torch.zeros(2, 3))


def test_a_folder_that_is_missing_or_empty_is_refused(tmp_path: Path) -> None:
    with refused("nowhere", "no folder"):
        open_images(tmp_path / "nowhere")
    with refused("no PNG or JPEG"):
        open_images(str(tmp_path))
    with refused("no folder in it"):
        labelled_folders(tmp_path)
    with refused("no folder"):
        labelled_folders(tmp_path / "nowhere")


def test_a_broken_picture_is_refused_by_its_name(tmp_path: Path) -> None:
    save(tmp_path, pixels(2, 64, 64), ["a.png", "b.png"])
    ImageFolder.open(tmp_path)  # whole, it is read
    whole = (tmp_path / "b.png").read_bytes()
    for content in (whole[: len(whole) // 2], b"no picture at all", b""):
        (tmp_path / "b.png").write_bytes(content)
        with refused("b.png", "cannot be read"):
            open_images(tmp_path)


def test_pictures_of_several_sizes_are_refused(tmp_path: Path) -> None:
    save(tmp_path, pixels(1), ["a.png"])
    save(tmp_path, pixels(1, 6, 7), ["b.png"])
    with refused("b.png", "7 x 6", "a.png", "7 x 5"):
        open_images(tmp_path)


def test_sixteen_bits_a_channel_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with refused("deep.png", "8 bits"):
        open_images(tmp_path)


def test_folders_are_paired_by_name(tmp_path: Path) -> None:
    images = pixels(3)
    names = ["0.png", "1.png", "2.png"]
    a = save(tmp_path / "a", images, names)
    b = save(tmp_path / "b", images, names)
    opened = open_pairs(a, b)
    assert torch.equal(opened[0][0:3], opened[1][0:3])
    (b / "1.png").rename(b / "7.png")
    with refused("'1'", "no partner"):
        open_pairs(a, b)


def test_pairs_of_other_shapes_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, pixels(3), ["0.png", "1.png", "2.png"])
    open_pairs(folder, torch.zeros(3, 3, 5, 7))
    for other in (torch.zeros(2, 3, 5, 7), torch.zeros(3, 3, 7, 5)):
        with refused("one shape", str(list(other.shape))):
            open_pairs(folder, other)
