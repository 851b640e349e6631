"""The exercises: built from the teacher's sources, solvable, blank at first, checked in words."""

import json
import math
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
import torch
from jsonschema import ValidationError, validate
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from torch import Tensor
from typer.testing import CliRunner

from sepme.cli import app
from sepme.concept import Concept
from sepme.course.build import STUB, TEACHER, build, read, solution, student, to_bytes
from sepme.course.checks import (
    NotYet,
    baselines,
    composition,
    decorrelation,
    interference,
    measures,
    noise_differences,
    null_space,
    quickstart,
)
from sepme.course.checks.feedback import check
from sepme.course.metadata import is_answer, is_question, is_test
from sepme.course.notebook import FOLDER, execute, tidy
from sepme.erasure import erase
from sepme.nullspace import constrain, row_basis
from tests.miniature import CONCEPTS, EXACT, KEPT, NAMES, NEON, others, shared, three_deltas
from tests.refusals import refused
from tests.test_notebooks import code_cells, complaints

TEACHERS = sorted(TEACHER.glob("*.ipynb"))
COMMITTED = FOLDER / "exercises"
CHAPTERS = 8

each = pytest.mark.parametrize("path", TEACHERS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("course")
    build(folder)
    return folder


def graded(cell: NotebookNode) -> bool:
    return cell.metadata.nbgrader.grade


# ---------------------------------------------------------------- the sources
def test_every_chapter_has_exercises() -> None:
    assert [path.name for path in TEACHERS] == [f"{n:02}_exercises.ipynb" for n in range(CHAPTERS)]


@each
def test_at_least_three_exercises_and_one_open_ended(path: Path) -> None:
    notebook = read(path)
    exercises = [cell.source for cell in notebook.cells if is_question(cell)]
    assert len(exercises) >= 3
    assert exercises[-1].splitlines()[0].endswith("(open-ended)")
    assert "*What counts*" in exercises[-1]
    by_a_person = [cell for cell in notebook.cells if is_answer(cell) and graded(cell)]
    assert {cell.cell_type for cell in by_a_person} == {"code", "markdown"}
    assert any("**Marks (" in cell.source for cell in by_a_person)
    assert sum(map(is_test, notebook.cells)) >= 2


@each
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
    for notebook in (read(path), nbformat.read(COMMITTED / path.name, as_version=4)):
        metadata = [cell.metadata.nbgrader for cell in notebook.cells]
        for one, cell in zip(metadata, notebook.cells, strict=True):
            validate(dict(one), NBGRADER)
            assert one.cell_type == cell.cell_type
            if cell.cell_type == "markdown":  # a text is graded by a person or not at all
                assert one.grade == one.solution
        assert len({one.grade_id for one in metadata}) == len(metadata)
    with pytest.raises(ValidationError):
        validate(dict(metadata[0]) | {"grade": True}, NBGRADER)


@each
def test_the_source_is_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))
    assert complaints(notebook) == []


def test_the_teachers_page_knows_every_exercise_and_its_points() -> None:
    page = (FOLDER.parent / "docs" / "teaching.md").read_text()
    stated = dict(re.findall(r"^\| (\d\d) \|(?:[^|]+\|){4} (\d+) \|$", page, re.MULTILINE))
    for path in TEACHERS:
        notebook, chapter = read(path), path.name[:2]
        points = sum(cell.metadata.nbgrader.get("points", 0) for cell in notebook.cells)
        assert stated[chapter] == str(points), path.name
        questions = [cell.source for cell in notebook.cells if is_question(cell)]
        numbers = [re.match(r"## (\d)\. ", question)[1] for question in questions]
        assert re.findall(rf"^\| {chapter}\.(\d) ", page, re.MULTILINE) == numbers


# ---------------------------------------------------------------- what is built
def test_what_is_committed_is_what_the_sources_give(built: Path) -> None:
    made = {path.name: path.read_bytes() for path in (built / "student").iterdir()}
    there = {path.name: path.read_bytes() for path in COMMITTED.iterdir() if path.is_file()}
    assert there == made, (
        "run: sepme course build --out build/course --students notebooks/exercises"
    )


