"""A Chromium, and the two pages on which the mixer is tried: JupyterLab and Voila."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from sepme.notebook import FOLDER
from tests.browser.mixer_page import MixerPage
from tests.browser.servers import free_port, serving, settled_in

#: The chapter that has the mixer.
CHAPTER = "04_decouple_compose_restore.ipynb"
#: Screenshots and logs of the last run, kept to be looked at.
ARTEFACTS = FOLDER.parent / "build" / "browser"
#: Nothing but the page itself: no GPU, no first-run pages, no traffic of the browser's own.
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --no-proxy-server"
).split()
#: Milliseconds until a control must answer, and until a page must have run its cells.
CONTROL, CELLS = 30_000, 180_000


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


# ------------------------------------------------------------------ the two pages
@contextmanager
def lab(folder: Path, log: Path) -> Iterator[tuple[str, Callable[[Page], None]]]:
    """JupyterLab on a copy of the notebooks, and what to do there until the mixer is to be seen."""
    shutil.copytree(FOLDER, folder / "notebooks")
    _forget_outputs(folder / "notebooks" / CHAPTER)
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
    command = [sys.executable, "-m", "jupyterlab", *(f"--{k}={v}" for k, v in options.items())]
    with serving(command, f"{url}/api/status", log, settled_in(folder)):
        yield f"{url}/lab/tree/{CHAPTER}", _run_to_the_mixer


def _forget_outputs(path: Path) -> None:
    """Whatever is seen of the notebook then was made by the kernel of the test."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)


def _run_to_the_mixer(page: Page) -> None:
    """Shift+Enter for each cell from the title to the mixer's: no code is typed."""
    cells = nbformat.read(FOLDER / CHAPTER, as_version=4).cells
    (mixers,) = (n for n, cell in enumerate(cells, 1) if cell.source.startswith("concept_mixer("))
    page.get_by_text("| Idle").wait_for()
    page.locator(".jp-Notebook").get_by_role("heading", level=1).click()
    for _ in range(mixers):
        page.keyboard.press("Shift+Enter")


@contextmanager
def voila(folder: Path, log: Path) -> Iterator[tuple[str, Callable[[Page], None]]]:
    """What `make app` serves, and nothing to do there but wait."""
    port = free_port()
    config = folder / "config_dir" / "voila.json"
    config.parent.mkdir(parents=True)
    config.write_text(
        json.dumps({"Voila": {"port": port, "port_retries": 0, "open_browser": False}})
    )
    url = f"http://127.0.0.1:{port}"
    command = ["make", "--directory", str(FOLDER.parent), "app"]
    with serving(command, f"{url}/voila/static/voila.js", log, settled_in(folder)):
        yield url, lambda page: None


PAGES = {"jupyterlab": lab, "voila": voila}


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
        page = chromium.new_page(viewport={"width": 1280, "height": 1100})
        page.set_default_timeout(CONTROL)
        mixer = MixerPage(page, kind)
        try:
            page.goto(url)
            run(page)
            mixer.part("draw").wait_for(timeout=CELLS)
            mixer.reached("the mixer is there")
            yield mixer
        finally:
            page.screenshot(path=artefacts / f"{kind}_at_the_end.png")
            (artefacts / f"{kind}_seconds.json").write_text(json.dumps(mixer.walk, indent=2) + "\n")
            page.close()
