"""A `ConceptDelta`: the small frozen object that makes a model forget one concept.

Layer l changes by `Delta_l = B_l Q_l` with `Q_l [q, d_in]` ("down", as a rule one orthonormal
basis for all layers) and `B_l [d_out, q]` ("up"). That is exactly a LoRA pair, so the file is a
LoRA file: stock diffusers loads it without knowing sepme.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from sepme.artefact import Provenance, canonical_json, write_atomically
from sepme.errors import SepmeError
from sepme.model import Backbone

# ------------------------------------------------------------------ delta
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


# ------------------------------------------------------------------ weight_change
# A `WeightChange`: what a baseline did to the UNet, parameter by parameter, and how to undo it.
#
# A concept delta is a low-rank pair that lives beside the weights (`sepme.delta`); the methods
# it is
# compared with write into the weights themselves, some into all of them. Here that is one dense
# float32 difference per trained parameter. It is put on by swapping the parameters' storage and
# taken off by swapping the originals back, so what comes back is the same tensors: adding and
# subtracting a float would leave rounding errors behind.
#
#: The header key of the provenance; another one than a delta's, so that neither passes for the
#: other.
CHANGE_HEADER = "sepme_weight_change"


@dataclass(frozen=True, eq=False)
class WeightChange:
    """The difference between an edited UNet and the original, of the parameters that were edited.

    Owns float32 copies of its tensors on the CPU. Changes that were made separately add up:
    `a + b` is how the paper merges the baselines' single-concept edits.

    Raises:
        SepmeError: no parameter, or numbers that are not finite.
    """

    changes: Mapping[str, Tensor]
    """Parameter path in the UNet ("mid_block. ... .attn2.to_k.weight") -> edited minus original."""
    provenance: Provenance

    def __post_init__(self) -> None:
        if not self.changes:
            raise SepmeError("A weight change needs at least one parameter: give what was trained.")
        for path, change in self.changes.items():
            if not change.isfinite().all():
                raise SepmeError(
                    f"The change of '{path}' is not finite: train again, with a lower learning "
                    "rate."
                )
        own = {
            path: self.changes[path].detach().to("cpu", torch.float32, copy=True).contiguous()
            for path in sorted(self.changes)
        }
        object.__setattr__(self, "changes", MappingProxyType(own))

    @property
    def concept(self) -> str:
        return self.provenance.concept

    @property
    def method(self) -> str:
        """The baseline that made it, or "sum" of several."""
        return str(self.provenance.settings.get("eraser", "sum"))

    @property
    def base(self) -> str:
        """Fingerprint of the model that it was made for."""
        return self.provenance.base

    @property
    def paths(self) -> tuple[str, ...]:
        """The parameters that it changes, sorted."""
        return tuple(self.changes)

    @property
    def layers(self) -> tuple[str, ...]:
        """The modules whose parameters it changes: a weight and its bias are one layer."""
        return tuple(dict.fromkeys(path.rpartition(".")[0] for path in self.changes))

    def norm(self, p: float = 1) -> float:
        """`||Delta||_p / M` over the M layers, as `ConceptDelta.norm` (paper eq. 3)."""
        entries = torch.cat([change.double().flatten() for change in self.changes.values()])
        return float(entries.norm(p)) / len(self.layers)

    @cached_property
    def digest(self) -> str:
        """sha256 of everything in it: two changes are the same exactly when their digests are."""
        return _digest(self.provenance.to_dict(), self.changes)

    def __add__(self, other: "WeightChange") -> "WeightChange":
        """Both at once: the sum, with all parameters that either changes.

        Raises:
            SepmeError: they were made for different models.
        """
        if not isinstance(other, WeightChange):
            return NotImplemented
        if self.base != other.base:
            raise SepmeError(
                f"The changes for {self.concept!r} and {other.concept!r} were made for different "
                f"models ({_short(self.base)} and {_short(other.base)}): make both for one."
            )
        total = dict(self.changes)
        for path, change in other.changes.items():
            total[path] = total[path] + change if path in total else change
        return WeightChange(total, _joint(self.provenance, other.provenance))

    # ------------------------------------------------------------------ on the live pipeline
    @contextmanager
    def applied(self, backbone: Backbone) -> Iterator[Backbone]:
        """Within the block the UNet is the edited one; afterwards it is the original, bit for bit.

        A `Composition` made inside the block takes the change off first, as it would another
        composition.

        Raises:
            SepmeError: another base model, or a pipeline that already carries something.
        """
        refuse_attached(backbone)
        self._check(backbone)
        attached = _Attached(backbone, self.changes)
        backbone.composition = attached
        try:
            attached.put_on()
            yield backbone
        finally:
            attached.close()

    def _check(self, backbone: Backbone) -> None:
        if self.base != backbone.fingerprint:
            raise SepmeError(
                f"The change for {self.concept!r} was made for another base model "
                f"({_short(self.base)}, this one is {_short(backbone.fingerprint)}): erase it "
                "again on this one."
            )
        shapes = {name: value.shape for name, value in backbone.unet.named_parameters()}
        for path, change in self.changes.items():
            if shapes.get(path) != change.shape:
                raise SepmeError(
                    f"The UNet has no parameter '{path}' of shape {list(change.shape)}: make the "
                    "change again on this model."
                )

    # ------------------------------------------------------------------ to the disk and back
    def save(self, path: str | Path) -> Path:
        """Write one safetensors file; the same change always gives the same bytes.

        Raises:
            SepmeError: the name does not end in .safetensors, or cannot be written.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise SepmeError(
                f"{path.name} is not a name for a weight change: end it in .safetensors."
            )
        header = {"provenance": self.provenance.to_dict(), "sha256": self.digest}
        return write_atomically(
            path, to_safetensors(dict(self.changes), {CHANGE_HEADER: canonical_json(header)})
        )

    @classmethod
    def load(cls, path: str | Path, base: str | None = None) -> "WeightChange":
        """Read a file that `save` wrote, checking that every bit is as it was.

        Args:
            path: the .safetensors file.
            base: `Backbone.fingerprint` of the model that it is to be used with, if known.

        Raises:
            SepmeError: missing, truncated, edited or foreign file, or another base.
        """
        tensors, text = _read_change(Path(path))
        if text is None:
            raise SepmeError(f"{path} holds no weight change: choose a file that one was saved to.")
        try:
            header = json.loads(text)
            intact = header["sha256"] == _digest(header["provenance"], tensors)
        except (ValueError, TypeError, KeyError):
            intact = False
        if not intact:
            raise SepmeError(f"{path} was changed after sepme wrote it: make the change again.")
        provenance = Provenance.from_dict(header["provenance"])
        if base is not None and base != provenance.base:
            raise SepmeError(
                f"{path} was made for {provenance.base_name} ({_short(provenance.base)}), not for "
                f"this model ({_short(base)}): load that model, or erase {provenance.concept!r} "
                "on this one."
            )
        return cls(tensors, provenance)


