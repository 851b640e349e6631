"""The command line: it reads what was typed, and the library does the work.

Bad input gets one line on stderr and exit code 2. Libraries that take seconds to import are
imported by the commands that need them.
"""

import atexit
import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from sepme import __version__
from sepme._checks import guided, plain, whole
from sepme._data import shipped
from sepme.artefact import refuse_overwriting, writable_folder, write_atomically
from sepme.errors import SepmeError, SepmeWarning, in_words, printable, warn

if TYPE_CHECKING:
    from sepme.atelier.judge import Judge
    from sepme.concept import Catalogue, Concept
    from sepme.erasure import ErasureSettings

__all__ = ["app"]

#: When Python ends, which takes a moment, the work is done and nothing is left to interrupt.
atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
#: What to do after Ctrl-C, by command.
RESUME = {
    "erase": "The same command goes on from the last checkpoint.",
    "atelier": "The same command goes on from the last checkpoint, if it was training.",
    "scenes": "The same command goes on from the last finished state.",
}
#: The files and folders that are read of a model's folder.
MODEL = "unet vae text_encoder tokenizer scheduler judge.safetensors model_index.json".split()
MODEL += ["text_encoder_2", "tokenizer_2", "catalogue.json", "generation.json", "training.json"]
#: What was typed wrong: of click, or of typer's own copy of it.
UsageError = typer.BadParameter.__base__


