"""Every notebook runs from top to bottom, and what is committed of it is clean."""

import io
import json
import os
import re
import sys
from base64 import b64decode, b64encode
from copy import deepcopy
from pathlib import Path

import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from nbconvert.preprocessors import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sepme.course.notebook import (
    FOLDER,
    PALETTE_ERROR,
    WIDGET,
    chapters,
    execute,
    lighten,
    lighter,
    link,
    outputs,
    tidy,
)
from sepme.errors import SepmeError
from sepme.plots import png
from tests.test_house import MACHINE_PATH

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: A notebook with its pictures, and all of them together.
LARGEST, LARGEST_TOGETHER = 1_500_000, 6_000_000
#: Lines of a code cell, and modules of sepme that a notebook imports from at its top.
LONGEST_CELL, MOST_MODULES = 35, 6

#: The chapter that students write themselves: of it the teacher's source is run.
LADDER = "08_sepme_from_scratch.ipynb"

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_to_run = pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


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
        if WIDGET in data:
            found.append("a widget that will not answer")
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
    assert listed == [path.name for path in NOTEBOOKS] == [path.name for path in chapters()]
    assert FOLDER / "teacher" / LADDER in chapters()


@pytest.mark.chapters
@each_to_run
def test_it_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if model := request.config.getoption("--model"):
        monkeypatch.setenv("SEPME_MODEL", str(Path(model).resolve()))
    executed = tidy(execute(path, tmp_path))
    assert all(cell.execution_count for cell in code_cells(executed))
    assert complaints(executed) == []
    assert list(tmp_path.iterdir()) == []  # nothing left behind


@each_to_run
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
    opening = "\n".join(cell.source for cell in code_cells(notebook)[:2])  # imports, the model
    assert "open_model(" in opening
    assert "banner(" in opening
    text = words(notebook)
    own = "<details>" if path.name == LADDER else "## Exercises"  # the ladder is its own exercise
    for part in ("**Predict before you run.**", own, "assert "):
        assert part in text


@pytest.mark.parametrize(
    "path", [*chapters(), *sorted(FOLDER.glob("*/*_exercises.ipynb"))], ids=str
)
def test_its_cells_can_be_read(path: Path) -> None:
    cells = [cell.source for cell in code_cells(nbformat.read(path, as_version=4))]
    assert max(len(source.splitlines()) for source in cells) <= LONGEST_CELL
    modules = re.findall(
        r"^from (sepme[\w.]*) import|^import (sepme[\w.]*)", cells[0], re.MULTILINE
    )
    assert len(modules) <= MOST_MODULES


# ---------------------------------------------------------------- the checks can fail
def written(folder: Path, source: str) -> Path:
    path = folder / "example.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), path)
    return path


def test_the_headings_that_the_teaching_page_names_are_there() -> None:
    page = (FOLDER.parent / "docs" / "teaching.md").read_text()
    figures = page.partition("## Figures for slides")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d\d) \| ([^|]*?)(?: \([^|]*\))? \|", figures, re.M)
    assert len(rows) > 20
    for chapter, heading in rows:
        (path,) = FOLDER.glob(f"{chapter}_*.ipynb")
        cells = nbformat.read(path, 4).cells
        titles = [line for cell in cells for line in cell.source.splitlines() if line[:1] == "#"]
        assert any(heading in title for title in titles), (chapter, heading)


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
    cell = new_code_cell("1", execution_count=1)
    notebook = tidy(new_notebook(cells=[new_markdown_cell("# Why?"), cell]))
    cell.outputs = [SPOILT[kind]]  # as if nobody had tidied
    assert len(complaints(notebook)) == 1


def test_metadata_of_one_machine_is_found() -> None:
    notebook = tidy(new_notebook())
    assert complaints(notebook) == []
    notebook.metadata["language_info"]["version"] = "3.11.9"
    assert complaints(notebook) == ["metadata of one machine"]


def test_cells_run_out_of_order_are_found() -> None:
    cells = [new_code_cell("1", execution_count=2), new_code_cell("2", execution_count=1)]
    assert complaints(tidy(new_notebook(cells=cells))) == ["not run from top to bottom"]


# ---------------------------------------------------------------- what makes them fit
def test_tidying_leaves_a_line_where_a_widget_was() -> None:
    view = new_output("execute_result", data={WIDGET: {"model_id": "abc"}}, execution_count=1)
    figure = new_output("display_data", data={"image/png": "iVBORw0KGgo="})
    cell = new_code_cell("1", outputs=[view, deepcopy(figure)], execution_count=1)
    notebook = new_notebook(cells=[cell], metadata={"widgets": {"state": {"abc": {}}}})
    assert "a widget that will not answer" in complaints(notebook)
    assert complaints(tidy(notebook)) == []
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    instead, after = outputs(notebook)
    assert set(instead.data) == {"text/markdown"}
    assert "Run this cell" in instead.data["text/markdown"]
    assert after == figure


