"""What is forgotten and what is kept, in words: concepts, prompt templates, and known words."""

import csv
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sepme._checks import plain, texts
from sepme.artefact import read_text, write_atomically
from sepme.errors import SepmeError, in_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "BOTH",
    "Catalogue",
    "Concept",
    "Vocabulary",
    "catalogue_of",
    "evenly",
    "fill",
    "parse_names",
    "refuse_overlap",
    "slug",
]

T = TypeVar("T")
#: The longest file name of a concept, in bytes, without its hash and suffix.
_LONGEST = 60
#: File names that mean a device on Windows, whatever their suffix.
_DEVICE = re.compile(r"con|prn|aux|nul|com\d|lpt\d")


@dataclass(frozen=True)
class Concept:
    """Something that a model can be made to forget.

    Raises:
        SepmeError: no name, no prompts, a blank prompt, characters that cannot be printed, or
            anchors that do not match the prompts.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")  # in files

    name: str
    prompts: tuple[str, ...]
    """The forget set, for example "neon" and "a boat in neon style"."""
    kind: str = "concept"
    """A word for people: style, object, watermark ..."""
    anchors: tuple[str, ...] = ()
    """`anchors[i]` is what `prompts[i]` should mean afterwards; "" (the default) for nothing."""

    def __post_init__(self) -> None:
        prompts, anchors = (tuple(map(plain, texts(t))) for t in (self.prompts, self.anchors))
        object.__setattr__(self, "name", plain(self.name).strip())
        object.__setattr__(self, "kind", plain(self.kind))
        object.__setattr__(self, "prompts", prompts)
        object.__setattr__(self, "anchors", anchors or ("",) * len(prompts))
        if not self.name:
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
        name = plain(text).strip()
        return cls(name=name, prompts=(name,))


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
        concepts = {plain(key).strip(): concept for key, concept in self.concepts.items()}
        aliases = {alias: plain(name).strip() for alias, name in self.aliases.items()}
        object.__setattr__(self, "concepts", concepts)  # written as concepts write their names
        object.__setattr__(self, "aliases", aliases)
        for key, concept in self.concepts.items():
            if key != concept.name:
                raise SepmeError(f"The catalogue lists {concept.name!r} as {key!r}: rename one.")
        for alias, name in self.aliases.items():
            if name not in self.concepts:
                raise SepmeError(f"{alias!r} stands for {name!r}, which the catalogue lacks.")

    def __getitem__(self, word: str) -> Concept:
        """The concept of this name or alias, whatever its case."""
        words = {_key(alias): name for alias, name in self.aliases.items()}
        words |= {_key(name): name for name in self.concepts}  # a name outweighs an alias
        if _key(word) in words:
            return self.concepts[words[_key(word)]]
        near = get_close_matches(_key(word), words, n=3)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise SepmeError(
            f"Concept {word!r} is unknown{hint}: choose from {', '.join(self.concepts)}."
        )

    def parse(self, text: str) -> list[Concept]:
        """The concepts that people typed, each once, in their order.

        Raises:
            SepmeError: nothing typed, or a name that is not in the catalogue.
        """
        return list({(found := self[name]).name: found for name in parse_names(text)}.values())

    def bare(self, word: str) -> Concept:
        """The concept with its name for its only prompt, as in the paper."""
        known = self[word]
        anchors = dict(zip(known.prompts, known.anchors, strict=True))
        return replace(known, prompts=(known.name,), anchors=(anchors.get(known.name, ""),))

    def kept_prompts(self, forget: Sequence[Concept]) -> tuple[str, ...]:
        """The retain set: the empty prompt and all prompts of none of the forgotten concepts.

        A prompt that names two concepts ("a boat in neon style") is kept only if both stay.
        """
        forgotten = {prompt for concept in forget for prompt in concept.prompts}
        known = [prompt for concept in self.concepts.values() for prompt in concept.prompts]
        return tuple(dict.fromkeys(["", *(prompt for prompt in known if prompt not in forgotten)]))

    def to_json(self) -> str:
        """The text of a `catalogue.json`."""
        order = ("name", "kind", "prompts", "anchors")
        concepts = [{k: asdict(c)[k] for k in order} for c in self.concepts.values()]
        return json.dumps({"concepts": concepts, "aliases": dict(self.aliases)}, indent=1) + "\n"

    def save(self, path: str | Path) -> Path:
        """Write `catalogue.json`."""
        return write_atomically(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> "Catalogue":
        """Read what `save` wrote.

        Raises:
            SepmeError: something else, or nothing.
        """
        try:
            found = _CatalogueFile.model_validate_json(read_text(path), strict=True)
        except (OSError, ValidationError) as error:
            raise SepmeError(
                f"{path} is not a catalogue ({in_words(error)}): it must be JSON like "
                '{"concepts": [{"name": ..., "prompts": [...]}], "aliases": {...}}.'
            ) from error
        if len({_key(concept.name) for concept in found.concepts}) < len(found.concepts):
            raise SepmeError(f"{path} lists two concepts of one name: rename one of them.")
        return cls({concept.name: concept for concept in found.concepts}, found.aliases)


class _CatalogueFile(BaseModel):
    """What a `catalogue.json` holds."""

    concepts: list[Concept] = Field(min_length=1)
    aliases: dict[str, str] = {}


# ------------------------------------------------------------------ names
def parse_names(text: str) -> list[str]:
    """Split what people type: `" pointillism, neon,"` gives `["pointillism", "neon"]`.

    A name that contains a comma is written between double quotes. Repetitions are dropped.

    Raises:
        SepmeError: no name in it, a quote that does not end, or characters that cannot be printed.
    """
    try:
        (parts,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise SepmeError(
            f"{text!r} is no list of names: write one line with commas, and a name that contains a "
            'comma between double quotes, like "Alex Example, Jr.".'
        ) from error
    names = [plain(" ".join(part.split())) for part in parts]
    names = list(dict.fromkeys(name for name in names if name))
    if not names:
        raise SepmeError('No concept was named: give one or more, like "pointillism, neon".')
    return names


def refuse_overlap(
    concept: Concept, keep: Iterable[str], reads: Callable[[str], Hashable] | None = None
) -> None:
    """Refuse a prompt of the concept that is also to be kept.

    Args:
        reads: what a model makes of a prompt (`Backbone.reads`); without it, words are compared
            without regard to case, spacing and composition.

    Raises:
        SepmeError: there is one.
    """
    reads = reads or _key
    kept = {reads(prompt): prompt for prompt in keep}
    for prompt in concept.prompts:
        if reads(prompt) in kept:
            other, which = kept[reads(prompt)], f"{prompt!r} is to be forgotten with"
            if _key(other) == _key(prompt):
                raise SepmeError(
                    f"{which} {concept.name!r} and also to be kept: take it out of one of the two."
                )
            raise SepmeError(
                f"{which} {concept.name!r}, and {other!r}, which this model reads as the same "
                "tokens, is to be kept: take one of them out."
            )


def slug(name: str) -> str:
    """A file name for a concept, safe on every system: `Van Gogh` gives `van-gogh`.

    A long name is cut, and ends in a few digits of its hash, so that it stays distinct. So does one
    of which nothing is left, and one that Windows reserves for a device.
    """
    short = ""
    for c in unicodedata.normalize("NFC", name).lower():
        # Vowels of Hindi, Thai and others are marks on the letter before.
        vowel = unicodedata.category(c)[0] == "M" and short[-1:] not in ("", "-")
        short += c if c.isalnum() or c == "_" or vowel else "-"
    short = re.sub("-+", "-", short).strip("-")
    cut = short.encode()[:_LONGEST].decode(errors="ignore").strip("-")
    if cut == short and short and not _DEVICE.fullmatch(unicodedata.normalize("NFKC", short)):
        return short
    return f"{cut or 'concept'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def evenly(items: Sequence[T], n: int) -> list[T]:
    """n of the items, evenly spread over them all, repeated in turn where there are fewer."""
    if n >= len(items):
        return [items[i % len(items)] for i in range(n)]
    return [items[i * len(items) // n] for i in range(n)]


def _key(word: str) -> str:
    """Words are compared without regard to case, spacing and the way a letter is composed."""
    return " ".join(unicodedata.normalize("NFC", word.lower()).split())


# ------------------------------------------------------------------ prompt templates
# A style and an object meet in one prompt, "a painting of a boat in the style of neon". Such a
# prompt belongs to both concepts: forgetting either must change it.
# {o} is an object, {ao} the same with its article, {s} a style, {as} with its article.
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
#: What a forgotten object leaves behind, in models that know more than the Atelier.
SCENERY = "scenery"


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
    return concept_of_pairs(style, "style", pairs)


def object_concept(name: str, styles: Sequence[str], nothing: str) -> Concept:
    """An object alone and crossed with styles. Its anchors: the same words about `nothing`."""
    pairs = [(template, "") for template in (*OBJECT_ONLY, OBJECT_PHOTO[0])]
    pairs += [(template, style) for template in CROSSED for style in styles]
    return concept_of_pairs(
        name,
        "object",
        [(fill(t, name, s), fill(t, nothing, s, uncounted=nothing)) for t, s in pairs],
    )


def concept_of_pairs(name: str, kind: str, pairs: Sequence[tuple[str, str]]) -> Concept:
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
    styles, objects = texts(styles), texts(objects)
    words = [*styles, *objects]
    if not words:
        raise SepmeError("A catalogue needs words: give at least one style or object.")
    keys = [_key(word) for word in words]
    twice = [word for word in words if keys.count(_key(word)) > 1]
    if twice:
        raise SepmeError(f"'{twice[0]}' is given twice: name each style and each object once.")
    concepts = [style_concept(style, objects) for style in styles]
    concepts += [object_concept(name, styles, nothing) for name in objects]
    return Catalogue({made.name: made for made in concepts})


# ------------------------------------------------------------------ known words
#: Runs of letters, as CLIP's tokenizer divides a text into words.
_LETTERS = r"[^\W\d_]+"


@dataclass(frozen=True)
class Vocabulary:
    """Which words a model was made for, and what to say of those that mean nothing to it.

    A CLIP tokenizer reads any word, in pieces if need be. Stable Diffusion's pieces occur in other
    words, and its text encoder learnt them. The shipped model's tokenizer has one token for every
    word of its captions: a word that it reads in pieces, the model never saw.
    """

    tokenizer: "PreTrainedTokenizerBase" = field(repr=False)
    words: frozenset[str] | None
    """All words that are one token each, or None where any word may be read in pieces."""

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "Vocabulary":
        """The vocabulary of a CLIP tokenizer; closed if every merge leads to a whole word."""
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        merges = [tuple(merge) for merge in model.get("merges", ())]
        used = {half for merge in merges for half in merge}
        made = {"".join(merge) for merge in merges}
        words = {token for token in made if token.endswith("</w>")}
        if not words or made - words - used:
            return cls(tokenizer, None)
        return cls(tokenizer, frozenset(word.removesuffix("</w>") for word in words))

    def unknown(self, prompts: Iterable[str]) -> tuple[str, ...]:
        """The words that the model reads in pieces and never saw, each once, in their order."""
        if self.words is None:
            return ()
        known = {*self.words, *self.tokenizer.get_added_vocab()}
        words = self._words(prompts)
        return tuple(w for w in words if not known & {w, w.lower()} and len(w.encode()) > 1)

    def knows_any(self, prompts: Iterable[str]) -> bool:
        """Whether a single word of the prompts, or something without letters, can be known."""
        words = self._words(prompts)
        return not words or len(self.unknown(prompts)) < len(words)

    def remark(self, prompts: Iterable[str]) -> str | None:
        """One sentence about the unknown words of prompts, or None if there is nothing to say."""
        unknown = self.unknown(prompts)
        if not unknown:
            return None
        listed = []
        for word in unknown:
            near = get_close_matches(word.lower(), self.words or (), n=1, cutoff=0.85)
            listed.append(f"'{word}' (did you mean '{near[0]}'?)" if near else f"'{word}'")
        if len(listed) == 1:
            return f"The word {listed[0]} means nothing to this model, which was never shown it."
        return (
            f"The words {', '.join(listed)} mean nothing to this model, which was never shown them."
        )

    def _words(self, prompts: Iterable[str]) -> list[str]:
        """The different words of the prompts, whatever their case, in their order.

        A token that was added to the tokenizer, as textual inversion does, is one word.
        """
        added = sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True)
        word = re.compile("|".join([*map(re.escape, added), _LETTERS]))
        found: dict[str, str] = {}
        for each in (each for prompt in prompts for each in word.findall(prompt)):
            found.setdefault(each.lower(), each)
        return list(found.values())
