"""Student and solution notebooks, generated from one teacher's notebook a chapter.

A teacher's notebook holds the answers between `### BEGIN SOLUTION` and `### END SOLUTION`, and
tests that students do not see between `### BEGIN HIDDEN TESTS` and `### END HIDDEN TESTS`. Its
cells carry nbgrader's metadata, version 3, so nbgrader reads the same files; nothing here needs it.
"""

import re
from copy import deepcopy
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from sepme.artefact import write_atomically
from sepme.course.metadata import check_metadata, is_answer, is_question, is_test
from sepme.course.notebook import FOLDER, tidy
from sepme.errors import SepmeError

TEACHER = FOLDER / "teacher"
#: What stands in place of an answer; the same as nbgrader's own.
STUB = {"code": "# YOUR CODE HERE\nraise NotImplementedError()", "markdown": "YOUR ANSWER HERE"}
SOLUTION, HIDDEN = "SOLUTION", "HIDDEN TESTS"


def build(
    out: str | Path, *, students: str | Path | None = None, teacher: Path = TEACHER
) -> list[Path]:
    """Write a student's and a solution notebook for every teacher's notebook.

    All sources are read and checked before the first file is written. The same sources always give
    the same bytes.

    Args:
        out: folder for `solution/` and `student/`.
        students: another folder for the students' notebooks than `out/student`.
        teacher: folder of the sources, `NN_exercises.ipynb`.

    Returns:
        The files written.

    Raises:
        SepmeError: no source, a source that is no notebook, unbalanced markers, metadata that
            nbgrader would refuse, a repeated grade_id, or an answer that nothing checks.
    """
    sources = {path.name: read(path) for path in sorted(Path(teacher).glob("*.ipynb"))}
    if not sources:
        raise SepmeError(f"There is no notebook in {teacher}: name the folder of the sources.")
    folders = {
        student: Path(students or Path(out) / "student"),
        solution: Path(out) / "solution",
    }
    made = {
        folder / name: to_bytes(make(source))
        for make, folder in folders.items()
        for name, source in sources.items()
    }
    return [write_atomically(path, content) for path, content in made.items()]


def read(path: Path) -> NotebookNode:
    """A teacher's notebook, once it is known to be complete.

    Raises:
        SepmeError: see `build`.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (ValueError, nbformat.ValidationError, AttributeError, KeyError) as error:
        raise SepmeError(
            f"{path.name} is no notebook of format 4: open it in JupyterLab and save it again."
        ) from error
    try:
        check_metadata(notebook)
        _check_markers(notebook)
        _check_that_answers_are_checked(notebook)
    except SepmeError as error:
        raise SepmeError(f"{path.name}: {error}") from error
    return notebook


def student(notebook: NotebookNode) -> NotebookNode:
    """With a stub for every answer and without hidden tests and outputs."""
    blank = _without_outputs(notebook)
    for cell in blank.cells:
        source = _replace(cell.source, SOLUTION, STUB.get(cell.cell_type, ""))
        cell.source = _replace(source, HIDDEN, None)
    return blank


def solution(notebook: NotebookNode) -> NotebookNode:
    """With the answers and the hidden tests, without their markers and without outputs."""
    whole = _without_outputs(notebook)
    for cell in whole.cells:
        cell.source = "\n".join(line for line in cell.source.split("\n") if not _marker(line))
    return whole


def to_bytes(notebook: NotebookNode) -> bytes:
    """The file of a notebook; the same notebook always gives the same bytes."""
    return (nbformat.writes(tidy(notebook)) + "\n").encode()


# ------------------------------------------------------------------ markers
def _marker(line: str) -> tuple[str, str] | None:
    """("BEGIN" or "END", which region) if the line is a marker."""
    found = re.fullmatch(rf"\s*### (BEGIN|END) ({SOLUTION}|{HIDDEN})\s*", line)
    return found and (found[1], found[2])


def _replace(source: str, region: str, stub: str | None) -> str:
    """Put the stub, indented as its marker is, in place of every region of this kind."""
    lines, inside = [], False
    for line in source.split("\n"):
        marker = _marker(line)
        if marker == ("BEGIN", region):
            inside = True
            indent = line[: line.index("#")]
            lines += [indent + part for part in stub.split("\n")] if stub is not None else []
        elif marker == ("END", region):
            inside = False
        elif not inside:
            lines.append(line)
    return "\n".join(lines).rstrip()


def _check_markers(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        name, opened, regions = _name(cell), None, []
        for line in cell.source.split("\n"):
            marker = _marker(line)
            if marker is None:
                continue
            kind, region = marker
            if (kind == "BEGIN") != (opened is None) or (kind == "END" and opened != region):
                raise SepmeError(
                    f"Cell '{name}' has a '### {kind} {region}' without its other half: every "
                    "BEGIN needs an END before the next BEGIN."
                )
            opened = region if kind == "BEGIN" else None
            regions.append(region)
        if opened is not None:
            raise SepmeError(f"Cell '{name}' lacks '### END {opened}': put it after the last.")
        _check_place(cell, set(regions))


def _check_place(cell: NotebookNode, regions: set[str]) -> None:
    """Answers belong into cells that students fill in, hidden tests into test cells."""
    answered, name = is_answer(cell), _name(cell)
    if answered and SOLUTION not in regions:
        raise SepmeError(
            f"Cell '{name}' is to be answered but holds no '### BEGIN SOLUTION': mark the "
            "answer, or students would see it."
        )
    if SOLUTION in regions and not answered:
        raise SepmeError(f"Cell '{name}' holds a solution: mark it as a solution for nbgrader.")
    if HIDDEN in regions and not is_test(cell):
        raise SepmeError(f"Cell '{name}' holds hidden tests: move them into a test cell.")


def _check_that_answers_are_checked(notebook: NotebookNode) -> None:
    """Each answer is graded by a person, or by a call of `check_...` before the next answer."""
    waiting: NotebookNode | None = None
    for cell in notebook.cells:
        if waiting is not None and (is_question(cell) or is_answer(cell)):
            break
        if is_test(cell):
            if not re.search(r"\bcheck_\w+\(", _replace(cell.source, HIDDEN, None)):
                raise SepmeError(f"Test cell '{_name(cell)}' calls no check_...: call one.")
            waiting = None
        elif is_answer(cell) and not cell.metadata.nbgrader.grade:
            waiting = cell
    if waiting is not None:
        raise SepmeError(
            f"Nothing checks the answer '{_name(waiting)}': put a test cell that calls a "
            "check_... function after it."
        )


def _name(cell: NotebookNode) -> str:
    return cell.metadata.get("nbgrader", {}).get("grade_id") or cell.get("id", "?")


def _without_outputs(notebook: NotebookNode) -> NotebookNode:
    copy = deepcopy(notebook)
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return copy
