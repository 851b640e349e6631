"""The widgets: what they draw from a state, and what their controls do, without a browser."""

import ast
import base64
import importlib
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from itertools import pairwise
from pathlib import Path

import ipywidgets
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.cbook import is_math_text
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

import sepme
from sepme.composition import Composition, applied
from sepme.concept import Catalogue, Concept
from sepme.correlation import Momentum
from sepme.erasure import PRESETS, erase
from sepme.errors import warn
from sepme.model import Backbone
from sepme.nullspace import null_space
from sepme.plots import correlation_decay, png, recorded_decay
from sepme.probe import Recording
from sepme.scenes import published
from sepme.widgets import (
    BudgetState,
    PairState,
    ResultsState,
    StopRuleState,
    budget,
    concept_mixer,
    decay_player,
    interference,
    interference_explorer,
    mixer,
    null_space_budget,
    results,
    results_explorer,
    stop_rule,
    stop_rule_playground,
)
from sepme.widgets._parts import BackgroundTask, Shell, Status, Stopped
from sepme.widgets.decay_player import DecayState
from sepme.widgets.decay_player import describe as describe_moment
from sepme.widgets.decay_player import render as render_moment
from sepme.widgets.mixer import ConceptMixer, Mixer, MixerState
from tests.gallery import CATALOGUE, DELTAS, FREE, FREE_DELTAS, LOSSES, REPORT, Eye, short_recording
from tests.miniature import NEON, QUICK, fresh
from tests.refusals import refused
from tests.tolerance import assert_close

PROMPT = "neon boat"


@pytest.fixture(scope="module")
def model() -> Backbone:
    return fresh()


@pytest.fixture(autouse=True)
def _taken_off(model: Backbone) -> Iterator[None]:
    yield
    if model.composition is not None:
        model.composition.close()


@pytest.fixture
def shell(model: Backbone) -> ConceptMixer:
    """A mixer of the miniature model that draws inside the click."""
    made = concept_mixer(model, Eye(), CATALOGUE, DELTAS, threaded=False, example=False)
    made.prompt.value, made.steps.value = PROMPT, 2
    return made


def drawing(pictures: int = 1, judged: bool = True, shift: float = 0.3) -> mixer.Drawing:
    before = torch.rand(pictures, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.5
    after = before + shift
    seen = (Eye().judge(before), Eye().judge(after)) if judged else None
    return mixer.Drawing(before, after, seen)


def shown(figure: Figure) -> list:
    """The pictures and maps of a figure, in their order."""
    return [image for ax in figure.findobj(Axes) for image in ax.images]


def words(figure: Figure) -> str:
    """All text that is drawn."""
    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_visible())


