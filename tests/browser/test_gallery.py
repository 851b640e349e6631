"""All widgets in JupyterLab: what their controls are called, and how keys move them."""

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.accessibility import CONTROLS, IMAGES, nameless, nodes
from tests.browser.conftest import GALLERY

#: All that can be chosen, filled in or pressed, as a screen reader names it, in its order.
NAMES = {
    "mixer": "Object, Style, Prompt, Van Gogh, Picasso, english springer, Another concept, "
    "Erase now, Seed, Pictures, Steps, Draw, Stop, Restore all",
    "budget": "Forget, Tolerance, Keep all, Keep none, neon, ink, oil, boat",
    "decay": "Training, Iteration, Timestep, Play, Stop",
    "pair": "Erased, Drawn, Draw its pictures, Stop",
    "stop": "Training, α, α as a number, τ, τ as a number, Earliest stop",
}


@pytest.fixture
def widget(gallery: Page, request: pytest.FixtureRequest) -> Locator:
    found = gallery.locator(f".sepme-{request.param}")
    found.scroll_into_view_if_needed()
    return found


@pytest.mark.parametrize(("widget", "names"), NAMES.items(), indirect=["widget"])
def test_a_screen_reader_can_name_everything(widget: Locator, names: str) -> None:
    assert nameless(widget) == []
    found = nodes(widget)
    assert [node.name for node in found if node.role in CONTROLS] == names.split(", ")
    assert sum(node.role in IMAGES for node in found) == 1


@pytest.mark.parametrize("widget", GALLERY, indirect=True)
def test_tab_reaches_all_that_is_enabled(widget: Locator) -> None:
    enabled = widget.locator(
        ":is(:is(button, input, select):enabled, [role=slider], [contenteditable=true])"
    )
    enabled.first.focus()
    for index in range(enabled.count()):
        expect(enabled.nth(index)).to_be_focused()
        widget.page.keyboard.press("Tab")
    assert not widget.evaluate("element => element.contains(document.activeElement)")


def says(widget: Locator, text: str) -> None:
    """What the status line says and what the picture shows is the same, in words."""
    expect(widget.get_by_role("status")).to_contain_text(text)
    expect(widget.get_by_role("img")).to_have_attribute(
        "alt", widget.get_by_role("status").inner_text()
    )


@pytest.mark.parametrize("widget", ["budget"], indirect=True)
def test_a_tolerance_is_chosen_without_a_mouse(widget: Locator) -> None:
    for arrow, tolerance in (("ArrowDown", "0.1"), ("ArrowUp", "0.05")):
        for key in ("Space", arrow, "Enter"):  # the arrow alone would leave the notebook's cell
            widget.get_by_label("Tolerance").press(key)
        says(widget, f"at tolerance {tolerance}")


@pytest.mark.parametrize("widget", ["stop"], indirect=True)
def test_arrows_turn_the_knobs_of_the_stop_rule_in_round_steps(widget: Locator) -> None:
    knobs = (("τ", "ArrowUp", "τ = 0.11,"), ("α", "ArrowLeft", "α = 0.89 and"))
    for label, step, text in knobs:
        widget.get_by_role("slider", name=label).press(step)
        says(widget, text)
    for label, value in (("τ", "0.1"), ("α", "0.9")):
        field = widget.get_by_role("textbox", name=f"{label} as a number")
        field.fill(value)
        field.press("Enter")
    says(widget, "With α = 0.9 and τ = 0.1,")


@pytest.mark.parametrize("widget", ["decay"], indirect=True)
def test_the_decay_is_chosen_and_played(widget: Locator) -> None:
    iteration = widget.get_by_role("slider", name="Iteration")
    iteration.press("ArrowRight")
    says(widget, "after 2 iterations")
    expect(iteration).to_have_attribute("aria-valuetext", "2")
    play = widget.get_by_role("button", name="Play")
    play.press("Space")  # from here to the end
    says(widget, "after 4 iterations")
    expect(play).to_be_enabled()
    play.press("Space")  # from the beginning
    expect(iteration).to_have_attribute("aria-valuetext", "0")
    widget.get_by_role("button", name="Stop").click()
    expect(play).to_be_enabled()
    says(widget, "iterations")


@pytest.mark.parametrize("widget", ["pair"], indirect=True)
def test_a_pair_is_chosen_in_the_map_and_drawn(widget: Locator) -> None:
    cells = widget.locator(".sepme-pair-map")  # two rows of three
    size = cells.bounding_box()
    for row, column, pair in ((1, 0, "ink on the prompts of neon"), (0, 2, "neon on the prompts")):
        place = {"x": size["width"] * (column + 0.5) / 3, "y": size["height"] * (row + 0.5) / 2}
        cells.click(position=place)
        says(widget, f"The delta of {pair}")
    widget.get_by_label("Drawn").select_option("ink")  # and without a mouse
    says(widget, "on the prompts of ink")
    picture = widget.get_by_role("img")
    before = picture.get_attribute("src")
    widget.get_by_role("button", name="Draw its pictures").press("Space")
    expect(picture).not_to_have_attribute("src", before)
