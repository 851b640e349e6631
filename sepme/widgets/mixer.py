"""The concept mixer: tick what the model is to forget, draw, and compare before with after.

* `MixerState`: what is asked for. Plain data.
* `Mixer`: draws it. All deltas are put on the pipeline once; switching takes milliseconds.
* `render(state, drawing)`: both pictures and the judge's bars, as a figure; `describe` in words.
* `ConceptMixer`, made by `concept_mixer(...)`: the controls. Their classes for tests and styles are
  `sepme-mixer-draw`, `-stop`, `-restore`, `-prompt`, `-object`, `-style`, `-seed`, `-pictures`,
  `-steps`, `-progress`, `-status`, `-picture` (the `<img>`), and for each concept
  `-tick-<name>` and `-strength-<name>`; for a concept without a delta `-new` and `-erase`.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Judge, Verdict
from sepme.composition import Composition
from sepme.concept import BOTH, OBJECT_PHOTO, PHOTO, STYLE_ONLY, Catalogue, Concept, fill
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, Step, erase
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.plots import ERASED, SKY
from sepme.training import Trainer
from sepme.widgets._parts import (
    WIDE,
    Job,
    Picture,
    Report,
    button,
    check_box,
    control,
    labelled,
    remarks,
    row,
    slug,
    titled,
)

MOST_PICTURES = 4
#: What the menu calls a picture in no style.
NO_STYLE = "photo"


# ------------------------------------------------------------------ the state
def prompt_of(thing: str | None, style: str | None) -> str:
    """The words for an object in a style, for either alone (`NO_STYLE` is none), or for nothing."""
    style = None if style == NO_STYLE else style
    if thing and style:
        return fill(BOTH[0], thing, style)
    if style:
        return fill(STYLE_ONLY[0], style=style)
    return fill(OBJECT_PHOTO[0], thing) if thing else PHOTO


@dataclass(frozen=True)
class MixerState:
    """What the mixer is asked to draw.

    Raises:
        SepmeError: no prompt, or a number of pictures or steps that cannot be drawn.
    """

    prompt: str
    erased: Mapping[str, float] = field(default_factory=dict)
    """Concept to strength: 1 forgets it whole, 0.5 by half, below 0 exaggerates it."""
    seed: int = 0
    pictures: int = 1
    """How many, from consecutive seeds."""
    steps: int = 25

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise SepmeError("There is no prompt to draw: write one, like a boat in neon style.")
        if not 1 <= self.pictures <= MOST_PICTURES:
            raise SepmeError(f"{self.pictures} pictures are not possible: ask for 1 to 4.")
        if self.steps < 1:
            raise SepmeError(f"steps = {self.steps} draws nothing: give at least 1.")

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.pictures))


@dataclass(frozen=True, eq=False)
class Drawing:
    """What the model drew, `[n, 3, h, w]` in [0, 1], and what the judge, if any, sees in it."""

    before: Tensor
    after: Tensor
    seen_before: Verdict | None = None
    seen_after: Verdict | None = None


class Mixer:
    """Draws states with one model. The deltas stay attached; a state only switches them.

    Attributes:
        last_switch_seconds: how long the latest switch took, not a number before the first.
    """

    def __init__(
        self, backbone: Backbone, judge: Judge | None, deltas: Mapping[str, ConceptDelta]
    ) -> None:
        self.backbone, self.judge = backbone, judge
        self.deltas = dict(deltas)
        self.last_switch_seconds = math.nan
        self._originals: dict[tuple[str, tuple[int, ...], int], Tensor] = {}

    def composition(self) -> Composition:
        """The one on the pipeline if it carries these very deltas, else a new one in its place."""
        there = self.backbone.composition
        if there is None or any(
            there.deltas.get(name) is not delta for name, delta in self.deltas.items()
        ):
            there = Composition(self.backbone, self.deltas.values())
        return there

    def switch(self, composition: Composition, strengths: Mapping[str, float]) -> None:
        """Erase exactly these concepts, and take the time."""
        start = time.perf_counter()
        composition.set(strengths)
        self.last_switch_seconds = time.perf_counter() - start

    def draw(self, state: MixerState, report: Report = lambda done, total: None) -> Drawing:
        """The pictures of a state; the pipeline is left as it was found.

        The pictures of the original model are drawn once a prompt, seeds and steps. Those after
        erasing are always drawn, even where nothing is erased: that they are the same again is
        then a finding and not a memory.

        Raises:
            SepmeError: a prompt too long for the model, a concept without a delta, or two deltas
                that would interfere.
        """
        self._check(state.prompt)
        composition = self.composition()
        before = composition.strengths
        key = (state.prompt, state.seeds, state.steps)
        passes = 1 if key in self._originals else 2
        try:
            self.switch(composition, state.erased)  # refuses what cannot be erased, before drawing
            if passes == 2:
                with self.backbone.original():
                    self._originals[key] = self._generate(state, report, 0, passes)
            after = self._generate(state, report, passes - 1, passes)
        finally:
            composition.set(before)
        original = self._originals[key]
        return Drawing(original, after, self._seen(original), self._seen(after))

    def _generate(self, state: MixerState, report: Report, earlier: int, passes: int) -> Tensor:
        def on_step(done: int, total: int) -> None:
            report(earlier * total + done, passes * total)

        prompts = [state.prompt] * state.pictures
        return self.backbone.generate(prompts, state.seeds, steps=state.steps, on_step=on_step)

    def _seen(self, images: Tensor) -> Verdict | None:
        return self.judge.judge(images) if self.judge is not None else None

    def _check(self, prompt: str) -> None:
        room = self.backbone.tokens
        tokenizer = self.backbone.pipe.tokenizer
        if len(tokenizer(prompt, truncation=True, max_length=room + 1).input_ids) > room:
            raise SepmeError(
                f"The prompt is longer than the {room - 2} tokens that the model reads: shorten it."
            )


# ------------------------------------------------------------------ the picture
def render(state: MixerState, drawing: Drawing) -> Figure:
    """Before on the left, after on the right, and below them what the judge sees in both."""
    judged = drawing.seen_before is not None and drawing.seen_after is not None
    heights = [2.8 if state.pictures == 2 else 4.2] + [2.2] * judged  # two stand in one line
    figure = Figure(figsize=(10, sum(heights)), dpi=100, layout="constrained")
    rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    left, right = rows[0].subfigures(1, 2)
    _pictures(left, drawing.before, "before", None)
    _pictures(right, drawing.after, _title(state), ERASED if state.erased else None)
    if judged:
        _bars(rows[1], drawing.seen_before, drawing.seen_after)
    return figure


def _title(state: MixerState) -> str:
    named = [name if s == 1 else f"{name} × {s:g}" for name, s in state.erased.items()]
    return f"after, without {_listed(named)}" if named else "after, nothing erased"


def _listed(names: list[str], most: int = 4) -> str:
    shown = names if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _pictures(part: SubFigure, images: Tensor, title: str, frame: str | None) -> None:
    """One large picture, or up to four smaller ones."""
    columns = 1 if len(images) == 1 else 2
    grid = part.subplots(math.ceil(len(images) / columns), columns, squeeze=False).flatten()
    part.suptitle(title, fontsize=12, fontweight="bold")
    for ax in grid[len(images) :]:
        ax.set_axis_off()
    for ax, image in zip(grid, images, strict=False):
        titled("", image, ax, frame)


def _bars(part: SubFigure, before: Verdict, after: Verdict) -> None:
    """The judge's mean probability of every style and of every object."""
    style, object_ = part.subplots(1, 2, sharey=True)
    pairs = (
        (style, "style", STYLE_NAMES, before.style_probability, after.style_probability),
        (object_, "object", OBJECT_NAMES, before.object_probability, after.object_probability),
    )
    for ax, what, names, first, second in pairs:
        at = np.arange(len(names))
        ax.bar(at - 0.2, 100 * first.mean(0).numpy(), 0.38, color=SKY, label="before")
        ax.bar(
            at + 0.2,
            100 * second.mean(0).numpy(),
            0.38,
            color=ERASED,
            hatch="////",
            edgecolor="white",
            linewidth=0,
            label="after",
        )
        ax.set_xticks(at, names, rotation=40, ha="right", rotation_mode="anchor", fontsize=9)
        ax.set(title=f"which {what} the judge sees", ylim=(0, 105))
        ax.spines[["top", "right"]].set_visible(False)
    style.set_ylabel("probability, %" if len(before.style) == 1 else "mean probability, %")
    part.legend(*style.get_legend_handles_labels(), loc="outside right", frameon=False, fontsize=9)


