"""The command line: it reads what was typed, and the library does the work.

Bad input gets one line on stderr and exit code 2. Libraries that take seconds to import are
imported by the commands that need them.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option, echo
from typer.core import TyperGroup

from sepme import __version__
from sepme.artefact import write_atomically
from sepme.errors import SepmeError, SepmeWarning, warn

if TYPE_CHECKING:
    from sepme.atelier.judge import Judge
    from sepme.concept import Catalogue, Concept
    from sepme.delta import ConceptDelta

__all__ = ["app"]

#: What to do after Ctrl-C, by command.
RESUME = {
    "erase": "The same command goes on from the last checkpoint.",
    "atelier": "The same command goes on from the last checkpoint, if it was training.",
    "scenes": "The same command goes on from the last finished state.",
}


@contextmanager
def _warnings_in_words() -> Iterator[None]:
    """A SepmeWarning is one line on stderr, without the place in our code, and said once."""
    said = set()

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, SepmeWarning):
            usual(message, category, *place, **more)
        elif str(message) not in said:
            said.add(str(message))
            echo(f"sepme: warning: {message}", err=True)

    with warnings.catch_warnings():
        usual, warnings.showwarning = warnings.showwarning, show
        warnings.simplefilter("always", SepmeWarning)
        yield


class _Commands(TyperGroup):
    """Turns a SepmeError into one line and Ctrl-C into a sentence, never into a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with _warnings_in_words():
                return super().invoke(ctx)
        except SepmeError as error:
            echo(f"sepme: {error}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            how = RESUME.get(ctx.invoked_subcommand, "Nothing was half-written; run it again.")
            echo(f"\nsepme: Interrupted. {how}", err=True)
            raise typer.Exit(130) from error


_plain = {"no_args_is_help": True, "rich_markup_mode": None, "add_completion": False}
app = typer.Typer(cls=_Commands, pretty_exceptions_enable=False, **_plain)
atelier = typer.Typer(help="Train the shipped model, draw its paintings, judge pictures.", **_plain)
app.add_typer(atelier, name="atelier")
course = typer.Typer(help="Build the exercises of the course.", **_plain)
app.add_typer(course, name="course")
scenes = typer.Typer(help="Run the paper's scenes, by SepME and by the baselines.", **_plain)
app.add_typer(scenes, name="scenes")

Model = Annotated[
    str | None,
    Option(help="A local diffusers directory or a hub id.", show_default="the shipped model"),
]
Seed = Annotated[int, Option(min=0, help="Decides everything that is random.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        echo(f"sepme {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="Its version.")
    ] = False,
) -> None:
    """Make a text-to-image model forget concepts, compose what it forgot, and give it back."""


# ------------------------------------------------------------------ the story
@app.command()
def demo(
    out: Annotated[Path, Option(help="Folder for pictures, deltas and report.json.")] = Path(
        "figures/demo"
    ),
    erase: Annotated[
        str, Option(help="Styles and objects, separated by commas.")
    ] = "neon, swirl, ink, boat",
    samples: Annotated[int, Option(min=1, help="Judged pictures a concept.")] = 20,
    retained: Annotated[int, Option(min=1, help="Judged pictures of the rest.")] = 40,
    seed: Seed = 0,
    model: Model = None,
) -> None:
    """Erase, compose and restore: the whole story.

    Writes before_after.png, correlation_decay.png, report.json and the deltas, and prints a table.
    """
    from sepme.model import Backbone, load_catalogue
    from sepme.scenes.demo import demo_table, run_demo

    _check_folder(out)
    catalogue = load_catalogue(model)
    if catalogue is None:
        there = "has no catalogue.json" if Path(str(model)).exists() else "is not on this disk"
        raise SepmeError(
            f"The model '{model}' {there}: give the folder of a model that brings a catalogue.json "
            "and a judge.safetensors, or leave out --model."
        )
    names = [concept.name for concept in _concepts(erase, catalogue)]  # before the model is loaded
    report = run_demo(
        *(Backbone.load(model), _judge(model), out),
        catalogue=catalogue,
        erase=names,
        samples=samples,
        retained=retained,
        seed=seed,
        say=echo,
        progress=sys.stderr.isatty(),
    )
    echo(f"\n{demo_table(report)}\n\nLook at {out / 'before_after.png'}")


# ------------------------------------------------------------------ erasing and drawing
@app.command()
def erase(
    concepts: Annotated[str, Argument(help='Names, separated by commas: "neon, boat".')],
    out: Annotated[Path, Option(help="Folder for one file a concept.")] = Path("deltas"),
    preset: Annotated[
        str,
        Option(
            help="default, closed_form, from_zero, paper, paper_rescaled, undecoupled (for good)."
        ),
    ] = "default",
    keep: Annotated[
        list[str] | None,
        Option(help="A prompt that must not change, beside the catalogue's; repeatable."),
    ] = None,
    keep_from: Annotated[
        Path | None, Option(help="A text file of such prompts, one a line.")
    ] = None,
    keep_rtol: Annotated[
        float | None,
        Option(help="Tolerance of what is kept: larger erases more and disturbs more."),
    ] = None,
    after: Annotated[
        list[Path] | None,
        Option(help="A delta that is on already and must stay untouched; repeatable."),
    ] = None,
    joint: Annotated[bool, Option("--joint", help="Train all of them in one run.")] = False,
    closed_form: Annotated[
        bool, Option("--closed-form", help="No training: a fraction of a second.")
    ] = False,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace files that other settings made.")
    ] = False,
    seed: Seed = 0,
    model: Model = None,
) -> None:
    """Erase concepts: one small file each.

    Any diffusers pipeline of the same model loads such a file as a LoRA. Killed and started again,
    the command goes on where it was and ends in the same bytes. Concepts that the folder holds
    already, made with the same settings, are skipped.
    """
    from sepme.cli.tasks import erase_into, plan
    from sepme.erasure import preset as by_name
    from sepme.model import Backbone, load_catalogue

    _check_folder(out)
    catalogue = load_catalogue(model)
    settings = by_name(preset)
    if keep_rtol is not None:
        settings = replace(settings, keep_rtol=keep_rtol)
    jobs = plan(
        _concepts(concepts, catalogue),
        [*(keep or ()), *_lines(keep_from)],
        catalogue,
        settings,
        seed=seed,
        joint=joint,
        closed=closed_form,
        after=[_delta(path) for path in after or ()],
    )
    erase_into(
        out, jobs, Backbone.load(model), overwrite=overwrite, progress=sys.stderr.isatty(), say=echo
    )


