"""Which words a model was made for, and what to say of those that mean nothing to it.

A CLIP tokenizer reads any word, in pieces if need be. Stable Diffusion's stopped merging letters at
a given size: its pieces occur in other words, and its text encoder learnt them. The shipped model's
merged them until every word of its captions was one token: what it reads in pieces it never saw.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches

from transformers import PreTrainedTokenizerBase

_WORD_END = "</w>"
#: Runs of letters, as CLIP's tokenizer divides a text into words.
_LETTERS = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Vocabulary:
    """The words of a model's tokenizer."""

    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    words: frozenset[str] | None
    """All words that are one token each, or None where any word may be read in pieces."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Vocabulary":
        """The vocabulary of a CLIP tokenizer; closed if every merge leads to a whole word."""
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        merges = [tuple(merge) for merge in model.get("merges", ())]
        used = {half for merge in merges for half in merge}
        made = {"".join(merge) for merge in merges}
        words = {token for token in made if token.endswith(_WORD_END)}
        if not words or made - words - used:
            return cls(tokenizer, None)
        return cls(tokenizer, frozenset(word.removesuffix(_WORD_END) for word in words))

    def unknown(self, prompts: Iterable[str]) -> tuple[str, ...]:
        """The words that the model reads in pieces and never saw, each once, in their order."""
        if self.words is None:
            return ()
        return tuple(word for word in _words(prompts) if len(self.tokenizer.tokenize(word)) > 1)

    def knows_any(self, prompts: Iterable[str]) -> bool:
        """Whether a single word of the prompts, or something without letters, can be known."""
        words = _words(prompts)
        return not words or len(self.unknown(prompts)) < len(words)

    def remark(self, prompts: Iterable[str]) -> str | None:
        """One sentence about the unknown words of prompts, or None if there is nothing to say."""
        unknown = self.unknown(prompts)
        if not unknown:
            return None
        listed = ", ".join(self._with_hint(word) for word in unknown)
        if len(unknown) == 1:
            return f"The word {listed} means nothing to this model, which was never shown it."
        return f"The words {listed} mean nothing to this model, which was never shown them."

    def _with_hint(self, word: str) -> str:
        near = get_close_matches(word.lower(), self.words or (), n=1, cutoff=0.85)
        return f"'{word}' (did you mean '{near[0]}'?)" if near else f"'{word}'"


def _words(prompts: Iterable[str]) -> list[str]:
    """The different words of the prompts, whatever their case, in their order."""
    found: dict[str, str] = {}
    for prompt in prompts:
        for word in _LETTERS.findall(prompt):
            found.setdefault(word.lower(), word)
    return list(found.values())
