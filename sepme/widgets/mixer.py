"""The concept mixer: tick what the model is to forget, draw, and compare before with after.

`Mixer` draws a `MixerState`, `render(state, drawing)` and `describe` show it. Classes of the
controls: `sepme-mixer-draw`, `-stop`, `-restore`, `-prompt`, `-object`, `-style`, `-seed`,
`-pictures`, `-steps`, `-progress`, `-status`, `-picture` (the `<img>`), and for each concept
`-tick-<name>` and `-strength-<name>`; for a concept without a delta `-new` and `-erase`.
"""

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from textwrap import fill as fill_lines
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from sepme.artefact import digest_of
from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Judge, Verdict
from sepme.composition import Composition
from sepme.concept import BOTH, OBJECT_PHOTO, PHOTO, STYLE_ONLY, Catalogue, Concept, fill, slug
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, ErasureStep, erase
from sepme.errors import SepmeError, SepmeWarning
from sepme.model import Backbone
from sepme.plots import ERASED, SKY, literal, show_picture
from sepme.training import Trainer
from sepme.widgets._parts import Report, Shell, Ticks, part, row

__all__ = ["concept_mixer"]

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
    """What the mixer is asked to draw."""

    prompt: str
    #: Concept to strength: 1 forgets it whole, 0.5 by half, below 0 exaggerates it.
    erased: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    pictures: int = 1  #: how many, from consecutive seeds
    steps: int = 25

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.pictures))


@dataclass(frozen=True, eq=False)
class Drawing:
    """What the model drew, `[n, 3, h, w]` in [0, 1], and what the judge, if any, sees in it."""

    before: Tensor
    after: Tensor
    seen: tuple[Verdict, Verdict] | None = None  #: before and after
    switch_seconds: float = 0.0  #: how long switching the deltas took
    remark: str = ""  #: names words that the model was never shown


@dataclass(frozen=True, eq=False)
class Mixer:
    """Draws states with one model. The deltas stay attached; a state only switches them."""

    backbone: Backbone
    judge: Judge | None
    deltas: dict[str, ConceptDelta]
    _originals: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def composition(self) -> Composition:
        """The one on the pipeline if it carries these very deltas, else a new one in its place."""
        there = self.backbone.composition
        on = there.deltas if there else {}
        if there and all(on.get(name) is delta for name, delta in self.deltas.items()):
            return there
        return Composition(self.backbone, self.deltas.values())

    def draw(self, state: MixerState, report: Report = lambda done, total: None) -> Drawing:
        """The pictures of a state; the pipeline is left as it was found.

        The pictures of the original model are drawn once for a prompt, seeds and steps. Those after
        erasing are always drawn, even where nothing is erased: that they are the same again is
        then a finding and not a memory.

        Raises:
            SepmeError: no prompt or one too long for the model, a concept without a delta, or two
                deltas that would interfere.
        """
        self._check(state.prompt)
        composition, generate = self.composition(), self.backbone.generate
        draw = partial(generate, [state.prompt] * state.pictures, state.seeds, steps=state.steps)
        before = composition.strengths
        try:
            start = time.perf_counter()
            composition.set(state.erased)  # refuses what cannot be erased, before drawing
            seconds = time.perf_counter() - start
            composition.set({})
            # One step tells whether the user changed the model meanwhile, in whatever way.
            glance = digest_of(None, {"": generate([state.prompt], state.seeds[:1], steps=1)})
            key = (state.prompt, state.seeds, state.steps, *self.backbone.sampler, glance)
            passes = 1 if key in self._originals else 2
            if key not in self._originals:
                self._originals[key] = draw(on_step=part(report, 0, passes))
            composition.set(state.erased)
            after = draw(on_step=part(report, passes - 1, passes))
        finally:
            composition.set(before)
        original = self._originals[key]
        seen = self.judge and (self.judge.judge(original), self.judge.judge(after))
        remark = self.backbone.vocabulary.remark([state.prompt]) or ""
        return Drawing(original, after, seen, seconds, remark)

    def _check(self, prompt: str) -> None:
        if not prompt:
            raise SepmeError("There is no prompt to draw: write one, like a boat in neon style.")
        if (sentence := self.backbone.cut([prompt])) is not None:
            raise SepmeError(sentence)


