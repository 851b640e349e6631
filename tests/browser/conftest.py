"""A Chromium, and the pages in it: the mixer in JupyterLab, Notebook and Voila, and the gallery."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from playwright.sync_api import Browser, Page, sync_playwright

from sepme.course.notebook import FOLDER, tidy
from tests.browser.mixer_page import MixerPage
from tests.browser.servers import free_port, serving, settled_in

#: The chapter that has the mixer.
CHAPTER = "04_decouple_compose_restore.ipynb"
#: The widgets of `tests/gallery.py`.
GALLERY = ("mixer", "budget", "decay", "pair", "stop")
#: Screenshots and logs of the last run, kept to be looked at.
ARTEFACTS = FOLDER.parent / "build" / "browser"
#: Nothing but the page itself: no GPU, no first-run pages, no traffic of the browser's own.
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --no-proxy-server"
).split()
#: Milliseconds until a control must answer, and until a page must have run its cells.
CONTROL, CELLS = 30_000, 180_000
#: What is done on a page that has just been opened.
Run = Callable[[Page], None]


@pytest.fixture(scope="session")
def artefacts() -> Path:
    shutil.rmtree(ARTEFACTS, ignore_errors=True)
    ARTEFACTS.mkdir(parents=True)
    return ARTEFACTS


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The system's Chromium with an empty profile. A missing one is a failure, not a skip."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    assert found, "These tests need Chromium: install the system's chromium package."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def blank(chromium: Browser) -> Iterator[Page]:
    page = chromium.new_page()
    yield page
    page.close()


# ------------------------------------------------------------------ the pages
#: Milliseconds between two keys, as of a quick hand: JupyterLab loses a cell that is asked for
#: while the one before it is still being left.
PAUSE = 500
#: Jupyter's applications by the name of their module, and where each shows a notebook.
ADDRESS = {"jupyterlab": "lab/tree", "notebook": "notebooks"}


@contextmanager
def jupyter(application: str, folder: Path, log: Path) -> Iterator[str]:
    """The application on `folder/notebooks`, and the address that a notebook's name follows."""
    settings = folder / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"fetchNews": "false"}))  # else it asks, over the page
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = {
        "ServerApp.root_dir": folder / "notebooks",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": "",
    }
    command = [sys.executable, "-m", application, *(f"--{k}={v}" for k, v in options.items())]
    with serving(command, f"{url}/api/status", log, settled_in(folder)):
        yield f"{url}/{ADDRESS[application]}"


@contextmanager
def chapter(application: str, folder: Path, log: Path) -> Iterator[tuple[str, Run]]:
    """A chapter in a copy of the notebooks, and what to do until the mixer is to be seen.

    No notebook is committed with a widget, so that what is seen of the mixer is alive.
    """
    shutil.copytree(FOLDER, folder / "notebooks")
    with jupyter(application, folder, log) as address:
        yield f"{address}/{CHAPTER}", _run_to_the_mixer


def _run_to_the_mixer(page: Page) -> None:
    """Shift+Enter for each cell from the title to the mixer's: no code is typed."""
    cells = nbformat.read(FOLDER / CHAPTER, as_version=4).cells
    made = [cell.cell_type == "code" and "concept_mixer(" in cell.source for cell in cells]
    run_cells(page, made.index(True) + 1)


def run_cells(page: Page, cells: int) -> None:
    """Shift+Enter from the title on, as soon as there is a kernel."""
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
    page.locator(".jp-Notebook").get_by_role("heading", level=1).click()
    for _ in range(cells):
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(PAUSE)


@contextmanager
def voila(folder: Path, log: Path) -> Iterator[tuple[str, Run]]:
    """What `make app` serves, and nothing to do there but wait."""
    port = free_port()
    config = folder / "config_dir" / "voila.json"
    config.parent.mkdir(parents=True)
    config.write_text(
        json.dumps({"Voila": {"port": port, "port_retries": 0, "open_browser": False}})
    )
    url = f"http://127.0.0.1:{port}"
    command = ["make", "--directory", str(FOLDER.parent), "app"]
    environment = settled_in(folder) | {"JUPYTER_TOKEN": "a-token"}  # else it makes one up
    with serving(command, f"{url}/voila/static/voila.js", log, environment):
        yield f"{url}/?token=a-token", lambda page: None


PAGES = {name: partial(chapter, name) for name in ADDRESS} | {"voila": voila}


@pytest.fixture(scope="module", params=PAGES)
def mixer(
    request: pytest.FixtureRequest,
    chromium: Browser,
    artefacts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[MixerPage]:
    """The mixer on one of the pages, opened as a newcomer opens it, with a prompt that has neon."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    with PAGES[kind](folder, artefacts / f"{kind}.log") as (url, run):
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(CONTROL)
        mixer = MixerPage(page, kind)
        try:
            page.goto(url, timeout=CELLS)  # Voila answers when its cells have run
            run(page)
            mixer.part("draw").wait_for(timeout=CELLS)
            mixer.reached("the mixer is there")
            yield mixer
        finally:
            page.screenshot(path=artefacts / f"{kind}_at_the_end.png")
            (artefacts / f"{kind}_seconds.json").write_text(json.dumps(mixer.walk, indent=2) + "\n")
            page.close()


# ------------------------------------------------------------------ all widgets
@pytest.fixture(scope="module")
def gallery(
    chromium: Browser, artefacts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    """A notebook in JupyterLab with the widgets of `tests/gallery.py`, one cell each, all run."""
    folder = tmp_path_factory.mktemp("gallery")
    sources = [f"from tests.gallery import {name}\n\n{name}()" for name in GALLERY]
    cells = [new_markdown_cell("# The gallery"), *map(new_code_cell, sources)]
    (folder / "notebooks").mkdir()
    nbformat.write(tidy(new_notebook(cells=cells)), folder / "notebooks" / "gallery.ipynb")
    with jupyter("jupyterlab", folder, artefacts / "gallery.log") as address:
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(CONTROL)
        try:
            page.goto(f"{address}/gallery.ipynb")
            run_cells(page, len(cells))
            page.locator(f".sepme-{GALLERY[-1]}").wait_for(timeout=CELLS)
            for name in GALLERY:
                page.locator(f".sepme-{name}").screenshot(path=artefacts / f"gallery_{name}.png")
            yield page
        finally:
            page.screenshot(path=artefacts / "gallery_at_the_end.png")
            page.close()
