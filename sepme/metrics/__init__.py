"""What images are measured with.

Images are tensors `[n, 3, h, w]` with values in [0, 1]. An `Estimate` is a measured value with its
95 % confidence interval and the number of images behind it.

| measure | compares | 0 means | call |
|---|---|---|---|
| ACC | images with a concept | seen in none | `estimate_share(judge.sees(images, concept))` |
| LPIPS | images, pair by pair | identical | `measure_lpips(a, b)`, as the paper `size=PAPER_SIZE` |
| FID | two sets of features | Gaussians of one mean and covariance | `fid_of_features(x, y)` |
| KID | two sets of features | the same, and unbiased for few images | `kid_of_features(x, y)` |
| residue | images with original's and anchor's | as the anchor | `residual_share(x, o, a)` |

The features of FID and KID come from `inception_features(images)`. The judge of ACC is the one of
the shipped model (`sepme.atelier.judge.Judge`) or, for any other model, a linear probe trained on
that model's own images (`fit_probe`). A delta's size, `||Delta||_1 / M`, is `ConceptDelta.norm`.
"""

from sepme.metrics.alexnet import (
    PAPER_SIZE,
    alexnet_available,
    lpips_distance,
    measure_lpips,
    residual_share,
)
from sepme.metrics.estimate import Estimate, estimate_share
from sepme.metrics.fid import (
    fid_of_features,
    frechet_distance,
    inception_available,
    inception_features,
    kernel_distance,
    kid_of_features,
)
from sepme.metrics.linear_probe import LinearProbe, fit_probe

__all__ = [
    "PAPER_SIZE",
    "Estimate",
    "LinearProbe",
    "alexnet_available",
    "estimate_share",
    "fid_of_features",
    "fit_probe",
    "frechet_distance",
    "inception_available",
    "inception_features",
    "kernel_distance",
    "kid_of_features",
    "lpips_distance",
    "measure_lpips",
    "residual_share",
]
