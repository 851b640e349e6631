"""Names on pages and terminals: whatever they hold is shown, and nothing of it is obeyed."""

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import ipywidgets
import pytest
from IPython.display import Markdown as IPythonMarkdown
from nbconvert.filters.markdown import markdown2html

from sepme._words import in_code, in_html, in_markdown
from sepme.atelier.card import _table
from sepme.cli._inspection import describe
from sepme.cli.main import echo
from sepme.concept import Catalogue, Concept
from sepme.course.chapter import ChapterCatalogue, Claims, Markdown, banner
from sepme.course.checks._reply import NotYet
from sepme.course.notebook import FOLDER
from sepme.widgets import concept_mixer, decay_player, interference_explorer, null_space_budget
from sepme.widgets._parts import Shell
from tests.gallery import DELTAS, REPORT, short_recording
from tests.miniature import fresh, shared

SCRIPT, IMAGE = "<script>alert(1)</script>", "<img src=x onerror=alert(1)>"
NAMES = (
    *(SCRIPT, IMAGE, "</td></table><b>", "<!-- a", "&lt;b&gt;", "a > b & c"),
    *("a|b", "|", "*x*", "**", "_x_", "__init__", "a_b", "~~x~~", "`x`", "``", "a`b``c"),
    *("[x](y)", "![x](y)", "[x]: y", "# x", "Li$a $t$", "$$x$$", r"\(x\)", r"\$x\$"),
    *(r"\frac", "a\\", "O'Keeffe", '"x"', "{{ x }}", "@@0@@"),
)


