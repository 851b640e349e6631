"""Every figure and table of the paper, ours beside the published numbers: `sepme figures`.

| figure here | in the paper | from |
|---|---|---|
| `interference` | 2 | the scenes' tables, each concept erased alone |
| `noise_differences` | 3 | the model: r(c) over timesteps, with a delta off and on |
| `correlation_decay` | 3 | the same: how its correlation decays while a delta is trained |
| `before_after_<kind>_<scene>` | 5, 12, 17 | the same, with the deltas that ship with it |
| `bars_<kind>_<scene>` | 8, 9, 13, 14 | the scenes' tables |
| `alone_<kind>` | 10, 15 | the same, each concept erased alone |
| `watermark_<kind>` | 11 | the same, the watermark's rows |
| `joint_or_separate` | 16 | the same |
| `regularisation` | tables 4, 7 | the same |

A figure whose rows have not been measured yet is left out, and said so. What is published is
labelled "published, SD v1.4", what is ours "measured, Atelier"; the two are about different models
and different pictures, so heights are to be compared within a panel and never across.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sepme._data import shipped
from sepme.artefact import versions, write_atomically
from sepme.composition import Composition, shipped_deltas
from sepme.concept import BOTH, OBJECT_PHOTO, Catalogue, fill
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS
from sepme.errors import SepmeError
from sepme.model import Backbone, load_catalogue
from sepme.plots import (
    BLUE,
    ERASED,
    correlation_over_timesteps,
    image_grid,
    noise_maps,
    png,
    recorded_decay,
)
from sepme.probe import Probe, noise_differences, record
from sepme.report import writable_folder
from sepme.scenes import CASTS, SCENES, moments, read_rows
from sepme.scenes.methods import METHODS
from sepme.scenes.plots import MEASURE_TITLES, interference_table, method_style, role_bars
from sepme.scenes.protocol import ALONE, WATERMARK
from sepme.scenes.published import LABEL, family, published
from sepme.scenes.summary import (
    Bar,
    Key,
    complete,
    measured_bars,
    methods_of,
    published_bars,
)
from sepme.scenes.tables import tables

RESULTS = shipped("results")
MEASURED = "measured, Atelier"
#: The methods of the comparison figures, and their looks, alike in all of them.
COMPARED = ("sepme", "sepme-unaware", "esd-x", "sdd", "abconcept", "fmn", "uce", "speed")
STYLES = {name: method_style(index) for index, name in enumerate(COMPARED)}
#: Timesteps at which the noise is looked at: nearly clean to nearly pure noise.
NOISE_STEPS = (20, 150, 350, 550, 700, 850, 980)
#: The concepts that no scene erases.
NEVER = (6, 7, 8)
#: The two sides of the ablation of lambda.
REGULARISED = ("SepME without regularisation", "SepME with it")
#: Frames by role; who is regular has none.
FRAMES = {"erased": ERASED, "recovered": BLUE}
#: The same looks for the printed methods, by family.
FAMILIES = {"SepME": "sepme", "ESD": "esd-x", "AbConcept": "abconcept", "FMN": "fmn"}


class NotMeasured(SepmeError):
    """The rows that a figure is made of are not in the tables."""


@dataclass(frozen=True)
class Sources:
    """What figures are made of: the tables, the published numbers, and the model if one is asked.

    Args:
        results: folder with `scenes_<kind>.csv`.
        seed: of what figures draw themselves.
    """

    results: Path = RESULTS
    seed: int = 0
    used: dict[str, Any] = field(default_factory=dict)
    """What the figure at hand has read, for its manifest."""

    def rows(
        self, kind: str, methods: Iterable[str], scenes: Iterable[str]
    ) -> list[dict[str, Any]]:
        """The measured rows of these methods and scenes.

        Raises:
            NotMeasured: there are none.
        """
        file = self.results / f"scenes_{kind}.csv"
        if not file.is_file():
            raise NotMeasured(f"{file.name} is not there yet: run 'sepme scenes run' first.")
        methods, scenes = tuple(methods), tuple(scenes)
        found = [r for r in read_rows(file) if r["method"] in methods and r["scene"] in scenes]
        if not found:
            raise NotMeasured(
                f"{file.name} has no row of {', '.join(methods)} in {', '.join(scenes)}: run "
                "'sepme scenes run' with them first."
            )
        order = {name: index for index, name in enumerate(methods)}
        manifest = file.with_suffix(".json")
        if manifest.is_file():
            made = json.loads(manifest.read_text(encoding="utf-8"))
            keys = ("model", "fingerprint", "images", "seed", "sampling", "versions", "hardware")
            self.used[file.name] = {key: made.get(key) for key in keys}
        return sorted(found, key=lambda row: order[row["method"]])

    def complete(
        self,
        kind: str,
        methods: Iterable[str],
        scenes: Iterable[str],
        concepts: Iterable[int] = range(WATERMARK + 1),
    ) -> list[Mapping[str, Any]]:
        """The rows of those of the methods of which no cell is missing; see `summary.complete`.

        Raises:
            NotMeasured: there is no such method.
        """
        methods, scenes = tuple(methods), tuple(scenes)
        rows = complete(self.rows(kind, methods, scenes), scenes, concepts)
        if not rows:
            raise NotMeasured(
                f"No method was measured in every cell of {', '.join(scenes)}: run 'sepme scenes "
                "run' again, which goes on where it was stopped."
            )
        self.used["cells"] = dict(Counter(row["method"] for row in rows))
        return rows

    @cached_property
    def backbone(self) -> Backbone:
        return Backbone.load()

    @property
    def model(self) -> Backbone:
        """The model, for a figure that asks it: its manifest names it."""
        model = self.backbone
        self.used["model"] = {"name": model.name, "fingerprint": model.fingerprint}
        return model

    @cached_property
    def deltas(self) -> Mapping[str, ConceptDelta]:
        """The deltas that ship with the model."""
        return shipped_deltas(self.backbone)

    @cached_property
    def catalogue(self) -> Catalogue:
        catalogue = load_catalogue()
        assert catalogue is not None  # it ships with the model
        return catalogue


@dataclass(frozen=True)
class Entry:
    """One figure: its name, what it shows in words, and how it is drawn."""

    name: str
    caption: str
    draw: Callable[[Sources], Figure]


def build(
    out: str | Path,
    sources: Sources,
    *,
    only: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Draw the figures into a folder: `name.svg`, `name.png` and the manifest `name.json` each.

    Args:
        only: names; all, if none is given.

    Returns:
        The pictures written.

    Raises:
        SepmeError: a name that is unknown, or a folder that cannot be written to.
    """
    unknown = set(only) - set(FIGURES)
    if unknown:
        raise SepmeError(
            f"Figure '{sorted(unknown)[0]}' is unknown: choose from {', '.join(FIGURES)}."
        )
    out, written = writable_folder(out), []
    for name in only or FIGURES:
        sources.used.clear()
        try:
            figure = FIGURES[name].draw(sources)
        except NotMeasured as error:
            say(f"{name}: left out. {error}")
            continue
        written += _save(out, FIGURES[name], figure, sources)
        say(f"{name}: {FIGURES[name].caption}")
    return written


