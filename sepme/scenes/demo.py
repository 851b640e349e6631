"""The whole story in one run: erase concepts one at a time, compose, judge, and restore them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from pandas import DataFrame
from torch import Tensor

from sepme._checks import whole
from sepme.artefact import save_json, versions, writable_folder, write_atomically
from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Asked, Judge, found
from sepme.composition import Composition, applied
from sepme.concept import Catalogue, Concept, evenly, slug
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, ErasureSettings, ErasureStep, erase
from sepme.errors import SepmeError
from sepme.metrics import alexnet_available, lpips_distance
from sepme.model import Backbone
from sepme.plots import ERASED, correlation_decay, image_grid, png
from sepme.training import Trainer

__all__ = ["DemoGrid", "demo_table", "run_demo"]

#: Where the seeds of the judged pictures begin; those of the grid begin at the run's own seed.
JUDGED = 10_000


def run_demo(
    backbone: Backbone,
    judge: Judge,
    out: str | Path,
    grid: "DemoGrid",
    *,
    settings: ErasureSettings = PRESETS["default"],
    samples: int = 20,
    retained: int = 40,
    seed: int = 0,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> dict[str, Any]:
    """Erase, compose and restore; write pictures, deltas and `report.json` into `out`.

    Args:
        grid: what is erased, and what is shown of it.
        samples: judged pictures for each erased concept, with all concepts erased at once.
        retained: judged pictures of everything else.
        seed: decides the deltas and all pictures.
        say: takes the lines that tell how far it is.

    Returns:
        What `report.json` holds.

    Raises:
        SepmeError: no pictures to judge, or a folder that cannot be written to.
    """
    whole(1, samples=samples, retained=retained)
    out, watch = writable_folder(out), [time.perf_counter()]
    deltas: list[ConceptDelta] = []
    steps: dict[str, list[ErasureStep]] = {name: [] for name in grid.names}
    seconds: list[float] = []
    for concept in grid.concepts:
        keep, start = grid.catalogue.kept_prompts([concept]), time.perf_counter()
        trainer = Trainer(callback=steps[concept.name].append, progress=progress)
        deltas.append(erase(backbone, concept, keep, settings, seed=seed, trainer=trainer))
        seconds.append(round(time.perf_counter() - start, 3))
        deltas[-1].save(out / "deltas" / f"{slug(concept.name)}.safetensors")
        say(f"Erased {concept.name} in {seconds[-1]:.0f} s")
    watch.append(time.perf_counter())
    say(f"Composing the {len(deltas)} deltas, restoring, and drawing before_after.png ...")
    pictures, proof = _compose(backbone, deltas, grid, seed % 2**62)  # room for the next
    watch.append(time.perf_counter())
    say(f"Judging {2 * (samples * len(deltas) + retained)} pictures ...")
    report = _judge(backbone, judge, grid, deltas, seconds, samples, retained)
    watch.append(time.perf_counter())
    write_atomically(out / "before_after.png", png(before_after(pictures, grid, judge)))
    write_atomically(out / "correlation_decay.png", png(_decay(steps, settings)))
    laps = zip(("erasing", "composing", "judging"), np.diff(watch).round(3).tolist(), strict=True)
    report |= proof | {"seconds": {**dict(laps), "total": round(time.perf_counter() - watch[0], 3)}}
    report["provenance"] = _provenance(backbone, deltas, settings, seed)
    save_json(out / "report.json", report)
    return report


# ------------------------------------------------------------------ what is shown
def crossings(catalogue: Catalogue) -> list[Asked]:
    """The catalogue's prompts that belong to one style and one object, in its order."""
    owners: dict[str, dict[str, str]] = {}
    for concept in catalogue.concepts.values():
        for prompt in concept.prompts:
            owners.setdefault(prompt, {})[concept.kind] = concept.name
    both = {"style", "object"}
    return [Asked(prompt, **kinds) for prompt, kinds in owners.items() if kinds.keys() == both]


