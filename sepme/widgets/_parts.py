"""What all widgets are made of: pictures with words for them, a status line, work one can stop.

A kernel reads one message at a time. While a handler of a button runs, no other click is heard, so
whatever takes longer than a moment runs as a `Job` in a thread of its own, and what needs a model
only one at a time: all widgets share one.
"""

import base64
import re
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from html import escape
from typing import Any

import ipywidgets as widgets
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sepme.errors import SepmeError, SepmeWarning
from sepme.plots import png

#: Called by long work with what is done and what there is to do; raises `Stopped` after Stop.
Report = Callable[[int, int], None]
#: Long work: takes a `Report`, returns what the status line says in the end.
Work = Callable[[Report], str]

#: Beside its label, a control takes what room there is.
LABEL = {"description_width": "initial"}
WIDE = "1000px"
#: Of a field for a number.
NARROW = {"width": "150px"}
#: One job at a time in this process, whichever widget it belongs to.
_ONE_AT_A_TIME = threading.Lock()


class Stopped(Exception):
    """Somebody pressed Stop."""


class Picture(widgets.HTML):
    """A figure as a PNG file inside an `<img>` element.

    `ipywidgets.Image` has no text for those who cannot see it; an element of our own has.

    Attributes:
        png: the file that is shown, b"" before the first.
        alt: the picture in words.
    """

    def __init__(self, hook: str, empty: str = "") -> None:
        super().__init__(f"<p>{escape(empty)}</p>")
        self.png, self.alt = b"", ""
        self.hook = hook
        self.add_class(f"{hook}-box")

    def show(self, figure: Figure, alt: str) -> None:
        """Replace the picture; the same figure always gives the same bytes."""
        self.png, self.alt = png(figure), alt
        data = base64.b64encode(self.png).decode()
        self.value = (
            f'<img class="{self.hook}" alt="{escape(alt)}" '
            f'style="width: 100%; max-width: {WIDE}" src="data:image/png;base64,{data}">'
        )


class Status(widgets.HTML):
    """One line that says what happens; screen readers speak it."""

    def __init__(self, hook: str, text: str) -> None:
        super().__init__()
        self.add_class(hook)
        self.say(text)

    def say(self, text: str) -> None:
        self.text = text
        self.value = f'<span role="status" aria-live="polite">{escape(text)}</span>'

    def complain(self, error: SepmeError) -> None:
        """What was wrong, marked by a word and not by colour alone."""
        self.say(f"⚠ {error}")


class Job:
    """Runs one piece of work at a time beside the kernel's own loop, with a bar and a Stop button.

    Args:
        hook: the bar's, the button's and the status line's classes begin with it.
        text: what the status line says before the first work.
        threaded: False runs the work inside `start`, which is easier to follow in a test.
        alone: wait for the work of other widgets to end; False for work that needs no model.
    """

    def __init__(self, hook: str, text: str, *, threaded: bool = True, alone: bool = True) -> None:
        self.bar = widgets.FloatProgress(
            max=1.0, description="Progress", style=LABEL, tooltip="How much is done"
        )
        self.bar.add_class(f"{hook}-progress")
        self.stop = button("Stop", "Stop what is going on", f"{hook}-stop")
        self.stop.disabled = True
        self.stop.on_click(lambda _: self._asked.set())
        self.status = Status(f"{hook}-status", text)
        self.on_change: Callable[[bool], None] = lambda running: None
        self._asked, self._threaded, self._alone = threading.Event(), threaded, alone
        self._thread: threading.Thread | None = None
        self._running = False

    @property
    def running(self) -> bool:
        return self._running

    def start(self, work: Work, text: str) -> None:
        """Begin, unless something is still running."""
        if self._running:
            return
        self._asked.clear()
        self._change(True)
        self.bar.value = 0.0
        self.status.say(text)
        if self._threaded:
            self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
            self._thread.start()
        else:
            self._run(work)

    def wait(self, timeout: float | None = None) -> None:
        """Return when nothing is running any more."""
        if self._thread is not None:
            self._thread.join(timeout)

    def pause(self, seconds: float) -> None:
        """Called by the work: wait, and raise `Stopped` as soon as Stop is pressed."""
        if self._asked.wait(seconds):
            raise Stopped

    def _run(self, work: Work) -> None:
        try:
            with _ONE_AT_A_TIME if self._alone else nullcontext():
                text = work(self._report)
            self.bar.value = 1.0
            self.status.say(text)
        except Stopped:
            self.bar.value = 0.0
            self.status.say("Stopped; nothing was changed.")
        except SepmeError as error:
            self.bar.value = 0.0
            self.status.complain(error)
        except Exception as error:  # a bug: nobody else would hear of it in this thread
            traceback.print_exc()
            self.status.say(f"⚠ This failed unexpectedly ({type(error).__name__}: {error}).")
        finally:
            self._change(False)

    def _change(self, running: bool) -> None:
        self._running = running
        self.stop.disabled = not running
        self.on_change(running)

    def _report(self, done: int, total: int) -> None:
        if self._asked.is_set():
            raise Stopped
        self.bar.value = done / total