class Page(HTMLParser):
    """The words of a page, its tags, and where its text is interrupted by one."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.handlers = "", [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self.handlers += "".join(code for name, code in attributes if name.startswith("on"))

    def handle_comment(self, text: str) -> None:
        self.tags.append("!--")

    def handle_data(self, text: str) -> None:
        mathematics = text.count("$") > 1 and "code" not in self.tags
        assert not mathematics, "MathJax looks for two of them in one piece of text"
        self.text += text


# ---------------------------------------------------------------------- the three ways
@pytest.mark.parametrize("name", NAMES)
def test_html_shows_the_words(name: str) -> None:
    page = Page(f"<td>{in_html(name)}</td>")
    assert page.text == name
    assert set(page.tags) <= {"td", "span"}


@pytest.mark.parametrize("name", [*NAMES, "two\nlines"])
def test_markdown_shows_the_words_in_a_line_and_in_a_table(name: str) -> None:
    name, shown = " ".join(name.split()), in_markdown(name)
    line = Page(markdown2html(f"A name, *{shown}*, and {shown} again."))
    assert line.text.strip() == f"A name, {name}, and {name} again."
    assert set(line.tags) <= {"p", "em", "span"}
    table = Page(markdown2html(f"| a | b |\n|---|---|\n| {shown} | {shown} |\n| c | d |\n"))
    assert table.text.split() == ["a", "b", *name.split(), *name.split(), "c", "d"]
    assert [table.tags.count(tag) for tag in ("tr", "td")] == [3, 4]
    assert set(table.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "span"}


@pytest.mark.parametrize("name", NAMES)
def test_code_shows_the_words(name: str) -> None:
    page = Page(markdown2html(f"The model {in_code(name)} is in use."))
    assert page.text.strip() == f"The model {name} is in use."
    assert page.tags == ["p", "code"]


def test_ordinary_words_stay_as_they_are() -> None:
    for name in ("neon", "Van Gogh", "up_blocks.0 (a, b): 5 %", "Cézanne", "葛飾北斎", "sepme@x"):
        assert in_markdown(name) == in_html(name) == name
        assert in_code(name) == f"`{name}`"


def test_without_it_names_are_obeyed() -> None:
    page = Page(markdown2html(f"*{SCRIPT.replace('script', 'b')}* *x* a|b"))
    assert "b" in page.tags
    assert "alert" in Page(IMAGE).handlers
    with pytest.raises(AssertionError, match="MathJax"):
        Page("Li$a $t$")


# ---------------------------------------------------------------------- pages
def tree(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from tree(child)


def concept(name: str, prompts: tuple[str, ...] = ("neon",), kind: str = "style") -> Concept:
    return Concept(name, prompts, kind)


def shells(name: str) -> Iterator[Shell]:
    """The widgets that show names, with this one; each has drawn."""
    model = fresh()
    provenance = replace(DELTAS["neon"].provenance, concept=name, kind="style")
    delta = replace(DELTAS["neon"], provenance=provenance)
    catalogue = Catalogue({c.name: c for c in (concept(name), concept("ink", ("ink",)))})
    yield concept_mixer(model, None, catalogue, {name: delta}, threaded=False)
    yield null_space_budget(fresh(), catalogue)
    yield decay_player({name: replace(short_recording(fresh()), prompt=name)}, threaded=False)
    report = replace(REPORT, erased=(name, "ink"), evaluated=(name, "ink", "oil"))
    yield interference_explorer(report)


@pytest.mark.parametrize("name", [SCRIPT, f"{IMAGE} 'x' | `y`", 'Li$a $t$ "x"'])
def test_a_widget_shows_a_name_and_obeys_nothing_of_it(name: str) -> None:
    for shell in shells(name):
        labels = []
        for widget in tree(shell):
            if isinstance(widget, ipywidgets.HTML):
                page = Page(widget.value.replace("$", ""))  # ipywidgets looks for none in HTML
                assert set(page.tags) <= {"span", "b", "p", "style", "div", "img"}
                assert "alert" not in page.handlers
            elif getattr(widget, "description_allow_html", False):
                page = Page(widget.description)
                assert set(page.tags) <= {"span"}
                assert not page.handlers
                labels.append(page.text)
        options = [str(getattr(widget, "options", "")) for widget in tree(shell)]
        assert name in labels or any(repr(name)[1:-1] in listed for listed in options)


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_shows_names_and_obeys_nothing_of_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, name = shared(), f"a {name}"
    odd = SimpleNamespace(**{k: getattr(model, k) for k in LOOKED_AT}, name=name)
    catalogue = ChapterCatalogue({"ink": concept("ink")}, keep=(name,))
    page = Page(markdown2html(banner(odd, {"neon": name}, catalogue, minutes=1, gigabytes=1).data))
    assert page.text.count(name) == 3
    assert set(page.tags) <= {"blockquote", "p", "strong", "code", "em", "br", "span"}
    claims = Claims(odd, {"neon": name})
    monkeypatch.setattr("sepme.course.chapter.display", (said := []).append)
    claims(f"{name} is gone", False)
    assert f"says that {name} is gone." in Page(markdown2html(said[0].data)).text
    table = Page(claims.table().data)
    assert f"{name} is gone" in table.text
    assert set(table.tags) <= {"p", "table", "thead", "tbody", "tr", "th", "td", "span"}


LOOKED_AT = ("device", "steps", "guidance", "fingerprint")


def test_html_that_a_cell_puts_together_is_shown() -> None:
    for name in (SCRIPT, IMAGE, "</td>", "<!-- a"):
        page = Page(markdown2html(Markdown(f"The delta of {name}, where 1<a and a < b.").data))
        assert page.text.strip() == f"The delta of {name}, where 1<a and a < b."
        assert page.tags == ["p"]
    assert "img" in Page(markdown2html(IPythonMarkdown(IMAGE).data)).tags  # without it


def test_every_chapter_writes_such_cells() -> None:
    for path in (*FOLDER.glob("0*.ipynb"), *FOLDER.glob("app/*.ipynb")):
        source = path.read_text()
        assert not re.search(r"IPython\.display import .*Markdown", source), path.name


def test_the_model_card_and_a_failed_check_show_names() -> None:
    table = Page(markdown2html(_table("style", {"by_style": {IMAGE: {"style": 0.5}}})))
    assert IMAGE in table.text
    assert not table.handlers
    assert NotYet("no \x1b[2J")._render_traceback_() == [r"Not yet: no \x1b[2J"]


def test_an_inspected_delta_sends_nothing_to_the_terminal(capsys: pytest.CaptureFixture) -> None:
    delta = replace(DELTAS["neon"], provenance=copy(DELTAS["neon"].provenance))
    words = {"concept": "neon\x1b[31m", "base_name": "a\x07", "forgotten": ("\x9b2J",)}
    for field, word in words.items():  # as if its file had not been checked
        object.__setattr__(delta.provenance, field, word)
    echo(describe(delta))  # as the command does
    text = capsys.readouterr().out
    assert all(c.isprintable() for c in text.replace("\n", ""))
    assert r"neon\x1b[31m" in text


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "||Δ|| 葛 é"),
        ("cp1252", r"||\u0394|| \u845b é"),
        ("latin-1", r"||\u0394|| \u845b é"),
        ("ascii", r"||\u0394|| \u845b \xe9"),
    ],
)
@pytest.mark.parametrize("err", [False, True])
def test_a_terminal_without_a_letter_shows_its_number(
    encoding: str, shown: str, err: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stderr" if err else "stdout", stream)
    echo("||Δ|| 葛 é", err=err)
    assert stream.buffer.getvalue().decode(encoding).strip() == shown


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is full")
def test_a_full_disk_is_said_where_the_output_was_to_go(tmp_path: Path) -> None:
    file = DELTAS["neon"].save(tmp_path / "neon.safetensors")
    command = [sys.executable, "-m", "sepme", "inspect", str(file)]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("sepme: The output cannot be written (No space left")
    assert ended.stderr.count("\n") == 1
