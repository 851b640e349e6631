"""The paper's scenes: which concepts are erased, restored and never touched, and when.

Nine concepts are evaluated. Concepts 0 to 5 are erased and restored over time, 6 to 8 never are.
A tenth, the watermark, must survive everything. In the paper the concepts are Stable Diffusion's
painters and ImageNet's objects; on the Atelier they are its own styles and objects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sepme._checks import choose
from sepme.concept import BOTH, Catalogue, Concept, fill

__all__ = ["ALONE", "EVALUATED", "PROTOCOLS", "ROLES", "SCENES", "Protocol", "arrivals", "moments"]

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
#: Each of the first six concepts erased alone (the paper's figures 2, 10 and 15).
ALONE: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    f"Alone{index}": {"t0": (index,)} for index in range(6)
}
ROLES = ("erased", "recovered", "regular")
#: The index of the watermark, after the nine.
WATERMARK = 9
SEAL = "atelier seal"


@dataclass(frozen=True)
class Protocol:
    """How the forget set, the retain set and the drawn prompts of a concept are chosen."""

    name: str
    says: str

    def forget(self, catalogue: Catalogue, name: str) -> Concept:
        """The concept with its forget set: its bare name, or all of its prompts."""
        return catalogue.bare(name) if self.name == "paper" else catalogue[name]

    def retain(
        self, catalogue: Catalogue, forgotten: Sequence[str], others: Sequence[str]
    ) -> tuple[str, ...]:
        """The retain set, beside the empty prompt.

        Args:
            forgotten: the names of what is forgotten in one training.
            others: the names of the other concepts of the scene that are known by now.
        """
        if self.name == "paper":
            return (*others, *(name for name in (SEAL,) if name in catalogue.concepts))
        return catalogue.kept_prompts([catalogue[name] for name in forgotten])


#: What a method is told decides much of what it gets right, so every row of a table and every
#: caption names its retain set: [paper], [catalogue], or [none] if a method takes none.
PROTOCOLS: Mapping[str, Protocol] = {
    "paper": Protocol(
        "paper",
        "[paper]: forgotten is the bare name; retained are the bare names of the scene's other "
        "known concepts and the seal; drawn is the bare name.",
    ),
    "catalogue": Protocol(
        "catalogue",
        "[catalogue]: forgotten are the concept's 24 prompts; retained is every prompt of the "
        "catalogue that does not name it; drawn are its crossings.",
    ),
}
#: What a legend says of methods without a retain set.
NONE_RETAINED = "[none]: the method takes no retain set; prompts as in [catalogue]."


@dataclass(frozen=True)
class Moment:
    """One point in time of one scene."""

    scene: str
    time: str
    erased: tuple[int, ...]  #: concepts that are erased after it
    known: tuple[int, ...]  #: concepts that were erased earlier, in the order of their requests

    @property
    def group(self) -> tuple[int, ...]:
        """Concepts whose erasure is requested now, for the first time in their scene."""
        return tuple(index for index in self.erased if index not in self.known)

    @property
    def present(self) -> tuple[int, ...]:
        """Concepts that are erased now and were erased earlier."""
        return tuple(index for index in self.erased if index in self.known)

    @property
    def recovered(self) -> tuple[int, ...]:
        """Concepts that were erased earlier and are restored."""
        return tuple(index for index in sorted(self.known) if index not in self.erased)

    def role(self, index: int) -> str:
        """One of `ROLES`; a regular concept was not touched so far."""
        if index in self.erased:
            return "erased"
        return "recovered" if index in self.known else "regular"


def moments(scene: str) -> tuple[Moment, ...]:
    """The points in time of a scene, in order.

    Raises:
        SepmeError: no such scene.
    """
    scenes = {**SCENES, **ALONE}
    choose(tuple(scenes), scene=scene)
    found: list[Moment] = []
    known: tuple[int, ...] = ()
    for time, erased in scenes[scene].items():
        found.append(Moment(scene, time, erased, known))
        known += found[-1].group
    return tuple(found)


def arrivals(scene: str) -> tuple[Moment, ...]:
    """The moments of a scene at which concepts are requested for the first time.

    A later delta keeps the concepts of the earlier ones. The reverse is impossible: the deltas of
    the first group are trained before the second is requested.
    """
    return tuple(moment for moment in moments(scene) if moment.group)


@dataclass(frozen=True)
class EvaluatedConcepts:
    """The nine concepts of one kind, the watermark, and the prompts and seeds of their images."""

    kind: str
    names: tuple[str, ...]  #: nine: 0 to 5 are erased at times, 6 to 8 never
    crossed: tuple[str, ...]  #: what each is painted with: objects of a style, styles of an object

    def name(self, index: int) -> str:
        """The concept's name; 9 is the watermark."""
        return (*self.names, SEAL)[index]

    def prompts(self, index: int, images: int, protocol: str = "catalogue") -> list[str]:
        """Prompts that show a concept: its crossings in turn, or the bare name in the paper's way.

        The watermark has one prompt.
        """
        name = self.name(index)
        if index == WATERMARK or protocol == "paper":
            return [name] * images
        others = [self.crossed[i % len(self.crossed)] for i in range(images)]
        pairs = [(o, name) if self.kind == "style" else (name, o) for o in others]
        return [fill(BOTH[0], *pair) for pair in pairs]

    def seeds(self, index: int, images: int, seed: int = 0) -> range:
        """Seeds of the images; no two concepts share one (up to ten thousand images)."""
        first = (100_000 * seed + 10_000 * index) % 2**62
        return range(first, first + images)


#: Kind -> the concepts on the Atelier. One style (pointillism, close to mosaic) and one object,
#: mountain, are not evaluated.
EVALUATED: Mapping[str, EvaluatedConcepts] = {
    "style": EvaluatedConcepts(
        "style",
        ("neon", "swirl", "cubism", "mosaic", "ink", "popart", "watercolor", "woodcut", "pixel"),
        ("house", "tree", "boat", "sun", "mountain", "flower", "fish", "cup", "car", "star"),
    ),
    "object": EvaluatedConcepts(
        "object",
        ("boat", "house", "flower", "car", "fish", "cup", "tree", "star", "sun"),
        ("swirl", "cubism", "mosaic", "ink", "watercolor", "woodcut", "popart", "neon", "pixel"),
    ),
}
