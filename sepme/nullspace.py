"""Where a delta may act: the directions of the text that the retain set leaves free.

`attn2.to_k` and `attn2.to_v` see the text only, so a prompt c keeps its meaning for every image
and every timestep exactly when `e(c) Delta = 0` (paper eq. 6-7). The embeddings of all prompts to
keep are stacked into `A [m, d_in]`; a weight change built inside `{x : A x = 0}` cannot disturb
them. In floating point "= 0" needs a tolerance: what falls below it leaks, by at most
`NullSpace.leakage_bound`. The tolerance is a share of a kept token's length, so that it means the
same for one prompt and for a thousand, for a small model and for a large one.

Everything here is computed and returned in float64 on the CPU: it takes milliseconds, and a
rounding error in a basis *is* leakage, multiplied by the largest singular value of A.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import scipy.linalg
import torch
from torch import Tensor

from sepme._checks import below_one, choose, texts
from sepme.concept import Concept
from sepme.errors import SepmeError, warn
from sepme.model import Backbone

__all__ = [
    "Constraint",
    "NullSpace",
    "constrain",
    "damped_projection",
    "null_space",
    "pivot_rows",
    "row_basis",
]

Method = Literal["svd", "elimination"]


class NothingFree(SepmeError):
    """What is to be forgotten lies inside what is kept."""


@dataclass(frozen=True, eq=False)
class NullSpace:
    """The numerical null space of `A [m, d_in]`, and how it was decided."""

    basis: Tensor
    """`S [d_in, free]` with unit-length columns: orthonormal ("svd") or merely independent
    ("elimination")."""
    rank: int
    """How many dimensions the kept prompts take up."""
    rtol: float
    """Tolerance, relative to the root mean square length of A's rows."""
    threshold: float
    """`rtol * ||A||_F / sqrt(m)`: singular values up to here count as zero."""
    spectrum: Tensor
    """Singular values of A, descending, `[min(m, d_in)]`."""
    method: Method
    leakage_bound: float
    """`||A x|| <= leakage_bound` for every unit `x` in the span of `basis`."""

    @property
    def d_in(self) -> int:
        return self.basis.shape[0]

    @property
    def free(self) -> int:
        return self.basis.shape[1]

    @cached_property
    def orthonormal(self) -> Tensor:
        """An orthonormal basis `[d_in, free]` of the same space."""
        return self.basis if self.method == "svd" else torch.linalg.qr(self.basis).Q

    @property
    def projector(self) -> Tensor:
        """`P [d_in, d_in]`, symmetric and idempotent; `A P = 0` within the leakage bound."""
        return self.orthonormal @ self.orthonormal.T

    def project(self, rows: Tensor) -> Tensor:
        """`rows P [m, d_in]`: the part of each row that the kept prompts leave free."""
        return (rows.detach().to("cpu", torch.float64) @ self.orthonormal) @ self.orthonormal.T

    def directions(self, rows: Tensor, rtol: float | None = None) -> Tensor:
        """Orthonormal `Q [q, d_in]` that spans the rows of `rows P`, q <= free.

        A delta `B Q` reaches all of the rows that may be reached and nothing that is kept. It
        equals `row_basis(project(rows), rtol)`, but works in the coordinates of the basis, so
        that even its weakest direction lies in the null space to the last digit.

        Raises:
            SepmeError: the rows lie inside what is kept, so no direction is left.
        """
        rows64 = _checked(rows, "the prompts to forget")
        size = float(torch.linalg.matrix_norm(rows64, 2))
        floor = _rtol(rows) * size  # below this, a projected row is only rounding error
        if torch.finfo(rows.dtype).eps > 1e-4:  # half precision, where that is most of a concept
            noise = _share(rows.shape, rows.dtype, None) * _length(rows64)
            floor = min(floor, max(noise, self.threshold))
        coordinates = row_basis(rows64 @ self.orthonormal, _rtol(rows, rtol), floor=floor)
        return coordinates @ self.orthonormal.T


