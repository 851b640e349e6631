"""A `WeightChange`: what a baseline did to the UNet, parameter by parameter, and how to undo it.

A concept delta is a low-rank pair that lives beside the weights (`sepme.delta`); the methods it is
compared with write into the weights themselves, some into all of them. Here that is one dense
float32 difference per trained parameter. It is put on by swapping the parameters' storage and
taken off by swapping the originals back, so what comes back is the same tensors: adding and
subtracting a float would leave rounding errors behind.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from sepme.backbone import Backbone
from sepme.delta import _digest, _joint, _short
from sepme.errors import SepmeError
from sepme.files import write_atomically
from sepme.provenance import Provenance, canonical_json

#: The header key of the provenance; another one than a delta's, so that neither passes for the
#: other.
HEADER = "sepme_weight_change"


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
            path, to_safetensors(dict(self.changes), {HEADER: canonical_json(header)})
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
        tensors, text = _read(Path(path))
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


def _read(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """All tensors of a safetensors file, and the header of a weight change if it has one."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER)
            return {name: file.get_tensor(name) for name in file.keys()}, text  # noqa: SIM118
    except OSError as error:
        raise SepmeError(f"{path} cannot be opened: check that the file exists.") from error
    except SafetensorError as error:
        raise SepmeError(
            f"{path} is not a whole safetensors file: it may be truncated, make or copy it again."
        ) from error
