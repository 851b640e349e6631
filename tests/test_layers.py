"""Layers of a UNet that is passed through: what torch and diffusers compute, in less memory."""

import copy
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from diffusers.models.activations import GEGLU
from hypothesis import given
from torch import Tensor, nn

from sepme._layers import PIXELS, LeanConv2d, LeanGEGLU, make_lean
from tests.tolerance import assert_close


def pair(layer: nn.Module, last: bool = False) -> tuple[nn.Module, nn.Module]:
    """A layer, and ours of the same weights, which may lie with the channels last."""
    if last:
        layer.to(memory_format=torch.channels_last)
    ours = copy.deepcopy(layer)
    make_lean(ours)
    assert type(ours) in (LeanConv2d, LeanGEGLU)
    return layer, ours


def conv(dtype: torch.dtype = torch.float32, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 6, **({"kernel_size": 3, "padding": 1} | options), dtype=dtype)


def results(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """What it makes of x, and the gradients of that by x and by the weights that take one."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.float().square().sum().backward()
    trained = (p.grad for p in layer.parameters() if p.requires_grad)
    return [each.detach() for each in (y, x.grad, *trained)]


def kept(layer: nn.Module, x: Tensor) -> int:
    """Bytes that are kept for the way back besides the layer's weights."""
    weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    found = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = x.clone().requires_grad_() * 1.0  # kept by nobody but the layer
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = layer(x)
    assert y.requires_grad
    return sum(found.values())


@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    taps=st.sampled_from([(1, 1), (3, 1), (3, 2), ((3, 1), 1)]),  # a 1 x 1 with holes crashes torch
    padding=st.sampled_from([0, 1, (2, 1), "same"]),
    stride=st.sampled_from([1, 2, (2, 1)]),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    trained=st.booleans(),
    last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_convolution_is_torchs_own(
    batch: int,
    height: int,
    width: int,
    taps: tuple[Any, int],
    trained: bool,
    last: bool,
    seed: int,
    **options: Any,
) -> None:
    options |= dict(zip(("kernel_size", "dilation"), taps, strict=True))
    if options["padding"] == "same":
        options["stride"] = 1
    torch.manual_seed(seed)
    x = torch.randn(batch, 4, height, width)
    layers = pair(conv(**options).requires_grad_(trained), last)
    try:
        layers[0](x)
    except RuntimeError:  # a picture smaller than what the kernel takes
        with pytest.raises(RuntimeError):
            layers[1](x.requires_grad_())
        return
    for plain, ours in zip(*(results(layer, x) for layer in layers), strict=True):
        assert plain.shape == ours.shape
        assert_close(ours, plain)


@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 9),
    trained=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_gated_activation_is_diffusers_own(
    batch: int, tokens: int, trained: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(batch, tokens, 4)
    layers = pair(GEGLU(4, 6).requires_grad_(trained))
    for plain, ours in zip(*(results(layer, x) for layer in layers), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_in_half_precision_too(dtype: torch.dtype, trained: bool, last: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6, dtype=dtype)
    layers = pair(conv(dtype).requires_grad_(trained), last)
    for plain, ours in zip(*(results(layer, x) for layer in layers), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, plain, rtol=0.05, atol=0.05)


def test_within_autocast_too() -> None:
    torch.manual_seed(0)
    layers = pair(conv().requires_grad_(False))
    with torch.autocast("cpu", torch.bfloat16):
        plain, ours = (results(layer, torch.randn(2, 4, 6, 6).fill_(0.3)) for layer in layers)
    assert [t.dtype for t in ours] == [t.dtype for t in plain] == [torch.bfloat16, torch.float32]
    for theirs, own in zip(plain, ours, strict=True):
        torch.testing.assert_close(own, theirs, rtol=0.05, atol=0.05)


def test_a_border_that_a_user_changes_later_is_heeded() -> None:
    """Pictures that can be laid side by side are drawn so."""
    torch.manual_seed(0)
    x, layers = torch.randn(1, 4, 5, 5), pair(conv().requires_grad_(False), last=True)
    zeros = layers[1](x)
    for layer in layers:
        layer.padding_mode = "circular"
    circular = results(layers[1], x)
    assert not torch.allclose(circular[0], zeros)
    for theirs, own in zip(results(layers[0], x), circular, strict=True):
        assert torch.equal(own, theirs)


def test_the_gradient_of_a_gradient_is_there() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    _, ours = pair(conv(torch.float64).requires_grad_(False))
    assert torch.autograd.gradcheck(ours, x)
    assert torch.autograd.gradgradcheck(lambda x: ours(x).square(), x)


@pytest.mark.parametrize(
    ("layer", "x", "theirs", "least"),
    [
        (conv, torch.randn(2, 4, 20, 20), 2 * 4 * 20 * 20, 0),
        (lambda: GEGLU(4, 6), torch.randn(2, 9, 4), 2 * 9 * (2 * 6 + 6), 2 * 9 * 2 * 6),
    ],
    ids=["a convolution", "a gated activation"],
)
def test_less_is_kept_where_no_weight_is_trained(
    layer: Callable[[], nn.Module], x: Tensor, theirs: int, least: int
) -> None:
    plain, ours = pair(layer().requires_grad_(False))
    assert [kept(each, x) for each in (plain, ours)] == [4 * theirs, 4 * least]
    with torch.no_grad():
        assert not ours(x).requires_grad


def test_few_pixels_are_multiplied_where_the_channels_lie_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (_, ours), (_, first) = pair(conv(), last=True), pair(conv())
    products = []
    multiply = torch.nn.functional.linear
    monkeypatch.setattr(
        "sepme._layers.linear", lambda *given: products.append(given) or multiply(*given)
    )
    ours(torch.randn(4, 4, 4))  # a picture without a batch
    first(torch.randn(1, 4, 4, 4))
    assert not products
    for side, together, expected in ((16, 1, 1), (17, 1, 0), (16, 2, 0), (8, 4, 1)):
        assert (side * side * together <= PIXELS) is bool(expected)
        products.clear()
        ours(torch.randn(together, 4, side, side))
        assert len(products) == expected


def test_other_layers_stay_what_they_are() -> None:
    other = nn.ConvTranspose2d(4, 4, 3, padding=1)
    make_lean(other)
    assert type(other) is nn.ConvTranspose2d
