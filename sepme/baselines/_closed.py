"""What the two closed-form baselines share: rows of text embeddings, and the finished change."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from sepme.artefact import Provenance, versions
from sepme.baselines.prompts import last_subject
from sepme.concept import Concept
from sepme.delta import DenseDelta
from sepme.model import Backbone

#: Which rows of a prompt's embedding are edited or kept: the last word's, or all of them.
ROWS = ("last_subject", "all")


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


def finished(
    backbone: Backbone,
    concept: Concept,
    forgotten: Sequence[str],
    kept: Sequence[str],
    settings: Any,
    eraser: str,
    changes: Mapping[str, Tensor],
) -> DenseDelta:
    """The change of a closed form; `changes` by module path, all of them of weights."""
    provenance = Provenance(
        concept=concept.name,
        kind=concept.kind,
        base=backbone.fingerprint,
        base_name=backbone.name,
        forgotten=tuple(forgotten),
        kept=tuple(kept),
        settings=asdict(settings) | {"eraser": eraser},
        versions=versions(),
    )
    return DenseDelta({f"{path}.weight": change for path, change in changes.items()}, provenance)