def build_tables(
    out: str | Path, sources: Sources, *, say: Callable[[str], None] = print
) -> list[Path]:
    """The paper's tables and ours as Markdown, `tables_<kind>.md` each.

    Raises:
        SepmeError: a folder that cannot be written to.
    """
    out, written = writable_folder(out), []
    for kind in CASTS:
        try:
            rows = sources.rows(kind, METHODS, SCENES)
        except NotMeasured as error:
            say(f"tables_{kind}: published numbers only. {error}")
            rows = []
        text = tables(kind, rows, MEASURED)
        written.append(write_atomically(out / f"tables_{kind}.md", text.encode()))
        say(f"tables_{kind}: the paper's tables and ours, {kind}s.")
    return written


def build_index(out: str | Path) -> Path:
    """`README.md` of a folder of figures: every one that is there, with its caption.

    Raises:
        SepmeError: a folder that cannot be written to.
    """
    out = writable_folder(out)
    shown = [entry for entry in FIGURES.values() if (out / f"{entry.name}.png").is_file()]
    parts = [
        "# The paper's figures and tables, rebuilt",
        "Made by `sepme figures` from the tables in `data/results` and the shipped model. What is "
        f"labelled “{LABEL}” are the authors' numbers (`data/paper`), what is labelled "
        f"“{MEASURED}” are ours: two models, other pictures, other classifiers. Compare the order "
        "of methods within a panel, never heights across panels. Beside every picture lie an SVG "
        "and a JSON file that says what it was made of.",
    ]
    texts = [kind for kind in CASTS if (out / f"tables_{kind}.md").is_file()]
    if texts:
        links = ", ".join(f"[{kind}s](tables_{kind}.md)" for kind in texts)
        parts.append(f"All cells of the tables as text: {links}.")
    parts += [f"## {e.name}\n\n{e.caption}\n\n![{e.caption}]({e.name}.png)" for e in shown]
    return write_atomically(out / "README.md", ("\n\n".join(parts) + "\n").encode())


