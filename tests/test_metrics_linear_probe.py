"""The linear probe: a judge for any model."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sepme.metrics import LinearProbe, alexnet_available, fit_probe
from sepme.metrics.alexnet import alexnet, alexnet_means
from tests.drawings import drawings
from tests.refusals import refused

needs_alexnet = pytest.mark.skipif(
    not alexnet_available(), reason="AlexNet's weights are not installed (make installs them)"
)
KNOWN = ("neon", "ink", "mosaic")


@pytest.fixture(scope="module")
def sets() -> dict[str, Tensor]:
    return {style: drawings(style, 20) for style in KNOWN}


@pytest.fixture(scope="module")
def probe(sets: dict[str, Tensor]) -> LinearProbe:
    return fit_probe(sets)


@needs_alexnet
def test_a_probe_knows_styles_that_it_was_trained_on(probe: LinearProbe) -> None:
    assert probe.names == KNOWN
    assert probe.accuracy.n == 3 * 6  # 30 % of 20 of each
    assert probe.accuracy.mean >= 0.9
    unseen = drawings("ink", 10, first=500)
    assert probe.sees(unseen, "ink").double().mean() >= 0.9
    assert not probe.sees(unseen, "neon").any()
    shown = torch.stack([probe.sees(unseen, name) for name in KNOWN])
    assert torch.equal(shown.sum(0), torch.ones(10).long())  # one of the concepts each


@needs_alexnet
def test_labels_that_mean_nothing_are_learnt_by_heart_only() -> None:
    """The control: its held-out images are really held out."""
    images = drawings("neon", 80)  # each half shows the same objects in the same style
    halves = {"first": images[:40], "second": images[40:]}
    probe = fit_probe(halves)
    assert probe.accuracy.low <= 0.5
    right = torch.cat([probe.sees(some, name) for name, some in halves.items()]).double().mean()
    assert right > probe.accuracy.mean + 0.2


@needs_alexnet
def test_the_split_comes_from_the_seed_alone(sets: dict[str, Tensor], probe: LinearProbe) -> None:
    np.random.seed(99)
    weights = [
        fitted.classifier[-1].coef_ for fitted in (probe, fit_probe(sets), fit_probe(sets, 1))
    ]
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


@needs_alexnet
def test_its_features_are_the_means_of_torchvision_s_layers(sets: dict[str, Tensor]) -> None:
    """The same images through torchvision's AlexNet, in the order of ImageNet's recipe."""
    from torchvision.models import alexnet as architecture

    features = architecture(weights=None).features.eval()
    ours = alexnet().net
    for name, value in ours.state_dict().items():  # "slice2.3.weight" is "3.weight"
        features.get_parameter(name.split(".", 1)[1]).data = value
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    images = sets["neon"][:2]
    x = torch.nn.functional.interpolate(images, (224, 224), mode="bilinear", antialias=True)
    x, expected = (x - mean) / std, []
    with torch.no_grad():
        for layer in features:
            x = layer(x)
            if isinstance(layer, torch.nn.ReLU):
                expected.append(x.mean((2, 3)))
    found = alexnet_means(images, side=224)
    torch.testing.assert_close(found, torch.cat(expected, 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alexnet_means(images[1:], side=224), found[1:])


@needs_alexnet
def test_a_concept_that_it_does_not_know_is_refused(probe: LinearProbe) -> None:
    with refused("'swirl'", "neon, ink, mosaic"):
        probe.sees(drawings("ink", 1), "swirl")


def test_what_no_probe_can_learn_from_is_refused() -> None:
    some = torch.zeros(5, 3, 64, 64)
    for images in ({}, {"a": some}, {"a": some, "b": some[:3]}):
        with refused("two or more concepts"):
            fit_probe(images)
    with refused("[0, 1]"):
        fit_probe({"a": some, "b": some + 2})
    for seed in (-1, 2**40, 1.5, True):
        with refused("seed = "):
            fit_probe({"a": some, "b": some}, seed=seed)