@app.command()
def generate(
    prompt: Annotated[str, Argument(help="What to draw.")],
    erased: Annotated[
        list[Path] | None, Option("--erase", help="A delta file to switch on; repeatable.")
    ] = None,
    out: Annotated[Path, Option(help="The PNG file to write.")] = Path("picture.png"),
    steps: Annotated[
        int | None, Option(min=1, help="Sampling steps.", show_default="the model's own")
    ] = None,
    guidance: Annotated[
        float | None,
        Option(help="Guidance scale: 0, or 1 and more.", show_default="the model's own"),
    ] = None,
    force: Annotated[
        bool, Option("--force", help="Compose even deltas that do not keep one another.")
    ] = False,
    seed: Seed = 0,
    model: Model = None,
) -> None:
    """Draw a picture with any concepts erased."""
    from sepme.cli._pictures import check_name
    from sepme.composition import Composition
    from sepme.model import Backbone
    from sepme.plots import png

    _check_folder(out.parent)
    check_name(out)
    deltas = [_delta(path) for path in erased or ()]
    backbone = Backbone.load(model)
    if remark := backbone.vocabulary.remark([prompt]):
        warn(remark)
    with Composition(backbone, deltas, force=force) as composition:
        composition.erase(*composition.deltas)
        image = backbone.generate([prompt], seed, steps=steps, guidance=guidance)[0]
    write_atomically(out, png(image))
    names = ", ".join(delta.concept for delta in deltas) or "nothing"
    echo(f"{out}: '{prompt}', {names} erased, seed {seed}")


app.command("compose", help="The same as generate.")(generate)