def _save(out: Path, entry: Entry, figure: Figure, sources: Sources) -> list[Path]:
    manifest = {
        "caption": entry.caption,
        "sources": sources.used,
        "seed": sources.seed,
        "versions": versions() | {"matplotlib": matplotlib.__version__},
    }
    files = {
        f"{entry.name}.svg": _svg(figure),
        f"{entry.name}.png": png(figure),
        f"{entry.name}.json": (json.dumps(manifest, indent=1) + "\n").encode(),
    }
    return [write_atomically(out / name, content) for name, content in files.items()]


def _svg(figure: Figure) -> bytes:
    """An SVG file without a date; the same figure gives the same bytes."""
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "sepme", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


# ------------------------------------------------------------------ bars: 8 to 11 and 13 to 16
def _compared(kind: str, scene: str) -> Callable[[Sources], Figure]:
    """Forgotten, recovered and regular concepts by method: published above, ours below."""

    def draw(sources: Sources) -> Figure:
        rows = sources.complete(kind, COMPARED, [scene])
        figure = Figure(figsize=(11, 6), layout="constrained", dpi=110)
        axes = figure.subplots(2, 2)
        table = ["5"] if kind == "style" else ["6"]
        for column, measure in enumerate(("acc", "lpips")):
            printed = _in_order(published_bars(published(), measure, [scene], tables=table))
            looks = {m: STYLES[FAMILIES[family(m)]] for m in methods_of(printed)}
            lengths = {m: _printed_title(m) for m in methods_of(printed)}
            looks = _distinct(looks)
            role_bars(printed, measure, lengths, axes[0, column], styles=looks)
            axes[0, column].set_title(f"{LABEL}", fontsize=10)
            ours = measured_bars(rows, measure, [scene])
            titles = {name: METHODS[name].title for name in methods_of(ours)}
            role_bars(ours, measure, titles, axes[1, column], styles=STYLES)
            axes[1, column].set_title(f"{MEASURED}", fontsize=10)
        for ax in axes[:, 0]:
            ax.get_legend().remove()
        figure.suptitle(f"{scene}, {kind}s", fontweight="bold")
        return figure

    return draw


def _in_order(printed: Mapping[Key, Bar]) -> dict[Key, Bar]:
    """Printed methods in the order of ours."""
    return dict(sorted(printed.items(), key=lambda b: COMPARED.index(FAMILIES[family(b[0][0])])))


