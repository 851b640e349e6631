"""The methods of the comparison: each makes a change for one concept, and puts several on at once.

SepME's increments are composed. A baseline's change is made for its concept alone; for several
concepts the changes are added up, as the paper does it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sepme.artefact import digest_of
from sepme.baselines import BASELINES, Baseline
from sepme.concept import Catalogue, Concept, slug
from sepme.delta import ConceptDelta, DenseDelta
from sepme.erasure import PRESETS, ErasureSettings, erase
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.scenes.protocol import WATERMARK, Cast, arrivals
from sepme.training import Trainer

Change = ConceptDelta | DenseDelta


@dataclass(frozen=True)
class Setting:
    """What a method is told about the world before it makes its changes."""

    backbone: Backbone
    catalogue: Catalogue
    cast: Cast
    folder: Path
    """Where changes are kept from run to run."""
    seed: int = 0
    progress: bool = True

    def concept(self, index: int) -> Concept:
        return self.cast.concept(index, self.catalogue)

    def everything(self, index: int) -> tuple[str, ...]:
        """The empty prompt and every prompt of the catalogue that does not name this concept."""
        return self.catalogue.kept_prompts([self.concept(index)])

    def prompts(self, indices: Sequence[int]) -> tuple[str, ...]:
        """All prompts of these concepts, each once."""
        return tuple(dict.fromkeys(p for i in indices for p in self.concept(i).prompts))

    def kept(self, index: int, known: Sequence[int]) -> tuple[str, ...]:
        """What a change of this concept is told to keep: the watermark and the known others."""
        own = set(self.concept(index).prompts)
        return tuple(p for p in self.prompts((WATERMARK, *known)) if p not in own)


@dataclass(frozen=True)
class Method:
    """One row of the comparison."""

    name: str
    title: str
    """What tables and figures call it."""
    settings: Any
    make: Callable[[Setting, Any, str], Mapping[int, Change]]
    """(world, settings, scene) -> the change of each concept that the scene ever erases."""

    def changes(self, world: Setting, scene: str) -> Mapping[int, Change]:
        """The changes of a scene's concepts, made now or found from an earlier run."""
        return self.make(world, self.settings, scene)

    def describe(self) -> dict[str, Any]:
        """Its settings, for the manifest."""
        return {"title": self.title, "settings": asdict(self.settings)}


# ------------------------------------------------------------------ SepME
def aware(world: Setting, settings: ErasureSettings, scene: str) -> dict[int, ConceptDelta]:
    """Each concept by itself, told to keep all that the catalogue knows.

    This is what the library does by default, and more than the paper does: the concepts that are
    never erased are known. As everybody keeps everybody, nobody need know who comes later.
    """
    return {
        index: _erased(world, settings, index, world.everything(index), ())
        for arrival in arrivals(scene)
        for index in arrival.group
    }


def unaware(world: Setting, settings: ErasureSettings, scene: str) -> dict[int, ConceptDelta]:
    """Each concept by itself, told of those that arrive with it and that came before.

    This is the paper's protocol: nobody speaks of the concepts that are never erased.
    """
    made: dict[int, ConceptDelta] = {}
    for arrival in arrivals(scene):
        before = tuple(made[index] for index in arrival.present)
        for index in arrival.group:
            keep = world.kept(index, arrival.others(index))
            made[index] = _erased(world, settings, index, keep, before)
    return made


def jointly(world: Setting, settings: ErasureSettings, scene: str) -> dict[int, ConceptDelta]:
    """All that arrive together in one training (SepME-dagger), told to keep all that is known."""
    made: dict[int, ConceptDelta] = {}
    for arrival in arrivals(scene):
        concepts = [world.concept(index) for index in arrival.group]
        keep = world.catalogue.kept_prompts(concepts)
        key = _key(settings, keep, (), world, *(concept.name for concept in concepts))
        files = [_file(world, f"joint-{slug(concept.name)}", key) for concept in concepts]
        if all(file.is_file() for file in files):
            deltas = [ConceptDelta.load(file, base=world.backbone.fingerprint) for file in files]
        else:
            checkpoint = world.folder / f"joint-{key}.checkpoint"
            deltas = erase(
                *(world.backbone, concepts, keep, settings),
                seed=world.seed,
                trainer=Trainer(checkpoint=checkpoint, progress=world.progress),
            )
            for file, delta in zip(files, deltas, strict=True):
                delta.save(file)
            checkpoint.unlink(missing_ok=True)
        made |= dict(zip(arrival.group, deltas, strict=True))
    return made


