"""The measured and the published tables as DataFrames, their means by role, and their Markdown.

Both tables have one row a cell: a method at one moment of a scene, and one concept, with the same
columns `kind`, `method`, `scene`, `time`, `concept_index`, `concept`, `role`, `acc`, `lpips` and
`fid`. A share lies from 0 to 1; NaN was not measured, or not printed.
"""

from collections.abc import Iterable
from io import StringIO
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from sepme._checks import choose
from sepme._data import shipped
from sepme.artefact import read_text, write_atomically
from sepme.errors import SepmeError
from sepme.scenes.images import MEASURES
from sepme.scenes.methods import METHODS
from sepme.scenes.protocol import (
    ALONE,
    EVALUATED,
    NONE_RETAINED,
    PROTOCOLS,
    ROLES,
    SCENES,
    SEAL,
    WATERMARK,
    moments,
)

__all__ = [
    "MEASURED",
    "PUBLISHED",
    "RESULTS",
    "complete",
    "family",
    "published",
    "read_table",
    "role_means",
    "role_table",
]

RESULTS = shipped("results")
#: Labels of the two sides in figures and tables.
MEASURED = "measured, Atelier"
PUBLISHED = "published, SD v1.4"

#: A row's address; with `cell`, what its images were.
ADDRESS = ["kind", "method", "scene", "time", "concept_index", "concept", "role", "erased"]
ESTIMATES = [f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")]
NUMBERS = [*ESTIMATES, "identical", "images", "norm"]
COLUMNS = [*ADDRESS, *NUMBERS, "cell"]
#: What the brackets behind a method mean.
LEGEND = " ".join([*(protocol.says for protocol in PROTOCOLS.values()), NONE_RETAINED])
#: Printed rows that repeat another row of the paper: method, table, scene and time.
_REPEATED = [("SepME", table, "Scene4", "t5") for table in ("3", "6")]
#: A printed method without its iterations -> its name here, if it has one, and its retain set.
_PRINTED = {
    "original model": (None, "none"),
    "SepME": ("sepme-faithful@paper", "paper"),
    "SepME without weight regularisation": (None, "paper"),
    "ESD": ("esd-x", "none"),
    "AbConcept": ("abconcept", "none"),
    "FMN": ("fmn", "none"),
}


def read_table(table: str | Path) -> DataFrame:
    """The rows of a table of scenes.

    Raises:
        SepmeError: no such file, one that is no table of scenes, or one with a damaged line.
    """
    remedy = "make it with 'sepme scenes run'"
    try:
        rows = pd.read_csv(
            StringIO(read_text(table)), dtype=str, keep_default_na=False, skip_blank_lines=False
        )
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error).split("C error: ")[-1].strip()
        raise SepmeError(f"{table} cannot be read ({reason}): {remedy}.") from error
    if list(rows) != COLUMNS:
        raise SepmeError(f"{table} is no table of scenes: {remedy}.")
    numbers = rows[NUMBERS].apply(pd.to_numeric, errors="coerce").astype(float)
    if (damaged := _damaged(rows, numbers)).any():
        raise SepmeError(
            f"Line {damaged.idxmax() + 2} of {table} is damaged: delete it, and run the scenes "
            "again."
        )
    return rows.assign(**numbers).astype({"concept_index": int})


def _damaged(rows: DataFrame, numbers: DataFrame) -> Series:
    """Which rows hold a word or a number that no run writes, or repeat the place of another."""
    places = {
        (kind, scene, moment.time, str(index), name, moment.role(index))
        for kind, evaluated in EVALUATED.items()
        for scene in (*SCENES, *ALONE)
        for moment in moments(scene)
        for index, name in enumerate((*evaluated.names, SEAL))
    }
    place = ["kind", "scene", "time", "concept_index", "concept", "role"]
    shares = ["acc", "acc_low", "acc_high", "identical"]
    low, high = (numbers[[f"{m}{end}" for m in MEASURES]].to_numpy() for end in ("_low", "_high"))
    signed = [name for name in NUMBERS if name.startswith("kid")]  # only KID can be negative
    return (
        ~pd.MultiIndex.from_frame(rows[place]).isin(places)
        | rows.duplicated(["method", *place])
        | ~rows["method"].isin([*METHODS])
        | (rows["cell"] == "")  # the line was cut off
        | (numbers.isna() & (rows[NUMBERS] != "")).any(axis=1)
        | np.isinf(numbers).any(axis=1)
        | (numbers.drop(columns=signed) < 0).any(axis=1)
        | (numbers[shares] > 1).any(axis=1)
        | (low > high).any(axis=1)
    )


def write_table(table: Path, rows: DataFrame) -> Path:
    """Write a table in its order: by method, scene, time and concept."""
    order = {scene: n for n, scene in enumerate([*SCENES, *ALONE])}
    by = ["method", "scene", "time", "concept_index"]
    rows = rows.sort_values(by, key=lambda c: c.map(order) if c.name == "scene" else c)
    text = rows.to_csv(columns=COLUMNS, index=False, float_format="%.6g")
    return write_atomically(table, text.encode())


