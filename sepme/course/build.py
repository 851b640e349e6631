"""Student and solution notebooks, generated from one teacher's notebook a chapter.

A teacher's notebook holds the answers between `### BEGIN SOLUTION` and `### END SOLUTION`, and
tests that students do not see between `### BEGIN HIDDEN TESTS` and `### END HIDDEN TESTS`. Its
cells carry nbgrader's metadata, version 3, so nbgrader reads the same files.

nbgrader itself is not needed. It brings a database and a server extension, does not see an END
without a BEGIN, and names neither the file nor the cell of what it refuses.
"""

import re
from copy import deepcopy
from pathlib import Path
from textwrap import indent

import nbformat
from nbconvert.preprocessors import ClearOutputPreprocessor
from nbformat import NotebookNode

from sepme.artefact import read_text, refuse_overwriting
from sepme.course.notebook import FOLDER, tidy, write
from sepme.errors import SepmeError

__all__ = ["TEACHER", "build"]

TEACHER = FOLDER / "teacher"
#: What stands in place of an answer; the same as nbgrader's own.
STUB = {"code": "# YOUR CODE HERE\nraise NotImplementedError()", "markdown": "YOUR ANSWER HERE"}
MARKER = re.compile(r"^( *)### (BEGIN|END) (SOLUTION|HIDDEN TESTS) *$", re.MULTILINE)
REGION = re.compile(
    r"^( *)### BEGIN (SOLUTION|HIDDEN TESTS) *\n(.*?)^ *### END \2 *(\n|\Z)",
    re.MULTILINE | re.DOTALL,
)
KEYS = {"grade", "solution", "locked", "task", "schema_version", "grade_id", "cell_type"}


def build(
    out: str | Path, *, students: str | Path | None = None, teacher: Path = TEACHER
) -> list[Path]:
    """Write a student's and a solution notebook for every teacher's notebook.

    All sources are read and checked before the first file is written. The same sources always give
    the same bytes.

    Args:
        out: folder for `solution/` and `student/`.
        students: another folder for the students' notebooks than `out/student`. A source that is
            a chapter (its name does not end in `_exercises`) goes to the folder above.
        teacher: folder of the sources.

    Returns:
        The files written.

    Raises:
        SepmeError: no source, a source that is no notebook, unbalanced markers, metadata that
            nbgrader would refuse, a repeated grade_id, an answer that nothing checks, or an output
            in place of a source or of another output.
    """
    sources = {path: read(path) for path in sorted(Path(teacher).glob("*.ipynb"))}
    if not sources:
        raise SepmeError(f"There is no notebook in {teacher}: name the folder of the sources.")
    exercises = Path(students or Path(out) / "student")
    blank, solved = {}, {}
    for path, source in sources.items():
        folder = exercises if path.name.endswith("_exercises.ipynb") else exercises.parent
        blank[folder / path.name] = student(source)
        solved[Path(out) / "solution" / path.name] = solution(source)
    refuse_overwriting([*blank, *solved], sources)
    refuse_overwriting(blank, solved)
    return [write(path, tidy(notebook)) for path, notebook in (blank | solved).items()]


def read(path: Path) -> NotebookNode:
    """A teacher's notebook, once it is known to be complete.

    Raises:
        SepmeError: see `build`.
    """
    try:
        notebook = nbformat.reads(read_text(path), as_version=4)
        nbformat.validate(notebook)
    except (OSError, ValueError, nbformat.ValidationError, AttributeError, KeyError) as error:
        raise SepmeError(
            f"{path.name} is no notebook of format 4: open it in JupyterLab and save it again."
        ) from error
    if problem := _problem(notebook):
        raise SepmeError(f"{path.name}: {problem}")
    return notebook


def student(notebook: NotebookNode) -> NotebookNode:
    """A copy with a stub for every answer, without hidden tests and outputs."""
    blank = _without_outputs(notebook)
    for cell in blank.cells:
        stub = f"{STUB[cell.cell_type]}\n"
        cell.source = REGION.sub(
            lambda found, stub=stub: indent(stub, found[1]) if found[2] == "SOLUTION" else "",
            cell.source,
        ).rstrip()
    return blank


