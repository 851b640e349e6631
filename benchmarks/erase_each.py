"""Erase every concept of the Atelier alone and measure what went and what stayed.

    python benchmarks/erase_each.py run --preset default      # resumable: a file a concept
    python benchmarks/erase_each.py time --preset default     # erases again, for the clock alone
    python benchmarks/erase_each.py table                     # writes the tables of README.md

Two runs side by side share the work with `--shard 1/2` and `--shard 2/2`; their seconds then count
for little, which is what `time` is for: run it with nothing beside it.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import torch

from sepme.artefact import versions, write_atomically
from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Judge
from sepme.atelier.paintings import OBJECTS, PHOTO, STYLES
from sepme.composition import Composition
from sepme.concept import Catalogue, Concept, fill
from sepme.delta import ConceptDelta
from sepme.erasure import erase, preset
from sepme.metrics.lpips import lpips_distance
from sepme.model import ATELIER, Backbone

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "erase_each"
SCENES = [(o, s) for s in STYLES for o in OBJECTS] + [(o, PHOTO) for o in OBJECTS]


def scene_prompt(object: str, style: str) -> str:
    template = "a photo of {ao}" if style == PHOTO else "a painting of {ao} in the style of {s}"
    return fill(template, object, style)


def retained_scenes(concept: Concept, n: int) -> list[tuple[str, str, int]]:
    """(object, style, seed) of n pictures that do not name the concept, every scene in turn."""
    scenes = [scene for scene in SCENES if concept.name not in scene]
    random.Random(0).shuffle(scenes)  # so that fewer pictures than scenes are of all styles
    return [(*scenes[i % len(scenes)], 1 + i // len(scenes)) for i in range(n)]


def forgotten_pictures(concept: Concept, n: int) -> tuple[list[str], list[int]]:
    prompts = [concept.prompts[i % len(concept.prompts)] for i in range(n)]
    return prompts, list(range(9000, 9000 + n))


def picture_seed(object: str, style: str, seed: int) -> int:
    return 1000 * seed + SCENES.index((object, style))


class Bench:
    """The model, the judge, and the original pictures that all concepts are measured against."""

    def __init__(self, model: Path, forgotten: int, retained: int, half: bool = False) -> None:
        self.forgotten, self.retained, self.half = forgotten, retained, half
        self.backbone = Backbone.load(model)
        self.judge = Judge.load(model / "judge.safetensors")
        self.catalogue = Catalogue.load(model / "catalogue.json")
        self._originals: dict[tuple[str, str, int], torch.Tensor] = {}

    def originals(self, scenes: list[tuple[str, str, int]]) -> torch.Tensor:
        missing = [scene for scene in scenes if scene not in self._originals]
        if missing:
            self._originals |= dict(zip(missing, self.draw(missing), strict=True))
        return torch.stack([self._originals[scene] for scene in scenes])

    def draw(self, scenes: list[tuple[str, str, int]]) -> torch.Tensor:
        prompts = [scene_prompt(o, s) for o, s, _ in scenes]
        return self.generate(prompts, [picture_seed(*scene) for scene in scenes])

    def generate(self, prompts: list[str], seeds: list[int]) -> torch.Tensor:
        with torch.autocast(self.backbone.device.type, torch.bfloat16, enabled=self.half):
            return self.backbone.generate(prompts, seeds, batch=50)

    def right(self, images: torch.Tensor, scenes: list[tuple[str, str, int]]) -> dict[str, float]:
        """Share of the pictures in which the judge finds the prompt's style, and its object."""
        verdict = self.judge.judge(images)
        styles = torch.tensor([STYLE_NAMES.index(s) for _, s, _ in scenes])
        objects = torch.tensor([OBJECT_NAMES.index(o) for o, _, _ in scenes])
        style, object = styles == verdict.style, objects == verdict.object
        return {"style": style.float().mean().item(), "object": object.float().mean().item()}

    def erase(self, concept: Concept, how: str) -> tuple[ConceptDelta, float]:
        """The concept's delta, and the seconds that it took."""
        keep = self.catalogue.kept_prompts([concept])
        start = time.perf_counter()
        delta = erase(self.backbone, concept, keep, preset(how), seed=0)
        return delta, time.perf_counter() - start

    def measure(self, name: str, how: str) -> dict:
        concept = self.catalogue[name]
        scenes = retained_scenes(concept, self.retained)
        prompts, seeds = forgotten_pictures(concept, self.forgotten)
        before, seen_before = self.originals(scenes), self.generate(prompts, seeds)
        delta, seconds = self.erase(concept, how)
        with Composition(self.backbone, [delta]) as composition, composition.erased(name):
            after, seen_after = self.draw(scenes), self.generate(prompts, seeds)
        return {
            "concept": name,
            "kind": concept.kind,
            "preset": how,
            "seen_before": self.judge.sees(seen_before, name).float().mean().item(),
            "seen_after": self.judge.sees(seen_after, name).float().mean().item(),
            "forgotten_images": len(prompts),
            "retained_before": self.right(before, scenes),
            "retained_after": self.right(after, scenes),
            "lpips": lpips_distance(before, after).mean().item(),
            "identical": (before - after)
            .abs()
            .flatten(1)
            .amax(1)
            .lt(0.5 / 255)
            .float()
            .mean()
            .item(),
            "retained_images": len(scenes),
            "rank": delta.rank,
            "iterations": delta.provenance.iterations,
            "seconds": seconds,
            "threads": torch.get_num_threads(),
            "pictures_in": "bfloat16" if self.half else "float32",
            "base": self.backbone.fingerprint,
            "versions": versions(),
        }


