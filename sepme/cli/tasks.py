"""Erase concepts into a folder of files: what is done is skipped, what was killed goes on."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sepme._checks import choose
from sepme.artefact import canonical_json, same_model, writable_folder
from sepme.concept import Catalogue, Concept, refuse_overlap, slug
from sepme.delta import ConceptDelta
from sepme.erasure import ErasureSettings, erase, recorded_settings, retain_set
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.nullspace import refuse_meaningless
from sepme.scenes.protocol import PROTOCOLS
from sepme.training import Trainer

__all__ = ["erase_into", "plan"]


@dataclass(frozen=True)
class ErasureTask:
    """Concepts that are erased in one training, and how."""

    concepts: tuple[Concept, ...]
    keep: tuple[str, ...]
    """The retain set, besides what the concepts' own prompts ask for."""
    settings: ErasureSettings
    seed: int
    after: tuple[ConceptDelta, ...]
    """Deltas that are on already, and stay as they are."""

    def files(self, folder: Path) -> list[Path]:
        """Where its deltas go, one file a concept."""
        return [folder / f"{slug(concept.name)}.safetensors" for concept in self.concepts]

    def made(self, delta: ConceptDelta, concept: Concept, model: Backbone) -> bool:
        """Whether a delta is what this task would make of the concept, versions aside."""
        found = delta.provenance
        kept = {"", *retain_set(concept, self.concepts, self.keep, self.after)}
        settings = recorded_settings(model, self.concepts, self.settings)
        return (
            same_model(found.base, model.fingerprint)
            and found.concept == concept.name
            and found.forgotten == concept.prompts
            and set(found.kept) == (set() if self.settings.parametrisation == "full" else kept)
            and found.after == tuple(earlier.digest for earlier in self.after)
            and found.settings == json.loads(canonical_json(settings))  # as it is read from a file
            and found.seed == self.seed
        )


def plan(
    concepts: Sequence[Concept],
    keep: Sequence[str],
    catalogue: Catalogue | None,
    settings: ErasureSettings,
    *,
    protocol: str = "catalogue",
    seed: int = 0,
    joint: bool = False,
    after: Sequence[ConceptDelta] = (),
) -> list[ErasureTask]:
    """The tasks that erase these concepts: one each, or one for all of them jointly.

    The retain set is `keep`, what the protocol retains of the catalogue, and the other concepts
    named, so that every delta can be composed with every other.

    Raises:
        SepmeError: options that contradict one another, a prompt both kept and forgotten.
    """
    choose(PROTOCOLS, protocol=protocol)
    how = PROTOCOLS[protocol]
    if catalogue is not None:
        concepts = [how.forget(catalogue, concept.name) for concept in concepts]
    full = settings.parametrisation == "full"
    if full and keep:
        raise SepmeError("The undecoupled preset keeps nothing: leave out what is to be kept.")
    if joint and len(concepts) < 2:
        raise SepmeError("Erasing jointly takes two concepts or more: name another.")
    if len({slug(concept.name) for concept in concepts}) < len(concepts):
        raise SepmeError("Two of the concepts would be written to one file: rename one of them.")
    for concept in concepts:
        refuse_overlap(concept, keep)
    named, tasks = _prompts(concepts), []
    for group in [tuple(concepts)] if joint else [(concept,) for concept in concepts]:
        own = [concept.name for concept in group]
        known = how.retain(catalogue, own, ()) if catalogue is not None else ()
        retained = dict.fromkeys([] if full else ["", *known, *named, *keep])
        forgotten = set(_prompts(group))
        kept = tuple(prompt for prompt in retained if prompt not in forgotten)
        tasks.append(ErasureTask(group, kept, settings, seed, tuple(after)))
    return tasks


def _prompts(concepts: Iterable[Concept]) -> list[str]:
    return [prompt for concept in concepts for prompt in concept.prompts]


def erase_into(
    folder: Path,
    tasks: Sequence[ErasureTask],
    model: Backbone,
    *,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Run the tasks, one file a concept. Killed and started again, it ends in the same bytes.

    That is so with the same number of threads, see `sepme.training`.

    Raises:
        SepmeError: no writable folder, a file of another delta in the way, a concept of which the
            model knows no word, or what `erase` refuses.
    """
    folder = writable_folder(folder)
    for concept in (concept for task in tasks for concept in task.concepts):
        refuse_meaningless(model, concept)  # all of them before the first is trained
    finished = [_finished(task, folder, model, overwrite) for task in tasks]
    for task, done in zip(tasks, finished, strict=True):
        files = task.files(folder)
        checkpoint = folder / f".{'+'.join(file.stem for file in files)}.checkpoint"
        if done:
            say(f"Already erased with these settings: {', '.join(map(str, files))}")
        else:
            deltas = erase(
                model,
                task.concepts,
                task.keep,
                task.settings,
                seed=task.seed,
                after=task.after,
                trainer=Trainer(checkpoint=checkpoint, progress=progress),
            )
            for file, delta in zip(files, deltas, strict=True):
                delta.save(file)
                say(f"{file}: rank {delta.rank}, {len(delta.kept)} prompts kept")
        checkpoint.unlink(missing_ok=True)
    return [file for task in tasks for file in task.files(folder)]


def _finished(task: ErasureTask, folder: Path, model: Backbone, overwrite: bool) -> bool:
    """Whether all files of a task are there. Refuses to replace what something else made."""
    finished = []
    for concept, path in zip(task.concepts, task.files(folder), strict=True):
        try:
            same = task.made(ConceptDelta.load(path), concept, model)
        except SepmeError:  # missing, damaged, or not a delta at all
            same = False
        if path.exists() and not same and not overwrite:
            raise SepmeError(
                f"{path} holds something that other settings made: choose another folder with "
                "--out, or replace it with --overwrite."
            )
        finished.append(same)
    return all(finished)
