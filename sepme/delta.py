"""A delta: the small frozen object that makes a model forget one concept.

`ConceptDelta` is SepME's. Layer l changes by `Delta_l = B_l Q_l` with `Q_l [q, d_in]` ("down", as
a rule one orthonormal basis for all layers) and `B_l [d_out, q]` ("up"). That is exactly a LoRA
pair, so its file is a LoRA file: stock diffusers loads it without sepme. `DenseDelta` is what a
baseline did to the weights: one float32 difference per trained parameter.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from torch import Tensor

from sepme._checks import finite
from sepme.artefact import Provenance, digest_of, load_artefact, same_model, save_artefact
from sepme.errors import SepmeError

if TYPE_CHECKING:
    from sepme.model import Backbone

__all__ = ["ConceptDelta", "DenseDelta"]

#: The number types of a delta's tensors.
FLOATS = {torch.float32, torch.float16, torch.bfloat16, torch.float64}
_FACTOR = re.compile(r"unet\.(?P<path>[\w.]+)\.lora_(?P<factor>[AB])\.weight")

_Self = TypeVar("_Self", bound="_Delta")


class _Delta:
    """What both kinds of delta share: identity, the check of the model, and the verified file."""

    provenance: Provenance
    _HEADER: ClassVar[str]

    @property
    def concept(self) -> str:
        return self.provenance.concept

    @property
    def kept(self) -> tuple[str, ...]:
        return self.provenance.kept

    @property
    def forgotten(self) -> tuple[str, ...]:
        return self.provenance.forgotten

    @property
    def base(self) -> str:
        """Fingerprint of the model that it was made for."""
        return self.provenance.base

    def __reduce__(self) -> tuple[Callable[..., "_Delta"], tuple[dict[str, Tensor], Provenance]]:
        """Copied and pickled as it is saved: read-only mappings can be neither."""
        return self._of, (dict(self._tensors()), self.provenance)

    def __radd__(self: _Self, other: int) -> _Self:
        """`sum` begins with 0."""
        return self if isinstance(other, int) and other == 0 else self + other

    def _tensors(self) -> Mapping[str, Tensor]:
        """Name in the file -> tensor."""
        raise NotImplementedError

    @classmethod
    def _of(cls: type[_Self], tensors: Mapping[str, Tensor], provenance: Provenance) -> _Self:
        """The delta of these tensors, as `_tensors` names them."""
        raise NotImplementedError

    @cached_property
    def digest(self) -> str:
        """sha256 of everything in it: two deltas are the same exactly when their digests are."""
        return digest_of(self.provenance.to_dict(), self._tensors())

    def check_base(self, fingerprint: str) -> None:
        """Raise SepmeError if it was not made for the model of this fingerprint."""
        if not same_model(self.base, fingerprint):
            raise SepmeError(
                f"The delta of '{self.concept}' was made for another base model, "
                f"{self.provenance.base_name} ({self.base[:12]}), not for this model "
                f"({fingerprint[:12]}): erase '{self.concept}' again on this one."
            )

    def check_model(self, model: "Backbone", fingerprint: str | None = None) -> None:
        """Raise SepmeError if it was not made for this model, or changes what the UNet lacks.

        `fingerprint` is the model's where it is known: asking again takes a pass over its weights.
        """
        self.check_base(model.fingerprint if fingerprint is None else fingerprint)
        parameters = model.unet.named_parameters()
        there = {name.replace(".base_layer", ""): list(p.shape) for name, p in parameters}
        for path, shape in self._shapes().items():
            if there.get(path) != shape:
                raise SepmeError(
                    f"The UNet has no parameter '{path}' of shape {shape}: make the delta of "
                    f"'{self.concept}' again on this model."
                )
        learnt = self.provenance.settings.get("learnt", {})
        for token, there in model.learnt(learnt).items():
            if not same_model(there, learnt.get(token, there)):
                raise SepmeError(
                    f"The word '{token}' has another embedding than when '{self.concept}' was "
                    "erased: load that textual inversion, or erase it again."
                )

    def _shapes(self) -> dict[str, list[int]]:
        """Parameter path -> shape of its change."""
        raise NotImplementedError

    def _check_finite(self) -> None:
        for path, tensor in self._tensors().items():
            if not tensor.isfinite().all():
                raise SepmeError(
                    f"The delta of '{self.concept}' is not finite in {path}: make it again, with a "
                    "lower learning rate if it was trained."
                )

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file; the same delta always gives the same bytes.

        Raises:
            SepmeError: the name does not end in .safetensors, or cannot be written.
        """
        return save_artefact(path, self._HEADER, self.provenance.to_dict(), self._tensors())

    @classmethod
    def load(cls: type[_Self], path: str | Path, base: str | None = None) -> _Self:
        """Read a file that `save` wrote, checking that every bit is as it was.

        Args:
            base: `Backbone.fingerprint` of the model that it is to be used with, if known.

        Raises:
            SepmeError: missing, truncated, edited or foreign file, a NaN in it, or another base.
        """
        description, tensors = load_artefact(path, cls._HEADER)
        types = {tensor.dtype for tensor in tensors.values()}
        if len(types) != 1 or not types <= FLOATS:
            raise SepmeError(
                f"{path} does not hold numbers of one type, floating point: make it again."
            )
        delta = cls._of(tensors, Provenance.from_dict(description))
        if base is not None:
            delta.check_base(base)
        return delta


