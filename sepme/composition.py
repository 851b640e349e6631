"""Put deltas on a live pipeline, in any combination, and take them off again.

Composing is theta + sum_{k in I} Delta_k, the paper's weight decoupling. Every delta is a peft
adapter beside the frozen weights, so restoring never subtracts anything. It switches the adapter
off, and the original weights, which nothing ever wrote to, answer bit for bit as before.

The pipeline belongs to its user, who may load, unload or fuse other adapters meanwhile. So what is
on is read from the layers, never remembered, and only a composition's own adapters are touched.
"""

import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count, permutations
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from sepme._checks import finite, plain, texts
from sepme.artefact import same_model
from sepme.delta import ConceptDelta, DenseDelta
from sepme.errors import SepmeError
from sepme.model import IN_USE, Backbone, alone, gradients_kept

__all__ = ["Composition", "applied", "keeps", "shipped_deltas"]

#: To how many digits peft gives a strength back.
_DIGITS = 9
#: The most that half precision changes a matrix, relative to its size; bfloat16 keeps eight bits.
ROUNDING = 2.0**-8
_CHANGED = (
    "The model's weights, or the adapters on its text encoder, were changed since the deltas were "
    "attached: change them back, or erase and compose again."
)


class Composition:
    """Deltas attached to one backbone, each switched on (erased) or off (restored).

    A backbone carries one composition at a time: a new one closes the one before. Adapters of the
    user stay as they are, on or off; "original" below means the model with those that are on.

    Args:
        deltas: what to attach, all switched off to begin with.
        force: compose even deltas that were built without keeping one another's concepts.

    Raises:
        SepmeError: what is no delta, one of another base model, two deltas of the same concept, or
            adapters that are fused into the weights.
    """

    @alone
    def __init__(
        self, backbone: Backbone, deltas: Iterable[ConceptDelta], *, force: bool = False
    ) -> None:
        self._backbone, self._unet = backbone, backbone.unet
        self._force = force
        self._deltas: dict[str, ConceptDelta] = {}
        self._wanted: dict[str, float] = {}
        #: What decides embeddings and predictions, as it was.
        self._fingerprint = backbone.fingerprint
        deltas = list(deltas) if isinstance(deltas, Iterable) else [deltas]
        for delta in deltas:  # everything is checked before anything is attached
            if not isinstance(delta, ConceptDelta):
                raise SepmeError(
                    f"A composition takes a list of ConceptDeltas, and {type(delta).__name__} is "
                    "none: load files with ConceptDelta.load, and put a DenseDelta on with applied."
                )
            self._check(delta)
            self._deltas[delta.concept] = delta
        if backbone.composition is not None:
            backbone.composition.close()
        taken = getattr(self._unet, "peft_config", None) or {}
        free = (name for n in count() if (name := f"sepme_{n}") not in taken)
        self._adapters = dict(zip(sorted(self._deltas), free, strict=False))
        #: The user's adapters that are switched off by a flag: they stay off.
        self._silenced: dict[LoraLayer, list[str]] = {}
        backbone.composition = backbone._last = self
        try:
            self._switch()
        except BaseException:  # no memory, say, or an interruption
            self._drop_unfinished()
            self.close()
            raise

    # ------------------------------------------------------------------ what is on
    @property
    def deltas(self) -> Mapping[str, ConceptDelta]:
        return dict(self._deltas)

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the concepts that are erased now, in alphabetical order."""
        return tuple(sorted(self.strengths))

    @property
    def strengths(self) -> dict[str, float]:
        """How strongly each concept is erased now, as the pipeline's layers say.

        Raises:
            SepmeError: the layers disagree, since somebody switched some of them, or wrote others'
                weights into an adapter.
        """
        self.refuse_exchanged()
        layers, found = self._layers(), {}
        for name, adapter in self._adapters.items():
            if self._overwritten(name, layers):
                raise SepmeError(
                    f"Other weights were written over those that erase '{name}': switch it again "
                    "with set()."
                )
            here = (layer for layer in layers.values() if adapter in layer.lora_A)
            values = {_strength(layer, adapter) for layer in here}
            if len(values) > 1:
                raise SepmeError(
                    f"'{name}' is on in some layers and off in others: switch it again with set()."
                )
            if values and (value := values.pop()) != 0.0:
                found[name] = value
        return found

    def refuse_exchanged(self) -> None:
        """Raise SepmeError if the pipeline has another UNet now, which erases nothing."""
        if self._wanted and self._backbone.unet is not self._unet:
            raise SepmeError(_CHANGED)

    def check(self) -> None:
        """Raise SepmeError if what is on is not what was asked for, or cannot act as it should."""
        strengths, wanted = self.strengths, self._wanted
        if strengths.keys() != wanted.keys() or not all(
            math.isclose(strengths[name], wanted[name], rel_tol=1e-6) for name in wanted
        ):
            asked, now = (", ".join(sorted(names)) or "nothing" for names in (wanted, strengths))
            raise SepmeError(
                f"Another adapter was loaded or switched since {asked} was to be erased, and now "
                f"{now} is: switch again with set(), or close()."
            )
        if wanted:
            self._backbone.projections()  # fused ones would leave the deltas out
        if wanted and not same_model(self._backbone.fingerprint, self._fingerprint):
            raise SepmeError(_CHANGED)

    # ------------------------------------------------------------------ switching
    @alone
    def set(self, concepts: Mapping[str, float] | Iterable[str]) -> None:
        """Erase exactly these concepts, restore all others.

        Args:
            concepts: names, or a mapping from name to strength (1 is whole, 0 is restored).

        Raises:
            SepmeError: a name without a delta, two deltas that would interfere or forget the same
                twice, or adapters that are fused into the weights.
        """
        names = texts(concepts)
        wanted = dict(concepts) if isinstance(concepts, Mapping) else dict.fromkeys(names, 1.0)
        if wanted or self._adapters:  # where it was closed, all is restored
            self._refuse_detached()
        for name, strength in wanted.items():
            if name not in self._deltas:
                known = ", ".join(sorted(self._deltas)) or "none"
                raise SepmeError(
                    f"No delta of '{name}' is attached (attached: {known}): erase it first."
                )
            finite(**{f"The strength of '{name}'": strength})
        if not self._force:
            refuse_contradictions([self._deltas[name] for name in wanted], self._backbone.reads)
        self._backbone.refuse_fused()
        if self._backbone.unet is not self._unet:
            raise SepmeError(_CHANGED)
        strengths = {name: round(float(s), _DIGITS) for name, s in wanted.items()}
        self._wanted = {name: strength for name, strength in strengths.items() if strength != 0.0}
        self._switch()

    def erase(self, *concepts: str, strength: float = 1.0) -> None:
        """Switch these concepts off in addition to those already erased."""
        self.set(self._wanted | dict.fromkeys(texts(concepts), strength))

    def restore(self, *concepts: str) -> None:
        """Give these concepts back; the others stay erased."""
        self._refuse_detached()
        for name in texts(concepts):
            if name not in self._deltas:
                raise SepmeError(f"'{name}' was never erased here, so there is nothing to restore.")
        self.set({name: s for name, s in self._wanted.items() if name not in concepts})

    def restore_all(self) -> None:
        """The original model, bit for bit."""
        self.set({})

    @contextmanager
    def erased(self, *concepts: str) -> Iterator[Backbone]:
        """Within the block exactly these concepts are erased; afterwards all is as before."""
        with IN_USE:  # others would draw what is erased here
            before = dict(self._wanted)
            self.set(concepts)
            try:
                yield self._backbone
            finally:
                self.set(before)

    @alone
    def close(self) -> None:
        """Take the adapters off the pipeline altogether: it is as it was before.

        Raises:
            SepmeError: they are fused into the weights.
        """
        if not self._adapters:
            _detached(self._unet, self)
            return
        self._refuse_detached()
        self._backbone.refuse_fused()
        unet = self._unet
        there = getattr(unet, "peft_config", {}) or {}
        ours = [adapter for adapter in self._adapters.values() if adapter in there]
        if ours and len(ours) == len(there):
            unet.unload_lora()
        elif ours:
            self._wanted = {}
            self._switch()  # else peft would choose another adapter to switch on
            with gradients_kept(unet):
                unet.delete_adapters(ours)
            _unwrap(unet)
        _detached(unet, self)
        self._adapters, self._deltas, self._wanted, self._silenced = {}, {}, {}, {}

    def __enter__(self) -> "Composition":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ the mechanism
    def _check(self, delta: ConceptDelta) -> None:
        fits = same_model(delta.base, self._fingerprint)
        if not fits and self._backbone.text_adapters:
            raise SepmeError(
                "The pipeline's text encoder carries an adapter, so that its embeddings are others "
                f"than those that '{delta.concept}' was erased with: take it off, or erase "
                f"'{delta.concept}' again on this pipeline."
            )
        delta.check_model(self._backbone, self._fingerprint)
        if delta.concept in self._deltas:
            raise SepmeError(f"Two deltas are given for '{delta.concept}': attach one of them.")

    def _refuse_detached(self) -> None:
        """Raise SepmeError if this is not on its UNet: closed, replaced, or suspended."""
        if getattr(self._unet, "_sepme_composition", None) is not self:
            raise SepmeError(
                "This composition is not on the pipeline now: wait for the training or the block "
                "that suspends it, or attach its deltas again if it was closed."
            )

    def _drop_unfinished(self) -> None:
        """Take off adapters that peft began to attach and does not know yet."""
        there = getattr(self._unet, "peft_config", None) or {}
        for layer in self._layers().values():
            for adapter in set(self._adapters.values()) - {*there}:
                layer.delete_adapter(adapter)
        self._adapters = {name: a for name, a in self._adapters.items() if a in there}
        _unwrap(self._unet)

    def _layers(self) -> dict[str, LoraLayer]:
        """Module path -> layer that has an adapter, ours or the user's."""
        return {path: m for path, m in self._unet.named_modules() if isinstance(m, LoraLayer)}

    def _overwritten(self, name: str, layers: Mapping[str, LoraLayer]) -> bool:
        """Whether an adapter that is there holds other weights than its delta, as of a hot swap."""
        adapter, delta = self._adapters[name], self._deltas[name]
        for path in delta.paths:
            layer = layers.get(path)
            for which, factor in (("lora_A", delta.down[path]), ("lora_B", delta.up[path])):
                here = getattr(layer, which, {})
                if adapter in here and here[adapter].weight.is_meta:
                    raise SepmeError(
                        f"The weights that erase '{name}' are offloaded: load the pipeline again "
                        "without that."
                    )
                if adapter in here and not _alike(here[adapter].weight, factor):
                    return True
        return False

    def _attach(self, delta: ConceptDelta, adapter: str) -> None:
        place = self._backbone.device, self._backbone.dtype
        # Copies: what writes into the adapter, as a hot swap does, must not write into the delta.
        factors = delta.lora_state_dict().items()
        state = {name: tensor.to(*place, copy=True) for name, tensor in factors}
        with warnings.catch_warnings():  # several adapters on one model are the point here
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            # Without low_cpu_mem_usage, peft would first draw random factors from torch's state.
            self._unet.load_lora_adapter(
                state, prefix="unet", adapter_name=adapter, low_cpu_mem_usage=True
            )

    @torch.inference_mode(False)
    def _switch(self) -> None:
        """Tell every layer. In the order of the names the sum does not depend on who came first.

        peft and diffusers would switch all adapters of the pipeline, those of its text encoder too.
        """
        there = getattr(self._unet, "peft_config", None) or {}
        on = {self._adapters[name]: self._wanted[name] for name in sorted(self._wanted)}
        with gradients_kept(self._unet):
            layers = self._layers()
            theirs = self._theirs(layers.values())
            for name, adapter in self._adapters.items():
                if adapter in there and self._overwritten(name, layers):
                    self._unet.delete_adapters(adapter)
            # Not attached yet, or somebody unloaded them meanwhile. It switches all others off.
            missing = [name for name, adapter in self._adapters.items() if adapter not in there]
            for name in missing:
                self._attach(self._deltas[name], self._adapters[name])
            for path, module in self._unet.named_modules() if missing else ():
                if path.rpartition(".")[2] in self._adapters.values():
                    module.eval()  # a new module is in training mode
            for layer in (self._layers() if missing else layers).values():
                layer.enable_adapters(True)
                layer.set_adapter([*theirs.get(layer, []), *on], inference_mode=True)
                for adapter, strength in on.items():
                    layer.set_scale(adapter, strength)
                if not on and layer in self._silenced:
                    layer.set_adapter(self._silenced[layer], inference_mode=True)
                    layer.enable_adapters(False)

    def _theirs(self, layers: Iterable[LoraLayer]) -> dict[LoraLayer, list[str]]:
        """The user's adapters that are on in each layer; those off by a flag are noted apart."""
        found = {}
        for layer in layers:
            names = [a for a in layer.active_adapters if a not in self._adapters.values()]
            if layer.disable_adapters:
                self._silenced.setdefault(layer, names)
            elif names:  # the user switched them on again
                self._silenced.pop(layer, None)
                found[layer] = names
        return found


