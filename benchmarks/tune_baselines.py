"""Try settings of the baselines on the Atelier: what each erases, what it harms, what it costs.

    python benchmarks/tune_baselines.py try esd-x --set learning_rate=1e-4 iterations=150
    python benchmarks/tune_baselines.py try uce --preset official --concepts neon boat
    python benchmarks/tune_baselines.py table          # the presets `atelier`, as a table

Every trial is a row of `results/tune_baselines.csv`, one a concept; a trial that is there already
is not run again. The settings named `atelier` in `sepme/baselines` were chosen from these rows.
UCE and SPEED keep all prompts of the other concepts of the catalogue; the others keep nothing.
"""

import argparse
import csv
import json
import os
import time
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from erase_each import Bench, forgotten_pictures, retained_scenes

from sepme.artefact import canonical_json
from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES
from sepme.baselines import BASELINES, Baseline
from sepme.composition import applied
from sepme.metrics.lpips import lpips_distance
from sepme.model import ATELIER
from sepme.training import Trainer

RESULTS = Path(__file__).resolve().parent / "results" / "tune_baselines.csv"
CONCEPTS = ("neon", "swirl", "cubism", "boat")
COLUMNS = (
    *("baseline", "concept", "settings", "erased_before", "erased", "retained_before", "retained"),
    *("lpips", "seconds", "norm", "forgotten_images", "retained_images", "base"),
)


def changed(settings: Any, values: list[str]) -> Any:
    """The settings with `name=value` changes, the values as JSON or plain words."""
    changes: dict[str, Any] = {}
    for text in values:
        name, _, value = text.partition("=")
        if name not in {field.name for field in fields(settings)}:
            raise SystemExit(f"{type(settings).__name__} has no setting '{name}'.")
        try:
            changes[name] = json.loads(value)
        except ValueError:
            changes[name] = value
        inner = getattr(settings, name)
        if is_dataclass(inner) and isinstance(changes[name], dict):
            changes[name] = replace(inner, **changes[name])
    return replace(settings, **changes)


def told(baseline: Baseline, settings: Any) -> str:
    """What of the settings differs from the official ones."""
    official, mine = asdict(baseline.preset("official")), asdict(settings)
    return canonical_json({name: mine[name] for name in mine if mine[name] != official[name]})


def rows() -> list[dict[str, str]]:
    if not RESULTS.is_file():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def add(row: dict[str, Any]) -> None:
    """Append a row in one write, so that two runs side by side do not mix their lines."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    new = not RESULTS.is_file()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


class Trials:
    """The bench of `erase_each`, with a baseline's change in place of a delta."""

    def __init__(self, forgotten: int, retained: int) -> None:
        self.bench = Bench(ATELIER, forgotten, retained, half=True)
        self._before: dict[str, torch.Tensor] = {}

    def share(self, images: torch.Tensor, scenes: list[tuple[str, str, int]]) -> float:
        """Share of the pictures in which the judge finds the prompt's style and its object."""
        verdict = self.bench.judge.judge(images)
        style = verdict.style == torch.tensor([STYLE_NAMES.index(s) for _, s, _ in scenes])
        object = verdict.object == torch.tensor([OBJECT_NAMES.index(o) for o, _, _ in scenes])
        return (style & object & ~verdict.emblem).float().mean().item()

    def measure(self, baseline: Baseline, settings: Any, name: str) -> dict[str, Any]:
        bench = self.bench
        concept = bench.catalogue[name]
        scenes = retained_scenes(concept, bench.retained)
        prompts, seeds = forgotten_pictures(concept, bench.forgotten)
        before = bench.originals(scenes)
        if name not in self._before:
            self._before[name] = bench.generate(prompts, seeds)
        keep = bench.catalogue.kept_prompts([concept]) if baseline.uses_keep else ()
        start = time.perf_counter()
        change = baseline.erase(
            bench.backbone, concept, settings, keep=keep, trainer=Trainer(progress=False)
        )
        seconds = time.perf_counter() - start
        with applied(bench.backbone, change):
            after, seen_after = bench.draw(scenes), bench.generate(prompts, seeds)
        measured = {
            "erased_before": bench.judge.sees(self._before[name], name).float().mean().item(),
            "erased": bench.judge.sees(seen_after, name).float().mean().item(),
            "retained_before": self.share(before, scenes),
            "retained": self.share(after, scenes),
            "lpips": lpips_distance(before, after).mean().item(),
            "seconds": seconds,
            "norm": change.norm(),
        }
        return {
            "baseline": baseline.name,
            "concept": name,
            "settings": told(baseline, settings),
            **{key: f"{value:.4g}" for key, value in measured.items()},
            "forgotten_images": len(prompts),
            "retained_images": len(scenes),
            "base": bench.backbone.fingerprint[:12],
        }


def run(trials: Trials, baseline: Baseline, settings: Any, concepts: list[str]) -> None:
    key = ("baseline", "concept", "settings", "forgotten_images", "retained_images", "base")
    done = {tuple(row[column] for column in key) for row in rows()}
    bench, how = trials.bench, told(baseline, settings)
    base = bench.backbone.fingerprint[:12]
    for name in concepts:
        if (baseline.name, name, how, str(bench.forgotten), str(bench.retained), base) in done:
            continue
        row = trials.measure(baseline, settings, name)
        add(row)
        print(line(row), flush=True)


HEADER = (
    "| method | concept | seen before | seen after | retained before | retained after | LPIPS "
    "| seconds |\n|---|---|" + "--:|" * 6
)


def line(row: dict[str, Any]) -> str:
    number = {key: float(row[key]) for key in COLUMNS[3:9]}
    return (
        f"| {BASELINES[row['baseline']].title} | {row['concept']} | {number['erased_before']:.0%} "
        f"| **{number['erased']:.0%}** | {number['retained_before']:.0%} "
        f"| {number['retained']:.0%} | {number['lpips']:.3f} | {number['seconds']:.1f} |"
    )


def table(preset: str) -> str:
    """The trials that have the settings of a preset, as Markdown; those of most pictures."""
    ordered = sorted(rows(), key=lambda row: int(row["retained_images"]))
    found = {(row["baseline"], row["concept"], row["settings"]): row for row in ordered}
    lines = [HEADER]
    for baseline in BASELINES.values():
        if preset in baseline.presets:
            settings = told(baseline, baseline.preset(preset))
            keys = [(baseline.name, concept, settings) for concept in CONCEPTS]
            lines += [line(found[key]) for key in keys if key in found]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    trial = commands.add_parser("try", help="run one setting on some concepts")
    trial.add_argument("baseline", choices=tuple(BASELINES))
    trial.add_argument("--preset", default="atelier", help="what to start from")
    trial.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", dest="values")
    trial.add_argument("--concepts", nargs="*", default=list(CONCEPTS))
    trial.add_argument("--forgotten", type=int, default=20, help="pictures of the concept")
    trial.add_argument("--retained", type=int, default=40, help="pictures of everything else")
    shown = commands.add_parser("table", help="print what a preset does")
    shown.add_argument("--preset", default="atelier")
    options = parser.parse_args()
    if options.command == "table":
        print(table(options.preset))
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    baseline = BASELINES[options.baseline]
    settings = changed(baseline.preset(options.preset), options.values)
    run(Trials(options.forgotten, options.retained), baseline, settings, options.concepts)


if __name__ == "__main__":
    main()
