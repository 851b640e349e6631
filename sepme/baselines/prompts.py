"""The words of a baseline: which prompts it trains on, and where in them the concept stands.

A position in a prompt is a trap. Stable Diffusion 1.x pads with the end-of-text token itself, so
"the end token" marks one position or all of the padding, and an attention mask is no help where it
is not returned. Everything here looks at the token ids.
"""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sepme._checks import choose
from sepme.baselines._settings import OWN
from sepme.concept import Concept
from sepme.errors import SepmeError
from sepme.model import Backbone

__all__ = ["ENDS", "concept_mask", "pairs", "token_ids"]


#: Which end-of-text positions count: none, the first, or every one (on SD 1.x: all padding).
ENDS = ("none", "first", "all")


def pairs(concept: Concept, prompt: str, anchor: str | None = None) -> list[tuple[str, str]]:
    """`(prompt, anchor)` of everything that a method trains on.

    Args:
        prompt: a template ("{name}", "a photo of {name}"), or `OWN` for the concept's prompts.
        anchor: what the template means afterwards; None for the concept's own anchor: that of the
            same prompt, or its first.
    """
    own = dict(zip(concept.prompts, concept.anchors, strict=True))
    if prompt == OWN:
        return [(text, own[text] if anchor is None else anchor) for text in own]
    text = prompt.replace("{name}", concept.name)
    return [(text, own.get(text, concept.anchors[0]) if anchor is None else anchor)]


def token_ids(backbone: Backbone, prompt: str) -> list[int]:
    """Ids of a prompt padded to the model's length, as `Backbone.encode` sees it."""
    return backbone.pipe.tokenizer(
        prompt, padding="max_length", max_length=backbone.tokens, truncation=True
    ).input_ids


def first_end(backbone: Backbone, prompt: str) -> int:
    """Position of the first end-of-text token."""
    return token_ids(backbone, prompt).index(_end(backbone.pipe.tokenizer))


def last_subject(backbone: Backbone, prompt: str) -> int:
    """Position of the last word before the end of text: what UCE and SPEED call last subject.

    Of the empty prompt that is the start token, as it is in UCE's code too (its count of attended
    tokens minus two).
    """
    return first_end(backbone, prompt) - 1


def concept_mask(backbone: Backbone, prompt: str, name: str, end: str = "none") -> Tensor:
    """Where a prompt speaks of the concept, `[tokens]` of bool.

    Args:
        name: its tokens are looked for in the prompt's, at every place where they stand.
        end: one of `ENDS`, the end-of-text positions that count too.

    Raises:
        SepmeError: the prompt, cut to the model's length, does not contain the name.
    """
    choose(ENDS, end=end)
    tokenizer = backbone.pipe.tokenizer
    ids, wanted = token_ids(backbone, prompt), tokenizer(name, add_special_tokens=False).input_ids
    mask = torch.zeros(len(ids), dtype=torch.bool)
    for i in range(len(ids)):
        if wanted and ids[i : i + len(wanted)] == wanted:
            mask[i : i + len(wanted)] = True
    if not mask.any():
        raise SepmeError(
            f"The prompt {prompt!r} does not name {name!r} within {len(ids)} tokens: use a prompt "
            "that contains the concept's name."
        )
    ends = [i for i, token in enumerate(ids) if token == _end(tokenizer)]
    mask[ends[: {"none": 0, "first": 1, "all": len(ends)}[end]]] = True
    return mask


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.eos_token_id
