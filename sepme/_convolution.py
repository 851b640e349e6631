"""Convolutions of small pictures on a processor, as products of matrices.

In every call torch brings the weights of a convolution into another order. Where a picture has few
pixels, this takes longer than the convolution itself. A product takes the weights as they lie. So
a pass of Stable Diffusion 1.x's UNet is up to twice as fast at 128 x 128 pixels, and about a tenth
faster at 512 (two cores of a Xeon; `benchmarks/README.md` has the training step).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

__all__ = ["SmallConv2d", "multiply_small_pictures"]

#: The most pixels, of all pictures of a batch together, for which the product is the faster one.
PIXELS = 256


class SmallConv2d(nn.Conv2d):
    """A 3 x 3 convolution, faster where the pictures are small and the channels lie last.

    Few pixels on a processor are one product with the weights `[out, 9 in]`. The result differs
    from torch's own in rounding only.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.device.type != "cpu" or x.ndim != 4 or x[:, 0].numel() > PIXELS:
            return super()._conv_forward(x, weight, bias)
        height, width = x.shape[2:]
        (down, right), rows = self.stride, pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        neighbours = [
            rows[:, i : i + height : down, j : j + width : right]
            for i in range(3)
            for j in range(3)
        ]
        product = linear(torch.cat(neighbours, 3), weight.permute(0, 2, 3, 1).flatten(1), bias)
        return product.permute(0, 3, 1, 2)


def multiply_small_pictures(unet: nn.Module) -> None:
    """Let the plain 3 x 3 convolutions of a UNet be a `SmallConv2d` each, with their weights."""
    for module in unet.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = SmallConv2d


def _is_plain(conv: nn.Conv2d) -> bool:
    """3 x 3, a border of zeros as wide as one pixel, no groups, no holes."""
    shape = (conv.kernel_size, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return shape == ((3, 3), (1, 1), (1, 1), 1, "zeros")