def null_space(
    A: Tensor,
    rtol: float | None = None,
    method: Method = "svd",
    labels: Sequence[str] | None = None,
) -> NullSpace:
    """The null space of the stacked embeddings `A [m, d_in]` of everything that must not change.

    Args:
        A: one row per token of each prompt to keep.
        rtol: singular values up to this share of a row's length (root mean square) count as zero:
            no row of usual length has more of it in a free direction. More tolerance leaves more
            room and leaks more. Default: what rounding the rows to the dtype that A is stored in
            may have made. No tolerance is finer than that rounding.
        method: "svd", or "elimination" for the paper's unit-length solutions (eq. 8).
        labels: the prompts behind the rows, one per row or one per equal block of rows; they let
            the error say which prompts fill the space.

    Raises:
        SepmeError: A has no rows or a row that is not finite, or no dimension is left free.
    """
    choose(("svd", "elimination"), method=method)
    A64 = _checked(A, "the prompts to keep", labels)
    rtol, length = _share(A.shape, A.dtype, rtol), _length(A64)
    spectrum, right = _svd(A64)
    rounding = max(A.shape) * torch.finfo(torch.float64).eps * float(spectrum[0])  # of the SVD
    threshold = max(rtol * length, rounding)
    rank = int((spectrum > threshold).sum())
    if rank == A.shape[1]:
        names = f" ({crowding(A64, labels)})" if labels else ""
        raise SepmeError(
            f"The prompts to keep fill all {A.shape[1]} dimensions at tolerance {rtol:.1e}{names}: "
            "keep fewer prompts, or raise rtol."
        )
    if method == "svd":
        basis = right[rank:].T  # [d_in, free]
        leakage = float(spectrum[rank]) if rank < len(spectrum) else 0.0  # ||A v_i|| = sigma_i
    else:
        basis = _elimination_basis(spectrum[:rank], right[:rank])
        leakage = float(torch.linalg.matrix_norm(A64 @ torch.linalg.qr(basis).Q, 2))
    return NullSpace(basis, rank, rtol, threshold, spectrum, method, leakage + rounding)


def row_basis(E: Tensor, rtol: float | None = None, *, floor: float = 0.0) -> Tensor:
    """Orthonormal rows `Q [q, d_in]` that span the rows of `E [m, d_in]`.

    Right singular vectors whose singular value exceeds `max(rtol * sigma_max, floor)`, strongest
    first. The largest entry of each is positive, so that the same rows give the same Q.

    Raises:
        SepmeError: E has no rows, a row that is not finite, or nothing above the threshold.
    """
    E64 = _checked(E, "the prompts to forget")
    spectrum, right = _svd(E64, full=False)
    Q = right[: int((spectrum > max(_rtol(E, rtol) * float(spectrum[0]), floor)).sum())]
    if len(Q) == 0:
        raise NothingFree(
            "The prompts to forget lie inside what is kept: keep fewer, or use a larger tolerance."
        )
    largest = Q.gather(1, Q.abs().argmax(dim=1, keepdim=True))
    return Q * largest.sign()


def damped_projection(A: Tensor, rows: Tensor, rtol: float | None = None) -> Tensor:
    """`rows (I + A^T A / tau^2)^-1 [m, d_in]`: the null space without a cliff.

    The projector onto the null space weighs a right singular vector of A by 0 or 1, cut at the
    tolerance; this one by `tau^2 / (sigma^2 + tau^2)`. Each row of the result is the
    `x = argmin |x - e|^2 + |A x|^2 / tau^2`, so that of two directions that reach a concept alike
    the one that touches less of what is kept wins. It tends to the projector as tau falls, and
    `|A x| <= tau |e| / 2` (not so for unit vectors in their span; what those touch is
    `Constraint.leakage_bound`). (Tikhonov regularisation, with tau for its parameter.) tau is the
    threshold of `null_space`: rtol times the root mean square length of A's rows.

    Raises:
        SepmeError: a matrix without rows or with a row that is not finite, or a bad tolerance.
    """
    rows64 = _checked(rows, "the prompts to forget")
    spectrum, right = _svd(_checked(A, "the prompts to keep"))
    tau = _share(A.shape, A.dtype, rtol) * _length(A)
    weight = rows64.new_ones(A.shape[1])
    weight[: len(spectrum)] = 1 / (1 + (spectrum / tau).square())
    return ((rows64 @ right.T) * weight) @ right


