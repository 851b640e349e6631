"""What each departure from the published method does, and whether correlation says what is seen.

    python benchmarks/ablation.py departures     # writes data/results/ablation.csv
    python benchmarks/ablation.py correlation    # writes data/results/correlation_and_judge.csv

The first trains every variant on four concepts in the paper's protocol, and asks what
`erase_each.py` asks. The second puts the shipped deltas on at five strengths. Both go on where they
were stopped. Chapter 10 shows both.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import typer
from erase_each import Bench, crossings

from sepme.artefact import write_atomically
from sepme.atelier.paintings import STYLES
from sepme.composition import shipped_deltas
from sepme.concept import BOTH
from sepme.erasure import PRESETS, ErasureSettings
from sepme.metrics import estimate_share
from sepme.probe import Probe, correlation_by_layer
from sepme.scenes.tables import RESULTS

FAITHFUL, DEFAULT = PRESETS["faithful"], PRESETS["default"]
EXACT = {"method": "svd", "keep_rtol": 0.0}
#: Each variant changes one thing of `faithful`, or is another preset whole. The product is far
#: smaller than the square, and faithful's lambda would outweigh it.
VARIANTS: dict[str, ErasureSettings] = {
    "faithful": FAITHFUL,
    "closed form alone": replace(PRESETS["closed_form"], **EXACT),
    "closed form + training": replace(DEFAULT, **EXACT),
    "empty prompt, not the anchor": replace(FAITHFUL, reference="empty"),
    "empty prompt, to the end, lambda 0": replace(FAITHFUL, reference="empty", tau=0.01, lam=0.0),
    "lambda 0": replace(FAITHFUL, lam=0.0),
    "product, lambda 0": replace(FAITHFUL, objective="product", tau=0.0, lam=0.0),
    "one noised image, t uniform": replace(FAITHFUL, batch=1, timesteps="uniform"),
    "whole null space, not the row space": replace(FAITHFUL, parametrisation="dense"),
    "paper": PRESETS["paper"],
    "authors": PRESETS["authors"],
}
CONCEPTS = ("swirl", "neon", "boat", "flower")
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25)
#: Pictures of each concept and question; a row of the table holds those of all concepts.
IMAGES = 25
#: What the table asks: the set of pictures in `erase_each`, and what is counted in it.
QUESTIONS = {
    "forgotten": ("trained", "seen"),
    "forgotten, held-out prompts": ("held_out", "seen"),
    "kept and named": ("retained", "right"),
    "kept, not named": ("unnamed", "right"),
}

app = typer.Typer(help=__doc__)


def resumed(
    path: Path, keys: Iterable[tuple], measure: Callable[..., list[dict[str, Any]]]
) -> pd.DataFrame:
    """The rows of all keys; those that the file does not hold yet are measured, one by one."""
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    done = {(row["variant"], row["concept"]) for row in rows}
    for key in keys:
        if key not in done:
            rows += measure(*key)
            write_atomically(path, pd.DataFrame(rows).to_csv(index=False).encode())
            typer.echo(pd.DataFrame(rows[-4:]).to_string(header=False))
    return pd.DataFrame(rows)


@app.command()
def departures(out: Path = RESULTS / "ablation.csv") -> None:
    """Train every variant on every concept, and look at what it forgets and what it keeps."""
    bench = Bench("faithful", "paper", IMAGES)

    def measure(variant: str, name: str) -> list[dict[str, Any]]:
        found = bench.measure(name, VARIANTS[variant])
        about = {"variant": variant, "concept": name, "iterations": found["iterations"]}
        return [
            about
            | {"question": question, "residue": found[which].get("residue", {}).get("mean")}
            | {"share": found[which][count]["mean"], "images": found[which][count]["n"]}
            | {"lpips": found[which].get("lpips", {}).get("mean")}
            for question, (which, count) in QUESTIONS.items()
        ]

    resumed(out, [(v, c) for c in CONCEPTS for v in VARIANTS], measure)


@app.command()
def correlation(out: Path = RESULTS / "correlation_and_judge.csv", images: int = 100) -> None:
    """The correlation that each shipped delta leaves at five strengths, and what is seen."""
    bench = Bench("default", "catalogue", images)
    deltas = shipped_deltas(bench.backbone)

    def measure(variant: str, name: str) -> list[dict[str, Any]]:
        delta, rows = deltas[name], []
        asked = crossings(name, BOTH[:1], images, 9500, name in STYLES)
        probe = Probe.draw(bench.backbone, [each.prompt for each in asked[:5]], timesteps=8)
        about = (bench.backbone, probe)
        references, everything = [each.anchor for each in asked[:5]], {"all": delta.paths}
        for s in STRENGTHS:
            left = correlation_by_layer(*about, s * delta, references, everything)["all"]
            seen = estimate_share(bench.judge.sees(bench.draw(asked, s * delta), name))
            share = {"seen": seen.mean, "low": seen.low, "high": seen.high, "images": seen.n}
            where = {"variant": variant, "concept": name, "strength": s}
            rows.append(where | {"correlation": left} | share)
        return rows

    resumed(out, [("shipped [catalogue]", name) for name in deltas], measure)


if __name__ == "__main__":
    app()
