"""Erase every concept of the Atelier alone; measure what went and what stayed, trained or not.

    python benchmarks/erase_each.py run --preset faithful --protocol paper    # resumable
    python benchmarks/erase_each.py time --preset faithful --protocol paper   # for the clock alone
    python benchmarks/erase_each.py table                                     # into README.md

Every concept is a file of `results/erase_each/<preset>-<protocol>/`. Two runs side by side share
the work with `--only` and names; their seconds then count for little, which `time` is for.
Pictures lie in the user's cache folder: those of the original model are drawn once for all runs.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _markdown import write_between
from torch import Tensor

from sepme._data import cache
from sepme.artefact import versions, write_atomically
from sepme.atelier.judge import Judge
from sepme.atelier.objects import NOTHING
from sepme.atelier.paintings import ALIASES, OBJECTS, STYLES
from sepme.concept import BOTH, PHOTO, Concept, evenly, fill, with_article
from sepme.delta import ConceptDelta
from sepme.erasure import ErasureSettings, erase, preset
from sepme.metrics import Estimate, estimate_share, measure_lpips, residual_share
from sepme.metrics.estimate import estimate_mean
from sepme.model import Backbone, load_catalogue
from sepme.scenes.images import ImageCache, Sampling
from sepme.scenes.protocol import PROTOCOLS
from sepme.training import Trainer

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "erase_each"
#: Protocol -> what its retain set holds.
RETAINED = {
    "paper": "the bare names of the next five of its kind, `atelier seal` and the empty prompt",
    "catalogue": "every prompt of the catalogue that does not name the concept",
}
#: The sets of which the original's pictures are drawn too, for the residual share.
COMPARED = ("trained", "held_out")


class Asked(NamedTuple):
    """A picture to draw."""

    prompt: str
    seed: int
    kept: str = ""
    """The concept that it should still show, if it names one."""
    anchor: str = ""
    """What the prompt should mean once its concept is forgotten."""


# ------------------------------------------------------------------ what is asked for
def others(name: str) -> list[str]:
    """The concepts of its kind, from the one after it on."""
    kind = STYLES if name in STYLES else OBJECTS
    start = kind.index(name) + 1
    return [other for other in (*kind[start:], *kind[:start]) if other != name]


def crossings(word: str, templates: Sequence[str], n: int, seed: int, style: bool) -> list[Asked]:
    """A style (or object) in the templates, with all objects (or styles) in turn."""
    partners, found = (OBJECTS if style else STYLES), []
    for i in range(n):
        template, partner = templates[(i + i // 10) % len(templates)], partners[i % 10]
        prompt = fill(template, *((partner, word) if style else (word, partner)))
        if template in BOTH:
            photo = f"{PHOTO} of {with_article(partner)}"
            anchor = photo if style else fill(template, NOTHING, partner, uncounted=NOTHING)
            found.append(Asked(prompt, seed + i, partner, anchor))
        else:
            found.append(Asked(prompt, seed + i, "", PHOTO if style else NOTHING))
    return found


def forgotten(concept: Concept, n: int) -> dict[str, list[Asked]]:
    """The sets of n pictures each in which the concept is looked for."""
    style, alias = concept.kind == "style", ALIASES[concept.name]
    pairs = evenly(list(zip(concept.prompts, concept.anchors, strict=True)), n)
    every = ("{s}" if style else "{o}", *BOTH)
    return {
        "trained": [Asked(p, 9000 + i, anchor=a) for i, (p, a) in enumerate(pairs)],
        "held_out": crossings(concept.name, BOTH[2:], n, 9100, style),
        "alias": crossings(alias, every, n, 9200, style),
        "two_concepts": crossings(concept.name, BOTH[:2], n, 9300, style),
    }


def kept(name: str, n: int, seed: int, bare: bool) -> list[Asked]:
    """Pictures of a concept that was not erased: of its bare name, or of that and all crossings."""
    style = name in STYLES
    word = "{s}" if style else "{o}"
    asked = crossings(name, [word] if bare else [word, *BOTH], n, seed, style)
    return [each._replace(kept=name) for each in asked]


# ------------------------------------------------------------------ what is measured
class Bench:
    """The model, the judge, and the pictures of the original model."""

    def __init__(self, how: str, protocol: str, images: int) -> None:
        self.how, self.protocol, self.images = how, protocol, images
        self.backbone, self.judge = Backbone.load(), Judge.load()
        self.catalogue = load_catalogue()
        # In full precision: the retain set is exact, which rounding would hide.
        self.cache = ImageCache(self.backbone, cache("erase_each"), Sampling(bfloat16=False))
        self.folder = RESULTS / f"{how}-{protocol}"

    def request(self, name: str) -> tuple[Concept, Sequence[str], list[str]]:
        """The concept with its forget set, the retain set, and the concepts that this names."""
        protocol, known = PROTOCOLS[self.protocol], others(name)
        if self.protocol == "paper":
            known = known[:5]
        keep = protocol.retain(self.catalogue, [name], known)
        return protocol.forget(self.catalogue, name), keep, known

    def erase(self, name: str, how: ErasureSettings | None = None) -> tuple[ConceptDelta, float]:
        """The concept's delta, and the seconds that it took; by the preset, or other settings."""
        start = time.perf_counter()
        concept, keep, _ = self.request(name)
        how, quiet = how or preset(self.how), Trainer(progress=False)
        delta = erase(self.backbone, concept, keep, how, seed=0, trainer=quiet)
        return delta, time.perf_counter() - start

    def draw(self, asked: Sequence[Asked], *deltas: ConceptDelta, anchors: bool = False) -> Tensor:
        prompts = [each.anchor if anchors else each.prompt for each in asked]
        return self.cache.draw(deltas, prompts, [each.seed for each in asked]) / 255

    def found(self, images: Tensor, asked: Sequence[Asked]) -> Estimate:
        """Share of the pictures that show the concept that they should."""
        verdict = self.judge.judge(images)
        shown = [verdict.of(a.kept)[1][i] for i, a in enumerate(asked) if a.kept]
        return estimate_share(torch.stack(shown))

    def measure_forgotten(self, name: str, delta: ConceptDelta) -> dict[str, dict[str, Estimate]]:
        """What is left of the concept, and whether the other concept of a prompt is still there."""
        rows, neighbour = {}, forgotten(self.request(others(name)[0])[0], self.images)
        for which, asked in forgotten(self.request(name)[0], self.images).items():
            images = self.draw(asked, delta)
            probability, seen = self.judge.judge(images).of(name)
            row = {"seen": estimate_share(seen), "probability": estimate_mean(probability)}
            if which in COMPARED:
                original, anchor = self.draw(asked), self.draw(asked, anchors=True)
                other = self.draw(neighbour[which])
                row["seen_before"] = estimate_share(self.judge.sees(original, name))
                row["residue"] = estimate_mean(residual_share(images, original, anchor))
                row["neighbour"] = estimate_mean(residual_share(other, original, anchor))
            if any(each.kept for each in asked):
                row["partner"] = self.found(images, asked)
            rows[which] = row
        return rows

    def measure_kept(self, name: str, delta: ConceptDelta) -> dict[str, dict[str, Estimate]]:
        """Whether other concepts of its kind are drawn as before: never named, and retained."""
        known, rows = self.request(name)[2], {}
        unnamed = [other for other in others(name) if other not in known]
        for which, names in (("unnamed", unnamed), ("retained", known)):
            n = -(-self.images // max(1, len(names)))
            sets = [kept(each, n, 9400, bare=which == "retained") for each in names]
            if not sets:
                continue
            before = torch.cat([self.draw(asked) for asked in sets])
            after = torch.cat([self.draw(asked, delta) for asked in sets])
            asked = [*chain(*sets)]
            row = {"right_before": self.found(before, asked), "right": self.found(after, asked)}
            rows[which] = row | {"lpips": measure_lpips(after, before)}
        return rows

    def measure(self, name: str, how: ErasureSettings | None = None) -> dict[str, Any]:
        delta, seconds = self.erase(name, how)
        sets = self.measure_forgotten(name, delta) | self.measure_kept(name, delta)
        return {
            "concept": name,
            "kind": self.catalogue[name].kind,
            "preset": self.how,
            "protocol": self.protocol,
            "rank": delta.rank,
            "iterations": delta.provenance.iterations,
            "seconds": seconds,
            "threads": torch.get_num_threads(),
            "images": self.images,
            "sampling": asdict(self.cache.sampling),
            "base": self.backbone.fingerprint,
            "versions": versions(),
            **{which: {k: asdict(e) for k, e in row.items()} for which, row in sets.items()},
        }


def run(bench: Bench, names: Sequence[str]) -> None:
    for name in names:
        path = bench.folder / f"{name}.json"
        if path.exists() and json.loads(path.read_text())["base"] == bench.backbone.fingerprint:
            continue
        write(path, bench.measure(name))


def clock(bench: Bench, names: Sequence[str]) -> None:
    """Replace the seconds of every row by those of erasing once more, with nothing beside it."""
    for name in names:
        path = bench.folder / f"{name}.json"
        row = json.loads(path.read_text())
        row["seconds"] = bench.erase(name)[1]
        write(path, row | {"threads": torch.get_num_threads()})


def write(path: Path, row: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(row, indent=1) + "\n").encode())
    print(line(row, TRAINED), line(row, NOT_TRAINED), sep="\n", flush=True)