def published() -> DataFrame:
    """The paper's own numbers (SD v1.4; see `data/paper`), in the file's order.

    `table` is the paper's, `method` as printed: "SepME", "ESD50", "FMN[50,50,50,30,50,50]";
    `as_printed` and `note` quote a cell with a misprint; `doubtful` marks rows that repeat
    another row of the paper and are no result.
    """
    rows = pd.read_csv(shipped("paper", "published_results.csv"), dtype={"table": str})
    place = pd.MultiIndex.from_frame(rows[["method", "table", "scene", "time"]])
    missing = {name: np.nan for name in ESTIMATES if name not in rows}
    return rows.drop(columns="acc_percent").assign(
        note=rows["note"].fillna(""),
        **missing | {"acc": rows["acc_percent"] / 100},
        doubtful=place.isin(_REPEATED),
    )


def family(method: str) -> str:
    """The method here that a printed one belongs to: "ESD50" and "ESD[100,50]" are "esd-x".

    What is known of SepME's settings makes it our `faithful`, in the paper's protocol.
    """
    ours, _ = _PRINTED.get(_split(method)[0], (None, ""))
    return ours or method


def method_title(method: str) -> str:
    """A method in a legend, with its retain set (see `sepme.scenes.protocol.PROTOCOLS`).

    "esd-x" is "ESD-x [none]", and the printed "FMN[50,30]" is "FMN, 30 to 50 it. [none]".
    """
    if method in METHODS:
        return METHODS[method].title
    name, iterations = _split(method)
    if name not in _PRINTED:
        return method
    counts = sorted(int(count) for count in iterations.split(",") if count)
    ends = " to ".join(map(str, dict.fromkeys([*counts[:1], *counts[-1:]])))
    return f"{name}{f', {ends} it.' if counts else ''} [{_PRINTED[name][1]}]"


def _split(method: str) -> tuple[str, str]:
    """A printed method and its iterations: "FMN[50,30]" is "FMN" and "50,30"."""
    name = method.split("[")[0].rstrip("0123456789")
    return name, method.removeprefix(name).strip("[]")


# ------------------------------------------------------------------ means
def complete(
    rows: DataFrame, scenes: Iterable[str], concepts: Iterable[int] = range(WATERMARK + 1)
) -> DataFrame:
    """Rows of complete methods: those that were measured in every cell of these scenes.

    The mean of an incomplete method would be about other cells than its neighbours'.

    Args:
        concepts: must have been drawn at every moment, besides the erased. Rows of other concepts
            are left out.
    """
    needed = {
        (scene, moment.time, index)
        for scene in scenes
        for moment in moments(scene)
        for index in {*concepts, *moment.erased}
    }
    place = pd.MultiIndex.from_frame(rows[["scene", "time", "concept_index"]])
    found = rows[place.isin(needed)]
    return found[found.groupby("method")["role"].transform("size") == len(needed)]


def role_means(rows: DataFrame, measure: str) -> DataFrame:
    """The mean of a measure over all cells of one method and role.

    Args:
        rows: measured or published.
        measure: a column: "acc", "lpips", "fid" or "kid".

    Returns:
        `mean`, the ends `low` and `high` of its 95 % interval (NaN for printed numbers) and the
        number of `cells`, by (method, role). The interval is for other pictures of these concepts,
        not for other concepts. The watermark has a role of its own, "watermark".
    """
    rows = rows[rows[measure].notna()]
    role = rows["role"].mask(rows["concept_index"] == WATERMARK, "watermark")

    def mean(cells: DataFrame) -> Series:
        value = cells[measure].mean()
        # A concept has the same noise at every time: there the half-widths of its intervals add up.
        # Concepts share none: theirs add in squares.
        ends = cells[[f"{measure}_low", f"{measure}_high"]].sub(cells[measure], axis=0)
        wide = ends.groupby(cells["concept_index"]).sum(min_count=1)
        down, up = np.sqrt(np.square(wide.to_numpy()).sum(axis=0)) / len(cells)
        return Series({"mean": value, "low": value - down, "high": value + up, "cells": len(cells)})

    columns = ["concept_index", measure, f"{measure}_low", f"{measure}_high"]
    means = rows.groupby(["method", role], sort=False)[columns].apply(mean)
    return means.astype({"cells": int}) if len(means) else DataFrame(columns=["mean"])


def role_table(rows: DataFrame, measure: str) -> DataFrame:
    """Means with their intervals as text: one row a scene and method, one column a role.

    Raises:
        SepmeError: no such measure, or none of its cells was measured.
    """
    choose(MEASURES, measure=measure)
    body = {}
    for scene, found in rows[rows[measure].notna()].groupby("scene", sort=False):
        whole = set(complete(rows, [scene])["method"])
        for (method, role), bar in role_means(found, measure).iterrows():
            label = f"{scene} {method_title(method)}"
            label += "" if method in whole else " (incomplete)"
            body.setdefault(label, {})[role] = _in_words(bar, measure)
    if not body:
        raise SepmeError(
            f"No cell of this table holds {measure}: measure it with 'sepme scenes run', or choose "
            "another with --measure."
        )
    table = DataFrame.from_dict(body, orient="index").reindex(columns=[*ROLES, "watermark"])
    return table.astype(object).fillna("-").rename_axis(columns=measure)


