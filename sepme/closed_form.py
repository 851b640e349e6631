"""Erase without training: send a concept's keys and values to its anchor's, inside the null space.

The increment solves a ridge regression in closed form. With `e` the concept's embedding rows, `a`
the anchor's rows at the same positions, `k` the kept rows, and `Delta = B Q` as in training,

    min_B  mean |B Q e - W (a - e)|^2  +  mu mean |B Q k|^2  +  rho tr(G) |B|^2 / q

    B = W mean[(a - e)(Q e)^T] (G + mu K + rho tr(G)/q I)^-1,
    G = mean[(Q e)(Q e)^T],  K = mean[(Q k)(Q k)^T].

The same least-squares idea as UCE (Gandikota et al. 2024), but restricted to the directions Q that
leave what is kept alone, so it takes the same result type as training and serves as its start.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sepme.backbone import Backbone
from sepme.concept import Concept
from sepme.constraint import Constraint, constrain
from sepme.delta import ConceptDelta
from sepme.provenance import Provenance, versions


def closed_form(
    backbone: Backbone,
    concept: Concept,
    keep: Sequence[str] = (),
    *,
    keep_rtol: float | None = 1e-3,
    concept_rtol: float = 0.1,
    method: str = "damped",
    ridge: float = 1e-3,
    keep_weight: float = 1.0,
) -> ConceptDelta:
    """Erase a concept in a fraction of a second, without images and without gradients.

    Args:
        backbone: the model; it is not changed.
        concept: what to forget, and in its anchors what to say instead.
        keep: prompts that must not change (the empty prompt is always kept).
        keep_rtol: tolerance of the null space of what is kept; None for the least possible.
        concept_rtol: directions of the concept weaker than this times the strongest are left out.
        method: "damped", "svd" or "elimination", see `sepme.constraint.constrain`.
        ridge: rho of the formula above, relative to the mean energy of the directions.
        keep_weight: mu of the formula above; what leaks within the tolerance is also penalised.

    Raises:
        SepmeError: a prompt both kept and forgotten, or no free direction.
    """
    settings = {
        "keep_rtol": keep_rtol,
        "concept_rtol": concept_rtol,
        "method": method,
        "ridge": ridge,
        "keep_weight": keep_weight,
    }
    room = constrain(
        backbone, concept, keep, keep_rtol=keep_rtol, concept_rtol=concept_rtol, method=method
    )
    up = closed_form_up(backbone, room, ridge=ridge, keep_weight=keep_weight)
    provenance = Provenance(
        concept=concept.name,
        kind=concept.kind,
        base=backbone.fingerprint,
        base_name=backbone.name,
        forgotten=concept.prompts,
        kept=room.kept,
        settings=settings | {"eraser": "closed_form"},
        versions=versions(),
    )
    return ConceptDelta(
        concept.name, dict.fromkeys(up, room.basis.to(backbone.dtype)), up, provenance
    )


def closed_form_up(
    backbone: Backbone, room: Constraint, *, ridge: float = 1e-3, keep_weight: float = 1.0
) -> dict[str, Tensor]:
    """The factor B `[d_out, q]` of every layer, by the formula above."""
    q, e, k = room.basis, room.concept_rows, room.kept_rows
    a = backbone.encode(room.concept.anchors).flatten(0, 1).to(e)
    e_q, k_q = e @ q.T, k @ q.T
    gram = e_q.T @ e_q / len(e_q)  # G
    keep = k_q.T @ k_q / len(k_q)  # K
    damping = ridge * gram.trace() / len(q) * torch.eye(len(q)).to(gram)
    # Where each direction has to go, [d_in, q]: the same for all layers, which only apply W.
    shift = (a - e).T @ e_q / len(e_q) @ torch.linalg.inv(gram + keep_weight * keep + damping)
    return {
        path: (layer.weight.cpu().double() @ shift).to(layer.weight)
        for path, layer in backbone.projections().items()
    }
