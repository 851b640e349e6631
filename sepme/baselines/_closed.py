"""What the two closed forms share: rows of text embeddings, and the edit of the matrices."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sepme._checks import choose
from sepme.baselines._train import provenance
from sepme.baselines.prompts import check_prompt, last_subject, pairs
from sepme.concept import Concept
from sepme.delta import DenseDelta
from sepme.model import Backbone


@dataclass(frozen=True)
class ClosedFormSettings:
    """Which embeddings are edited."""

    prompt: str = "{name}"  #: what is erased: a template, or "{prompts}" for the concept's own
    #: The embeddings of the prompt's last word ("last_subject"), or of "all" its tokens, each
    #: beside the anchor's token at the same position.
    rows: str = "last_subject"

    def __post_init__(self) -> None:
        check_prompt(prompt=self.prompt)
        choose(("last_subject", "all"), rows=self.rows)


@dataclass(frozen=True)
class ClosedForm:
    """A method that edits every chosen matrix `W0` to `W0 (I + D)`, with one D for all."""

    name: str
    layers: tuple[str, ...]  #: of every cross-attention: "to_k", "to_v"
    #: D `[d_in, d_in]`, from rows of concept and anchor `[m, d_in]`, kept prompts and settings.
    shift: Callable[[Backbone, Tensor, Tensor, tuple[str, ...], Any], Tensor]
    always_kept: tuple[str, ...] = ()


def edit(
    backbone: Backbone,
    concept: Concept,
    settings: ClosedFormSettings,
    form: ClosedForm,
    keep: Sequence[str] = (),
) -> DenseDelta:
    """Edit the matrices so that they map the concept's rows to what the anchor's rows gave."""
    kept = tuple(dict.fromkeys((*form.always_kept, *keep)))
    texts, anchors = zip(*pairs(concept, settings.prompt), strict=True)
    c, a = (rows(backbone, prompts, settings.rows) for prompts in (texts, anchors))
    D = form.shift(backbone, c, a, kept, settings)
    changes = {
        f"{path}.weight": layer.weight.double().cpu() @ D
        for path, layer in backbone.projections().items()
        if path.endswith(form.layers)
    }
    made = provenance(backbone, concept, asdict(settings), form.name, forgotten=texts, kept=kept)
    return DenseDelta(changes, made)


def rows(backbone: Backbone, prompts: Sequence[str], which: str) -> Tensor:
    """Embedding rows `[m, d_in]` of prompts, in float64 on the CPU; m = 0 for no prompts."""
    if not prompts:
        return torch.zeros(0, backbone.d_in, dtype=torch.float64)
    embeddings = backbone.encode(prompts).double().cpu()
    if which == "all":
        return embeddings.flatten(0, 1)
    return torch.stack(
        [e[last_subject(backbone, prompt)] for e, prompt in zip(embeddings, prompts, strict=True)]
    )