@dataclass(frozen=True, eq=False)
class ConceptDelta(_Delta):
    """The increment of one concept (or of a sum of them) for every layer that it changes.

    It owns copies of its tensors, on the CPU, all of one rank: layers that need less are filled up
    with zeros, because older diffusers scale a LoRA layer of another rank than most by their ratio.
    Deltas add up: `a + b` forgets both concepts, `0.5 * a` half-forgets, `-a` undoes.

    Raises:
        SepmeError: no layers, factors whose shapes do not fit, or numbers that are not finite.
    """

    down: Mapping[str, Tensor]
    """`Q_l [q, d_in]` by module path."""
    up: Mapping[str, Tensor]
    """`B_l [d_out, q]` by module path; layer l changes by `up @ down`."""
    provenance: Provenance

    _HEADER: ClassVar[str] = "sepme"

    def __post_init__(self) -> None:
        if not self.down or set(self.down) != set(self.up):
            raise SepmeError(
                f"The delta of '{self.concept}' needs both factors of at least one layer: give "
                "`down` and `up` the same module paths."
            )
        for path, down in self.down.items():
            up = self.up[path]
            if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
                raise SepmeError(
                    f"The factors of {path} do not fit: give [q, d_in] and [d_out, q], not "
                    f"{list(down.shape)} and {list(up.shape)}."
                )
        if (rank := self.rank) == 0:
            raise SepmeError(f"The delta of '{self.concept}' has rank 0: give one that changes.")
        object.__setattr__(self, "down", _own(self.down, rank, dim=0))
        object.__setattr__(self, "up", _own(self.up, rank, dim=1))
        self._check_finite()

    @property
    def paths(self) -> tuple[str, ...]:
        """The layers that it changes, sorted."""
        return tuple(self.down)

    @property
    def basis(self) -> Tensor | None:
        """`Q [q, d_in]` if all layers share one, else None."""
        first, *others = self.down.values()
        return first if all(torch.equal(first, other) for other in others) else None

    @property
    def rank(self) -> int:
        """q, the largest over the layers."""
        return max(len(down) for down in self.down.values())

    def dense(self, path: str) -> Tensor:
        """`Delta_l = B_l Q_l`, `[d_out, d_in]`."""
        return self.up[path] @ self.down[path]

    def norm(self, p: float = 1) -> float:
        """`||Delta||_p / M` over the M layers (paper eq. 3), without unit."""
        entries = torch.cat([self.dense(path).double().flatten() for path in self.paths])
        return float(entries.norm(p)) / len(self.paths)

    def frobenius(self) -> float:
        """Square root of the sum of all squared entries."""
        return self.norm(2) * len(self.paths)

    def lora_state_dict(self) -> dict[str, Tensor]:
        """The factors under the names that diffusers' `load_lora_weights` expects."""
        down = {f"unet.{path}.lora_A.weight": factor for path, factor in self.down.items()}
        return down | {f"unet.{path}.lora_B.weight": factor for path, factor in self.up.items()}

    _tensors = lora_state_dict

    def _shapes(self) -> dict[str, list[int]]:
        return {f"{p}.weight": [len(self.up[p]), self.down[p].shape[1]] for p in self.paths}

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], provenance: Provenance) -> "ConceptDelta":
        factors: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
        for name, tensor in tensors.items():
            if not (found := _FACTOR.fullmatch(name)):
                raise SepmeError(
                    f"{name!r} is no factor of a layer of a UNet: make the file again."
                )
            factors[found["factor"]][found["path"]] = tensor
        return cls(factors["A"], factors["B"], provenance)

    # ------------------------------------------------------------------ algebra
    def __mul__(self, scale: float) -> "ConceptDelta":
        finite(scale=scale)
        settings = dict(self.provenance.settings)
        settings["scale"] = settings.get("scale", 1.0) * float(scale)
        up = {path: factor * scale for path, factor in self.up.items()}
        return replace(self, up=up, provenance=replace(self.provenance, settings=settings))

    __rmul__ = __mul__

    def __truediv__(self, by: float) -> "ConceptDelta":
        finite(divisor=by)
        return self * (1 / by if by else math.inf)

    def __neg__(self) -> "ConceptDelta":
        return self * -1.0

    def __add__(self, other: "ConceptDelta") -> "ConceptDelta":
        """Both at once: the factors stand side by side, `[B_a B_b] [Q_a; Q_b]`.

        Raises:
            SepmeError: they were made for different models.
        """
        provenance = _sum_of(self, other)
        paths = sorted({*self.paths, *other.paths})

        def beside(which: str, path: str, dim: int) -> Tensor:
            both = (getattr(self, which), getattr(other, which))
            return torch.cat([factors[path] for factors in both if path in factors], dim=dim)

        return ConceptDelta(
            {path: beside("down", path, 0) for path in paths},
            {path: beside("up", path, 1) for path in paths},
            provenance,
        )

    def __sub__(self, other: "ConceptDelta") -> "ConceptDelta":
        return self + (-other if isinstance(other, ConceptDelta) else other)