# ------------------------------------------------------------------ tables
#: Column -> set, value and format of a table.
TRAINED = {
    "seen before": ("trained", "seen_before", "{:.0%}"),
    "**seen after**": ("trained", "seen", "{:.0%}"),
    "probability": ("trained", "probability", "{:.2f}"),
    "residue": ("trained", "residue", "{:.2f}"),
    "neighbour's": ("trained", "neighbour", "{:.2f}"),
    "retained right": ("retained", "right", "{:.0%}"),
    "LPIPS": ("retained", "lpips", "{:.4f}"),
    "never named right": ("unnamed", "right", "{:.0%}"),
    "LPIPS ": ("unnamed", "lpips", "{:.4f}"),
    "rank": ("rank", "", "{}"),
    "iterations": ("iterations", "", "{}"),
    "seconds": ("seconds", "", "{:.0f}"),
}
NOT_TRAINED = {
    "seen before": ("held_out", "seen_before", "{:.0%}"),
    "**held out: seen**": ("held_out", "seen", "{:.0%}"),
    "probability": ("held_out", "probability", "{:.2f}"),
    "residue": ("held_out", "residue", "{:.2f}"),
    "neighbour's": ("held_out", "neighbour", "{:.2f}"),
    "partner kept": ("held_out", "partner", "{:.0%}"),
    "**alias: seen**": ("alias", "seen", "{:.0%}"),
    "probability ": ("alias", "probability", "{:.2f}"),
    "**two concepts: seen**": ("two_concepts", "seen", "{:.0%}"),
    "partner kept ": ("two_concepts", "partner", "{:.0%}"),
}


