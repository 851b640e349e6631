"""ACC: the judge and a probe as classifiers, their confusions, and files of probes."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sepme.atelier.captions import EMBLEM
from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Judge
from sepme.atelier.paintings import OBJECTS, emblem, paint_batch
from sepme.metrics import (
    Classification,
    ConceptClassifier,
    ConfusionMatrix,
    Estimate,
    JudgeClassifier,
    LinearProbe,
    alexnet_available,
    confusion_matrix,
    fit_probe,
    measure_accuracy,
)
from sepme.metrics import probe as probe_module
from sepme.metrics.plots import confusion_map
from sepme.metrics.probe import FEATURES, alexnet_means
from sepme.plots import png
from tests.refusals import refused

needs_alexnet = pytest.mark.skipif(
    not alexnet_available(), reason="AlexNet's weights are not installed (make installs them)"
)
KNOWN = ("neon", "ink", "mosaic")


def drawings(style: str, n: int, first: int = 0) -> Tensor:
    objects = [OBJECTS[i % len(OBJECTS)] for i in range(n)]
    painted = paint_batch(objects, [style] * n, range(first, first + n))
    return torch.from_numpy(painted).permute(0, 3, 1, 2) / 255


@dataclass(frozen=True)
class Brightness:
    """A classifier that anyone can check: dark or bright, as sure as the image is."""

    names: tuple[str, ...] = ("dark", "bright")

    def classify(self, images: Tensor, *, progress: bool = False) -> Classification:
        bright = images.mean((1, 2, 3))
        return Classification(self.names, torch.stack([1 - bright, bright], 1))


def grey(*levels: float) -> Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 4, 4)


# ---------------------------------------------------------------- counting
def test_a_classification_names_the_likeliest() -> None:
    found = Brightness().classify(grey(0.1, 0.9, 0.6))
    assert found.predicted == ("dark", "bright", "bright")
    assert found.shows("bright").tolist() == [False, True, True]
    with refused("'grey'", "dark, bright"):
        found.shows("grey")


def test_accuracy_is_the_share_that_shows_the_concept() -> None:
    classifier: ConceptClassifier = Brightness()
    found = measure_accuracy(classifier, grey(0.9, 0.8, 0.7, 0.2), "bright")
    assert (found.mean, found.n) == (0.75, 4)
    assert 0 < found.low < 0.75 < found.high < 1
    everything = measure_accuracy(classifier, grey(0.9, 0.8), "bright")
    assert everything.mean == 1 > everything.low > 0


def test_a_confusion_matrix_computed_by_hand() -> None:
    found = confusion_matrix(
        Brightness(), {"bright": grey(0.9, 0.8, 0.2), "dark": grey(0.1, 0.2, 0.3, 0.9, 0.4)}
    )
    assert found.asked == ("bright", "dark")
    assert found.counts.tolist() == [[1, 2], [4, 1]]  # columns: dark, bright
    assert found.of("bright").mean == pytest.approx(2 / 3)
    assert found.of("dark").mean == pytest.approx(4 / 5)
    assert found.accuracy().mean == pytest.approx(6 / 8)
    assert found.accuracy().n == 8
    assert torch.allclose(found.shares.sum(1), torch.ones(2))


def test_what_cannot_be_counted_is_refused() -> None:
    with refused("'grey'", "dark, bright"):
        measure_accuracy(Brightness(), grey(0.5), "grey")
    with refused("'grey'"):
        confusion_matrix(Brightness(), {"dark": grey(0.1), "grey": grey(0.5)})
    with refused("no images"):
        confusion_matrix(Brightness(), {})
    with refused("2 x 2"):
        ConfusionMatrix(("a", "b"), ("a", "b"), torch.tensor([[1, 0], [0, 0]]))


# ---------------------------------------------------------------- the judge
@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


def test_the_judge_classifies_what_it_sees(judge: Judge, tmp_path: Path) -> None:
    images = torch.cat([drawings("neon", 10), drawings("ink", 10)])
    images = torch.cat([images, torch.from_numpy(emblem()).permute(2, 0, 1)[None] / 255])
    for kind, names in (("style", STYLE_NAMES), ("object", OBJECT_NAMES)):
        classifier = JudgeClassifier(kind, judge)
        found = classifier.classify(images)
        assert found.names == (*names, EMBLEM) == classifier.names
        assert torch.allclose(found.probabilities.sum(1), torch.ones(21), atol=1e-5)
        assert all(torch.equal(found.shows(n), judge.sees(images, n)) for n in found.names)
        assert found.predicted[-1] == EMBLEM
    style = JudgeClassifier("style", judge)
    assert measure_accuracy(style, images[:10], "neon").mean == 1
    assert measure_accuracy(style, images[10:20], "neon").mean == 0  # the control
    for i, image in enumerate(images):
        (tmp_path / f"{i:02}.png").write_bytes(png(image))
    assert style.classify(tmp_path).predicted == style.classify(images).predicted


def test_what_the_judge_cannot_do_is_refused(judge: Judge) -> None:
    with refused("'colour'", "style or object"):
        JudgeClassifier("colour", judge)
    with refused("64"):
        JudgeClassifier("style", judge).classify(torch.zeros(1, 3, 32, 32))


# ---------------------------------------------------------------- a probe
@pytest.fixture(scope="module")
def probe() -> LinearProbe:
    return fit_probe({style: drawings(style, 20) for style in KNOWN})


@needs_alexnet
def test_a_probe_knows_styles_that_it_was_trained_on(probe: LinearProbe) -> None:
    assert probe.names == KNOWN
    assert probe.held_out.counts.sum(1).tolist() == [6, 6, 6]  # 30 % of 20
    assert probe.held_out.accuracy().mean >= 0.9
    unseen = {style: drawings(style, 10, first=500) for style in KNOWN}
    assert confusion_matrix(probe, unseen).accuracy().mean >= 0.9
    found = probe.classify(unseen["ink"])
    assert torch.allclose(found.probabilities.sum(1), torch.ones(10), atol=1e-5)


@needs_alexnet
def test_a_probe_of_labels_that_mean_nothing_is_no_better_than_chance() -> None:
    """The control: its held-out images are really held out."""
    images = drawings("neon", 80)  # each half shows the same objects in the same style
    halves = {"first": images[:40], "second": images[40:]}
    mixed = fit_probe(halves, held_out=0.5)
    assert mixed.held_out.accuracy().low <= 0.5
    with_training = confusion_matrix(mixed, halves).accuracy()
    assert with_training.mean > mixed.held_out.accuracy().mean + 0.2  # learnt by heart


@needs_alexnet
def test_a_probe_of_two_concepts_keeps_logistic_regression_s_probabilities() -> None:
    from sklearn.linear_model import LogisticRegression

    sets = {style: drawings(style, 10) for style in KNOWN[:2]}
    fitted = fit_probe(sets)
    x = torch.cat([alexnet_means(images) for images in sets.values()]).double()
    labels = torch.arange(2).repeat_interleave(10)
    train, _ = probe_module._split(labels, 0.3, 0)
    mean, scale = x[train].mean(0), x[train].std(0, correction=0).clamp(min=1e-6)
    reference = LogisticRegression(max_iter=2000).fit((x[train] - mean) / scale, labels[train])
    expected = torch.from_numpy(reference.predict_proba((x - mean) / scale))
    found = fitted.classify(torch.cat(list(sets.values()))).probabilities
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@needs_alexnet
def test_the_split_comes_from_the_seed_alone(probe: LinearProbe) -> None:
    sets = {style: drawings(style, 20) for style in KNOWN}
    torch.manual_seed(99)
    again = fit_probe(sets)
    assert torch.equal(again.weight, probe.weight)
    assert not torch.equal(fit_probe(sets, seed=1).weight, probe.weight)


def test_the_split_parts_every_label_alike() -> None:
    labels = torch.tensor([0] * 10 + [1] * 20)
    train, test = probe_module._split(labels, 0.3, seed=0)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(30))
    assert labels[test].bincount().tolist() == [3, 6]


@needs_alexnet
def test_the_network_is_the_one_that_lpips_looks_through() -> None:
    """Its five layers, on the same input, are those of the `lpips` package."""
    from sepme.metrics import lpips as lpips_module
    from sepme.metrics._alexnet import CONVOLUTIONS, alexnet

    x = drawings("neon", 2)
    theirs = lpips_module._network().net(x)
    layer = x
    for position, module in enumerate(alexnet()):
        layer = module(layer)
        if position - 1 in CONVOLUTIONS:
            torch.testing.assert_close(layer, theirs[CONVOLUTIONS.index(position - 1)])
            layer = layer.clone()


@needs_alexnet
def test_features_do_not_depend_on_the_batch_and_folders_give_the_same(tmp_path: Path) -> None:
    images = drawings("ink", 5)
    features = alexnet_means(images)
    assert features.shape == (5, 1152)
    torch.testing.assert_close(alexnet_means(images, batch=2), features)
    for i, image in enumerate(images):
        (tmp_path / f"{i}.png").write_bytes(png(image))
    torch.testing.assert_close(alexnet_means(tmp_path), features)


def some_probe() -> LinearProbe:
    counts = torch.tensor([[3, 1], [0, 4]])
    held_out = ConfusionMatrix(("a", "b"), ("a", "b"), counts)
    return LinearProbe(
        ("a", "b"), torch.randn(2, 1152), torch.randn(2), held_out, {"seed": 3, "images": {"a": 9}}
    )


def test_a_probe_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    original = some_probe()
    file = original.save(tmp_path / "probe.safetensors")
    loaded = LinearProbe.load(file)
    assert loaded.names == original.names
    assert torch.equal(loaded.weight, original.weight)
    assert torch.equal(loaded.bias, original.bias)
    assert loaded.provenance == original.provenance
    assert torch.equal(loaded.held_out.counts, original.held_out.counts)
    assert loaded.held_out.accuracy() == original.held_out.accuracy()
    assert isinstance(loaded.held_out.accuracy(), Estimate)
    assert original.save(tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


def test_what_is_no_probe_is_refused(tmp_path: Path) -> None:
    file = some_probe().save(tmp_path / "probe.safetensors")
    with refused(".safetensors"):
        some_probe().save(tmp_path / "probe.pkl")
    with refused("cannot be opened"):
        LinearProbe.load(tmp_path / "none.safetensors")
    (tmp_path / "half.safetensors").write_bytes(file.read_bytes()[:200])
    with refused("half", "no probe"):
        LinearProbe.load(tmp_path / "half.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with refused("other", "no probe"):
        LinearProbe.load(tmp_path / "other.safetensors")
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["sepme"])
        tensors = {name: opened.get_tensor(name) for name in ("weight", "bias")}
    header["features"] = "another network"
    save_file(tensors, tmp_path / "foreign.safetensors", {"sepme": json.dumps(header)})
    with refused("another network", FEATURES):
        LinearProbe.load(tmp_path / "foreign.safetensors")
    with refused("finite"):
        LinearProbe(("a", "b"), torch.full((2, 1152), torch.nan), torch.zeros(2), None)


def test_what_no_probe_can_learn_from_is_refused() -> None:
    some = torch.zeros(5, 3, 64, 64)
    with refused("two or more"):
        fit_probe({"a": some})
    with refused("3 images of 'b'"):
        fit_probe({"a": some, "b": some[:3]})
    for share in (0.0, 0.05, 1.0):
        with refused("Holding out"):
            fit_probe({"a": some, "b": some}, held_out=share)
    with refused("penalty"):
        fit_probe({"a": some, "b": some}, penalty=0)
    with refused("[0, 1]"):
        fit_probe({"a": some, "b": some + 2})


# ---------------------------------------------------------------- the picture
def test_a_confusion_map_shows_shares_of_rows_and_no_columns_that_nobody_needs() -> None:
    matrix = ConfusionMatrix(
        ("a", "b"), ("a", "b", "c", "d"), torch.tensor([[3, 0, 1, 0], [0, 5, 0, 0]])
    )
    ax, open_figures = Figure().subplots(), plt.get_fignums()
    assert confusion_map(matrix, ax) is ax
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a (4)", "b (5)"]
    assert [text.get_text() for text in ax.texts] == ["75", "25", "100"]
    assert plt.get_fignums() == open_figures
