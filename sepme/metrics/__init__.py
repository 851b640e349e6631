"""What images are measured with.

Every measure takes images `[n, 3, h, w]` in [0, 1], or a folder of PNG and JPEG files in place of
a tensor, and answers with an `Estimate`: the figure, its confidence interval, the number of images.

| measure | compares | 0 means | call |
|---|---|---|---|
| LPIPS | images, pair by pair | identical | `measure_lpips(a, b)`, as the paper `size=PAPER_SIZE` |
| FID | two sets of images | Gaussians of one mean and covariance | `measure_fid(a, b)` |
| KID | two sets of images | the same, and unbiased for few images | `measure_kid(a, b)` |
| ACC | images with a concept | seen in none | `measure_accuracy(classifier, images, concept)` |

A classifier is the judge of the shipped model (`JudgeClassifier`) or, for any other model, a probe
trained on its images (`fit_probe`). A delta's own size, `||Delta||_1 / M`, is `ConceptDelta.norm`.
"""

from sepme.metrics._alexnet import alexnet_available
from sepme.metrics._inception import inception_available
from sepme.metrics.accuracy import (
    Classification,
    ConceptClassifier,
    ConfusionMatrix,
    JudgeClassifier,
    confusion_matrix,
    measure_accuracy,
)
from sepme.metrics.bootstrap import Estimate, estimate_mean, estimate_share
from sepme.metrics.fid import (
    fid_of_features,
    frechet_distance,
    inception_features,
    kernel_distance,
    kid_of_features,
    measure_fid,
    measure_kid,
)
from sepme.metrics.folders import ImageFolder, Images, labelled_folders, open_images
from sepme.metrics.lpips import PAPER_SIZE, lpips_distance, measure_lpips
from sepme.metrics.probe import LinearProbe, fit_probe

__all__ = [
    "PAPER_SIZE",
    "Classification",
    "ConceptClassifier",
    "ConfusionMatrix",
    "Estimate",
    "ImageFolder",
    "Images",
    "JudgeClassifier",
    "LinearProbe",
    "alexnet_available",
    "confusion_matrix",
    "estimate_mean",
    "estimate_share",
    "fid_of_features",
    "fit_probe",
    "frechet_distance",
    "inception_available",
    "inception_features",
    "kernel_distance",
    "kid_of_features",
    "labelled_folders",
    "lpips_distance",
    "measure_accuracy",
    "measure_fid",
    "measure_kid",
    "measure_lpips",
    "open_images",
]