def test_the_same_sources_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    written = build(tmp_path)
    assert len(written) == 2 * CHAPTERS
    for path in written:
        assert path.read_bytes() == (built / path.relative_to(tmp_path)).read_bytes()


@each
def test_students_see_neither_answers_nor_hidden_tests(path: Path, built: Path) -> None:
    source, blank, whole = (
        nbformat.read(folder / path.name, as_version=4)
        for folder in (TEACHER, built / "student", built / "solution")
    )
    for before, without, answered in zip(source.cells, blank.cells, whole.cells, strict=True):
        assert "###" not in without.source + answered.source
        assert without.metadata == answered.metadata == before.metadata
        if is_answer(before):
            assert without.source.count("YOUR ") == 1
            assert len(answered.source) > len(without.source) - len(STUB["code"])
        hidden = re.findall(
            r"### BEGIN (?:SOLUTION|HIDDEN TESTS)\n(.*?)\n *### END", before.source, re.DOTALL
        )
        for region in hidden:
            assert region not in without.source
            assert region in answered.source


@pytest.mark.slow
@each
def test_the_solution_solves_it(path: Path, built: Path, tmp_path: Path) -> None:
    executed = tidy(execute(built / "solution" / path.name, tmp_path))
    assert complaints(executed) == []
    for cell in filter(is_test, executed.cells):
        assert cell.outputs[0].text.startswith("ok: "), cell.source
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@each
def test_a_blank_exercise_fails_its_check(path: Path, tmp_path: Path) -> None:
    blank = nbformat.read(COMMITTED / path.name, as_version=4)
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
    words = [
        "course",
        "build",
        "--out",
        str(tmp_path / "out"),
        "--students",
        str(tmp_path / "mine"),
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    assert len(result.stdout.split()) == 2 * CHAPTERS
    assert len(list((tmp_path / "mine").iterdir())) == CHAPTERS
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["solution"]


# ---------------------------------------------------------------- the builder on a small notebook
def cell(new: Callable, id: str, source: str, grade: bool, solution: bool) -> NotebookNode:
    made = new(source)
    made["id"] = id
    kind = made.cell_type
    flags = {"grade": grade, "solution": solution, "locked": not solution, "task": False}
    points = {"points": 1} if grade else {}
    about = {"schema_version": 3, "grade_id": id, "cell_type": kind} | flags | points
    made.metadata["nbgrader"] = about
    return made


def small() -> NotebookNode:
    answer = "def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION"
    tests = "check_f(f)\n### BEGIN HIDDEN TESTS\nassert f() == 1\n### END HIDDEN TESTS"
    text = "### BEGIN SOLUTION\nBecause.\n### END SOLUTION"
    return tidy(
        new_notebook(
            cells=[
                cell(new_markdown_cell, "task", "## 1. Write f", False, False),
                cell(new_code_cell, "f", answer, False, True),
                cell(new_code_cell, "f-check", tests, True, False),
                cell(new_markdown_cell, "why", text, True, True),
            ]
        )
    )


def save(notebook: NotebookNode, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "07_exercises.ipynb"
    path.write_text(json.dumps(notebook))
    return path


def test_the_builder_on_a_small_notebook(tmp_path: Path) -> None:
    source = small()
    source.cells[1].update(outputs=[], execution_count=7)
    path = save(source, tmp_path)
    sources = [cell.source for cell in student(read(path)).cells]
    assert sources == [
        "## 1. Write f",
        "def f():\n    # YOUR CODE HERE\n    raise NotImplementedError()",
        "check_f(f)",
        "YOUR ANSWER HERE",
    ]
    whole = solution(read(path))
    assert whole.cells[1].source == "def f():\n    return 1"
    assert whole.cells[1].execution_count is None
    assert whole.cells[2].source == "check_f(f)\nassert f() == 1"
    assert whole.cells[3].source == "Because."
    source.metadata["language_info"]["version"] = "3.11.9"
    assert to_bytes(source) == to_bytes(read(path))  # nothing of one machine


def mark(index: int, **metadata: object) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells[index].metadata.nbgrader.update(metadata)


def write(index: int, source: str) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells[index].update(source=source)


BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
SPOILT = {
    "no end": (write(1, f"{BEGIN}\nx = 1"), ("'f'", "END SOLUTION")),
    "no beginning": (write(1, f"x = 1\n{END}"), ("'f'", "END SOLUTION", "other half")),
    "nested": (write(1, f"{BEGIN}\n{BEGIN}\n{END}\n{END}"), ("'f'", "other half")),
    "crossed": (write(1, f"{BEGIN}\n### END HIDDEN TESTS"), ("'f'", "other half")),
    "visible answer": (write(1, "x = 1"), ("'f'", "BEGIN SOLUTION")),
    "solution in a test": (write(2, f"check_f(f)\n{BEGIN}\n{END}"), ("'f-check'", "mark it")),
    "hidden in an answer": (
        write(1, f"{BEGIN}\n{END}\n### BEGIN HIDDEN TESTS\n### END HIDDEN TESTS"),
        ("'f'", "move them"),
    ),
    "no test": (lambda notebook: notebook.cells.pop(2), ("Nothing checks", "'f'")),
    "test without check": (write(2, "assert f() == 1"), ("'f-check'", "check_")),
    "check that is hidden": (
        write(2, "### BEGIN HIDDEN TESTS\ncheck_f(f)\n### END HIDDEN TESTS"),
        ("'f-check'", "check_"),
    ),
    "same id": (mark(2, grade_id="f"), ("'f'", "shares")),
    "odd id": (mark(2, grade_id="f check"), ("'f check'", "letters")),
    "no points": (mark(2, points=0), ("'f-check'", "points")),
    "points in excess": (mark(1, points=1), ("'f'", "points")),
    "other version": (mark(1, schema_version=2), ("'f'", "schema_version 2")),
    "not a flag": (mark(1, grade="yes", points=1), ("'f'", "true nor false")),
    "locked answer": (mark(1, locked=True), ("'f'", "locked")),
    "text that is half graded": (mark(3, solution=False, locked=True), ("'why'", "agree")),
    "other type": (mark(3, cell_type="code"), ("'why'", "type")),
    "no metadata": (
        lambda notebook: notebook.cells[0].metadata.pop("nbgrader"),
        ("'task'", "no nbgrader metadata"),
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


# ---------------------------------------------------------------- the checks speak
def says(words: str, checked: Callable[..., None], answer: Callable, *context: object) -> None:
    """The check must refuse the answer in one sentence that holds these words."""
    with pytest.raises(NotYet) as caught:
        checked(answer, *context)
    message = str(caught.value)
    assert words in message, message
    assert "\n" not in message
    assert caught.value._render_traceback_() == [f"Not yet: {message}"]


def test_a_blank_answer_is_called_blank_and_a_right_one_ok(capsys) -> None:
    @check
    def check_one(answer: Callable[[], int]) -> None:
        if answer() != 1:
            raise NotYet("One is meant.")

    def blank() -> int:
        raise NotImplementedError()

    says("`blank` is still blank", check_one, blank)
    says("One is meant", check_one, lambda: 2)
    assert capsys.readouterr().out == ""

    def right() -> int:
        return 1

    check_one(right)
    assert capsys.readouterr().out == "ok: right\n"


def test_feedback_on_other_words_for_a_concept() -> None:
    anchors = ("a photo", "a photo of a boat")
    concept = Concept("neon", ("neon", "neon boat"), "style", anchors)

    def widened(prompts: tuple[str, ...], anchors: tuple[str, ...] = ()) -> Callable:
        return lambda c, alias: Concept(c.name, prompts, c.kind, anchors)

    both = (*concept.prompts, "glowing", "glowing boat")
    context = (quickstart.check_with_alias, concept, "glowing")

    def ask(words: str, answer: Callable) -> None:
        says(words, context[0], answer, *context[1:])

    ask("no longer forgotten", widened(("glowing", "glowing boat"), anchors))
    ask("with 'glowing' too", widened((*concept.prompts, "glowing"), (*anchors, "a photo")))
    ask("anchors stand in the order", widened(both, (*anchors, *anchors[::-1])))
    ask("Return a Concept", lambda c, alias: None)
    context[0](widened(both, anchors * 2), *context[1:])


def test_feedback_on_the_price_of_tolerance() -> None:
    backbone, keep = shared(), ("", *others(NEON))

    def price(rtol: float, **wrong: Callable) -> dict[str, float]:
        room = constrain(*(backbone, NEON, keep), keep_rtol=rtol, concept_rtol=0.1, method="damped")
        right = {"taken": room.space.rank, "rank": room.rank, "leakage": room.leakage}
        return right | {name: value(room) for name, value in wrong.items()}

    def ask(words: str, **wrong: Callable) -> None:
        checked = quickstart.check_price
        says(words, checked, lambda rtol: price(rtol, **wrong), backbone, NEON, keep)

    quickstart.check_price(price, backbone, NEON, keep)
    ask("You counted the free dimensions", taken=lambda room: room.space.free)
    ask("rank", rank=lambda room: room.rank + 1)
    longest = lambda room: float((room.kept_rows @ room.basis.T).norm(dim=1).max())  # noqa: E731
    ask("divide by ||a||", leakage=longest)
    ask("the largest ||Q a||", leakage=lambda room: 2 * room.leakage)


def test_feedback_on_noise_differences() -> None:
    backbone = shared()
    x_t = torch.randn(2, *backbone.latent_shape)
    t = torch.tensor([500, 900])

    def predicted(prompt: str) -> Tensor:
        return backbone.epsilon(x_t, t, backbone.encode([prompt] * 2))

    def ask(words: str, answer: Callable) -> None:
        says(words, noise_differences.check_difference, answer, backbone, x_t, t)

    def right(x_t: Tensor, t: Tensor, prompt: str) -> Tensor:
        return predicted(prompt) - predicted("")

    noise_differences.check_difference(right, backbone, x_t, t)
    ask("points backwards", lambda x, t, prompt: -right(x, t, prompt))
    ask("subtract what the empty prompt", lambda x, t, prompt: predicted(prompt))
    ask("guidance comes later", lambda x, t, prompt: backbone.guidance * right(x, t, prompt))
    ask("did you forget `return`", lambda x, t, prompt: None)
    ask("should have the shape", lambda x, t, prompt: right(x, t, prompt)[0])


def test_feedback_on_guidance_and_sampling() -> None:
    guided, weight = noise_differences.check_guided, noise_differences.check_weight
    guided(lambda eps_0, r, scale: eps_0 + scale * r)
    says("once too often", guided, lambda eps_0, r, scale: eps_0 + r + scale * r)
    says("straight line", guided, lambda eps_0, r, scale: eps_0 + scale**2 * r)

    def k(a_t: float, a_prev: float) -> float:
        return math.sqrt(1 - a_prev) - math.sqrt(a_prev * (1 - a_t) / a_t)

    weight(k)
    says("wrong sign", weight, lambda a_t, a_prev: -k(a_t, a_prev))
    says("enters twice", weight, lambda a_t, a_prev: math.sqrt(1 - a_prev))
    says("the latent moves by", weight, lambda a_t, a_prev: 0.1)


def test_feedback_on_cosines() -> None:
    cosine = noise_differences.check_cosine

    def right(a: Tensor, b: Tensor) -> Tensor:
        return torch.cosine_similarity(a.flatten(1), b.flatten(1))

    cosine(right)
    says("flatten each sample", cosine, lambda a, b: (a * b).sum() / a.norm() / b.norm())
    says("has a sign", cosine, lambda a, b: right(a, b).abs())
    says("divide by both lengths", cosine, lambda a, b: (a * b).flatten(1).sum(1))


def test_feedback_on_solutions_by_hand() -> None:
    A = torch.tensor([[1.0, 2, 0, 1], [0, 1, 1, 0], [1, 3, 1, 1]])
    S = torch.tensor([[2.0, -1, 1, 0], [-1, 0, 0, 1]]).T
    unit = S / S.norm(dim=0)

    def ask(words: str, answer: Tensor) -> None:
        says(words, null_space.check_solutions, lambda: answer, A)

    null_space.check_solutions(lambda: unit, A)
    ask("not of unit length", S)
    ask("independent of the others", unit[:, :1])
    ask("transpose", unit.T)
    ask("multiples of each other", unit[:, [0, 0]])
    ask("A times your column 1", torch.stack([unit[:, 0], torch.eye(4)[0]], dim=1))


def test_feedback_on_projectors() -> None:
    checked = null_space.check_projector

    def right(S: Tensor) -> Tensor:
        return S @ torch.linalg.inv(S.T @ S) @ S.T

    checked(right)
    skewed = lambda S: S @ torch.linalg.pinv(S + torch.eye(6, 3))  # noqa: E731
    says("not symmetric: did you forget to transpose", checked, skewed)
    says("not idempotent", checked, lambda S: S @ S.T)
    says("removes S", checked, lambda S: torch.eye(6) - right(S))
    says("The trace of P", checked, lambda S: torch.eye(6))


def test_feedback_on_tolerances() -> None:
    A = torch.linalg.qr(torch.randn(40, 8)).Q * torch.tensor([500, 100, 20, 9, 2, 1, 0.2, 0.02])
    largest = float(torch.linalg.svdvals(A)[0])
    checked = null_space.check_tolerance
    checked(lambda A, leakage: leakage / largest, A)
    says("leaks up to", checked, lambda A, leakage: 3 * leakage / largest, A)
    says("are possible", checked, lambda A, leakage: 0.2 * leakage / largest, A)
    says("null_space refuses", checked, lambda A, leakage: leakage, A)


def test_feedback_on_correlations() -> None:
    loss, normalised = decorrelation.check_correlation, decorrelation.check_normalised

    def right(r: Tensor, r0: Tensor) -> Tensor:
        return (r * r0).flatten(1).mean(1)

    def part(r: Tensor, r0: Tensor) -> Tensor:
        return right(r, r0) / right(r0, r0)

    loss(right)
    normalised(part)
    says("one number for the batch", loss, lambda r, r0: (r * r0).mean())
    says("eq. 2 is a mean", loss, lambda r, r0: (r * r0).flatten(1).sum(1))
    says("no denominator", loss, part)
    says("Keep the sign", loss, lambda r, r0: right(r, r0).abs())
    says(
        "half of the concept is gone",
        normalised,
        lambda r, r0: torch.cosine_similarity(r.flatten(1), r0.flatten(1)),
    )
    says("must give exactly 1", normalised, right)


def test_feedback_on_the_balance_and_the_stop() -> None:
    balance, stop = decorrelation.check_balance, decorrelation.check_stop

    def eta(losses: Tensor) -> Tensor:
        return losses.abs().max() / losses.abs()

    balance(lambda losses: eta(losses.detach()))
    says("constant for the gradient", balance, eta)
    says("Upside down", balance, lambda losses: 1 / eta(losses.detach()))
    says("must be positive", balance, lambda losses: losses.detach().max() / losses.detach())

    def stopping(m: float | None = None, first: int = 1, swap: bool = False) -> Callable:
        def answer(losses, alpha, tau, earliest):
            mean = losses[0] if m is None else m
            weight = 1 - alpha if swap else alpha
            for n, loss in enumerate(losses, start=first):
                mean = weight * mean + (1 - weight) * loss
                if n - first + 1 >= earliest and mean <= tau:
                    return n
            return None

        return answer

    stop(stopping())
    says("since your m_0 is 0", stop, stopping(m=0.0))
    says("one too early", stop, stopping(first=0))
    says("you have them exchanged", stop, stopping(swap=True))
    says("before the earliest", stop, lambda *a: stopping()(*a[:3], 1))
    says("in place of its running mean", stop, lambda *a: stopping()(a[0], 0.0, *a[2:]))


def test_feedback_on_predictions() -> None:
    measured = {("boat in neon", ("neon",)): 0.9, ("boat", ("neon",)): 0.01, ("boat", ()): 0.0}

    def ask(words: str, answer: Callable) -> None:
        says(words, composition.check_prediction, answer, measured)

    right = lambda prompt, erased: any(name in prompt for name in erased)  # noqa: E731
    composition.check_prediction(right, measured)
    ask("changes by 1.0% only", lambda prompt, erased: bool(erased))
    ask("one erased concept in the prompt is enough", lambda prompt, erased: False)
    ask("True or False", lambda prompt, erased: "yes")


def test_feedback_on_a_composition_by_hand() -> None:
    backbone, deltas = shared(), three_deltas()[:2]
    layers = backbone.projections()

    def change(path: str) -> Tensor:
        return sum(delta.up[path] @ delta.down[path] for delta in deltas)

    def ask(words: str, answer: Callable) -> None:
        says(words, composition.check_composed, answer, backbone, deltas)

    def right(backbone, deltas):
        return {path: layer.weight + change(path) for path, layer in layers.items()}

    def in_place(backbone, deltas):
        for path, layer in layers.items():
            layer.weight += change(path)
        return {path: layer.weight for path, layer in layers.items()}

    before = [layer.weight.clone() for layer in layers.values()]
    composition.check_composed(right, backbone, deltas)
    ask("the change alone", lambda b, d: {path: change(path) for path in layers})
    ask("Only one delta", lambda b, d: {p: m.weight + d[0].dense(p) for p, m in layers.items()})
    ask("layers are missing", lambda b, d: {})
    ask("You changed the model's own weights", in_place)
    after = [layer.weight for layer in layers.values()]
    assert all(map(torch.equal, after, before))  # the check has put it right


def test_feedback_on_one_concept_after_another() -> None:
    backbone = shared()

    def next_keeping(keep: Callable) -> Callable:
        def erase_next(concept, earlier):
            kept = [prompt for prompt in keep(concept, earlier) if prompt not in concept.prompts]
            return erase(backbone, concept, kept, EXACT)

        return erase_next

    def ask(words: str, keep: Callable) -> None:
        says(words, composition.check_next, next_keeping(keep), backbone, CONCEPTS)

    def right(concept, earlier):
        return (*KEPT, *NAMES)

    composition.check_next(next_keeping(right), backbone, CONCEPTS)
    ask("which 'neon' forgot", lambda concept, earlier: KEPT)
    ask("which was promised", lambda concept, earlier: NAMES if earlier else (*KEPT, *NAMES))


def test_feedback_on_principal_angles() -> None:
    checked = interference.check_angles

    def cosines(E: Tensor, F: Tensor) -> Tensor:
        return torch.linalg.svdvals(row_basis(E) @ row_basis(F).T).clamp(max=1)

    checked(lambda E, F: cosines(E, F).acos())
    says("those are the cosines", lambda *a: _lower(checked, *a), cosines)
    says("radians", checked, lambda E, F: cosines(E, F).acos().rad2deg())
    says("Smallest angle first", checked, lambda E, F: cosines(E, F).acos().flip(0))
    says("not finite", checked, lambda E, F: torch.linalg.svdvals(E @ F.T).acos())
    too_short = lambda E, F: (0.1 * torch.linalg.svdvals(E @ F.T)).clamp(max=1).acos()  # noqa: E731
    says("orthonormal", checked, too_short)


def _lower(checked: Callable, *context: object) -> None:
    try:
        checked(*context)
    except NotYet as error:
        raise NotYet(str(error)[0].lower() + str(error)[1:]) from None


def test_feedback_on_chance() -> None:
    basis, expected = interference.check_random_basis, interference.check_expected

    def uniform(q: int, d: int, generator: torch.Generator) -> Tensor:
        return torch.linalg.qr(torch.randn(d, q, generator=generator)).Q.T

    basis(uniform)
    expected(lambda q1, q2, d: q1 * q2 / d)
    fixed = lambda q, d, generator: uniform(q, d, torch.Generator().manual_seed(0))  # noqa: E731
    says("Two draws are the same", basis, fixed)
    says("not orthonormal", basis, lambda q, d, g: torch.randn(q, d, generator=g))

    def axes(q: int, d: int, generator: torch.Generator) -> Tensor:
        return torch.eye(d)[torch.randperm(q + 1, generator=generator)[:q]]

    says("not uniform", basis, axes)
    says("That is the root", expected, lambda q1, q2, d: math.sqrt(q1 * q2 / d))
    says("Every pair of directions counts", expected, lambda q1, q2, d: min(q1, q2) / d)
    says("chance gives", expected, lambda q1, q2, d: 0.5)


def test_feedback_on_gram_matrices() -> None:
    one, two, three = three_deltas()
    deltas = [one, -one + 0.5 * two, three]

    def flat(delta, paths=None) -> Tensor:
        return torch.cat([delta.dense(path).flatten() for path in paths or delta.paths])

    def cosines(deltas, paths=None) -> Tensor:
        rows = torch.stack([flat(delta, paths) for delta in deltas])
        rows = rows / rows.norm(dim=1, keepdim=True)
        return rows @ rows.T

    def ask(words: str, answer: Callable) -> None:
        says(words, interference.check_gram, answer, deltas)

    interference.check_gram(cosines, deltas)
    ask(
        "products, not cosines",
        lambda ds: torch.stack([torch.stack([flat(a) @ flat(b) for b in ds]) for a in ds]),
    )
    ask("Keep the sign", lambda deltas: cosines(deltas).abs())
    ask("one layer only", lambda deltas: cosines(deltas, deltas[0].paths[:1]))
    ask("cosine 1 with itself", lambda deltas: 0.5 * cosines(deltas))
    ask("symmetric", lambda deltas: cosines(deltas) + torch.ones(3, 3).triu(1))


def test_feedback_on_esds_target() -> None:
    checked, eta = baselines.check_target, baselines.check_eta
    checked(lambda eps_c, eps_0, eta: eps_0 - eta * (eps_c - eps_0))
    says("turns the sign", checked, lambda eps_c, eps_0, eta: eps_0 + eta * (eps_c - eps_0))
    says("add that of the empty", checked, lambda eps_c, eps_0, eta: -eta * (eps_c - eps_0))
    says("as the rewrite does", checked, lambda eps_c, eps_0, eta: eps_c - eta * (eps_c - eps_0))
    says("With eta = 2.5", checked, lambda eps_c, eps_0, eta: eps_0 - eta**2 * (eps_c - eps_0))
    says("did you forget `return`", checked, lambda eps_c, eps_0, eta: None)
    eta(lambda factor: factor - 1)
    says("same target twice", eta, lambda factor: factor)
    says("the two targets differ", eta, lambda factor: factor + 1)


def ridge(W0: Tensor, C: Tensor, A: Tensor, P: Tensor, lam: float, pull: float = 1.0) -> Tensor:
    """UCE's formula as published; `pull` = 0 leaves lambda W0 out."""
    gram = lam * torch.eye(W0.shape[1], dtype=W0.dtype) + C.T @ C + P.T @ P
    return (pull * lam * W0 + W0 @ A.T @ C + W0 @ P.T @ P) @ torch.linalg.inv(gram)


def test_feedback_on_uce() -> None:
    def ask(words: str, answer: Callable) -> None:
        says(words, baselines.check_uce, answer)

    baselines.check_uce(ridge)
    ask("transposed", lambda *given: ridge(*given).T)
    ask("for lambda = 0.5 only", lambda W0, C, A, P, lam: ridge(W0, C, A, P, 0.5))
    ask("the change alone", lambda W0, *given: ridge(W0, *given) - W0)
    ask("What is preserved", lambda W0, C, A, P, lam: ridge(W0, C, A, P[:0], lam))
    ask("in the inverse only", lambda *given: ridge(*given, pull=0.0))
    ask("Nothing has changed", lambda W0, C, A, P, lam: ridge(W0, C, C, P, lam))
    ask("not the minimum", lambda W0, C, A, P, lam: ridge(W0, C, 2 * A, P, lam))


def test_feedback_on_speed() -> None:
    def fitted(W0: Tensor, C: Tensor, A: Tensor, S: Tensor, rho: float) -> Tensor:
        free = C @ S
        gram = free.T @ free + rho * torch.eye(S.shape[1], dtype=S.dtype)
        return (torch.linalg.inv(gram) @ free.T @ (A - C) @ W0.T).T @ S.T

    def unbound(W0: Tensor, C: Tensor, A: Tensor, S: Tensor, rho: float) -> Tensor:
        return fitted(W0, C, A, torch.eye(W0.shape[1], dtype=W0.dtype), rho)

    def ask(words: str, answer: Callable) -> None:
        says(words, baselines.check_speed, answer)

    baselines.check_speed(fitted)
    ask("the edited matrix", lambda W0, *given: W0 + fitted(W0, *given))
    ask("What is kept moves", unbound)
    ask("projected at the end", lambda *given: unbound(*given) @ given[3] @ given[3].T)
    ask("The change is zero", lambda W0, *given: 0 * W0)
    ask("not the best such change", lambda *given: 0.5 * fitted(*given))


def test_feedback_on_roles() -> None:
    def right(history, index):
        if index in history[-1]:
            return "erased"
        return "recovered" if any(index in erased for erased in history) else "regular"

    checked = measures.check_role
    checked(right)

    def ever(history, index):
        return "recovered" if any(index in e for e in history[:-1]) else right(history, index)

    says("once and is back", checked, lambda history, i: right(history[-1:], i))
    says("once and is back", checked, lambda history, i: right([history[0], history[-1]], i))
    says("erased (again)", checked, ever)
    says("is erased, not regular", checked, lambda history, i: "regular")
    says("one of erased, recovered, regular", checked, lambda history, i: "forgotten")
    says("did you forget `return`", checked, lambda history, i: None)


def test_feedback_on_wilson_s_interval() -> None:
    def wilson(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
        p, more = k / n, z**2 / n
        half = z * math.sqrt(p * (1 - p) / n + more / (4 * n))
        return (p + more / 2 - half) / (1 + more), (p + more / 2 + half) / (1 + more)

    def wald(k: int, n: int) -> tuple[float, float]:
        half = 1.96 * math.sqrt(k / n * (1 - k / n) / n)
        return k / n - half, k / n + half

    checked = measures.check_wilson
    checked(wilson)
    says("Wald's", checked, wald)
    says("give shares", checked, lambda k, n: tuple(100 * end for end in wilson(k, n)))
    says("lower end comes first", checked, lambda k, n: wilson(k, n)[::-1])
    says("denominator", checked, lambda k, n: tuple(e * (1 + 1.96**2 / n) for e in wilson(k, n)))
    says("goes from 0.0000 to 0.0370", checked, lambda k, n: wilson(k, n, 1.0))
    says("two numbers", checked, lambda k, n: wilson(k, n)[1])


def test_feedback_on_the_frechet_distance() -> None:
    def right(a: float, u: float, b: float, v: float) -> float:
        return (a - b) ** 2 + (math.sqrt(u) - math.sqrt(v)) ** 2

    checked = measures.check_frechet
    checked(right)
    says("the root", checked, lambda *line: math.sqrt(right(*line)))
    says("means alone", checked, lambda a, u, b, v: (a - b) ** 2)
    says("spreads alone", checked, lambda a, u, b, v: right(0, u, 0, v))
    says("of their roots", checked, lambda a, u, b, v: (a - b) ** 2 + (u - v) ** 2)
    says("the distance is 9", checked, lambda a, u, b, v: right(a, u, b, v) + u + v)


def test_feedback_on_few_images() -> None:
    def line(x: list[float], y: list[float]) -> tuple[float, float]:
        """Slope and intercept by hand."""
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
        slope /= sum((a - mean_x) ** 2 for a in x)
        return slope, mean_y - slope * mean_x

    def inverse(sizes: list[float]) -> list[float]:
        return [1 / n for n in sizes]

    checked = measures.check_limit
    checked(lambda sizes, fids: line(inverse(sizes), fids)[1])
    says("the slope", checked, lambda sizes, fids: line(inverse(sizes), fids)[0])
    says("still biased", checked, lambda sizes, fids: fids[-1])
    two = lambda sizes, fids: line(inverse(sizes[-2:]), fids[-2:])[1]  # noqa: E731
    says("leaves the others out", checked, two)
    says("fit it in 1 / n", checked, lambda sizes, fids: line(sizes, fids)[1])
    says("ends at 0, not at -1", checked, lambda sizes, fids: -1.0)