def run(bench: Bench, how: str, shard: tuple[int, int], names: list[str] | None) -> None:
    concepts = [c.name for c in bench.catalogue.concepts.values() if c.kind in ("style", "object")]
    for name in names or concepts[shard[0] - 1 :: shard[1]]:
        path = RESULTS / how / f"{name}.json"
        if path.exists() and json.loads(path.read_text())["base"] == bench.backbone.fingerprint:
            continue
        row = bench.measure(name, how)
        write_atomically(path, (json.dumps(row, indent=1) + "\n").encode())
        print(_line(row), flush=True)


def clock(bench: Bench, how: str) -> None:
    """Replace the seconds of every row by those of erasing once more, with nothing beside it."""
    for path in sorted((RESULTS / how).glob("*.json")):
        row = json.loads(path.read_text())
        _, row["seconds"] = bench.erase(bench.catalogue[row["concept"]], how)
        row["threads"] = torch.get_num_threads()
        write_atomically(path, (json.dumps(row, indent=1) + "\n").encode())
        print(_line(row), flush=True)


def _line(row: dict) -> str:
    drops = {
        k: 100 * (row["retained_before"][k] - row["retained_after"][k]) for k in ("style", "object")
    }
    return (
        f"| {row['concept']} | {row['seen_before']:.0%} | **{row['seen_after']:.0%}** "
        f"| {drops['style']:+.1f} | {drops['object']:+.1f} | {row['lpips']:.4f} "
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
    return "\n".join([HEADER, *map(_line, rows), "", _summary(rows)])


def _summary(rows: list[dict]) -> str:
    n = {what: {row[what] for row in rows} for what in ("forgotten_images", "retained_images")}
    counts = " and ".join("/".join(map(str, sorted(values))) for values in n.values())
    seconds = statistics.median(row["seconds"] for row in rows)
    threads = "/".join(map(str, sorted({row["threads"] for row in rows})))
    precision = "/".join(sorted({row["pictures_in"] for row in rows}))
    return (
        f"{len(rows)} concepts, {counts} pictures each (forgotten and retained, drawn in "
        f"{precision}); median "
        f"{seconds:.1f} s a concept on {threads} thread(s); model {rows[0]['base'][:12]}."
    )


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
    parser.add_argument("--model", type=Path, default=ATELIER)
    parser.add_argument("--forgotten", type=int, default=50, help="pictures of the concept")
    parser.add_argument("--retained", type=int, default=200, help="pictures of everything else")
    parser.add_argument("--bfloat16", action="store_true", help="draw in half precision")
    parser.add_argument("--shard", default="1/1", help="i/n: this process takes every n-th concept")
    parser.add_argument("--only", nargs="*", help="names of concepts")
    options = parser.parse_args()
    if options.command == "table":
        write_tables()
        return
    first, total = map(int, options.shard.split("/"))
    bench = Bench(options.model, options.forgotten, options.retained, options.bfloat16)
    if options.command == "time":
        clock(bench, options.preset)
        return
    run(bench, options.preset, (first, total), options.only)


if __name__ == "__main__":
    main()