# ------------------------------------------------------------------ the picture
def render(state: MixerState, drawing: Drawing) -> Figure:
    """Before on the left, after on the right, and below them what the judge sees in both."""
    heading = fill_lines(f"“{state.prompt}”, {_seeds(state)}, {state.steps} steps", 70)
    if drawing.remark:
        heading += f"\n{fill_lines(drawing.remark, 80)}"
    after = fill_lines(_title(state), 34)
    titles = "before" + "\n" * after.count("\n"), after  # as many lines: the pictures are level
    lines = heading.count("\n") + after.count("\n")
    heights = [(2.2 if state.pictures == 2 else 3.6) + 0.16 * lines] + [2.7] * bool(drawing.seen)
    figure = Figure(figsize=(6.4, sum(heights)), dpi=120, layout="constrained")
    rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    rows[0].suptitle(heading, fontsize=9)
    left, right = rows[0].subfigures(1, 2)
    _pictures(left, drawing.before, titles[0], None)
    _pictures(right, drawing.after, titles[1], ERASED if state.erased else None)
    if drawing.seen:
        _bars(rows[1], drawing.seen)
    return literal(figure)


def _seeds(state: MixerState) -> str:
    first, last = state.seeds[0], state.seeds[-1]
    return f"seed {first}" if first == last else f"seeds {first} to {last}"


def _title(state: MixerState) -> str:
    """At most four names, or three and how many more there are."""
    names = [name if s == 1 else f"{name} × {s:g}" for name, s in state.erased.items()]
    if len(names) > 4:
        names = [*names[:3], f"{len(names) - 3} more"]
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"after, without {listed}" if names else "after, nothing erased"


def _pictures(figure: SubFigure, images: Tensor, title: str, frame: str | None) -> None:
    """One large picture, or up to four smaller ones."""
    figure.suptitle(title, fontsize=10, fontweight="bold")
    axes = figure.subplots(math.ceil(len(images) / 2), min(len(images), 2), squeeze=False).flatten()
    for ax, image in zip(axes, images, strict=False):
        show_picture(ax, image, frame)
    for ax in axes[len(images) :]:
        ax.set_axis_off()


def _bars(figure: SubFigure, seen: tuple[Verdict, Verdict]) -> None:
    """The judge's mean probability of every style, and below it of every object."""
    after = {"color": ERASED, "hatch": "////", "edgecolor": "white", "linewidth": 0}
    looks = (("before", -0.2, {"color": SKY}), ("after", 0.2, after))
    kinds = (("style", STYLE_NAMES), ("object", OBJECT_NAMES))
    for ax, (what, names) in zip(figure.subplots(2, 1), kinds, strict=True):
        at = np.arange(len(names))
        for verdict, (label, shift, look) in zip(seen, looks, strict=True):
            mean = getattr(verdict, f"{what}_probability").mean(0).numpy()
            ax.bar(at + shift, 100 * mean, 0.38, label=label, **look)
        ax.set_xticks(at, names, rotation=25, ha="right", rotation_mode="anchor", fontsize=8)
        ax.tick_params("y", labelsize=8)
        ax.set(ylim=(0, 105), yticks=(0, 50, 100))
        ax.set_ylabel(f"judge: {what}, %", fontsize=8.5)
        ax.spines[["top", "right"]].set_visible(False)
    look = {"frameon": False, "fontsize": 8.5, "ncols": 2}
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", **look)


def describe(state: MixerState, drawing: Drawing) -> str:
    """The figure in words."""
    many = "A picture" if state.pictures == 1 else f"{state.pictures} pictures"
    text = f"{many} of “{state.prompt}” from {_seeds(state)}, before and {_title(state)}."
    if drawing.seen:
        before, after = map(_likeliest, drawing.seen)
        text += f" Before, the judge sees {before}; after, {after}."
    return f"{text} {drawing.remark}" if drawing.remark else text


def _likeliest(verdict: Verdict) -> str:
    parts = (verdict.style_probability, STYLE_NAMES), (verdict.object_probability, OBJECT_NAMES)
    best = [(mean := p.mean(0), int(mean.argmax()), names) for p, names in parts]
    return " and ".join(f"{names[i]} ({100 * mean[i]:.0f} %)" for mean, i, names in best)