class _Attached:
    """A change on a live pipeline, seen by the rest of the house as what is attached to it."""

    def __init__(self, backbone: Backbone, changes: Mapping[str, Tensor]) -> None:
        self._backbone, self._changes = backbone, changes
        self._originals: dict[str, Tensor] = {}

    def put_on(self) -> None:
        parameters = dict(self._backbone.unet.named_parameters())
        for path, change in self._changes.items():
            parameter = parameters[path]
            self._originals[path] = parameter.data
            edited = parameter.data.float() + change.to(parameter.device)
            parameter.data = edited.to(parameter.dtype)  # swapped: the original is not written to

    def close(self) -> None:
        """Give the original tensors back; done twice it does nothing."""
        parameters = dict(self._backbone.unet.named_parameters())
        while self._originals:
            path, original = self._originals.popitem()
            parameters[path].data = original
        if self._backbone.composition is self:
            self._backbone.composition = None


def refuse_attached(backbone: Backbone) -> None:
    """Raise SepmeError if the pipeline carries a composition, a weight change or an adapter."""
    adapters = getattr(backbone.unet, "peft_config", None)
    if backbone.composition is not None or adapters:
        what = f"the adapters {', '.join(sorted(adapters))}" if adapters else "something attached"
        raise SepmeError(
            f"The pipeline carries {what}, which would mix with this change: close the "
            "composition or take the adapters off first."
        )


def _read_change(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """All tensors of a safetensors file, and the header of a weight change if it has one."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(CHANGE_HEADER)
            return {name: file.get_tensor(name) for name in file.keys()}, text  # noqa: SIM118
    except OSError as error:
        raise SepmeError(f"{path} cannot be opened: check that the file exists.") from error
    except SafetensorError as error:
        raise SepmeError(
            f"{path} is not a whole safetensors file: it may be truncated, make or copy it again."
        ) from error