def _erased(
    world: Setting,
    settings: ErasureSettings,
    index: int,
    keep: tuple[str, ...],
    before: tuple[ConceptDelta, ...],
) -> ConceptDelta:
    concept = world.concept(index)
    file = _file(world, slug(concept.name), _key(settings, keep, before, world))
    if file.is_file():
        return ConceptDelta.load(file, base=world.backbone.fingerprint)
    checkpoint = file.with_suffix(".checkpoint")
    delta = erase(
        *(world.backbone, concept, keep, settings),
        seed=world.seed,
        after=before,
        trainer=Trainer(checkpoint=checkpoint, progress=world.progress),
    )
    delta.save(file)
    checkpoint.unlink(missing_ok=True)
    return delta


def _file(world: Setting, name: str, key: str) -> Path:
    return world.folder / f"{name}-{key}.safetensors"


def _key(
    settings: Any, keep: Sequence[str], before: Sequence[ConceptDelta], world: Setting, *more: str
) -> str:
    """What decides a change besides the concept, in twelve digits."""
    content = {
        "settings": asdict(settings),
        "keep": sorted(keep),
        "after": [delta.digest for delta in before],
        "seed": world.seed,
        "base": world.backbone.fingerprint,
        "more": more,
    }
    return digest_of(content)[:12]


# ------------------------------------------------------------------ baselines
def _separately(baseline: Baseline) -> Callable[[Setting, Any, str], dict[int, DenseDelta]]:
    """Each concept by itself; a method that takes prompts to keep is told as much as SepME."""

    def make(world: Setting, settings: Any, scene: str) -> dict[int, DenseDelta]:
        made: dict[int, DenseDelta] = {}
        for arrival in arrivals(scene):
            for index in arrival.group:
                keep = world.everything(index) if baseline.uses_keep else ()
                made[index] = _changed(world, baseline, settings, index, keep)
        return made

    return make


def _changed(
    world: Setting, baseline: Baseline, settings: Any, index: int, keep: tuple[str, ...]
) -> DenseDelta:
    concept = world.concept(index)
    key = _key(settings, keep, (), world, baseline.name)
    file = _file(world, f"{baseline.name}-{slug(concept.name)}", key)
    if file.is_file():
        return DenseDelta.load(file, base=world.backbone.fingerprint)
    checkpoint = file.with_suffix(".checkpoint")
    change = baseline.erase(
        *(world.backbone, concept, settings),
        keep=keep,
        seed=world.seed,
        trainer=Trainer(checkpoint=checkpoint, progress=world.progress),
    )
    change.save(file)
    checkpoint.unlink(missing_ok=True)
    return change


#: The methods of the paper's comparison, and two closed forms beyond it, by the name one types.
METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("sepme", "SepME", PRESETS["default"], aware),
        Method("sepme-unaware", "SepME, told of the erased only", PRESETS["default"], unaware),
        Method("sepme-joint", "SepME, jointly", PRESETS["default"], jointly),
        Method(
            "sepme-regularised",
            "SepME, regularised",
            replace(PRESETS["default"], lam=1e-4),
            aware,
        ),
        Method("sepme-paper", "SepME, published rates", PRESETS["paper_rescaled"], unaware),
        *(
            Method(b.name, b.title, b.preset("atelier"), _separately(b))
            for b in BASELINES.values()
            if "atelier" in b.presets
        ),
    )
}


def method(name: str) -> Method:
    """The method of this name.

    Raises:
        SepmeError: there is none.
    """
    if name not in METHODS:
        raise SepmeError(f"Method '{name}' is unknown: choose one of {', '.join(METHODS)}.")
    return METHODS[name]