class DemoGrid:
    """Which prompts are the demo's rows, and which sets of concepts are its columns.

    Each erased concept has a row ("a painting of a house in the style of neon"), and each such row
    a counterpart that must stay ("a painting of a house in the style of pixel").

    Raises:
        SepmeError: a concept that is neither style nor object, or no style or object is left.
    """

    def __init__(self, catalogue: Catalogue, concepts: Sequence[Concept]) -> None:
        for concept in concepts:
            if concept.kind not in ("style", "object"):
                raise SepmeError(f"{concept.name!r} is neither style nor object: leave it out.")
        self.catalogue, self.concepts = catalogue, tuple(concepts)
        self.names = tuple(concept.name for concept in concepts)
        every = crossings(catalogue)
        self.kept = [c for c in every if not {c.style, c.object} & set(self.names)]
        if not self.kept:
            raise SepmeError("Nothing is left to keep: erase fewer styles or fewer objects.")
        # From the last on: the shipped model's first, pointillism and mosaic, look alike.
        styles = list(dict.fromkeys(c.style for c in self.kept))[::-1]
        objects = list(dict.fromkeys(c.object for c in self.kept))
        by_pair = {(c.style, c.object): c for c in reversed(every)}  # the first of a pair counts
        self.erased_rows, self.kept_rows = [], []
        for i, concept in enumerate(concepts):
            style, object = styles[i % len(styles)], objects[i % len(objects)]
            is_style = concept.kind == "style"
            erased = (concept.name, object) if is_style else (style, concept.name)
            self.erased_rows.append(by_pair[erased])
            self.kept_rows.append(by_pair[style, object])
        self.rows = [*self.erased_rows, *self.kept_rows]

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """Heading -> what is erased; simultaneous, iterative and restored."""
        first, everything = self.names[0], self.names
        count = {2: "both", 3: "all three", 4: "all four"}.get(len(everything), "all")
        columns: dict[str, tuple[str, ...]] = {"original": (), f"without\n{first}": (first,)}
        if len(everything) > 2:
            columns[f"without {first},\n{everything[1]}"] = everything[:2]
        if len(everything) > 1:
            columns[f"without\n{count}"] = everything
            columns[f"{first}\ngiven back"] = everything[1:]
        return columns | {"all\ngiven back": ()}


def before_after(pictures: Mapping[str, Tensor], grid: DemoGrid, judge: Judge) -> Figure:
    """The demo's picture: prompts by what is erased, what should change framed."""
    frames, notes = [], []
    for label, gone in grid.columns.items():
        verdict = judge.judge(pictures[label])
        change = (pictures[label] - pictures["original"]).abs().flatten(1).mean(1).tolist()
        words = [f"Δ {100 * size:.1f} %" if size else "identical" for size in change]
        words = [""] * len(words) if label == "original" else words
        seen = zip(verdict.style.tolist(), verdict.object.tolist(), words, strict=True)
        notes.append([f"{STYLE_NAMES[s]}, {OBJECT_NAMES[o]}\n{word}" for s, o, word in seen])
        frames.append([ERASED if {r.style, r.object} & set(gone) else None for r in grid.rows])
    columns = [pictures[label] for label in grid.columns]
    images, frames, notes = (list(zip(*part, strict=True)) for part in (columns, frames, notes))
    *several, last = grid.names
    return image_grid(
        images,
        [row.prompt for row in grid.rows],
        list(grid.columns),
        frames=frames,
        notes=notes,
        groups={
            0: "Prompts that name an erased concept: framed where it must be gone",
            len(grid.erased_rows): "Prompts that must stay as they are",
        },
        title="Forgetting " + " and ".join([", ".join(several), last] if several else [last]),
        footer="Below each picture: what an independent judge sees, and the mean change of its "
        "pixels.\nEach row starts from the same noise in every column.",
        cell=1.2,
    )


def _decay(steps: Mapping[str, Sequence[ErasureStep]], settings: ErasureSettings) -> Figure:
    """How the correlation fell while each delta was trained, and what ended it."""
    figure = Figure(figsize=(7.6, 3.9), layout="constrained", dpi=150)
    ax = correlation_decay(steps, figure.subplots(), tau=settings.tau, limit=settings.iterations)
    start = ",\nfrom the closed form on" if settings.start == "closed_form" else ""
    ax.set_title(f"What is left of each concept while its delta is trained{start}", fontsize=11)
    return figure


