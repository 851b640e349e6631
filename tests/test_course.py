"""The exercises: built from the teacher's sources, solvable, blank at first, checked in words."""

import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from jsonschema import ValidationError, validate
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

from sepme.cli import app
from sepme.course.build import (
    STUB,
    TEACHER,
    build,
    is_answer,
    is_question,
    is_test,
    read,
    solution,
    student,
)
from sepme.course.notebook import FOLDER, execute, tidy
from tests.refusals import refused
from tests.test_notebooks import LADDER, code_cells, complaints

TEACHERS = sorted(TEACHER.glob("*.ipynb"))
EXERCISES = [path for path in TEACHERS if path.name != LADDER]
COMMITTED = FOLDER / "exercises"

each = pytest.mark.parametrize("path", TEACHERS, ids=lambda path: path.stem)
each_exercise = pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("course")
    build(folder, students=folder / "student")
    return folder


def graded(cell: NotebookNode) -> bool:
    return cell.metadata.nbgrader.grade


def blank_of(path: Path) -> Path:
    """Where the student's version of a teacher's notebook is committed."""
    return (FOLDER if path.name == LADDER else COMMITTED) / path.name


# ---------------------------------------------------------------- the sources
def test_every_chapter_has_exercises() -> None:
    assert [path.name for path in TEACHERS] == [
        *(f"{n:02}_exercises.ipynb" for n in range(8)),
        LADDER,
    ]


@each
def test_at_least_three_exercises_and_one_open_ended(path: Path) -> None:
    notebook = read(path)
    exercises = [cell.source for cell in notebook.cells if is_question(cell)]
    numbered = [text for text in exercises if re.match(r"## \d\. ", text)]
    assert len(numbered) >= 3
    assert numbered[-1].splitlines()[0].endswith("(open-ended)")
    assert "*What counts*" in numbered[-1]
    by_a_person = [cell for cell in notebook.cells if is_answer(cell) and graded(cell)]
    assert {cell.cell_type for cell in by_a_person} == {"code", "markdown"}
    assert any("**Marks (" in cell.source for cell in by_a_person)
    assert sum(map(is_test, notebook.cells)) >= 2


@each_exercise
def test_it_opens_with_a_question_and_the_way_to_its_chapter(path: Path) -> None:
    title = read(path).cells[0].source
    assert re.match(r"# Exercises to chapter \d\d: .+\?\n", title)
    (link,) = re.findall(r"\]\((\S+)\)", title)
    assert Path(link).name[:2] == path.name[:2]
    assert (COMMITTED / link).resolve().is_file()


#: nbgrader's rules for the metadata of a cell, version 3, in the words of JSON schema.
NBGRADER = {
    "type": "object",
    "required": ["schema_version", "grade_id", "grade", "solution", "locked", "task", "cell_type"],
    "properties": {
        "schema_version": {"const": 3},
        "grade_id": {"type": "string", "pattern": "^[a-zA-Z0-9_-]+$"},
        "grade": {"type": "boolean"},
        "solution": {"type": "boolean"},
        "locked": {"type": "boolean"},
        "task": {"const": False},
        "cell_type": {"enum": ["code", "markdown"]},
        "points": {"type": "number", "exclusiveMinimum": 0},
    },
    "additionalProperties": False,
    "if": {"properties": {"grade": {"const": True}}},
    "then": {"required": ["points"]},
    "else": {"not": {"required": ["points"]}},
}


@each
def test_nbgrader_can_read_it(path: Path) -> None:
    for notebook in (read(path), nbformat.read(blank_of(path), as_version=4)):
        metadata = [cell.metadata.nbgrader for cell in notebook.cells]
        for one, cell in zip(metadata, notebook.cells, strict=True):
            validate(dict(one), NBGRADER)
            assert one.cell_type == cell.cell_type
            if cell.cell_type == "markdown":  # a text is graded by a person or not at all
                assert one.grade == one.solution
        assert len({one.grade_id for one in metadata}) == len(metadata)
    with pytest.raises(ValidationError):
        validate(dict(metadata[0]) | {"grade": True}, NBGRADER)


@each_exercise
def test_the_source_is_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))
    assert complaints(notebook) == []


def test_each_step_of_the_ladder_has_three_hints_a_time_and_a_check() -> None:
    cells = read(TEACHER / LADDER).cells
    starts = [n for n, cell in enumerate(cells) if re.match(r"## [1-6]\. ", cell.source)]
    assert len(starts) == 6
    minutes = []
    for first, last in zip(starts, [*starts[1:], len(cells)], strict=True):
        step = cells[first:last]
        minutes.append(int(re.search(r"\((\d+) minutes\)", step[0].source)[1]))
        text = "\n".join(cell.source for cell in step if cell.cell_type == "markdown")
        assert len(re.findall(r"<details><summary>Hint [123]</summary>", text)) == 3
        assert sum(is_test(cell) for cell in step) == 1
    assert 45 <= sum(minutes) <= 75