def describe(state: MixerState, drawing: Drawing) -> str:
    """The figure in words."""
    many = "A picture" if state.pictures == 1 else f"{state.pictures} pictures"
    text = f"{many} of “{state.prompt}” from seed {state.seed}, before and {_title(state)}."
    if drawing.seen_before is None or drawing.seen_after is None:
        return text
    return (
        f"{text} Before, the judge sees {_likeliest(drawing.seen_before)}; "
        f"after, {_likeliest(drawing.seen_after)}."
    )


def _likeliest(verdict: Verdict) -> str:
    parts = (verdict.style_probability, STYLE_NAMES), (verdict.object_probability, OBJECT_NAMES)
    best = [(mean := p.mean(0), int(mean.argmax()), names) for p, names in parts]
    return " and ".join(f"{names[i]} ({100 * mean[i]:.0f} %)" for mean, i, names in best)


# ------------------------------------------------------------------ the shell
class ConceptMixer(widgets.VBox):
    """The controls around `Mixer` and `render`.

    Attributes:
        ticks, strengths: the check box and the field of each concept.
        draw, stop, restore: the buttons; `wait()` returns when what they began is done.
        picture: shows the figure; `picture.png` is its file.
        drawing: the latest `Drawing`.
    """

    def __init__(
        self,
        backbone: Backbone,
        judge: Judge | None,
        catalogue: Catalogue | None,
        deltas: Mapping[str, ConceptDelta],
        *,
        threaded: bool = True,
    ) -> None:
        self.mixer, self.catalogue = Mixer(backbone, judge, deltas), catalogue
        self.drawing: Drawing | None = None
        self.ticks: dict[str, widgets.Checkbox] = {}
        self.strengths: dict[str, widgets.BoundedFloatText] = {}
        first = "Tick what to forget" if deltas else "Name a concept and press Erase now"
        self.job = Job("sepme-mixer", f"{first}, then press Draw.", threaded=threaded)
        self.status, self.stop = self.job.status, self.job.stop
        self.job.on_change = self._busy
        self.picture = Picture("sepme-mixer-picture", "No picture yet.")
        self._make_prompt()
        self._make_numbers(backbone.steps)
        self._make_buttons()
        self.choices = widgets.VBox()
        self.strength_fields = row()
        for name in deltas:
            self._add_concept(name)
        self._arrange()
        super().__init__(self._children(), layout=widgets.Layout(max_width=WIDE))
        self.add_class("sepme-mixer")

    @property
    def state(self) -> MixerState:
        """What the controls say now.

        Raises:
            SepmeError: see `MixerState`.
        """
        ticked = [name for name, tick in self.ticks.items() if tick.value]
        return MixerState(
            prompt=" ".join(self.prompt.value.split()),
            erased={name: self.strengths[name].value for name in ticked},
            seed=self.seed.value,
            pictures=self.pictures.value,
            steps=self.steps.value,
        )

    @property
    def last_switch_seconds(self) -> float:
        return self.mixer.last_switch_seconds

    def wait(self, timeout: float | None = None) -> None:
        """Return when nothing is being drawn or erased any more."""
        self.job.wait(timeout)

    # -------------------------------------------------------------- what the buttons do
    def _draw(self, _: object = None) -> None:
        try:
            state = self.state
        except SepmeError as error:
            self.status.complain(error)
            return
        self.job.start(lambda report: self._drawn(state, report), "Drawing ...")

    def _drawn(self, state: MixerState, report: Report) -> str:
        start = time.perf_counter()
        self.drawing = self.mixer.draw(state, report)
        self.picture.show(render(state, self.drawing), describe(state, self.drawing))
        seconds = time.perf_counter() - start
        text = (
            f"Drawn in {seconds:.1f} s with {len(state.erased)} of {len(self.ticks)} concepts "
            f"erased; switching took {1000 * self.last_switch_seconds:.0f} ms."
        )
        remark = self.mixer.backbone.vocabulary.remark([state.prompt])
        return f"{text} {remark}" if remark else text

    def _restore(self, _: object) -> None:
        for tick in self.ticks.values():
            tick.value = False
        self._draw()

    def _erase(self, _: object) -> None:
        try:
            concept = self._wanted()
        except SepmeError as error:
            self.status.complain(error)
            return
        text = f"Erasing {concept.name}: drawing what it looks like ..."
        self.job.start(lambda report: self._erased(concept, report), text)

    def _wanted(self) -> Concept:
        """The concept that was typed: the catalogue's, or the bare words."""
        text = self.new.value
        if not text.strip():
            raise SepmeError("No concept was named: write one, like watercolor.")
        try:
            concept = self.catalogue[text] if self.catalogue else Concept.from_text(text)
        except SepmeError:
            concept = Concept.from_text(text)
        if concept.name in self.ticks:
            raise SepmeError(f"'{concept.name}' has a delta already: tick it.")
        return concept

    def _erased(self, concept: Concept, report: Report) -> str:
        settings, start = PRESETS["default"], time.perf_counter()

        def callback(step: Step) -> None:
            report(step.iteration, settings.iterations)
            self.status.say(
                f"Erasing {concept.name}: the correlation is {sum(step.correlation):.2f}."
            )

        report(0, settings.iterations)
        keep = self.catalogue.kept_prompts([concept]) if self.catalogue else ("",)
        with remarks() as said:
            delta = erase(
                self.mixer.backbone,
                concept,
                keep,
                settings,
                trainer=Trainer(callback=callback, progress=False),
            )
        self.mixer.deltas[concept.name] = delta
        self._add_concept(concept.name)
        self._arrange()
        self.ticks[concept.name].value = True
        seconds = time.perf_counter() - start
        text = f"Erased {concept.name} in {seconds:.0f} s and ticked it: press Draw."
        return " ".join([text, *said])

    def _busy(self, running: bool) -> None:
        for each in (self.draw, self.restore, self.erase):
            each.disabled = running

    # -------------------------------------------------------------- what the controls are
    def _make_prompt(self) -> None:
        kinds = {"object": self._named("object"), "style": self._named("style")}
        if kinds["style"]:
            kinds["style"].insert(0, NO_STYLE)
        self.menus = {
            kind: control(
                widgets.Dropdown,
                kind.capitalize(),
                f"The {kind} of the prompt",
                f"sepme-mixer-{kind}",
                options=names,
                value=next((name for name in self.mixer.deltas if name in names), names[0]),
            )
            for kind, names in kinds.items()
            if names
        }
        self.prompt = control(
            widgets.Text,
            "Prompt",
            "What to draw, in your own words",
            "sepme-mixer-prompt",
            placeholder="write what to draw",
            layout=widgets.Layout(flex="1 1 420px"),
        )
        for menu in self.menus.values():
            menu.observe(self._fill_prompt, "value")
        if self.menus:  # else the reader writes
            self._fill_prompt()

    def _named(self, kind: str) -> list[str]:
        """The catalogue's concepts of one kind."""
        known = self.catalogue.concepts.values() if self.catalogue else ()
        return [concept.name for concept in known if concept.kind == kind]

    def _fill_prompt(self, _: object = None) -> None:
        chosen = {kind: menu.value for kind, menu in self.menus.items()}
        self.prompt.value = prompt_of(chosen.get("object"), chosen.get("style"))

    def _make_numbers(self, steps: int) -> None:
        narrow = widgets.Layout(width="150px")
        self.seed = control(
            widgets.BoundedIntText,
            "Seed",
            "The starting noise of the first picture",
            "sepme-mixer-seed",
            max=2**31 - 1,
            layout=narrow,
        )
        self.pictures = control(
            widgets.Dropdown,
            "Pictures",
            "How many, from consecutive seeds",
            "sepme-mixer-pictures",
            options=range(1, MOST_PICTURES + 1),
            layout=narrow,
        )
        self.steps = control(
            widgets.BoundedIntText,
            "Steps",
            "Sampling steps: fewer are quicker and coarser",
            "sepme-mixer-steps",
            value=steps,
            min=1,
            max=max(50, steps),
            layout=narrow,
        )

    def _make_buttons(self) -> None:
        self.draw = button("Draw", "Draw before and after", "sepme-mixer-draw", primary=True)
        self.draw.on_click(self._draw)
        self.restore = button("Restore all", "Give all back, and draw", "sepme-mixer-restore")
        self.restore.on_click(self._restore)
        known = self.catalogue.concepts if self.catalogue else ()
        self.new = control(
            widgets.Combobox,
            "Another concept",
            "What to erase that has no check box yet",
            "sepme-mixer-new",
            placeholder="a name, or words of your own",
            layout=widgets.Layout(width="350px"),
            options=tuple(name for name in known if name not in self.mixer.deltas),
        )
        self.erase = button("Erase now", "Train its delta; Stop ends it", "sepme-mixer-erase")
        self.erase.on_click(self._erase)

    def _add_concept(self, name: str) -> None:
        self.ticks[name] = check_box(name, f"Forget {name}", f"sepme-mixer-tick-{slug(name)}")
        self.strengths[name] = control(
            widgets.BoundedFloatText,
            f"Strength of {name}",
            "1 forgets it whole, 0 not at all, below 0 exaggerates it",
            f"sepme-mixer-strength-{slug(name)}",
            value=1.0,
            min=-1.0,
            max=2.0,
            step=0.25,
            layout=widgets.Layout(width="220px"),
        )
        self.ticks[name].observe(self._ticked, "value")

    def _ticked(self, _: object) -> None:
        """A field for the strength of what is ticked, and of nothing else."""
        ticked = [self.strengths[name] for name, tick in self.ticks.items() if tick.value]
        self.strength_fields.children = ticked

    def _arrange(self) -> None:
        """The check boxes by kind: styles, objects, and whatever else there is."""
        kinds: dict[str, list[widgets.Checkbox]] = {}
        for name, tick in self.ticks.items():
            kinds.setdefault(self.mixer.deltas[name].provenance.kind, []).append(tick)
        self.choices.children = [
            labelled(f"Forget {kind}s", *ticks) for kind, ticks in kinds.items()
        ]

    def _children(self) -> list[widgets.Widget]:
        return [
            row(*self.menus.values(), self.prompt),
            self.choices,
            self.strength_fields,
            row(self.new, self.erase),
            row(self.seed, self.pictures, self.steps),
            row(self.draw, self.stop, self.restore, self.job.bar),
            self.status,
            self.picture,
        ]


def concept_mixer(
    backbone: Backbone,
    judge: Judge | None,
    catalogue: Catalogue | None,
    deltas: Mapping[str, ConceptDelta],
    *,
    threaded: bool = True,
) -> ConceptMixer:
    """Tick which concepts are erased, and compare what the model draws before and after.

    Args:
        backbone: the model; it is left as it was found after every drawing.
        judge: says which style and object it sees; None for a model without one.
        catalogue: offers objects and styles for the prompt; None leaves free text.
        deltas: name to delta; each gets a check box.
        threaded: draw beside the kernel's own loop, so that Stop is heard; False draws inside the
            click. A cell that uses the same model right after a click waits first: `mixer.wait()`.
    """
    return ConceptMixer(backbone, judge, catalogue, deltas, threaded=threaded)
