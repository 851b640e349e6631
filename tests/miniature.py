"""What the tests of the method share: the miniature model, three concepts, and ways to look."""

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from PIL import Image
from torch import Tensor

from sepme.concept import Concept
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, ErasureSettings, ErasureStep, erase
from sepme.model import Backbone
from sepme.nullspace import Constraint, constrain
from sepme.training import Trainer
from tests.tiny import make_tiny_pipeline

PREDICTIONS = ("epsilon", "v_prediction")
NEON, INK, OIL = (Concept(name, (name,)) for name in ("neon", "ink", "oil"))
CONCEPTS = (NEON, INK, OIL)
NAMES = tuple(concept.name for concept in CONCEPTS)
#: Kept by every delta, beside the empty prompt and the other concepts.
KEPT = ("boat", "a cat")
#: Neither kept nor forgotten by any.
UNRELATED = "house"
#: The default preset, cut short; nothing leaks, and no momentum stops it.
QUICK = replace(
    PRESETS["default"],
    iterations=5,
    batch=2,
    images=2,
    image_steps=1.0,
    keep_rtol=None,
    tau=-9.0,
    earliest_stop=1,
)
#: From zero, so that the loss has somewhere to go.
FROM_ZERO = replace(QUICK, start="zero", learning_rate=0.2)

#: The closed form alone; nothing leaks.
EXACT = replace(PRESETS["closed_form"], keep_rtol=None)
QUIET = Trainer(progress=False)


def watched(steps: list[ErasureStep]) -> Trainer:
    """A trainer that collects the steps."""
    return Trainer(callback=steps.append, progress=False)


def fresh(prediction_type: str = "epsilon", seed: int = 0) -> Backbone:
    """A miniature backbone of its own, to be changed at will."""
    return Backbone(make_tiny_pipeline(prediction_type, seed), "tiny", guidance=4.0, steps=3)


@cache
def shared(prediction_type: str = "epsilon") -> Backbone:
    """One miniature backbone for all tests of a process: leave it as you found it."""
    return fresh(prediction_type)


def others(concept: Concept) -> tuple[str, ...]:
    """What a delta of this concept keeps: `KEPT` and the other concepts."""
    return KEPT + tuple(name for name in NAMES if name != concept.name)


def constraint_of(concept: Concept, settings: ErasureSettings, backbone: Backbone) -> Constraint:
    """Where training with these settings lets the concept's delta act."""
    return constrain(
        backbone,
        concept,
        others(concept),
        keep_rtol=settings.keep_rtol,
        concept_rtol=settings.concept_rtol,
        method=settings.method,
    )


@cache
def three_deltas(prediction_type: str = "epsilon") -> tuple[ConceptDelta, ...]:
    """Deltas of neon, ink and oil that know of one another, without training."""
    return tuple(
        erase(shared(prediction_type), concept, others(concept), EXACT) for concept in CONCEPTS
    )


@torch.no_grad()
def noise_prediction(backbone: Backbone, prompt: str) -> Tensor:
    """eps(x_t, c, t) `[4, 4, 8, 8]` on the same noise, from an early timestep to the last."""
    generator = torch.Generator().manual_seed(7)
    x_t = torch.randn(4, *backbone.latent_shape, generator=generator)
    return backbone.epsilon(x_t, torch.tensor([1, 250, 700, 999]), backbone.encode([prompt] * 4))


def latents(backbone: Backbone, prompts: Sequence[str] = (*NAMES, UNRELATED)) -> Tensor:
    return backbone.generate(prompts, seeds=5, output="latents")


def png(images: Tensor) -> list[bytes]:
    """The files that one would save of images `[n, 3, h, w]` in [0, 1]."""
    files = []
    for image in images:
        pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
        files.append(file.getvalue())
    return files


def changed(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest entry of `a`."""
    return float((a - b).abs().max() / a.abs().max())
