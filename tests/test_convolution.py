"""Convolutions of small pictures as products of matrices: the same as torch's own."""

import copy
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from sepme._convolution import PIXELS, SmallConv2d, multiply_small_pictures
from tests.tolerance import assert_close


def pair(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.Conv2d, nn.Conv2d]:
    """torch's own convolution and ours, of the same weights."""
    plain = nn.Conv2d(5, 7, 3, padding=1, dtype=dtype, **options)
    ours = copy.deepcopy(plain)
    multiply_small_pictures(ours)
    assert type(ours) is SmallConv2d
    return plain, ours


def results(conv: nn.Conv2d, x: Tensor) -> list[Tensor]:
    """What it makes of a picture, and the gradients of that by picture, weights, and bias."""
    x = x.clone().requires_grad_()
    y = conv(x)
    y.float().square().sum().backward()
    return [each.detach() for each in (y, x.grad, *(p.grad for p in conv.parameters()))]


@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    stride=st.sampled_from([1, 2, (2, 1)]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_product_is_the_convolution(
    batch: int, height: int, width: int, stride: Any, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(batch, 5, height, width)
    for plain, ours in zip(*(results(c, x) for c in pair(stride=stride, bias=bias)), strict=True):
        assert plain.shape == ours.shape
        assert_close(ours, plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_too(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, 6, dtype=dtype)
    for plain, ours in zip(*(results(conv, x) for conv in pair(dtype)), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, plain, rtol=0.05, atol=0.05)


def test_what_is_large_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = pair()
    products = []
    multiply = torch.nn.functional.linear
    monkeypatch.setattr(
        "sepme._convolution.linear", lambda *given: products.append(given) or multiply(*given)
    )
    ours(torch.randn(5, 4, 4))  # a picture without a batch
    assert not products
    for side, together, expected in ((16, 1, 1), (17, 1, 0), (16, 2, 0), (8, 4, 1)):
        assert (side * side * together <= PIXELS) is bool(expected)
        products.clear()
        ours(torch.randn(together, 5, side, side))
        assert len(products) == expected


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.ConvTranspose2d(4, 4, 3, padding=1),
    ],
    ids=["1 x 1", "no border", "holes", "groups", "circular", "transposed"],
)
def test_other_convolutions_stay_what_they_are(other: nn.Module) -> None:
    kind = type(other)
    multiply_small_pictures(other)
    assert type(other) is kind
