"""A classifier of concepts for any model: a linear probe on AlexNet, trained on its own images.

The paper's classifier is a ResNet18 whose last layer alone is trained, on 1000 images of the
original model for each concept and as many of the empty prompt, 70 % of them, for 20 epochs. This
one does the same with what is at hand without a download: AlexNet instead of ResNet18, all five of
its layers instead of the last (a style shows in the early ones), and the best logistic regression
instead of 20 epochs towards it. 70 % are trained on here too, the rest says how good it is. So its
accuracies mean the same as the paper's, but are not those of the same classifier.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.nn import functional as F

from sepme.artefact import canonical_json, versions, write_atomically
from sepme.errors import SepmeError
from sepme.metrics._alexnet import CONVOLUTIONS, alexnet
from sepme.metrics.accuracy import Classification, ConfusionMatrix
from sepme.metrics.folders import Images, batches, open_images, place

#: Images are enlarged or reduced to this many pixels a side, which AlexNet was trained at.
SIDE = 224
#: What a probe looks at; a file that names something else is not read.
FEATURES = f"AlexNet, mean of each channel of each layer, at {SIDE} pixels"
#: The fewest images of a concept: two or three to train on and one or two to test with.
FEWEST = 4
#: Mean and deviation of ImageNet's colours, which AlexNet was trained with.
_MEAN, _STD = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
_HEADER = "sepme"


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A trained probe: softmax of a linear map of AlexNet's features. `fit_probe` makes one.

    Raises:
        SepmeError: fewer than two concepts, or weights that do not fit or are not finite.
    """

    names: tuple[str, ...]
    """The k concepts."""
    weight: Tensor
    """`[k, 1152]`."""
    bias: Tensor
    """`[k]`."""
    held_out: ConfusionMatrix
    """What it made of the images that it was not trained on; `held_out.accuracy()`."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Numbers of images, seed, settings, versions; JSON values only."""

    def __post_init__(self) -> None:
        k = len(self.names)
        fits = self.weight.shape == (k, _WIDTH) and self.bias.shape == (k,)
        if k < 2 or not (fits and self.weight.isfinite().all() and self.bias.isfinite().all()):
            raise SepmeError(
                f"A probe of {k} concepts needs finite weights [{k}, {_WIDTH}] and biases [{k}], "
                f"and two concepts or more; these are {list(self.weight.shape)} and "
                f"{list(self.bias.shape)}."
            )

    def classify(
        self,
        images: Images,
        *,
        batch: int = 32,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> Classification:
        """Look at images `[n, 3, h, w]` in [0, 1], or at those of a folder.

        Raises:
            SepmeError: no weights of AlexNet, or what is not images.
        """
        features = alexnet_means(images, batch=batch, device=device, progress=progress)
        logits = features @ self.weight.T + self.bias
        return Classification(self.names, logits.softmax(1))

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with all the rest as JSON in its header.

        Raises:
            SepmeError: the name does not end in .safetensors, or cannot be written.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise SepmeError(f"{path.name} is not a name for a probe: end it in .safetensors.")
        header = {
            "features": FEATURES,
            "names": self.names,
            "held_out": {"asked": self.held_out.asked, "counts": self.held_out.counts.tolist()},
            "provenance": dict(self.provenance),
        }
        tensors = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
        return write_atomically(path, to_safetensors(tensors, {_HEADER: canonical_json(header)}))

    @classmethod
    def load(cls, path: str | Path) -> "LinearProbe":
        """Read what `save` wrote.

        Raises:
            SepmeError: a file that is missing, truncated, no probe, or one of other features.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})[_HEADER])
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
            names, asked = tuple(header["names"]), tuple(header["held_out"]["asked"])
            held_out = ConfusionMatrix(asked, names, torch.tensor(header["held_out"]["counts"]))
            if header["features"] == FEATURES:
                return cls(names, weight, bias, held_out, header["provenance"])
        except SepmeError:
            raise
        except OSError as error:
            raise SepmeError(f"{path} cannot be opened: check that the file exists.") from error
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            raise SepmeError(
                f"{path} is no probe: give a file that LinearProbe.save wrote."
            ) from error
        raise SepmeError(
            f"{path} is a probe of {header['features']!r}, not of {FEATURES!r}: train it again."
        )


def fit_probe(
    images: Mapping[str, Images],
    *,
    held_out: float = 0.3,
    seed: int = 0,
    penalty: float = 1.0,
    batch: int = 32,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> LinearProbe:
    """Train a probe on images of the original model, before anything was erased.

    Args:
        images: concept -> its images, `[n, 3, h, w]` in [0, 1] or a folder, for example of
            `sepme.metrics.folders.labelled_folders`. The paper adds images of the empty prompt as
            a class of their own, so that what is no longer any concept has somewhere to go.
        held_out: share of each concept's images that it is tested with instead.
        seed: of the split; the training itself draws nothing.
        penalty: of the squared weights, on features of mean 0 and deviation 1.
        batch: images a pass.
        device: where AlexNet runs; by default where the images are (a folder is on the CPU).
        progress: show a bar for each concept.

    Raises:
        SepmeError: no weights of AlexNet, fewer than two concepts, fewer than four images of one,
            a share that leaves nothing to train on or to test with, or what is not images.
    """
    opened = {name: open_images(some) for name, some in images.items()}
    _check(opened, held_out, penalty)
    names = tuple(opened)
    features = [
        alexnet_means(some, batch=batch, device=device, progress=progress)
        for some in opened.values()
    ]
    x, labels = (
        torch.cat(features),
        torch.arange(len(names)).repeat_interleave(torch.tensor([len(part) for part in features])),
    )
    train, test = _split(labels, held_out, seed)
    weight, bias = _logistic_regression(x[train], labels[train], penalty)
    found = (x[test] @ weight.T + bias).argmax(1)
    counts = torch.bincount(labels[test] * len(names) + found, minlength=len(names) ** 2)
    return LinearProbe(
        names,
        weight,
        bias,
        ConfusionMatrix(names, names, counts.reshape(len(names), -1)),
        {
            "images": {name: len(some) for name, some in opened.items()},
            "held_out": held_out,
            "seed": seed,
            "penalty": penalty,
            "versions": versions() | {"scikit-learn": version("scikit-learn")},
        },
    )


@torch.no_grad()
def alexnet_means(
    images: Images,
    *,
    batch: int = 32,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Tensor:
    """The mean of every channel of AlexNet's five layers, after their ReLU: `[n, 1152]`, CPU.

    Raises:
        SepmeError: no weights of AlexNet, or what is not images.
    """
    images = open_images(images)
    network = alexnet()
    rows = []
    for x in batches(images, batch, place(images, device), progress=progress):
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
        x = (x - _MEAN.to(x)) / _STD.to(x)
        means = []
        for position, layer in enumerate(network.to(x.device)):
            x = layer(x)
            if position - 1 in CONVOLUTIONS:  # the ReLU behind a convolution
                means.append(x.mean((2, 3)))
        rows.append(torch.cat(means, 1).cpu())
    return torch.cat(rows)


_WIDTH = 64 + 192 + 384 + 256 + 256  # channels of the five layers


def _check(images: Mapping[str, Any], held_out: float, penalty: float) -> None:
    if len(images) < 2:
        raise SepmeError("A probe tells concepts apart: give the images of two or more.")
    for name, some in images.items():
        if len(some) < FEWEST:
            raise SepmeError(
                f"There are only {len(some)} images of {name!r}: a probe needs {FEWEST} of each "
                "concept, and hundreds to be good."
            )
    fewest = min(len(some) for some in images.values())
    if not (1 <= round(held_out * fewest) < fewest):
        raise SepmeError(
            f"Holding out {held_out:g} of {fewest} images leaves nothing to train on or to test "
            "with: choose a share like 0.3."
        )
    if not penalty > 0:
        raise SepmeError(f"A penalty of {penalty:g} lets the weights grow: choose one above 0.")


def _split(labels: Tensor, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on and to test with; the same share of each label, drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for label in labels.unique():
        where = torch.nonzero(labels == label).flatten()
        where = where[torch.randperm(len(where), generator=generator)]
        few = round(held_out * len(where))
        test.append(where[:few])
        train.append(where[few:])
    return torch.cat(train), torch.cat(test)


def _logistic_regression(x: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weights `[k, d]` and biases `[k]` for features as they are, scaled for the training only."""
    from sklearn.linear_model import LogisticRegression  # a second, and only probes need it

    mean, scale = x.double().mean(0), x.double().std(0, correction=0).clamp(min=1e-6)
    fit = LogisticRegression(C=1 / penalty, max_iter=2000)
    fit.fit(((x.double() - mean) / scale).numpy(), labels.numpy())
    weight, bias = torch.from_numpy(fit.coef_), torch.from_numpy(fit.intercept_)
    if len(weight) == 1:  # of two concepts it keeps the difference of their logits only
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    weight = weight / scale
    return weight.float(), (bias - weight @ mean).float()
