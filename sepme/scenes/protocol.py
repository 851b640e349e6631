"""The paper's scenes: who is erased, given back and never touched, and when (tables 2 to 7).

Nine concepts play: 0 to 5 are erased and recovered over time, 6 to 8 never. A tenth, the watermark,
must survive everything. In the paper they are Stable Diffusion's painters and ImageNet's objects;
on the Atelier its own styles and objects.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sepme.concept import BOTH, Catalogue, Concept, fill
from sepme.errors import SepmeError

#: Scene -> time -> the concepts erased after it (method section of the paper, "Scenes").
SCENES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "Scene1": {"t0": (0, 1, 2, 3, 4, 5), "t1": (2, 3, 4, 5), "t3": (3, 4, 5)},
    "Scene2": {"t0": (0, 1, 2, 3, 4, 5), "t1": (0, 1, 2, 5), "t3": (0, 1, 2)},
    "Scene3": {"t0": (0, 2, 4), "t1": (4,), "t2": (1, 3, 4), "t3": (3, 4), "t4": (3, 4, 5)},
    "Scene4": {
        "t0": (0, 1, 2),
        "t1": (1, 2),
        "t2": (1, 2, 3, 4),
        "t3": (2, 3, 4),
        "t4": (2, 3, 4, 5),
        "t5": (3, 4, 5),
    },
}
#: Each of the first six erased by itself, in the same manner (the paper's figures 2, 10 and 15).
ALONE: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    f"Alone{index}": {"t0": (index,)} for index in range(6)
}
ROLES = ("erased", "recovered", "regular")
#: The index of the watermark, after the nine.
WATERMARK = 9


@dataclass(frozen=True)
class Moment:
    """One point in time of one scene."""

    scene: str
    time: str
    erased: tuple[int, ...]
    """Concepts that are erased after it."""
    recovered: tuple[int, ...]
    """Concepts that were erased earlier in the scene and are back."""

    def role(self, index: int) -> str:
        """ "erased", "recovered", or "regular": not touched so far."""
        if index in self.erased:
            return "erased"
        return "recovered" if index in self.recovered else "regular"


def moments(scene: str) -> tuple[Moment, ...]:
    """The points in time of a scene, in order.

    Raises:
        SepmeError: no such scene.
    """
    if scene not in (known := {**SCENES, **ALONE}):
        raise SepmeError(f"Scene '{scene}' is unknown: choose one of {', '.join(known)}.")
    found: list[Moment] = []
    before: set[int] = set()
    for time, erased in known[scene].items():
        found.append(Moment(scene, time, erased, tuple(sorted(before - set(erased)))))
        before |= set(erased)
    return tuple(found)


@dataclass(frozen=True)
class Arrival:
    """Concepts whose erasure is asked for together, for the first time in their scene."""

    group: tuple[int, ...]
    known: tuple[int, ...]
    """Concepts that were asked for before; they are to stay as they are, erased or recovered."""
    present: tuple[int, ...]
    """Those of them whose increments are on when the group arrives."""

    def others(self, index: int) -> tuple[int, ...]:
        """All that one of the group knows of: who came before, and who comes with it."""
        return (*self.known, *(other for other in self.group if other != index))


def arrivals(scene: str) -> tuple[Arrival, ...]:
    """The concepts of a scene as they arrive.

    Whoever arrives later knows of those before, and not the other way round: the increments of the
    first group were made when nobody had asked for the second.
    """
    found: list[Arrival] = []
    known: tuple[int, ...] = ()
    for moment in moments(scene):
        if new := tuple(index for index in moment.erased if index not in known):
            present = tuple(index for index in moment.erased if index in known)
            found.append(Arrival(new, known, present))
            known += new
    return tuple(found)


@dataclass(frozen=True)
class Cast:
    """Who plays the nine concepts, and the prompts that show them."""

    kind: str
    names: tuple[str, ...]
    """Nine: 0 to 5 are forgotten at times, 6 to 8 never."""
    crossed: tuple[str, ...]
    """Objects that a style is painted with, or styles that an object is painted in."""
    watermark: str

    def concept(self, index: int, catalogue: Catalogue) -> Concept:
        return catalogue[self.name(index)]

    def name(self, index: int) -> str:
        return (*self.names, self.watermark)[index]

    @property
    def indices(self) -> range:
        """The nine and the watermark."""
        return range(len(self.names) + 1)

    def prompts(self, index: int, images: int) -> list[str]:
        """What is drawn to look at a concept: crossings in turn, or the watermark's own prompt."""
        if index == WATERMARK:
            return [self.watermark] * images
        name = self.names[index]
        others = [self.crossed[i % len(self.crossed)] for i in range(images)]
        pairs = [(o, name) if self.kind == "style" else (name, o) for o in others]
        return [fill(BOTH[0], *pair) for pair in pairs]

    def seeds(self, index: int, images: int, seed: int = 0) -> range:
        """Starting noises; no two concepts share one (up to ten thousand images)."""
        first = 100_000 * seed + 10_000 * index
        return range(first, first + images)


#: Who plays on the Atelier. One style (pointillism, close to mosaic) and one object sit out.
CASTS: Mapping[str, Cast] = {
    "style": Cast(
        "style",
        ("neon", "swirl", "cubism", "mosaic", "ink", "popart", "watercolor", "woodcut", "pixel"),
        ("house", "tree", "boat", "sun", "mountain", "flower", "fish", "cup", "car", "star"),
        "atelier seal",
    ),
    "object": Cast(
        "object",
        ("boat", "house", "flower", "car", "fish", "cup", "tree", "star", "sun"),
        ("swirl", "cubism", "mosaic", "ink", "watercolor", "woodcut", "popart", "neon", "pixel"),
        "atelier seal",
    ),
}


def cast(kind: str) -> Cast:
    """The cast of a kind, "style" or "object"."""
    if kind not in CASTS:
        raise SepmeError(f"Kind '{kind}' is unknown: choose one of {', '.join(CASTS)}.")
    return CASTS[kind]
