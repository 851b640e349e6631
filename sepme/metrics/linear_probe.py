"""A classifier of concepts for any model: a linear probe on AlexNet, trained on its own images.

The paper's classifier is a ResNet18 whose last layer alone is trained for 20 epochs, on 70 % of
1000 images of the original model for each concept and as many of the empty prompt. This one needs
no download: AlexNet, all five of its layers (a style shows in the early ones), and the optimal
logistic regression, on 70 % as well. So its accuracies mean the same as the paper's, but they are
not those of the same classifier.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sepme._checks import choose, integer, whole
from sepme.errors import SepmeError
from sepme.metrics._images import check_images
from sepme.metrics.alexnet import alexnet_means
from sepme.metrics.estimate import Estimate, estimate_share

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["LinearProbe", "fit_probe"]

#: The fewest images of a concept: two to train on and two to test with.
_FEWEST = 4


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A trained probe; `fit_probe` makes one. It stands in wherever a judge is asked."""

    names: tuple[str, ...]  #: the k concepts that it tells apart
    classifier: "Pipeline"  #: scikit-learn's: features are scaled, then logistic regression
    accuracy: Estimate  #: of the images held out, the share in which it saw what they should show

    def sees(self, images: Tensor, name: str) -> Tensor:
        """Whether each image `[n, 3, h, w]` in [0, 1] shows this concept rather than any other.

        Returns:
            bool `[n]`.

        Raises:
            SepmeError: the probe does not know the concept, or the tensor holds no images.
        """
        choose(self.names, name=name)
        seen = self.classifier.predict(_features(images))
        return torch.from_numpy(seen == self.names.index(name))


def fit_probe(images: Mapping[str, Tensor], seed: int = 0) -> LinearProbe:
    """Train a probe on images of the original model, before anything was erased.

    Args:
        images: concept -> its images `[n, 3, h, w]` in [0, 1], hundreds to be good. The paper adds
            images of the empty prompt as a class of their own, for what is no concept any more.
        seed: decides which 30 % of each concept's images are held out; 0 to 2**32 - 1.

    Raises:
        SepmeError: AlexNet's weights are not installed, there are fewer than two concepts or fewer
            than four images of one, a tensor holds no images, or the seed is not possible.
    """
    from sklearn.linear_model import LogisticRegression  # its import takes a second
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    whole(0, 2**32 - 1, seed=seed)
    if len(images) < 2 or min(map(len, images.values())) < _FEWEST:
        counts = ", ".join(f"{len(some)} of {name!r}" for name, some in images.items()) or "none"
        raise SepmeError(f"A probe needs {_FEWEST} images of two or more concepts, not {counts}.")
    names = tuple(images)
    features = np.concatenate([_features(some) for some in images.values()])
    labels = np.repeat(np.arange(len(names)), [len(some) for some in images.values()])
    x, x_test, y, y_test = train_test_split(
        features, labels, test_size=0.3, stratify=labels, random_state=integer(seed)
    )
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x, y)
    accuracy = estimate_share(classifier.predict(x_test) == y_test)
    return LinearProbe(names, classifier, accuracy)


def _features(images: Tensor) -> np.ndarray:
    """`alexnet_means` at the size that AlexNet was trained at, in double precision."""
    check_images(images)
    return alexnet_means(images, side=224).double().cpu().numpy()