def tree(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    """A widget and everything inside it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from tree(child)


def headings(widget: ipywidgets.Widget) -> str:
    return " ".join(part.value for part in tree(widget) if isinstance(part, ipywidgets.HTML))


# ---------------------------------------------------------------- the package
def test_without_ipywidgets_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith("sepme.widgets")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with refused("ipywidgets", "sepme[lab]"):
        importlib.import_module("sepme.widgets")


def test_nothing_else_needs_ipywidgets() -> None:
    folder = Path(sepme.__file__).parent
    files = set(folder.rglob("*.py")) - set((folder / "widgets").glob("*.py"))
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    modules = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    modules |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert "torch" in modules  # the search would find it
    assert not any(name.split(".")[0] == "ipywidgets" for name in modules)


# ---------------------------------------------------------------- what all widgets share
def task(threaded: bool = False) -> BackgroundTask:
    return BackgroundTask("x", Status(), threaded=threaded)


def test_one_thing_is_done_at_a_time_until_it_is_stopped() -> None:
    background, done = task(), []

    def work(report: object) -> str:
        background.start(lambda _: done.append("inner") or "", "again")
        report(1, 4)
        assert background.bar.value == 0.25
        background.stop.click()
        with pytest.raises(Stopped):
            report(2, 4)
        return "noticed"

    background.start(work, "begin")
    assert background.status.text == "noticed"
    assert done == []
    background.start(lambda _: done.append("later") or "", "again")
    assert done == ["later"]


def test_a_failure_nobody_expected_is_not_silent(capsys: pytest.CaptureFixture) -> None:
    background = task()
    background.locked = (button := ipywidgets.Button(),)

    def fail(_: object) -> str:
        assert button.disabled
        raise RuntimeError("out of paint")

    background.start(fail, "begin")
    assert "RuntimeError: out of paint" in background.status.text
    assert "Traceback" in capsys.readouterr().err
    assert not button.disabled


@pytest.fixture
def all_six(model: Backbone, recording: Recording, shell: ConceptMixer) -> list[Shell]:
    return [
        shell,
        null_space_budget(model, CATALOGUE),
        decay_player({"neon": recording}),
        interference_explorer(REPORT, model),
        stop_rule_playground({"a": LOSSES}),
        results_explorer(published()[:0], published()),
    ]


def test_every_control_has_a_label_a_tooltip_and_a_class(all_six: list[Shell]) -> None:
    for widget in all_six:
        parts = list(tree(widget))
        controls = [p for p in parts if not isinstance(p, ipywidgets.Box | ipywidgets.HTML)]
        assert len(controls) >= 4
        for part in controls:
            assert part.description, part
            assert part.tooltip, part
            assert any(name.startswith("sepme-") for name in part._dom_classes), part
            assert not getattr(part, "continuous_update", False), part
        classes = [name for part in parts for name in part._dom_classes if "sepme-" in name]
        assert len(classes) == len(set(classes))  # each leads to one place


def test_every_picture_has_words(all_six: list[Shell]) -> None:
    all_six[0].draw.click()
    for widget in all_six:
        assert len(widget.picture.alt) > 40
        assert f'alt="{widget.picture.alt[:20]}' in widget.picture.value
        assert base64.b64encode(widget.picture.png).decode() in widget.picture.value
        assert widget.picture.png.startswith(b"\x89PNG")
        assert not widget.picture.stale


# ---------------------------------------------------------------- what every picture is like
def faults(figure: Figure) -> list[str]:
    """Whether anything is cut off by the edge, and whether a legend lies over a line or a bar."""
    png(figure)  # puts everything in its place
    edge, needed = figure.bbox_inches.padded(0.02), figure.get_tightbbox()
    cut_off = not (edge.contains(*needed.min) and edge.contains(*needed.max))
    axes = figure.findobj(Axes)
    lines = [line for ax in axes for line in ax.lines]
    paths = [line.get_transform().transform_path(line.get_path()) for line in lines]
    stacks = [c for ax in axes for c in ax.containers if isinstance(c, BarContainer)]
    bars = [bar.get_window_extent() for stack in stacks for bar in stack]
    boxes = [legend.get_window_extent() for legend in figure.findobj(Legend)]
    over = any(
        box.count_overlaps(bars) or any(path.intersects_bbox(box, filled=False) for path in paths)
        for box in boxes
    )
    level = [[t for t in ax.get_xticklabels() if t.get_rotation() == 0] for ax in axes]
    names = [[t.get_window_extent() for t in texts if t.get_text()] for texts in level]
    together = any(a.x1 > b.x0 for row in names for a, b in pairwise(row) if a.width and b.width)
    found = {"something is cut off": cut_off, "a legend lies over data": over}
    return [name for name, is_so in (found | {"names run together": together}).items() if is_so]


@pytest.fixture
def pictures(model: Backbone, recording: Recording) -> list[Figure]:
    """One of each widget, with long names."""
    many = dict.fromkeys(("english springer", "Vincent van Gogh", "pointillism", "ink", "oil"), 0.5)
    prompt = "a painting of an english springer in the style of Vincent van Gogh, by night"
    state, pair = BudgetState("neon", ("ink", "boat"), 1e-4), PairState("neon", "oil")
    when = [(iteration, recording.timesteps[0]) for iteration in recording.iterations]
    return [
        mixer.render(MixerState(prompt, many, pictures=4), drawing(4)),
        mixer.render(
            MixerState(prompt, many), replace(drawing(), remark="The word 'night' is new.")
        ),
        budget.render(state, budget.measure(model, CATALOGUE, state)),
        *(render_moment(DecayState("neon", *moment), recording) for moment in when),
        interference.render(pair, REPORT, (torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8))),
        stop_rule.render(StopRuleState("a", 0.5, 0.3, earliest=1), LOSSES),
        results.render(ResultsState(), published()[:0], published()),
    ]


def test_no_text_is_cut_off_and_nothing_lies_over_another(pictures: list[Figure]) -> None:
    assert [faults(figure) for figure in pictures] == [[]] * len(pictures)


def test_a_fault_of_a_picture_would_be_found() -> None:
    figure = Figure(figsize=(2, 2))
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], label="a line")
    ax.legend(loc="center")
    ax.set_title("a title that is much longer than its figure is wide")
    ax.set_xticks([0.4, 0.5], ["a long name", "another one"])
    assert len(faults(figure)) == 3


def test_a_training_has_the_same_colours_in_every_figure(recording: Recording) -> None:
    figures = {
        "chapter 00": correlation_decay({"neon": recording.steps}, Figure().subplots()).figure,
        "chapter 03": recorded_decay(recording, Figure().subplots()).figure,
        "player": render_moment(DecayState("neon", 4, recording.timesteps[0]), recording),
        "playground": stop_rule.render(StopRuleState("a"), recording.losses),
    }
    for widest in (0.8, 2):  # each iteration, and their momentum
        looks = set()
        for figure in figures.values():
            n = [step.iteration for step in recording.steps]
            lines = [line for ax in figure.axes for line in ax.lines]
            (line,) = (
                one for one in lines if list(one.get_xdata()) == n and one.get_linewidth() == widest
            )
            looks.add((line.get_color(), line.get_linestyle(), line.get_alpha()))
        assert len(looks) == 1


# ---------------------------------------------------------------- the mixer: hooks
def test_the_mixer_has_the_hooks_that_its_module_promises(shell: ConceptMixer) -> None:
    names = set(re.findall(r"-(\w+)`", mixer.__doc__)) | {"tick-neon", "strength-neon"}
    shell.ticks["neon"].value = True
    classes = {name for part in tree(shell) for name in part._dom_classes}
    assert len(names) > 15
    assert {f"sepme-mixer-{name}" for name in names - {"picture"}} <= classes
    assert "sepme-mixer-strength-ink" not in classes


# ---------------------------------------------------------------- the mixer: picture
@pytest.mark.parametrize("pictures", [1, 2, 3, 4])
def test_the_pictures_are_the_drawing_s_before_left_of_after(pictures: int) -> None:
    made = drawing(pictures)
    figure = mixer.render(MixerState(PROMPT, {"neon": 1.0}, 3, pictures), made)
    images = shown(figure)
    assert len(images) == 2 * pictures
    for image, expected in zip(images, [*made.before, *made.after], strict=True):
        assert_close(torch.as_tensor(image.get_array().data), expected.movedim(0, -1))
    figure.canvas.draw()
    lefts = [image.axes.get_window_extent().x0 for image in images]
    assert max(lefts[:pictures]) < min(lefts[pictures:])
    framed = [image.axes.spines["left"].get_visible() for image in images]
    assert framed == [False] * pictures + [True] * pictures  # something was erased
    seeds = "seed 3, " if pictures == 1 else f"seeds 3 to {2 + pictures}, "
    assert f"“{PROMPT}”, {seeds}25 steps" in words(figure)


def test_the_bars_are_the_judge_s_probabilities() -> None:
    made = drawing(2)
    figure = mixer.render(MixerState(PROMPT, pictures=2), made)
    containers = [container for ax in figure.findobj(Axes) for container in ax.containers]
    heights = [[bar.get_height() / 100 for bar in container] for container in containers]
    expected = [
        probability.mean(0)
        for what in ("style", "object")
        for probability in (getattr(seen, f"{what}_probability") for seen in made.seen)
    ]
    assert_close(torch.tensor(heights), torch.stack(expected))
    assert heights[0] != heights[1]  # the eye does tell the two apart


def test_a_model_without_a_judge_has_no_bars() -> None:
    state = MixerState(PROMPT)
    for judged in (True, False):
        assert ("judge" in words(mixer.render(state, drawing(judged=judged)))) == judged
        assert ("the judge sees" in mixer.describe(state, drawing(judged=judged))) == judged


@pytest.mark.parametrize(
    ("erased", "text"),
    [
        ({}, "nothing erased"),
        ({"neon": 1.0, "ink": 0.5}, "without neon and ink × 0.5"),
        (dict.fromkeys("abcd", 1), "without a, b, c and d"),
        (dict.fromkeys("abcde", 1), "without a, b, c and 2 more"),
    ],
)
def test_the_words_name_what_is_erased(erased: dict[str, float], text: str) -> None:
    state = MixerState(PROMPT, erased)
    assert f"after, {text}." in mixer.describe(state, drawing())
    figure = mixer.render(state, drawing())
    assert f"after, {text} " in " ".join(words(figure).split())
    assert any(image.axes.spines["left"].get_visible() for image in shown(figure)) == bool(erased)


@pytest.mark.parametrize("name", ["Li$a", "Pa$$el", "$1_000_$", "under_score", "per%cent"])
def test_a_name_is_drawn_as_it_is(name: str) -> None:
    figure = mixer.render(MixerState(f"a {name}", {name: 1.0}), drawing())
    assert png(figure)
    drawn = [text for text in figure.findobj(Text) if name in text.get_text()]
    assert len(drawn) == 2
    assert not any(t.get_parse_math() and is_math_text(t.get_text()) for t in drawn)


def test_the_same_drawing_gives_the_same_file_and_another_one_another() -> None:
    files = [png(mixer.render(MixerState(PROMPT), drawing(shift=s))) for s in (0.3, 0.3, 0.31)]
    assert files[0] == files[1] != files[2]


# ---------------------------------------------------------------- the mixer: drawing
def test_drawing_leaves_the_pipeline_as_it_found_it(model: Backbone) -> None:
    there = Composition(model, DELTAS.values())
    there.erase("ink")
    made = Mixer(model, None, DELTAS).draw(MixerState(PROMPT, {"neon": 1.0}, steps=2))
    assert model.composition is there  # it carries these very deltas: no need for another one
    assert there.strengths == {"ink": 1.0}
    with there.erased("neon"):
        expected = model.generate([PROMPT], 0, steps=2)
    assert torch.equal(made.after, expected)
    assert not torch.equal(made.after, made.before)
    assert 0 < made.switch_seconds < 1


def test_a_composition_without_the_deltas_makes_way(model: Backbone) -> None:
    Composition(model, [DELTAS["ink"]])
    Mixer(model, None, DELTAS).draw(MixerState(PROMPT, {"neon": 1.0}, steps=2))
    assert set(model.composition.deltas) == set(DELTAS)


def test_the_original_is_drawn_once_and_what_follows_always(
    model: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, counts, drawn = Mixer(model, None, DELTAS), [], []
    generate = model.generate

    def counted(*of: object, steps: int, **how: object) -> Tensor:
        drawn.append(steps)
        return generate(*of, steps=steps, **how)

    monkeypatch.setattr(model, "generate", counted)
    state = MixerState(PROMPT, steps=2)
    for each in (state, replace(state, erased={"neon": 1.0}), state, replace(state, seed=7)):
        engine.draw(each)
        counts.append(drawn.count(2))
    assert counts == [2, 3, 4, 6]
    assert drawn.count(1) == 4  # a glance at the model each time


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (MixerState(""), "no prompt"),
        (MixerState("boat " * 9), "9 tokens and this model reads 8"),
        (MixerState(PROMPT, {"swirl": 1.0}), "No delta of 'swirl'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_drawing(
    model: Backbone, monkeypatch: pytest.MonkeyPatch, state: MixerState, why: str
) -> None:
    monkeypatch.setattr(model, "generate", lambda *a, **k: pytest.fail("drawn all the same"))
    with refused(why):
        Mixer(model, None, DELTAS).draw(state)


# ---------------------------------------------------------------- the mixer: opening
def test_it_opens_with_a_style_erased_and_drawn(model: Backbone) -> None:
    deltas = {name: FREE_DELTAS[name] for name in ("english springer", "Van Gogh", "Picasso")}
    shell = concept_mixer(model, None, None, deltas)  # no menus, which would write a prompt
    assert not shell.background.running  # a next cell may use the model
    assert shell.state.erased == {"Van Gogh": 1.0}  # the first that is a style
    assert shell.prompt.value == deltas["Van Gogh"].provenance.forgotten[0]
    assert shell.picture.alt == mixer.describe(shell.state, shell.drawing)
    assert "without Van Gogh" in shell.picture.alt
    assert not shell.picture.stale
    assert not torch.equal(shell.drawing.before, shell.drawing.after)
    assert model.composition.active == ()


@pytest.mark.parametrize(("deltas", "example"), [({}, True), (DELTAS, False)])
def test_without_a_delta_or_a_wish_nothing_is_drawn(
    model: Backbone, deltas: dict, example: bool
) -> None:
    shell = concept_mixer(model, None, None, deltas, threaded=False, example=example)
    assert shell.picture.png == b""
    assert shell.state.erased == {}


def test_controls_and_picture_stand_side_by_side_where_there_is_room(shell: ConceptMixer) -> None:
    (line,) = shell.children
    left, right = line.children
    assert right is shell.picture
    assert {shell.prompt, shell.draw, shell.status, shell.ticks["neon"]} < set(tree(left))
    assert line.layout.flex_flow == "row wrap"


# ---------------------------------------------------------------- the mixer: controls
def test_ticking_changes_the_picture_and_unticking_gives_it_back(shell: ConceptMixer) -> None:
    shell.draw.click()
    first = shell.picture.png
    assert torch.equal(shell.drawing.before, shell.drawing.after)
    for undo in (lambda: setattr(shell.ticks["neon"], "value", False), shell.restore.click):
        shell.ticks["neon"].value = True
        shell.draw.click()
        assert shell.picture.png != first
        assert shell.picture.alt == mixer.describe(shell.state, shell.drawing)
        assert not torch.equal(shell.drawing.before, shell.drawing.after)
        undo()
        shell.draw.click()
        assert shell.picture.png == first
        assert not any(tick.value for tick in shell.ticks.values())


def test_a_picture_of_other_settings_is_greyed(shell: ConceptMixer) -> None:
    shell.ticks["neon"].value = True
    assert not shell.picture.stale  # there is none yet
    shell.draw.click()
    strength = shell.strengths["neon"]
    changes = ((shell.ticks["ink"], True), (strength, 0.5), (shell.prompt, "boat"), (shell.seed, 3))
    for control, value in changes:
        before = control.value
        control.value = value
        assert shell.picture.stale
        assert "press Draw" in shell.status.text
        control.value = before
        assert not shell.picture.stale
        assert "of these settings" in shell.status.text
    shell.seed.value = 3
    shell.draw.click()
    assert not shell.picture.stale


def test_a_control_that_is_turned_while_it_draws_leaves_a_grey_picture(shell: ConceptMixer) -> None:
    shell.background.bar.observe(lambda _: setattr(shell.seed, "value", 5), "value")
    shell.draw.click()
    assert shell.picture.stale
    assert "from seed 0" in shell.picture.alt
    assert shell.status.text.startswith("Drawn")


def test_strength_counts_and_is_asked_for_what_is_ticked(shell: ConceptMixer) -> None:
    assert shell.strength_fields.children == ()
    shell.ticks["neon"].value = True
    assert shell.strength_fields.children == (shell.strengths["neon"],)
    changes = []
    for shell.strengths["neon"].value in (0.0, 0.5, 1.0):
        shell.draw.click()
        changes.append(float((shell.drawing.after - shell.drawing.before).abs().mean()))
    assert 0 == changes[0] < changes[1] < changes[2]


def test_seed_pictures_steps_and_words_of_one_s_own_are_what_is_drawn(
    shell: ConceptMixer, model: Backbone
) -> None:
    shell.seed.value, shell.pictures.value, shell.steps.value = 5, 2, 3
    shell.prompt.value = "  oil   cat "
    shell.draw.click()
    assert torch.equal(shell.drawing.before, model.generate(["oil cat"] * 2, [5, 6], steps=3))


def test_a_bad_prompt_is_answered_in_the_status_line(
    shell: ConceptMixer, capsys: pytest.CaptureFixture
) -> None:
    shell.draw.click()
    first = shell.picture.png
    shell.prompt.value = "boat " * 9
    shell.draw.click()
    assert "9 tokens and this model reads 8" in shell.status.text
    assert escape(shell.status.text) in shell.status.value
    assert shell.picture.png == first
    assert shell.picture.stale
    assert not shell.draw.disabled
    assert capsys.readouterr().err == ""


def test_deltas_that_would_interfere_are_answered_in_the_status_line(model: Backbone) -> None:
    provenance = replace(DELTAS["neon"].provenance, kept=("",))
    deltas = DELTAS | {"neon": replace(DELTAS["neon"], provenance=provenance)}
    shell = concept_mixer(model, None, CATALOGUE, deltas, threaded=False)
    shell.prompt.value, shell.steps.value = PROMPT, 2
    shell.ticks["neon"].value = shell.ticks["ink"].value = True
    shell.draw.click()
    assert "interfere" in shell.status.text
    shell.ticks["ink"].value = False
    shell.draw.click()
    assert "Drawn" in shell.status.text


def test_the_status_line_tells_of_the_switch_and_of_unknown_words(shell: ConceptMixer) -> None:
    shell.ticks["neon"].value = True
    shell.draw.click()
    assert "1 of 3 concepts erased" in shell.status.text
    took = f"switching took {1000 * shell.drawing.switch_seconds:.0f} ms"
    assert took in shell.status.text
    assert shell.background.bar.value == 1.0
    assert "means nothing" not in shell.status.text
    shell.prompt.value = "neon cup"
    assert "press Draw. The word 'cup' means nothing to this model" in shell.status.text
    shell.draw.click()
    assert "Drawn" in shell.status.text
    assert "'cup' means nothing to this model" in shell.status.text
    assert "'cup' means nothing to this model" in shell.picture.alt
    said = words(mixer.render(shell.state, shell.drawing)).replace("\n", " ")
    assert "'cup' means nothing to this model" in said


def test_stop_ends_the_drawing_and_changes_nothing(shell: ConceptMixer, model: Backbone) -> None:
    shell.draw.click()
    first, seen = shell.picture.png, []
    shell.ticks["neon"].value = True

    def press(change: dict) -> None:
        seen.append(change["new"])
        if len(seen) == 2:
            shell.stop.click()

    shell.steps.value = 20
    shell.background.bar.observe(press, "value")
    shell.draw.click()
    assert shell.status.text.startswith("Stopped")
    assert max(seen) < 0.2
    assert shell.picture.png == first
    assert shell.picture.stale
    assert model.composition.active == ()
    shell.background.bar.unobserve(press, "value")
    shell.draw.click()  # and the next drawing is not stopped
    assert shell.status.text.startswith("Drawn")


def test_a_drawing_in_the_background_leaves_the_kernel_free(model: Backbone) -> None:
    shell = concept_mixer(model, None, CATALOGUE, DELTAS)
    shell.prompt.value, shell.steps.value = PROMPT, 50
    shell.draw.click()  # comes back while the thread draws its 100 steps
    assert shell.background.running
    assert shell.draw.disabled
    assert not shell.stop.disabled
    shell.stop.click()
    shell.wait(60)
    assert shell.status.text.startswith("Stopped")
    assert not shell.draw.disabled
    assert shell.stop.disabled


def test_a_widget_in_a_block_that_holds_the_model_says_so_and_draws_afterwards(
    model: Backbone,
) -> None:
    shell = concept_mixer(model, None, None, DELTAS, example=False)
    shell.prompt.value, shell.steps.value = "neon boat", 4
    with applied(model, DELTAS["neon"]):
        shell.draw.click()
        with refused("leave the block first"):
            shell.wait()
    shell.wait()
    assert shell.status.text.startswith("Drawn")


def test_two_mixers_draw_one_after_the_other_each_as_if_alone(model: Backbone) -> None:
    def ticked(name: str, threaded: bool) -> ConceptMixer:
        shell = concept_mixer(model, None, None, {name: DELTAS[name]}, threaded=threaded)
        shell.prompt.value, shell.steps.value, shell.ticks[name].value = f"{name} boat", 4, True
        shell.draw.click()
        return shell

    both = {name: ticked(name, True) for name in ("neon", "ink")}
    for shell in both.values():
        shell.wait(60)
    for name, shell in both.items():
        alone = ticked(name, False)
        assert torch.equal(shell.drawing.before, alone.drawing.before)
        assert torch.equal(shell.drawing.after, alone.drawing.after)


# ---------------------------------------------------------------- the mixer: one more concept
@pytest.fixture
def two(model: Backbone, monkeypatch: pytest.MonkeyPatch) -> ConceptMixer:
    """A mixer that has no delta of oil yet, and learns quickly."""
    monkeypatch.setattr(mixer, "PRESETS", {"default": QUICK})
    deltas = {name: delta for name, delta in DELTAS.items() if name != "oil"}
    made = concept_mixer(model, None, CATALOGUE, deltas, threaded=False, example=False)
    made.prompt.value, made.steps.value = "oil boat", 2
    return made


def test_a_concept_without_a_delta_is_erased_ticked_and_drawn(
    two: ConceptMixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careful(*args: object, **options: object) -> object:
        warn("The kept prompts are near.")  # an error here, if it got out
        return erase(*args, **options)

    monkeypatch.setattr(mixer, "erase", careful)
    assert two.new.options == ("oil", "boat")
    two.draw.click()
    first = two.picture.png
    two.new.value = "oil"
    assert not two.picture.stale  # what is typed there is no setting of the picture
    two.erase.click()
    assert two.ticks["oil"].value
    assert two.picture.stale
    assert "Erased oil" in two.status.text
    assert two.status.text.endswith("press Draw. The kept prompts are near.")
    assert set(two.mixer.deltas["oil"].kept) == {"", "neon", "ink", "boat"}
    assert two.ticks["oil"] in list(tree(two))
    two.ticks["ink"].value = True  # it gets on with the deltas that were there
    two.draw.click()
    assert two.status.text.startswith("Drawn")
    assert two.picture.png != first
    two.restore.click()
    assert two.picture.png == first


def test_erasing_can_be_stopped(two: ConceptMixer) -> None:
    two.new.value = "swirl"  # words that the catalogue does not know
    two.background.bar.observe(lambda change: change["new"] > 0 and two.stop.click(), "value")
    two.erase.click()
    assert two.status.text.startswith("Stopped")
    assert "swirl" not in two.ticks


@pytest.mark.parametrize(("text", "word"), [(" ", "needs a name"), ("Neon", "a delta already")])
def test_what_cannot_be_erased_is_answered_in_the_status_line(
    two: ConceptMixer, text: str, word: str
) -> None:
    two.new.value = text
    two.erase.click()
    assert word in two.status.text


def test_a_model_without_deltas_judge_or_catalogue_draws_and_learns(
    model: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixer, "PRESETS", {"default": QUICK})
    shell = concept_mixer(model, None, None, {}, threaded=False)
    assert "Erase now" in shell.status.text
    assert shell.prompt.value == ""
    shell.prompt.value, shell.steps.value = "ink boat", 2
    shell.draw.click()
    assert "Drawn" in shell.status.text
    first = shell.picture.png
    shell.new.value = "ink"
    shell.erase.click()
    assert "Nothing but the empty prompt is kept" in shell.status.text
    shell.draw.click()
    assert "1 of 1 concepts erased" in shell.status.text
    assert shell.picture.png != first
    shell.restore.click()
    assert shell.picture.png == first


# ---------------------------------------------------------------- the mixer: menus
@pytest.mark.parametrize(
    ("thing", "style", "prompt"),
    [
        ("church", "Van Gogh", "a painting of a church in the style of Van Gogh"),
        ("english springer", "ink", "a painting of an english springer in the style of ink"),
        ("church", "photo", "a photo of a church"),
        ("church", None, "a photo of a church"),
        (None, "Van Gogh", "a painting in the style of Van Gogh"),
        (None, "photo", "a photo"),
    ],
)
def test_a_prompt_follows_the_templates(thing: str | None, style: str | None, prompt: str) -> None:
    assert mixer.prompt_of(thing, style) == prompt


def test_the_menus_offer_the_words_of_the_catalogue_and_write_the_prompt(model: Backbone) -> None:
    shell = concept_mixer(model, None, FREE, {}, threaded=False)
    assert shell.menus["object"].options == ("church", "english springer")
    assert shell.menus["style"].options == ("photo", "Van Gogh", "Picasso")
    assert shell.prompt.value == "a photo of a church"
    shell.menus["style"].value = "Van Gogh"
    shell.menus["object"].value = "english springer"
    assert shell.prompt.value == "a painting of an english springer in the style of Van Gogh"
    shell.menus["style"].value = "photo"
    assert shell.prompt.value == "a photo of an english springer"
    assert shell.new.options == ("Van Gogh", "Picasso", "church", "english springer")


@pytest.mark.parametrize("kinds", [("style",), ("object",), ()])
def test_a_menu_that_would_be_empty_is_left_out(model: Backbone, kinds: tuple[str, ...]) -> None:
    names = [concept for concept in FREE.concepts.values() if concept.kind in kinds]
    names = names or [Concept("seal", ("seal",), "watermark")]
    catalogue = Catalogue({concept.name: concept for concept in names})
    shell = concept_mixer(model, None, catalogue, {}, threaded=False)
    assert tuple(shell.menus) == kinds
    for menu in shell.menus.values():
        menu.value = names[1].name
    assert (names[1].name in shell.prompt.value) if kinds else shell.prompt.value == ""


def test_deltas_need_not_be_in_the_catalogue_and_stand_first_if_they_are(model: Backbone) -> None:
    shell = concept_mixer(model, None, FREE, DELTAS, threaded=False)
    assert set(shell.ticks) == set(DELTAS)
    assert shell.menus["object"].value == "church"
    shell = concept_mixer(model, None, FREE, FREE_DELTAS, threaded=False)
    assert shell.menus["object"].value == "english springer"
    shell.ticks["Van Gogh"].value = True
    assert shell.strength_fields.children[0].description == "Strength of Van Gogh"
    assert headings(shell.choices) == "<b>Forget styles</b> <b>Forget objects</b>"


# ---------------------------------------------------------------- the null-space budget
CROWD = Concept("crowd", tuple(f"{a} {b}" for a in "abcd" for b in "abcd"), "object")


def test_a_budget_is_what_the_null_space_says_and_the_figure_shows_it(model: Backbone) -> None:
    state = BudgetState("neon", ("ink", "boat"), 1e-4)
    found = budget.measure(model, CATALOGUE, state)
    space = null_space(model.encode(["", "ink", "boat"]).flatten(0, 1), rtol=1e-4)
    assert found.constraint.kept == ("", "ink", "boat")
    assert (found.constraint.space.rank, found.constraint.space.free) == (space.rank, space.free)
    assert sum(found.taken.values()) == space.rank
    assert set(found.taken) <= {"", "ink", "boat"}
    assert f"{space.rank} of {model.d_in} dimensions" in budget.describe(state, found)

    figure = budget.render(state, found)
    spectra, bar, prompts = figure.axes
    assert_close(torch.as_tensor(spectra.lines[0].get_ydata()), space.spectrum)
    assert float(spectra.lines[2].get_ydata()[0]) == space.threshold
    used = found.constraint.rank
    assert [patch.get_width() for patch in bar.patches] == [space.rank, used, space.free - used]
    assert [patch.get_width() for patch in prompts.patches] == list(found.taken.values())
    assert prompts.yaxis_inverted()
    assert "the empty prompt" in words(figure)
    assert "Forget neon, keep 3 prompts at tolerance 0.0001" in words(figure)


def test_prompts_of_the_forgotten_concept_are_not_kept(model: Backbone) -> None:
    both = Concept("boat", ("boat", "neon boat"), "object")
    neon = Concept("neon", ("neon", "neon boat"), "style")
    catalogue = Catalogue({"boat": both, "neon": neon})
    for keep in (("boat",), ("boat", "neon")):
        found = budget.measure(model, catalogue, BudgetState("neon", keep))
        assert found.constraint.kept == ("", "boat")


def test_keeping_more_and_tolerating_less_takes_more(model: Backbone) -> None:
    shell = null_space_budget(model, CATALOGUE)

    def rank() -> int:
        return budget.measure(model, CATALOGUE, shell.state).constraint.space.rank

    assert shell.state.keep == ("ink", "oil", "boat")  # everything but itself
    assert shell.state.tolerance == PRESETS["default"].keep_rtol
    assert [name for name, tick in shell.keep.boxes.items() if tick.disabled] == ["neon"]
    everything, first = rank(), shell.picture.png
    shell.none.click()
    assert shell.state.keep == ()
    assert rank() < everything
    assert shell.picture.png != first
    shell.all.click()
    assert shell.picture.png == first
    shell.tolerance.value = 0.1
    assert rank() < everything
    assert shell.status.text == shell.picture.alt
    shell.forget.value = "boat"
    assert shell.state.keep == ("neon", "ink", "oil")


def test_a_budget_of_free_words(model: Backbone) -> None:
    kinds = {"ink": "style", "neon": "style", "boat": "object", "house": "object"}
    words = Catalogue({name: Concept(name, (name,), kind) for name, kind in kinds.items()})
    shell = null_space_budget(model, words)
    assert shell.forget.value == "ink"
    assert shell.state.keep == ("neon", "boat", "house")
    assert "The delta of ink uses" in shell.status.text
    assert "Keep styles" in headings(shell)
    with refused("catalogue"):
        null_space_budget(model, None)


def test_a_full_null_space_is_answered_in_the_status_line(model: Backbone) -> None:
    shell = null_space_budget(model, Catalogue({"neon": NEON, "crowd": CROWD}))
    shell.tolerance.value = 0.1
    first = shell.picture.png
    shell.tolerance.value = 1e-6
    assert "keep fewer prompts" in shell.status.text
    assert shell.picture.png == first
    assert shell.picture.stale  # it is of another tolerance
    shell.none.click()
    assert "⚠" not in shell.status.text
    assert not shell.picture.stale


# ---------------------------------------------------------------- the decay player
@pytest.fixture(scope="module")
def recording(model: Backbone) -> Recording:
    return short_recording(model)


def array(image: object) -> Tensor:
    return torch.as_tensor(image.get_array().data)


def test_a_moment_shows_its_own_maps(recording: Recording) -> None:
    t = recording.timesteps[1]
    figure = render_moment(DecayState("neon", recording.iterations[-1], t), recording)
    picture, original, now, product = shown(figure)[:4]
    r0, r = recording.original[1], recording.maps[-1, 1]
    assert picture.get_array().shape == (*recording.image.shape[1:], 3)
    assert_close(array(original), r0.square().mean(0).sqrt())
    assert_close(array(now), r.square().mean(0).sqrt())
    assert_close(array(product), (r * r0).mean(0))
    assert original.get_clim() == now.get_clim()  # the same scale, or nothing could fade
    low, high = product.get_clim()
    assert low == -high  # zero in the middle
    assert f"neon after 4 iterations, at timestep {t}" in words(figure)
    for iteration in (0, 4):  # before training nothing has changed
        text = describe_moment(DecayState("neon", iteration, t), recording)
        assert ("is 1.00 at timestep" in text) == (iteration == 0)


def test_the_player_moves_and_comes_back(recording: Recording) -> None:
    shorter = replace(
        recording,
        iterations=recording.iterations[:2],
        maps=recording.maps[:2],
        correlation=recording.correlation[:2],
    )
    shell = decay_player({"long": recording, "short": shorter})
    first = shell.picture.png
    shell.iteration.value = 4
    assert shell.picture.png != first
    shell.iteration.index = 0
    assert shell.picture.png == first
    shell.timestep.value = recording.timesteps[0]
    assert shell.picture.png != first
    assert shell.status.text == shell.picture.alt
    shell.iteration.value = 4
    shell.recording.value = "short"
    assert shell.iteration.options == (0, 2)
    assert shell.iteration.value == 0
    with refused("no recording"):
        decay_player({})


def test_play_shows_every_iteration_and_begins_anew_at_the_end(recording: Recording) -> None:
    shell = decay_player({"neon": recording}, threaded=False)
    shell.pause = 0.0
    seen: list[int] = []
    shell.iteration.observe(lambda change: seen.append(change["new"]), "value")
    shell.play.click()
    assert seen == [2, 4]
    assert shell.status.text == shell.picture.alt
    shell.play.click()
    assert seen == [2, 4, 0, 2, 4]
    shell.iteration.value = 2
    shell.play.click()
    assert seen == [2, 4, 0, 2, 4, 2, 4]


def test_play_stops_where_it_is_and_leaves_the_model_to_others(recording: Recording) -> None:
    shell, other = decay_player({"neon": recording}), task(threaded=True)
    shell.pause = 60.0
    shell.play.click()
    assert shell.play.disabled
    other.start(lambda report: "drawn", "")
    other.wait(60)
    assert other.status.text == "drawn"
    assert shell.background.running
    shell.stop.click()
    shell.wait(60)
    assert not shell.play.disabled
    assert shell.iteration.value == 0
    assert shell.status.text == shell.picture.alt


# ---------------------------------------------------------------- the interference explorer
def test_the_pair_is_framed_and_its_numbers_are_those_measured() -> None:
    state = PairState("neon", "oil")
    figure = interference.render(state, REPORT)
    (frame,) = [p for p in figure.findobj(Rectangle) if not p.get_fill() and p.get_linewidth() == 3]
    assert frame.get_xy() == (2, 0)  # third column, first row
    known = dict(interference.facts(state, REPORT))
    assert known["damage, relative to its own delta"] == "30.0%"
    assert known["smallest angle of the two row spaces"] == "81°"  # arccos 0.15
    assert all(value in words(figure) for value in known.values())
    assert "30.0%" in interference.describe(state, REPORT)
    assert "30.0%" not in interference.describe(PairState("ink", "oil"), REPORT)
    with refused("= 'oil' is unknown"):
        interference.render(PairState("oil", "neon"), REPORT)


def test_the_measured_pictures_are_shown_where_there_are_some() -> None:
    before, after = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    report = replace(REPORT, before={"oil": before}, after={("neon", "oil"): after})
    state = PairState("neon", "oil")
    assert interference.recorded(PairState("ink", "oil"), report) is None
    assert shown(interference.render(state, report)) == []
    images = shown(interference.render(state, report, interference.recorded(state, report)))
    assert [float(image.get_array().mean()) for image in images] == [0, 0, 1, 1]


def test_the_pane_over_the_map_has_its_cells_where_they_are_drawn() -> None:
    shell = interference_explorer(REPORT)
    place = re.search(r'sepme-pair-map" style="([^"]+)"', shell.picture.value)[1]
    left, top, wide, high = (float(x) / 100 for x in re.findall(r"([\d.]+)%", place))
    pixels = Image.open(io.BytesIO(shell.picture.png)).convert("RGB")
    colours = {}
    for row, column in ((0, 2), (1, 0), (1, 2), (1, 1)):
        x = left + wide * (column + 0.2) / 3  # beside the number in the middle
        y = top + high * (row + 0.2) / 2
        colours[row, column] = pixels.getpixel((int(x * pixels.width), int(y * pixels.height)))
    darkest = min(colours, key=lambda cell: sum(colours[cell]))
    assert darkest == (0, 2)  # 30 %
    assert colours[1, 1] == (0xDD,) * 3  # its own, grey
    assert sum(colours[1, 0]) > sum(colours[1, 2])  # 4 % is paler than 5 %


def test_choosing_a_pair_shows_it() -> None:
    shell = interference_explorer(REPORT)
    assert shell.state == PairState("neon", "ink")
    first = shell.picture.png
    shell.evaluated.value = "oil"
    assert shell.picture.png != first
    assert shell.status.text == shell.picture.alt == interference.describe(shell.state, REPORT)
    shell.evaluated.value = "ink"
    assert shell.picture.png == first
    assert shell.draw not in list(tree(shell))  # there is no model to draw with


def test_a_pair_is_drawn_with_the_deltas_on_the_pipeline(model: Backbone) -> None:
    shell = interference_explorer(REPORT, model, threaded=False)
    shell.draw.click()
    assert "carries no delta of 'neon'" in shell.status.text
    composition = Composition(model, DELTAS.values())
    composition.erase("oil")
    first = shell.picture.png
    shell.draw.click()
    assert shell.picture.png != first
    assert composition.active == ("oil",)
    _, (before, after) = shell.data(shell.state)
    with composition.erased("neon"):
        assert torch.equal(after, model.generate(["ink"], 3))
    composition.restore_all()
    assert torch.equal(before, model.generate(["ink"], 3))


# ---------------------------------------------------------------- the stop-rule playground
def test_the_momentum_is_equation_4_and_stops_at_its_threshold() -> None:
    values, stopped = Momentum(0.5, 0.3, earliest=1).over(LOSSES)
    expected, m = [], LOSSES[0]
    for loss in LOSSES:
        m = 0.5 * m + 0.5 * loss
        expected.append(m)
    assert values == expected
    assert stopped == next(n for n, m in enumerate(expected, 1) if m <= 0.3) == 4
    assert Momentum(0.5, 0.3, earliest=5).over(LOSSES)[1] == 5
    assert Momentum(0.5, -1.0, earliest=1).over(LOSSES)[1] is None


@pytest.mark.parametrize(
    ("tau", "text", "marked"),
    [(0.3, "stops after iteration 4 of 6", True), (-1.0, "does not stop within 6", False)],
)
def test_the_figure_of_the_rule_says_where_it_stops(tau: float, text: str, marked: bool) -> None:
    figure = stop_rule.render(StopRuleState("a", 0.5, tau, earliest=1), LOSSES)
    assert text in words(figure)
    assert f"α = 0.5 and τ = {tau:g}, a" in words(figure)
    assert ([4, 4] in [list(line.get_xdata()) for line in figure.axes[0].lines]) == marked


def test_turning_the_knobs_moves_the_stop() -> None:
    shell = stop_rule_playground({"a": LOSSES, "flat": [1.0] * 30})
    shell.earliest.value = 1
    shell.alpha.value, shell.tau.value = 0.0, 0.5
    assert "stops after iteration 2" in shell.status.text
    first = shell.picture.png
    shell.alpha.value = 0.5
    assert "stops after iteration 3" in shell.status.text
    assert shell.picture.png != first
    shell.series.value = "flat"
    assert "does not stop" in shell.status.text


@pytest.mark.parametrize(
    ("losses", "low", "high", "step"),
    [
        (LOSSES, -0.5, 1.0, 0.01),
        ([2.34e-4, -1.15e-5], -1.2e-5, 2.34e-4, 1e-6),
        ([0.5, 0.4], 0.0, 0.5, 0.01),
        ([0.0], 0.0, 0.01, 0.01),
    ],
)
def test_tau_moves_in_round_steps_between_round_bounds(
    losses: list[float], low: float, high: float, step: float
) -> None:
    tau = stop_rule_playground({"a": losses}).tau
    assert (tau.min, tau.max, tau.step) == (low, high, step)


@pytest.mark.parametrize("losses", [{}, {"a": []}])
def test_a_playground_needs_losses(losses: dict[str, list[float]]) -> None:
    with refused("no series"):
        stop_rule_playground(losses)
