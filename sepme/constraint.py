"""Where the delta of a concept may act: the directions it needs among those that are free.

The prompts to keep span a space; what is orthogonal to it is free (`sepme.nullspace`). Of that
freedom only the row space of `e(c) P` matters (method, claim 1), and of that row space only the
strong directions matter much. P is the projector onto the null space, or its damped form, which
leaks less for the same reach.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sepme.backbone import Backbone
from sepme.concept import Concept, refuse_overlap
from sepme.errors import SepmeError, warn
from sepme.nullspace import (
    NothingFree,
    NullSpace,
    crowding,
    damped_projection,
    null_space,
    row_basis,
)

#: A kept prompt of which a delta sees this share of what it sees of its concept can hardly be told
#: from it. Of the shipped model's concepts none sees more than 0.22 of what it keeps; if another
#: word for it is kept, alone or in every prompt, it sees 0.87 of that and more.
NEAR = 0.5


@dataclass(frozen=True, eq=False)
class Constraint:
    """The room that a concept's delta has, and how it was found."""

    concept: Concept
    kept: tuple[str, ...]
    """Prompts that must not change, the empty prompt first."""
    space: NullSpace
    """The null space of the kept prompts' embeddings, cut at the tolerance. With the method
    "damped" the basis reaches a little out of it: `leakage_bound` says how much that touches."""
    basis: Tensor
    """`Q [q, d_in]`, orthonormal rows, strongest direction first."""
    kept_rows: Tensor
    """`A [len(kept) * tokens, d_in]`, the stacked embeddings of what is kept."""
    concept_rows: Tensor
    """`e(c) [len(prompts) * tokens, d_in]`."""

    @property
    def rank(self) -> int:
        return len(self.basis)

    @property
    def leakage(self) -> float:
        """Largest `||Q a|| / ||a||` over the kept rows a: how much of a kept token a delta sees."""
        seen = (self.kept_rows @ self.basis.T).norm(dim=1)
        return float((seen / self.kept_rows.norm(dim=1)).max())

    @property
    def leakage_bound(self) -> float:
        """`||A x|| <= leakage_bound` for every unit `x` in the span of Q: `||A Q^T||_2`."""
        return float(torch.linalg.matrix_norm(self.kept_rows @ self.basis.T, 2))

    @property
    def reach(self) -> float:
        """Root mean square of `||Q e|| / ||e||` over the concept's rows: what is in reach."""
        seen = (self.concept_rows @ self.basis.T).norm(dim=1)
        return float((seen / self.concept_rows.norm(dim=1)).square().mean().sqrt())

    @property
    def exposure(self) -> Tensor:
        """How much the delta sees of every kept prompt, `[len(kept)]`, as a share of its own.

        Of a prompt it sees `max_token ||Q e|| / ||e||`; its own is the concept's prompt of which it
        sees least. 0 is out of sight, 1 as much in sight as what is to be forgotten.
        """
        kept, own = (self._seen(rows) for rows in (self.kept_rows, self.concept_rows))
        return kept / own.min().clamp_min(torch.finfo(own.dtype).tiny)

    @property
    def entangled(self) -> tuple[str, ...]:
        """The kept prompts with an exposure of `NEAR` or more, those like the concept's first."""
        found = (self.exposure >= NEAR).nonzero().flatten()
        kept, own = (self._by_prompt(rows) for rows in (self.kept_rows, self.concept_rows))
        nearest = torch.cdist(kept[found].flatten(1), own.flatten(1)).amin(dim=1)
        return tuple(self.kept[i] for i in found[nearest.argsort(stable=True)])

    def _seen(self, rows: Tensor) -> Tensor:
        """`max_token ||Q e|| / ||e||` of every prompt whose rows these are."""
        shares = (rows @ self.basis.T).norm(dim=1) / rows.norm(dim=1)
        return self._by_prompt(shares).amax(dim=1)

    def _by_prompt(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, len(self.kept_rows) // len(self.kept)))

    def remark(self) -> str | None:
        """One sentence about kept prompts that will change too, or None if there are none."""
        if not self.entangled:
            return None
        named = [repr(prompt) for prompt in self.entangled if prompt][:2]
        what = f"the kept prompt {named[0]}" if named else "the empty prompt"
        it = "it"
        if len(named) > 1:
            what, it = f"kept prompts such as {' and '.join(named)}", "them"
        leave = f"leave {it} out of what is kept, " if named else ""
        return (
            f"{self.concept.name!r} can hardly be told from {what} at keep_rtol = "
            f"{self.space.rtol:.2g}: {leave}lower the tolerance, or expect {it} to change too."
        )


def constrain(
    backbone: Backbone,
    concept: Concept,
    keep: Sequence[str],
    *,
    keep_rtol: float | None,
    concept_rtol: float,
    method: str = "svd",
    quiet: bool = False,
) -> Constraint:
    """Find the directions in which `concept` can be changed while every prompt of `keep` stays.

    The empty prompt is always kept: the concept's representation is measured against it, and
    `eps(x_t, c_0)` must not move.

    Args:
        keep_rtol: tolerance of the null space, relative to the largest singular value of the kept
            embeddings; None for what the model's dtype rounds away.
        concept_rtol: directions of `e(c) P` weaker than this times the strongest are left out.
        method: "svd" or "elimination" for the basis of the null space, which span the same
            directions; "damped" for `sepme.nullspace.damped_projection` at that tolerance.
        quiet: no warnings, for those who only look at the room.

    Raises:
        SepmeError: a prompt is both forgotten and kept, none has a word that the model knows, or
            no direction is free.

    Warns:
        SepmeWarning: words that mean nothing to the model, kept prompts that will change too.
    """
    keep = [keep] if isinstance(keep, str) else keep
    refuse_overlap(concept, keep)
    refuse_meaningless(backbone, concept)
    kept = tuple(dict.fromkeys(["", *keep]))
    kept_rows = backbone.encode(kept).flatten(0, 1).double().cpu()
    concept_rows = backbone.encode(concept.prompts).flatten(0, 1).double().cpu()
    dtype = backbone.dtype  # the tolerance floors at what the embeddings were stored in
    cut = "svd" if method == "damped" else method
    space = null_space(kept_rows.to(dtype), rtol=keep_rtol, method=cut, labels=kept)
    try:
        # Refuses a concept inside what is kept, which damping alone would not notice.
        basis = space.directions(concept_rows.to(dtype), rtol=concept_rtol)
        if method == "damped":
            reach = damped_projection(kept_rows.to(dtype), concept_rows.to(dtype), keep_rtol)
            basis = row_basis(reach, concept_rtol)
    except NothingFree as error:
        raise SepmeError(
            f"Nothing of {concept.name!r} is free of what is kept, which fills {space.rank} of "
            f"{space.d_in} dimensions ({crowding(kept_rows, kept)}): keep fewer prompts, or raise "
            "keep_rtol."
        ) from error
    room = Constraint(concept, kept, space, basis, kept_rows, concept_rows)
    for remark in (backbone.vocabulary.remark((*concept.prompts, *kept)), room.remark()):
        if remark is not None and not quiet:
            warn(remark)
    return room


def refuse_meaningless(backbone: Backbone, concept: Concept) -> None:
    """Raise SepmeError if the model knows no word of any of the concept's prompts."""
    if not backbone.vocabulary.knows_any(concept.prompts):
        raise SepmeError(
            f"This model knows no word of {concept.name!r}, so there is nothing to forget: name "
            "something that it draws."
        )