def reduced_row_echelon(A: Tensor, threshold: float = 0.0) -> tuple[Tensor, list[int]]:
    """Gauss-Jordan elimination with partial pivoting: `(R [rank, d_in], pivot columns)`.

    R has the identity in its pivot columns and the same null space as A; a column whose best
    pivot is at most `threshold` has none and stays free.
    """
    R, pivots = A.clone(), []
    for column in range(R.shape[1]):
        row = len(pivots)
        below = R[row:, column].abs()  # empty once every row has its pivot
        if len(below) == 0 or below.max() <= threshold:
            continue
        best = row + int(below.argmax())
        R[[row, best]] = R[[best, row]]
        R[row] /= R[row, column].clone()
        factors = R[:, column].clone()
        factors[row] = 0.0
        R -= torch.outer(factors, R[row])
        pivots.append(column)
    return R[: len(pivots)], pivots


def _elimination_basis(spectrum: Tensor, rows: Tensor) -> Tensor:
    """One solution per free column, scaled to unit length (paper eq. 8), `[d_in, free]`.

    The reduced echelon form of a matrix depends on its row space only. So the elimination runs on
    A's right singular vectors above the tolerance, `[rank, d_in]`, not on A itself: the solutions
    are the same, but the noise below the tolerance is gone before it can pass for a pivot.
    """
    d_in = rows.shape[1]
    # The singular vectors' own rounding error: a pivot of this size is none.
    error = torch.finfo(torch.float64).eps * d_in * float((spectrum[:1] / spectrum[-1:]).sum())
    R, pivots = reduced_row_echelon(rows, error)
    free = [column for column in range(d_in) if column not in set(pivots)]
    S = rows.new_zeros(d_in, len(free))
    S[free, range(len(free))] = 1.0  # this free unknown is one, the other free ones zero ...
    S[pivots] = -R[:, free]  # ... and then each pivot unknown follows from its row of R
    return S / S.norm(dim=0)


def _svd(A: Tensor, *, full: bool = True) -> tuple[Tensor, Tensor]:
    """Singular values `[min(m, d)]` and right singular vectors as rows: all d, or as many.

    Not `scipy.linalg.null_space`, which gives the same basis but hides the spectrum.
    """
    if A.shape[0] > A.shape[1]:
        A = torch.linalg.qr(A, mode="r").R  # the same right vectors from a smaller matrix
    _, spectrum, right = torch.linalg.svd(A, full_matrices=full)
    return spectrum, right


def _rtol(rows: Tensor, rtol: float | None = None) -> float:
    """The tolerance to use; digits that the storage dtype does not hold are not asked for."""
    eps = torch.finfo(rows.dtype).eps
    if rtol is None:
        return min(max(rows.shape) * eps, eps**0.5)
    below_one(rtol=rtol)
    return max(rtol, eps)


def _length(rows: Tensor) -> float:
    """Root mean square length of the rows, `||A||_F / sqrt(m)`."""
    return float(rows.double().norm()) / len(rows) ** 0.5


def _share(shape: tuple[int, int], dtype: torch.dtype, rtol: float | None) -> float:
    """The tolerance of the null space of rows `[m, d]`, as a share of a row's length.

    Rows that are each wrong by eps of their length make singular values of about
    `eps (1 + sqrt(m / d))` of that length. An encoder's rounding was measured at twice as much.
    """
    noise = torch.finfo(dtype).eps * (1 + (shape[0] / shape[1]) ** 0.5)
    if rtol is None:
        return min(4 * noise, 0.5)
    below_one(rtol=rtol)
    return max(rtol, noise)


