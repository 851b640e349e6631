"""What all widgets share: labelled controls, a status line, a picture, work that can be stopped.

A kernel reads one message at a time. While a handler of a button runs, no other click is heard, so
whatever takes longer than a moment runs as a `BackgroundTask` in a thread of its own. Work that
needs a model waits its turn, as a cell that draws does: they share one lock (`sepme.model.IN_USE`).
"""

import base64
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from html import escape
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from sepme._words import in_html
from sepme.concept import slug
from sepme.errors import SepmeError
from sepme.model import IN_USE
from sepme.plots import png

#: Called by long work with what is done and what there is to do; raises `Stopped` after Stop.
Report = Callable[[int, int], None]
LABEL = {"description_width": "initial"}
#: ipywidgets gives a slider no name for screen readers. Whenever a picture has loaded, this script
#: gives each slider its label's name and its value in words, and its arrow keys, which JupyterLab
#: would take.
NAMES = """
const shell = this.closest('.{shell}');
const name = () => shell.querySelectorAll('.widget-slider').forEach(slider => {{
  const label = slider.querySelector('.widget-label').textContent;
  const readout = slider.querySelector('.widget-readout');
  const handle = slider.querySelector('.noUi-handle');
  handle.setAttribute('aria-label', label);
  handle.setAttribute('aria-valuetext', readout.textContent);
  handle.setAttribute('data-lm-suppress-shortcuts', 'true');
  if (slider.matches('.fixed-places')) readout.contentEditable = 'false';  // it would not act
  else for (const [key, value] of [['role', 'textbox'], ['aria-label', label + ' as a number']])
    readout.setAttribute(key, value);
}});
name();
setTimeout(name, 1000);"""
WIDE = "1000px"
NARROW, MENU, SLIDER, AUTO = ({"width": wide} for wide in ("150px", "240px", "280px", "auto"))


class Stopped(Exception):
    """Somebody pressed Stop."""


class Picture(widgets.HTML):
    """A figure as a PNG file inside an `<img>` element, with words for those who cannot see it."""

    def __init__(self, hook: str) -> None:
        super().__init__("<p>No picture yet.</p>")
        self.png, self.alt, self.stale, self.hook = b"", "", False, hook
        self.add_class(f"{hook}-picture-box")

    def show(self, figure: Figure, alt: str, over: Callable[[Figure], str] = lambda _: "") -> None:
        """Replace the picture; `over` gives the HTML of what lies over the drawn figure."""
        self.png, self.alt = png(figure), alt
        data = base64.b64encode(self.png).decode()
        names = escape(NAMES.format(shell=self.hook))
        self.value = (
            "<style>.sepme-stale img { opacity: 0.35; filter: grayscale(1); }</style>"
            f'<div style="position: relative; max-width: {WIDE}">'
            f'<img class="{self.hook}-picture" alt="{escape(alt)}" '
            f'style="display: block; width: 100%" onload="{names}" '
            f'src="data:image/png;base64,{data}">{over(figure)}</div>'
        )
        self.grey(False)

    def grey(self, stale: bool) -> None:
        """Grey the picture while the controls say something else than what it shows."""
        self.stale = stale
        (self.add_class if stale else self.remove_class)("sepme-stale")


class Status(widgets.HTML):
    """One line that says what happens; screen readers speak it."""

    text = ""

    def say(self, text: str) -> None:
        self.text = text
        self.value = f'<span role="status" aria-live="polite">{escape(text)}</span>'


