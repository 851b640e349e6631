"""Where the delta of a concept may act: the directions it needs among those that are free.

The prompts to keep span a space; what is orthogonal to it is free (`sepme.nullspace`). Of that
freedom only the row space of `e(c) P` matters (method, claim 1), and of that row space only the
strong directions matter much.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sepme.backbone import Backbone
from sepme.concept import Concept, refuse_overlap
from sepme.errors import SepmeError
from sepme.nullspace import NothingFree, NullSpace, crowding, null_space


@dataclass(frozen=True, eq=False)
class Constraint:
    """The room that a concept's delta has, and how it was found."""

    concept: Concept
    kept: tuple[str, ...]
    """Prompts that must not change, the empty prompt first."""
    space: NullSpace
    """The null space of the kept prompts' embeddings."""
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
    def reach(self) -> float:
        """Root mean square of `||Q e|| / ||e||` over the concept's rows: what is in reach."""
        seen = (self.concept_rows @ self.basis.T).norm(dim=1)
        return float((seen / self.concept_rows.norm(dim=1)).square().mean().sqrt())


def constrain(
    backbone: Backbone,
    concept: Concept,
    keep: Sequence[str],
    *,
    keep_rtol: float | None,
    concept_rtol: float,
    method: str = "svd",
) -> Constraint:
    """Find the directions in which `concept` can be changed while every prompt of `keep` stays.

    The empty prompt is always kept: the concept's representation is measured against it, and
    `eps(x_t, c_0)` must not move.

    Raises:
        SepmeError: a prompt is both forgotten and kept, or no direction is free.
    """
    keep = [keep] if isinstance(keep, str) else keep
    refuse_overlap(concept, keep)
    kept = tuple(dict.fromkeys(["", *keep]))
    kept_rows = backbone.encode(kept).flatten(0, 1).double().cpu()
    concept_rows = backbone.encode(concept.prompts).flatten(0, 1).double().cpu()
    dtype = backbone.dtype  # the tolerance floors at what the embeddings were stored in
    space = null_space(kept_rows.to(dtype), rtol=keep_rtol, method=method, labels=kept)
    try:
        basis = space.directions(concept_rows.to(dtype), rtol=concept_rtol)
    except NothingFree as error:
        raise SepmeError(
            f"Nothing of {concept.name!r} is free of what is kept, which fills {space.rank} of "
            f"{space.d_in} dimensions ({crowding(kept_rows, kept)}): keep fewer prompts, or raise "
            "keep_rtol."
        ) from error
    return Constraint(concept, kept, space, basis, kept_rows, concept_rows)
