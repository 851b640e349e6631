"""Which prompts a baseline trains on, and at which token positions they name the concept.

Stable Diffusion 1.x pads with the end-of-text token itself, so "the end token" can mean one
position or all of the padding. All positions are read off the token ids.
"""

import torch
from torch import Tensor

from sepme.concept import Concept
from sepme.errors import SepmeError
from sepme.model import Backbone

__all__ = ["ENDS", "concept_mask", "token_ids"]

#: The prompts of the concept itself, in place of a template.
OWN = "{prompts}"
#: Which end-of-text positions count: none, the first, or every one (on SD 1.x: all padding).
ENDS = ("none", "first", "all")


def check_prompt(**templates: str) -> None:
    """A template names the concept ("a photo of {name}"), or is `OWN`."""
    for name, template in templates.items():
        if template != OWN and "{name}" not in template:
            raise SepmeError(
                f"{name} = '{template}' does not name the concept: write {{name}} where it "
                f"belongs, or '{OWN}' for the concept's own prompts."
            )


def pairs(concept: Concept, prompt: str, anchor: str | None = None) -> list[tuple[str, str]]:
    """`(prompt, anchor)` of everything that a method trains on.

    Args:
        prompt: a template ("{name}", "a photo of {name}"), or `OWN` for the concept's prompts.
        anchor: of all of them; None for the concept's anchor of the same prompt, or its first.
    """
    own = dict(zip(concept.prompts, concept.anchors, strict=True))
    texts = tuple(own) if prompt == OWN else (prompt.replace("{name}", concept.name),)
    first = concept.anchors[0]
    return [(text, own.get(text, first) if anchor is None else anchor) for text in texts]


def token_ids(backbone: Backbone, prompt: str) -> list[int]:
    """Ids of a prompt padded to the model's length, as `Backbone.encode` sees it."""
    return backbone.pipe.tokenizer(
        prompt, padding="max_length", max_length=backbone.tokens, truncation=True
    ).input_ids


def places(backbone: Backbone, prompt: str, name: str, ids: list[int]) -> list[slice]:
    """Every run of the prompt's token ids that is the concept's name.

    Raises:
        SepmeError: the name is not among them.
    """
    wanted = backbone.pipe.tokenizer(name, add_special_tokens=False).input_ids
    runs = [slice(i, i + len(wanted)) for i in range(len(ids))]
    found = [run for run in runs if wanted and ids[run] == wanted]
    if not found:
        raise SepmeError(
            f"The prompt {prompt!r} does not name {name!r} within {len(ids)} tokens: use a prompt "
            "that contains the concept's name."
        )
    return found


def end_mask(backbone: Backbone, ids: Tensor, which: str) -> Tensor:
    """Which of the token ids `[..., tokens]` are end-of-text positions that count, of bool."""
    end = ids == backbone.pipe.tokenizer.eos_token_id
    return {"none": end & False, "first": end & (end.cumsum(-1) == 1), "all": end}[which]


def last_subject(backbone: Backbone, prompt: str) -> int:
    """Position of the last word before the end of text: what UCE and SPEED call last subject.

    Of the empty prompt it is the start token, as in UCE's code.
    """
    return token_ids(backbone, prompt).index(backbone.pipe.tokenizer.eos_token_id) - 1


def concept_mask(backbone: Backbone, prompt: str, name: str, end: str = "none") -> Tensor:
    """Where a prompt names the concept, `[tokens]` of bool; `end` is one of `ENDS`.

    Raises:
        SepmeError: the prompt, cut to the model's length, does not contain the name.
    """
    ids = token_ids(backbone, prompt)
    mask = end_mask(backbone, torch.tensor(ids), end)
    for place in places(backbone, prompt, name, ids):
        mask[place] = True
    return mask