class BackgroundTask:
    """Runs one piece of work at a time beside the kernel's own loop, with a bar and a Stop button.

    Args:
        threaded: False runs the work inside `start`, which is easier to follow in a test.
        alone: wait for the work of other widgets to end; False for work that needs no model.
    """

    def __init__(
        self, hook: str, status: Status, *, threaded: bool = True, alone: bool = True
    ) -> None:
        self.bar = widgets.FloatProgress(
            max=1.0, description="Progress", style=LABEL, tooltip="How much is done"
        ).add_class(f"{hook}-progress")
        self.stop = widgets.Button(
            description="Stop", tooltip="Stop what is going on", disabled=True, layout=AUTO
        ).add_class(f"{hook}-stop")
        self.stop.on_click(lambda _: self._stop_asked.set())
        #: Controls that are disabled while the work runs.
        self.locked: tuple[widgets.Widget, ...] = ()
        self.status, self.running = status, False
        self._lock = IN_USE if alone else nullcontext()
        self._stop_asked, self._threaded = threading.Event(), threaded
        self._thread = threading.Thread()

    def start(self, work: Callable[[Report], str], text: str) -> None:
        """Begin, unless something is still running. `work` returns the last status line."""
        if self.running:
            return
        self._stop_asked.clear()
        self._set_running(True, 0.0)
        self.status.say(text)
        if self._threaded:
            self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
            self._thread.start()
        else:
            self._run(work)

    def wait(self, timeout: float | None = None) -> None:
        """Return when nothing is running any more.

        Raises:
            SepmeError: the work waits for the caller, who holds the model.
        """
        if not self.running:
            return
        if self._lock is IN_USE and IN_USE._is_owned():
            raise SepmeError(
                "This widget waits until the model is free, and the with block around this line "
                "holds it: leave the block first."
            )
        self._thread.join(timeout)

    def pause(self, seconds: float) -> None:
        """Called by the work: wait, and raise `Stopped` as soon as Stop is pressed."""
        if self._stop_asked.wait(seconds):
            raise Stopped

    def _report(self, done: int, total: int) -> None:
        self.pause(0)
        self.bar.value = done / total

    def _run(self, work: Callable[[Report], str]) -> None:
        done = 0.0
        try:
            with self._lock:
                text = work(self._report)
            done = 1.0
        except Stopped:
            text = "Stopped; nothing was changed."
        except SepmeError as error:
            text = f"⚠ {error}"
        except Exception as error:  # a bug: nobody else would hear of it in this thread
            traceback.print_exc()
            text = f"⚠ This failed unexpectedly ({type(error).__name__}: {error})."
        self.status.say(text)
        self._set_running(False, done)

    def _set_running(self, running: bool, done: float) -> None:
        self.running, self.bar.value, self.stop.disabled = running, done, not running
        for control in self.locked:
            control.disabled = running


def part(report: Report, index: int, parts: int) -> Report:
    """The report of one of several equal parts of the work."""
    return lambda done, total: report(index * total + done, parts * total)


class Shell(widgets.VBox):
    """Controls, a status line and a picture of the state that the controls say.

    `control` makes a control, which becomes the attribute of its name; its class for tests and
    styles is `sepme-<widget>-<name>`. `arrange` puts rows of controls above the picture. After a
    control has got another value, `changed` is called, which a subclass defines.
    """

    def __init__(self, name: str, state: type, text: str = "", **task: bool) -> None:
        super().__init__(layout={"max_width": WIDE})
        self.hook, self.state_type = f"sepme-{name}", state
        self.add_class(self.hook)
        self.status = Status().add_class(f"{self.hook}-status")
        self.status.say(text)
        self.picture = Picture(self.hook)
        self.background = BackgroundTask(self.hook, self.status, **task)
        self.stop, self.wait = self.background.stop, self.background.wait
        self._quiet = True  # until the controls are complete

    def arrange(self, *rows: widgets.Widget, beside: bool = False) -> "Shell":
        """The picture comes below the controls, or beside them where there is room."""
        self.children = [*rows, self.status, self.picture]
        if beside:
            self.layout.max_width = "1240px"
            self.picture.layout = {"flex": "1 1 420px", "max_width": "660px"}
            left = widgets.VBox([*rows, self.status], layout={"flex": "1 1 360px"})
            self.children = [row(left, self.picture, gap="4px 16px", align="flex-start")]
        self._quiet = False
        return self

    @property
    def state(self) -> Any:
        """What the controls say now: each field of the state is the control of its name."""
        names = [field.name for field in fields(self.state_type)]
        return self.state_type(**{name: getattr(self, name).value for name in names})

    @contextmanager
    def together(self) -> Iterator[None]:
        """Many controls get a value within the block; `changed` is called once, after it."""
        before, self._quiet = self._quiet, True
        yield
        self._quiet = before
        self._on_value()

    def _on_value(self, _: object = None) -> None:
        if not self._quiet:
            self.changed()

    def control(
        self, kind: Any, name: str, label: str, tooltip: str, *, act: Any = None, **options: Any
    ) -> Any:
        """A control with a label. A new value calls `act`, or else `changed`."""
        if "continuous_update" in kind.class_trait_names():
            options["continuous_update"] = False
        words = {"description": in_html(label), "description_allow_html": True, "tooltip": tooltip}
        made = kind(**words, style=LABEL, **options)
        made.observe((lambda _: act()) if act else self._on_value, "value")
        setattr(self, name, made.add_class(f"{self.hook}-{name}"))
        return made

    def menu(self, name: str, label: str, tooltip: str, options: Any, **more: Any) -> Any:
        return self.control(widgets.Dropdown, name, label, tooltip, options=options, **more)

    def number(self, name: str, label: str, tooltip: str, value: float, **more: Any) -> Any:
        whole = isinstance(value, int)
        kind = widgets.BoundedIntText if whole else widgets.BoundedFloatText
        return self.control(kind, name, label, tooltip, value=value, **{"layout": NARROW} | more)

    def slider(self, name: str, label: str, tooltip: str, value: float, **more: Any) -> Any:
        more = {"layout": SLIDER, "readout_format": ".3g", "value": value} | more
        return self.control(widgets.FloatSlider, name, label, tooltip, **more)

    def steps(self, name: str, label: str, tooltip: str, options: Any) -> Any:
        """A slider whose places have the values of `options`; `index` counts them."""
        look = {"layout": SLIDER, "options": options}
        made = self.control(widgets.SelectionSlider, name, label, tooltip, **look)
        return made.add_class("fixed-places")

    def button(self, name: str, label: str, tooltip: str, act: Callable, **more: Any) -> Any:
        made = widgets.Button(description=label, tooltip=tooltip, layout=AUTO, **more)
        made.on_click(lambda _: act())
        setattr(self, name, made.add_class(f"{self.hook}-{name}"))
        return made


