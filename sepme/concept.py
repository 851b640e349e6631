"""What is forgotten and what is kept, in words."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from sepme.errors import SepmeError
from sepme.files import write_atomically


@dataclass(frozen=True)
class Concept:
    """Something that a model can be made to forget.

    Raises:
        SepmeError: no name, no prompts, a blank prompt, or anchors that do not match the prompts.
    """

    name: str
    prompts: tuple[str, ...]
    """What must be forgotten, for example "neon" and "a boat in neon style"."""
    kind: str = "concept"
    """A word for people: style, object, watermark ..."""
    anchors: tuple[str, ...] = ()
    """`anchors[i]` is what `prompts[i]` should mean afterwards; "" (the default) for nothing."""

    def __post_init__(self) -> None:
        prompts = (self.prompts,) if isinstance(self.prompts, str) else tuple(self.prompts)
        anchors = (self.anchors,) if isinstance(self.anchors, str) else tuple(self.anchors)
        object.__setattr__(self, "prompts", prompts)
        object.__setattr__(self, "anchors", anchors or ("",) * len(prompts))
        if not self.name.strip():
            raise SepmeError("A concept needs a name: give at least one word.")
        if not prompts:
            raise SepmeError(f"Concept {self.name!r} has no prompts: give at least one.")
        if not all(prompt.strip() for prompt in prompts):
            raise SepmeError(
                f"Concept {self.name!r} contains the empty prompt, which cannot be forgotten "
                "because every other prompt is measured against it: leave it out."
            )
        if len(self.anchors) != len(prompts):
            raise SepmeError(
                f"Concept {self.name!r} has {len(prompts)} prompts but {len(self.anchors)} "
                "anchors: give one anchor per prompt, or none."
            )

    @classmethod
    def from_text(cls, text: str) -> "Concept":
        """A concept of free words, as for Stable Diffusion: the bare name is its only prompt."""
        name = text.strip()
        return cls(name=name, prompts=(name,))


def parse_names(text: str) -> list[str]:
    """Split what people type: `" pointillism, neon,"` gives `["pointillism", "neon"]`.

    Repetitions are dropped.

    Raises:
        SepmeError: no name in it.
    """
    names = [" ".join(part.split()) for part in text.split(",")]
    names = list(dict.fromkeys(name for name in names if name))
    if not names:
        raise SepmeError('No concept was named: give one or more, like "pointillism, neon".')
    return names


def refuse_overlap(concept: Concept, keep: Iterable[str]) -> None:
    """Raise SepmeError if a prompt of the concept is also to be kept."""
    kept = {_key(prompt) for prompt in keep}
    both = [prompt for prompt in concept.prompts if _key(prompt) in kept]
    if both:
        raise SepmeError(
            f"{both[0]!r} is to be forgotten with {concept.name!r} and also to be kept: take it "
            "out of one of the two."
        )


@dataclass(frozen=True)
class Catalogue:
    """The concepts that a model is known to know, by name, and other words for them.

    Raises:
        SepmeError: a key that is not its concept's name, or an alias of an unknown concept.
    """

    concepts: Mapping[str, Concept]
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other word to name, for example dotted to pointillism."""

    def __post_init__(self) -> None:
        for key, concept in self.concepts.items():
            if key != concept.name:
                raise SepmeError(f"The catalogue lists {concept.name!r} as {key!r}: rename one.")
        for alias, name in self.aliases.items():
            if name not in self.concepts:
                raise SepmeError(f"{alias!r} stands for {name!r}, which the catalogue lacks.")

    def __getitem__(self, word: str) -> Concept:
        """The concept of this name or alias, whatever its case."""
        words = {_key(name): name for name in self.concepts}
        words |= {_key(alias): name for alias, name in self.aliases.items()}
        if _key(word) not in words:
            raise SepmeError(self._unknown(word, list(words)))
        return self.concepts[words[_key(word)]]

    def parse(self, text: str) -> list[Concept]:
        """The concepts that people typed, each once, in their order.

        Raises:
            SepmeError: nothing typed, or a name that is not in the catalogue.
        """
        return list({(found := self[name]).name: found for name in parse_names(text)}.values())

    def kept_prompts(self, forget: Sequence[Concept]) -> tuple[str, ...]:
        """The empty prompt and all prompts that belong to none of the forgotten concepts.

        A prompt that names two concepts ("a boat in neon style") is kept only if both stay.
        """
        forgotten = {prompt for concept in forget for prompt in concept.prompts}
        known = [prompt for concept in self.concepts.values() for prompt in concept.prompts]
        return tuple(dict.fromkeys(["", *(prompt for prompt in known if prompt not in forgotten)]))

    def _unknown(self, word: str, words: list[str]) -> str:
        near = get_close_matches(_key(word), words, n=3)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        return f"Concept {word!r} is unknown{hint}: choose from {', '.join(self.concepts)}."

    def to_json(self) -> str:
        concepts = [
            {
                "name": concept.name,
                "kind": concept.kind,
                "prompts": concept.prompts,
                "anchors": concept.anchors,
            }
            for concept in self.concepts.values()
        ]
        return json.dumps({"concepts": concepts, "aliases": dict(self.aliases)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Catalogue":
        """Read what `to_json` wrote.

        Raises:
            SepmeError: something else.
        """
        try:
            content = json.loads(text)
            concepts = [Concept(**entry) for entry in content["concepts"]]
            aliases = dict(content.get("aliases", {}))
        except SepmeError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SepmeError(
                'This is not a catalogue: it must be JSON like {"concepts": [{"name": ..., '
                '"prompts": [...]}], "aliases": {...}}.'
            ) from error
        return cls({concept.name: concept for concept in concepts}, aliases)

    def save(self, path: str | Path) -> Path:
        return write_atomically(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> "Catalogue":
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SepmeError(f"The catalogue {path} cannot be read: check the path.") from error
        return cls.from_json(text)


def _key(word: str) -> str:
    """Words are compared without regard to case and spacing."""
    return " ".join(word.lower().split())
