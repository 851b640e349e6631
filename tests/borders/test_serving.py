"""What `make lab` and `make app` serve: this machine alone, and whoever has the token."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError

import nbformat
import psutil
from nbformat.v4 import new_code_cell, new_notebook

from tests.browser.servers import ANSWERS, ROOT, free_port, serving, settled_in

TOKEN = "a-token-of-this-test"
RECIPES = dict(re.findall(r"^(lab|app):.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M))


def command(target: str, **values: str) -> list[str]:
    """What make runs, with the values of its variables."""
    line = RECIPES[target].replace("\\\n", " ")
    values = {"BIN": str(ROOT / ".venv/bin"), "TRACEBACKS": "False"} | values
    for name, value in values.items():
        line = line.replace(f"$({name})", value)
    return [word for word in shlex.split(line) if not word.startswith("JUPYTER_PATH=")]


@contextmanager
def served(words: list[str], folder: Path, ready: str) -> Iterator[tuple[str, psutil.Process]]:
    """The server on a free port, without a browser; its address."""
    name, port = ("Voila" if "voila" in words[0] else "ServerApp"), free_port()
    about = {"port": port, "port_retries": 0, "open_browser": False}
    more = [f"--{name}.{key}={value}" for key, value in about.items()]
    more += ["--ServerApp.allow_root=True"] * (name == "ServerApp")
    environment = settled_in(folder) | {"JUPYTER_TOKEN": TOKEN}
    environment["JUPYTER_PATH"] = str(ROOT / "notebooks" / "app")
    url = f"http://127.0.0.1:{port}"
    with serving([*words, *more], f"{url}{ready}", folder / "log", environment) as process:
        yield url, process


def page(url: str) -> str:
    """The page, or how it was refused."""
    try:
        with ANSWERS(url, timeout=60) as answer:
            return "asked to log in" if "/login" in answer.url else answer.read().decode()
    except HTTPError as error:
        return f"refused: {error.code}"


def places(process: psutil.Process) -> set[str]:
    """Where a server and its kernels listen."""
    family = [process, *process.children(recursive=True)]
    found = [c for member in family for c in member.net_connections("inet")]
    return {connection.laddr.ip for connection in found if connection.status == "LISTEN"}


def test_the_recipes_say_so() -> None:
    lab, app = command("lab")[1:], command("app")[1:]
    assert "--ServerApp.ip=127.0.0.1" in lab
    assert {"--Voila.ip=127.0.0.1", "--Voila.auto_token=True", "--show_tracebacks=False"} < set(app)
    assert not re.search(r"token(?!=True)|password|allow_remote|0\.0\.0\.0", " ".join(lab + app))
    assert "--show_tracebacks=True" in command("app", TRACEBACKS="True")


def small(folder: Path) -> str:
    """A notebook that says that it ran, and fails."""
    notebook = new_notebook(cells=[new_code_cell("print('it', 'ran')"), new_code_cell("1 / 0")])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, folder / "small.ipynb")
    return str(folder / "small.ipynb")


def test_the_page_of_the_mixer_asks_for_its_token_and_hides_what_failed(tmp_path: Path) -> None:
    words = [*command("app")[:-1], small(tmp_path)]
    with served(words, tmp_path, "/voila/static/voila.js") as (url, process):
        assert page(url) == page(f"{url}/?token=another") == "asked to log in"
        shown = page(f"{url}/?token={TOKEN}")
        assert "it ran" in shown
        assert "ZeroDivisionError" not in shown
        assert places(process) == {"127.0.0.1"}


def test_without_the_option_anybody_is_answered_and_tracebacks_can_be_had(tmp_path: Path) -> None:
    words = [word for word in command("app", TRACEBACKS="True")[:-1] if "token" not in word]
    with served([*words, small(tmp_path)], tmp_path, "/voila/static/voila.js") as (url, _):
        shown = page(url)
        assert "it ran" in shown
        assert "ZeroDivisionError" in shown


def test_jupyterlab_asks_for_its_token(tmp_path: Path) -> None:
    words = [*command("lab")[:-1], f"--ServerApp.root_dir={tmp_path}"]
    with served(words, tmp_path, "/login") as (url, process):
        assert page(f"{url}/api/contents") == "refused: 403"
        assert page(f"{url}/lab") == "asked to log in"
        assert '"content"' in page(f"{url}/api/contents?token={TOKEN}")
        assert places(process) == {"127.0.0.1"}
