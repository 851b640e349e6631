"""What every notebook opens with, and the one command that runs them all again.

python -m sepme.notebook run                           # all of notebooks/, outputs rewritten
python -m sepme.notebook run notebooks/00_quickstart.ipynb
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import nbformat
import typer
from IPython.display import DisplayHandle, Markdown, display
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from matplotlib import pyplot as plt
from nbclient import NotebookClient
from nbformat import NotebookNode

from sepme.atelier.judge import Judge
from sepme.backbone import ATELIER, Backbone, load_catalogue
from sepme.concept import Catalogue
from sepme.delta import ConceptDelta
from sepme.eraser import Step
from sepme.errors import SepmeError
from sepme.files import write_atomically
from sepme.plots import correlation_decay

FOLDER = ATELIER.parent.parent / "notebooks"
#: Seconds that one cell may take before it counts as hanging.
PATIENCE = 1200


# ------------------------------------------------------------------ in the notebooks
def open_model(
    model: str | Path | None = None,
) -> tuple[Backbone, Judge | None, Catalogue | None]:
    """The model that a notebook speaks about, and the judge and the catalogue that it brings.

    Args:
        model: a diffusers directory or a hub id; by default what the environment variable
            SEPME_MODEL says, and without one the model that ships with the project.

    Raises:
        SepmeError: see `Backbone.load`, `Judge.load` and `Catalogue.load`.
    """
    model = model or os.environ.get("SEPME_MODEL") or None
    backbone = Backbone.load(model)
    weights = (Path(model) if model else ATELIER) / "judge.safetensors"
    judge = Judge.load(weights) if weights.is_file() else None
    return backbone, judge, load_catalogue(model)


def shipped_deltas(backbone: Backbone, model: str | Path | None = None) -> dict[str, ConceptDelta]:
    """The deltas that lie beside a model, in its folder `deltas`, by the concept's name.

    `sepme erase "neon, boat" --out MODEL/deltas` puts more of them there.

    Args:
        backbone: the model that they must belong to.
        model: its directory, as for `open_model`.

    Raises:
        SepmeError: there is none, or one belongs to another model.
    """
    folder = Path(model or os.environ.get("SEPME_MODEL") or ATELIER) / "deltas"
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise SepmeError(
            f"There are no deltas in {folder}: make some with 'sepme erase', into that folder."
        )
    deltas = [ConceptDelta.load(file, base=backbone.fingerprint) for file in files]
    return {delta.concept: delta for delta in deltas}


def banner(backbone: Backbone, *, minutes: float, gigabytes: float) -> Markdown:
    """Which model speaks in this notebook, and how long and large it is on the Atelier."""
    own = backbone.name == ATELIER.name
    whose = (
        "the small model that ships with sepme. What follows is about this model; "
        "none of its figures is the paper's."
        if own
        else "a model of your own. The text was written about the Atelier's pictures, not these."
    )
    return Markdown(
        f"> **The model that speaks here: `{backbone.name}`**, {whose}  \n"
        f"> On {backbone.device.type}, {backbone.steps} sampling steps, guidance "
        f"{backbone.guidance:g}, weights `{backbone.fingerprint[:12]}`.  \n"
        f"> Expect about {minutes:g} minutes and {gigabytes:g} GB"
        + (" on two CPU cores." if own else " with the Atelier on two CPU cores.")
    )


class LiveDecay:
    """A callback for `sepme.eraser.erase` that draws the correlation's decay while it happens.

    Attributes:
        steps: every `Step` of the training so far.
    """

    def __init__(self, concept: str, *, tau: float | None = None, every: int = 5) -> None:
        self.concept, self.tau, self.every = concept, tau, every
        self.steps: list[Step] = []
        self._place: DisplayHandle | None = None

    def __call__(self, step: Step) -> None:
        self.steps.append(step)
        if step.iteration % self.every == 0:
            self.draw()

    def draw(self) -> None:
        """Draw what there is, in the place of the drawing before."""
        figure = correlation_decay({self.concept: self.steps}, tau=self.tau).figure
        plt.close(figure)  # else the notebook would show it once more at the end of the cell
        if self._place is None:
            self._place = display(figure, display_id=True)
        else:
            self._place.update(figure)


# ------------------------------------------------------------------ around the notebooks
def execute(path: Path, folder: Path) -> NotebookNode:
    """The notebook with the outputs of a run from top to bottom, in `folder`.

    It runs in a kernel of this very interpreter, whatever kernels are registered elsewhere.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    manager = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=PATIENCE,
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # the kernel's own chatter, not the cells' warnings
        resources={"metadata": {"path": str(folder)}},
    )
    plain = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    # The kernel shows figures inline, whatever is set outside, and ends with the notebook.
    client.execute(env=plain, cleanup_kc=True)
    return notebook


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Without what differs from machine to machine: versions and the kernel's name."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata |= {"kernelspec": kernel, "language_info": {"name": "python"}}
    return notebook


app = typer.Typer(help="Run the project's notebooks.", no_args_is_help=True)


@app.callback()
def _commands() -> None:
    """Keeps `run` a command of its own, although it is the only one."""


@app.command()
def run(
    notebooks: Annotated[list[Path] | None, typer.Argument(help="All, if none is named.")] = None,
) -> None:
    """Execute notebooks from top to bottom and rewrite each with its outputs."""
    for path in _named(notebooks or ()):
        typer.echo(f"{path.name} ...")
        notebook = tidy(execute(path, path.resolve().parent))
        write_atomically(path, (nbformat.writes(notebook) + "\n").encode())


def _named(notebooks: Sequence[Path]) -> list[Path]:
    paths = list(notebooks) or sorted(FOLDER.glob("*.ipynb"))
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise SepmeError(f"There is no notebook {missing[0] if missing else 'in ' + FOLDER.name}.")
    return paths


if __name__ == "__main__":
    app()