def _checked(rows: Tensor, what: str, labels: Sequence[str] | None = None) -> Tensor:
    """The rows in float64, once they are known to be a finite, non-empty matrix."""
    if rows.ndim != 2 or rows.numel() == 0 or not rows.is_floating_point():
        raise SepmeError(
            f"The embeddings of {what} must be rows [m, d_in] of floating-point numbers, not "
            f"{list(rows.shape)} of {rows.dtype}."
        )
    if labels is not None and (len(labels) == 0 or len(rows) % len(labels)):
        raise SepmeError(
            f"{len(labels)} labels do not divide {len(rows)} rows: give one label per prompt."
        )
    for row in (~rows.isfinite().all(dim=1)).nonzero().flatten().tolist():
        name = f" ({_label(labels, row, len(rows))!r})" if labels else ""
        raise SepmeError(
            f"Row {row}{name} of the embeddings of {what} is not finite: check the text encoder."
        )
    return rows.detach().to("cpu", torch.float64)


def _label(labels: Sequence[str], row: int, rows: int) -> str:
    return labels[row * len(labels) // rows]


def crowding(A: Tensor, labels: Sequence[str]) -> str:
    """Which prompts take most dimensions, and how many, in the order of `pivot_rows`."""
    most = Counter(_label(labels, row, len(A)) for row in pivot_rows(A)).most_common(5)
    return "the largest shares by " + ", ".join(f"{label!r} {n}" for label, n in most)


def pivot_rows(A: Tensor) -> list[int]:
    """The rows of A in pivoted-QR order: each is the one farthest from the span of those before.

    At most `d_in` rows, fewer if the rest adds nothing.
    """
    R, order = scipy.linalg.qr(A.double().cpu().numpy().T, mode="r", pivoting=True)
    distance = abs(R.diagonal())  # of each row from the span of those before
    negligible = torch.finfo(torch.float64).eps * max(A.shape) * float(A.double().norm())
    return [int(row) for row in order[: len(distance)][distance > negligible]]


# ------------------------------------------------------------------ what one concept may touch
#: From this tolerance on, the Gram matrix of a group is exact enough (`Embedded.damped`).
GRAM_RTOL = 1e-2
#: A kept prompt whose relative exposure is at least this is reported as entangled. Of the shipped
#: model's concepts none exposes a kept prompt by more than 0.22; if another word for the concept is
#: kept, alone or in all 24 prompts, each of these is exposed by 0.46 or more.
NEAR = 0.4


@dataclass(frozen=True, eq=False)
class Constraint:
    """The directions in which a concept's delta may act, and how they were found.

    Only the row space of `e(c) P` matters, where P projects onto the null space: of a delta the
    concept sees nothing else. Of it only the strong directions matter much.
    """

    concept: Concept
    kept: tuple[str, ...]
    """Prompts that must not change, the empty prompt first."""
    basis: Tensor
    """`Q [q, d_in]`, orthonormal rows, strongest direction first."""
    embedded: "Embedded"
    """The embeddings of these prompts, and perhaps of others."""
    keep_rtol: float | None
    method: str
    dtype: torch.dtype
    """The number type that the model gives the embeddings in."""

    @property
    def kept_rows(self) -> Tensor:
        """`A [len(kept) * tokens, d_in]`, the stacked embeddings of what is kept."""
        return self.embedded.rows(self.kept)

    @property
    def concept_rows(self) -> Tensor:
        """`e(c) [len(prompts) * tokens, d_in]`."""
        return self.embedded.rows(self.concept.prompts)

    @cached_property
    def space(self) -> NullSpace:
        """The null space of the kept prompts' embeddings, cut at the tolerance.

        With the method "damped" the basis reaches a little out of it: `leakage_bound` says how
        much that touches.
        """
        cut = "svd" if self.method == "damped" else self.method
        return null_space(self.kept_rows.to(self.dtype), self.keep_rtol, cut, self.kept)

    @property
    def rank(self) -> int:
        return len(self.basis)

    @property
    def tolerance(self) -> float:
        """Of the null space, as a share of a kept token's length (root mean square)."""
        _, tokens, d_in = self.embedded.table.shape
        return _share((len(self.kept) * tokens, d_in), self.dtype, self.keep_rtol)

    def seen(self, prompts: Sequence[str]) -> Tensor:
        """`Q e` of every token, `[prompts, tokens, q]`: all that a delta sees of them."""
        return self._seen[self.embedded.at(prompts)]

    @cached_property
    def _seen(self) -> Tensor:
        return self.embedded.table @ self.basis.T

    def _shares(self, prompts: Sequence[str]) -> Tensor:
        """`||Q e|| / ||e||` of every token, `[prompts, tokens]`."""
        return self.seen(prompts).norm(dim=2) / self.embedded.lengths[self.embedded.at(prompts)]

    @property
    def leakage(self) -> float:
        """Largest `||Q a|| / ||a||` over the kept rows a: how much of a kept token a delta sees."""
        return float(self._shares(self.kept).max())

    @property
    def leakage_bound(self) -> float:
        """`||A x|| <= leakage_bound` for every unit `x` in the span of Q: `||A Q^T||_2`."""
        return float(torch.linalg.matrix_norm(self.seen(self.kept).flatten(0, 1), 2))

    @property
    def reach(self) -> float:
        """Root mean square of `||Q e|| / ||e||` over the concept's rows: what is in reach."""
        return float(self._shares(self.concept.prompts).square().mean().sqrt())

    @cached_property
    def exposure(self) -> Tensor:
        """Relative exposure of every kept prompt, `[len(kept)]`.

        A prompt's exposure is `max_token ||Q e|| / ||e||`, here relative to the concept's least
        exposed prompt: 0 is out of sight, 1 as exposed as what is to be forgotten.
        """
        kept, own = (self._shares(of).amax(dim=1) for of in (self.kept, self.concept.prompts))
        return kept / own.min().clamp_min(torch.finfo(own.dtype).tiny)

    @property
    def entangled(self) -> tuple[str, ...]:
        """Kept prompts whose exposure is at least `NEAR`, those like the concept's first."""
        found = [self.kept[i] for i in (self.exposure >= NEAR).nonzero().flatten()]
        if not found:
            return ()
        near, own = (self.embedded.of_each(p).flatten(1) for p in (found, self.concept.prompts))
        distance = torch.cdist(near, own).amin(dim=1)
        return tuple(found[i] for i in distance.argsort(stable=True))

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
            f"{self.tolerance:.2g}: {leave}lower the tolerance, or expect {it} to change too."
        )