# ------------------------------------------------------------------ looking
@app.command()
def inspect(
    file: Annotated[Path, Argument(help="A file that `sepme erase` made.")],
    prompts: Annotated[
        bool, Option("--prompts", help="List all prompts, forgotten and kept.")
    ] = False,
    spectrum: Annotated[
        Path | None, Option(help="A PNG file for the singular values of every layer.")
    ] = None,
) -> None:
    """Say what an erased concept's file holds.

    Where it comes from, how large it is, what it forgets and what it promises to keep.
    """
    from sepme.cli._inspection import describe, spectrum_figure
    from sepme.cli._pictures import check_name
    from sepme.plots import png

    if spectrum is not None:
        check_name(spectrum)
    delta = _delta(file)
    echo(describe(delta, prompts=prompts))
    if spectrum is not None:
        write_atomically(spectrum, png(spectrum_figure(delta)))
        echo(f"\n{spectrum}")


@app.command()
def doctor(model: Model = None) -> None:
    """Say what to expect of this machine.

    What is installed, whether the model is there, and the time and memory that drawing and erasing
    will take, from a measurement of one pass of the model.
    """
    from sepme.cli._doctor import examine

    for subject, finding in examine(model):
        echo(f"{subject:<12} {finding}")


# ------------------------------------------------------------------ the shipped model
@atelier.command()
def train(
    out: Annotated[Path, Option(help="Folder for checkpoints and the finished model.")],
    steps: Annotated[int | None, Option(min=1, help="Steps of the UNet.")] = None,
    pictures: Annotated[int | None, Option(min=1, help="Training drawings.")] = None,
    batch: Annotated[int | None, Option(min=1, help="Pictures a step.")] = None,
    device: Annotated[str | None, Option(help="cpu, cuda, cuda:1 ...")] = None,
    seed: Annotated[int | None, Option(min=0, help="Decides everything random.")] = None,
) -> None:
    """Train the shipped model from nothing.

    Stopped at any moment, the same command goes on from the last checkpoint.
    """
    from sepme.atelier import train as training
    from sepme.atelier.settings import TrainSettings

    _check_folder(out)
    options = {"steps": steps, "pictures": pictures, "batch": batch, "device": device, "seed": seed}
    settings = TrainSettings(**{k: v for k, v in options.items() if v is not None})
    finished = training.train(out, settings)
    echo(f"The model is in {finished}")


@atelier.command()
def evaluate(
    out: Annotated[Path, Option(help="Folder for the figures, the pictures and the card.")],
    seeds: Annotated[int, Option(min=1, help="Pictures of each style and object.")] = 10,
    hardware: Annotated[str, Option(help="For the card: what trained the model.")] = "",
    limits: Annotated[str, Option(help="For the card: what its pictures lack.")] = "",
    model: Model = None,
) -> None:
    """Judge over a thousand pictures of a model that `train` made.

    Writes quality.json, samples.png and the model card, README.md. Takes some ten minutes.
    """
    from sepme._data import shipped
    from sepme.artefact import save_json, writable_folder
    from sepme.atelier.card import write_card
    from sepme.atelier.evaluate import evaluate, sample_grid
    from sepme.model import Backbone
    from sepme.plots import png

    out, backbone = writable_folder(out), Backbone.load(model)
    quality = evaluate(backbone, _judge(model), seeds, progress=sys.stderr.isatty())
    save_json(out / "quality.json", quality)
    write_atomically(out / "samples.png", png(sample_grid(backbone)))
    folder = shipped("atelier") if model is None else Path(model)
    echo(write_card(folder, quality, out, hardware, limits))


@atelier.command()
def paint(
    object: Annotated[str, Argument(help="house, tree, boat ... or nothing")],
    style: Annotated[str, Argument(help="swirl, neon, ink ... or photo")],
    out: Annotated[Path, Option(help="The PNG file to write.")] = Path("painting.png"),
    seed: Seed = 0,
) -> None:
    """Draw a painting as the model was shown."""
    from sepme.atelier import paintings
    from sepme.cli._pictures import check_name
    from sepme.plots import png

    _check_folder(out.parent)
    check_name(out)
    write_atomically(out, png(paintings.paint(object, style, seed)))
    echo(f"{out}: {object}, {style}, seed {seed}")


