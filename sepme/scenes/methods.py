"""The methods of the comparison: each makes a change for every concept that a scene erases.

The deltas of SepME are composed. A baseline makes its change for one concept alone; for several
concepts the changes are added, as in the paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sepme.artefact import digest_of
from sepme.baselines import BASELINES, Baseline
from sepme.concept import Catalogue, slug
from sepme.delta import ConceptDelta, DenseDelta
from sepme.erasure import PRESETS, erase
from sepme.model import Backbone
from sepme.scenes.images import Change
from sepme.scenes.protocol import PROTOCOLS, EvaluatedConcepts, Protocol, arrivals
from sepme.training import Trainer

__all__ = ["METHODS"]


@dataclass(frozen=True)
class Context:
    """The model and the concepts with which every method makes its changes."""

    backbone: Backbone
    catalogue: Catalogue
    evaluated: EvaluatedConcepts
    folder: Path  #: where changes are kept from run to run
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """One row of the comparison: SepME by default, or a baseline, with its protocol."""

    key: str  #: the name of the method, without its retain set
    label: str  #: what tables and figures call it, without its retain set
    settings: Any
    protocol: Protocol = PROTOCOLS["catalogue"]  #: what is forgotten, retained and drawn
    retains: bool = True  #: whether the method takes a retain set
    joint: bool = False  #: one training for all that are requested together (SepME-dagger)
    baseline: Baseline | None = None

    @property
    def name(self) -> str:
        """What the tables' column `method` says: "sepme@paper", or "esd-x" without a retain set."""
        return f"{self.key}@{self.protocol.name}" if self.retains else self.key

    @property
    def title(self) -> str:
        """The label with its retain set."""
        return f"{self.label} [{self.protocol.name if self.retains else 'none'}]"

    def changes(self, context: Context, scene: str) -> dict[int, Change]:
        """The change of each concept that the scene ever erases, made now or in an earlier run.

        In the paper's protocol, a delta is trained with those on that are on when it is requested.
        """
        made: dict[int, Change] = {}
        iterative = self.protocol.name == "paper" and self.baseline is None
        for moment in arrivals(scene):
            present = [made[index] for index in moment.present] if iterative else []
            for group in [moment.group] if self.joint else [(index,) for index in moment.group]:
                others = [i for i in (*moment.known, *moment.group) if i not in group]
                named = ([context.evaluated.name(i) for i in each] for each in (group, others))
                keep = self.protocol.retain(context.catalogue, *named) if self.retains else ()
                made |= self._trained(context, group, keep, present)
        return made

    def _trained(
        self, context: Context, group: Sequence[int], keep: Sequence[str], after: Sequence[Change]
    ) -> dict[int, Change]:
        """The changes of one training: read from the context's folder, or made and saved there."""
        base, name = context.backbone.fingerprint, context.evaluated.name
        concepts = [self.protocol.forget(context.catalogue, name(index)) for index in group]
        content = {
            "baseline": self.baseline and self.baseline.name,
            "concepts": [concept.name for concept in concepts],
            "protocol": self.protocol.name,
            "settings": asdict(self.settings),
            "keep": sorted(keep),
            "after": [delta.digest for delta in after],
            "seed": context.seed,
            "base": base,
        }
        stem = f"{self.name}-{digest_of(content)[:12]}"
        files = [context.folder / f"{stem}-{slug(c.name)}.safetensors" for c in concepts]
        if not all(file.is_file() for file in files):
            checkpoint = context.folder / f"{stem}.checkpoint"
            how = {"settings": self.settings, "keep": keep, "seed": context.seed}
            how |= {"trainer": Trainer(checkpoint=checkpoint, progress=False)}
            if self.baseline is None:
                found = erase(context.backbone, concepts, after=after, **how)
            else:
                found = [self.baseline.erase(context.backbone, concepts[0], **how)]
            for file, change in zip(files, found, strict=True):
                change.save(file)
            checkpoint.unlink(missing_ok=True)
        kind = DenseDelta if self.baseline else ConceptDelta
        return {i: kind.load(file, base=base) for i, file in zip(group, files, strict=True)}


_DEFAULT, _PAPER = PRESETS["default"], PROTOCOLS["paper"]
_OPEN = "closed form + training"
_BASELINES = [
    Method(b.name, b.title, b.preset("atelier"), retains=b.uses_keep, baseline=b)
    for b in BASELINES.values()
]
#: The methods of the paper's comparison, and two closed forms beyond it, by the name one types. A
#: method that takes a retain set has a row for each protocol.
METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("sepme", f"SepME, {_OPEN}", _DEFAULT),
        Method("sepme", f"SepME, {_OPEN}", _DEFAULT, _PAPER),
        Method("sepme-faithful", "SepME, faithful", PRESETS["faithful"], _PAPER),
        Method("sepme-joint", f"SepME, {_OPEN}, jointly", _DEFAULT, joint=True),
        Method("sepme-regularised", f"SepME, {_OPEN}, lambda 1e-4", replace(_DEFAULT, lam=1e-4)),
        *_BASELINES,
        *(replace(method, protocol=_PAPER) for method in _BASELINES if method.retains),
    )
}
