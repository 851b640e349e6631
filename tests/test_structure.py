"""How the package is built: one direction of imports, few public names, a readable `erase`."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SATELLITES = ("atelier", "baselines", "cli", "course", "jobs", "metrics", "scenes", "widgets")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted((ROOT / "sepme").rglob("*.py"))
}
CORE = [name for name in MODULES if name.count(".") == 1 and not name.endswith("__")]
PUBLIC = [name for name in MODULES if not name.rpartition(".")[2].startswith("_")]
PUBLIC += [name for name in MODULES if name.endswith(".__init__") and name != "sepme.__init__"]


def imported(tree: ast.Module) -> set[str]:
    """Every module that is imported anywhere in a module, in functions too."""
    names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    return names | {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}


def offered(tree: ast.Module) -> list[str]:
    """The names in `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


@pytest.mark.parametrize("module", CORE)
def test_the_core_never_imports_a_satellite(module: str) -> None:
    satellites = tuple(f"sepme.{name}" for name in (*SATELLITES, "exchange"))
    assert [name for name in imported(MODULES[module]) if name.startswith(satellites)] == []


def test_the_search_for_imports_would_find_one() -> None:
    assert "sepme.atelier.judge" in imported(MODULES["sepme.scenes.demo"])
    assert set(SATELLITES) == {path.parent.name for path in (ROOT / "sepme").glob("*/__init__.py")}


def test_nobody_imports_the_command_line() -> None:
    users = {m for m in MODULES if any(n.startswith("sepme.cli") for n in imported(MODULES[m]))}
    assert {m for m in users if not m.startswith("sepme.cli")} == {"sepme.__main__"}


@pytest.mark.parametrize("module", PUBLIC)
def test_a_public_module_says_what_it_is_and_what_it_offers(module: str) -> None:
    tree = MODULES[module]
    assert ast.get_docstring(tree), f"{module} has no docstring"
    definitions = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    public = {n.name: n for n in definitions if not n.name.startswith("_")}
    names = offered(tree)
    assert names or not public, f"{module} has no __all__"
    for name in set(names) & set(public):
        assert ast.get_docstring(public[name]), f"{module}.{name} has no docstring"


def test_what_is_offered_is_little_and_is_used() -> None:
    """At most 200 names; each is used by a chapter, a command, a page, a benchmark or a module."""
    names = {name for module in PUBLIC for name in offered(MODULES[module])}
    assert len(names) <= 200, len(names)
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*")]
    texts = [
        path.read_text() for path in [*pages, *ROOT.glob("notebooks/**/*.ipynb")] if path.is_file()
    ]
    texts += [path.read_text() for path in (ROOT / "sepme").rglob("*.py")]
    words = Counter(word for text in texts for word in set(re.findall(r"\w+", text)))
    assert [name for name in sorted(names) if words[name] < 2] == []


def test_the_method_fits_on_a_screen() -> None:
    (erase,) = [
        n
        for n in MODULES["sepme.erasure"].body
        if getattr(n, "name", "") == "erase" and not n.decorator_list
    ]
    assert erase.end_lineno - erase.lineno < 60
