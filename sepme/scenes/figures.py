"""Every figure and table of the paper, ours beside the published numbers: `sepme figures`.

| figure here | in the paper | from |
|---|---|---|
| `interference` | 2 | the tables of scenes, each concept erased alone |
| `noise_differences` | 3 | the model: r(c) over timesteps, with a delta off and on |
| `correlation_decay` | 3 | the model: how the correlation decays while a delta is trained |
| `before_after_<kind>_<scene>` | 5, 12, 17 | the model, with the deltas that ship with it |
| `bars_<kind>_<scene>` | 8, 9, 13, 14 | the tables of scenes |
| `alone_<kind>` | 10, 15 | the same, each concept erased alone |
| `watermark_<kind>` | 11 | the same, the watermark's rows |
| `joint_or_separate` | 16 | the same |
| `regularisation` | tables 4, 7 | the same |

A figure whose rows have not been measured is left out, and a message says so. Published numbers are
labelled "published, SD v1.4", ours "measured, Atelier". The two are about different models and
images: compare heights within a panel, never across panels.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from sepme import plots
from sepme._checks import choose
from sepme.artefact import versions, writable_folder, write_atomically
from sepme.composition import applied, shipped_deltas
from sepme.concept import BOTH, OBJECT_PHOTO, fill
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS
from sepme.errors import SepmeError
from sepme.model import Backbone, load_catalogue
from sepme.probe import Probe, noise_differences, record
from sepme.scenes import tables
from sepme.scenes.images import MEASURES
from sepme.scenes.methods import METHODS
from sepme.scenes.protocol import ALONE, EVALUATED, ROLES, WATERMARK, moments
from sepme.scenes.run import read_manifest
from sepme.scenes.tables import MEASURED, PUBLISHED, RESULTS, family

__all__ = ["COMPARED", "FIGURES", "Sources", "draw_figures", "method_looks"]

#: The methods of the comparison figures, in their order.
COMPARED = (
    *("sepme-faithful@paper", "sepme@paper", "uce@paper", "speed@paper"),
    *("sepme@catalogue", "esd-x", "sdd", "abconcept", "fmn", "uce@catalogue", "speed@catalogue"),
    *("abconcept-retained@paper", "abconcept-retained@catalogue"),
)
#: Panels of a comparison: what is forgotten, retained and drawn differs between them.
PANELS = {
    f"{MEASURED}, the paper's protocol": [m for m in COMPARED if m.endswith("@paper")],
    f"{MEASURED}, the catalogue's prompts": [m for m in COMPARED if not m.endswith("@paper")],
}
#: Colours, and hatches beside them so that methods differ in grey and for colour-blind eyes.
FACES = (*(colour for colour in plots.COLOURS if colour != plots.BLUE), plots.GREY)
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++++", "oo", "**")
#: How the deltas that ship with the model were made.
SHIPPED = "The deltas are those that ship with the model: closed form + training [catalogue]."
#: Timesteps at which the noise is looked at: nearly clean to nearly pure noise.
NOISE_STEPS = (20, 150, 350, 550, 700, 850, 980)
#: Of the images and noises that figures draw.
SEED = 0
#: The concept whose noise is looked at, and one that is to stay as it is.
ERASED_STYLE, KEPT_STYLE, OBJECT = "neon", "swirl", "boat"


class NotMeasured(SepmeError):
    """The rows that a figure is made of are not in the tables."""


@cache
def _shipped() -> tuple[Backbone, dict[str, ConceptDelta]]:
    model = Backbone.load()
    return model, shipped_deltas(model)


@dataclass(frozen=True)
class Sources:
    """What figures are made of: the measured tables, and the shipped model with its deltas."""

    results: Path = RESULTS  #: folder with `scenes_<kind>.csv`
    used: dict[str, Any] = field(default_factory=dict)  #: what the figure has read so far

    def rows(
        self,
        kind: str,
        methods: Sequence[str],
        scenes: Iterable[str],
        concepts: Iterable[int] = range(WATERMARK + 1),
    ) -> DataFrame:
        """The measured rows of complete methods, in the order given (`sepme.scenes.complete`).

        Raises:
            NotMeasured: there are none.
        """
        file = self.results / f"scenes_{kind}.csv"
        if not file.is_file():
            raise NotMeasured(f"{file.name} is not there yet: run 'sepme scenes run' first.")
        rows = tables.read_table(file).query("method in @methods")
        rows = tables.complete(rows, scenes, concepts)
        if rows.empty:
            raise NotMeasured(
                f"None of {', '.join(methods)} was measured in every cell of {', '.join(scenes)}: "
                "run 'sepme scenes run' with them, which goes on where it was stopped."
            )
        if file.with_suffix(".json").is_file():
            made = read_manifest(file)
            keys = ("model", "fingerprint", "seed", "versions", "hardware")
            drawn = {
                name: {key: about.get(key) for key in ("images", "sampling")}
                for name, about in made["methods"].items()
                if name in methods
            }
            self.used[file.name] = {key: made.get(key) for key in keys} | {"methods": drawn}
        rows = rows.sort_values("method", key=lambda c: c.map(methods.index), kind="stable")
        self.used["cells"] = rows["method"].value_counts(sort=False).to_dict()
        return rows

    def model(self) -> tuple[Backbone, dict[str, ConceptDelta]]:
        """The shipped model and its deltas by name."""
        model, deltas = _shipped()
        self.used["model"] = {"name": model.name, "fingerprint": model.fingerprint}
        return model, deltas


@dataclass(frozen=True)
class Entry:
    """One figure: what it shows in words, and how it is drawn."""

    caption: str
    draw: Callable[[Sources], Figure]


# ------------------------------------------------------------------ all of them
def draw_figures(
    out: str | Path,
    results: str | Path = RESULTS,
    *,
    only: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Draw the figures into a folder: `name.svg`, `name.png` and the manifest `name.json` each.

    Without `only` the folder also gets the tables as Markdown, `tables_<kind>.md`, and a
    `README.md` that shows every figure with its caption.

    Args:
        results: folder with `scenes_<kind>.csv`.
        only: names of figures.

    Raises:
        SepmeError: a name that is unknown, a missing folder, or one that cannot be written to.
    """
    results = Path(results)
    if not results.is_dir():
        raise SepmeError(f"There is no folder {results}: make it with 'sepme scenes run --out'.")
    if only is not None and not only:
        raise SepmeError(f"No figure was named: choose from {', '.join(FIGURES)}.")
    for name in only or ():
        choose(FIGURES, figure=name)
    for table in sorted(results.glob("scenes_*.csv")):  # a damaged one is refused before any work
        tables.read_table(table)
    out = writable_folder(out)
    for name in only or FIGURES:
        sources = Sources(results)
        try:
            figure = plots.literal(FIGURES[name].draw(sources))
        except NotMeasured as error:
            say(f"{name}: left out. {error}")
            continue
        _save(out, name, figure, sources.used)
        say(f"{name}: {FIGURES[name].caption}")
    if only is None:
        _write_tables(out, results, say)
        _write_index(out)


