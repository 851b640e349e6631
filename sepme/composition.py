"""Put deltas on a live pipeline, in any combination, and take them off again.

Composing is theta + sum_{k in I} Delta_k (method, weight decoupling): every delta is a peft
adapter beside the frozen weights, so restoring never subtracts anything. It switches the adapter
off, and the original weights, which nothing ever wrote to, answer bit for bit as before.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sepme.delta import ConceptDelta, DenseDelta
from sepme.errors import SepmeError
from sepme.model import Backbone

__all__ = ["Composition", "applied", "keeps", "shipped_deltas"]


class Composition:
    """Deltas attached to one backbone, each switched on (erased) or off (restored).

    A backbone carries one composition at a time: a new one closes the one before.

    Args:
        backbone: the pipeline; only its adapters are touched.
        deltas: the deltas to attach, all switched off to begin with.
        force: compose even deltas that were built without keeping one another's concepts.

    Raises:
        SepmeError: a delta of another base model, two deltas of the same concept, or a pipeline
            that carries adapters of somebody else.
    """

    def __init__(
        self, backbone: Backbone, deltas: Iterable[ConceptDelta], *, force: bool = False
    ) -> None:
        self._backbone = backbone
        self._force = force
        self._deltas: dict[str, ConceptDelta] = {}
        self._strengths: dict[str, float] = {}
        deltas = list(deltas)
        for delta in deltas:  # everything is checked before anything is attached
            self._check(delta)
            self._deltas[delta.concept] = delta
        if backbone.composition is not None:
            backbone.composition.close()
        self._refuse_other_adapters()
        self._adapters = {name: f"sepme_{index}" for index, name in enumerate(sorted(self._deltas))}
        backbone.composition = self
        for name, adapter in self._adapters.items():
            self._attach(self._deltas[name], adapter)
        self._switch()

    # ------------------------------------------------------------------ what is on
    @property
    def deltas(self) -> Mapping[str, ConceptDelta]:
        return dict(self._deltas)

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the concepts that are erased now, in alphabetical order."""
        return tuple(sorted(self._strengths))

    @property
    def strengths(self) -> dict[str, float]:
        return dict(self._strengths)

    # ------------------------------------------------------------------ switching
    def set(self, concepts: Mapping[str, float] | Iterable[str]) -> None:
        """Erase exactly these concepts, restore all others.

        Args:
            concepts: names, or a mapping from name to strength (1 is whole, 0 is restored).

        Raises:
            SepmeError: a name without a delta, or two deltas that would interfere.
        """
        concepts = [concepts] if isinstance(concepts, str) else concepts
        wanted = dict(concepts) if isinstance(concepts, Mapping) else dict.fromkeys(concepts, 1.0)
        for name, strength in wanted.items():
            if name not in self._deltas:
                known = ", ".join(sorted(self._deltas)) or "none"
                raise SepmeError(
                    f"No delta of '{name}' is attached (attached: {known}): erase it first."
                )
            if not math.isfinite(strength):
                raise SepmeError(
                    f"The strength {strength} of '{name}' is no number: give 1 for all of it."
                )
        if not self._force:
            _refuse_contradictions([self._deltas[name] for name in wanted])
        self._strengths = {
            name: float(strength) for name, strength in wanted.items() if strength != 0.0
        }
        self._switch()

    def erase(self, *concepts: str, strength: float = 1.0) -> None:
        """Switch these concepts off in addition to those already erased."""
        self.set(self._strengths | dict.fromkeys(concepts, strength))

    def restore(self, *concepts: str) -> None:
        """Give these concepts back; the others stay erased."""
        for name in concepts:
            if name not in self._deltas:
                raise SepmeError(f"'{name}' was never erased here, so there is nothing to restore.")
        self.set({name: s for name, s in self._strengths.items() if name not in concepts})

    def restore_all(self) -> None:
        """The original model, bit for bit."""
        self.set({})

    @contextmanager
    def erased(self, *concepts: str) -> Iterator[Backbone]:
        """Within the block exactly these concepts are erased; afterwards all is as before."""
        before = dict(self._strengths)
        self.set(concepts)
        try:
            yield self._backbone
        finally:
            self.set(before)

    def close(self) -> None:
        """Take the adapters off the pipeline altogether: it is as it was before."""
        if self._adapters:
            self._backbone.unet.unload_lora()
        if self._backbone.composition is self:
            self._backbone.composition = None
        self._adapters, self._deltas, self._strengths = {}, {}, {}

    def __enter__(self) -> "Composition":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ the mechanism
    def _check(self, delta: ConceptDelta) -> None:
        delta.check_base(self._backbone.fingerprint)
        if delta.concept in self._deltas:
            raise SepmeError(f"Two deltas are given for '{delta.concept}': attach one of them.")

    def _refuse_other_adapters(self) -> None:
        found = getattr(self._backbone.unet, "peft_config", None)
        if found:
            raise SepmeError(
                f"The pipeline already carries the adapters {', '.join(sorted(found))}: take them "
                "off with pipe.unload_lora_weights(), since restoring would switch them off too."
            )

    def _attach(self, delta: ConceptDelta, adapter: str) -> None:
        dtype, device = self._backbone.dtype, self._backbone.device
        state = {name: tensor.to(device, dtype) for name, tensor in delta.lora_state_dict().items()}
        with warnings.catch_warnings():  # several adapters on one model are the point here
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            # Without low_cpu_mem_usage, peft would first draw random factors from torch's state.
            self._backbone.unet.load_lora_adapter(
                state, prefix="unet", adapter_name=adapter, low_cpu_mem_usage=True
            )

    def _switch(self) -> None:
        """Tell peft. Listing adapters by name makes their sum independent of the erasing order."""
        pipe = self._backbone.pipe
        if not self._adapters:
            return
        if not self._strengths:
            pipe.disable_lora()
            return
        pipe.enable_lora()
        pipe.set_adapters(
            [self._adapters[n] for n in self.active], [self._strengths[n] for n in self.active]
        )


