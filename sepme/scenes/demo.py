"""The whole story in one run: erase concepts one at a time, compose them, judge, give them back."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sepme import erasure
from sepme.artefact import versions, write_atomically
from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Judge
from sepme.composition import Composition
from sepme.concept import Catalogue, Concept
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, ErasureSettings
from sepme.erasure import ErasureStep as Step
from sepme.errors import SepmeError
from sepme.metrics.lpips import alexnet_available, lpips_distance
from sepme.model import Backbone
from sepme.plots import ERASED, correlation_decay, image_grid, png
from sepme.report import save_json, writable_folder
from sepme.training import Trainer

#: Three styles, neon's darkness the hardest of them, and an object.
CONCEPTS = ("neon", "swirl", "ink", "boat")
#: Where the seeds of the judged pictures begin; those of the grid begin at the run's own seed.
JUDGED = 10_000


@dataclass(frozen=True)
class Scene:
    """A prompt that names a style and an object, so that both can be checked in its picture."""

    prompt: str
    style: str
    object: str


@dataclass
class _Clock:
    """Seconds spent, by activity."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def run_demo(
    backbone: Backbone,
    judge: Judge,
    out: str | Path,
    *,
    catalogue: Catalogue,
    erase: Sequence[str] = CONCEPTS,
    settings: ErasureSettings = PRESETS["default"],
    samples: int = 20,
    retained: int = 40,
    seed: int = 0,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> dict[str, Any]:
    """Erase, compose and restore; write pictures, deltas and `report.json` into `out`.

    Args:
        backbone, judge, catalogue: the model, who looks at its pictures, what it knows.
        erase: names of styles and objects; at least one style and one object must be left.
        samples: judged pictures for each erased concept, with all concepts erased at once.
        retained: judged pictures of everything else.
        seed: decides the deltas and all pictures.
        say: takes the lines that tell how far it is.

    Returns:
        What `report.json` holds.

    Raises:
        SepmeError: an unknown concept, nothing left to keep, a folder that cannot be written to.
    """
    concepts = catalogue.parse(",".join(erase))
    show = Exhibition(catalogue, concepts)
    if min(samples, retained) < 1:
        raise SepmeError("There must be at least one picture to judge: raise the number.")
    out = writable_folder(out)
    clock = _Clock()
    with clock.measure("total"):
        trained = []
        for concept in concepts:
            with clock.measure("erasing"):
                trained.append(_erase(backbone, concept, catalogue, settings, seed, progress))
            trained[-1].delta.save(out / "deltas" / f"{concept.name}.safetensors")
            say(f"Erased {concept.name} in {trained[-1].seconds:.0f} s")
        deltas = [entry.delta for entry in trained]
        with clock.measure("composing"):
            say(f"Composing the {len(deltas)} deltas, restoring, and drawing before_after.png ...")
            pictures, proof = _compose(backbone, deltas, show, seed)
        with clock.measure("judging"):
            say(f"Judging {2 * (samples * len(concepts) + retained)} pictures ...")
            found = _judge(backbone, judge, deltas, show, samples, retained)
        write_atomically(out / "before_after.png", png(before_after(pictures, show, judge)))
        write_atomically(out / "correlation_decay.png", png(_decay(trained, settings)))
    report = _report(trained, found, proof, clock.seconds)
    report["provenance"] = _provenance(backbone, deltas, settings, seed)
    save_json(out / "report.json", report)
    return report


