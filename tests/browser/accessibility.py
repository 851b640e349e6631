"""What a screen reader would find in a part of a page, by Chromium's own accessibility tree."""

from dataclasses import dataclass

from playwright.sync_api import Locator

CONTROLS = frozenset(
    "button checkbox combobox listbox radio searchbox slider spinbutton switch textbox".split()
)
IMAGES = frozenset(("image", "img"))


@dataclass(frozen=True)
class Node:
    """Something with a role, and the name that it is spoken of by."""

    role: str
    name: str


def nodes(part: Locator) -> list[Node]:
    """Everything inside `part` that the accessibility tree does not ignore."""
    session = part.page.context.new_cdp_session(part.page)
    part.evaluate("element => { window.askedFor = element; }")
    found = session.send("Runtime.evaluate", {"expression": "window.askedFor"})
    asked = {"objectId": found["result"]["objectId"]}
    tree = session.send("Accessibility.queryAXTree", asked)["nodes"]
    session.detach()
    return [
        Node(node["role"]["value"], node.get("name", {}).get("value", "").strip("\u200b \n"))
        for node in tree
        if not node["ignored"]
    ]


def nameless(part: Locator) -> list[str]:
    """The roles of the controls and images in `part` that no screen reader could name.

    A name needs a letter or a digit: an icon font's sign is a name of a kind, but is not spoken.
    """
    named = [node for node in nodes(part) if node.role in CONTROLS | IMAGES]
    return [node.role for node in named if not any(map(str.isalnum, node.name))]
