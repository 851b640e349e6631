"""ACC: in how many images does a classifier see the concept that they should, or should not, show?

Two classifiers, one manner: images in, a probability for each concept out. For the model that
ships with the project it is its judge (`JudgeClassifier`); for any other model a probe is trained
on that model's own images (`sepme.metrics.probe`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from sepme.atelier.captions import EMBLEM
from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Judge
from sepme.errors import SepmeError
from sepme.metrics.bootstrap import CONFIDENCE, Estimate, estimate_share
from sepme.metrics.folders import Images, batches, open_images, place


@dataclass(frozen=True, eq=False)
class Classification:
    """What a classifier sees in n images."""

    names: tuple[str, ...]
    """The k concepts that it tells apart."""
    probabilities: Tensor
    """`[n, k]`, each row sums to 1."""

    @property
    def predicted(self) -> tuple[str, ...]:
        """The likeliest concept of each image."""
        return tuple(self.names[k] for k in self.probabilities.argmax(1).tolist())

    def shows(self, name: str) -> Tensor:
        """Whether each image, bool `[n]`, shows this concept rather than any other.

        Raises:
            SepmeError: a concept that the classifier does not know.
        """
        return self.probabilities.argmax(1) == _index(self.names, name)


class ConceptClassifier(Protocol):
    """Anything that tells concepts apart."""

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts that it knows."""
        ...

    def classify(self, images: Images, *, progress: bool = False) -> Classification:
        """Look at images `[n, 3, h, w]` in [0, 1], or at those of a folder."""
        ...


@dataclass(frozen=True, eq=False)
class JudgeClassifier:
    """The Atelier's judge as a classifier of its styles or of its objects, and of the emblem.

    What it predicts is what `Judge.sees` says, except where the judge wavers between the emblem and
    something else: here the likelier of the two counts.

    Raises:
        SepmeError: another kind.
    """

    kind: str
    """"style" or "object"."""
    judge: Judge = field(default_factory=Judge.load)

    def __post_init__(self) -> None:
        if self.kind not in _JUDGED:
            raise SepmeError(f"The judge sees no {self.kind!r}: choose style or object.")

    @property
    def names(self) -> tuple[str, ...]:
        return (*_JUDGED[self.kind], EMBLEM)

    def classify(self, images: Images, *, progress: bool = False) -> Classification:
        """Look at images `[n, 3, 64, 64]` in [0, 1], or at those of a folder.

        Raises:
            SepmeError: images of another size, or what is not images.
        """
        images = open_images(images)
        parts = batches(images, 256, place(images, None), progress=progress)
        verdicts = [self.judge.judge(part) for part in parts]
        seen = torch.cat([getattr(verdict, f"{self.kind}_probability") for verdict in verdicts])
        emblem = torch.cat([verdict.emblem_probability for verdict in verdicts])[:, None]
        return Classification(self.names, torch.cat([(1 - emblem) * seen, emblem], 1))


_JUDGED = {"style": STYLE_NAMES, "object": OBJECT_NAMES}


def measure_accuracy(
    classifier: ConceptClassifier,
    images: Images,
    name: str,
    *,
    confidence: float = CONFIDENCE,
    progress: bool = False,
) -> Estimate:
    """The share of images in which a classifier sees a concept, with Wilson's interval.

    Of an erased concept's images it should be low, of every other's high.

    Args:
        classifier: the judge or a probe.
        images: `[n, 3, h, w]` in [0, 1], or a folder.
        name: the concept that they should show.
        confidence: of the interval, between 0 and 1.

    Raises:
        SepmeError: a concept that the classifier does not know, or what is not images.
    """
    _index(classifier.names, name)
    seen = classifier.classify(images, progress=progress).shows(name)
    return estimate_share(seen, confidence=confidence)


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """How often a classifier took images of one concept for another.

    Raises:
        SepmeError: counts of another shape, or a row without images.
    """

    asked: tuple[str, ...]
    """What the images should show: the rows."""
    names: tuple[str, ...]
    """What the classifier can see: the columns."""
    counts: Tensor
    """`[asked, names]`, numbers of images."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "asked", tuple(self.asked))
        object.__setattr__(self, "names", tuple(self.names))
        shape = (len(self.asked), len(self.names))
        if tuple(self.counts.shape) != shape or not bool((self.counts.sum(1) > 0).all()):
            raise SepmeError(
                f"The counts must be {shape[0]} x {shape[1]}, with images in each row; they are "
                f"{list(self.counts.shape)}."
            )
        for name in self.asked:
            _index(self.names, name)

    @property
    def shares(self) -> Tensor:
        """`[asked, names]`: of the images of each concept, the share taken for each."""
        return self.counts / self.counts.sum(1, keepdim=True)

    def of(self, name: str, confidence: float = CONFIDENCE) -> Estimate:
        """The accuracy on the images of one concept.

        Raises:
            SepmeError: a concept of which there are no images.
        """
        row = self.counts[_index(self.asked, name)]
        return _share(int(row[self.names.index(name)]), int(row.sum()), confidence)

    def accuracy(self, confidence: float = CONFIDENCE) -> Estimate:
        """The share of all images that were taken for what they should show."""
        right = sum(
            int(self.counts[i, self.names.index(name)]) for i, name in enumerate(self.asked)
        )
        return _share(right, int(self.counts.sum()), confidence)


def confusion_matrix(
    classifier: ConceptClassifier, images: Mapping[str, Images], *, progress: bool = False
) -> ConfusionMatrix:
    """Which concepts a classifier takes for which.

    Args:
        classifier: the judge or a probe.
        images: concept -> images that should show it, for example of
            `sepme.metrics.folders.labelled_folders`.

    Raises:
        SepmeError: no concept, one that the classifier does not know, or what is not images.
    """
    if not images:
        raise SepmeError("There are no images to tell apart: give those of one concept at least.")
    for name in images:
        _index(classifier.names, name)
    opened = {name: open_images(some) for name, some in images.items()}
    rows = []
    for some in opened.values():
        predicted = classifier.classify(some, progress=progress).probabilities.argmax(1)
        rows.append(torch.bincount(predicted, minlength=len(classifier.names)))
    return ConfusionMatrix(tuple(opened), classifier.names, torch.stack(rows))


def _share(right: int, n: int, confidence: float) -> Estimate:
    return estimate_share(torch.arange(n) < right, confidence=confidence)


def _index(names: Sequence[str], name: str) -> int:
    if name not in names:
        raise SepmeError(f"{name!r} is none of the concepts {', '.join(names)}: choose among them.")
    return list(names).index(name)
