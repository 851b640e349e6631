"""Erase every concept of the Atelier alone and measure what went and what stayed.

    python benchmarks/erase_each.py run --preset default      # resumable: a file a concept
    python benchmarks/erase_each.py time --preset default     # erases again, for the clock alone
    python benchmarks/erase_each.py table                     # writes the tables of README.md

Two runs side by side share the work with `--only` and names; their seconds then count for little,
which is what `time` is for: run it with nothing beside it.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from sepme.artefact import versions, write_atomically
from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Judge
from sepme.atelier.paintings import OBJECTS, PHOTO, STYLES
from sepme.composition import applied
from sepme.concept import Concept, fill
from sepme.delta import ConceptDelta
from sepme.erasure import erase, preset
from sepme.metrics import lpips_distance
from sepme.model import Backbone, load_catalogue

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "erase_each"
PAIRS = [(o, s) for s in STYLES for o in OBJECTS] + [(o, PHOTO) for o in OBJECTS]
#: An object, a style, and which of its pictures.
Asked = list[tuple[str, str, int]]


class Bench:
    """The model, the judge, and the original pictures that all concepts are measured against."""

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
        painting, photo = "a painting of {ao} in the style of {s}", "a photo of {ao}"
        prompts = [fill(photo if s == PHOTO else painting, o, s) for o, s, _ in asked]
        return self.generate(prompts, [1000 * n + PAIRS.index((o, s)) for o, s, n in asked])

    def generate(self, prompts: list[str], seeds: range | list[int]) -> Tensor:
        with torch.autocast(self.backbone.device.type, torch.bfloat16):
            return self.backbone.generate(prompts, list(seeds), batch=50)

    def right(self, images: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
        """Of each picture whether the judge finds the prompt's style, and its object."""
        verdict = self.judge.judge(images)
        styles = torch.tensor([STYLE_NAMES.index(s) for _, s, _ in asked])
        objects = torch.tensor([OBJECT_NAMES.index(o) for o, _, _ in asked])
        return styles == verdict.style, objects == verdict.object

    def seen(self, images: Tensor, name: str) -> float:
        return self.judge.sees(images, name).float().mean().item()

    def erase(self, concept: Concept, how: str) -> tuple[ConceptDelta, float]:
        """The concept's delta, and the seconds that it took."""
        start = time.perf_counter()
        keep = self.catalogue.kept_prompts([concept])
        delta = erase(self.backbone, concept, keep, preset(how), seed=0)
        return delta, time.perf_counter() - start

    def measure(self, name: str, how: str) -> dict:
        concept = self.catalogue[name]
        asked, own = self.others(concept), self.prompts(concept)
        before, seen_before = self.originals(asked), self.generate(*own)
        delta, seconds = self.erase(concept, how)
        with applied(self.backbone, delta):
            after, seen_after = self.draw(asked), self.generate(*own)
        row = {"concept": name, "kind": concept.kind, "preset": how}
        for when, images, seen in (("before", before, seen_before), ("after", after, seen_after)):
            right = [each.float().mean().item() for each in self.right(images, asked)]
            row[f"seen_{when}"] = self.seen(seen, name)
            row[f"retained_{when}"] = dict(zip(("style", "object"), right, strict=True))
        moved = (before - after).abs().flatten(1).amax(1)
        return row | {
            "lpips": lpips_distance(before, after).mean().item(),
            "identical": moved.lt(0.5 / 255).float().mean().item(),
            "forgotten_images": self.forgotten,
            "retained_images": self.retained,
            "rank": delta.rank,
            "iterations": delta.provenance.iterations,
            "seconds": seconds,
            "threads": torch.get_num_threads(),
            "pictures_in": "bfloat16",
            "base": self.backbone.fingerprint,
            "versions": versions(),
        }


def run(bench: Bench, how: str, names: list[str] | None) -> None:
    concepts = bench.catalogue.concepts.values()
    for name in names or [c.name for c in concepts if c.kind in ("style", "object")]:
        path = RESULTS / how / f"{name}.json"
        if path.exists() and json.loads(path.read_text())["base"] == bench.backbone.fingerprint:
            continue
        _write(path, bench.measure(name, how))


def clock(bench: Bench, how: str) -> None:
    """Replace the seconds of every row by those of erasing once more, with nothing beside it."""
    for path in sorted((RESULTS / how).glob("*.json")):
        row = json.loads(path.read_text())
        _, row["seconds"] = bench.erase(bench.catalogue[row["concept"]], how)
        _write(path, row | {"threads": torch.get_num_threads()})


def _write(path: Path, row: dict) -> None:
    write_atomically(path, (json.dumps(row, indent=1) + "\n").encode())
    print(_line(row), flush=True)


def _line(row: dict) -> str:
    before, after = row["retained_before"], row["retained_after"]
    style, object = (100 * (before[part] - after[part]) for part in ("style", "object"))
    return (
        f"| {row['concept']} | {row['seen_before']:.0%} | **{row['seen_after']:.0%}** "
        f"| {style:+.1f} | {object:+.1f} | {row['lpips']:.4f} "
        f"| {row['identical']:.0%} | {row['rank']} | {row['iterations']} | {row['seconds']:.1f} |"
    )


HEADER = (
    "| concept | seen before | seen after | style drop, points | object drop, points | LPIPS "
    "| unchanged pictures | rank | iterations | seconds |\n|---|" + "--:|" * 9
)


def table(how: str) -> str:
    """A Markdown table of all concepts, the most visible after erasing first."""
    rows = [json.loads(path.read_text()) for path in sorted((RESULTS / how).glob("*.json"))]
    rows.sort(key=lambda row: (-row["seen_after"], -row["lpips"]))
    one, seconds = rows[0], statistics.median(row["seconds"] for row in rows)
    threads = "/".join(map(str, sorted({row["threads"] for row in rows})))
    summary = (
        f"{len(rows)} concepts, {one['forgotten_images']} and {one['retained_images']} pictures "
        f"each (forgotten and retained, drawn in {one['pictures_in']}); median {seconds:.1f} s a "
        f"concept on {threads} thread(s); model {one['base'][:12]}."
    )
    return "\n".join([HEADER, *map(_line, rows), "", summary])


def write_tables() -> None:
    """Replace what stands between the markers of README.md by the tables of the results."""
    readme = HERE / "README.md"
    text = readme.read_text()
    for how in sorted(path.name for path in RESULTS.iterdir()):
        begin, end = f"<!-- {how} -->\n", f"<!-- /{how} -->"
        head, _, rest = text.partition(begin)
        text = head + begin + table(how) + "\n" + end + rest.partition(end)[2]
    write_atomically(readme, text.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "time", "table"))
    parser.add_argument("--preset", default="default", help="a preset of sepme")
    parser.add_argument("--forgotten", type=int, default=50, help="pictures of the concept")
    parser.add_argument("--retained", type=int, default=200, help="pictures of everything else")
    parser.add_argument("--only", nargs="*", help="names of concepts")
    options = parser.parse_args()
    if options.command == "table":
        return write_tables()
    bench = Bench(options.forgotten, options.retained)
    if options.command == "time":
        return clock(bench, options.preset)
    return run(bench, options.preset, options.only)


if __name__ == "__main__":
    main()
