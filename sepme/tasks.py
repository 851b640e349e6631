"""Erase concepts into a folder of files: what is done is skipped, what was killed goes on."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepme.artefact import canonical_json
from sepme.concept import Catalogue, Concept, refuse_overlap
from sepme.delta import ConceptDelta
from sepme.erasure import ErasureSettings, closed_form, erase_jointly, recorded_settings
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.nullspace import refuse_meaningless
from sepme.report import writable_folder
from sepme.training import Checkpoint


@dataclass(frozen=True)
class Job:
    """Concepts that are erased in one training, and how."""

    concepts: tuple[Concept, ...]
    keep: tuple[str, ...]
    """Prompts that none of them may change."""
    settings: ErasureSettings
    seed: int = 0
    closed: bool = False
    """In closed form instead of training; of the settings only the tolerances count then."""
    after: tuple[ConceptDelta, ...] = ()
    """Deltas that are on already, and stay as they are."""

    @property
    def slug(self) -> str:
        return "+".join(slug(concept.name) for concept in self.concepts)

    def file(self, concept: Concept, folder: Path) -> Path:
        return folder / f"{slug(concept.name)}.safetensors"

    def run(self, backbone: Backbone, checkpoint: Checkpoint, progress: bool) -> list[ConceptDelta]:
        if self.closed:
            only = self.concepts[0]
            return [closed_form(backbone, only, self.keep, **self._closed_options())]
        return erase_jointly(
            backbone,
            self.concepts,
            self.keep,
            self.settings,
            seed=self.seed,
            after=self.after,
            checkpoint=checkpoint,
            progress=progress,
        )

    def made(self, delta: ConceptDelta, concept: Concept, backbone: Backbone) -> bool:
        """Whether a delta is what this job would make of the concept, versions aside."""
        found = delta.provenance
        return (
            (found.base, found.concept) == (backbone.fingerprint, concept.name)
            and found.forgotten == concept.prompts
            and set(found.kept) == self._kept(concept)
            and found.after == tuple(earlier.digest for earlier in self.after)
            and dict(found.settings) == self._recorded(backbone)
            and found.seed == (0 if self.closed else self.seed)
        )

    def _kept(self, concept: Concept) -> set[str]:
        if self.settings.parametrisation == "full":
            return set()
        others = {p for other in self.concepts for p in other.prompts}
        earlier = {p for delta in self.after for p in delta.forgotten}
        return {"", *self.keep} | ((others | earlier) - set(concept.prompts))

    def _closed_options(self) -> dict[str, Any]:
        names = ("keep_rtol", "concept_rtol", "method")
        return {name: getattr(self.settings, name) for name in names} | {
            "ridge": 1e-3,
            "keep_weight": 1.0,
        }

    def _recorded(self, backbone: Backbone) -> dict[str, Any]:
        """The settings as they come back from the provenance, where tuples are lists."""
        if self.closed:
            return self._closed_options() | {"eraser": "closed_form"}
        settings = recorded_settings(backbone, self.concepts, self.settings)
        return json.loads(canonical_json(settings))


def plan(
    concepts: Sequence[Concept],
    keep: Sequence[str],
    catalogue: Catalogue | None,
    settings: ErasureSettings,
    *,
    seed: int = 0,
    joint: bool = False,
    closed: bool = False,
    after: Sequence[ConceptDelta] = (),
) -> list[Job]:
    """The jobs that erase these concepts: one each, or one for all of them jointly.

    What is kept is `keep`, all else that the catalogue knows, and the other concepts named, so
    that every delta can be composed with every other.

    Raises:
        SepmeError: options that contradict one another, a prompt both kept and forgotten.
    """
    full = settings.parametrisation == "full"
    if full and keep:
        raise SepmeError("The undecoupled preset keeps nothing: leave out what is to be kept.")
    if closed and (joint or after or full):
        raise SepmeError(
            "The closed form erases concepts one by one, each on the original model: leave out "
            "--joint, --after and the undecoupled preset."
        )
    if joint and len(concepts) < 2:
        raise SepmeError("Erasing jointly takes two concepts or more: name another.")
    files = [slug(concept.name) for concept in concepts]
    if len(set(files)) < len(files):
        raise SepmeError("Two of the concepts would be written to one file: rename one of them.")
    for concept in concepts:
        refuse_overlap(concept, keep)
    groups = [tuple(concepts)] if joint else [(concept,) for concept in concepts]
    return [
        Job(
            group,
            () if full else _keep(group, concepts, keep, catalogue),
            settings,
            seed,
            closed,
            tuple(after),
        )
        for group in groups
    ]


def _keep(
    group: Sequence[Concept],
    concepts: Sequence[Concept],
    keep: Sequence[str],
    catalogue: Catalogue | None,
) -> tuple[str, ...]:
    known = catalogue.kept_prompts(group) if catalogue is not None else ("",)
    others = [prompt for concept in concepts for prompt in concept.prompts]
    forgotten = {prompt for concept in group for prompt in concept.prompts}
    return tuple(dict.fromkeys(p for p in (*known, *others, *keep) if p not in forgotten))


def erase_into(
    folder: Path,
    jobs: Sequence[Job],
    backbone: Backbone,
    *,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Run the jobs, one file a concept. Killed and started again, it ends in the same bytes.

    Raises:
        SepmeError: no writable folder, a file of another delta in the way, a concept of which the
            model knows no word, or an eraser's.
    """
    folder = writable_folder(folder)
    for concept in (concept for job in jobs for concept in job.concepts):
        refuse_meaningless(backbone, concept)  # all of them before the first is trained
    todo = [job for job in jobs if not _finished(job, folder, backbone, overwrite)]
    for job in jobs:
        checkpoint = Checkpoint(folder / f".{job.slug}.checkpoint.safetensors")
        paths = [job.file(concept, folder) for concept in job.concepts]
        if job not in todo:
            say(f"Already erased with these settings: {', '.join(map(str, paths))}")
        else:
            for path, delta in zip(paths, job.run(backbone, checkpoint, progress), strict=True):
                delta.save(path)
                say(f"{path}: rank {delta.rank}, {len(delta.kept)} prompts kept")
        checkpoint.remove()
    return [job.file(concept, folder) for job in jobs for concept in job.concepts]