def _strength(layer: LoraLayer, adapter: str) -> float:
    """How strongly an adapter of the layer is on: its scaling without alpha / rank."""
    if layer.disable_adapters or adapter not in layer.active_adapters:
        return 0.0
    return round(layer.scaling[adapter] * layer.r[adapter] / layer.lora_alpha[adapter], _DIGITS)


def _alike(here: Tensor, factor: Tensor) -> bool:
    """Whether a weight is this factor, or was rounded to half precision from it."""
    if here.shape != factor.shape:
        return False
    factor = factor.to(here.device)
    if torch.equal(here, factor.to(here.dtype)):  # which takes least
        return True
    off = here.detach().float() - factor.float()
    return bool(off.norm() <= ROUNDING * factor.float().norm())


def _unwrap(unet: nn.Module) -> None:
    """Put the plain layer back wherever no adapter is left."""
    for path, layer in [*unet.named_modules()]:
        if isinstance(layer, LoraLayer) and not layer.lora_A:
            parent, _, name = path.rpartition(".")
            setattr(unet.get_submodule(parent), name, layer.base_layer)


def keeps(
    delta: ConceptDelta, other: ConceptDelta, reads: Callable[[str], Hashable] | None = None
) -> bool:
    """Whether `delta` was built to leave every prompt of `other`'s concept alone.

    Prompts that speak of both concepts ("boat in neon") belong to both and need no keeping. A
    delta trained on top of `other` (iterative erasure) counts as knowing it.

    Args:
        reads: what a model makes of a prompt (`Backbone.reads`), so that prompts of the same tokens
            are one; without it, prompts are compared by their letters.
    """
    said = {*delta.forgotten, *delta.kept}
    needed = set(other.forgotten) - said
    if not needed or other.digest in delta.provenance.after:
        return True
    return reads is not None and {*map(reads, needed)} <= {*map(reads, said)}


