"""The tables' explorer: what it draws from a state, and what its controls do, without a browser."""

import re
from dataclasses import replace

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pandas import DataFrame

from sepme.scenes import EVALUATED, SCENES, moments, published
from sepme.scenes.figures import COMPARED, method_looks
from sepme.scenes.methods import METHODS
from sepme.scenes.tables import MEASURED, PUBLISHED
from sepme.widgets import ResultsState, results_explorer
from sepme.widgets._parts import Explorer
from sepme.widgets.results import cells_of, describe, render

STATE = ResultsState("style", "Scene1", "t1", "lpips")


def measured(method: str, index: int, value: float | None, state: ResultsState = STATE) -> dict:
    """One row of a table, as much of it as the explorer looks at."""
    row = {"kind": state.kind, "method": method, "scene": state.scene, "time": state.time}
    row |= {"concept_index": index, "concept": EVALUATED[state.kind].names[index % 9]}
    for name in ("acc", "lpips", "fid"):
        here = value if name == state.measure else None
        ends = (None, None) if here is None else (0.9 * here, 1.1 * here)
        row |= {name: here, f"{name}_low": ends[0], f"{name}_high": ends[1]}
    return row


#: ESD comes before SepME here, and is to be drawn after it.
LIST = [measured(m, i, 0.1 * (i + 1)) for m in ("esd-x", "sepme-faithful@paper") for i in range(9)]
ROWS = DataFrame(LIST)


@pytest.fixture
def shell() -> Explorer:
    return results_explorer(ROWS, published())


def bars(figure: Figure, panel: int) -> list[Rectangle]:
    """The bars of a panel, method by method."""
    return [bar for container in figure.axes[panel].containers for bar in _patches(container)]


def _patches(container: object) -> list[Rectangle]:
    return list(getattr(container, "patches", ()))


def legend(figure: Figure, panel: int) -> list[str]:
    found = figure.axes[panel].get_legend()
    return [] if found is None else [" ".join(t.get_text().split()) for t in found.get_texts()]


# ---------------------------------------------------------------- state
def test_a_state_knows_its_moment() -> None:
    for scene in SCENES:
        for moment in moments(scene):
            assert ResultsState("object", scene, moment.time).moment == moment


# ---------------------------------------------------------------- cells
def methods(state: ResultsState, rows: DataFrame) -> list[str]:
    return list(cells_of(state, rows)["method"].unique())


def test_the_measured_cells_are_those_of_the_moment_and_of_the_nine() -> None:
    elsewhere = ResultsState("style", "Scene1", "t3", "lpips")
    more = [
        measured("sepme-faithful@paper", 0, 7.0, elsewhere),
        measured("sepme-faithful@paper", 9, 7.0),  # the watermark
        measured("uce@catalogue", 0, None),  # not measured
    ]
    cells = cells_of(STATE, DataFrame(LIST + more))
    assert list(cells["method"]) == ["sepme-faithful@paper"] * 9 + ["esd-x"] * 9
    assert list(cells["concept_index"]) == [*range(9), *range(9)]
    assert cells[["value", "low", "high"]].iloc[1].tolist() == [0.2, 0.9 * 0.2, 1.1 * 0.2]


def test_the_printed_cells_stand_beside_the_baselines_where_there_are_some() -> None:
    assert {"SepME", "ESD50", "ESD200", "FMN30"} < set(methods(STATE, published()))
    assert methods(ResultsState("style", "Scene2", "t1"), published()) == ["SepME"]
    by_hand = published().query("table == '5' and method == 'SepME' and scene == 'Scene1'")
    ours = cells_of(STATE, published()).query("method == 'SepME'")["value"]
    assert list(ours) == list(by_hand.query("time == 't1'")["lpips"])


def test_one_method_is_shown_on_both_sides_in_all_its_lengths() -> None:
    esd, uce = replace(STATE, method="esd-x"), replace(STATE, method="uce@catalogue")
    assert methods(esd, ROWS) == ["esd-x"]
    assert set(methods(esd, published())) == {"ESD50", "ESD200"}
    assert cells_of(esd, ROWS).equals(cells_of(STATE, ROWS).query("method == 'esd-x'"))
    assert cells_of(uce, published()).empty
    assert "of ESD-x" in describe(esd, ROWS, published())
    assert "not there" in describe(uce, ROWS, published())


def test_what_is_said_of_all_methods_is_said_of_a_sepme_that_was_measured() -> None:
    """The printed SepME stands beside any SepME of ours, and beside no baseline."""
    scene4 = ResultsState("style", "Scene4", "t0")
    rows = DataFrame([measured("sepme@catalogue", i, 0.5, scene4) for i in range(9)])
    text = describe(scene4, rows, published())
    assert f"of {METHODS['sepme@catalogue'].title}" in text
    assert "not there" not in text
    chosen = replace(STATE, method="sepme@catalogue")
    assert set(cells_of(chosen, published())["method"]) == {"SepME"}
    assert "SepME" not in set(cells_of(replace(STATE, method="esd-x"), published())["method"])


def test_a_doubtful_row_is_not_shown() -> None:
    found = methods(ResultsState("object", "Scene4", "t5"), published())
    assert "SepME" not in found
    assert len(found) == 4
    assert "SepME" in methods(ResultsState("object", "Scene4", "t4"), published())


# ---------------------------------------------------------------- looks
def test_a_method_looks_alike_on_both_sides() -> None:
    pairs = {
        "SepME": "sepme-faithful@paper",
        "ESD50": "esd-x",
        "AbConcept[75,75]": "abconcept",
        "FMN30": "fmn",
    }
    above, below = method_looks(list(pairs)), method_looks(list(reversed(pairs.values())))
    for printed, ours in pairs.items():
        assert above[printed] == below[ours] == method_looks(COMPARED)[ours]