@dataclass(frozen=True, eq=False)
class DenseDelta(_Delta):
    """Edited minus original, for every parameter of the UNet that a baseline edited.

    It owns float32 copies of its tensors on the CPU. Deltas that were made separately add up:
    `a + b` is how the paper merges the baselines' single-concept edits.

    Raises:
        SepmeError: no parameter, or numbers that are not finite.
    """

    changes: Mapping[str, Tensor]
    """Parameter path in the UNet ("mid_block. ... .attn2.to_k.weight") -> difference."""
    provenance: Provenance

    _HEADER: ClassVar[str] = "sepme_weight_change"

    def __post_init__(self) -> None:
        if not self.changes:
            raise SepmeError("A delta needs at least one parameter: give what was trained.")
        own = {
            path: self.changes[path].detach().to("cpu", torch.float32, copy=True).contiguous()
            for path in sorted(self.changes)
        }
        object.__setattr__(self, "changes", MappingProxyType(own))
        self._check_finite()

    @property
    def method(self) -> str:
        """The baseline that made it, or "sum" of several."""
        return str(self.provenance.settings.get("eraser", "sum"))

    @property
    def paths(self) -> tuple[str, ...]:
        """The parameters that it changes, sorted."""
        return tuple(self.changes)

    def norm(self, p: float = 1) -> float:
        """`||Delta||_p / M` over the M layers (eq. 3); a weight and its bias are one layer."""
        entries = torch.cat([change.double().flatten() for change in self.changes.values()])
        return float(entries.norm(p)) / len({path.rpartition(".")[0] for path in self.changes})

    def _tensors(self) -> Mapping[str, Tensor]:
        return self.changes

    def _shapes(self) -> dict[str, list[int]]:
        return {path: list(change.shape) for path, change in self.changes.items()}

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], provenance: Provenance) -> "DenseDelta":
        return cls(tensors, provenance)

    def __add__(self, other: "DenseDelta") -> "DenseDelta":
        """Both at once: the sum, with all parameters that either changes.

        Raises:
            SepmeError: they were made for different models.
        """
        provenance = _sum_of(self, other)
        total = dict(self.changes)
        for path, change in other.changes.items():
            total[path] = total[path] + change if path in total else change
        return DenseDelta(total, provenance)


def _own(factors: Mapping[str, Tensor], rank: int, dim: int) -> Mapping[str, Tensor]:
    """Read-only copies, sorted by path; copies, since a file cannot hold shared memory."""
    copies = {}
    for path in sorted(factors):
        factor = factors[path].detach().cpu()
        missing = list(factor.shape)
        missing[dim] = rank - missing[dim]
        copies[path] = torch.cat([factor, factor.new_zeros(missing)], dim)
    return MappingProxyType(copies)


def _sum_of(a: _Delta, b: _Delta) -> Provenance:
    """The provenance of a sum: it forgets what either forgets and keeps what both keep."""
    if type(a) is not type(b):
        raise SepmeError(
            f"A {type(a).__name__} and {b!r:.40} do not add up: add deltas of one kind."
        )
    if not same_model(a.base, b.base):
        raise SepmeError(
            f"The deltas of '{a.concept}' and '{b.concept}' were made for different models "
            f"({a.base[:12]} and {b.base[:12]}): make both for one."
        )
    first, second = a.provenance, b.provenance
    return replace(
        first,
        concept=f"{a.concept} + {b.concept}",
        kind=first.kind if first.kind == second.kind else "concept",
        forgotten=tuple(dict.fromkeys(a.forgotten + b.forgotten)),
        anchors=(),  # the terms say them
        kept=tuple(prompt for prompt in a.kept if prompt in set(b.kept)),
        settings={"sum": [first.to_dict(), second.to_dict()]},
        iterations=max(first.iterations, second.iterations),
        after=(),
    )