def keeps(delta: ConceptDelta, other: ConceptDelta) -> bool:
    """Whether `delta` was built to leave every prompt of `other`'s concept alone.

    Prompts that speak of both concepts ("boat in neon") belong to both and need no keeping. A
    delta trained on top of `other` (iterative erasure) counts as knowing it.
    """
    needed = set(other.forgotten) - set(delta.forgotten)
    return needed <= set(delta.kept) or other.digest in delta.provenance.after


def _refuse_contradictions(deltas: list[ConceptDelta]) -> None:
    """Raise when one delta would disturb a concept that another one was promised to leave alone."""
    for delta in deltas:
        for other in deltas:
            if other is delta or keeps(delta, other) or delta.digest in other.provenance.after:
                continue
            raise SepmeError(
                f"'{delta.concept}' was erased without keeping '{other.concept}', so the two would "
                f"interfere: erase '{delta.concept}' again with '{other.concept}' among what is "
                "kept, or pass force=True."
            )


def shipped_deltas(model: Backbone) -> dict[str, ConceptDelta]:
    """The deltas that lie beside a model, in its folder `deltas`, by the concept's name.

    `sepme erase "neon, boat" --out MODEL/deltas` puts more of them there. A model that brings none,
    like one from the hub, gives an empty dictionary.

    Raises:
        SepmeError: one is damaged or belongs to another model.
    """
    source = model.pipe.name_or_path  # empty for a pipeline that was built in memory
    files = sorted((Path(source) / "deltas").glob("*.safetensors")) if source else []
    deltas = [ConceptDelta.load(file, base=model.fingerprint) for file in files]
    return {delta.concept: delta for delta in deltas}


# ------------------------------------------------------------------ any delta, for one block
@contextmanager
def applied(model: Backbone, *deltas: ConceptDelta | DenseDelta) -> Iterator[Backbone]:
    """Within the block exactly these deltas are on; afterwards the model is the original.

    Dense deltas are added up, as the paper merges the baselines' edits. The edited parameters are
    new tensors and the originals come back, bit for bit: subtracting would leave rounding errors.

    Raises:
        SepmeError: another base model, or a pipeline that already carries something.
    """
    if deltas and all(isinstance(delta, DenseDelta) for delta in deltas):
        refuse_attached(model)
        total: DenseDelta = deltas[0]
        for delta in deltas[1:]:
            total = total + delta
        model.composition = _Edited(model, total)
        try:
            yield model
        finally:
            if isinstance(model.composition, _Edited):
                model.composition.close()
    else:
        with Composition(model, deltas) as composition, composition.erased(*composition.deltas):
            yield model


class _Edited:
    """A dense delta on a live pipeline. A `Composition` made meanwhile closes it."""

    def __init__(self, model: Backbone, delta: DenseDelta) -> None:
        delta.check_base(model.fingerprint)
        parameters = dict(model.unet.named_parameters())
        for path, change in delta.changes.items():
            if path not in parameters or parameters[path].shape != change.shape:
                raise SepmeError(
                    f"The UNet has no parameter '{path}' of shape {list(change.shape)}: make the "
                    "delta again on this model."
                )
        self._model = model
        self._originals = {path: parameters[path].data for path in delta.changes}
        for path, change in delta.changes.items():
            edited = self._originals[path].float() + change.to(model.device)
            parameters[path].data = edited.to(model.dtype)

    def close(self) -> None:
        """Give the original tensors back."""
        parameters = dict(self._model.unet.named_parameters())
        for path, original in self._originals.items():
            parameters[path].data = original
        self._model.composition = None


def refuse_attached(model: Backbone) -> None:
    """Raise SepmeError if the pipeline carries a composition, a dense delta or an adapter."""
    adapters = getattr(model.unet, "peft_config", None)
    if model.composition is not None or adapters:
        what = f"the adapters {', '.join(sorted(adapters))}" if adapters else "something attached"
        raise SepmeError(
            f"The pipeline carries {what}, which would mix with this delta: close the "
            "composition or take the adapters off first."
        )
