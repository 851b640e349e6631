"""A CLIP tokenizer whose small vocabulary holds every word of the captions as one token."""

import re
from collections import Counter
from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from sepme.atelier._architecture import TOKENS
from sepme.atelier.captions import vocabulary

_BEGIN, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def make_tokenizer() -> CLIPTokenizer:
    """Byte-pair encoding learned on the words of the captions; unknown words fall into pieces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _learn_merges(vocabulary())
    tokens = [*alphabet, *(letter + _WORD_END for letter in alphabet), *(a + b for a, b in merges)]
    numbered = {token: i for i, token in enumerate([*dict.fromkeys(tokens), _BEGIN, _END])}
    return CLIPTokenizer(vocab=numbered, merges=merges, model_max_length=TOKENS)


def _learn_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Join the commonest neighbours (ties: the alphabet) until every word is one token."""
    lines = [" ".join([*word[:-1], word[-1] + _WORD_END]) for word in words]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for line in lines for pair in pairwise(line.split())):
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        apart = re.compile(rf"(?<!\S){re.escape(' '.join(merges[-1]))}(?!\S)")
        lines = [apart.sub("".join(merges[-1]), line) for line in lines]
    return merges
