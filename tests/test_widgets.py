"""The widgets: what they draw from a state, and what their controls do, without a browser."""

import ast
import base64
import importlib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ipywidgets
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import sepme
from sepme.composition import Composition
from sepme.concept import Catalogue, Concept
from sepme.errors import warn
from sepme.interference import Interference
from sepme.model import Backbone
from sepme.nullspace import null_space
from sepme.plots import png
from sepme.probe import Recording
from sepme.widgets import (
    BudgetState,
    ConceptMixer,
    DecayState,
    MixerState,
    PairState,
    StopRuleState,
    budget,
    concept_mixer,
    decay_player,
    interference,
    interference_explorer,
    mixer,
    null_space_budget,
    stop_rule,
    stop_rule_playground,
)
from sepme.widgets._parts import Job, Stopped, remarks
from sepme.widgets.decay_player import describe as describe_moment
from sepme.widgets.decay_player import render as render_moment
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
    made = concept_mixer(model, Eye(), CATALOGUE, DELTAS, threaded=False)
    made.prompt.value, made.steps.value = PROMPT, 2
    return made


def drawing(pictures: int = 1, judged: bool = True, shift: float = 0.3) -> mixer.Drawing:
    before = torch.rand(pictures, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.5
    after = before + shift
    seen = (Eye().judge(before), Eye().judge(after)) if judged else (None, None)
    return mixer.Drawing(before, after, *seen)


def shown(figure: Figure) -> list:
    """The pictures and maps of a figure, in their order."""
    return [image for ax in figure.findobj(match=_is_axes) for image in ax.images]


def _is_axes(artist: object) -> bool:
    return hasattr(artist, "images") and hasattr(artist, "get_xlim")


def words(figure: Figure) -> str:
    """All text that is drawn."""
    texts = figure.findobj(match=lambda artist: hasattr(artist, "get_text"))
    return "\n".join(text.get_text() for text in texts if text.get_visible())


def tree(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    """A widget and everything inside it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from tree(child)


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
    files = [path for path in folder.rglob("*.py") if "widgets" not in path.parts]
    assert len(files) > 20
    imports = [
        node
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    modules = {name.name for node in imports for name in node.names}
    modules |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert "torch" in modules  # the search would find it
    assert not any((name or "").split(".")[0] == "ipywidgets" for name in modules)


def test_every_name_that_the_package_offers_is_there() -> None:
    package = importlib.import_module("sepme.widgets")
    assert all(hasattr(package, name) for name in package.__all__)


# ---------------------------------------------------------------- the mixer: state and picture
def test_a_state_that_cannot_be_drawn_is_refused() -> None:
    with refused("no prompt"):
        MixerState("  ")
    with refused("5 pictures"):
        MixerState(PROMPT, pictures=5)
    with refused("steps = 0"):
        MixerState(PROMPT, steps=0)
    assert MixerState(PROMPT, seed=3, pictures=2).seeds == (3, 4)


@pytest.mark.parametrize("pictures", [1, 2, 3, 4])
def test_the_pictures_are_the_drawing_s_before_left_of_after(pictures: int) -> None:
    made = drawing(pictures)
    figure = mixer.render(MixerState(PROMPT, {"neon": 1.0}, pictures=pictures), made)
    images = shown(figure)
    assert len(images) == 2 * pictures
    for image, expected in zip(images, [*made.before, *made.after], strict=True):
        assert_close(torch.as_tensor(image.get_array().data), expected.movedim(0, -1))
    figure.canvas.draw()
    lefts = [image.axes.get_window_extent().x0 for image in images]
    assert max(lefts[:pictures]) < min(lefts[pictures:])


def test_the_frame_is_around_what_something_was_erased_for() -> None:
    def framed(state: MixerState) -> list[bool]:
        images = shown(mixer.render(state, drawing()))
        return [image.axes.spines["left"].get_visible() for image in images]

    assert framed(MixerState(PROMPT, {"neon": 1.0})) == [False, True]
    assert framed(MixerState(PROMPT)) == [False, False]


def test_the_bars_are_the_judge_s_probabilities() -> None:
    made = drawing(2)
    figure = mixer.render(MixerState(PROMPT, pictures=2), made)
    heights = [
        [bar.get_height() / 100 for bar in container]
        for ax in figure.findobj(match=_is_axes)
        for container in ax.containers
    ]
    expected = [
        made.seen_before.style_probability,
        made.seen_after.style_probability,
        made.seen_before.object_probability,
        made.seen_after.object_probability,
    ]
    assert len(heights) == len(expected)
    for bars, probability in zip(heights, expected, strict=True):
        assert_close(torch.tensor(bars), probability.mean(0))
    assert heights[0] != heights[1]  # the eye does tell the two apart


def test_a_model_without_a_judge_has_no_bars() -> None:
    figure = mixer.render(MixerState(PROMPT), drawing(judged=False))
    assert "judge" not in words(figure)
    assert "judge" in words(mixer.render(MixerState(PROMPT), drawing()))
    assert "judge" not in mixer.describe(MixerState(PROMPT), drawing(judged=False))


def test_the_words_name_what_is_erased_and_what_is_seen() -> None:
    state = MixerState(PROMPT, {"neon": 1.0, "ink": 0.5})
    text = mixer.describe(state, drawing())
    assert "without neon and ink × 0.5" in text
    assert "without neon and ink × 0.5" in words(mixer.render(state, drawing()))
    assert "nothing erased" in mixer.describe(MixerState(PROMPT), drawing())
    assert "the judge sees" in text


def test_the_same_drawing_gives_the_same_file_and_another_one_another() -> None:
    state = MixerState(PROMPT)
    assert png(mixer.render(state, drawing())) == png(mixer.render(state, drawing()))
    assert png(mixer.render(state, drawing())) != png(mixer.render(state, drawing(shift=0.31)))


# ---------------------------------------------------------------- the mixer: drawing
def test_drawing_leaves_the_pipeline_as_it_found_it(model: Backbone) -> None:
    engine = mixer.Mixer(model, None, DELTAS)
    there = Composition(model, DELTAS.values())
    there.erase("ink")
    made = engine.draw(MixerState(PROMPT, {"neon": 1.0}, steps=2))
    assert model.composition is there  # it carries these very deltas: no need for another one
    assert there.strengths == {"ink": 1.0}
    with there.erased("neon"):
        expected = model.generate([PROMPT], 0, steps=2)
    assert torch.equal(made.after, expected)
    assert not torch.equal(made.after, made.before)


def test_a_composition_without_the_deltas_makes_way(model: Backbone) -> None:
    engine = mixer.Mixer(model, None, DELTAS)
    Composition(model, [DELTAS["ink"]])
    engine.draw(MixerState(PROMPT, {"neon": 1.0}, steps=2))
    assert set(model.composition.deltas) == set(DELTAS)


def test_the_original_is_drawn_once_and_what_follows_always(
    model: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = mixer.Mixer(model, None, DELTAS)
    drawn: list[object] = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda *a, **k: drawn.append(a) or generate(*a, **k))
    state = MixerState(PROMPT, steps=2)
    counts = []
    for each in (state, replace(state, erased={"neon": 1.0}), state, replace(state, seed=7)):
        engine.draw(each)
        counts.append(len(drawn))
    assert counts == [2, 3, 4, 6]


def test_the_switch_is_timed_by_itself(model: Backbone) -> None:
    engine = mixer.Mixer(model, None, DELTAS)
    assert engine.last_switch_seconds != engine.last_switch_seconds  # not a number yet
    engine.switch(engine.composition(), {"neon": 0.5})
    assert model.composition.strengths == {"neon": 0.5}
    assert engine.last_switch_seconds > 0


def test_what_cannot_be_drawn_is_refused_before_drawing(
    model: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = mixer.Mixer(model, None, DELTAS)
    monkeypatch.setattr(model, "generate", lambda *a, **k: pytest.fail("drawn all the same"))
    with refused("longer than the 8 tokens"):
        engine.draw(MixerState("boat " * 9))
    with refused("No delta of 'swirl'"):
        engine.draw(MixerState(PROMPT, {"swirl": 1.0}))


# ---------------------------------------------------------------- the mixer: controls
def test_tick_draw_untick_draw_gives_the_first_picture_back(shell: ConceptMixer) -> None:
    shell.draw.click()
    first = shell.picture.png
    assert torch.equal(shell.drawing.before, shell.drawing.after)
    shell.ticks["neon"].value = True
    shell.draw.click()
    assert shell.picture.png != first
    assert not torch.equal(shell.drawing.before, shell.drawing.after)
    shell.ticks["neon"].value = False
    shell.draw.click()
    assert shell.picture.png == first


def test_restore_all_unticks_and_draws_the_first_picture_again(shell: ConceptMixer) -> None:
    shell.draw.click()
    first = shell.picture.png
    for tick in shell.ticks.values():
        tick.value = True
    shell.draw.click()
    assert shell.picture.png != first
    shell.restore.click()
    assert not any(tick.value for tick in shell.ticks.values())
    assert shell.picture.png == first


def test_the_picture_on_the_page_is_the_file_with_words(shell: ConceptMixer) -> None:
    assert "<img" not in shell.picture.value
    shell.prompt.value = "boat"
    shell.ticks["ink"].value = True
    shell.draw.click()
    assert base64.b64encode(shell.picture.png).decode() in shell.picture.value
    assert 'class="sepme-mixer-picture"' in shell.picture.value
    assert shell.picture.alt == mixer.describe(shell.state, shell.drawing)
    assert shell.picture.alt in shell.picture.value


def test_strength_counts_and_is_asked_for_what_is_ticked(shell: ConceptMixer) -> None:
    assert shell.strength_fields.children == ()
    shell.ticks["neon"].value = True
    assert shell.strength_fields.children == (shell.strengths["neon"],)
    pictures = {}
    for strength in (1.0, 0.5, 0.0):
        shell.strengths["neon"].value = strength
        shell.draw.click()
        pictures[strength] = shell.drawing.after
    assert torch.equal(pictures[0.0], shell.drawing.before)
    assert not torch.equal(pictures[0.5], pictures[0.0])
    assert not torch.equal(pictures[0.5], pictures[1.0])


def test_the_menus_write_the_prompt_and_words_of_one_s_own_are_drawn(shell: ConceptMixer) -> None:
    shell.menus["style"].value = "ink"
    assert shell.prompt.value == "a painting of a boat in the style of ink"
    shell.menus["style"].value = "photo"
    assert shell.prompt.value == "a photo of a boat"
    shell.draw.click()
    first = shell.drawing.before
    shell.prompt.value = "  oil   cat "
    assert shell.state.prompt == "oil cat"
    shell.draw.click()
    assert not torch.equal(shell.drawing.before, first)


def test_seed_pictures_and_steps_are_what_is_drawn(shell: ConceptMixer, model: Backbone) -> None:
    shell.seed.value, shell.pictures.value, shell.steps.value = 5, 2, 3
    shell.draw.click()
    assert torch.equal(shell.drawing.before, model.generate([PROMPT] * 2, [5, 6], steps=3))


@pytest.mark.parametrize(
    ("prompt", "word"), [("", "no prompt"), ("boat " * 9, "longer than the 8 tokens")]
)
def test_a_bad_prompt_is_answered_in_the_status_line(
    shell: ConceptMixer, prompt: str, word: str, capsys: pytest.CaptureFixture
) -> None:
    shell.draw.click()
    first = shell.picture.png
    shell.prompt.value = prompt
    shell.draw.click()
    assert word in shell.status.text
    assert shell.status.text in shell.status.value
    assert shell.picture.png == first
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


def test_the_status_line_says_how_long_the_switch_took(shell: ConceptMixer) -> None:
    shell.ticks["neon"].value = True
    shell.draw.click()
    assert "1 of 3 concepts erased" in shell.status.text
    assert f"switching took {1000 * shell.last_switch_seconds:.0f} ms" in shell.status.text
    assert shell.job.bar.value == 1.0


def test_stop_ends_the_drawing_and_changes_nothing(shell: ConceptMixer, model: Backbone) -> None:
    shell.draw.click()
    first = shell.picture.png
    shell.ticks["neon"].value = True
    seen: list[float] = []

    def press(change: dict) -> None:
        seen.append(change["new"])
        if len(seen) == 2:
            shell.stop.click()

    shell.steps.value = 20
    shell.job.bar.observe(press, "value")
    shell.draw.click()
    assert shell.status.text.startswith("Stopped")
    assert max(seen) < 0.2
    assert shell.picture.png == first
    assert model.composition.active == ()
    shell.job.bar.unobserve(press, "value")
    shell.draw.click()  # and the next drawing is not stopped
    assert shell.status.text.startswith("Drawn")


def test_a_drawing_in_the_background_leaves_the_kernel_free(model: Backbone) -> None:
    shell = concept_mixer(model, None, CATALOGUE, DELTAS)
    shell.prompt.value, shell.steps.value = PROMPT, 50
    shell.draw.click()  # comes back while the thread draws its 100 steps
    assert shell.job.running
    assert shell.draw.disabled
    assert not shell.stop.disabled
    shell.stop.click()
    shell.wait(60)
    assert shell.status.text.startswith("Stopped")
    assert not shell.draw.disabled
    assert shell.stop.disabled
    shell.steps.value = 2
    shell.draw.click()
    shell.wait(60)
    assert shell.status.text.startswith("Drawn")
    assert torch.equal(shell.drawing.before, model.generate([PROMPT], 0, steps=2))


def test_a_failure_nobody_expected_is_not_silent(
    shell: ConceptMixer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of paint")

    monkeypatch.setattr(shell.mixer, "draw", fail)
    shell.draw.click()
    assert "RuntimeError: out of paint" in shell.status.text
    assert "Traceback" in capsys.readouterr().err
    assert not shell.draw.disabled


def test_only_one_thing_is_done_at_a_time() -> None:
    job, done = Job("x", "", threaded=False), []

    def work(report: object) -> str:
        done.append("outer")
        job.start(lambda _: done.append("inner") or "", "again")
        return "finished"

    job.start(work, "begin")
    assert done == ["outer"]
    assert job.status.text == "finished"
    job.start(lambda _: done.append("later") or "", "again")
    assert done == ["outer", "later"]


def test_a_report_after_stop_raises() -> None:
    job = Job("x", "", threaded=False)

    def work(report: object) -> str:
        report(1, 4)
        assert job.bar.value == 0.25
        job.stop.click()
        with pytest.raises(Stopped):
            report(2, 4)
        return "noticed"

    job.start(work, "begin")
    assert job.status.text == "noticed"


# ---------------------------------------------------------------- the mixer: one more concept
@pytest.fixture
def two(model: Backbone, monkeypatch: pytest.MonkeyPatch) -> ConceptMixer:
    """A mixer that has no delta of oil yet, and learns quickly."""
    monkeypatch.setattr(mixer, "PRESETS", {"default": QUICK})
    deltas = {name: delta for name, delta in DELTAS.items() if name != "oil"}
    made = concept_mixer(model, None, CATALOGUE, deltas, threaded=False)
    made.prompt.value, made.steps.value = "oil boat", 2
    return made


def test_a_concept_without_a_delta_is_erased_ticked_and_drawn(two: ConceptMixer) -> None:
    assert two.new.options == ("oil", "boat")
    two.draw.click()
    first = two.picture.png
    two.new.value = "oil"
    two.erase.click()
    assert two.ticks["oil"].value
    assert "Erased oil" in two.status.text
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
    two.job.bar.observe(lambda change: change["new"] > 0 and two.stop.click(), "value")
    two.erase.click()
    assert two.status.text.startswith("Stopped")
    assert "swirl" not in two.ticks


@pytest.mark.parametrize(("text", "word"), [(" ", "No concept"), ("Neon", "a delta already")])
def test_what_cannot_be_erased_is_answered_in_the_status_line(
    two: ConceptMixer, text: str, word: str
) -> None:
    two.new.value = text
    two.erase.click()
    assert word in two.status.text


def test_a_model_of_one_s_own_needs_neither_judge_nor_catalogue(model: Backbone) -> None:
    shell = concept_mixer(model, None, None, DELTAS, threaded=False)
    assert shell.prompt.value == ""
    shell.prompt.value, shell.steps.value = PROMPT, 2
    shell.ticks["neon"].value = True
    shell.draw.click()
    assert shell.status.text.startswith("Drawn")


# ---------------------------------------------------------------- the mixer: words of one's own
@pytest.mark.parametrize(
    ("thing", "style", "prompt"),
    [
        ("church", "Van Gogh", "a painting of a church in the style of Van Gogh"),
        (
            "english springer",
            "Picasso",
            "a painting of an english springer in the style of Picasso",
        ),
        ("church", "photo", "a photo of a church"),
        ("church", None, "a photo of a church"),
        (None, "Van Gogh", "a painting in the style of Van Gogh"),
        (None, "photo", "a photo"),
    ],
)
def test_the_words_of_a_prompt_are_those_of_the_phrasebook(
    thing: str | None, style: str | None, prompt: str
) -> None:
    assert mixer.prompt_of(thing, style) == prompt


def test_the_menus_offer_the_words_of_the_catalogue(model: Backbone) -> None:
    shell = concept_mixer(model, None, FREE, {}, threaded=False)
    assert shell.menus["object"].options == ("church", "english springer")
    assert shell.menus["style"].options == ("photo", "Van Gogh", "Picasso")
    assert shell.prompt.value == "a photo of a church"
    shell.menus["style"].value = "Van Gogh"
    shell.menus["object"].value = "english springer"
    assert shell.prompt.value == "a painting of an english springer in the style of Van Gogh"
    assert shell.new.options == ("Van Gogh", "Picasso", "church", "english springer")


@pytest.mark.parametrize("kind", ["style", "object"])
def test_a_menu_that_would_be_empty_is_left_out(model: Backbone, kind: str) -> None:
    words = [concept for concept in FREE.concepts.values() if concept.kind == kind]
    catalogue = Catalogue({concept.name: concept for concept in words})
    shell = concept_mixer(model, None, catalogue, {}, threaded=False)
    assert list(shell.menus) == [kind]
    shell.menus[kind].value = words[1].name
    assert words[1].name in shell.prompt.value
    neither = Catalogue({"seal": Concept("seal", ("seal",), "watermark")})
    shell = concept_mixer(model, None, neither, {}, threaded=False)
    assert shell.menus == {}
    assert shell.prompt.value == ""


def test_deltas_need_not_be_in_the_catalogue(model: Backbone) -> None:
    shell = concept_mixer(model, None, FREE, DELTAS, threaded=False)
    assert set(shell.ticks) == set(DELTAS)
    assert shell.menus["object"].value == "church"
    shell = concept_mixer(model, None, FREE, FREE_DELTAS, threaded=False)
    assert shell.menus["object"].value == "english springer"
    shell.ticks["Van Gogh"].value = True
    assert shell.strength_fields.children[0].description == "Strength of Van Gogh"
    headings = [part.value for part in tree(shell.choices) if isinstance(part, ipywidgets.HTML)]
    assert [("styles" in text, "objects" in text) for text in headings] == [
        (True, False),
        (False, True),
    ]


def test_the_menus_begin_with_what_can_be_forgotten(model: Backbone) -> None:
    deltas = {name: DELTAS[name] for name in ("oil", "ink")}
    assert concept_mixer(model, None, CATALOGUE, deltas).menus["style"].value == "oil"


def test_a_model_without_deltas_draws_and_learns(
    model: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixer, "PRESETS", {"default": QUICK})
    shell = concept_mixer(model, None, CATALOGUE, {}, threaded=False)
    assert "Erase now" in shell.status.text
    shell.prompt.value, shell.steps.value = "ink boat", 2
    shell.draw.click()
    assert "Drawn" in shell.status.text
    first = shell.picture.png
    shell.new.value = "ink"
    shell.erase.click()
    shell.draw.click()
    assert "1 of 1 concepts erased" in shell.status.text
    assert shell.picture.png != first
    shell.restore.click()
    assert shell.picture.png == first


def test_words_that_the_model_never_saw_are_remarked_upon(shell: ConceptMixer) -> None:
    shell.draw.click()
    assert "means nothing" not in shell.status.text
    shell.prompt.value = "neon cup"
    shell.draw.click()
    assert "Drawn" in shell.status.text
    assert "'cup' means nothing to this model" in shell.status.text


def test_what_erasing_warns_of_is_said_in_the_status_line(
    two: ConceptMixer, monkeypatch: pytest.MonkeyPatch
) -> None:
    erase = mixer.erase

    def careful(*args: object, **options: object) -> object:
        warn("The kept prompts are near.")
        return erase(*args, **options)

    monkeypatch.setattr(mixer, "erase", careful)
    two.new.value = "oil"
    two.erase.click()  # a warning that got out would be an error here
    assert two.status.text.endswith("press Draw. The kept prompts are near.")


def test_other_warnings_are_not_swallowed() -> None:
    def both() -> list[str]:
        with remarks() as said:
            warn("ours")
            warnings.warn("somebody else's", UserWarning, stacklevel=1)
        return said

    with pytest.warns(UserWarning, match="somebody else's"):
        said = both()
    assert said == ["ours"]


# ---------------------------------------------------------------- the null-space budget
CROWD = Concept("crowd", tuple(f"{a} {b}" for a in "abcd" for b in "abcd"), "object")


def test_a_budget_is_what_the_null_space_says(model: Backbone) -> None:
    ledger = budget.Ledger(model, CATALOGUE)
    state = BudgetState("neon", ("ink", "boat"), 1e-4)
    found = ledger.measure(state)
    A = model.encode(["", "ink", "boat"]).flatten(0, 1)
    space = null_space(A, rtol=1e-4)
    assert found.room.kept == ("", "ink", "boat")
    assert (found.room.space.rank, found.room.space.free) == (space.rank, space.free)
    assert sum(n for _, n in found.eaters) == space.rank
    assert {prompt for prompt, _ in found.eaters} <= {"", "ink", "boat"}
    assert f"{space.rank} of {model.d_in} dimensions" in budget.describe(state, found)


def test_prompts_of_the_forgotten_concept_are_not_kept(model: Backbone) -> None:
    both = Concept("boat", ("boat", "neon boat"), "object")
    neon = Concept("neon", ("neon", "neon boat"), "style")
    ledger = budget.Ledger(model, Catalogue({"boat": both, "neon": neon}))
    assert ledger.kept_prompts(BudgetState("neon", ("boat",))) == ["boat"]
    assert ledger.kept_prompts(BudgetState("neon", ("boat", "neon"))) == ["boat"]


def test_the_figure_of_a_budget_shows_spectrum_budget_and_prompts(model: Backbone) -> None:
    state = BudgetState("neon", ("ink", "boat"))
    found = budget.Ledger(model, CATALOGUE).measure(state)
    figure = budget.render(state, found)
    spectra, bar, eaters = figure.axes
    assert_close(torch.as_tensor(spectra.lines[0].get_ydata()), found.room.space.spectrum)
    assert float(spectra.lines[2].get_ydata()[0]) == found.room.space.threshold
    widths = [patch.get_width() for patch in bar.patches]
    space = found.room.space
    assert widths == [space.rank, found.room.rank, space.free - found.room.rank]
    assert [patch.get_width() for patch in eaters.patches] == [n for _, n in found.eaters]
    assert eaters.yaxis_inverted()
    assert "the empty prompt" in words(figure)


def test_keeping_more_and_tolerating_less_takes_more(model: Backbone) -> None:
    shell = null_space_budget(model, CATALOGUE)

    def rank() -> int:
        return shell.ledger.measure(shell.state).room.space.rank

    shell.forget.value = "neon"
    assert shell.state.keep == ("ink", "oil", "boat")  # everything but itself
    assert [name for name, tick in shell.ticks.items() if tick.disabled] == ["neon"]
    everything, first = rank(), shell.picture.png
    shell.none.click()
    assert shell.state.keep == ()
    assert rank() < everything
    assert shell.picture.png != first
    shell.all.click()
    assert shell.picture.png == first
    shell.tolerance.value = 0.1
    assert rank() < everything
    assert shell.status.text == shell.picture.alt != ""


def test_a_budget_of_free_words(model: Backbone) -> None:
    shell = null_space_budget(model, FREE)
    assert shell.forget.value == "Van Gogh"
    assert shell.state.keep == ("Picasso", "church", "english springer")
    assert "The delta of Van Gogh uses" in shell.status.text
    headings = [part.value for part in tree(shell) if isinstance(part, ipywidgets.HTML)]
    assert any("Keep styles" in heading for heading in headings)


def test_a_full_null_space_is_answered_in_the_status_line(model: Backbone) -> None:
    shell = null_space_budget(model, Catalogue({"neon": NEON, "crowd": CROWD}))
    shell.tolerance.value = 0.1
    first = shell.picture.png
    shell.tolerance.value = 1e-6
    assert "keep fewer prompts" in shell.status.text
    assert shell.picture.png == first
    shell.none.click()
    assert "⚠" not in shell.status.text


def test_a_budget_needs_a_catalogue_and_a_relative_tolerance(model: Backbone) -> None:
    with refused("catalogue"):
        null_space_budget(model, None)
    with refused("tolerance"):
        BudgetState("neon", (), 2.0)


# ---------------------------------------------------------------- the decay player
@pytest.fixture(scope="module")
def recording(model: Backbone) -> Recording:
    return short_recording(model)


def test_a_moment_shows_its_own_maps(recording: Recording) -> None:
    t = recording.timesteps[1]
    state = DecayState("neon", recording.iterations[-1], t)
    figure = render_moment(state, recording)
    picture, original, now, product = shown(figure)[:4]
    r0, r = recording.original[1], recording.maps[-1, 1]
    assert picture.get_array().shape == (*recording.image.shape[1:], 3)
    assert_close(torch.as_tensor(original.get_array().data), r0.square().mean(0).sqrt())
    assert_close(torch.as_tensor(now.get_array().data), r.square().mean(0).sqrt())
    assert_close(torch.as_tensor(product.get_array().data), (r * r0).mean(0))
    assert original.get_clim() == now.get_clim()  # the same scale, or nothing could fade
    low, high = product.get_clim()
    assert low == -high  # zero in the middle


def test_before_training_nothing_has_changed(recording: Recording) -> None:
    state = DecayState("neon", 0, recording.timesteps[0])
    text = describe_moment(state, recording)
    assert "is 1.00 at timestep" in text
    later = DecayState("neon", recording.iterations[-1], recording.timesteps[0])
    assert "is 1.00 at timestep" not in describe_moment(later, recording)


def test_a_moment_that_was_not_recorded_is_refused(recording: Recording) -> None:
    with refused("iteration 3", "0, 2, 4"):
        DecayState("neon", 3, recording.timesteps[0]).place(recording)
    with refused("timestep -1"):
        DecayState("neon", 0, -1).place(recording)


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
    shell, drawing = decay_player({"neon": recording}), Job("x", "")
    shell.pause = 60.0
    shell.play.click()
    assert shell.play.disabled
    drawing.start(lambda report: "drawn", "")
    drawing.wait(60)
    assert drawing.status.text == "drawn"
    assert shell.job.running
    shell.stop.click()
    shell.job.wait(60)
    assert not shell.play.disabled
    assert shell.iteration.value == 0
    assert shell.status.text == shell.picture.alt


# ---------------------------------------------------------------- the interference explorer
def test_the_pair_is_framed_and_its_numbers_are_those_measured() -> None:
    state = PairState("neon", "oil")
    figure = interference.render(state, REPORT)
    (frame,) = [
        patch
        for patch in figure.findobj(match=Rectangle)
        if not patch.get_fill() and patch.get_linewidth() == 3
    ]
    assert frame.get_xy() == (2, 0)  # third column, first row
    known = dict(interference.facts(state, REPORT))
    assert known["damage, relative to its own delta"] == "30.0%"
    assert known["smallest angle of the two row spaces"] == "81°"  # arccos 0.15
    assert all(value in words(figure) for value in known.values())
    assert "30.0%" in interference.describe(state, REPORT)
    assert "30.0%" not in interference.describe(PairState("ink", "oil"), REPORT)
    with refused("'oil' was not measured"):
        interference.render(PairState("oil", "neon"), REPORT)


def test_the_measured_pictures_are_shown_where_there_are_some() -> None:
    before, after = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    report = replace(REPORT, before={"oil": before}, after={("neon", "oil"): after})
    state = PairState("neon", "oil")
    assert interference.recorded(PairState("ink", "oil"), report) is None
    plain = len(shown(interference.render(state, report)))
    figure = interference.render(state, report, interference.recorded(state, report))
    images = shown(figure)[-4:]
    assert len(shown(figure)) == plain + 4
    assert [float(image.get_array().mean()) for image in images] == [0, 0, 1, 1]


def test_choosing_a_pair_shows_it() -> None:
    shell = interference_explorer(REPORT)
    assert (shell.emitter.value, shell.receiver.value) == ("neon", "ink")
    first = shell.picture.png
    shell.receiver.value = "oil"
    assert shell.picture.png != first
    assert shell.status.text == shell.picture.alt == interference.describe(shell.state, REPORT)
    shell.receiver.value = "ink"
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
    before, after = shell.drawn[PairState("neon", "ink")]
    with composition.erased("neon"):
        assert torch.equal(after, model.generate(["ink"], 3))
    composition.restore_all()
    assert torch.equal(before, model.generate(["ink"], 3))


def test_pairs_of_free_words_are_named_as_they_are() -> None:
    names = ("Van Gogh", "church")
    report = Interference(names, names, torch.eye(2, dtype=torch.float64), "noise")
    shell = interference_explorer(report)
    assert shell.state == PairState("Van Gogh", "church")
    assert "The delta of Van Gogh on the prompts of church" in shell.picture.alt


# ---------------------------------------------------------------- the stop-rule playground
def test_the_momentum_is_equation_4_and_stops_at_its_threshold() -> None:
    values, stopped = stop_rule.momentum(StopRuleState("a", 0.5, 0.3, earliest=1), LOSSES)
    expected, m = [], LOSSES[0]
    for loss in LOSSES:
        m = 0.5 * m + 0.5 * loss
        expected.append(m)
    assert values == expected
    assert stopped == next(n for n, m in enumerate(expected, 1) if m <= 0.3) == 4
    assert stop_rule.momentum(StopRuleState("a", 0.5, 0.3, earliest=5), LOSSES)[1] == 5
    assert stop_rule.momentum(StopRuleState("a", 0.5, -1.0, earliest=1), LOSSES)[1] is None


def test_the_figure_of_the_rule_says_where_it_stops() -> None:
    state = StopRuleState("a", 0.5, 0.3, earliest=1)
    figure = stop_rule.render(state, LOSSES)
    assert "stops after iteration 4 of 6" in words(figure)
    verticals = [list(line.get_xdata()) for line in figure.axes[0].lines]
    assert [4, 4] in verticals
    never = stop_rule.render(replace(state, tau=-1.0), LOSSES)
    assert "does not stop within 6 iterations" in words(never)
    assert [4, 4] not in [list(line.get_xdata()) for line in never.axes[0].lines]


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
        ([0.0], 0.0, 0.0, 0.01),
    ],
)
def test_tau_moves_in_round_steps_between_round_bounds(
    losses: list[float], low: float, high: float, step: float
) -> None:
    tau = stop_rule_playground({"a": losses}).tau
    assert (tau.min, tau.max, tau.step) == (low, high, step)


def test_a_rule_that_makes_no_sense_is_refused() -> None:
    with refused("alpha = 1"):
        StopRuleState("a", 1.0)
    with refused("iteration 0"):
        StopRuleState("a", earliest=0)
    with refused("no series"):
        stop_rule_playground({"a": []})
    with refused("no loss"):
        stop_rule.momentum(StopRuleState("a"), [])
    shell = stop_rule_playground({"a": [1.0, float("inf")]})
    assert "inf" in shell.status.text


# ---------------------------------------------------------------- all of them
@pytest.fixture
def all_five(model: Backbone, recording: Recording, shell: ConceptMixer) -> list:
    return [
        shell,
        null_space_budget(model, CATALOGUE),
        decay_player({"neon": recording}),
        interference_explorer(REPORT, model),
        stop_rule_playground({"a": LOSSES}),
    ]


def test_every_control_has_a_label_a_tooltip_and_a_class(all_five: list) -> None:
    passive = ipywidgets.Box | ipywidgets.HTML
    sliders = (ipywidgets.Play, ipywidgets.SelectionSlider, ipywidgets.FloatLogSlider)
    unspeakable = (*sliders, ipywidgets.IntSlider, ipywidgets.FloatSlider)
    for widget in all_five:
        controls = [part for part in tree(widget) if not isinstance(part, passive)]
        assert len(controls) >= 4
        for part in controls:
            assert part.description, part
            assert not isinstance(part, unspeakable), part
            assert part.tooltip, part
            assert any(name.startswith("sepme-") for name in part._dom_classes), part
            assert not getattr(part, "continuous_update", False), part
        classes = [name for part in tree(widget) for name in part._dom_classes]
        assert len(classes) == len(set(classes))  # each leads to one place


def test_every_picture_has_words(all_five: list) -> None:
    all_five[0].draw.click()
    for widget in all_five:
        assert len(widget.picture.alt) > 40
        assert f'alt="{widget.picture.alt[:20]}' in widget.picture.value
        assert widget.picture.png.startswith(b"\x89PNG")


def test_the_mixer_has_the_hooks_that_its_module_promises(shell: ConceptMixer) -> None:
    names = (
        "draw stop restore prompt object style seed pictures steps progress status "
        "tick-neon new erase"
    ).split()
    shell.ticks["neon"].value = True
    classes = {name for part in tree(shell) for name in part._dom_classes}
    assert {f"sepme-mixer-{name}" for name in [*names, "strength-neon"]} <= classes
    assert "sepme-mixer-strength-ink" not in classes
