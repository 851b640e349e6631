"""How much of a concept is left in pictures in which the judge no longer sees it.

A judge says yes or no, and says no to a faint remainder too. The residual share is a length: how
far pictures still lie from those of the anchor towards those of the original model, in AlexNet's
features. It knows this one direction only: whatever else resembles the original more than the
anchor does, another style for example, has a share of its own. Compare with what that leaves.

Of what was tried (LPIPS, Inception, the judge) these features follow a blend of two pictures most
evenly, and hardly notice noise: 5 % of the range reads as 0.05, and as 0.3 in Inception.
"""

from torch import Tensor

from sepme.metrics._networks import alexnet_means, check_images

__all__ = ["residual_share"]


def residual_share(images: Tensor, original: Tensor, anchor: Tensor) -> Tensor:
    """The residual share `[n]` of each picture: 1 for the original's, 0 for the anchor's.

    Args:
        images: `[n, 3, h, w]` in [0, 1], drawn by the changed model.
        original: those of the original model, of the same prompts and seeds.
        anchor: those of the original model and the same seeds, of what the prompts should mean
            afterwards. Where they are the original's own, the share is nan.

    Raises:
        SepmeError: the weights are not installed, or the tensors hold no images of one shape.
    """
    check_images(images, original, anchor)
    x, o, a = map(alexnet_means, (images, original, anchor))
    # share = <f(x) - f(a), f(o) - f(a)> / |f(o) - f(a)|^2
    return ((x - a) * (o - a)).sum(1) / (o - a).square().sum(1)