def _save(out: Path, name: str, figure: Figure, used: Mapping[str, Any]) -> None:
    manifest = {
        "caption": FIGURES[name].caption,
        "sources": used,
        "seed": SEED,
        "versions": versions() | {"matplotlib": matplotlib.__version__},
    }
    svg = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "sepme", "svg.fonttype": "none"}):
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    text = json.dumps(manifest, indent=1) + "\n"
    files = {"svg": svg.getvalue(), "png": plots.png(figure), "json": text.encode()}
    for suffix, content in files.items():
        write_atomically(out / f"{name}.{suffix}", content)


def _write_tables(out: Path, results: Path, say: Callable[[str], None]) -> None:
    for kind in EVALUATED:
        file = results / f"scenes_{kind}.csv"
        text = tables.paper_tables(kind, tables.read_table(file) if file.is_file() else None)
        write_atomically(out / f"tables_{kind}.md", text.encode())
        none = "" if MEASURED in text else " (none is measured yet: run 'sepme scenes run' first)"
        say(f"tables_{kind}: the paper's tables and ours{none}, {kind}s.")


def _write_index(out: Path) -> None:
    """`README.md` of a folder of figures: every one that is there, with its caption."""
    pages = ", ".join(f"[{kind}s](tables_{kind}.md)" for kind in EVALUATED)
    parts = [
        "# The paper's figures and tables, rebuilt",
        "Made by `sepme figures` from the tables in `data/results` and the shipped model. What is "
        f"labelled “{PUBLISHED}” are the authors' numbers (`data/paper`), what is labelled "
        f"“{MEASURED}” are ours: two models, other pictures, other classifiers. Compare the order "
        "of methods within a panel, never heights across panels. Beside every picture lie an SVG "
        "and a JSON file that says what it was made of.",
        f"In brackets: what a method forgets and keeps. {tables.LEGEND}",
        f"All cells of the tables as text: {pages}.",
    ]
    for name, entry in FIGURES.items():
        if (out / f"{name}.png").is_file():
            caption = entry.caption.replace(tables.LEGEND, "").strip()
            parts.append(f"## {name}\n\n{caption}\n\n![{name}]({name}.png)")
    write_atomically(out / "README.md", ("\n\n".join(parts) + "\n").encode())