def test_the_teachers_page_knows_every_exercise_and_its_points() -> None:
    page = (FOLDER.parent / "docs" / "teaching.md").read_text()
    stated = dict(re.findall(r"^\| (\d\d) \|(?:[^|]+\|){4} (\d+) \|$", page, re.MULTILINE))
    for path in TEACHERS:
        notebook, chapter = read(path), path.name[:2]
        points = sum(cell.metadata.nbgrader.get("points", 0) for cell in notebook.cells)
        assert stated[chapter] == str(points), path.name
        found = (re.match(r"## (\d)\. ", cell.source) for cell in notebook.cells)
        numbers = [match[1] for match in found if match]
        assert re.findall(rf"^\| {chapter}\.(\d) ", page, re.MULTILINE) == numbers


# ---------------------------------------------------------------- what is built
def test_what_is_committed_is_what_the_sources_give(built: Path) -> None:
    for path in TEACHERS:
        folder = built if path.name == LADDER else built / "student"
        assert blank_of(path).read_bytes() == (folder / path.name).read_bytes(), (
            "run: sepme course build --out build/course --students notebooks/exercises"
        )
    assert len(list((built / "student").iterdir())) == len(list(COMMITTED.glob("*.ipynb")))


def test_the_same_sources_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    written = build(tmp_path, students=tmp_path / "student")
    assert len(written) == 2 * len(TEACHERS)
    for path in written:
        assert path.read_bytes() == (built / path.relative_to(tmp_path)).read_bytes()


@each
def test_students_see_neither_answers_nor_hidden_tests(path: Path, built: Path) -> None:
    source, blank, whole = (
        nbformat.read(file, as_version=4)
        for file in (path, blank_of(path), built / "solution" / path.name)
    )
    for before, without, answered in zip(source.cells, blank.cells, whole.cells, strict=True):
        assert "###" not in without.source + answered.source
        assert without.metadata == answered.metadata == before.metadata
        assert not without.get("outputs")
        if is_answer(before):
            assert without.source.count("YOUR ") == 1
            assert len(answered.source) > len(without.source) - len(STUB["code"])
        hidden = re.findall(
            r"### BEGIN (?:SOLUTION|HIDDEN TESTS)\n(.*?)\n *### END", before.source, re.DOTALL
        )
        for region in hidden:
            assert region not in without.source
            assert region in answered.source


@pytest.mark.long
@each_exercise
def test_the_solution_solves_it(path: Path, built: Path, tmp_path: Path) -> None:
    executed = tidy(execute(built / "solution" / path.name, tmp_path))
    assert complaints(executed) == []
    for cell in filter(is_test, executed.cells):
        assert cell.outputs[0].text.startswith("ok: "), cell.source
    assert list(tmp_path.iterdir()) == []


