"""Each widget from data that takes a moment to make: the miniature model draws, an eye judges."""

from dataclasses import replace

import torch
from torch import Tensor

from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Verdict
from sepme.composition import Composition
from sepme.concept import Catalogue, Concept, catalogue_of
from sepme.interference import Interference
from sepme.model import Backbone
from sepme.probe import Recording, record
from sepme.widgets import (
    concept_mixer,
    decay_player,
    interference_explorer,
    null_space_budget,
    stop_rule_playground,
)
from sepme.widgets._parts import Shell
from tests.miniature import FROM_ZERO, NEON, fresh, others, three_deltas

BOAT = Concept("boat", ("boat",), "object")
STYLES = tuple(Concept(name, (name,), "style") for name in ("neon", "ink", "oil"))
CATALOGUE = Catalogue({concept.name: concept for concept in (*STYLES, BOAT)})
DELTAS = {delta.concept: delta for delta in three_deltas()}
#: Words that the paper erases from another model than ours, and deltas by such names.
FREE = catalogue_of(("Van Gogh", "Picasso"), ("church", "english springer"))
FREE_DELTAS = {
    name: replace(delta, provenance=replace(delta.provenance, concept=name, kind=FREE[name].kind))
    for name, delta in zip(
        ("Van Gogh", "Picasso", "english springer"), DELTAS.values(), strict=True
    )
}

MATRIX = torch.tensor([[1.0, 0.02, 0.3], [0.04, 1.0, 0.05]], dtype=torch.float64)
REPORT = Interference(
    ("neon", "ink"),
    ("neon", "ink", "oil"),
    MATRIX,
    "pictures",
    details={"largest cosine": MATRIX / 2, "seen": 1 - MATRIX},
    prompts={name: (name,) for name in ("neon", "ink", "oil")},
    seed=3,
)
LOSSES = (1.0, 0.5, 0.25, 0.0, 0.0, -0.5)


class Eye:
    """A judge whose opinion follows from the pixels."""

    def judge(self, images: Tensor) -> Verdict:
        brightness = images.mean(dim=(1, 2, 3))[:, None]
        style = torch.softmax(brightness * torch.arange(float(len(STYLE_NAMES))), 1)
        object_ = torch.softmax(-brightness * torch.arange(float(len(OBJECT_NAMES))), 1)
        return Verdict(style, object_, torch.zeros(len(images)))


def short_recording(model: Backbone) -> Recording:
    """Three snapshots of a training of four iterations, at three timesteps."""
    settings = replace(FROM_ZERO, iterations=4)
    return record(model, NEON, others(NEON), settings, timesteps=3, every=2, progress=False)[1]


# ---------------------------------------------------------------- the widgets, for a notebook
def mixer() -> Shell:
    """Free words and no judge, as with a Stable Diffusion of one's own; it has drawn already."""
    made = concept_mixer(fresh(), None, FREE, FREE_DELTAS, example=False)
    made.prompt.value, made.steps.value = "a boat in the style of neon", 2
    made.draw.click()
    made.wait()
    return made


def budget() -> Shell:
    return null_space_budget(fresh(), CATALOGUE)


def decay() -> Shell:
    return decay_player({"neon": short_recording(fresh())})


def pair() -> Shell:
    model = fresh()
    Composition(model, DELTAS.values())
    return interference_explorer(REPORT, model)


def stop() -> Shell:
    return stop_rule_playground({"a": LOSSES})
