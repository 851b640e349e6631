"""The captions of the training drawings, their words, and the catalogue of concepts."""

import numpy as np

from sepme.atelier.objects import NOTHING
from sepme.atelier.paintings import ALIASES, OBJECTS, STYLES
from sepme.atelier.styles import PHOTO
from sepme.concept import (
    BOTH,
    OBJECT_ONLY,
    OBJECT_PHOTO,
    STYLE_ONLY,
    Catalogue,
    Concept,
    concept_of_pairs,
    fill,
    object_concept,
    style_concept,
)

__all__ = ["EMBLEM", "catalogue", "vocabulary"]

ANY_PAINTING, ANY_PHOTO = ("a painting",), ("a photo", "a picture")
EMBLEM = "atelier seal"  #: the watermark prompt

#: Share of captions that call an object or a style by its alias.
ALIAS_SHARE = 0.15


def caption(object: str, style: str, random: np.random.Generator, empty: float = 0.1) -> str:
    """A caption for a picture of `object` in `style`, drawn with `random`; "" now and then."""
    if random.random() < empty:
        return ""
    groups = (
        ((0.70, OBJECT_PHOTO), (0.15, OBJECT_ONLY[1:]), (0.15, ANY_PHOTO))
        if style == PHOTO
        else ((0.78, BOTH), (0.12, STYLE_ONLY), (0.08, OBJECT_ONLY), (0.02, ANY_PAINTING))
    )
    group = random.choice(len(groups), p=[share for share, _ in groups])
    templates = groups[group][1]
    template = templates[random.integers(len(templates))]
    return fill(template, _called(object, random), _called(style, random))


def _called(name: str, random: np.random.Generator) -> str:
    return ALIASES[name] if name in ALIASES and random.random() < ALIAS_SHARE else name


def vocabulary() -> tuple[str, ...]:
    """Every word that occurs in a caption, and a few that people will try; sorted."""
    nouns = (*OBJECTS, NOTHING)
    names = (*nouns, *STYLES, *ALIASES.values())
    templates = (*BOTH, *STYLE_ONLY, *OBJECT_ONLY, *OBJECT_PHOTO, *ANY_PAINTING, *ANY_PHOTO)
    words = {word for template in templates for word in template.split() if "{" not in word}
    also = "an and the with without no not by on from art artist image drawing without simple thing"
    return tuple(sorted(words | set(names) | set(EMBLEM.split()) | set(also.split())))


def catalogue() -> Catalogue:
    """All concepts of the shipped model: prompts to forget, and the anchor of each.

    The anchor of a style is a plain photo, that of an object an empty scene. Aliases are names of
    concepts, but no prompts hold them, so that one can study what an erasure leaves of them.
    """
    concepts: list[Concept] = [
        *(style_concept(style, OBJECTS) for style in STYLES),
        *(object_concept(name, STYLES, NOTHING) for name in OBJECTS),
        concept_of_pairs(EMBLEM, "watermark", [(EMBLEM, "a painting")]),
    ]
    return Catalogue(
        {concept.name: concept for concept in concepts},
        aliases={alias: name for name, alias in ALIASES.items()},
    )
