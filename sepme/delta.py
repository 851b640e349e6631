"""A `ConceptDelta`: the small frozen object that makes a model forget one concept.

Layer l changes by `Delta_l = B_l Q_l` with `Q_l [q, d_in]` ("down", as a rule one orthonormal
basis for all layers) and `B_l [d_out, q]` ("up"). That is exactly a LoRA pair, so the file is a
LoRA file: stock diffusers loads it without knowing sepme.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from sepme.errors import SepmeError
from sepme.files import write_atomically
from sepme.provenance import Provenance, canonical_json

#: The header key of the provenance. One key only: the order of several is not reproducible.
HEADER = "sepme"


@dataclass(frozen=True, eq=False)
class ConceptDelta:
    """The increment of one concept (or of a sum of them) for every layer that it changes.

    Owns copies of its tensors, on the CPU, all of one rank: layers that need less are filled up
    with zeros, because older diffusers scale a LoRA layer of another rank than most by their ratio.
    Deltas add up: `a + b` forgets both concepts, `0.5 * a` half-forgets, `-a` undoes.

    Raises:
        SepmeError: no layers, factors whose shapes do not fit, or numbers that are not finite.
    """

    concept: str
    down: Mapping[str, Tensor]
    """`Q_l [q, d_in]` by module path."""
    up: Mapping[str, Tensor]
    """`B_l [d_out, q]` by module path; layer l changes by `up @ down`."""
    provenance: Provenance

    def __post_init__(self) -> None:
        if not self.down or set(self.down) != set(self.up):
            raise SepmeError(
                f"The delta of {self.concept!r} needs both factors of at least one layer: give "
                "`down` and `up` the same module paths."
            )
        for path in self.down:
            self._check(path, self.down[path], self.up[path])
        rank = self.rank
        object.__setattr__(self, "down", _own(self.down, rank, dim=0))
        object.__setattr__(self, "up", _own(self.up, rank, dim=1))

    def _check(self, path: str, down: Tensor, up: Tensor) -> None:
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise SepmeError(
                f"The factors of {path} do not fit: down is {list(down.shape)}, up is "
                f"{list(up.shape)}, and they must be [q, d_in] and [d_out, q]."
            )
        if not (down.isfinite().all() and up.isfinite().all()):
            raise SepmeError(
                f"The delta of {self.concept!r} is not finite in {path}: make it again, with a "
                "lower learning rate if it was trained."
            )

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

    def dense(self, path: str) -> Tensor:
        """`Delta_l = B_l Q_l`, `[d_out, d_in]`."""
        return self.up[path] @ self.down[path]

    def norm(self, p: float = 1) -> float:
        """`||Delta||_p / M` over the M layers (paper eq. 3), without unit."""
        entries = torch.cat([self.dense(path).double().flatten() for path in self.paths])
        return float(entries.norm(p)) / len(self.paths)

    def frobenius(self) -> float:
        """Root of the sum of the squares of all entries of all layers."""
        return self.norm(2) * len(self.paths)

    def lora_state_dict(self) -> dict[str, Tensor]:
        """The factors under the names that diffusers' `load_lora_weights` expects."""
        down = {_key(path, "A"): factor for path, factor in self.down.items()}
        return down | {_key(path, "B"): factor for path, factor in self.up.items()}

    @cached_property
    def digest(self) -> str:
        """sha256 of everything in it: two deltas are the same exactly when their digests are."""
        return _digest(self.provenance.to_dict(), self.lora_state_dict())

    def __mul__(self, scale: float) -> "ConceptDelta":
        settings = dict(self.provenance.settings)
        settings["scale"] = settings.get("scale", 1.0) * float(scale)
        return replace(
            self,
            up={path: up * scale for path, up in self.up.items()},
            provenance=replace(self.provenance, settings=settings),
        )

    __rmul__ = __mul__

    def __neg__(self) -> "ConceptDelta":
        return self * -1.0

    def __add__(self, other: "ConceptDelta") -> "ConceptDelta":
        """Both at once: the factors stand side by side, `[B_a B_b] [Q_a; Q_b]`.

        Raises:
            SepmeError: they were made for different models.
        """
        if not isinstance(other, ConceptDelta):
            return NotImplemented
        if self.base != other.base:
            raise SepmeError(
                f"The deltas of {self.concept!r} and {other.concept!r} were made for different "
                f"models ({_short(self.base)} and {_short(other.base)}): make both for one."
            )
        paths = sorted({*self.paths, *other.paths})
        provenance = _joint(self.provenance, other.provenance)
        return ConceptDelta(
            concept=provenance.concept,
            down={path: _side_by_side(self.down, other.down, path, dim=0) for path in paths},
            up={path: _side_by_side(self.up, other.up, path, dim=1) for path in paths},
            provenance=provenance,
        )

    def __sub__(self, other: "ConceptDelta") -> "ConceptDelta":
        return self + (-other)

    def save(self, path: str | Path) -> Path:
        """Write the LoRA file; the same delta always gives the same bytes.

        Raises:
            SepmeError: the name does not end in .safetensors, or cannot be written.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise SepmeError(f"{path.name} is not a name for a delta: end it in .safetensors.")
        tensors = self.lora_state_dict()
        provenance = self.provenance.to_dict()
        header = {"provenance": provenance, "sha256": self.digest}
        return write_atomically(path, to_safetensors(tensors, {HEADER: canonical_json(header)}))

    @classmethod
    def load(cls, path: str | Path, base: str | None = None) -> "ConceptDelta":
        """Read a file that `save` wrote, checking that every bit is as it was.

        Args:
            path: the .safetensors file.
            base: `Backbone.fingerprint` of the model that it is to be used with, if known.

        Raises:
            SepmeError: missing, truncated, edited or foreign file, a NaN in it, or another base.
        """
        tensors, text = _read(Path(path))
        if text is None:
            raise SepmeError(
                f"{path} was not written by sepme: choose a file that `sepme erase` made."
            )
        try:
            header = json.loads(text)
            intact = header["sha256"] == _digest(header["provenance"], tensors)
        except (ValueError, TypeError, KeyError):
            intact = False
        if not intact:
            raise SepmeError(f"{path} was changed after sepme wrote it: make the delta again.")
        provenance = Provenance.from_dict(header["provenance"])
        if base is not None and base != provenance.base:
            raise SepmeError(
                f"{path} was made for {provenance.base_name} ({_short(provenance.base)}), not for "
                f"this model ({_short(base)}): load that model, or erase {provenance.concept!r} "
                "on this one."
            )
        return cls(
            concept=provenance.concept,
            down={_path(key): tensors[key] for key in tensors if key.endswith(_SUFFIX["A"])},
            up={_path(key): tensors[key] for key in tensors if key.endswith(_SUFFIX["B"])},
            provenance=provenance,
        )


_PREFIX = "unet."
_SUFFIX = {"A": ".lora_A.weight", "B": ".lora_B.weight"}


def _key(path: str, factor: str) -> str:
    """diffusers' name for a LoRA factor of a layer of the UNet."""
    return f"{_PREFIX}{path}{_SUFFIX[factor]}"


