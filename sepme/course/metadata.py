"""What nbgrader wants to know of a cell (its metadata, schema version 3), checked.

| cell | grade | solution | locked | points |
|---|---|---|---|---|
| text and code of the teacher's | no | no | yes | no |
| code to be written, tested by the next cell | no | yes | no | no |
| test | yes | no | yes | yes |
| code or text graded by a person | yes | yes | no | yes |
"""

import re

from nbformat import NotebookNode

from sepme.errors import SepmeError

VERSION = 3
FLAGS = ("grade", "solution", "locked")
KEYS = {*FLAGS, "task", "schema_version", "grade_id", "cell_type"}


def is_answer(cell: NotebookNode) -> bool:
    """Whether students fill it in."""
    return cell.metadata.get("nbgrader", {}).get("solution", False)


def is_test(cell: NotebookNode) -> bool:
    """Whether it gives points for the answer before it."""
    return cell.metadata.get("nbgrader", {}).get("grade", False) and not is_answer(cell)


def is_question(cell: NotebookNode) -> bool:
    """Whether it is text that opens an exercise."""
    return cell.cell_type == "markdown" and cell.source.startswith("## ")


def check_metadata(notebook: NotebookNode) -> None:
    """Refuse what nbgrader would refuse, or would take for something else.

    Raises:
        SepmeError: a key missing or in excess, a value of the wrong kind, or a repeated grade_id.
    """
    seen: set[str] = set()
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id") or cell.get("id", "?")
        problem = _problem(cell)
        if problem is None and name in seen:
            problem = f"shares the grade_id '{name}' with a cell before it"
        if problem is not None:
            raise SepmeError(f"Cell '{name}' {problem}: mend its nbgrader metadata.")
        seen.add(name)


def _problem(cell: NotebookNode) -> str | None:
    """What is wrong with a cell's metadata, or None."""
    metadata = cell.metadata.get("nbgrader")
    if metadata is None:
        return "has no nbgrader metadata"
    expected = KEYS | ({"points"} if metadata.get("grade") else set())
    if set(metadata) != expected:
        return f"has {sorted(set(metadata) ^ expected)} missing or in excess"
    flags = {name: metadata[name] for name in FLAGS}
    if not all(isinstance(flag, bool) for flag in flags.values()) or metadata.task is not False:
        return "has a flag that is neither true nor false, or is a task"
    if metadata.schema_version != VERSION:
        return f"has schema_version {metadata.schema_version} where {VERSION} is meant"
    if not re.fullmatch(r"[\w-]+", str(metadata.grade_id), re.ASCII):
        return "has a grade_id of other characters than letters, digits, - and _"
    if metadata.cell_type != cell.cell_type:
        return f"is of the type {cell.cell_type} but says {metadata.cell_type}"
    if flags["locked"] == flags["solution"]:
        return "must be locked exactly when students do not fill it in"
    if cell.cell_type == "markdown" and flags["grade"] != flags["solution"]:
        return "is text, which a person grades: grade and solution must agree"
    points = metadata.get("points", 1)
    if isinstance(points, bool) or not isinstance(points, int | float) or points <= 0:
        return "gives no points"
    return None