class Explorer(Shell):
    """A shell that shows every new state at once.

    `data(state)` is what there is to show, `render(state, *data)` the figure and
    `describe(state, *data)` its words; `over(figure)` is the HTML that lies over the picture.
    """

    over = staticmethod(lambda _: "")

    def __init__(
        self, name: str, state: type, render: Any, describe: Any, data: Any, **task: bool
    ) -> None:
        super().__init__(name, state, **task)
        self.render, self.describe, self.data = render, describe, data

    def arrange(self, *rows: widgets.Widget) -> "Explorer":
        super().arrange(*rows).changed()
        return self

    def changed(self) -> None:
        state = self.state
        try:
            data = self.data(state)
            words = self.describe(state, *data)
            self.picture.show(self.render(state, *data), words, self.over)
            self.status.say(words)
        except SepmeError as error:
            self.status.say(f"⚠ {error}")
            self.picture.grey(True)


class Ticks(widgets.VBox):
    """A check box for each concept, in lines by kind."""

    def __init__(self, shell: Shell, name: str, verb: str) -> None:
        super().__init__()
        self.shell, self.name, self.verb = shell, name, verb
        self.boxes: dict[str, widgets.Checkbox] = {}
        self._lines: dict[str, widgets.Box] = {}

    @property
    def value(self) -> tuple[str, ...]:
        """The concepts that are ticked and can be."""
        return tuple(n for n, box in self.boxes.items() if box.value and not box.disabled)

    def add(self, concept: str, kind: str, *, value: bool = False) -> None:
        if kind not in self._lines:
            heading = f"<b>{escape(f'{self.verb} {kind}s')}</b>"
            self._lines[kind] = row(gap="0 8px")
            self.children += (widgets.HTML(heading), self._lines[kind])
        name, tooltip = f"{self.name}-{slug(concept)}", f"{self.verb} {concept}"
        look = {"indent": False, "layout": {"width": "auto", "min_width": "112px"}}
        box = self.shell.control(widgets.Checkbox, name, concept, tooltip, value=value, **look)
        self.boxes[concept] = box
        self._lines[kind].children += (box,)

    def set(self, value: bool) -> None:
        """Tick all or none."""
        with self.shell.together():
            for box in self.boxes.values():
                box.value = value


def row(*children: widgets.Widget, gap: str = "2px 12px", align: str = "center") -> widgets.Box:
    """Controls beside one another, in as many lines as they need."""
    layout = {"display": "flex", "flex_flow": "row wrap", "grid_gap": gap, "align_items": align}
    return widgets.Box(children, layout=layout)