def a_file(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file as matplotlib writes it: four channels, and its name."""
    about = PngInfo()
    about.add_text("Software", "Matplotlib version3")
    file = io.BytesIO()
    Image.fromarray(pixels).convert("RGBA").save(file, format="PNG", pnginfo=about)
    return file.getvalue()


def pixels_of(file: bytes) -> NDArray[np.int16]:
    return np.array(Image.open(io.BytesIO(file)).convert("RGB"), dtype=np.int16)


def noise(colours: int, seed: int, side: int = 24) -> NDArray[np.uint8]:
    """A picture of no more than so many colours."""
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (colours, 3), np.uint8)[
        random.integers(0, colours, (side, side))
    ]


@given(colours=st.integers(1, 256), seed=st.integers(0, 99))
def test_up_to_256_colours_are_kept_exactly(colours: int, seed: int) -> None:
    file = a_file(noise(colours, seed))
    light = lighter(file)
    assert np.array_equal(pixels_of(light), pixels_of(file))
    assert len(light) <= len(file)
    assert lighter(file) == light
    assert lighter(light) == light


@given(colours=st.integers(257, 5000), seed=st.integers(0, 99))
def test_more_colours_move_by_less_than_anybody_sees(colours: int, seed: int) -> None:
    file = a_file(noise(colours, seed))
    light = lighter(file)
    off = pixels_of(light) - pixels_of(file)
    assert np.sqrt(np.square(off, dtype=float).mean((0, 1))).max() <= PALETTE_ERROR
    assert len(light) <= len(file)
    assert lighter(file) == light


def test_a_plot_gets_a_palette_and_keeps_its_paper_white() -> None:
    figure = Figure(figsize=(4, 3), dpi=100)
    ax = figure.subplots()
    for index in range(5):
        ax.plot(np.sin(np.arange(60) / (index + 2)), color=f"C{index}", linewidth=0.7)
    file = png(figure)
    light = lighter(file)
    assert Image.open(io.BytesIO(light)).mode == "P"
    assert len(light) < 0.5 * len(file)
    white = (pixels_of(file) == 255).all(axis=2)
    assert (pixels_of(light)[white] == 255).all()


def test_a_painting_keeps_its_shades() -> None:
    ramp = np.linspace(0, 255, 96)
    shades = np.stack(np.broadcast_arrays(ramp[:, None], ramp, ramp[::-1, None]), 2)
    file = a_file(shades.astype(np.uint8))
    assert np.unique(pixels_of(file).reshape(-1, 3), axis=0).shape[0] > 5000
    light = lighter(file)
    assert Image.open(io.BytesIO(light)).mode == "RGB"
    assert np.abs(pixels_of(light) - pixels_of(file)).max() <= 2


def test_what_is_transparent_stays_itself() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (9, 9), (200, 10, 10, 128)).save(file, format="PNG")
    assert lighter(file.getvalue()) == file.getvalue()


def test_lightening_changes_pictures_and_nothing_else() -> None:
    file = a_file(noise(40, 0))
    picture = {"image/png": b64encode(file).decode(), "text/plain": "<Figure>"}
    told = new_output("stream", name="stdout", text="40 colours")
    cell = new_code_cell("1", outputs=[new_output("display_data", data=picture), told])
    before = new_notebook(cells=[cell, new_markdown_cell("# Why?")])
    after = lighten(deepcopy(before))
    nbformat.validate(after)
    shown = after.cells[0].outputs[0].data
    assert b64decode(shown["image/png"]) == lighter(file) != file
    shown["image/png"] = picture["image/png"]
    assert after == before


# ---------------------------------------------------------------- where they open in the browser
def test_a_fork_is_linked_from_every_chapter_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {path: path.read_bytes() for path in {*NOTEBOOKS, *chapters()}}
    for path, content in own.items():
        (tmp_path / path.parent).mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    link("another/fork")
    link("my-class/sepme.2026")
    for path, content in own.items():
        before, after = (nbformat.reads(text, 4) for text in (content.decode(), path.read_text()))
        title, _, where, *_ = after.cells[0].source.splitlines()
        assert before.cells[0].source.startswith(title)
        assert where.endswith(f"notebooks/{path.name})")
        assert words(after).count("my-class/sepme.2026") == 1 + ("Colab" in where)
        assert "another/fork" not in words(after)
        assert ("Colab" in where) == path.stem.startswith("09")
        added = len(words(after)) - len(words(before))
        assert 0 < added <= 200
        assert after.cells[2:5] == before.cells[2:5] or "Colab" in where


def test_what_is_no_repository_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("", "sepme", "https://example.org/a/b", "a/b c"):
        with pytest.raises(SepmeError, match="OWNER/NAME"):
            link(word)