def solution(notebook: NotebookNode) -> NotebookNode:
    """A copy with the answers and the hidden tests, without their markers and outputs."""
    whole = _without_outputs(notebook)
    for cell in whole.cells:
        cell.source = REGION.sub(r"\3", cell.source).rstrip()
    return whole


def is_answer(cell: NotebookNode) -> bool:
    """Whether students fill this cell in."""
    return cell.metadata.nbgrader.solution


def is_test(cell: NotebookNode) -> bool:
    """Whether this cell gives points for the answer before it."""
    return cell.metadata.nbgrader.grade and not is_answer(cell)


def is_question(cell: NotebookNode) -> bool:
    """Whether this cell is the text that opens an exercise."""
    return cell.cell_type == "markdown" and cell.source.startswith("## ")


def _problem(notebook: NotebookNode) -> str | None:
    """The first thing that is wrong with a teacher's notebook, or None."""
    seen: set[str] = set()
    unchecked = None  # the answer that still waits for its check
    for cell in notebook.cells:
        about = cell.metadata.get("nbgrader", {})
        name = about.get("grade_id") or cell.get("id", "?")
        if wrong := _metadata_problem(cell, about) or _marker_problem(cell):
            return f"Cell '{name}' {wrong}."
        if name in seen:
            return f"Cell '{name}' has the grade_id of a cell before it: rename it."
        seen.add(name)
        if unchecked and (is_question(cell) or is_answer(cell)):
            break
        if is_test(cell):
            unchecked = None
        elif is_answer(cell) and not about.grade:
            unchecked = name
    if unchecked:
        return f"Nothing checks the answer '{unchecked}': put a test cell with check(...) after it."
    return None


def _metadata_problem(cell: NotebookNode, about: NotebookNode) -> str | None:
    """What nbgrader would refuse, or would take for something else."""
    keys = KEYS | ({"points"} if about.get("grade") else set())
    if set(about) != keys:
        return f"has nbgrader metadata with {sorted(set(about) ^ keys)} missing or in excess"
    if about.cell_type != cell.cell_type or cell.cell_type not in STUB:
        return f"is {cell.cell_type} and is marked {about.cell_type}: let both be code, or markdown"
    flags = {flag: about[flag] for flag in ("grade", "solution", "locked", "task")}
    if {*map(type, flags.values())} != {bool} or about.task or about.locked == about.solution:
        return f"is marked {flags}: say true or false, lock everything but answers, give no task"
    if cell.cell_type == "markdown" and about.grade != about.solution:
        return f"is marked {flags}: grade a text if it is an answer, and only then"
    if about.schema_version != 3 or not re.fullmatch(r"[a-zA-Z0-9_-]+", about.grade_id):
        return "needs schema_version 3 and a grade_id of letters, digits, - and _"
    points = about.get("points", 1)
    return None if points is not True and points > 0 else "gives no points"


def _marker_problem(cell: NotebookNode) -> str | None:
    """Whether a marker lacks its other half, or an answer or a test is in the wrong cell."""
    visible = REGION.sub("", cell.source)
    if MARKER.search(visible + REGION.sub(r"\3", cell.source)):
        return "has a '### BEGIN' or '### END' without its other half: add or remove one"
    regions = {found[2] for found in REGION.finditer(cell.source)}
    if is_answer(cell) != ("SOLUTION" in regions):
        return "must be marked as a solution exactly if it holds a '### BEGIN SOLUTION'"
    if "HIDDEN TESTS" in regions and not is_test(cell):
        return "holds hidden tests: move them into a test cell"
    if is_test(cell) and not re.search(r"\bcheck\(", visible):
        return "is a test without a check(...) that students see: add one"
    return None


def _without_outputs(notebook: NotebookNode) -> NotebookNode:
    return ClearOutputPreprocessor().preprocess(deepcopy(notebook), {})[0]