# ------------------------------------------------------------------ what is shown
class Exhibition:
    """Which prompts are the demo's rows, and which sets of concepts are its columns.

    Each erased concept has a row ("a painting of a house in the style of neon"), and each such row
    a counterpart that must stay ("a painting of a house in the style of pixel").
    """

    def __init__(self, catalogue: Catalogue, concepts: Sequence[Concept]) -> None:
        for concept in concepts:
            if concept.kind not in ("style", "object"):
                raise SepmeError(
                    f"The demo shows styles and objects, and {concept.name!r} is neither: "
                    "leave it out."
                )
        self.concepts = tuple(concepts)
        self.names = tuple(concept.name for concept in concepts)
        crossed = scenes(catalogue)
        self.kept = [s for s in crossed if not {s.style, s.object} & set(self.names)]
        if not self.kept:
            raise SepmeError("Nothing is left to keep: erase fewer styles or fewer objects.")
        self.erased_rows, self.kept_rows = self._rows(crossed)

    def _rows(self, crossed: list[Scene]) -> tuple[list[Scene], list[Scene]]:
        # From the last on: the shipped model's first, pointillism and mosaic, look alike.
        styles = list(dict.fromkeys(scene.style for scene in self.kept))[::-1]
        objects = list(dict.fromkeys(scene.object for scene in self.kept))
        by_pair: dict[tuple[str, str], Scene] = {}
        for scene in crossed:
            by_pair.setdefault((scene.style, scene.object), scene)
        gone, stays = [], []
        for i, concept in enumerate(self.concepts):
            style, object = styles[i % len(styles)], objects[i % len(objects)]
            is_style = concept.kind == "style"
            gone.append(by_pair[(concept.name, object) if is_style else (style, concept.name)])
            stays.append(by_pair[style, object])
        return gone, stays

    @property
    def rows(self) -> list[Scene]:
        return [*self.erased_rows, *self.kept_rows]

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


def scenes(catalogue: Catalogue) -> list[Scene]:
    """The catalogue's prompts that belong to one style and one object, in its order."""
    owners: dict[str, dict[str, str]] = {}
    for concept in catalogue.concepts.values():
        for prompt in concept.prompts:
            owners.setdefault(prompt, {})[concept.kind] = concept.name
    return [
        Scene(prompt, kinds["style"], kinds["object"])
        for prompt, kinds in owners.items()
        if kinds.keys() == {"style", "object"}
    ]


def before_after(pictures: Mapping[str, Tensor], show: Exhibition, judge: Judge) -> Figure:
    """The demo's picture: prompts by what is erased, what should change framed."""
    original = next(iter(pictures.values()))
    rows, columns = show.rows, show.columns
    framed = [
        [ERASED if {scene.style, scene.object} & set(gone) else None for gone in columns.values()]
        for scene in rows
    ]
    seen = {label: _seen(judge, images) for label, images in pictures.items()}
    change = {label: _change(original, images) for label, images in pictures.items()}
    notes = [
        [f"{seen[label][r]}\n{change[label][r]}" for label in columns] for r in range(len(rows))
    ]
    return image_grid(
        [[pictures[label][r] for label in columns] for r in range(len(rows))],
        [scene.prompt for scene in rows],
        list(columns),
        frames=framed,
        notes=notes,
        groups={
            0: "Prompts that name an erased concept: framed where it must be gone",
            len(show.erased_rows): "Prompts that must stay as they are",
        },
        title="Forgetting "
        + " and ".join(filter(None, [", ".join(show.names[:-1]), show.names[-1]])),
        footer="Below each picture: what an independent judge sees, and the mean change of its "
        "pixels.\nEach row starts from the same noise in every column.",
        cell=1.2,
    )


def _decay(trained: "Sequence[_Trained]", settings: ErasureSettings) -> Figure:
    """How the correlation fell while each delta was trained, and what ended it."""
    figure = Figure(figsize=(7.6, 3.9), layout="constrained", dpi=150)
    steps = {entry.delta.concept: entry.steps for entry in trained}
    ax = correlation_decay(steps, figure.subplots(), tau=settings.tau, limit=settings.iterations)
    start = ",\nfrom the closed form on" if settings.start == "closed_form" else ""
    ax.set_title(f"What is left of each concept while its delta is trained{start}", fontsize=11)
    return figure


def _seen(judge: Judge, images: Tensor) -> list[str]:
    """The judge's words for each picture."""
    verdict = judge.judge(images)
    pairs = zip(verdict.style.tolist(), verdict.object.tolist(), strict=True)
    return [f"{STYLE_NAMES[style]}, {OBJECT_NAMES[object]}" for style, object in pairs]


def _change(original: Tensor, images: Tensor) -> list[str]:
    """How much each picture differs from the original's, in words."""
    if images is original:
        return [""] * len(images)
    sizes = (images - original).abs().flatten(1).mean(1).tolist()
    return ["identical" if size == 0 else f"Δ {100 * size:.1f} %" for size in sizes]


# ------------------------------------------------------------------ what is done
@dataclass(frozen=True)
class _Trained:
    delta: ConceptDelta
    steps: list[Step]
    seconds: float