def refuse_contradictions(deltas: list[ConceptDelta], reads: Callable[[str], Hashable]) -> None:
    """Raise when one delta would disturb or repeat what another one does."""
    letters = [{*map(_letters, delta.forgotten)} for delta in deltas]  # tokens take longer
    for (delta, its), (other, others) in permutations(zip(deltas, letters, strict=True), 2):
        after = {*delta.provenance.after, *other.provenance.after}
        if not after.isdisjoint((delta.digest, other.digest)):
            continue
        if its <= others and {*map(reads, delta.forgotten)} <= {*map(reads, other.forgotten)}:
            raise SepmeError(
                f"'{other.concept}' forgets all that '{delta.concept}' does, so together they "
                "would act on it twice: switch one of them on, or pass force=True in Python."
            )
        if not keeps(delta, other, reads):
            raise SepmeError(
                f"'{delta.concept}' was erased without keeping '{other.concept}', so the two would "
                f"interfere: erase '{delta.concept}' again with '{other.concept}' among what is "
                "kept, or pass force=True in Python."
            )


def _letters(prompt: str) -> str:
    """What prompts of the same tokens have in common, at the least."""
    return "".join(filter(str.isalnum, plain(prompt).casefold()))


def shipped_deltas(model: Backbone) -> dict[str, ConceptDelta]:
    """The deltas that lie beside a model, in its folder `deltas`, by the concept's name.

    `sepme erase "neon, boat" --out MODEL/deltas` puts more of them there. A model that brings none,
    like one from the hub, gives an empty dictionary.

    Raises:
        SepmeError: one is damaged or belongs to another model, or two are of one concept.
    """
    source = model.pipe.name_or_path  # empty for a pipeline that was built in memory
    # Not the hidden ones, which macOS writes beside a file on a foreign disk.
    files = sorted((Path(source) / "deltas").glob("[!.]*.safetensors")) if source else []
    found = {}
    for file in files:
        delta = ConceptDelta.load(file, base=model.fingerprint)
        if delta.concept in found:
            raise SepmeError(
                f"'{file}' is a second delta of '{delta.concept}': move one elsewhere."
            )
        found[delta.concept] = delta
    return found