def echo(text: object, *, err: bool = False) -> None:
    """Print the text; names in it may come from anywhere, and must not act on a terminal.

    Raises:
        SepmeError: nothing can be written there, as on a full disk.
    """
    stream = sys.stderr if err else sys.stdout
    shown = "\n".join(map(printable, str(text).split("\n")))
    letters = getattr(stream, "encoding", None) or "utf-8"  # Windows' may lack some
    try:
        typer.echo(shown.encode(letters, "backslashreplace").decode(letters), err=err)
    except OSError as error:
        if err or error.errno == errno.EPIPE:  # nobody reads on, which click takes for the end
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python writes again at its end
        raise SepmeError(
            f"The output cannot be written ({in_words(error)}): send it to another place."
        ) from error


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

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As a shell does for a word of its own, but not in `--out=~/deltas`: ~ is the home."""
        home = os.path.expanduser("~")
        at_home = partial(re.sub, r"\A(--[\w-]+=)?~(?=/)", lambda m: (m[1] or "") + home)
        return super().parse_args(ctx, [*map(at_home, args)])

    def invoke(self, ctx: Any) -> Any:
        try:
            with _warnings_in_words():
                return super().invoke(ctx)
        except SepmeError as error:
            echo(f"sepme: {error}", err=True)
            raise typer.Exit(2) from error
        except UsageError as error:
            wrong = error.format_message().rstrip(".?")
            if "\n" in wrong:  # the help of a command that was given no words
                raise
            echo(f"sepme: {wrong}: see '{error.ctx.command_path} --help'.", err=True)
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
    Option(help="A folder, .safetensors file or hub id.", show_default="the shipped model"),
]
Seed = Annotated[int, Option(min=0, max=2**63 - 1, help="Decides everything that is random.")]
#: The most pictures of a kind that make sense.
MANY = 10_000
Preset = Annotated[
    str,
    Option(
        help="default, closed_form, from_zero, faithful, paper, paper_first, authors, undecoupled."
    ),
]
Device = Annotated[
    str | None, Option(help="cpu, cuda, cuda:1 ...", show_default="the fastest there is")
]
Dtype = Annotated[
    str | None,
    Option(
        help="The model's number type: float32, float16 or bfloat16.",
        show_default="float16 on CUDA, else float32",
    ),
]
Protocol = Annotated[
    str,
    Option(
        help="catalogue: forget all prompts of a concept, keep all others that are known. paper: "
        "forget the bare name, keep the other names given and the seal."
    ),
]
Steps = Annotated[
    int | None,
    Option(min=1, max=1000, help="Sampling steps a picture.", show_default="the model's own"),
]
_of_preset = {"show_default": "the preset's"}
Images = Annotated[
    int | None, Option(min=1, max=MANY, help="Pictures of a concept to train on.", **_of_preset)
]
Batch = Annotated[
    int | None, Option(min=1, max=MANY, help="Noised images an iteration.", **_of_preset)
]
MicroBatch = Annotated[
    int | None,
    Option(min=1, help="At most so many in one pass: less memory, more time; about the same file."),
]
Iterations = Annotated[
    int | None, Option(min=0, max=10**6, help="The most iterations of training.", **_of_preset)
]
Picture = Annotated[Path, Option(help="The PNG file to write.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        echo(f"sepme {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: bool = Option(False, "--version", callback=_print_version, is_eager=True),
) -> None:
    """Make a text-to-image model forget concepts, compose what it forgot, and give it back."""


# ------------------------------------------------------------------ the story
@app.command()
def demo(
    out: Path = Option(Path("figures/demo"), help="Folder for pictures, deltas and report.json."),
    erase: str = Option("neon, swirl, ink, boat", help="Styles and objects, separated by commas."),
    samples: int = Option(20, min=1, max=MANY, help="Judged pictures a concept."),
    retained: int = Option(40, min=1, max=MANY, help="Judged pictures of the rest."),
    seed: Seed = 0,
    model: Model = None,
) -> None:
    """Erase, compose and restore: the whole story.

    Writes before_after.png, correlation_decay.png, report.json and the deltas, and prints a table.
    """
    from sepme.model import Backbone, load_catalogue
    from sepme.scenes.demo import DemoGrid, demo_table, run_demo

    _check_folder(out)
    refuse_overwriting([out, out / "deltas"], [*_read_of(model), _model_path(model) / "deltas"])
    catalogue = load_catalogue(model)
    if catalogue is None:
        raise SepmeError(
            f"The model '{model}' brings no catalogue.json: give the folder of a model with a "
            "catalogue.json and a judge.safetensors, or leave out --model."
        )
    grid, judge = DemoGrid(catalogue, _concepts(erase, catalogue)), _judge(model)
    report = run_demo(
        *(Backbone.load(model), judge, out, grid),
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
    concepts: str = Argument(help="Names with commas between; 'neon, \"Alex Example, Jr.\"'."),
    out: Path = Option(Path("deltas"), help="Folder for one file a concept."),
    preset: Preset = "default",
    protocol: Protocol = "catalogue",
    keep: list[str] | None = Option(None, help="Another prompt that must not change; repeatable."),
    keep_from: Path | None = Option(None, help="Such prompts: one a line, or a CSV's 'prompt'."),
    keep_rtol: float | None = Option(None, help="Tolerance, as a share of a kept token's length."),
    after: list[Path] | None = Option(None, help="File or name of a delta that is on; repeatable."),
    joint: bool = Option(False, "--joint", help="Train all of them in one run."),
    closed_form: bool = Option(False, "--closed-form", help="The preset that trains nothing."),
    overwrite: bool = Option(False, "--overwrite", help="Replace files that other settings made."),
    steps: Steps = None,
    images: Images = None,
    batch: Batch = None,
    micro_batch: MicroBatch = None,
    iterations: Iterations = None,
    seed: Seed = 0,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Erase concepts: one small file each.

    Any diffusers pipeline of the same model loads such a file as a LoRA. Killed and started again,
    the command goes on where it was and ends in the same bytes. Concepts that the folder holds
    already, made with the same settings, are skipped. Several processes share the list, each on a
    GPU of its own: accelerate launch -m sepme erase "neon, ink" --out DIR.
    """
    from sepme.cli._place import load, place
    from sepme.delta import ConceptDelta
    from sepme.erasure import preset as by_name
    from sepme.jobs.tasks import Process, erase_into, plan
    from sepme.model import load_catalogue

    _check_folder(out)
    if closed_form and (preset != "default" or iterations):
        raise SepmeError(
            "The closed form is a preset itself, which trains nothing: leave out --preset and "
            "--iterations, or --closed-form."
        )
    where, process = place(device, dtype), Process.current()
    catalogue, earlier = load_catalogue(model), _delta_files(after, model)
    typed = {"images": images, "batch": batch, "iterations": iterations, "keep_rtol": keep_rtol}
    tasks = plan(
        _concepts(concepts, catalogue),
        [*(keep or ()), *_kept(keep_from)],
        catalogue,
        _changed(by_name("closed_form" if closed_form else preset), steps, **typed),
        protocol=protocol,
        seed=seed,
        joint=joint,
        after=[ConceptDelta.load(file) for file in earlier],
    )
    files = [file for task in tasks for file in task.files(out)]
    refuse_overwriting(files, [*earlier, *filter(None, [keep_from]), *_read_of(model)])
    shown = {"progress": sys.stderr.isatty(), "say": echo, "process": process}
    how = {"micro_batch": micro_batch, "overwrite": overwrite}
    erase_into(out, tasks, load(model, where, steps), **how, **shown)


