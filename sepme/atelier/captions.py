"""What the training captions say, and the catalogue of concepts that follows from them."""

from collections.abc import Iterator

import numpy as np

from sepme.atelier.paintings import ALIASES, OBJECTS, STYLES
from sepme.atelier.scenes import NOTHING
from sepme.atelier.styles import PHOTO
from sepme.concept import Catalogue, Concept

#: Templates: {o} an object, {ao} the same with its article, {s} a style, {as} with its article.
BOTH = (
    "a painting of {ao} in the style of {s}",
    "{s} style {o}",
    "{ao} in the style of {s}",
    "{as} painting of {ao}",
    "{ao} in {s} style",
)
STYLE_ONLY = ("a painting in the style of {s}", "{s} style", "{as} painting", "{s}")
OBJECT_ONLY = ("a painting of {ao}", "{ao}", "{o}")
OBJECT_PHOTO = ("a photo of {ao}", "a picture of {ao}")
ANY_PAINTING, ANY_PHOTO = ("a painting",), ("a photo", "a picture")
EMBLEM = "atelier seal"  #: the watermark prompt

#: Share of captions that call an object or a style by its alias.
ALIAS_SHARE = 0.15
#: The templates that the catalogue crosses; the others show how far an erasure carries.
_CROSSED = BOTH[:2]


def with_article(noun: str) -> str:
    """ "a house", "an ink", but plain "nothing"."""
    if noun == NOTHING:
        return noun
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def fill(template: str, object: str = "", style: str = "") -> str:
    """The caption that `template` makes of an object and a style (or of their aliases)."""
    words = {"o": object, "s": style}
    words["ao"] = with_article(object) if object else ""
    words["as"] = with_article(style) if style else ""
    return template.format(**words)


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


def _style_concept(style: str) -> Concept:
    pairs = [(style, "a photo")]
    pairs += [(fill(t, style=style), "a photo") for t in STYLE_ONLY[:3]]
    pairs += [
        (fill(t, o, style), f"a photo of {with_article(o)}") for t in _CROSSED for o in OBJECTS
    ]
    return _concept(style, "style", pairs)


def _object_concept(name: str) -> Concept:
    alone = (*OBJECT_ONLY, OBJECT_PHOTO[0])
    pairs = [(fill(t, name), fill(t, NOTHING)) for t in alone]
    pairs += [(fill(t, name, s), fill(t, NOTHING, s)) for t in _CROSSED for s in STYLES]
    return _concept(name, "object", pairs)


def _concept(name: str, kind: str, pairs: list[tuple[str, str]]) -> Concept:
    prompts, anchors = zip(*pairs, strict=True)
    return Concept(name=name, prompts=prompts, kind=kind, anchors=anchors)


def _concepts() -> Iterator[Concept]:
    yield from map(_style_concept, STYLES)
    yield from map(_object_concept, OBJECTS)
    yield _concept(EMBLEM, "watermark", [(EMBLEM, "a painting")])


def catalogue() -> Catalogue:
    """All concepts of the shipped model: prompts to forget and what each should mean instead.

    A forgotten style leaves a plain photo, a forgotten object an empty scene. Aliases are known as
    names, but are not among the prompts: they are the residue that can be studied.
    """
    return Catalogue(
        {concept.name: concept for concept in _concepts()},
        aliases={alias: name for name, alias in ALIASES.items()},
    )