# ------------------------------------------------------------------ any delta, for one block
@contextmanager
def applied(model: Backbone, *deltas: ConceptDelta | DenseDelta) -> Iterator[Backbone]:
    """Within the block exactly these deltas are on; afterwards the model is the original.

    Dense deltas are added up, as the paper merges the baselines' edits. The edited parameters are
    new tensors, and the originals come back bit for bit.

    Raises:
        SepmeError: another base model, or a pipeline that already carries something.
    """
    if deltas and all(isinstance(delta, DenseDelta) for delta in deltas):
        with IN_USE:  # others would draw what is erased here
            refuse_attached(model)
            model.composition = edited = _Edited(model, sum(deltas))
            try:
                edited.put()
                yield model
            finally:
                edited.close()
    else:
        if model.composition is not None:
            refuse_attached(model)
        with Composition(model, deltas) as composition, composition.erased(*composition.deltas):
            yield model


class _Edited:
    """A dense delta on a live pipeline. A `Composition` made meanwhile closes it."""

    def __init__(self, model: Backbone, delta: DenseDelta) -> None:
        delta.check_model(model)
        self._unet = model.unet
        self._edited = {path: model.unet.get_parameter(path) for path in delta.changes}
        #: By their names in the fingerprint, which goes on to be of the original.
        self.originals = {f"unet.{path}": edited.data for path, edited in self._edited.items()}
        self._changed = {
            path: (edited.data.float() + delta.changes[path].to(model.device)).to(model.dtype)
            for path, edited in self._edited.items()
        }

    def put(self) -> None:
        """Edit the parameters."""
        for path, edited in self._edited.items():
            edited.data = self._changed[path]

    def check(self) -> None:
        """Nothing but this class writes to the parameters."""

    def close(self) -> None:
        """Give the original tensors back, if nobody has yet."""
        if _detached(self._unet, self):
            for path, edited in self._edited.items():
                edited.data = self.originals[f"unet.{path}"]


def _detached(unet: nn.Module, attached: object) -> bool:
    """Whether this was on the UNet (`Backbone.composition`) until now; the UNet forgets it."""
    if getattr(unet, "_sepme_composition", None) is not attached:
        return False
    del unet._sepme_composition
    return True


def refuse_attached(model: Backbone) -> None:
    """Raise SepmeError if the pipeline carries a composition, a dense delta or an adapter."""
    adapters = getattr(model.unet, "peft_config", None)
    if model.composition is not None or adapters:
        what = f"the adapters {', '.join(sorted(adapters))}" if adapters else "something attached"
        raise SepmeError(
            f"The pipeline carries {what}, which would mix with this delta: close the "
            "composition or take the adapters off first."
        )