# ------------------------------------------------------------------ bars: 8 to 11 and 13 to 16
def method_looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Face colour and hatch of each method, measured or printed, for `Axes.bar`.

    All of SepME is blue. A printed method looks like the same method here, and so does a method in
    both protocols; a second one of the same look is paler.
    """
    order = dict.fromkeys(name.split("@")[0] for name in (*COMPARED, *METHODS))
    sepme = [name for name in order if name.startswith("sepme")]
    others = [name for name in order if name not in sepme]
    looks: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()
    for method in methods:
        name = family(method).split("@")[0]
        n = (sepme if name in sepme else others).index(name)
        looks[method] = {
            "facecolor": plots.BLUE if name in sepme else FACES[n % len(FACES)],
            "hatch": HATCHES[n % len(HATCHES)],
            "edgecolor": "white",
            "alpha": 0.5 if name in seen else None,
        }
        seen.add(name)
    return looks


def role_bars(means: DataFrame, measure: str, ax: Axes, highest: float | None = None) -> None:
    """Groups of bars, one group a role and one bar a method, with intervals where there are any.

    Args:
        means: from `role_means`. Seaborn draws only intervals that it computes itself.
        measure: "acc", "lpips", "fid" or "kid"; an accuracy is drawn in percent.
        highest: the largest mean of all axes that share this one's scale; by default, of `means`.
    """
    highest = means["mean"].max() if highest is None else highest
    methods = means.index.unique("method")
    roles = [role for role in (*ROLES, "watermark") if role in means.index.unique("role")]
    scale = 100 if measure == "acc" else 1
    width = 0.8 / max(len(methods), 4)  # a single bar stays narrow
    for i, (method, look) in enumerate(method_looks(methods).items()):
        bars = scale * means.loc[method].reindex(roles)
        x = np.arange(len(roles)) + (i - (len(methods) - 1) / 2) * width
        if bars["low"].notna().any():
            look |= {"yerr": [bars["mean"] - bars["low"], bars["high"] - bars["mean"]]}
        look |= {"label": tables.method_title(method), "ecolor": plots.BLACK, "capsize": 1.5}
        ax.bar(x, bars["mean"], 0.92 * width, **look)
        for at, mean in zip(x, bars["mean"], strict=True):
            if mean < 0.01 * scale * highest:  # else a bar of height 0 is invisible
                above = {"xytext": (0, 3), "textcoords": "offset points", "rotation": 90}
                said = "<0.001" if 0 < mean < 0.001 else f"{mean:.2g}"
                ax.annotate(said, (at, 0), ha="center", va="bottom", fontsize=7, **above)
    ax.set_xticks(range(len(roles)), roles)
    ax.set_ylabel(MEASURES[measure])
    if measure == "acc":
        ax.set_ylim(0, 108)
    else:
        ax.set_ylim(0, auto=True)  # the top grows with what shares the axis
    ax.spines[["top", "right"]].set_visible(False)
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1), "handlelength": 2.2}
    ax.legend(frameon=False, fontsize=8, handleheight=1.4, **beside)


def _panels(title: str, size: tuple[float, float], lines: Mapping[str, DataFrame]) -> Figure:
    """Accuracy on the left and LPIPS on the right, one line of panels for each label and rows.

    All panels of a measure have one scale.
    """
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    figure.get_layout_engine().set(hspace=0.06)
    grid = figure.subplots(len(lines), 2, squeeze=False, sharey="col")
    for column, measure in zip(grid.T, ("acc", "lpips"), strict=True):
        means = {label: tables.role_means(rows, measure) for label, rows in lines.items()}
        highest = max(bars["mean"].max() for bars in means.values())
        for ax, (label, bars) in zip(column, means.items(), strict=True):
            role_bars(bars, measure, ax, highest)
            ax.set_title(label, fontsize=10)
            if measure == "acc":
                ax.get_legend().remove()
    figure.suptitle(title, fontweight="bold")
    return figure


def _bars(
    title: str,
    kind: str,
    scenes: Sequence[str],
    sources: Sources,
    *,
    drawn: Iterable[int] = range(WATERMARK + 1),
    shown: Iterable[int] = range(WATERMARK),
    printed: str = "",
) -> Figure:
    """The compared methods by role: published above, ours below, a line of panels a protocol.

    Args:
        drawn: concepts that must have been drawn at every moment, besides the erased.
        shown: concepts whose rows count.
        printed: which published rows are shown, as a query; none by default.
    """
    lines = {}
    if printed:
        theirs = tables.published().query(f"not doubtful and kind == @kind and {printed}")
        order = theirs["method"].map(lambda method: COMPARED.index(family(method)))
        lines[PUBLISHED] = theirs.loc[order.sort_values(kind="stable").index]
    rows = sources.rows(kind, COMPARED, scenes, drawn).query("concept_index in @shown")
    for label, methods in PANELS.items():
        if len(found := rows[rows["method"].isin(methods)]):
            lines[label] = found
    return _panels(title, (11, 3 * len(lines) + (0 if printed else 0.4)), lines)


def _two_variants(sources: Sources, *names: str) -> DataFrame:
    """The rows of two variants of SepME in Scene1."""
    rows = sources.rows("style", names, ["Scene1"]).query("concept_index != @WATERMARK")
    if missing := set(names) - set(rows["method"]):
        raise NotMeasured(
            f"There are no rows of {', '.join(sorted(missing))}: run 'sepme scenes run "
            f'--methods "{", ".join(names)}"\' first.'
        )
    return rows


def _joint_or_separate(sources: Sources) -> Figure:
    rows = _two_variants(sources, "sepme@catalogue", "sepme-joint@catalogue")
    return _panels("One at a time, or jointly", (10, 3.2), {f"{MEASURED} (Scene1)": rows})


def _regularisation(sources: Sources) -> Figure:
    """The paper's SepME has the regularisation, ours has not: the legend says which is which."""
    without, with_it = names = ("sepme@catalogue", "sepme-regularised@catalogue")
    theirs = {"SepME without weight regularisation": without, "SepME": with_it}
    printed = tables.published().query("table == '7' and not doubtful").replace({"method": theirs})
    lines = {
        f"{PUBLISHED} [paper] (Scene1, Scene2)": printed,
        f"{MEASURED} [catalogue] (Scene1)": _two_variants(sources, *names),
    }
    figure = _panels("With and without lambda", (10, 6.4), lines)
    for legend in filter(None, (ax.get_legend() for ax in figure.axes)):
        for text, which in zip(legend.get_texts(), ("without", "with"), strict=True):
            text.set_text(f"{which} regularisation")
    return figure