# ------------------------------------------------------------------ the shell
class ConceptMixer(Shell):
    """The controls around `Mixer` and `render`.

    Attributes:
        ticks, strengths: the check box and the field of each concept.
        draw, stop, restore: the buttons; `wait()` returns when what they began is done.
        picture: shows the figure; `picture.png` is its file.
        drawing: the latest `Drawing`.
    """

    def __init__(
        self, mixer: Mixer, catalogue: Catalogue | None, threaded: bool, example: bool
    ) -> None:
        first = "Tick what to forget" if mixer.deltas else "Name a concept and press Erase now"
        super().__init__("mixer", MixerState, f"{first}, then press Draw.", threaded=threaded)
        self.mixer, self.catalogue = mixer, catalogue or Catalogue({})
        self.drawing: Drawing | None = None
        self._drawn_state: MixerState | None = None
        self.choices, self.strength_fields = Ticks(self, "tick", "Forget"), row()
        self.ticks, self.strengths = self.choices.boxes, {}
        for name in mixer.deltas:
            self._add_concept(name)
        prompt, erasing, numbers, buttons = self._controls()
        self.background.locked = (self.draw, self.restore, self.erase)
        rows = prompt, self.choices, self.strength_fields, erasing, numbers, buttons
        self.arrange(*rows, beside=True)
        if example and mixer.deltas:
            self._example()

    @property
    def state(self) -> MixerState:
        prompt = " ".join(self.prompt.value.split())
        erased = {name: self.strengths[name].value for name in self.choices.value}
        return MixerState(prompt, erased, self.seed.value, self.pictures.value, self.steps.value)

    def changed(self) -> None:
        """Ask how strongly to forget what is ticked; grey a picture of something else."""
        self.strength_fields.children = [self.strengths[name] for name in self.choices.value]
        stale = self.drawing is not None and self.state != self._drawn_state
        if not self.background.running:
            other = "other settings: press Draw" if stale else "these settings"
            text = "Press Draw." if self.drawing is None else f"The picture is of {other}."
            remark = self.mixer.backbone.vocabulary.remark([self.state.prompt])
            self.status.say(f"{text} {remark or ''}".strip())
        self.picture.grey(stale)

    # -------------------------------------------------------------- what the buttons do
    def _example(self) -> None:
        """Draw what the first style (or concept) is, with and without it, before anybody asks."""
        kinds = {name: delta.provenance.kind for name, delta in self.mixer.deltas.items()}
        first = next((name for name, kind in kinds.items() if kind == "style"), next(iter(kinds)))
        with self.together():
            self.ticks[first].value = True
            if not self.prompt.value:  # no menu has written one
                self.prompt.value = self.mixer.deltas[first].provenance.forgotten[0]
        self._draw()
        self.wait()  # whatever comes next may use the model

    def _draw(self) -> None:
        self.background.start(partial(self._drawn, self.state), "Drawing ...")

    def _drawn(self, state: MixerState, report: Report) -> str:
        start = time.perf_counter()
        drawing = self.mixer.draw(state, report)
        self.picture.show(render(state, drawing), describe(state, drawing))
        self.drawing, self._drawn_state = drawing, state
        self.changed()  # somebody may have turned a control meanwhile
        text = (
            f"Drawn in {time.perf_counter() - start:.1f} s with {len(state.erased)} of "
            f"{len(self.ticks)} concepts erased; switching took "
            f"{1000 * drawing.switch_seconds:.0f} ms. {drawing.remark}"
        )
        return text.strip()

    def _restore(self) -> None:
        self.choices.set(False)
        self._draw()

    def _erase(self) -> None:
        work = partial(self._erased, self.new.value)
        self.background.start(work, "Drawing what the concept looks like ...")

    def _wanted(self, text: str) -> Concept:
        """The concept that was typed: the catalogue's, or the bare words."""
        try:
            concept = self.catalogue[text]
        except SepmeError:
            concept = Concept.from_text(text)
        if concept.name in self.ticks:
            raise SepmeError(f"'{concept.name}' has a delta already: tick it.")
        return concept

    def _erased(self, text: str, report: Report) -> str:
        concept = self._wanted(text)
        settings, start = PRESETS["default"], time.perf_counter()

        def callback(step: ErasureStep) -> None:
            report(step.iteration, settings.iterations)
            correlation = sum(step.correlation)
            self.status.say(f"Erasing {concept.name}: the correlation is {correlation:.2f}.")

        report(0, settings.iterations)
        # Without the "" that is always kept: given alone, it would ask for no warning.
        keep = [*filter(None, self.catalogue.kept_prompts([concept]))]
        trainer = Trainer(callback=callback, progress=False)
        with warnings.catch_warnings(record=True) as caught:  # for the status line
            warnings.simplefilter("always", SepmeWarning)
            delta = erase(self.mixer.backbone, concept, keep, settings, trainer=trainer)
        self.mixer.deltas[concept.name] = delta
        self._add_concept(concept.name)
        self.ticks[concept.name].value = True
        seconds = time.perf_counter() - start
        text = f"Erased {concept.name} in {seconds:.0f} s and ticked it: press Draw."
        return " ".join([text, *(str(warning.message) for warning in caught)])

    # -------------------------------------------------------------- what the controls are
    def _controls(self) -> tuple[widgets.Box, ...]:
        """The rows of the prompt, of one more concept, of numbers and of buttons."""
        concepts = self.catalogue.concepts
        free = [name for name in concepts if name not in self.mixer.deltas]
        most, steps = 2**31 - 1, self.mixer.backbone.steps
        wide, middle, short = ({"width": width} for width in ("98%", "260px", "116px"))
        self.menus = {}
        for kind in ("object", "style"):
            if names := [name for name, concept in concepts.items() if concept.kind == kind]:
                self.menus[kind] = self._menu(kind, names)
        self.control(widgets.Text, "prompt", "Prompt", "What to draw, in any words", layout=wide)
        self._fill_prompt()
        own = "What has no check box yet: a name, or words of your own"
        self.control(widgets.Combobox, "new", "Another concept", own, options=free, layout=middle)
        self.button("erase", "Erase now", "Train its delta; Stop ends it", self._erase)
        self.number("seed", "Seed", "The noise of the first picture", 0, max=most, layout=short)
        self.menu("pictures", "Pictures", "From consecutive seeds", range(1, 5), layout=short)
        coarse = {"min": 1, "max": max(50, steps), "layout": short}
        self.number("steps", "Steps", "Fewer are coarser", math.ceil(steps / 2), **coarse)
        self.button("draw", "Draw", "Draw before and after", self._draw, button_style="primary")
        self.button("restore", "Restore all", "Give all back, and draw", self._restore)
        return (
            row(*self.menus.values(), self.prompt),
            row(self.new, self.erase),
            row(self.seed, self.pictures, self.steps),
            row(self.draw, self.stop, self.restore, self.background.bar),
        )

    def _menu(self, kind: str, names: list[str]) -> widgets.Dropdown:
        """Objects or styles of the catalogue, which write the prompt; first one with a delta."""
        options = [NO_STYLE, *names] if kind == "style" else names
        first = next((name for name in self.mixer.deltas if name in names), options[0])
        more = {"value": first, "act": self._fill_prompt, "layout": {"width": "178px"}}
        return self.menu(kind, kind.capitalize(), f"The {kind} of the prompt", options, **more)

    def _fill_prompt(self) -> None:
        if self.menus:  # else the reader writes
            chosen = {kind: menu.value for kind, menu in self.menus.items()}
            self.prompt.value = prompt_of(chosen.get("object"), chosen.get("style"))

    def _add_concept(self, name: str) -> None:
        """A check box among those of its kind, and a field that is shown while it is ticked."""
        self.choices.add(name, self.mixer.deltas[name].provenance.kind)
        hook, tooltip = f"strength-{slug(name)}", "1 forgets it whole, 0 not, below 0 exaggerates"
        look = {"min": -1.0, "max": 2.0, "step": 0.25, "layout": {"width": "220px"}}
        self.strengths[name] = self.number(hook, f"Strength of {name}", tooltip, 1.0, **look)


def concept_mixer(
    backbone: Backbone,
    judge: Judge | None,
    catalogue: Catalogue | None,
    deltas: Mapping[str, ConceptDelta],
    *,
    threaded: bool = True,
    example: bool = True,
) -> ConceptMixer:
    """Tick which concepts are erased, and compare what the model draws before and after.

    Args:
        backbone: the model; it is left as it was found after every drawing.
        judge: says which style and object it sees; None for a model without one.
        catalogue: offers objects and styles for the prompt; None leaves free text.
        deltas: name to delta; each gets a check box.
        threaded: draw beside the kernel's own loop, so that Stop is heard; False draws inside the
            click. A cell that uses the same model right after a click waits first: `mixer.wait()`.
        example: open with the first style (or concept) erased and drawn; else wait for Draw.
    """
    return ConceptMixer(Mixer(backbone, judge, dict(deltas)), catalogue, threaded, example)