def _in_words(bar: Series, measure: str) -> str:
    """A mean and the ends of its interval; an accuracy in percent."""
    scale, digits = (100, 1) if measure == "acc" else (1, 2 if measure == "fid" else 4)
    low = bar["low"] if measure == "kid" else max(0.0, bar["low"])  # only KID can be negative
    mean, low, high = (f"{scale * end:.{digits}f}" for end in (bar["mean"], low, bar["high"]))
    return f"{mean} ({low} to {high})"


# ------------------------------------------------------------------ the paper's tables as text
_MARKS = {"erased": "**{}**", "recovered": "*{}*", "regular": "{}"}
DAGGER = "†"


def paper_tables(kind: str, measured: DataFrame | None) -> str:
    """All printed and all measured cells of a kind, scene by scene, as one Markdown document.

    Rows are a time and a method, columns the nine concepts.
    """
    printed = published().query("kind == @kind and scene in @SCENES")
    theirs = printed.assign(
        label=printed["method"].map(method_title) + ", table " + printed["table"],
        mark=np.where(printed["doubtful"] | (printed["note"] != ""), DAGGER, ""),
    )
    measured = DataFrame(columns=COLUMNS) if measured is None else measured
    ours = measured[measured["concept_index"] != WATERMARK]
    ours = ours.sort_values("method", key=lambda c: c.map([*METHODS].index), kind="stable")
    ours = ours.assign(label=ours["method"].map(method_title), mark="")
    parts = [
        f"# The paper's tables, {kind}s",
        "**Bold**: erased; *italic*: recovered; plain: regular. The two sides are about different "
        "models, concepts and classifiers: compare orders, not heights. Measured shares have "
        "Wilson's 95 % interval in brackets, the others a bootstrap interval. In brackets behind a "
        "method stands its retain set.",
        LEGEND,
    ]
    painters = printed.drop_duplicates("concept_index")["concept"]
    sides = ((PUBLISHED, theirs, painters), (MEASURED, ours, EVALUATED[kind].names))
    for scene in SCENES:
        parts.append(f"## {scene}")
        for measure, (label, rows, concepts) in product(("acc", "lpips", "fid"), sides):
            cells = rows[(rows["scene"] == scene) & rows[measure].notna()]
            if len(cells):
                title = MEASURES[measure][0].upper() + MEASURES[measure][1:]
                parts += [f"### {title} ({label})", _markdown(cells, measure, concepts)]
    return "\n\n".join([*parts, *_remarks(printed)]) + "\n"


def _markdown(cells: DataFrame, measure: str, concepts: Iterable[str]) -> str:
    """One table, times in order and methods as they come."""
    header = ["time", "method", *(f"{index} {name}" for index, name in enumerate(concepts))]
    lines = [header, ["---"] * 2 + ["--:"] * (len(header) - 2)]
    cells = cells.assign(text=[_cell(cell, measure) for _, cell in cells.iterrows()])
    cells = cells.sort_values("time", kind="stable")
    for place, found in cells.groupby(["time", "label"], sort=False):
        texts = found.set_index("concept_index")["text"].reindex(range(len(header) - 2))
        lines.append([*place, *texts.fillna("–")])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Series, measure: str) -> str:
    """One cell: printed digits as in the paper, measured ones with the ends of the interval."""
    value, low, high = (cell[f"{measure}{end}"] for end in ("", "_low", "_high"))
    scale = 100 if measure == "acc" else 1
    has_interval = np.isfinite([low, high]).all()
    digits = {"acc": 0, "lpips": 4, "fid": 1} if has_interval else {"acc": 1, "lpips": 3, "fid": 1}
    texts = [f"{scale * number:.{digits[measure]}f}" for number in (value, low, high)]
    text = _MARKS[cell["role"]].format(texts[0]) + cell["mark"]
    return f"{text} [{texts[1]}, {texts[2]}]" if has_interval else text


def _remarks(printed: DataFrame) -> list[str]:
    """What the daggers stand for."""
    place = ["table", "scene", "time"]
    doubtful = printed[printed["doubtful"]].drop_duplicates(place).sort_values(place)
    lines = [
        f"- Table {row.table}, SepME, {row.scene} {row.time}: repeats another row of the source."
        for row in doubtful.itertuples()
    ] + [
        f"- Table {row.table}, {row.method}, {row.scene} {row.time}, {row.concept}: {row.note}"
        for row in printed[printed["note"] != ""].itertuples()
    ]
    return [f"## {DAGGER} Cells in doubt", "\n".join(lines)] if lines else []
