"""Run notebooks from top to bottom, and make them fit to be committed.

python -m sepme.course.notebook run                           # all chapters, outputs rewritten
python -m sepme.course.notebook run notebooks/00_quickstart.ipynb
python -m sepme.course.notebook link OWNER/NAME               # a fork on GitHub, for its readers
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Annotated

import nbformat
import numpy as np
import typer
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbconvert.preprocessors import ExecutePreprocessor
from nbformat import NotebookNode
from PIL import Image, ImageChops, ImageStat

from sepme.artefact import write_atomically
from sepme.errors import SepmeError

__all__ = ["chapters"]

#: The notebooks of a clone, from the folder that the commands are typed in.
FOLDER = Path("notebooks")
#: The type of a widget's output, and the text that is committed in its place.
WIDGET = "application/vnd.jupyter.widget-view+json"
INSTEAD = "*Run this cell for the interactive widget. The figures below are its still pictures.*"
#: How far off a palette may be, of 255. Plots and maps are by up to 1.7, grids of paintings by 2.7
#: and more.
PALETTE_ERROR = 2.0
#: What opens a chapter in the browser: Binder builds `environment.yml`, Colab lends a GPU.
BINDER = "[Open in Binder](https://mybinder.org/v2/gh/{}/HEAD?labpath=notebooks/{})"
COLAB = "[Open in Colab](https://colab.research.google.com/github/{}/blob/HEAD/notebooks/{})"


def chapters() -> list[Path]:
    """Every chapter to run; the teacher's source of a chapter that students write themselves."""
    sources = ((path, FOLDER / "teacher" / path.name) for path in sorted(FOLDER.glob("*.ipynb")))
    return [source if source.is_file() else path for path, source in sources]


class _InThisInterpreter(ExecutePreprocessor):
    """What `nbconvert --execute` does, whatever kernels are registered elsewhere."""

    def create_kernel_manager(self) -> KernelManager:
        specs = KernelSpecManager(kernel_dirs=[])
        self.km = self.kernel_manager_class(kernel_spec_manager=specs)
        return self.km


def execute(path: Path, folder: Path) -> NotebookNode:
    """The notebook with the outputs of a run from top to bottom, in `folder`.

    Raises:
        nbconvert.preprocessors.CellExecutionError: a cell raised, or took more than 20 minutes.
    """
    arguments = ["--log-level=ERROR", "--matplotlib=inline"]  # not the kernel's own chatter
    run = _InThisInterpreter(timeout=1200, record_timing=False, extra_arguments=arguments)
    return run.preprocess(nbformat.read(path, 4), {"metadata": {"path": str(folder)}})[0]


# ------------------------------------------------------------------ fit to be committed
def tidy(notebook: NotebookNode) -> NotebookNode:
    """Remove what differs from machine to machine, and widgets, which would not answer."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata |= {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook.metadata.pop("widgets", None)
    for output in outputs(notebook):
        if WIDGET in output.get("data", {}):
            output.data = NotebookNode({"text/markdown": INSTEAD})
    return notebook


def lighten(notebook: NotebookNode) -> NotebookNode:
    """Replace each picture by the smallest file that looks the same, see `lighter`."""
    for output in outputs(notebook):
        if "image/png" in (data := output.get("data", {})):
            data["image/png"] = b64encode(lighter(b64decode(data["image/png"]))).decode()
    return notebook


def lighter(file: bytes) -> bytes:
    """A PNG file of what looks the same, or the file itself where that is no smaller.

    A picture of up to 256 colours is kept exactly, with a palette. Others get a palette of 256 if
    red, green and blue are then off by no more than `PALETTE_ERROR` (root mean square), as in plots
    and maps. Else all colours stay, rounded to six bits. The same file gives the same bytes.
    """
    with Image.open(BytesIO(file)) as image:
        if image.convert("RGBA").getextrema()[3] != (255, 255):
            return file
        original = image.convert("RGB")
    few = original
    if original.getcolors(256) is None:
        # Of Pillow's methods, the one that keeps rare colours: a thin line, a frame.
        few = original.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1).convert("RGB")
        if max(ImageStat.Stat(ImageChops.difference(original, few)).rms) > PALETTE_ERROR:
            few = original.point([round(round(v * 63 / 255) * 255 / 63) for v in range(256)] * 3)
    pixels = np.asarray(few)
    colours, index = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    if len(colours) <= 256:  # its own colours as palette: Pillow's would not be exact
        few = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8))
        few.putpalette(colours.astype(np.uint8).tobytes())
    buffer = BytesIO()
    few.save(buffer, format="PNG", optimize=True)
    return min(file, buffer.getvalue(), key=len)


def outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    """The outputs of all code cells, in their order."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            yield from cell.outputs


# ------------------------------------------------------------------ the command
app = typer.Typer(help="The project's notebooks.", no_args_is_help=True)


@app.command()
def run(
    notebooks: Annotated[list[Path] | None, typer.Argument(help="All, if none is named.")] = None,
) -> None:
    """Execute notebooks from top to bottom and rewrite each with its outputs."""
    for path in notebooks or chapters():
        if not path.is_file():
            raise SepmeError(f"There is no notebook {path}.")
        typer.echo(f"{path.name} ...")
        write(path, lighten(tidy(execute(path, path.resolve().parent))))


@app.command()
def link(repository: Annotated[str, typer.Argument(help="OWNER/NAME on GitHub.")]) -> None:
    """Write under every chapter's title where it opens in the browser, from this repository.

    Links of another repository are replaced. Chapter 09, which is for a GPU, opens in Colab and
    clones this repository there; the others open in Binder.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise SepmeError(f"{repository!r} is no repository: write OWNER/NAME, as on GitHub.")
    for path in {*chapters(), *FOLDER.glob("*.ipynb")}:
        write(path, linked(nbformat.read(path, 4), repository, path.name))


def linked(notebook: NotebookNode, repository: str, name: str) -> NotebookNode:
    """Put the chapter's link under its title, and set the address that its set-up clones from."""
    on_colab = False
    for cell in notebook.cells:
        cell.source, clones = re.subn(
            r'(get\("SEPME_REPOSITORY", )"[^"]*"',
            rf'\1"https://github.com/{repository}"',
            cell.source,
        )
        on_colab |= clones > 0
    title, _, text = notebook.cells[0].source.partition("\n")
    text = re.sub(r"^\s*\[Open in \w+\]\(.*\)", "", text).lstrip()
    where = (COLAB if on_colab else BINDER).format(repository, name)
    notebook.cells[0].source = f"{title}\n\n{where}\n\n{text}"
    return notebook


def write(path: Path, notebook: NotebookNode) -> Path:
    """Write a notebook, whole or not at all; the same notebook gives the same bytes."""
    return write_atomically(path, (nbformat.writes(notebook) + "\n").encode())


if __name__ == "__main__":
    app()
