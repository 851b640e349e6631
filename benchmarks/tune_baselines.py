"""Try settings of the baselines on the Atelier: what each erases, what it harms, what it costs.

    python benchmarks/tune_baselines.py try esd-x --set learning_rate=1e-4 iterations=150
    python benchmarks/tune_baselines.py try uce --preset official --concepts neon boat
    python benchmarks/tune_baselines.py table          # the presets `atelier`, as a table

Every trial is a row of `results/tune_baselines.csv`, one a concept; a trial that is there already
is not run again. The settings named `atelier` in `sepme/baselines` were chosen from these rows.
UCE and SPEED keep all prompts of the other concepts of the catalogue; the others keep nothing.
"""

import argparse
import json
import random
import time
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from sepme.artefact import canonical_json
from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Judge
from sepme.atelier.paintings import OBJECTS, STYLES
from sepme.baselines import BASELINES, Baseline
from sepme.composition import applied
from sepme.concept import BOTH, OBJECT_PHOTO, Concept, fill
from sepme.metrics import lpips_distance
from sepme.model import Backbone, load_catalogue
from sepme.scenes.images import has_bfloat16
from sepme.training import Trainer

RESULTS = Path(__file__).resolve().parent / "results" / "tune_baselines.csv"
CONCEPTS = ("neon", "swirl", "cubism", "boat")
#: A row with the same values here is not measured again.
KEY = ["baseline", "concept", "settings", "forgotten_images", "retained_images", "base"]

PAIRS = [(o, s) for s in STYLES for o in OBJECTS] + [(o, "photo") for o in OBJECTS]
#: An object, a style, and which of its pictures.
Asked = list[tuple[str, str, int]]


class Bench:
    """The model, the judge, and the original pictures that all trials are measured against."""

    def __init__(self, forgotten: int, retained: int) -> None:
        self.forgotten, self.retained = forgotten, retained
        self.backbone, self.judge = Backbone.load(), Judge.load()
        self.catalogue = load_catalogue()
        self._originals: dict[tuple[str, str, int], Tensor] = {}

    def prompts(self, concept: Concept) -> tuple[list[str], range]:
        """Prompts and seeds of the pictures in which the concept is looked for."""
        prompts = [concept.prompts[i % len(concept.prompts)] for i in range(self.forgotten)]
        return prompts, range(9000, 9000 + self.forgotten)

    def others(self, concept: Concept) -> Asked:
        """Pictures that do not name the concept, every pair of object and style in turn."""
        pairs = [pair for pair in PAIRS if concept.name not in pair]
        random.Random(0).shuffle(pairs)  # so that fewer pictures than pairs are of all styles
        return [(*pairs[i % len(pairs)], 1 + i // len(pairs)) for i in range(self.retained)]

    def originals(self, asked: Asked) -> Tensor:
        if missing := [each for each in asked if each not in self._originals]:
            self._originals |= dict(zip(missing, self.draw(missing), strict=True))
        return torch.stack([self._originals[each] for each in asked])

    def draw(self, asked: Asked) -> Tensor:
        prompts = [fill(OBJECT_PHOTO[0] if s == "photo" else BOTH[0], o, s) for o, s, _ in asked]
        return self.generate(prompts, [1000 * n + PAIRS.index((o, s)) for o, s, n in asked])

    def generate(self, prompts: list[str], seeds: range | list[int]) -> Tensor:
        with torch.autocast(self.backbone.device.type, torch.bfloat16, enabled=has_bfloat16()):
            return self.backbone.generate(prompts, list(seeds), batch=50)

    def right(self, images: Tensor, asked: Asked) -> float:
        """Share of the pictures in which the judge finds the prompt's style and its object."""
        verdict = self.judge.judge(images)
        styles = torch.tensor([STYLE_NAMES.index(s) for _, s, _ in asked])
        objects = torch.tensor([OBJECT_NAMES.index(o) for o, _, _ in asked])
        right = (styles == verdict.style) & (objects == verdict.object) & ~verdict.emblem
        return right.float().mean().item()

    def seen(self, images: Tensor, name: str) -> float:
        return self.judge.sees(images, name).float().mean().item()


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


def difference(baseline: Baseline, settings: Any) -> str:
    """What of the settings differs from the official ones."""
    official, mine = asdict(baseline.preset("official")), asdict(settings)
    return canonical_json({name: mine[name] for name in mine if mine[name] != official[name]})


def measure(bench: Bench, baseline: Baseline, settings: Any, name: str) -> dict[str, Any]:
    concept = bench.catalogue[name]
    asked, own = bench.others(concept), bench.prompts(concept)
    before, seen_before = bench.originals(asked), bench.generate(*own)
    keep = bench.catalogue.kept_prompts([concept]) if baseline.uses_keep else ()
    start, quiet = time.perf_counter(), Trainer(progress=False)
    change = baseline.erase(bench.backbone, concept, settings, keep=keep, trainer=quiet)
    seconds = time.perf_counter() - start
    with applied(bench.backbone, change):
        after, seen_after = bench.draw(asked), bench.generate(*own)
    return {
        "erased_before": bench.seen(seen_before, name),
        "erased": bench.seen(seen_after, name),
        "retained_before": bench.right(before, asked),
        "retained": bench.right(after, asked),
        "lpips": lpips_distance(before, after).mean().item(),
        "seconds": seconds,
        "norm": change.norm(),
    }


def run(bench: Bench, baseline: Baseline, settings: Any, concepts: list[str]) -> None:
    """Measure what is missing; each row is appended in one write, so that two runs can share."""
    images, base = (bench.forgotten, bench.retained), bench.backbone.fingerprint[:12]
    for name in concepts:
        rows = pd.read_csv(RESULTS)
        key = (baseline.name, name, difference(baseline, settings), *images, base)
        if key in set(rows[KEY].itertuples(index=False, name=None)):
            continue
        row = dict(zip(KEY, key, strict=True)) | measure(bench, baseline, settings, name)
        new = pd.DataFrame([row], columns=rows.columns)
        new.to_csv(RESULTS, mode="a", header=False, index=False, float_format="%.4g")
        print(line(new.iloc[0]), flush=True)


HEADER = (
    "| method | concept | seen before | seen after | retained before | retained after | LPIPS "
    "| seconds |\n|---|---|" + "--:|" * 6
)


def line(row: pd.Series) -> str:
    return (
        f"| {BASELINES[row['baseline']].title} | {row['concept']} | {row['erased_before']:.0%} "
        f"| **{row['erased']:.0%}** | {row['retained_before']:.0%} "
        f"| {row['retained']:.0%} | {row['lpips']:.3f} | {row['seconds']:.1f} |"
    )


def table(preset: str) -> str:
    """The trials that have the settings of a preset, as Markdown; those of most pictures."""
    rows = pd.read_csv(RESULTS).sort_values("retained_images", kind="stable")
    rows = rows.drop_duplicates(KEY[:3], keep="last").set_index(KEY[:3], drop=False)
    lines = [HEADER]
    for baseline in BASELINES.values():
        if preset in baseline.presets:
            settings = difference(baseline, baseline.preset(preset))
            keys = [(baseline.name, concept, settings) for concept in CONCEPTS]
            lines += [line(rows.loc[key]) for key in keys if key in rows.index]
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
    baseline = BASELINES[options.baseline]
    settings = changed(baseline.preset(options.preset), options.values)
    run(Bench(options.forgotten, options.retained), baseline, settings, options.concepts)


if __name__ == "__main__":
    main()