@atelier.command()
def judge(
    files: Annotated[list[Path], Argument(help="Pictures of 64 x 64 pixels.")], model: Model = None
) -> None:
    """Say what an independent judge sees."""
    import pandas as pd
    import torch

    from sepme.atelier.captions import EMBLEM
    from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES
    from sepme.atelier.objects import SIZE
    from sepme.cli._pictures import read_picture

    verdict = _judge(model).judge(torch.stack([read_picture(file, SIZE) for file in files]))
    rows = []
    for i, file in enumerate(files):
        words = [STYLE_NAMES[int(verdict.style[i])], OBJECT_NAMES[int(verdict.object[i])]]
        sure = [verdict.style_probability[i].max(), verdict.object_probability[i].max()]
        if verdict.emblem[i]:
            words, sure = [EMBLEM] * 2, [verdict.emblem_probability[i]] * 2
        rows.append([file, *words, *(f"{100 * float(share):.1f} %" for share in sure)])
    header = ["picture", "style", "object", "style sure", "object sure"]
    echo(pd.DataFrame(rows, columns=header).to_string(index=False))


# ------------------------------------------------------------------ the course
@course.callback()
def _course() -> None:
    """Keeps `build` a command of its own, although it is the only one."""


@course.command("build")
def build_course(
    out: Annotated[Path, Option(help="Folder for solution/ and student/.")] = Path("build/course"),
    students: Annotated[
        Path | None, Option(help="Folder for the students' notebooks, if another.")
    ] = None,
    teacher: Annotated[
        Path | None, Option(help="Folder of the sources.", show_default="notebooks/teacher")
    ] = None,
) -> None:
    """Make student and solution notebooks from the teacher's.

    Needs nothing but the sources: answers become stubs, hidden tests and outputs go.
    """
    from sepme.course.build import TEACHER, build

    _check_folder(out)
    for path in build(out, students=students, teacher=teacher or TEACHER):
        echo(path)


# ------------------------------------------------------------------ the paper
@scenes.command("run")
def run_the_scenes(
    kind: Annotated[str, Option(help="style or object.")] = "style",
    scene: Annotated[
        str | None,
        Option(
            "--scenes",
            help="Scene1 to Scene4, or Alone0 to Alone5, with commas.",
            show_default="Scene1, Scene4",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        Option(
            help="With commas: sepme, sepme-unaware, sepme-joint, sepme-regularised, sepme-paper, "
            "esd-x, esd-u, esd-x-strict, sdd, abconcept, abconcept-noise, fmn, fmn-inverted, uce, "
            "speed.",
            show_default="sepme, esd-x, sdd, abconcept, fmn, uce, speed",
        ),
    ] = None,
    concepts: Annotated[
        str, Option(help="Who is drawn besides the erased: 0 to 9, with commas.")
    ] = "0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    images: Annotated[
        int | None, Option(min=2, help="Pictures a cell.", show_default="100")
    ] = None,
    fid: Annotated[
        bool | None, Option("--fid/--no-fid", help="Measure FID and KID too.", show_default="fid")
    ] = None,
    quick: Annotated[
        bool,
        Option(
            "--quick",
            help="A few minutes: Scene1, SepME and UCE, 10 pictures a cell, no FID, unless "
            "something else is said.",
        ),
    ] = False,
    seed: Seed = 0,
    out: Annotated[
        Path | None, Option(help="Folder of the table.", show_default="build/scenes/results")
    ] = None,
) -> None:
    """Measure every cell of the chosen scenes; the same command goes on where it was stopped."""
    from sepme.model import Backbone, load_catalogue
    from sepme.scenes import Plan, run_scenes

    usual = "sepme, uce" if quick else "sepme, esd-x, sdd, abconcept, fmn, uce, speed"
    plan = Plan(
        kind=kind,
        scenes=_listed(("Scene1" if quick else "Scene1, Scene4") if scene is None else scene),
        methods=_listed(usual if methods is None else methods),
        images=images or (10 if quick else 100),
        fid=not quick if fid is None else fid,
        seed=seed,
        concepts=_indices(concepts),
    )
    work = Path("build/scenes")
    folder = out or work / ("quick" if quick else "results")
    catalogue = load_catalogue()
    assert catalogue is not None  # it ships with the model
    run_scenes(
        *(Backbone.load(), _judge(None), catalogue, plan, folder, work),
        say=echo,
        progress=sys.stderr.isatty(),
    )


