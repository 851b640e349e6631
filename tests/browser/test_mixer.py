"""The mixer in JupyterLab, Notebook and Voila: erase, draw, restore, with mouse and keyboard."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.accessibility import CONTROLS, IMAGES, nameless, nodes
from tests.browser.mixer_page import MixerPage

STEPS = "8"
"""Enough for a picture that shows whether it has changed."""


@pytest.fixture(scope="module")
def opening(mixer: MixerPage, artefacts: Path) -> bytes:
    """The picture that is there before anybody has pressed anything."""
    opening = mixer.drawn()
    expect(mixer.root.locator(".sepme-stale")).to_have_count(0)
    assert "before and after, without " in mixer.picture.get_attribute("alt")
    mixer.root.scroll_into_view_if_needed()
    mixer.page.screenshot(path=artefacts / f"{mixer.kind}_opening.png")
    return opening


@pytest.fixture(scope="module")
def original(mixer: MixerPage, opening: bytes) -> bytes:
    """The picture of a neon boat while nothing is erased. Every test leaves it as it finds it."""
    mixer.choose("object", "boat")
    mixer.choose("style", "neon")
    mixer.write("steps", STEPS)
    mixer.press("restore")
    return mixer.drawn(other_than=opening)


def test_it_opens_with_a_picture_beside_the_controls(mixer: MixerPage, opening: bytes) -> None:
    """All of it can be seen at once in a window of 1280 x 900."""
    mixer.part("draw").scroll_into_view_if_needed()
    screen = mixer.page.viewport_size
    picture, box = mixer.picture.bounding_box(), mixer.root.bounding_box()
    assert box["height"] < 0.85 * screen["height"]
    for control in ("object", "prompt", "draw", "restore", "status"):
        place = mixer.part(control).bounding_box()
        assert place["x"] + place["width"] <= picture["x"]
        assert place["y"] + place["height"] <= screen["height"]


def test_what_has_changed_is_greyed_and_unknown_words_are_named(
    mixer: MixerPage, original: bytes, artefacts: Path
) -> None:
    prompt = mixer.part("prompt").get_by_role("textbox")
    before = prompt.input_value()
    prompt.fill("a photo of a unicorn")
    prompt.press("Tab")
    expect(mixer.part("status")).to_contain_text("'unicorn' means nothing to this model")
    expect(mixer.root.locator(".sepme-stale")).to_have_count(1)
    mixer.page.screenshot(path=artefacts / f"{mixer.kind}_greyed.png")
    prompt.fill(before)
    prompt.press("Tab")
    expect(mixer.root.locator(".sepme-stale")).to_have_count(0)


def test_what_is_erased_changes_and_comes_back(
    mixer: MixerPage, original: bytes, artefacts: Path
) -> None:
    mixer.tick("neon").check()
    mixer.press("draw")
    erased = mixer.drawn(other_than=original)
    mixer.reached("a concept is erased")
    assert "without neon" in mixer.picture.get_attribute("alt")
    mixer.root.screenshot(path=artefacts / f"{mixer.kind}_erased.png")
    mixer.press("restore")
    assert mixer.drawn(other_than=erased) == original
    expect(mixer.tick("neon")).not_to_be_checked()
    mixer.root.screenshot(path=artefacts / f"{mixer.kind}_restored.png")


def test_it_works_without_a_mouse(mixer: MixerPage, original: bytes) -> None:
    mixer.part("object").get_by_role("combobox").focus()
    reached = reach(mixer, "tick-neon")
    mixer.page.keyboard.press("Space")
    expect(mixer.tick("neon")).to_be_checked()
    mixer.part("strength-neon").wait_for()  # comes with the tick
    reached += reach(mixer, "draw")
    mixer.page.keyboard.press("Space")
    erased = mixer.drawn(other_than=original)
    reach(mixer, "restore")
    mixer.page.keyboard.press("Space")
    assert mixer.drawn(other_than=erased) == original
    others = "style prompt strength-neon new erase seed pictures steps".split()
    assert set(others) <= set(reached)


def reach(mixer: MixerPage, control: str, most: int = 60) -> list[str]:
    """Press Tab until a control has the focus; what had it on the way."""
    expect(mixer.part(control)).to_be_enabled()
    on_the_way = []
    while mixer.focused() != control:
        on_the_way.append(mixer.focused())
        assert len(on_the_way) < most, f"Tab never reached {control}, only {on_the_way}"
        mixer.page.keyboard.press("Tab")
    return on_the_way


def test_stop_is_heard_while_it_draws(mixer: MixerPage, original: bytes) -> None:
    mixer.choose("pictures", "4")
    mixer.write("steps", "50")
    mixer.press("draw")
    mixer.press("stop")  # waits until it can be pressed
    expect(mixer.part("status")).to_contain_text("Stopped")
    assert mixer.drawn() == original
    mixer.choose("pictures", "1")
    mixer.write("steps", STEPS)


def test_a_screen_reader_can_name_everything(mixer: MixerPage, original: bytes) -> None:
    mixer.tick("neon").check()  # its strength is a control too
    mixer.part("strength-neon").wait_for()
    roles = [node.role for node in nodes(mixer.root)]
    assert sum(role in CONTROLS for role in roles) > 20
    assert sum(role in IMAGES for role in roles) == 1
    assert nameless(mixer.root) == []
    assert "boat" in mixer.picture.get_attribute("alt")
    mixer.tick("neon").uncheck()


def test_what_has_no_name_is_found(blank: Page) -> None:
    blank.set_content(
        '<main><input type="range"><button>Draw</button><img src="data:," alt="a boat">'
        '<label>Seed <input type="number"></label><img src="data:,"><button>\uf04b</button></main>'
    )
    assert nameless(blank.locator("main")) == ["slider", "image", "button"]


def test_the_page_asks_no_other_machine(mixer: MixerPage) -> None:
    assert mixer.strangers == []


@pytest.mark.parametrize("mixer", ["voila"], indirect=True)
def test_the_page_of_its_own_shows_words_and_no_code(mixer: MixerPage) -> None:
    expect(mixer.page).to_have_title("Concept mixer")
    expect(mixer.page.get_by_role("heading", level=1)).to_contain_text("Concept mixer")
    expect(mixer.page.get_by_text("the small model that ships with sepme")).to_be_visible()
    expect(mixer.page.get_by_text("import")).to_have_count(0)
