"""The paper's own numbers (SD v1.4), beside which ours are drawn; see `data/paper`."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sepme._data import shipped

PAPER = shipped("paper", "published_results.csv")
LABEL = "published, SD v1.4"
#: (table, scene, time) whose SepME rows repeat another row of the paper.
REPEATED = {("3", "Scene4", "t5"), ("6", "Scene4", "t5")}


@dataclass(frozen=True)
class Published:
    """One printed cell."""

    table: str
    kind: str
    method: str
    """As printed: "SepME", "ESD50", "FMN[50,50,50,30,50,50]", "original model" ..."""
    scene: str
    time: str
    index: int
    """Concept, 0 to 8."""
    concept: str
    role: str
    fid: float | None
    acc: float | None
    """Share from 0 to 1."""
    lpips: float | None
    note: str
    doubtful: bool
    """A row that repeats another one: not to be taken for a result."""


@cache
def published(path: Path = PAPER) -> tuple[Published, ...]:
    """All printed cells, in the file's order."""
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(_read(row) for row in csv.DictReader(file))


def family(method: str) -> str:
    """The method without its iterations: "ESD[100,100,50,75,100,100]" and "ESD50" are "ESD"."""
    return method.split("[")[0].rstrip("0123456789")


def _read(row: dict[str, str]) -> Published:
    number = {name: float(row[name]) if row[name] else None for name in ("fid", "lpips")}
    acc = float(row["acc_percent"]) / 100 if row["acc_percent"] else None
    place = (row["table"], row["scene"], row["time"])
    return Published(
        table=row["table"],
        kind=row["kind"],
        method=row["method"],
        scene=row["scene"],
        time=row["time"],
        index=int(row["concept_index"]),
        concept=row["concept"],
        role=row["role"],
        fid=number["fid"],
        acc=acc,
        lpips=number["lpips"],
        note=row["note"],
        doubtful=row["method"] == "SepME" and place in REPEATED,
    )