def cell(row: dict[str, Any], which: str, value: str, style: str) -> str:
    """A number with its interval, like 2 % (0 % to 10 %)."""
    found = row.get(which, "–")
    if not isinstance(found, dict):
        return found if found == "–" else style.format(found)
    mean, low, high = (style.format(found[value][end]) for end in ("mean", "low", "high"))
    return f"{mean} ({low.rstrip('%')}–{high.rstrip('%')})" if low != high else mean


def line(row: dict[str, Any], columns: dict[str, tuple[str, str, str]]) -> str:
    return f"| {row['concept']} | {' | '.join(cell(row, *c) for c in columns.values())} |"


def tables(folder: Path) -> str:
    """Two Markdown tables of all concepts, the most visible after erasing first."""
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    one, texts = rows[0], []
    about = f"Preset `{one['preset']}`, retain set `{one['protocol']}`"
    for title, which, columns in (
        (f"{about}: trained prompts, and the concepts that stay", "trained", TRAINED),
        (f"{about}: prompts that were not trained", "held_out", NOT_TRAINED),
    ):
        rows.sort(key=lambda row: [-row[which][key]["mean"] for key in ("seen", "probability")])
        head = f"| concept | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}"
        texts += [f"### {title}", "\n".join([head, *(line(row, columns) for row in rows)])]
    seconds = statistics.median(row["seconds"] for row in rows)
    threads = "/".join(map(str, sorted({row["threads"] for row in rows})))
    texts.append(
        f"{len(rows)} concepts; the retain set is {RETAINED[one['protocol']]}; {one['images']} "
        f"pictures a set, {one['sampling']['steps']} steps; median {seconds:.0f} s a concept on "
        f"{threads} thread(s); model {one['base'][:12]}."
    )
    return "\n\n".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "time", "table"))
    parser.add_argument("--preset", default="default", help="a preset of sepme")
    parser.add_argument("--protocol", default="paper", choices=PROTOCOLS)
    parser.add_argument("--images", type=int, default=50, help="pictures of each set")
    parser.add_argument("--only", nargs="+", default=(*STYLES, *OBJECTS), help="names of concepts")
    options = parser.parse_args()
    if options.command == "table":
        folders = [f for f in sorted(RESULTS.iterdir()) if any(f.glob("*.json"))]
        return write_between("erase_each", "\n\n".join(map(tables, folders)))
    bench = Bench(options.preset, options.protocol, options.images)
    return (run if options.command == "run" else clock)(bench, options.only)


if __name__ == "__main__":
    main()
