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
from sepme.scenes.protocol import PROTOCOLS, EvaluatedConcepts, Protocol, arrivals
from sepme.training import Trainer

__all__ = ["METHODS", "Context"]

Change = ConceptDelta | DenseDelta


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
        name = context.evaluated.name
        for arrival in arrivals(scene):
            groups = [arrival.group] if self.joint else [(index,) for index in arrival.group]
            iterative = self.protocol.name == "paper" and self.baseline is None
            present = [made[index] for index in arrival.present] if iterative else []
            for group in groups:
                names = [name(index) for index in group]
                known = [i for i in (*arrival.known, *arrival.group) if i not in group]
                others = [name(index) for index in known]
                keep = self.protocol.retain(context.catalogue, names, others)
                made |= self._trained(context, group, keep if self.retains else (), present)
        return made

    def _trained(
        self, context: Context, group: Sequence[int], keep: Sequence[str], after: Sequence[Change]
    ) -> dict[int, Change]:
        """The changes of one training: read from the context's folder, or made and saved there."""
        names, base = map(context.evaluated.name, group), context.backbone.fingerprint
        concepts = [self.protocol.forget(context.catalogue, name) for name in names]
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
            trainer = Trainer(checkpoint=checkpoint, progress=False)
            options = {"seed": context.seed, "trainer": trainer}
            if self.baseline is None:
                about = (context.backbone, concepts, keep, self.settings)
                found = erase(*about, after=after, **options)
            else:
                about = (context.backbone, concepts[0], self.settings)
                found = [self.baseline.erase(*about, keep=keep, **options)]
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