@dataclass(frozen=True, eq=False)
class Embedded:
    """The text embeddings of many prompts, each computed once, in float64 on the CPU."""

    tokens: Mapping[str, Tensor]
    """Prompt -> `[tokens, d_in]`."""

    @classmethod
    def of(cls, backbone: Backbone, prompts: Iterable[str]) -> "Embedded":
        """Encode each of the prompts once."""
        unique = list(dict.fromkeys(prompts))
        return cls(dict(zip(unique, backbone.encode(unique).double().cpu(), strict=True)))

    @cached_property
    def table(self) -> Tensor:
        """`[prompts, tokens, d_in]`."""
        return torch.stack([*self.tokens.values()])

    @cached_property
    def lengths(self) -> Tensor:
        """`||e||` of every token, `[prompts, tokens]`."""
        return self.table.norm(dim=2)

    def at(self, prompts: Sequence[str]) -> list[int]:
        """The prompts' places in the table."""
        return [self._places[prompt] for prompt in prompts]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {prompt: i for i, prompt in enumerate(self.tokens)}

    def of_each(self, prompts: Sequence[str]) -> Tensor:
        """`[prompts, tokens, d_in]`."""
        return self.table[self.at(prompts)]

    def rows(self, prompts: Sequence[str]) -> Tensor:
        """`[prompts * tokens, d_in]`."""
        return self.of_each(prompts).flatten(0, 1)

    @cached_property
    def _gram(self) -> Tensor:
        rows = self.table.flatten(0, 1)
        return rows.T @ rows

    def damped(self, kept: Sequence[str], rows: Tensor, rtol: float) -> Tensor:
        """`damped_projection`, from the Gram matrix of all prompts but those that are not kept.

        `A^T A = G - E^T E` is the same for every concept of a group but for its own rows E. So no
        decomposition of A `[m, d_in]` is needed, only one of `A^T A + tau^2 I [d_in, d_in]`. Its
        condition number is at most m / rtol^2, so this is exact to about 1e-16 m / rtol^2.
        """
        E = self.rows(sorted(self.tokens.keys() - set(kept)))
        gram = self._gram - E.T @ E
        tau = rtol * float(gram.trace() / (len(kept) * self.table.shape[1])) ** 0.5
        gram.diagonal().add_(tau**2)
        return tau**2 * torch.cholesky_solve(rows.T, torch.linalg.cholesky(gram)).T