def test_a_second_length_is_paler_and_otherwise_alike() -> None:
    looks = method_looks(["ESD200", "ESD50"])
    assert looks["ESD50"] == looks["ESD200"] | {"alpha": 0.5}


def test_every_method_has_a_look_of_its_own() -> None:
    """With both retain sets it is the same method, the second time paler."""
    looks = method_looks(list(METHODS))
    seen = {(look["facecolor"], look["hatch"], look["alpha"]) for look in looks.values()}
    assert len(seen) == len(METHODS) > len(COMPARED)


# ---------------------------------------------------------------- picture
def test_the_bars_are_the_cells_and_the_two_panels_say_whose() -> None:
    figure = render(STATE, ROWS, published())
    assert [ax.get_title() for ax in figure.axes] == [PUBLISHED, MEASURED]
    heights = [bar.get_height() for bar in bars(figure, 1)]
    assert heights == pytest.approx([0.1 * (i + 1) for i in range(9)] * 2)
    assert legend(figure, 1) == [METHODS["sepme-faithful@paper"].title, METHODS["esd-x"].title]
    assert len(bars(figure, 0)) == 9 * len(legend(figure, 0)) == 54


def test_the_same_colour_and_hatch_in_both_panels() -> None:
    figure = render(STATE, ROWS, published())

    def looks(panel: int) -> dict[str, tuple]:
        firsts = bars(figure, panel)[::9]
        names = [re.split(r"\W", title)[0] for title in legend(figure, panel)]
        found = {}
        for name, bar in zip(names, firsts, strict=True):
            look = (to_rgb(bar.get_facecolor()), bar.get_hatch())
            found.setdefault(name, look)
        return found

    above, below = looks(0), looks(1)
    assert set(below) == {"SepME", "ESD"}
    assert {name: above[name] for name in below} == below
    assert len(set(above.values())) == 4


def test_an_accuracy_is_in_percent_with_its_interval() -> None:
    state = ResultsState("style", "Scene1", "t1", "acc")
    figure = render(
        state,
        DataFrame([measured("sepme-faithful@paper", i, 0.5, state) for i in range(9)]),
        published(),
    )
    assert {bar.get_height() for bar in bars(figure, 1)} == {50}
    (whiskers,) = (c for c in figure.axes[1].containers if not _patches(c))
    (ends,) = whiskers.lines[2]
    assert [y for _, y in ends.get_segments()[0]] == pytest.approx([45, 55])


def test_erased_concepts_are_shaded_and_roles_are_written() -> None:
    figure = render(STATE, ROWS, published())
    for ax in figure.axes:
        labels = [label.get_text() for label in ax.get_xticklabels()]
        assert [label.split("(")[1] for label in labels] == [
            *["recovered)"] * 2, *["erased)"] * 4, *["regular)"] * 3,
        ]  # fmt: skip
        shaded = [p.get_x() for p in ax.patches if p.get_alpha() == 0.07]
        assert shaded == [1.5, 2.5, 3.5, 4.5]
    assert labels[0].startswith("neon")
    assert figure.axes[0].get_xticklabels()[0].get_text().startswith("Cezanne")


def test_what_was_not_measured_is_said() -> None:
    figure = render(STATE, ROWS[:0], published())
    assert [text.get_text() for text in figure.axes[1].texts] == ["not there"]
    assert list(figure.axes[0].texts) == []
    assert f"{MEASURED}: not there" in describe(STATE, ROWS[:0], published())


def test_the_words_give_the_means_of_both_sides() -> None:
    text = describe(STATE, ROWS, published())
    cells = cells_of(STATE, published()).query("method == 'SepME'")
    erased = cells.query("concept_index in (2, 3, 4, 5)")["value"].mean()
    assert f"{PUBLISHED}: {erased:.3g} for the erased" in text
    assert f"{MEASURED}: 0.45 for the erased and 0.54 for the others" in text


# ---------------------------------------------------------------- controls
def test_choosing_shows_another_picture_and_back_the_first(shell: Explorer) -> None:
    assert shell.state == ResultsState()
    first = shell.picture.png
    shell.measure.value, shell.time.value = "lpips", "t1"
    assert shell.state == STATE
    second = shell.picture.png
    assert second != first
    assert shell.status.text == describe(STATE, ROWS, published()) == shell.picture.alt
    shell.kind.value = "object"
    assert "objects 2, 3, 4, 5 erased" in shell.status.text
    shell.kind.value, shell.measure.value, shell.time.value = "style", "acc", "t0"
    assert shell.picture.png == first
    assert [value for _, value in shell.method.options] == ["all", "sepme-faithful@paper", "esd-x"]
    shell.method.value = "esd-x"
    assert "of ESD-x" in shell.status.text
    assert shell.picture.png != first
    shell.method.value = "all"
    assert shell.picture.png == first


@pytest.mark.parametrize("scene", SCENES)
def test_a_scene_brings_its_own_moments(shell: Explorer, scene: str) -> None:
    shell.time.value = "t3"
    shell.scene.value = scene
    assert list(shell.time.options) == [moment.time for moment in moments(scene)]
    shell.time.value = shell.time.options[-1]
    assert shell.state.moment == moments(scene)[-1]
    assert scene in shell.status.text
    shell.scene.value = "Scene1"
    assert shell.state.moment.scene == "Scene1"


def test_a_cell_without_lpips_leaves_the_others() -> None:
    some = DataFrame(
        [measured("sepme-faithful@paper", i, None if i == 4 else 0.3) for i in range(9)]
    )
    assert list(cells_of(STATE, some)["concept_index"]) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert len(bars(render(STATE, some, published()), 1)) == 8
