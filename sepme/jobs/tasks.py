"""Erase concepts into a folder of files: what is done is skipped, what was killed goes on."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from sepme._checks import choose, texts
from sepme.artefact import canonical_json, digest_of, same_model, writable_folder
from sepme.concept import Catalogue, Concept, refuse_overlap, slug
from sepme.delta import ConceptDelta
from sepme.erasure import ErasureSettings, checked_group, erase, recorded_settings, retain_set
from sepme.errors import SepmeError, warn
from sepme.jobs.forecast import Forecast, duration
from sepme.model import Backbone
from sepme.nullspace import refuse_meaningless
from sepme.scenes.protocol import PROTOCOLS
from sepme.training import Trainer

__all__ = ["Process", "erase_into", "plan"]

#: From so many weights times images in a pass on, what an erasure takes is told before: the
#: Atelier's takes seconds, and less time than the measurement.
LARGE = 2e8


@dataclass(frozen=True)
class Process:
    """Which of the processes this is that torchrun or accelerate started."""

    rank: int = 0
    of: int = 1
    local: int = 0
    """Its rank on its own machine."""

    @classmethod
    def current(cls) -> "Process":
        """What the environment says: RANK, WORLD_SIZE and LOCAL_RANK.

        Raises:
            SepmeError: numbers that are none, or contradict one another.
        """
        names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
        found = {name: os.environ.get(name, str(usual)) for name, usual in names.items()}
        if all(text.isdecimal() for text in found.values()):
            process = cls(*map(int, found.values()))
            if process.rank < process.of:
                return process
        said = ", ".join(f"{name}={text}" for name, text in found.items())
        raise SepmeError(
            f"The environment says {said}, which numbers no process: let torchrun or accelerate "
            "set these, or unset them."
        )


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
            and (found.forgotten, found.anchors) == (concept.prompts, concept.anchors)
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
    """The tasks that erase these concepts: one each, or one for all that are erased at once.

    The retain set is `keep`, what the protocol retains of the catalogue, and the other concepts
    named, so that every delta can be composed with every other.

    Raises:
        SepmeError: options that contradict one another, a prompt both kept and forgotten.
    """
    choose(PROTOCOLS, protocol=protocol)
    how, concepts, keep = PROTOCOLS[protocol], [*concepts], texts(keep)
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
    at_once = joint or settings.iterations == 0  # closed forms share what they compute
    for group in [tuple(concepts)] if at_once else [(concept,) for concept in concepts]:
        own = [concept.name for concept in group]
        known = how.retain(catalogue, own, ()) if catalogue is not None else ()
        # Without the catalogue's own "", which would pass for a wish to keep nothing else.
        retained = dict.fromkeys([] if full else [*filter(None, known), *named, *keep])
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
    micro_batch: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    say: Callable[[str], None] = print,
    process: Process | None = None,
) -> list[Path]:
    """Run the tasks, one file a concept. Killed and started again, it ends in the same bytes.

    That is so with the same number of threads, see `sepme.training`. Of n processes each takes
    every n-th task, and the first shows how many concepts all of them have finished. A task that
    another process is at, perhaps on another machine that shares the folder, is left to the end,
    and is skipped if it is finished then.

    Returns:
        The files of all tasks, of which other processes may be at some.

    Raises:
        SepmeError: no writable folder, a file of another delta in the way, a concept of which the
            model knows no word, or what `erase` refuses.

    Warns:
        SepmeWarning: a training that would not fit into the memory that is free.
    """
    folder, process = writable_folder(folder), process or Process()
    missing = _missing(tasks, folder, model, overwrite)  # all are checked before one is trained
    if process.rank == 0:
        _foretell(missing, model, micro_batch, say)
    files = [file for task in tasks for file in task.files(folder)]
    progress, together = progress and process.rank == 0, process.of > 1
    with tqdm(total=len(files), desc="concepts", disable=not (progress and together)) as bar:

        def count(_: object = None) -> None:
            bar.update(sum(file.exists() for file in files) - bar.n)

        def run(task: ErasureTask, *, wait: bool) -> bool:
            checkpoint = _hidden(folder, task, "checkpoint")
            trainer = Trainer(count, checkpoint, progress=progress and not together)
            try:
                with _claimed(_hidden(folder, task, "lock"), wait):
                    if _finished(task, folder, model, overwrite):
                        say(f"Already erased with these settings: {_listed(task.files(folder))}")
                    else:
                        _erase(task, folder, model, trainer, micro_batch, say)
                    checkpoint.unlink(missing_ok=True)
            except Timeout:
                return False
            count()
            return True

        own = tasks[process.rank :: process.of]
        for task in [task for task in own if not run(task, wait=False)]:
            say(f"Waiting for the process that is at {_listed(task.files(folder))}")
            run(task, wait=True)
    return files


def _missing(
    tasks: Sequence[ErasureTask], folder: Path, model: Backbone, overwrite: bool
) -> list[ErasureTask]:
    """The tasks that are not finished; what cannot be erased or written is refused."""
    said = []
    for task in tasks:
        for concept in checked_group(model, task.concepts, task.after)[0]:
            refuse_meaningless(model, concept)
            said.append((concept, retain_set(concept, task.concepts, task.keep, task.after)))
    model.refuse_unclear(*said)
    return [task for task in tasks if not _finished(task, folder, model, overwrite)]


def _erase(
    task: ErasureTask,
    folder: Path,
    model: Backbone,
    trainer: Trainer,
    micro_batch: int | None,
    say: Callable[[str], None],
) -> None:
    how = {"seed": task.seed, "after": task.after, "micro_batch": micro_batch, "trainer": trainer}
    deltas = erase(model, task.concepts, task.keep, task.settings, **how)
    for file, delta in zip(task.files(folder), deltas, strict=True):
        delta.save(file)
        say(f"{file}: rank {delta.rank}, {len(delta.kept)} prompts kept")


def _hidden(folder: Path, task: ErasureTask, what: str) -> Path:
    """Where a task's checkpoint or lock is, as long as there is one."""
    first, *others = (file.stem for file in task.files(folder))
    return folder / f".{first}{f'+{digest_of(others)[:8]}' if others else ''}.{what}"


def _listed(files: Iterable[Path]) -> str:
    return ", ".join(map(str, files))


@contextmanager
def _claimed(lock: Path, wait: bool) -> Iterator[None]:
    """Within the block no other process is at what is locked; a killed one's lock is free.

    Raises:
        Timeout: another is at it, and is not to be waited for.
    """
    missing = [folder for folder in (lock.parent, *lock.parent.parents) if not folder.exists()]
    try:
        with FileLock(lock, timeout=-1 if wait else 0):  # which makes the folders
            try:
                yield
            finally:  # whoever opened the file before finds the work done
                lock.unlink(missing_ok=True)
    finally:
        for folder in missing:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _foretell(
    tasks: Sequence[ErasureTask],
    model: Backbone,
    micro_batch: int | None,
    say: Callable[[str], None],
) -> None:
    """Say how long all tasks take, and warn where they do not fit; of a small model nothing."""
    weights = sum(parameter.numel() for parameter in model.unet.parameters())
    if not tasks or weights * tasks[0].settings.batch < LARGE:
        return
    joint = len(tasks[0].concepts)
    forecast = Forecast(model, tasks[0].settings, micro_batch, joint)
    if warning := forecast.warning():
        warn(warning)
    if forecast.seconds:
        whole = duration(forecast.seconds * len(tasks) * joint)
        say(f"{whole} at most on this device alone: for a concept, {forecast.passes()}")


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