def _erase(
    backbone: Backbone,
    concept: Concept,
    catalogue: Catalogue,
    settings: ErasureSettings,
    seed: int,
    progress: bool,
) -> _Trained:
    steps: list[Step] = []
    start = time.perf_counter()
    delta = erasure.erase(
        backbone,
        concept,
        catalogue.kept_prompts([concept]),
        settings,
        seed=seed,
        trainer=Trainer(callback=steps.append, progress=progress),
    )
    return _Trained(delta, steps, time.perf_counter() - start)


def _compose(
    backbone: Backbone, deltas: list[ConceptDelta], show: Exhibition, seed: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Pictures of all columns, and whether restoring and the order are exact."""
    prompts = [scene.prompt for scene in show.rows]
    original = backbone.generate(prompts, seed, output="latents")
    with Composition(backbone, deltas) as composition:
        pictures = {}
        for label, gone in show.columns.items():
            composition.set(gone)
            pictures[label] = backbone.generate(prompts, seed)
        for name in show.names:  # one after the other, as in iterative erasure
            composition.erase(name)
        forwards = backbone.generate(prompts, seed, output="latents")
        composition.restore_all()
        restored = backbone.generate(prompts, seed, output="latents")
    with Composition(backbone, deltas[::-1]) as composition:
        for name in show.names[::-1]:
            composition.erase(name)
        backwards = backbone.generate(prompts, seed, output="latents")
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
    deltas: list[ConceptDelta],
    show: Exhibition,
    samples: int,
    retained: int,
) -> dict[str, Any]:
    """What the judge finds in the pictures of the original, and with every concept erased."""
    prompts = {c.name: evenly(c.prompts, samples) for c in show.concepts}
    kept = evenly(show.kept, retained)
    everything = [p for some in prompts.values() for p in some] + [s.prompt for s in kept]
    before = backbone.generate(everything, JUDGED)
    with Composition(backbone, deltas) as composition, composition.erased(*show.names):
        after = backbone.generate(everything, JUDGED)
    found: dict[str, Any] = {"erased": {}}
    for i, name in enumerate(show.names):
        some = slice(i * samples, (i + 1) * samples)
        found["erased"][name] = {
            "accuracy_before": _share(judge.sees(before[some], name)),
            "accuracy_after": _share(judge.sees(after[some], name)),
            "pictures": samples,
        }
    found["retained"] = _retained(judge, before[-retained:], after[-retained:], kept)
    return found


def _retained(judge: Judge, before: Tensor, after: Tensor, kept: list[Scene]) -> dict[str, Any]:
    style = torch.tensor([STYLE_NAMES.index(scene.style) for scene in kept])
    object = torch.tensor([OBJECT_NAMES.index(scene.object) for scene in kept])
    row: dict[str, Any] = {}
    for when, images in (("before", before), ("after", after)):
        verdict = judge.judge(images)
        right_style, right_object = verdict.style == style, verdict.object == object
        row[f"accuracy_{when}"] = _share(right_style & right_object)
        row[f"style_{when}"] = _share(right_style)
        row[f"object_{when}"] = _share(right_object)
    row["lpips"] = row["lpips_note"] = None
    if alexnet_available():
        row["lpips"] = float(lpips_distance(before, after).mean())
    else:
        row["lpips_note"] = "not measured: LPIPS needs AlexNet's weights (`make test` gets them)"
    row["mean_pixel_difference"] = float((before - after).abs().mean())
    row["pictures"] = len(kept)
    return row


def _report(
    trained: list[_Trained],
    found: dict[str, Any],
    proof: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    for entry in trained:
        found["erased"][entry.delta.concept] |= {
            "iterations": entry.delta.provenance.iterations,
            "seconds": round(entry.seconds, 3),
            "rank": entry.delta.rank,
        }
    return found | proof | {"seconds": {name: round(s, 3) for name, s in seconds.items()}}


def _provenance(
    backbone: Backbone, deltas: list[ConceptDelta], settings: ErasureSettings, seed: int
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


def evenly(items: Sequence[Any], n: int) -> list[Any]:
    """n of the items, evenly spread over them all, repeated in turn where there are fewer."""
    if n >= len(items):
        return [items[i % len(items)] for i in range(n)]
    return [items[i * len(items) // n] for i in range(n)]


def _share(true: Tensor) -> float:
    return float(true.float().mean())
