"""What each departure from the published method does, and whether correlation says what is seen.

    python benchmarks/ablation.py departures     # writes data/results/ablation.csv
    python benchmarks/ablation.py correlation    # writes data/results/correlation_and_judge.csv
    python benchmarks/ablation.py table          # the table of README.md, from the first file

The first trains every variant on four concepts in the paper's protocol (forgotten is the bare name;
retained are the bare names of five others and the seal). The second puts the shipped deltas on at
five strengths. Both go on where they were stopped; chapter 03 draws their figures.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import typer
from _markdown import markdown
from torch import Tensor

from sepme.artefact import write_atomically
from sepme.atelier.judge import Judge
from sepme.atelier.paintings import OBJECTS, STYLES
from sepme.composition import applied, shipped_deltas
from sepme.concept import BOTH, fill
from sepme.erasure import PRESETS, ErasureSettings, erase
from sepme.metrics import estimate_share, lpips_distance
from sepme.model import Backbone, load_catalogue
from sepme.probe import Probe, correlation_by_layer
from sepme.scenes.protocol import PROTOCOLS
from sepme.scenes.tables import RESULTS
from sepme.training import Trainer

FAITHFUL, DEFAULT = PRESETS["faithful"], PRESETS["default"]
EXACT = {"method": "svd", "keep_rtol": 0.0}
#: Each variant changes one thing of `faithful`, or is another preset whole.
VARIANTS: dict[str, ErasureSettings] = {
    "faithful": FAITHFUL,
    "closed form alone": replace(PRESETS["closed_form"], **EXACT),
    "closed form + training": replace(DEFAULT, **EXACT),
    "empty prompt, not the anchor": replace(FAITHFUL, reference="empty"),
    "product, not the square": replace(FAITHFUL, objective="product", tau=0.0),
    "one noised image, t uniform": replace(FAITHFUL, batch=1, timesteps="uniform"),
    "whole null space, not the row space": replace(FAITHFUL, parametrisation="dense"),
    "paper": PRESETS["paper"],
    "authors": PRESETS["authors"],
}
CONCEPTS = ("swirl", "neon", "boat", "flower")
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25)
STEPS = 10
#: Pictures of each concept and question; a row of the table holds those of all concepts.
IMAGES = 25

app = typer.Typer(help=__doc__)


def others(name: str) -> tuple[list[str], list[str]]:
    """Five concepts of the same kind that are retained, and three that nobody names."""
    pool = [each for each in (STYLES if name in STYLES else OBJECTS) if each != name]
    return pool[:5], pool[5:8]


def crossing(template: str, name: str, n: int) -> str:
    """The n-th prompt that shows a concept together with one of the other kind."""
    partner = (OBJECTS if name in STYLES else STYLES)[n % 10]
    return fill(template, *((partner, name) if name in STYLES else (name, partner)))


def questions(name: str) -> dict[str, list[tuple[str, str]]]:
    """What is drawn: by question, a prompt and the concept that is looked for in its picture."""
    retained, unnamed = others(name)
    n = range(IMAGES)
    return {
        "forgotten": [(name, name)] * IMAGES,
        "forgotten, held-out prompts": [(crossing(BOTH[2 + i % 3], name, i), name) for i in n],
        "kept and named": [(retained[i % 5],) * 2 for i in n],
        "kept, not named": [(crossing(BOTH[i % 5], unnamed[i % 3], i), unnamed[i % 3]) for i in n],
    }


def draw(model: Backbone, prompts: Sequence[str], seed: int) -> Tensor:
    return model.generate(prompts, range(seed, seed + len(prompts)), steps=STEPS, batch=50)


def sees(judge: Judge, images: Tensor, names: Iterable[str]) -> list[bool]:
    pairs = zip(images, names, strict=True)
    return [bool(judge.sees(image[None], name)) for image, name in pairs]


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
    model, judge, catalogue = Backbone.load(), Judge.load(), load_catalogue()
    originals: dict[tuple[str, str], Tensor] = {}

    def measure(variant: str, name: str) -> list[dict[str, Any]]:
        paper = PROTOCOLS["paper"]
        keep = paper.retain(catalogue, [name], others(name)[0])
        concept = paper.forget(catalogue, name)
        delta = erase(model, concept, keep, VARIANTS[variant], trainer=Trainer(progress=False))
        about = {"variant": variant, "concept": name, "iterations": delta.provenance.iterations}
        rows = []
        for seed, (question, asked) in enumerate(questions(name).items()):
            prompts, names = zip(*asked, strict=True)
            if (name, question) not in originals:
                originals[name, question] = draw(model, prompts, 1000 * seed)
            with applied(model, delta):
                images = draw(model, prompts, 1000 * seed)
            lpips = lpips_distance(images, originals[name, question]).mean().item()
            found = sum(sees(judge, images, names))
            rows.append(about | {"question": question, "seen": found, "lpips": lpips})
        return rows

    resumed(out, [(v, c) for c in CONCEPTS for v in VARIANTS], measure)


@app.command()
def correlation(out: Path = RESULTS / "correlation_and_judge.csv", images: int = 100) -> None:
    """The correlation that each shipped delta leaves at five strengths, and what is seen."""
    model, judge, catalogue = Backbone.load(), Judge.load(), load_catalogue()
    deltas = shipped_deltas(model)

    def measure(variant: str, name: str) -> list[dict[str, Any]]:
        concept, delta, rows = catalogue[name], deltas[name], []
        anchors = dict(zip(concept.prompts, concept.anchors, strict=True))
        asked = [crossing(BOTH[0], name, i) for i in range(10)]
        probe = Probe.draw(model, asked[:5], timesteps=8)
        references = [anchors[prompt] for prompt in asked[:5]]
        prompts = [asked[i % 10] for i in range(images)]
        for s in STRENGTHS:
            left = correlation_by_layer(model, probe, s * delta, references, {"all": delta.paths})
            with applied(model, s * delta):
                seen = estimate_share(judge.sees(draw(model, prompts, 0), name))
            share = {"seen": seen.mean, "low": seen.low, "high": seen.high, "images": images}
            about = {"variant": variant, "concept": name, "strength": s}
            rows.append(about | {"correlation": left["all"]} | share)
        return rows

    resumed(out, [("shipped [catalogue]", name) for name in deltas], measure)


@app.command()
def table(path: Path = RESULTS / "ablation.csv") -> None:
    """The shares of all concepts together, in Markdown."""
    typer.echo(markdown(departures_table(pd.read_csv(path)).rename_axis("variant").reset_index()))


def departures_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a variant: what is seen with its interval, and LPIPS of what nobody named."""
    lines = {}
    for variant, found in rows.groupby("variant", sort=False):
        line = {"iterations": f"{found['iterations'].median():.0f}"}
        for question, cells in found.groupby("question", sort=False):
            n = IMAGES * len(cells)
            e = estimate_share(torch.arange(n) < cells["seen"].sum())
            line[question] = f"{e.mean:.0%} ({e.low:.0%} to {e.high:.0%})"
        unnamed = found[found["question"] == "kept, not named"]
        lines[variant] = line | {"LPIPS of these": f"{unnamed['lpips'].mean():.3f}"}
    return pd.DataFrame(lines).T


if __name__ == "__main__":
    app()
