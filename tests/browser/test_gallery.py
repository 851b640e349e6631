import pytest
from playwright.sync_api import Page

from tests.browser.accessibility import CONTROLS, IMAGES, nameless, nodes
from tests.browser.conftest import GALLERY


@pytest.mark.parametrize("name", GALLERY)
def test_x(gallery: Page, name, artefacts):
    root = gallery.locator(f".sepme-{name}")
    root.scroll_into_view_if_needed()
    root.screenshot(path=artefacts / f"gallery_{name}.png")
    print(name, [n for n in nodes(root) if n.role in CONTROLS | IMAGES])
    print({n.role for n in nodes(root)})
    print(root.locator(".sepme-decay-play").evaluate_all("e=>e.map(x=>x.outerHTML)"))
    assert nameless(root) == []