def constrain(
    backbone: Backbone,
    concept: Concept,
    keep: Sequence[str],
    *,
    keep_rtol: float | None,
    concept_rtol: float,
    method: str = "svd",
    quiet: bool = False,
    embedded: "Embedded | None" = None,
) -> Constraint:
    """Find the directions in which `concept` can be changed while every prompt of `keep` stays.

    The empty prompt is always kept: the concept's representation is measured against it, and
    `eps(x_t, c_0)` must not move.

    Args:
        keep_rtol: tolerance of the null space, relative to the length of a kept token (root mean
            square); None for what the model's dtype rounds away.
        concept_rtol: directions of `e(c) P` weaker than this times the strongest are left out.
        method: "svd" or "elimination" for the basis of the null space, which span the same
            directions; "damped" for `sepme.nullspace.damped_projection` at that tolerance.
        quiet: no warnings, for those who only look.
        embedded: the embeddings of all prompts of a group of concepts, so that none is computed
            twice. The group passed `Backbone.refuse_unclear` before.

    Raises:
        SepmeError: a prompt is both forgotten and kept, none has a word that the model knows, or
            no direction is free.

    Warns:
        SepmeWarning: nothing kept, words that mean nothing to the model, kept prompts that will
            change too.
    """
    keep = texts(keep)
    refuse_meaningless(backbone, concept)
    if embedded is None:
        backbone.refuse_unclear((concept, keep))
    kept = tuple(dict.fromkeys(["", *keep]))
    known = embedded or Embedded.of(backbone, (*kept, *concept.prompts, *concept.anchors))
    found = Constraint(concept, kept, torch.empty(0), known, keep_rtol, method, backbone.dtype)
    gram = embedded is not None and keep_rtol is not None and keep_rtol >= GRAM_RTOL
    try:
        found = replace(found, basis=_directions(found, concept_rtol, gram))
    except NothingFree as error:
        raise SepmeError(
            f"Nothing of {concept.name!r} is free of what is kept ({found.space.rank} of "
            f"{backbone.d_in} dimensions, {crowding(found.kept_rows, kept)}): keep fewer prompts, "
            "or raise keep_rtol."
        ) from error
    unknown = backbone.vocabulary.remark((*concept.prompts, *kept))
    for remark in (None if keep else _lonely(concept), unknown, found.remark()):
        if remark is not None and not quiet:
            warn(remark)
    return found


def _directions(found: Constraint, concept_rtol: float, gram: bool) -> Tensor:
    """`Q` of a constraint that has none yet, from the group's Gram matrix or from A itself."""
    E, dtype = found.concept_rows, found.dtype
    if found.method == "damped" and gram:
        return row_basis(found.embedded.damped(found.kept, E, found.tolerance), concept_rtol)
    # The tolerance floors at the dtype that the embeddings were stored in. This refuses a concept
    # inside what is kept, which damping alone would not notice.
    basis = found.space.directions(E.to(dtype), rtol=concept_rtol)
    if found.method == "damped":
        reach = damped_projection(found.kept_rows.to(dtype), E.to(dtype), found.keep_rtol)
        basis = row_basis(reach, concept_rtol)
    return basis


def _lonely(concept: Concept) -> str:
    return (
        f"Nothing but the empty prompt is kept: whatever is like '{concept.name}' will change "
        "too, so name in keep what is to stay (or the empty prompt, if nothing is)."
    )


def refuse_meaningless(backbone: Backbone, concept: Concept) -> None:
    """Raise SepmeError if the model knows no word of any of the concept's prompts."""
    if not backbone.vocabulary.knows_any(concept.prompts):
        raise SepmeError(
            f"The model knows no word of {concept.name!r}: nothing to forget, name what it draws."
        )
