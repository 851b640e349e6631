"""How nearly a result comes out again: in another process, with more threads, in another batch.

    python benchmarks/reproducible.py            # about five minutes; writes its table of README.md

Pictures, deltas and the demo's files are made in processes of their own: twice with one thread, at
the same time, and once with two threads.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import pandas as pd
import torch
import typer
from _markdown import markdown, write_between
from kill import COMMANDS, files
from safetensors.torch import load_file, save_file
from torch import Tensor

from sepme.composition import applied
from sepme.concept import evenly
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, erase
from sepme.model import Backbone, load_catalogue
from sepme.training import Trainer

CONCEPT, PICTURES = "neon", 32
DELTAS = {"closed_form": "delta in closed form", "default": "trained delta (default)"}
#: The folders, and the number of threads with which they are made.
RUNS = {"one": 1, "again": 1, "two": 2}


def make(folder: Path) -> None:
    """All pictures and deltas, in this process."""
    model, catalogue, pictures = Backbone.load(device="cpu"), load_catalogue(), {}
    concept = catalogue[CONCEPT]
    prompts = evenly([*concept.prompts, *catalogue["boat"].prompts], PICTURES)
    for batch in (PICTURES, 1):
        pictures[f"batch {batch}"] = model.generate(prompts, 0, batch=batch)
    for preset in DELTAS:
        about = (model, concept, catalogue.kept_prompts([concept]), PRESETS[preset])
        delta = erase(*about, trainer=Trainer(progress=False))
        delta.save(folder / f"{preset}.safetensors")
        with applied(model, delta):
            pictures[preset] = model.generate(prompts, 0)
    save_file(pictures, folder / "pictures.safetensors")


def start(folder: Path, threads: int, words: Sequence[str]) -> subprocess.Popen:
    """Start one of our commands in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    # A thread that waits for another, rather than spins, is not slowed by what else runs here.
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen([sys.executable, *words], cwd=folder, env=environment)


def apart(one: Path, other: Path) -> float:
    """||A - B||_F / ||A||_F of two deltas, over all their layers."""
    a, b = (ConceptDelta.load(path) for path in (one, other))
    of = {path: (a.up[path] @ a.down[path], b.up[path] @ b.down[path]) for path in a.paths}
    squares = torch.tensor([[(x - y).square().sum(), x.square().sum()] for x, y in of.values()])
    return float((squares[:, 0].sum() / squares[:, 1].sum()).sqrt())


def largest(one: Mapping[str, Tensor], other: Mapping[str, Tensor], name: str) -> float:
    """The largest difference of two sets of pictures in [0, 1]."""
    return float((one[name] - other[name]).abs().max())


def size(difference: float) -> str:
    """A difference in words."""
    return f"{difference:.1e}" if difference else "same bytes"


def table(folder: Path) -> pd.DataFrame:
    """What differs between the runs."""
    drawn = {name: load_file(folder / name / "pictures.safetensors") for name in RUNS}
    rows = {}

    def row(what: str, difference: Callable[[str], float], batch: str = "") -> None:
        found = [size(difference(other)) for other in ("again", "two")]
        rows[what] = [*found, batch]

    one = drawn["one"]
    row(
        "a picture, largest difference",
        lambda other: largest(one, drawn[other], "batch 32"),
        size(float((one["batch 32"] - one["batch 1"]).abs().max())),
    )
    for preset, what in DELTAS.items():
        here = folder / "one" / f"{preset}.safetensors"
        row(f"{what}, relative", lambda other, h=here: apart(h, folder / other / h.name))
        row("its pictures, largest", lambda other, p=preset: largest(one, drawn[other], p))
        rows[f"{what}: its pictures, largest difference"] = rows.pop("its pictures, largest")
    demos = {name: files(folder / name / "demo") for name in RUNS}
    different = [
        sorted(Path(file).name for file in demos["one"] if demos["one"][file] != demos[name][file])
        for name in ("again", "two")
    ]
    rows["`sepme demo`: files that differ"] = [", ".join(d) or "none" for d in different] + [""]
    numbers = [numbers_of(demos[name]) for name in RUNS]
    moved = [max(abs(numbers[0][k] - other[k]) for k in numbers[0]) for other in numbers[1:]]
    rows["`sepme demo`: largest change of a share or distance"] = [*map(size, moved), ""]
    columns = ["again, two at once", "1 and 2 threads", "batch 1 and 32"]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return found.rename_axis("what").reset_index()


def numbers_of(demo: Mapping[str, bytes]) -> dict[str, float]:
    """The shares and distances in a demo's report."""
    (report,) = [json.loads(content) for name, content in demo.items() if "report" in name]
    found = pd.json_normalize(report["erased"] | {"retained": report["retained"]}).iloc[0]
    return {k: float(v) for k, v in found.items() if isinstance(v, float)}


def main(
    folder: Annotated[Path | None, typer.Option(help="Only make pictures and deltas here.")] = None,
) -> None:
    """Measure, print the table, and write it into README.md."""
    if folder is not None:
        return make(folder)
    with TemporaryDirectory() as place:
        whole = Path(place)
        mine = [str(Path(__file__).resolve()), "--folder", "."]
        demo = ["-m", "sepme", *COMMANDS["demo"]]
        for names in (["one", "again"], ["two"]):
            for words, inside in ((mine, ""), (demo, "demo")):
                running = [start(whole / name / inside, RUNS[name], words) for name in names]
                if any(process.wait() for process in running):
                    raise SystemExit("One of the processes failed: see above.")
        text = markdown(table(whole))
    typer.echo(text)
    return write_between("reproducible", text)


if __name__ == "__main__":
    typer.run(main)
