"""Every notebook runs from top to bottom, and what is committed of it is clean."""

import json
import os
import re
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from sepme.closed_form import closed_form
from sepme.eraser import erase
from sepme.errors import SepmeError
from sepme.notebook import (
    FOLDER,
    LiveDecay,
    banner,
    execute,
    open_model,
    shipped_deltas,
    tidy,
)
from tests.miniature import NEON, QUICK, fresh
from tests.test_house import MACHINE_PATH

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: A notebook with its pictures, and all of them together.
LARGEST, LARGEST_TOGETHER = 1_500_000, 6_000_000
WIDGET = "application/vnd.jupyter.widget-view+json"

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    for cell in code_cells(notebook):
        yield from cell.outputs


def words(notebook: NotebookNode) -> str:
    """All text of a notebook, without its pictures."""
    texts = [cell.source for cell in notebook.cells]
    for output in outputs(notebook):
        data = {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/")}
        texts.append(json.dumps([output.get("text", ""), data]))
    return "\n".join(texts)


def complaints(notebook: NotebookNode) -> list[str]:
    """What must not be committed."""
    found = []
    for output in outputs(notebook):
        if output.output_type == "error":
            found.append(f"a cell ended in {output.ename}")
        if output.get("name") == "stderr":
            found.append(f"a cell warned: {output.text.strip()[:80]}")
        data = output.get("data", {})
        if data.get("text/plain", "").startswith("<Figure") and "image/png" not in data:
            found.append("a figure that is not drawn")
        shown = data.get(WIDGET, {}).get("model_id")
        state = notebook.metadata.get("widgets", {}).values()
        if shown and not any(shown in part.get("state", {}) for part in state):
            found.append("a widget without its state")
    found += [f"the path {m.group()}" for m in re.finditer(MACHINE_PATH, words(notebook))]
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if any(counts) and counts != list(range(1, len(counts) + 1)):
        found.append("not run from top to bottom")
    if notebook.metadata != tidy(deepcopy(notebook)).metadata:
        found.append("metadata of one machine")
    return found


# ---------------------------------------------------------------- the notebooks themselves
def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) > 0
    listed = re.findall(r"\]\((\w+\.ipynb)\)", (FOLDER / "README.md").read_text())
    assert listed == [path.name for path in NOTEBOOKS]


@pytest.mark.slow
@each
def test_it_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if model := request.config.getoption("--model"):
        monkeypatch.setenv("SEPME_MODEL", str(Path(model).resolve()))
    executed = tidy(execute(path, tmp_path))
    assert all(cell.execution_count for cell in code_cells(executed))
    assert complaints(executed) == []
    assert list(tmp_path.iterdir()) == []  # nothing left behind


@each
def test_what_is_committed_is_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert complaints(notebook) == []
    assert path.stat().st_size <= LARGEST


def test_all_together_stay_small() -> None:
    assert sum(path.stat().st_size for path in NOTEBOOKS) <= LARGEST_TOGETHER


@each
def test_it_opens_as_every_chapter_does(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    title = notebook.cells[0].source.splitlines()[0]
    assert re.fullmatch(r"# .+\?", title), "a chapter opens with a question"
    first = code_cells(notebook)[0].source
    assert "open_model(" in first
    assert "banner(" in first
    text = words(notebook)
    for part in ("**Predict before you run.**", "## Exercises", "assert "):
        assert part in text


# ---------------------------------------------------------------- the checks can fail
def written(folder: Path, source: str) -> Path:
    path = folder / "example.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), path)
    return path


def test_a_notebook_that_raises_fails(tmp_path: Path) -> None:
    path = written(tmp_path, "assert 1 + 1 == 3, 'no'")
    with pytest.raises(CellExecutionError, match="AssertionError"):
        execute(path, tmp_path)


def test_it_runs_in_this_interpreter_and_in_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = written(tmp_path, "import os, sys\nprint(sys.prefix, os.getcwd(), os.getpid())")
    (output,) = outputs(execute(path, inside))
    prefix, folder, process = output.text.split()
    assert (prefix, folder) == (sys.prefix, str(inside))
    with pytest.raises(ProcessLookupError):  # the kernel has ended
        os.kill(int(process), 0)


SPOILT = {
    "figure": new_output("display_data", data={"text/plain": "<Figure size 64x64 with 1 Axes>"}),
    "error": new_output("error", ename="ValueError", evalue="x", traceback=[]),
    "warning": new_output("stream", name="stderr", text="careful"),
    "path": new_output("stream", name="stdout", text=str(Path("/", "home", "me", "x"))),
    "widget": new_output("display_data", data={WIDGET: {"model_id": "abc"}}),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_output_is_found(kind: str) -> None:
    cell = new_code_cell("1", outputs=[SPOILT[kind]], execution_count=1)
    notebook = tidy(new_notebook(cells=[new_markdown_cell("# Why?"), cell]))
    assert len(complaints(notebook)) == 1
    if kind == "widget":  # allowed with its state
        notebook.metadata["widgets"] = {"application": {"state": {"abc": {}}}}
        assert complaints(notebook) == []


def test_metadata_of_one_machine_is_found() -> None:
    notebook = tidy(new_notebook())
    assert complaints(notebook) == []
    notebook.metadata["language_info"]["version"] = "3.11.9"
    assert complaints(notebook) == ["metadata of one machine"]


def test_cells_run_out_of_order_are_found() -> None:
    cells = [new_code_cell("1", execution_count=2), new_code_cell("2", execution_count=1)]
    assert complaints(tidy(new_notebook(cells=cells))) == ["not run from top to bottom"]


# ---------------------------------------------------------------- the opening cell
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without judge and catalogue, like a Stable Diffusion of one's own."""
    path = tmp_path_factory.mktemp("models") / "mine"
    fresh().pipe.save_pretrained(path)
    return path


def test_the_environment_chooses_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEPME_MODEL", str(folder))
    backbone, judge, catalogue = open_model()
    assert (backbone.name, judge, catalogue) == ("mine", None, None)


def test_an_argument_outweighs_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEPME_MODEL", "elsewhere")
    assert open_model(folder)[0].name == "mine"


def test_a_model_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEPME_MODEL", "no/such/folder")
    with pytest.raises(SepmeError, match="no/such/folder"):
        open_model()


def test_the_deltas_beside_a_model_are_found_and_must_be_its_own(folder: Path) -> None:
    backbone = open_model(folder)[0]
    with pytest.raises(SepmeError, match="no deltas"):
        shipped_deltas(backbone, folder)
    (folder / "deltas").mkdir()
    neon = closed_form(backbone, NEON, ["a cat"], keep_rtol=None)
    neon.save(folder / "deltas" / "neon.safetensors")
    assert shipped_deltas(backbone, folder)["neon"].digest == neon.digest
    with pytest.raises(SepmeError, match="not for this model"):
        shipped_deltas(fresh(seed=5), folder)


def test_the_banner_says_which_model_speaks() -> None:
    backbone = fresh()
    text = banner(backbone, minutes=2, gigabytes=1.5).data
    for part in ("`tiny`", "a model of your own", "cpu", "2 minutes", "1.5 GB"):
        assert part in text
    backbone.name = "atelier"
    assert "ships with sepme" in banner(backbone, minutes=2, gigabytes=1.5).data


def test_the_live_decay_collects_every_step() -> None:
    live = LiveDecay("neon", every=2)
    erase(fresh(), NEON, ["a cat"], QUICK, callback=live, progress=False)
    assert [step.iteration for step in live.steps] == [1, 2, 3, 4, 5]