@app.command()
def generate(
    prompt: str = Argument(help="What to draw."),
    erased: list[Path] | None = Option(
        None,
        "--erase",
        help="A delta to switch on: a file, or the name of one in deltas or beside the model; "
        "repeatable.",
    ),
    out: Picture = Path("picture.png"),
    steps: Steps = None,
    guidance: float | None = Option(None, help="0, or 1 and more.", show_default="the model's own"),
    images: int = Option(1, min=1, max=MANY, help="Pictures, of seeds in a row; picture-SEED.png."),
    batch: int | None = Option(
        None, min=1, max=MANY, help="Pictures at once.", show_default="by size"
    ),
    force: bool = Option(False, "--force", help="Even deltas that do not keep one another."),
    seed: Seed = 0,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draw pictures with any concepts erased."""
    from sepme.cli._pictures import check_name
    from sepme.cli._place import load, place
    from sepme.composition import Composition
    from sepme.delta import ConceptDelta
    from sepme.plots import png

    files = _delta_files(erased, model)
    whole(0, 2**63 - 1, **{"the last seed": seed + images - 1})
    series = [out.parent / f"{out.stem}-{seed + n}{out.suffix}" for n in range(images)]
    pictures = [out] if images == 1 else series
    for picture in pictures:
        check_name(picture, *files, *_read_of(model))
    guided(guidance or 0)
    plain(prompt)
    deltas = [ConceptDelta.load(file) for file in files]
    backbone = load(model, place(device, dtype), steps)
    if remark := backbone.vocabulary.remark([prompt]):
        warn(remark)
    with Composition(backbone, deltas, force=force) as composition:
        composition.erase(*composition.deltas)
        options = {"guidance": guidance, "batch": batch, "progress": sys.stderr.isatty()}
        drawn = backbone.generate([prompt] * images, seed, **options)
    names = ", ".join(delta.concept for delta in deltas) or "nothing"
    for each, (file, image) in enumerate(zip(pictures, drawn, strict=True), start=seed):
        write_atomically(file, png(image))
        echo(f"{file}: '{prompt}', {names} erased, seed {each}")


app.command("compose", help="The same as generate.")(generate)


# ------------------------------------------------------------------ looking
@app.command()
def inspect(
    file: Path = Argument(help="A file that `sepme erase` made, or the name of its concept."),
    prompts: bool = Option(False, "--prompts", help="List all prompts, forgotten and kept."),
    spectrum: Path | None = Option(None, help="A PNG file for the singular values of every layer."),
) -> None:
    """Say what an erased concept's file holds, where it comes from and what it keeps."""
    from sepme.cli._inspection import describe, spectrum_figure
    from sepme.cli._pictures import check_name
    from sepme.delta import ConceptDelta
    from sepme.plots import png

    files = _delta_files([file], None)
    if len(files) > 1:
        raise SepmeError("One file is inspected at a time: name a single one.")
    file = files[0]
    if spectrum is not None:
        check_name(spectrum, file)
    delta = ConceptDelta.load(file)
    echo(describe(delta, prompts=prompts))
    if spectrum is not None:
        write_atomically(spectrum, png(spectrum_figure(delta)))
        echo(f"\n{spectrum}")


@app.command()
def doctor(
    preset: Preset = "default",
    steps: Steps = None,
    images: Images = None,
    batch: Batch = None,
    micro_batch: MicroBatch = None,
    iterations: Iterations = None,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Say what to expect of this machine.

    What is installed, whether the model is there, and the time and memory that drawing and erasing
    will take with these settings, from a measurement of a few passes of the model.
    """
    from sepme.cli._doctor import examine
    from sepme.cli._place import place
    from sepme.erasure import preset as by_name

    typed = {"images": images, "batch": batch, "iterations": iterations}
    settings = _changed(by_name(preset), steps, **typed)
    for subject, finding in examine(model, place(device, dtype), settings, steps, micro_batch):
        echo(f"{subject:<12} {finding}")


# ------------------------------------------------------------------ the shipped model
@atelier.command()
def train(
    out: Path = Option(help="Folder for checkpoints and the finished model."),
    steps: int | None = Option(None, min=1, help="Steps of the UNet."),
    pictures: int | None = Option(None, min=1, max=10_000_000, help="Training drawings."),
    batch: int | None = Option(None, min=1, max=MANY, help="Pictures a step."),
    device: Device = None,
    seed: Seed = 0,
) -> None:
    """Train the shipped model from nothing.

    Stopped at any moment, the same command goes on from the last checkpoint.
    """
    from sepme.atelier import train as training
    from sepme.atelier.settings import TrainSettings

    _check_folder(out)
    refuse_overwriting([out / "vae"], _read_of(None))
    options = {"steps": steps, "pictures": pictures, "batch": batch, "device": device, "seed": seed}
    settings = TrainSettings(**{k: v for k, v in options.items() if v is not None})
    echo(f"The model is in {training.train(out, settings)}")


@atelier.command()
def evaluate(
    out: Path = Option(help="Folder for the figures, the pictures and the card."),
    seeds: int = Option(10, min=1, max=MANY, help="Pictures of each style and object."),
    hardware: str = Option("", help="For the card: what trained the model."),
    limits: str = Option("", help="For the card: what its pictures lack."),
    model: Model = None,
) -> None:
    """Judge over a thousand pictures of a model that `train` made.

    Writes quality.json, samples.png and the model card, README.md. Takes some ten minutes.
    """
    from sepme.artefact import save_json
    from sepme.atelier.card import write_card
    from sepme.atelier.evaluate import evaluate, sample_grid
    from sepme.model import Backbone
    from sepme.plots import png

    _check_folder(out)
    folder = _model_path(model)
    if not (folder / "training.json").is_file() or not (folder / "generation.json").is_file():
        raise SepmeError(
            f"'{folder}' does not say how its model was trained: give a folder that 'sepme atelier "
            "train' made."
        )
    judge, backbone = _judge(model), Backbone.load(model)
    quality = evaluate(backbone, judge, seeds, progress=sys.stderr.isatty())
    save_json(out / "quality.json", quality)
    write_atomically(out / "samples.png", png(sample_grid(backbone)))
    echo(write_card(folder, quality, out, hardware, limits))


@atelier.command()
def paint(
    object: str = Argument(help="house, tree, boat ... or nothing"),
    style: str = Argument(help="swirl, neon, ink ... or photo"),
    out: Picture = Path("painting.png"),
    seed: Seed = 0,
) -> None:
    """Draw a painting as the model was shown."""
    from sepme.atelier import paintings
    from sepme.cli._pictures import check_name
    from sepme.plots import png

    check_name(out)
    write_atomically(out, png(paintings.paint(object, style, seed)))
    echo(f"{out}: {object}, {style}, seed {seed}")


@atelier.command()
def judge(
    files: list[Path] = Argument(help="Pictures of 64 x 64 pixels, or folders of them."),
    model: Model = None,
) -> None:
    """Say what an independent judge sees."""
    import pandas as pd
    import torch

    from sepme.atelier.captions import EMBLEM
    from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES
    from sepme.atelier.objects import SIZE
    from sepme.cli._pictures import picture_files, read_picture

    files = picture_files(files)
    pictures = torch.stack([read_picture(file, SIZE) for file in files])
    seen = _judge(model).judge(pictures)
    table, emblem = pd.DataFrame({"picture": files}), seen.emblem.numpy()
    table["style"] = [STYLE_NAMES[i] for i in seen.style]
    table["object"] = [OBJECT_NAMES[i] for i in seen.object]
    table.loc[emblem, ["style", "object"]] = EMBLEM
    for name in ("style", "object"):
        sure = getattr(seen, f"{name}_probability").amax(1)
        sure = torch.where(seen.emblem, seen.emblem_probability, sure)
        table[f"{name} sure"] = [f"{share:.1%}" for share in sure.tolist()]
    echo(table.to_string(index=False))


# ------------------------------------------------------------------ the course
course.callback()(lambda: None)  # keeps `build` a command of its own


@course.command("build")
def build_course(
    out: Path = Option(Path("build/course"), help="Folder for solution/ and student/."),
    students: Path | None = Option(None, help="Folder for the students' notebooks, if another."),
    teacher: Path | None = Option(None, help="The sources.", show_default="notebooks/teacher"),
) -> None:
    """Make student and solution notebooks from the teacher's.

    Needs nothing but the sources: answers become stubs, hidden tests and outputs go.
    """
    from sepme.course.build import TEACHER, build

    _check_folder(out, students or out)
    for path in build(out, students=students, teacher=teacher or TEACHER):
        echo(path)


# ------------------------------------------------------------------ the paper
#: Changes and images, which may be thrown away.
WORK = Path("build/scenes")
#: What `--quick` means, unless something else is said.
QUICK = {
    "scenes": "Scene1",
    "methods": "sepme@catalogue, uce@catalogue",
    "images": 10,
    "fid": False,
    "out": WORK / "quick",
}


@scenes.command("run")
def run_the_scenes(
    context: typer.Context,
    kind: str = Option("style", help="style or object."),
    scenes: str = Option("Scene1, Scene4", help="Scene1 to Scene4, Alone0 to Alone5, with commas."),
    methods: str = Option(
        "sepme-faithful@paper, sepme@catalogue, esd-x, sdd, abconcept, fmn, uce@catalogue",
        help="With commas, the retain set behind @: sepme-faithful@paper, sepme@paper, "
        "sepme@catalogue, sepme-joint@catalogue, sepme-regularised@catalogue, uce@paper, "
        "uce@catalogue, speed@paper, speed@catalogue, abconcept-retained@paper, "
        "abconcept-retained@catalogue; without one: esd-x, esd-u, esd-x-strict, sdd, abconcept, "
        "abconcept-noise, fmn, fmn-inverted.",
    ),
    concepts: str = Option("0, 1, 2, 3, 4, 5, 6, 7, 8, 9", help="Drawn besides the erased."),
    images: int = Option(100, min=2, help="Pictures a cell."),
    fid: bool = Option(True, "--fid/--no-fid", help="Measure FID and KID too."),
    quick: bool = Option(False, "--quick", help="Scene1, SepME and UCE, 10 pictures, no FID."),
    seed: Seed = 0,
    out: Path = Option(WORK / "results", help="Folder of the table."),
) -> None:
    """Measure every cell of the chosen scenes; the same command goes on where it was stopped.

    Pictures are drawn in bfloat16 where the machine has instructions for it, but for the methods
    [paper], whose recovered concepts come back exactly; the manifest says so.
    """
    from sepme.model import Backbone, load_catalogue
    from sepme.scenes import Plan, run_scenes

    wanted = {"scenes": scenes, "methods": methods, "images": images, "fid": fid, "out": out}
    if quick:
        said = [name for name in QUICK if context.get_parameter_source(name).name != "DEFAULT"]
        wanted = QUICK | {name: wanted[name] for name in said}
    plan = Plan(
        kind=kind,
        scenes=_listed(wanted["scenes"]),
        methods=_listed(wanted["methods"]),
        images=wanted["images"],
        fid=wanted["fid"],
        seed=seed,
        concepts=_indices(concepts),
    )
    folders = wanted["out"], WORK
    _check_folder(*folders)
    model = Backbone.load(), _judge(None), load_catalogue()
    run_scenes(*model, plan, *folders, say=echo, progress=sys.stderr.isatty())


@scenes.command("merge")
def merge_the_scenes(
    tables: list[Path] = Argument(help="Tables that `scenes run` wrote."),
    out: Path = Option(help="Folder of the merged tables."),
) -> None:
    """Put tables of several runs together; of a cell that is in two the later one counts."""
    from sepme.scenes import merge_tables
    from sepme.scenes.protocol import EVALUATED

    _check_folder(out)
    written = [out / f"scenes_{kind}.csv" for kind in EVALUATED]
    manifests = [[table.with_suffix(".json") for table in each] for each in (written, tables)]
    refuse_overwriting([*written, *manifests[0]], [*tables, *manifests[1]])
    for path in merge_tables(tables, out):
        echo(path)


@scenes.command("table")
def print_the_scenes(
    table: Path = Argument(help="A table that `scenes run` wrote."),
    measure: str = Option("acc", help="acc, lpips, fid or kid."),
) -> None:
    """Print the means of a table by method and role."""
    from sepme.scenes import read_table, role_table

    echo(role_table(read_table(table), measure).to_string())


@app.command("figures")
def draw_the_figures(
    out: Path = Option(Path("figures/paper"), help="Folder of the pictures."),
    results: Path | None = Option(None, help="Folder of the tables.", show_default="data/results"),
    only: str | None = Option(None, help="Names, with commas, like interference, alone_style."),
) -> None:
    """Draw the paper's figures and write its tables, published numbers beside measured ones."""
    from sepme.scenes.figures import RESULTS, draw_figures

    names, results = None if only is None else _listed(only), results or RESULTS
    _check_folder(out)
    refuse_overwriting([out], [results, shipped("paper")])
    draw_figures(out, results, only=names, say=echo)


@app.command("export")
def export_deltas(
    erased: list[Path] = Argument(
        help="Deltas, which are summed: files, or the names of some in deltas or beside the model."
    ),
    out: Path = Option(help="A new folder for the weights and their card."),
    format: str = Option("peft", help="peft, kohya (A1111, ComfyUI), folder or file (merged)."),
    strength: float = Option(1.0, help="1 erases, 0.5 half."),
    rank: int | None = Option(None, min=1, help="The largest rank of a layer: smaller files."),
    dtype: str | None = Option(
        None,
        help="Of the numbers: float32, float16 or bfloat16.",
        show_default="float16 for kohya, else as they are",
    ),
    overwrite: bool = Option(False, "--overwrite", help="Replace an earlier export."),
    model: Model = None,
) -> None:
    """Write erased concepts for other programs: as a LoRA, or folded into a whole model."""
    from sepme.cli._place import number_type
    from sepme.delta import ConceptDelta
    from sepme.exchange import export
    from sepme.model import Backbone

    number = number_type(dtype) if dtype else None
    files = _delta_files(erased, model)
    refuse_overwriting([out, *(out / file.name for file in files)], [*files, *_read_of(model)])
    deltas = [ConceptDelta.load(file) for file in files]
    made = export(
        Backbone.load(model, device="cpu"),
        deltas,
        out,
        format,
        strengths={delta.concept: strength for delta in deltas},
        rank=rank,
        dtype=number,
        overwrite=overwrite,
    )
    echo(f"{made.weights}: relative error {made.error:.2g}")


@app.command("import")
def import_file(
    file: Path = Argument(help="A LoRA file of diffusers, PEFT, kohya or LECO."),
    concept: str = Argument(help="What it makes the model forget."),
    out: Path = Option(help="The delta's file, in .safetensors."),
    keep: list[str] | None = Option(None, help="What it leaves alone, as you say; repeatable."),
    leave: bool = Option(False, "--leave", help="Leave out layers but the text's keys and values."),
    overwrite: bool = Option(False, "--overwrite", help="Replace a file that is there."),
    model: Model = None,
) -> None:
    """Make a delta of another program's LoRA, to compose and to look into."""
    from sepme.cli._pictures import check_name
    from sepme.concept import Concept
    from sepme.exchange import import_lora
    from sepme.model import Backbone, load_catalogue

    check_name(out, file, *_read_of(model), suffix=".safetensors")
    if os.path.lexists(out) and not overwrite:
        raise SepmeError(
            f"{out} is there already: choose another with --out, or replace it with --overwrite."
        )
    catalogue = load_catalogue(model)
    named = catalogue[concept] if catalogue else Concept.from_text(concept)
    extra = "leave" if leave else "refuse"
    delta = import_lora(Backbone.load(model, device="cpu"), file, named, keep or (), extra=extra)
    delta.save(out)
    echo(f"{out}: rank {delta.rank}, {len(delta.paths)} layers")


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


def _changed(settings: "ErasureSettings", steps: int | None, **values: Any) -> "ErasureSettings":
    """The settings with what was typed in place of their own; typed steps are all an image's."""
    values["image_steps"] = 1.0 if steps else None
    return replace(settings, **{name: value for name, value in values.items() if value is not None})


def _concepts(names: str, catalogue: "Catalogue | None") -> "list[Concept]":
    """The concepts that were named; without a catalogue, each name is its own prompt."""
    from sepme.concept import Concept, parse_names

    for name in parse_names(names):
        path = Path(name)
        if path.suffix == ".safetensors" or (path.suffix and path.is_file()):
            raise SepmeError(
                f"'{name}' is a file, where a concept is to be named, like \"neon\": a delta is "
                "switched on with 'sepme generate PROMPT --erase FILE'."
            )
    if catalogue is not None:
        return catalogue.parse(names)
    return [Concept.from_text(name) for name in parse_names(names)]


def _delta_files(words: list[Path] | None, model: str | None) -> list[Path]:
    """The files that were named, each by itself or several with commas between.

    A name stands for the file of a concept, where `erase` writes it, or beside the model.
    """
    from sepme.concept import Catalogue, parse_names, slug
    from sepme.model import load_catalogue

    folders = _model_path(model) / "deltas", Path("deltas")  # the later one counts
    there = {f.stem: f for folder in folders for f in folder.glob("[!.]*.safetensors")}

    def found(word: str) -> Path | None:
        names = [word]
        with suppress(SepmeError):  # it is none of the catalogue's
            names.append((load_catalogue(model) or Catalogue({}))[word].name)
        places = (Path(word), *(there.get(slug(name)) for name in names))
        return next((place for place in places if place and place.is_file()), None)

    files = []
    for word in map(str, words or ()):
        for name in [word] if found(word) else parse_names(word):
            if (file := found(name)) is None and not Path(name).suffix:
                raise SepmeError(
                    f"There is no file '{name}', nor a delta of that name (there are: "
                    f"{', '.join(sorted(there)) or 'none'}): name one of these, or erase it first."
                )
            files.append(file or Path(name))
    return files


def _check_folder(*folders: Path) -> None:
    """Refuse, before any work, folders that cannot be written to, and the name of a file."""
    for out in folders:
        if os.path.isfile(out) or out.suffix == ".safetensors":
            raise SepmeError(
                f"'{out}' names a file, and the results need a folder: choose another with --out."
            )
        writable_folder(out)


def _model_path(model: str | None) -> Path:
    """Where a model is read from, if it is none of the hub's."""
    return shipped("atelier") if model is None else Path(model)


def _read_of(model: str | None) -> list[Path]:
    """What is read of a model."""
    path = _model_path(model)
    return [path / name for name in MODEL] if path.is_dir() else [path]


def _kept(file: Path | None) -> list[str]:
    """The prompts of a file, told to the person who named it."""
    from sepme.cli._prompts import read_prompts

    if file is None:
        return []
    prompts = read_prompts(file)
    ends = f"'{prompts[0]}'" if len(prompts) == 1 else f"'{prompts[0]}' to '{prompts[-1]}'"
    echo(f"{file}: {len(prompts)} to be kept, {ends}")
    return prompts


def _judge(model: str | None) -> "Judge":
    from sepme.atelier.judge import Judge

    return Judge.load(_model_path(model) / "judge.safetensors")