@contextmanager
def remarks() -> Iterator[list[str]]:
    """What `SepmeWarning`s say within the block: for the status line, not for the cell's output."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SepmeWarning)
        yield said
    for warning in caught:
        if issubclass(warning.category, SepmeWarning):
            said.append(str(warning.message))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def control(
    kind: type[widgets.Widget], label: str, tooltip: str, hook: str, **options: Any
) -> widgets.Widget:
    """A control with its label, which acts when it is left or chosen and not before.

    No slider: what ipywidgets draws for one has no name that a screen reader could say.
    """
    if "continuous_update" in kind.class_trait_names():
        options["continuous_update"] = False
    made = kind(description=label, style=LABEL, **options)
    made.tooltip = tooltip
    return made.add_class(hook)


def button(text: str, tooltip: str, hook: str, *, primary: bool = False) -> widgets.Button:
    """A button that says in its tooltip what it does."""
    style = "primary" if primary else ""
    made = widgets.Button(description=text, tooltip=tooltip, button_style=style)
    return made.add_class(hook)


def check_box(name: str, tooltip: str, hook: str, *, value: bool = False) -> widgets.Checkbox:
    """One of many: in columns as long as their names are short, and never cut off."""
    wide = widgets.Layout(width="auto", min_width="150px")
    return control(widgets.Checkbox, name, tooltip, hook, value=value, indent=False, layout=wide)


def slug(name: str) -> str:
    """A name as part of a class: "atelier seal" gives "atelier-seal"."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def row(*children: widgets.Widget, gap: str = "2px 12px") -> widgets.Box:
    """Controls beside one another, in as many lines as they need."""
    layout = widgets.Layout(
        display="flex", flex_flow="row wrap", grid_gap=gap, align_items="center"
    )
    return widgets.Box(children, layout=layout)


def labelled(text: str, *controls: widgets.Widget) -> widgets.Box:
    """A heading on the left, and its controls in neat lines beside it."""
    heading = widgets.HTML(f"<b>{escape(text)}</b>", layout=widgets.Layout(flex="0 0 140px"))
    return widgets.HBox([heading, row(*controls, gap="0 12px")])


def titled(label: str, image: Tensor, ax: Axes, frame: str | None = None) -> None:
    """One picture `[3, h, w]` in [0, 1], enlarged without smoothing, with words above it."""
    ax.set(xticks=[], yticks=[])
    if label:
        ax.set_title(label, fontsize=10)
    ax.imshow(image.clamp(0, 1).movedim(0, -1).numpy(), interpolation="nearest")
    ax.spines[:].set(visible=frame is not None, color=frame, linewidth=3)
