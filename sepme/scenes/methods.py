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
from sepme.concept import Catalogue, Concept, slug
from sepme.delta import ConceptDelta, DenseDelta
from sepme.erasure import PRESETS, erase
from sepme.model import Backbone
from sepme.scenes.protocol import WATERMARK, EvaluatedConcepts, arrivals
from sepme.training import Trainer

__all__ = ["METHODS", "Context"]

Change = ConceptDelta | DenseDelta


@dataclass(frozen=True)
class Context:
    """The model, the concepts and the retain sets with which every method makes its changes."""

    backbone: Backbone
    catalogue: Catalogue
    evaluated: EvaluatedConcepts
    folder: Path
    """Where changes are kept from run to run."""
    seed: int = 0

    def concept(self, index: int) -> Concept:
        return self.catalogue[self.evaluated.name(index)]

    def retain_all(self, group: Sequence[int]) -> tuple[str, ...]:
        """The empty prompt and every prompt of the catalogue that names none of these concepts."""
        return self.catalogue.kept_prompts([self.concept(index) for index in group])

    def retain_known(self, index: int, known: Sequence[int]) -> tuple[str, ...]:
        """The paper's retain set: the watermark's prompts and those of the known concepts."""
        own = self.concept(index).prompts
        others = [p for i in (WATERMARK, *known) for p in self.concept(i).prompts if p not in own]
        return tuple(dict.fromkeys(others))


@dataclass(frozen=True)
class Method:
    """One row of the comparison: SepME by default, or a baseline."""

    name: str
    title: str
    """What tables and figures call it."""
    settings: Any
    retain: str = "all"
    """The retain set: "all" the rest of the catalogue (the library's default), "known" what is
    requested with the concept or before it (the paper's), or "none"."""
    joint: bool = False
    """One training for all that are requested together (SepME-dagger), not one a concept."""
    baseline: Baseline | None = None

    def changes(self, context: Context, scene: str) -> dict[int, Change]:
        """The change of each concept that the scene ever erases, made now or in an earlier run.

        Where everything is retained, the order of the requests does not matter. Otherwise a delta
        is trained with the deltas on that are on when it is requested.
        """
        made: dict[int, Change] = {}
        for arrival in arrivals(scene):
            groups = [arrival.group] if self.joint else [(index,) for index in arrival.group]
            present = [made[index] for index in arrival.present]
            for group in groups:
                if self.retain == "known":
                    keep = context.retain_known(group[0], arrival.others(group[0]))
                    made |= self._trained(context, group, keep, present)
                else:
                    keep = context.retain_all(group) if self.retain == "all" else ()
                    made |= self._trained(context, group, keep, ())
        return made

    def _trained(
        self, context: Context, group: Sequence[int], keep: Sequence[str], after: Sequence[Change]
    ) -> dict[int, Change]:
        """The changes of one training: read from the context's folder, or made and saved there."""
        concepts, base = [context.concept(index) for index in group], context.backbone.fingerprint
        content = {
            "baseline": self.baseline and self.baseline.name,
            "concepts": [concept.name for concept in concepts],
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


_DEFAULT = PRESETS["default"]
_RESCALED = PRESETS["paper_rescaled"]
#: The methods of the paper's comparison, and two closed forms beyond it, by the name one types.
METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("sepme", "SepME", _DEFAULT),
        Method("sepme-unaware", "SepME, paper's retain set", _DEFAULT, retain="known"),
        Method("sepme-joint", "SepME, jointly", _DEFAULT, joint=True),
        Method("sepme-regularised", "SepME, regularised", replace(_DEFAULT, lam=1e-4)),
        Method("sepme-paper", "SepME, published rates", _RESCALED, retain="known"),
        *(
            Method(
                *(b.name, b.title, b.preset("atelier")),
                retain="all" if b.uses_keep else "none",
                baseline=b,
            )
            for b in BASELINES.values()
            if "atelier" in b.presets
        ),
    )
}