# ------------------------------------------------------------------ who disturbs whom: 2
def _short(value: float) -> str:
    """A small number in few characters: 0.56, or 4e-4."""
    return f"{value:.2f}" if value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")


def _interference(sources: Sources) -> Figure:
    """Erased alone (row), drawn (column): one map a method, and a line of maps a measure."""
    found = sources.rows("style", ("sepme@catalogue", "esd-x"), ALONE)
    names = [*EVALUATED["style"].names, "watermark"]
    methods = found["method"].unique()
    whole = found.groupby("method")[["lpips", "fid"]].agg(lambda cells: cells.notna().all())
    measures = whole.columns[whole.any()]
    size = (6.2 * len(methods), 0.4 + 3.6 * len(measures))
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    grid = figure.subplots(len(measures), len(methods), squeeze=False)
    for measure, axes in zip(measures, grid, strict=True):
        maps = found.pivot(index=["method", "erased"], columns="concept_index", values=measure)
        limit = found[measure][found["method"].map(whole[measure])].max()
        numbers = "{:.0f}".format if limit >= 10 else _short
        for method, ax in zip(methods, axes, strict=True):
            if not whole.loc[method, measure]:
                ax.set_axis_off()
                continue
            table = maps.loc[method].set_axis(names[:6]).set_axis(names, axis=1)
            plots.heat_map(table, ax, numbers=numbers, limit=limit, label=MEASURES[measure])
            ax.set(xlabel="what is drawn", ylabel="what was erased")
            ax.set_title(METHODS[method].title)
    figure.suptitle(f"Who disturbs whom ({MEASURED})", fontweight="bold")
    return figure