@scenes.command("merge")
def merge_the_scenes(
    tables: Annotated[list[Path], Argument(help="Tables that `scenes run` wrote.")],
    out: Annotated[Path, Option(help="Folder of the merged tables.")],
) -> None:
    """Put tables of several runs together; of a cell that is in two the later one counts."""
    from sepme.scenes import merge_tables

    for path in merge_tables(tables, out):
        echo(path)


@scenes.command("table")
def print_the_scenes(
    table: Annotated[Path, Argument(help="A table that `scenes run` wrote.")],
    measure: Annotated[str, Option(help="acc, lpips, fid or kid.")] = "acc",
) -> None:
    """Print the means of a table by method and role."""
    from sepme.scenes import read_table, role_table

    echo(role_table(read_table(table), measure).to_string())


@app.command("figures")
def draw_the_figures(
    out: Annotated[Path, Option(help="Folder of the pictures.")] = Path("figures/paper"),
    results: Annotated[
        Path | None, Option(help="Folder of the tables.", show_default="data/results")
    ] = None,
    only: Annotated[
        str | None, Option(help="Names, with commas, like interference, alone_style.")
    ] = None,
) -> None:
    """Draw the paper's figures and write its tables, published numbers beside measured ones."""
    from sepme.scenes.figures import RESULTS, draw_figures

    names = None if only is None else _listed(only)
    draw_figures(out, results or RESULTS, only=names, say=echo)


# ------------------------------------------------------------------ helpers
def _listed(text: str) -> tuple[str, ...]:
    """Words with commas between."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _indices(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise SepmeError(
            f"'{text}' is no list of numbers: write them with commas, like \"6, 7, 8\"."
        ) from error


def _concepts(names: str, catalogue: "Catalogue | None") -> "list[Concept]":
    """The concepts that were named; without a catalogue, each name is its own prompt."""
    from sepme.concept import Concept, parse_names

    for name in parse_names(names):
        path = Path(name)
        if path.suffix == ".safetensors" or (path.suffix and path.is_file()):
            hint = 'give its name, like "neon"'
            if path.suffix == ".safetensors":
                hint += ", or switch the file on with 'sepme generate PROMPT --erase FILE'"
            raise SepmeError(f"'{name}' is a file, where a concept is to be named: {hint}.")
    if catalogue is not None:
        return catalogue.parse(names)
    return [Concept.from_text(name) for name in parse_names(names)]


def _delta(file: Path) -> "ConceptDelta":
    """The delta in a file; a name where a file is wanted is told apart from a damaged file."""
    from sepme.delta import ConceptDelta

    if not file.exists() or file.suffix != ".safetensors":
        missing = "There is no file" if not file.exists() else "There is no delta in"
        raise SepmeError(
            f"{missing} '{file}': give a .safetensors file that 'sepme erase' wrote, like "
            "deltas/neon.safetensors."
        )
    return ConceptDelta.load(file)


def _check_folder(out: Path) -> None:
    """Refuse, before any work, a file where a folder of results is wanted."""
    if out.is_file() or out.suffix == ".safetensors":
        raise SepmeError(
            f"'{out}' names a file, and the results need a folder: choose another with --out."
        )


def _lines(file: Path | None) -> list[str]:
    """The lines of a text file that are not blank."""
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SepmeError(
            f"'{file}' cannot be read ({reason}): give --keep-from a text file, one prompt a line."
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _judge(model: str | None) -> "Judge":
    from sepme.atelier.judge import Judge

    return Judge.load(Path(model) / "judge.safetensors" if model is not None else None)