def _finished(job: Job, folder: Path, backbone: Backbone, overwrite: bool) -> bool:
    """Whether all files of a job are there. Refuses to replace what something else made."""
    finished = []
    for concept in job.concepts:
        path = job.file(concept, folder)
        same = path.exists() and _holds(path, job, concept, backbone)
        if path.exists() and not same and not overwrite:
            raise SepmeError(
                f"{path} holds something that other settings made: choose another folder with "
                "--out, or replace it with --overwrite."
            )
        finished.append(same)
    return all(finished)


def _holds(path: Path, job: Job, concept: Concept, backbone: Backbone) -> bool:
    try:
        return job.made(ConceptDelta.load(path), concept, backbone)
    except SepmeError:  # damaged, or not a delta at all
        return False


def slug(name: str) -> str:
    """A file name for a concept: `Van Gogh` gives `van-gogh`."""
    return re.sub(r"[^\w]+", "-", name.lower()).strip("-") or "concept"


def shipped_deltas(backbone: Backbone) -> dict[str, ConceptDelta]:
    """The deltas that lie beside a model, in its folder `deltas`, by the concept's name.

    `sepme erase "neon, boat" --out MODEL/deltas` puts more of them there. A model that brings none,
    like one from the hub, gives an empty dictionary.

    Raises:
        SepmeError: one is damaged or belongs to another model.
    """
    source = backbone.pipe.name_or_path  # empty for a pipeline that was built in memory
    files = sorted((Path(source) / "deltas").glob("*.safetensors")) if source else []
    deltas = [ConceptDelta.load(file, base=backbone.fingerprint) for file in files]
    return {delta.concept: delta for delta in deltas}