def _distinct(looks: Mapping[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """The same method in two lengths: the second one paler."""
    seen: set[str] = set()
    made = {}
    for name, look in looks.items():
        made[name] = dict(look) | ({"alpha": 0.5} if family(name) in seen else {})
        seen.add(family(name))
    return made


def _printed_title(method: str) -> str:
    rest = method.removeprefix(family(method)).strip("[]")
    if not rest:
        return method
    lengths = sorted({int(length) for length in rest.split(",")})
    ends = dict.fromkeys((str(lengths[0]), str(lengths[-1])))
    return f"{family(method)}, {' to '.join(ends)} it."


def _alone(kind: str) -> Callable[[Sources], Figure]:
    """Each concept erased by itself: the concept, and the mean of those that never are."""

    def draw(sources: Sources) -> Figure:
        rows = sources.complete(kind, COMPARED, ALONE, NEVER)
        title = f"Each of six {kind}s erased by itself, and three others ({MEASURED})"
        return _recognised_and_moved(rows, list(ALONE), title, by="role")

    return draw


def _watermark(kind: str) -> Callable[[Sources], Figure]:
    """What becomes of the watermark, which is never erased."""

    def draw(sources: Sources) -> Figure:
        scenes = ("Scene1", "Scene4")
        rows = sources.complete(kind, COMPARED, scenes)
        title = f"The watermark while {kind}s are erased, Scene1 and Scene4 ({MEASURED})"
        return _recognised_and_moved(rows, scenes, title, by="watermark")

    return draw


def _recognised_and_moved(
    rows: Sequence[Mapping[str, Any]], scenes: Sequence[str], title: str, *, by: str
) -> Figure:
    """Bars of accuracy and of LPIPS, side by side; `by` as in `measured_bars`."""
    figure = Figure(figsize=(10, 3.4), layout="constrained", dpi=110)
    axes = figure.subplots(1, 2)
    for ax, measure in zip(axes, ("acc", "lpips"), strict=True):
        ours = measured_bars(rows, measure, scenes, by=by)
        titles = {name: METHODS[name].title for name in methods_of(ours)}
        role_bars(ours, measure, titles, ax, styles=STYLES)
    axes[0].get_legend().remove()
    figure.suptitle(title, fontweight="bold")
    return figure


def _variants(names: Sequence[str], title: str, tables: Sequence[str]) -> Callable:
    """Variants of SepME beside one another, with what is published about them, if anything."""

    def draw(sources: Sources) -> Figure:
        scenes = ["Scene1"]
        rows = sources.complete("style", names, scenes)
        if missing := set(names) - {row["method"] for row in rows}:
            raise NotMeasured(
                f"There are no rows of {', '.join(sorted(missing))}: run 'sepme scenes run "
                f'--methods "{", ".join(names)}"\' first.'
            )
        looks = {name: method_style(index) for index, name in enumerate(names)}
        figure = Figure(figsize=(10, 3.2 * (1 + bool(tables))), layout="constrained", dpi=110)
        axes = figure.subplots(1 + bool(tables), 2, squeeze=False)
        for column, measure in enumerate(("acc", "lpips")):
            ours = measured_bars(rows, measure, scenes)
            titles = {name: METHODS[name].title for name in names}
            if tables:  # what is called SepME in the paper has the regularisation, ours has not
                titles = dict(zip(names, REGULARISED, strict=True))
            role_bars(ours, measure, titles, axes[-1, column], styles=looks)
            axes[-1, column].set_title(f"{MEASURED} ({', '.join(scenes)})", fontsize=10)
            if tables:
                printed = published_bars(published(), measure, list(SCENES), tables=tables)
                order = ("SepME without weight regularisation", "SepME")
                shown = dict(zip(order, looks.values(), strict=True))
                titles = dict(zip(order, REGULARISED, strict=True))
                role_bars(printed, measure, titles, axes[0, column], styles=shown)
                axes[0, column].set_title(f"{LABEL} (Scene1, Scene2)", fontsize=10)
        for ax in axes[:, 0]:
            ax.get_legend().remove()
        figure.suptitle(title, fontweight="bold")
        return figure

    return draw


# ------------------------------------------------------------------ who disturbs whom: 2
def _interference(sources: Sources) -> Figure:
    """Erased alone (row), drawn (column): one map a method, and a line of maps a measure."""
    found = sources.complete("style", ("sepme", "esd-x"), ALONE)
    have = list(dict.fromkeys(row["method"] for row in found))
    made = {
        (measure, method): _disturbance(found, method, measure)
        for measure in ("lpips", "fid")
        for method in have
    }
    maps = {place: matrix for place, matrix in made.items() if np.isfinite(matrix).all()}
    measures = list(dict.fromkeys(measure for measure, _ in maps))
    names = [*CASTS["style"].names, "watermark"]
    size = (6.2 * len(have), 0.4 + 3.6 * len(measures))
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    axes = figure.subplots(len(measures), len(have), squeeze=False)
    for (row, measure), (column, method) in product(enumerate(measures), enumerate(have)):
        ax, title = axes[row, column], MEASURE_TITLES[measure]
        if (measure, method) not in maps:
            ax.set_axis_off()
            continue
        limit = max(float(matrix.max()) for place, matrix in maps.items() if place[0] == measure)
        interference_table(maps[measure, method], names[:6], names, title, ax, limit=limit)
        ax.set_title(METHODS[method].title)
    figure.suptitle(f"Who disturbs whom ({MEASURED})", fontweight="bold")
    return figure


def _disturbance(rows: Iterable[Mapping[str, Any]], method: str, measure: str) -> NDArray:
    """`[6, 10]`, NaN where it was not measured."""
    matrix = np.full((6, WATERMARK + 1), np.nan)
    for row in rows:
        if row["method"] == method and row[measure] is not None:
            matrix[int(row["erased"]), int(row["concept_index"])] = row[measure]
    return matrix


# ------------------------------------------------------------ what the model draws: 3, 5, 12, 17
#: The concept whose noise is looked at, and one that is to stay as it is.
ERASED_STYLE, KEPT_STYLE, OBJECT = "neon", "swirl", "boat"


def _prompt(style: str) -> str:
    return fill(BOTH[0], OBJECT, style)


def _noise_differences(sources: Sources) -> Figure:
    """r(c) over the timesteps, of what is erased and of what is kept, before and after."""
    model, delta = sources.model, sources.deltas[ERASED_STYLE]
    sources.used["delta"] = {delta.concept: delta.digest}
    maps = {}
    for style in (ERASED_STYLE, KEPT_STYLE):
        probe = Probe.draw(model, _prompt(style), NOISE_STEPS, sources.seed)
        anchor = fill(OBJECT_PHOTO[0], OBJECT)
        before, after = (
            noise_differences(model, probe, references=anchor, delta=d)[:, 0] for d in (None, delta)
        )
        channel = int(before.square().mean(dim=(0, 2, 3)).argmax())
        maps[f"{style}, original (channel {channel})"] = before[:, channel]
        maps[f"{style}, {ERASED_STYLE} erased"] = after[:, channel]
    return noise_maps(
        maps,
        NOISE_STEPS,
        title=f"What the style adds to the predicted noise of a {OBJECT} ({MEASURED})",
    )


def _correlation_decay(sources: Sources) -> Figure:
    """A delta trained from zero: the correlation over its iterations, and over the timesteps."""
    concept = sources.catalogue[ERASED_STYLE]
    settings = replace(PRESETS["from_zero"], images=8)
    sources.used["settings"] = asdict(settings)
    _, recording = record(
        sources.model,
        concept,
        sources.catalogue.kept_prompts([concept]),
        settings,
        prompts=[fill(BOTH[0], thing, ERASED_STYLE) for thing in (OBJECT, "house", "fish")],
        seed=sources.seed,
        progress=False,
    )
    figure = Figure(figsize=(9, 6.4), layout="constrained", dpi=110)
    above, below = figure.subplots(2, 1)
    recorded_decay(recording, above)
    last = len(recording.iterations) - 1
    curves = {
        f"iteration {recording.iterations[i]}": recording.correlation[i].mean(dim=1)
        for i in sorted({0, last // 3, 2 * last // 3, last})
    }
    correlation_over_timesteps(recording.timesteps, curves, below)
    figure.suptitle(f"How {ERASED_STYLE} is forgotten ({MEASURED})", fontweight="bold")
    return figure


def _before_after(kind: str, scene: str) -> Callable[[Sources], Figure]:
    """One picture of each concept (row) at each time (column), from the same noise."""

    def draw(sources: Sources) -> Figure:
        model, who, times = sources.model, CASTS[kind], moments(scene)
        erased = sorted({index for moment in times for index in moment.erased})
        deltas = [sources.deltas[who.name(index)] for index in erased]
        sources.used["deltas"] = {delta.concept: delta.digest for delta in deltas}
        prompts = [who.prompts(index, 1)[0] for index in who.indices]
        seeds = [who.seeds(index, 1, sources.seed)[0] for index in who.indices]
        sources.used["prompts"] = prompts
        columns = {"original": model.generate(prompts, seeds)}
        with Composition(model, deltas) as composition:
            for moment in times:
                with composition.erased(*(who.name(index) for index in moment.erased)):
                    columns[moment.time] = model.generate(prompts, seeds)
        before = columns["original"]
        roles = [[""] * len(prompts)] + [[m.role(i) for i in who.indices] for m in times]
        moved = [100 * (after - before).abs().flatten(1).mean(1) for after in columns.values()]
        return image_grid(
            [[images[r] for images in columns.values()] for r in who.indices],
            [*who.names, "watermark"],
            list(columns),
            frames=[[FRAMES.get(column[r]) for column in roles] for r in who.indices],
            notes=[
                [f"{column[r]}\nΔ {m[r]:.1f} %" if column[r] else "" for column, m in
                 zip(roles, moved, strict=True)]
                for r in who.indices
            ],
            title=f"{scene}, {kind}s ({MEASURED})",
            footer="Framed: erased (vermillion), given back (blue). Δ: mean change of the pixels.\n"
            "Each row starts from the same noise in every column. Asked for is, first,\n"
            f"“{prompts[0]}”.",
            cell=0.95,
        )  # fmt: skip

    return draw


def _figures() -> Iterable[Entry]:
    yield Entry(
        "interference",
        "What erasing one style alone does to the pictures of every other.",
        _interference,
    )
    yield Entry(
        "noise_differences",
        "What a style adds to the predicted noise over the timesteps (the latent channel where it "
        "adds most, against the photo of the same thing; ± is where a column's colours end). "
        f"Erasing {ERASED_STYLE} takes its share away where there is much noise and replaces it "
        f"where there is little; that of {KEPT_STYLE} stays.",
        _noise_differences,
    )
    yield Entry(
        "correlation_decay",
        f"How the correlation of {ERASED_STYLE} with the original decays while its delta is "
        "trained from zero: over iterations above, over timesteps below.",
        _correlation_decay,
    )
    for kind in CASTS:
        for scene in ("Scene1", "Scene4"):
            yield Entry(
                f"before_after_{kind}_{scene.lower()}",
                f"One picture of each {kind} and of the watermark at each time of {scene}, by "
                "SepME; each row starts from the same noise in every column.",
                _before_after(kind, scene),
            )
    for kind in CASTS:
        for scene in ("Scene1", "Scene4"):
            yield Entry(
                f"bars_{kind}_{scene.lower()}",
                f"Forgotten, recovered and regular {kind}s of {scene}, by method; published above, "
                f"measured below, whiskers are 95 % intervals.",
                _compared(kind, scene),
            )
        yield Entry(
            f"alone_{kind}", f"Each of six {kind}s erased by itself, by method.", _alone(kind)
        )
        yield Entry(
            f"watermark_{kind}",
            f"The watermark while {kind}s are erased, by method.",
            _watermark(kind),
        )
    yield Entry(
        "joint_or_separate",
        "SepME's increments trained one at a time and all at once.",
        _variants(("sepme", "sepme-joint"), "One at a time, or jointly", ()),
    )
    yield Entry(
        "regularisation",
        "SepME without and with the weight's regularisation.",
        _variants(("sepme", "sepme-regularised"), "With and without lambda", ("7",)),
    )


FIGURES: Mapping[str, Entry] = {entry.name: entry for entry in _figures()}


__all__ = ["FIGURES", "Entry", "NotMeasured", "Sources", "build", "build_index", "build_tables"]