@pytest.mark.chapters
@each
def test_a_blank_exercise_fails_its_check(path: Path, tmp_path: Path) -> None:
    blank = nbformat.read(blank_of(path), as_version=4)
    for cell in code_cells(blank)[1:]:
        cell.metadata["tags"] = ["raises-exception"]
    nbformat.write(blank, tmp_path / path.name)
    executed = execute(tmp_path / path.name, tmp_path)
    for cell in executed.cells:
        raised = [o for o in cell.get("outputs", ()) if o.output_type == "error"]
        if is_test(cell):
            (error,) = raised
            assert error.ename == "NotYet"
            assert "still blank" in error.evalue
            assert len(error.traceback) == 1  # one sentence in place of a traceback
        elif is_answer(cell) and graded(cell) and cell.cell_type == "code":
            assert [error.ename for error in raised] == ["NotImplementedError"]


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    mine, out = tmp_path / "mine" / "exercises", tmp_path / "out"
    words = ["course", "build", "--out", str(out), "--students", str(mine)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    assert len(result.stdout.split()) == 2 * len(TEACHERS)
    assert len(list(mine.iterdir())) == len(EXERCISES)
    assert (mine.parent / LADDER).is_file()
    assert [path.name for path in out.iterdir()] == ["solution"]


# ---------------------------------------------------------------- the builder on a small notebook
def cell(new: Callable, id: str, source: str, grade: bool, solution: bool) -> NotebookNode:
    made = new(source)
    made["id"] = id
    flags = {"grade": grade, "solution": solution, "locked": not solution, "task": False}
    about = {"schema_version": 3, "grade_id": id, "cell_type": made.cell_type} | flags
    made.metadata["nbgrader"] = about | ({"points": 1} if grade else {})
    return made


def small() -> NotebookNode:
    answer = "def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION"
    tests = "check(f)\n### BEGIN HIDDEN TESTS\nassert f() == 1\n### END HIDDEN TESTS"
    text = "### BEGIN SOLUTION\nBecause.\n### END SOLUTION"
    cells = [
        cell(new_markdown_cell, "task", "## 1. Write f", False, False),
        cell(new_code_cell, "f", answer, False, True),
        cell(new_code_cell, "f-check", tests, True, False),
        cell(new_markdown_cell, "why", text, True, True),
    ]
    return tidy(new_notebook(cells=cells))


def save(notebook: NotebookNode, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "07_exercises.ipynb"
    path.write_text(json.dumps(notebook))
    return path


def test_the_builder_on_a_small_notebook(tmp_path: Path) -> None:
    source = small()
    source.cells[1].update(outputs=[], execution_count=7)
    path = save(source, tmp_path)
    assert [cell.source for cell in student(read(path)).cells] == [
        "## 1. Write f",
        "def f():\n    # YOUR CODE HERE\n    raise NotImplementedError()",
        "check(f)",
        "YOUR ANSWER HERE",
    ]
    whole = solution(read(path))
    assert whole.cells[1].source == "def f():\n    return 1"
    assert whole.cells[1].execution_count is None
    assert whole.cells[2].source == "check(f)\nassert f() == 1"
    assert whole.cells[3].source == "Because."
    source.metadata["language_info"]["version"] = "3.11.9"
    save(source, tmp_path / "other")
    one, other = (build(tmp_path / "out", teacher=f) for f in (tmp_path, tmp_path / "other"))
    assert one == other
    assert "3.11.9" not in one[0].read_text()  # nothing of one machine


def mark(index: int, **metadata: object) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells[index].metadata.nbgrader.update(metadata)


def write(index: int, source: str) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells[index].update(source=source)


BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
SPOILT = {
    "no end": (write(1, f"{BEGIN}\nx = 1"), ("'f'", "other half")),
    "no beginning": (write(1, f"x = 1\n{END}"), ("'f'", "other half")),
    "nested": (write(1, f"{BEGIN}\n{BEGIN}\n{END}\n{END}"), ("'f'", "other half")),
    "crossed": (write(1, f"{BEGIN}\n### END HIDDEN TESTS"), ("'f'", "other half")),
    "visible answer": (write(1, "x = 1"), ("'f'", "BEGIN SOLUTION")),
    "solution in a test": (write(2, f"check(f)\n{BEGIN}\n{END}"), ("'f-check'", "marked")),
    "hidden in an answer": (
        write(1, f"{BEGIN}\n{END}\n### BEGIN HIDDEN TESTS\n### END HIDDEN TESTS"),
        ("'f'", "move them"),
    ),
    "no test": (lambda notebook: notebook.cells.pop(2), ("Nothing checks", "'f'")),
    "test without check": (write(2, "assert f() == 1"), ("'f-check'", "check(")),
    "check that is hidden": (
        write(2, "### BEGIN HIDDEN TESTS\ncheck(f)\n### END HIDDEN TESTS"),
        ("'f-check'", "check("),
    ),
    "same id": (mark(2, grade_id="f"), ("'f'", "cell before it")),
    "odd id": (mark(2, grade_id="f check"), ("'f check'", "letters")),
    "no points": (mark(2, points=0), ("'f-check'", "points")),
    "points in excess": (mark(1, points=1), ("'f'", "points")),
    "other version": (mark(1, schema_version=2), ("'f'", "schema_version 3")),
    "not a flag": (mark(1, grade="yes", points=1), ("'f'", "is marked")),
    "locked answer": (mark(1, locked=True), ("'f'", "is marked")),
    "text that is half graded": (mark(3, solution=False, locked=True), ("'why'", "is marked")),
    "other type": (mark(3, cell_type="code"), ("'why'", "is marked")),
    "neither code nor text": (
        lambda notebook: notebook.cells[0].update(
            cell_type="raw",
            metadata={"nbgrader": notebook.cells[0].metadata.nbgrader | {"cell_type": "raw"}},
        ),
        ("'task'", "is marked raw"),
    ),
    "no metadata": (
        lambda notebook: notebook.cells[0].metadata.pop("nbgrader"),
        ("'task'", "missing"),
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_the_builder_refuses(kind: str, tmp_path: Path) -> None:
    read(save(small(), tmp_path / "sound"))
    spoil, words = SPOILT[kind]
    spoil(notebook := deepcopy(small()))
    save(notebook, tmp_path / "spoilt")
    with refused("07_exercises.ipynb", *words):
        build(tmp_path / "out", teacher=tmp_path / "spoilt")
    assert not (tmp_path / "out").exists()  # refused before the first file is written


def test_the_builder_refuses_what_is_no_notebook(tmp_path: Path) -> None:
    with refused("no notebook in"):
        build(tmp_path / "out", teacher=tmp_path)
    (tmp_path / "00_exercises.ipynb").write_text("{}")
    with refused("00_exercises.ipynb", "no notebook of format 4"):
        build(tmp_path / "out", teacher=tmp_path)