def _path(key: str) -> str:
    return key.removeprefix(_PREFIX).rsplit(".lora_", 1)[0]


def _own(factors: Mapping[str, Tensor], rank: int, dim: int) -> Mapping[str, Tensor]:
    """Read-only copies, sorted by path; copies, since a file cannot hold shared memory."""
    copies = {}
    for path in sorted(factors):
        factor = factors[path].detach().cpu()
        missing = list(factor.shape)
        missing[dim] = rank - missing[dim]
        copies[path] = torch.cat([factor, factor.new_zeros(missing)], dim)
    return MappingProxyType(copies)


def _side_by_side(a: Mapping[str, Tensor], b: Mapping[str, Tensor], path: str, dim: int) -> Tensor:
    return torch.cat([factors[path] for factors in (a, b) if path in factors], dim=dim)


def _joint(a: Provenance, b: Provenance) -> Provenance:
    """The provenance of a sum: it forgets what either forgets and keeps what both keep."""
    return Provenance(
        concept=f"{a.concept} + {b.concept}",
        kind=a.kind if a.kind == b.kind else "concept",
        base=a.base,
        base_name=a.base_name,
        forgotten=tuple(dict.fromkeys(a.forgotten + b.forgotten)),
        kept=tuple(prompt for prompt in a.kept if prompt in set(b.kept)),
        settings={"sum": [a.to_dict(), b.to_dict()]},
        seed=a.seed,
        iterations=max(a.iterations, b.iterations),
        versions=a.versions,
    )


def _digest(provenance: object, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the provenance and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(canonical_json(provenance).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """All tensors of a safetensors file, and sepme's header if it has one."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER)
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, text
    except OSError as error:
        raise SepmeError(f"{path} cannot be opened: check that the file exists.") from error
    except SafetensorError as error:
        raise SepmeError(
            f"{path} is not a whole safetensors file: it may be truncated, make or copy it again."
        ) from error


def _short(fingerprint: str) -> str:
    return fingerprint[:12]
