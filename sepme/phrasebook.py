"""How people ask for a style or an object, and the catalogue of concepts that follows from words.

A style and an object meet in one prompt, "a painting of a boat in the style of neon". Such a prompt
belongs to both concepts: forgetting either must change it.
"""

from collections.abc import Sequence

from sepme.concept import Catalogue, Concept
from sepme.errors import SepmeError

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
#: The templates that a catalogue crosses; the others show how far an erasure carries.
CROSSED = BOTH[:2]

#: What a forgotten style leaves behind.
PHOTO = "a photo"
#: What a forgotten object leaves behind, in models that know more than the Atelier. A noun that
#: takes no article.
SCENERY = "scenery"

#: What the paper erases (0 to 5) and never erases (6 to 8), for Stable Diffusion v1.4.
PAPER_STYLES = (
    *("Cezanne", "Van Gogh", "Picasso", "Jackson Pollock", "Caravaggio", "Keith Haring"),
    *("Kelly McKernan", "Tyler Edlin", "Kilian Eng"),
)
PAPER_OBJECTS = (
    *("chain saw", "church", "gas pump", "tench", "garbage truck", "english springer"),
    *("golf ball", "parachute", "french horn"),
)


def with_article(noun: str, uncounted: str = "nothing") -> str:
    """ "a house", "an ink", but plain "nothing", or whatever else is not counted."""
    if noun == uncounted:
        return noun
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def fill(template: str, object: str = "", style: str = "", *, uncounted: str = "nothing") -> str:
    """The prompt that `template` makes of an object and a style (or of other words for them)."""
    words = {"o": object, "s": style}
    words["ao"] = with_article(object, uncounted) if object else ""
    words["as"] = with_article(style, uncounted) if style else ""
    return template.format(**words)


def style_concept(style: str, objects: Sequence[str]) -> Concept:
    """A style alone and crossed with objects. Its anchors: a photo, or a photo of the object."""
    pairs = [(style, PHOTO)]
    pairs += [(fill(template, style=style), PHOTO) for template in STYLE_ONLY[:3]]
    pairs += [
        (fill(template, thing, style), f"{PHOTO} of {with_article(thing)}")
        for template in CROSSED
        for thing in objects
    ]
    return concept(style, "style", pairs)


def object_concept(name: str, styles: Sequence[str], nothing: str) -> Concept:
    """An object alone and crossed with styles. Its anchors: the same words about `nothing`."""
    alone = (*OBJECT_ONLY, OBJECT_PHOTO[0])
    pairs = [(template, "") for template in alone]
    pairs += [(template, style) for template in CROSSED for style in styles]
    return concept(
        name,
        "object",
        [
            (fill(template, name, style), fill(template, nothing, style, uncounted=nothing))
            for template, style in pairs
        ],
    )


def concept(name: str, kind: str, pairs: Sequence[tuple[str, str]]) -> Concept:
    """A concept from pairs (prompt, anchor)."""
    prompts, anchors = zip(*pairs, strict=True)
    return Concept(name=name, prompts=prompts, kind=kind, anchors=anchors)


def catalogue_of(
    styles: Sequence[str], objects: Sequence[str], *, nothing: str = SCENERY
) -> Catalogue:
    """The catalogue of these styles and objects, every style crossed with every object.

    Args:
        styles, objects: free words, like "Van Gogh" and "church"; they need not exist anywhere.
        nothing: what a forgotten object leaves, a noun without an article.

    Raises:
        SepmeError: no word at all, or one that is given twice, whatever its case.
    """
    words = [*styles, *objects]
    if not words:
        raise SepmeError("A catalogue needs words: give at least one style or object.")
    lowered = [word.lower() for word in words]
    twice = [word for word in words if lowered.count(word.lower()) > 1]
    if twice:
        raise SepmeError(f"'{twice[0]}' is given twice: name each style and each object once.")
    concepts = [style_concept(style, objects) for style in styles]
    concepts += [object_concept(name, styles, nothing) for name in objects]
    return Catalogue({made.name: made for made in concepts})