# ------------------------------------------------------------------ what is done
def _compose(
    backbone: Backbone, deltas: list[ConceptDelta], grid: DemoGrid, seed: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Pictures of all columns, and whether restoring and the order are exact."""
    prompts, pictures = [row.prompt for row in grid.rows], {}

    def latents() -> Tensor:
        return backbone.generate(prompts, seed, output="latents")

    original = latents()
    with Composition(backbone, deltas) as composition:
        for label, gone in grid.columns.items():
            composition.set(gone)
            pictures[label] = backbone.generate(prompts, seed)
        for name in grid.names:  # one after the other, as in iterative erasure
            composition.erase(name)
        forwards = latents()
        composition.restore_all()
        restored = latents()
    with Composition(backbone, deltas[::-1]) as composition:
        for name in grid.names[::-1]:
            composition.erase(name)
        backwards = latents()
    return pictures, {
        "restored": {
            "bit_exact": torch.equal(original, restored)
            and torch.equal(pictures["original"], pictures["all\ngiven back"]),
            "max_abs_diff": float((original - restored).abs().max()),
            "pictures": len(prompts),
        },
        "composition": {
            "order_independent": torch.equal(forwards, backwards),
            "max_abs_diff": float((forwards - backwards).abs().max()),
        },
    }


def _judge(
    backbone: Backbone,
    judge: Judge,
    grid: DemoGrid,
    deltas: Sequence[ConceptDelta],
    seconds: Sequence[float],
    samples: int,
    retained: int,
) -> dict[str, Any]:
    """What the judge finds in the pictures of the original, and with every concept erased."""
    kept = evenly(grid.kept, retained)
    prompts = [p for concept in grid.concepts for p in evenly(concept.prompts, samples)]
    prompts += [crossing.prompt for crossing in kept]
    sizes = [samples] * len(deltas) + [retained]
    *before, kept_before = backbone.generate(prompts, JUDGED).split(sizes)
    with applied(backbone, *deltas):
        *after, kept_after = backbone.generate(prompts, JUDGED).split(sizes)
    erased = {
        delta.concept: {
            "accuracy_before": judge.sees(x, delta.concept).float().mean().item(),
            "accuracy_after": judge.sees(y, delta.concept).float().mean().item(),
            "pictures": samples,
            "iterations": delta.provenance.iterations,
            "seconds": took,
            "rank": delta.rank,
        }
        for delta, took, x, y in zip(deltas, seconds, before, after, strict=True)
    }
    row: dict[str, Any] = {}
    for when, drawn in (("before", kept_before), ("after", kept_after)):
        right = found(judge, drawn, kept)
        row[f"accuracy_{when}"] = float(right.all(axis=1).mean())
        row |= {f"{part}_{when}": share for part, share in right.mean().to_dict().items()}
    known = alexnet_available()
    note = "not measured: LPIPS needs AlexNet's weights (`make test` gets them)"
    row |= {
        "lpips": float(lpips_distance(kept_before, kept_after).mean()) if known else None,
        "lpips_note": None if known else note,
        "mean_pixel_difference": float((kept_before - kept_after).abs().mean()),
        "pictures": len(kept),
    }
    return {"erased": erased, "retained": row}


def _provenance(
    backbone: Backbone, deltas: Sequence[ConceptDelta], settings: ErasureSettings, seed: int
) -> dict[str, Any]:
    return {
        "model": backbone.name,
        "fingerprint": backbone.fingerprint,
        "versions": versions(),
        "device": str(backbone.device),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "sampling": {"steps": backbone.steps, "guidance": backbone.guidance},
        "settings": asdict(settings),
        "deltas": {delta.concept: delta.digest for delta in deltas},
        "judged": "with all concepts of this report erased at once",
    }


# ------------------------------------------------------------------ what is said
def demo_table(report: dict[str, Any]) -> str:
    """What `sepme demo` prints: the figures of report.json, in words."""
    percent, kept, restored = "{:.1%}".format, report["retained"], report["restored"]
    erased = DataFrame.from_dict(report["erased"], orient="index").drop(columns="rank")
    erased.columns = ["seen before", "seen after", "pictures", "iterations", "seconds"]
    shown = {"seen before": percent, "seen after": percent, "seconds": "{:.1f}".format}
    parts = {"style right": "style", "object right": "object", "both right": "accuracy"}
    retained = DataFrame(
        {
            when: [percent(kept[f"{p}_{when}"]) for p in parts.values()]
            for when in ("before", "after")
        },
        index=list(parts),
    ).assign(pictures=kept["pictures"])
    exact = "bit for bit the original"
    if not restored["bit_exact"]:
        exact = f"NOT the original (largest difference {restored['max_abs_diff']:.2g})"
    independent = report["composition"]["order_independent"]
    findings = {
        "Change of everything else": kept["lpips_note"]
        or f"{kept['lpips']:.4f} (mean LPIPS, AlexNet)",
        "All concepts given back": exact,
        "Order of erasing": f"{'makes no' if independent else 'MAKES A'} difference",
        "Seconds in total": f"{report['seconds']['total']:.0f}",
    }
    parts = [
        erased.rename_axis(columns="erased concept").to_string(formatters=shown, col_space=13),
        retained.rename_axis(columns="everything else").to_string(),
        "\n".join(f"{subject:<27} {finding}" for subject, finding in findings.items()),
    ]
    return "\n\n".join(parts)
