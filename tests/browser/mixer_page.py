"""The mixer as somebody in front of the screen uses it, on whichever page it stands."""

import time
from base64 import b64decode, b64encode
from urllib.parse import urlsplit

from playwright.sync_api import Locator, Page, Request

#: Milliseconds that drawing may take before a test gives up.
DRAWING = 60_000
#: What the address of a picture begins with that stands in the page itself.
PNG = "data:image/png;base64,"


class MixerPage:
    """The controls by the classes that `sepme/widgets/mixer.py` documents.

    Attributes:
        strangers: addresses of other machines that the page asked for something.
        walk: what was reached after how many seconds from the ready server.
    """

    def __init__(self, page: Page, kind: str) -> None:
        self.page, self.kind, self.root = page, kind, page.locator(".sepme-mixer")
        self.strangers: list[str] = []
        self.walk: dict[str, float] = {}
        self._start = time.monotonic()
        page.on("request", self._note)

    def _note(self, request: Request) -> None:
        host = urlsplit(request.url).hostname
        if host not in (None, "127.0.0.1"):
            self.strangers.append(request.url)

    def reached(self, what: str) -> None:
        """Note how long it took to come here."""
        self.walk.setdefault(what, round(time.monotonic() - self._start, 1))

    def part(self, name: str) -> Locator:
        return self.root.locator(f".sepme-mixer-{name}")

    def tick(self, concept: str) -> Locator:
        return self.part(f"tick-{concept}").get_by_role("checkbox")

    def choose(self, menu: str, value: str) -> None:
        self.part(menu).get_by_role("combobox").select_option(value)

    def write(self, field: str, text: str) -> None:
        control = self.part(field).get_by_role("spinbutton")
        control.fill(text)
        control.press("Tab")  # a number is sent when its field is left

    def press(self, button: str) -> None:
        self.part(button).click()

    @property
    def picture(self) -> Locator:
        return self.part("picture")

    def drawn(self, other_than: bytes = b"") -> bytes:
        """The picture's file, byte for byte, once it is another one."""
        before = f"{PNG}{b64encode(other_than).decode()}"
        self.page.wait_for_function(
            """before => {
                const picture = document.querySelector("img.sepme-mixer-picture");
                return picture && picture.src !== before;
            }""",
            arg=before,
            timeout=DRAWING,
        )
        address = self.picture.get_attribute("src")
        assert address.startswith(PNG)
        return b64decode(address.removeprefix(PNG))

    def focused(self) -> str:
        """The class by which the control that has the focus is known, "" outside the mixer."""
        return self.page.evaluate(
            """() => {
                const inside = document.activeElement.closest(".sepme-mixer *");
                for (let e = inside; e && !e.matches(".sepme-mixer"); e = e.parentElement) {
                    const known = [...e.classList].find(c => c.startsWith("sepme-mixer-"));
                    if (known) return known.slice("sepme-mixer-".length);
                }
                return "";
            }"""
        )