# ------------------------------------------------------------ what the model draws: 3, 5, 12, 17
def _noise_differences(sources: Sources) -> Figure:
    """r(c) over the timesteps, of what is erased and of what is kept, before and after."""
    model, deltas = sources.model()
    delta, anchor, maps = deltas[ERASED_STYLE], fill(OBJECT_PHOTO[0], OBJECT), {}
    sources.used["delta"] = {delta.concept: delta.digest}
    for style in (ERASED_STYLE, KEPT_STYLE):
        probe = Probe.draw(model, fill(BOTH[0], OBJECT, style), NOISE_STEPS, SEED)
        before, after = (
            noise_differences(model, probe, references=anchor, delta=d)[:, 0] for d in (None, delta)
        )
        channel = int(before.square().mean(dim=(0, 2, 3)).argmax())
        maps[f"{style}, original (channel {channel})"] = before[:, channel]
        maps[f"{style}, {ERASED_STYLE} erased"] = after[:, channel]
    title = f"What the style adds to the predicted noise of a {OBJECT} ({MEASURED})"
    return plots.noise_maps(maps, NOISE_STEPS, title=title)


def _correlation_decay(sources: Sources) -> Figure:
    """A delta trained from zero: the correlation over its iterations, and over the timesteps."""
    model, _ = sources.model()
    catalogue, settings = load_catalogue(), PRESETS["from_zero"]
    concept = catalogue[ERASED_STYLE]
    sources.used["settings"] = asdict(settings)
    about = (model, concept, catalogue.kept_prompts([concept]), settings)
    prompts = [fill(BOTH[0], thing, ERASED_STYLE) for thing in (OBJECT, "house", "fish")]
    _, recording = record(*about, prompts=prompts, seed=SEED, progress=False)
    figure = Figure(figsize=(9, 6.4), layout="constrained", dpi=110)
    above, below = figure.subplots(2, 1)
    plots.recorded_decay(recording, above)
    last = len(recording.iterations) - 1
    curves = {
        f"iteration {recording.iterations[i]}": recording.correlation[i].mean(dim=1)
        for i in sorted({0, last // 3, 2 * last // 3, last})
    }
    plots.correlation_over_timesteps(recording.timesteps, curves, below)
    figure.suptitle(f"How {ERASED_STYLE} is forgotten ({MEASURED})", fontweight="bold")
    return figure


def _before_after(kind: str, scene: str, sources: Sources) -> Figure:
    """One picture of each concept (row) at each time (column), from the same noise."""
    (model, deltas), evaluated, times = sources.model(), EVALUATED[kind], moments(scene)
    indices = range(WATERMARK + 1)
    prompts = [evaluated.prompts(index, 1)[0] for index in indices]
    seeds = [evaluated.seeds(index, 1, SEED)[0] for index in indices]
    names = [evaluated.name(i) for i in sorted({i for m in times for i in m.erased})]
    sources.used["deltas"] = {name: deltas[name].digest for name in names}
    sources.used["prompts"] = prompts
    colours = {"erased": plots.ERASED, "recovered": plots.BLUE}
    columns, frames, notes = [model.generate(prompts, seeds)], [[None] * 10], [[""] * 10]
    for moment in times:
        with applied(model, *(deltas[evaluated.name(index)] for index in moment.erased)):
            columns.append(model.generate(prompts, seeds))
        roles = [moment.role(index) for index in indices]
        moved = 100 * (columns[-1] - columns[0]).abs().mean(dim=(1, 2, 3))
        frames.append([colours.get(role) for role in roles])
        notes.append([f"{r}\nΔ {m:.1f} %" for r, m in zip(roles, moved.tolist(), strict=True)])
    images, frames, notes = (list(zip(*c, strict=True)) for c in (columns, frames, notes))
    return plots.image_grid(
        images,
        [*evaluated.names, "watermark"],
        ["original", *(moment.time for moment in times)],
        frames=frames,
        notes=notes,
        title=f"{scene}, {kind}s ({MEASURED})",
        footer="Framed: erased (vermillion), given back (blue). Δ: mean change of the pixels.\n"
        "Each row starts from the same noise in every column. The first prompt is\n"
        f"“{prompts[0]}”.",
        cell=0.95,
    )


FIGURES: dict[str, Entry] = {
    "interference": Entry(
        "What erasing one style alone does to the pictures of every other; in brackets the "
        f"method's retain set. {tables.LEGEND}",
        _interference,
    ),
    "noise_differences": Entry(
        "What a style adds to the predicted noise over the timesteps (the latent channel where it "
        "adds most, against the photo of the same thing; ± is where a column's colours end). "
        f"Erasing {ERASED_STYLE} takes its share away where there is much noise and replaces it "
        f"where there is little; that of {KEPT_STYLE} stays. {SHIPPED}",
        _noise_differences,
    ),
    "correlation_decay": Entry(
        f"How the correlation of {ERASED_STYLE} with the original decays while its delta is "
        "trained from zero [catalogue]: over iterations above, over timesteps below.",
        _correlation_decay,
    ),
}
for _kind in EVALUATED:
    for _scene in ("Scene1", "Scene4"):
        FIGURES[f"before_after_{_kind}_{_scene.lower()}"] = Entry(
            f"One picture of each {_kind} and of the watermark at each time of {_scene}, by SepME; "
            f"each row starts from the same noise in every column. {SHIPPED}",
            partial(_before_after, _kind, _scene),
        )
        _printed = f"table in ('5', '6') and scene == '{_scene}'"
        FIGURES[f"bars_{_kind}_{_scene.lower()}"] = Entry(
            f"Forgotten, recovered and regular {_kind}s of {_scene}, by method; published above, "
            f"measured below, whiskers are 95 % intervals. {tables.LEGEND}",
            partial(_bars, f"{_scene}, {_kind}s", _kind, [_scene], printed=_printed),
        )
    _title = f"Each of six {_kind}s erased by itself, and three others"
    FIGURES[f"alone_{_kind}"] = Entry(
        f"Each of six {_kind}s erased by itself, by method. {tables.LEGEND}",
        partial(_bars, _title, _kind, ALONE, drawn=range(6, WATERMARK)),
    )
    _title = f"The watermark while {_kind}s are erased, Scene1 and Scene4"
    FIGURES[f"watermark_{_kind}"] = Entry(
        f"The watermark while {_kind}s are erased, by method. {tables.LEGEND}",
        partial(_bars, _title, _kind, ["Scene1", "Scene4"], shown=[WATERMARK]),
    )
FIGURES["joint_or_separate"] = Entry(
    "SepME's increments trained one at a time and all at once, closed form + training [catalogue].",
    _joint_or_separate,
)
FIGURES["regularisation"] = Entry(
    "SepME without and with the weight's regularisation: published [paper], and closed form + "
    "training [catalogue].",
    _regularisation,
)
