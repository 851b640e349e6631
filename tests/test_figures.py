"""The paper's figures: made from tables, published beside measured, and left out if unmeasured."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from pandas import DataFrame
from PIL import Image

from sepme._data import shipped
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS
from sepme.scenes import (
    ALONE,
    EVALUATED,
    SCENES,
    complete,
    moments,
    published,
    role_means,
    role_table,
)
from sepme.scenes.figures import (
    COMPARED,
    FIGURES,
    NotMeasured,
    Sources,
    _panels,
    draw_figures,
    method_looks,
    role_bars,
)
from sepme.scenes.methods import METHODS
from sepme.scenes.protocol import WATERMARK
from sepme.scenes.tables import (
    COLUMNS,
    DAGGER,
    LEGEND,
    MEASURED,
    NUMBERS,
    PUBLISHED,
    RESULTS,
    method_title,
    paper_tables,
    read_table,
    write_table,
)
from tests.refusals import refused

LEVELS = {"erased": 0.1, "recovered": 0.9, "regular": 0.8}
LPIPS = {"lpips": 0.2, "lpips_low": 0.1, "lpips_high": 0.3}


def row(kind: str, method: str, moment, index: int, **values: float) -> dict:
    acc = LEVELS[moment.role(index)]
    about = {
        "kind": kind,
        "method": method,
        "scene": moment.scene,
        "time": moment.time,
        "concept_index": index,
        "concept": EVALUATED[kind].name(index),
        "role": moment.role(index),
        "erased": " ".join(map(str, moment.erased)),
        "cell": "c",
        "images": 100.0,
        "acc": acc,
        "acc_low": acc - 0.05,
        "acc_high": acc + 0.05,
    }
    return about | LPIPS | values


def table(rows: list[dict]) -> DataFrame:
    return DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(NUMBERS, float))


def every_cell(method: str, *scenes: str, kind: str = "style") -> list[dict]:
    """A row for every cell of these scenes."""
    return [row(kind, method, m, i) for scene in scenes for m in moments(scene) for i in range(10)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables with a row for every cell of every compared method."""
    folder = tmp_path_factory.mktemp("results")
    scenes = ("Scene1", "Scene4", *ALONE)
    for kind in EVALUATED:
        methods = (*COMPARED, "sepme-joint@catalogue", "sepme-regularised@catalogue")
        rows = [row for method in methods for row in every_cell(method, *scenes, kind=kind)]
        write_table(folder / f"scenes_{kind}.csv", table(rows))
        (folder / f"scenes_{kind}.json").write_text(
            json.dumps({"model": "atelier", "fingerprint": "", "seed": 0, "methods": {}})
        )
    return folder


# ---------------------------------------------------------------- means
def test_means_by_role_by_hand() -> None:
    first, second, *_ = moments("Scene1")
    rows = table(
        [
            row("style", "sepme@catalogue", first, 0, acc=0.2, acc_low=0.1, acc_high=0.5),
            row("style", "sepme@catalogue", first, 1, acc=0.4, acc_low=0.3, acc_high=0.4),
            row("style", "sepme@catalogue", second, 0, acc=1.0, acc_low=0.9, acc_high=1.0),
            row("style", "fmn", first, 2, acc=0.2, acc_low=0.1, acc_high=0.5),
            row("style", "fmn", second, 2, acc=0.4, acc_low=0.3, acc_high=0.4),
            row("style", "sepme@catalogue", first, WATERMARK, acc=0.7, acc_low=0.6, acc_high=0.8),
        ]
    )
    means = role_means(rows, "acc")
    erased = means.loc[("sepme@catalogue", "erased")]
    assert erased["cells"] == 2
    assert erased["mean"] == pytest.approx(0.3)
    assert erased["low"] == pytest.approx(0.3 - np.hypot(0.1, 0.1) / 2)
    assert erased["high"] == pytest.approx(0.3 + 0.3 / 2)
    again = means.query("method == 'fmn'").iloc[0]  # the same noise twice, so no narrower than once
    assert again["mean"] - again["low"] == pytest.approx(0.1)
    assert again["high"] - again["mean"] == pytest.approx(0.15)
    assert means["mean"]["sepme@catalogue", "recovered"] == 1.0
    assert means["mean"]["sepme@catalogue", "watermark"] == 0.7
    assert (
        "sepme@catalogue",
        "regular",
    ) not in means.index  # the watermark is not a regular concept


def test_a_method_with_a_missing_cell_is_left_out() -> None:
    whole = every_cell("uce@catalogue", "Scene1")
    rows = table([*whole, *every_cell("fmn", "Scene1")[:-1], *every_cell("esd-x", "Scene4")])
    assert complete(rows, ["Scene1"]).equals(table(whole))
    assert complete(rows, ["Scene1", "Scene4"]).empty
    few = complete(rows, ["Scene1"], [6])
    assert set(few["method"]) == {"uce@catalogue", "fmn"}
    assert len(few) == 2 * sum(len({*m.erased, 6}) for m in moments("Scene1"))
    means = role_table(rows, "acc")
    assert list(means) == ["erased", "recovered", "regular", "watermark"]
    assert list(means.index) == [
        *("Scene1 UCE [catalogue]", "Scene1 FMN [none] (incomplete)", "Scene4 ESD-x [none]")
    ]
    assert means.loc["Scene1 UCE [catalogue]", "erased"].startswith("10.0 (")
    with refused("No cell of this table holds fid"):
        role_table(rows, "fid")


def test_what_is_incomplete_is_not_drawn(results: Path, tmp_path: Path) -> None:
    rows = read_table(results / "scenes_style.csv")
    missing = rows.query("method == 'uce@catalogue' and scene == 'Scene1' and time == 't3'").index[
        8
    ]
    write_table(tmp_path / "scenes_style.csv", rows.drop(index=missing))
    found = Sources(tmp_path).rows("style", ["sepme@catalogue", "uce@catalogue"], ["Scene1"])
    assert set(found["method"]) == {"sepme@catalogue"}
    with pytest.raises(NotMeasured, match="None of uce@catalogue was measured in every cell"):
        Sources(tmp_path).rows("style", ["uce@catalogue"], ["Scene1"])


def test_published_means_have_no_interval() -> None:
    rows = published().query("table == '6' and scene == 'Scene4' and not doubtful")
    bar = role_means(rows, "acc").loc[("SepME", "recovered")]
    values = rows.query("method == 'SepME' and role == 'recovered'")
    assert bar["mean"] == pytest.approx(values["acc"].mean())
    assert "t5" not in set(values["time"])  # it repeats another row
    assert np.isnan(bar["low"])


def test_names_fit_a_legend() -> None:
    assert method_title("sepme-faithful@paper") == "SepME, faithful [paper]"
    assert method_title("SepME") == "SepME [paper]"
    assert method_title("ESD50") == "ESD, 50 it. [none]"
    assert method_title("FMN[50,30,40]") == "FMN, 30 to 50 it. [none]"


def names_a_retain_set(text: str) -> bool:
    return re.search(r"\[(paper|catalogue|none)\]", text) is not None


def test_every_caption_names_the_retain_sets() -> None:
    assert [name for name, entry in FIGURES.items() if not names_a_retain_set(entry.caption)] == []
    assert not names_a_retain_set("Each of six styles erased by itself, by method.")


# ---------------------------------------------------------------- bars
def bars(measure: str, low: float) -> object:
    """Two methods with one erased cell each; only the second has an interval."""
    first = moments("Scene1")[0]
    one = dict.fromkeys((f"{measure}_low", f"{measure}_high"), np.nan) | {measure: low}
    two = {measure: 0.5, f"{measure}_low": 0.4, f"{measure}_high": 0.7}
    rows = [
        row("style", m, first, 0, **v) for m, v in (("sepme-faithful@paper", one), ("ESD50", two))
    ]
    ax = Figure().subplots()
    role_bars(role_means(table(rows), measure), measure, ax)
    return ax


def test_bars_stand_where_their_numbers_are() -> None:
    ax = bars("acc", 0.25)
    assert [patch.get_height() for patch in ax.patches] == [25, 50]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        *("SepME, faithful [paper]", "ESD, 50 it. [none]")
    ]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["erased"]
    (interval,) = (each for each in ax.containers if isinstance(each, ErrorbarContainer))
    (ends,) = interval.lines[2]
    assert [y for _, y in ends.get_segments()[0]] == pytest.approx([40, 70])


def test_panels_of_a_measure_have_one_scale_in_which_no_bar_is_cut_off() -> None:
    first, lines = moments("Scene1")[0], {}
    for label, high in (("low", 0.0006), ("high", 0.6)):
        values = {"lpips": high, "lpips_low": high, "lpips_high": high, "acc": high}
        lines[label] = table([row("style", "fmn", first, 0, **values)])
    figure = _panels("", (6, 4), lines)
    figure.draw_without_rendering()
    for ax in figure.axes:
        assert max(patch.get_height() for patch in ax.patches) <= ax.get_ylim()[1]
    low, high = (ax for ax in figure.axes if ax.get_legend())
    assert low.get_ylim() == high.get_ylim()
    assert low.get_ylim()[0] == 0
    assert [text.get_text() for text in low.texts] == ["<0.001"]
    assert not high.texts


def test_a_bar_too_low_to_see_says_its_number() -> None:
    assert [text.get_text() for text in bars("lpips", 0.001).texts] == ["0.001"]


def _as_seen(colour: object, matrix: np.ndarray) -> np.ndarray:
    """A colour as somebody without one kind of cone sees it, in linear RGB."""
    rgb = np.array(colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return matrix @ linear


#: Machado, Oliveira & Fernandes 2009, severity 1.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


@pytest.mark.parametrize("kind", BLINDNESS)
def test_methods_stay_apart_for_colour_blind_eyes(kind: str) -> None:
    matrix = np.array(BLINDNESS[kind])
    looks = list(method_looks({name.split("@")[0] for name in COMPARED}).values())
    assert len({(look["facecolor"], look["hatch"]) for look in looks}) == len(looks)
    for i, one in enumerate(looks):
        for other in looks[:i]:
            faces = (_as_seen(look["facecolor"], matrix) for look in (one, other))
            apart = np.abs(np.subtract(*faces)).max()
            assert apart > 0.05 or one["hatch"] != other["hatch"]


# ---------------------------------------------------------------- tables
def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_hold_every_cell_by_role() -> None:
    first, second, _ = moments("Scene1")
    rows = [
        row("style", "sepme@catalogue", first, 0, acc=0.02, acc_low=0.01, acc_high=0.07, lpips=0.4),
        row(
            "style", "sepme@catalogue", second, 0, acc=0.995, acc_low=0.9, acc_high=1.0, lpips=0.001
        ),
        row("style", "sepme@catalogue", first, WATERMARK, acc=0.5),
    ]
    text = paper_tables("style", table(rows))
    ours = text[text.index(f"Classifier accuracy, % ({MEASURED})") :].splitlines()[2:6]
    header, _, gone, back = map(cells, ours)
    assert header[:3] == ["time", "method", "0 neon"]
    assert "atelier seal" not in text
    assert gone[:4] == ["t0", METHODS["sepme@catalogue"].title, "**2** [1, 7]", "–"]
    assert back[:3] == ["t1", METHODS["sepme@catalogue"].title, "*100* [90, 100]"]
    theirs = text[text.index(f"Classifier accuracy, % ({PUBLISHED})") :].splitlines()[2:5]
    assert cells(theirs[0])[2] == "0 Cezanne"
    assert cells(theirs[2])[:4] == ["t0", "SepME [paper], table 2", "**12.4**", "**36.8**"]
    printed = published()
    printed = printed[(printed["kind"] == "style") & printed["scene"].isin(SCENES)]
    doubts = sum(printed["doubtful"] | (printed["note"] != ""))
    assert text.split("## †")[0].count(DAGGER) >= doubts  # once for each measure of the cell


@pytest.mark.parametrize("kind", EVALUATED)
def test_the_shipped_tables_are_what_is_written_now(kind: str) -> None:
    text = paper_tables(kind, read_table(RESULTS / f"scenes_{kind}.csv"))
    shipped = Path(__file__).parent.parent / "figures" / "paper" / f"tables_{kind}.md"
    assert text == shipped.read_text()


# ---------------------------------------------------------------- all of them
def asks_the_model(name: str) -> bool:
    return name.startswith(("noise", "correlation", "before_after"))


def check_files(folder: Path, names: list[str]) -> None:
    for name in names:
        with Image.open(folder / f"{name}.png") as image:
            assert min(image.size) > 200
        manifest = json.loads((folder / f"{name}.json").read_text())
        assert manifest["caption"] == FIGURES[name].caption
        assert manifest["sources"]
        assert (folder / f"{name}.svg").is_file()


def test_figures_are_drawn_with_their_manifests(results: Path, tmp_path: Path, monkeypatch) -> None:
    drawn = {name: entry for name, entry in FIGURES.items() if not asks_the_model(name)}
    monkeypatch.setattr("sepme.scenes.figures.FIGURES", drawn)
    said: list[str] = []
    draw_figures(tmp_path, results, say=said.append)
    assert len(list(tmp_path.iterdir())) == 3 * len(drawn) + 3
    assert not any("left out" in line for line in said)
    check_files(tmp_path, list(drawn))
    text = (tmp_path / "bars_style_scene1.svg").read_text()
    assert PUBLISHED in text
    assert MEASURED in text
    index = (tmp_path / "README.md").read_text()
    for name in drawn:
        assert f"![{name}]({name}.png)" in index
        assert FIGURES[name].caption.removesuffix(LEGEND).strip() in index
    assert index.count(LEGEND) == 1
    assert "(tables_style.md), [objects](tables_object.md)" in index
    again = tmp_path / "again"
    draw_figures(again, results, only=["watermark_style"], say=said.append)
    for suffix in ("svg", "png", "json"):
        name = f"watermark_style.{suffix}"
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.chapters
def test_figures_of_the_model_are_drawn(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "from_zero", replace(PRESETS["from_zero"], iterations=6))
    same_code = ("before_after_style_scene4", "before_after_object_scene1")
    names = [name for name in FIGURES if asks_the_model(name) and name not in same_code]
    draw_figures(tmp_path, results, only=names)
    check_files(tmp_path, names)


@pytest.mark.parametrize("with_fid", [(), ("sepme@catalogue",), ("sepme@catalogue", "esd-x")])
def test_a_map_of_fid_is_drawn_for_the_methods_with_fid(tmp_path: Path, with_fid) -> None:
    rows = table(
        [row for method in ("sepme@catalogue", "esd-x") for row in every_cell(method, *ALONE)]
    )
    rows.loc[rows["method"].isin(with_fid), "fid"] = 30.0
    write_table(tmp_path / "scenes_style.csv", rows)
    figure = FIGURES["interference"].draw(Sources(tmp_path))
    maps = [ax for ax in figure.axes if ax.axison and ax.get_xlabel()]
    assert len(maps) == 2 + len(with_fid)
    assert [ax.texts[0].get_text() for ax in maps] == ["0.20"] * 2 + ["30"] * len(with_fid)


def test_what_is_not_measured_is_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    names = [name for name in FIGURES if not asks_the_model(name)]
    draw_figures(tmp_path / "out", tmp_path, only=names, say=said.append)
    assert [*(tmp_path / "out").glob("*")] == []
    assert len(said) == len(names) > 5
    assert all("left out" in line for line in said)
    assert MEASURED not in paper_tables("style", None)


def test_the_committed_figures_are_of_what_ships() -> None:
    """Of the deltas that ship, and of the settings as they are."""
    folder, shipped_now = Path("figures/paper"), shipped("atelier", "deltas")
    digests = {
        delta.concept: delta.digest for delta in map(ConceptDelta.load, shipped_now.iterdir())
    }
    drawn = 0
    for file in sorted(folder.glob("*.json")):
        sources = json.loads(file.read_text())["sources"]
        of = sources.get("deltas", sources.get("delta", {}))
        drawn += bool(of)
        assert {name: digests[name] for name in of} == of, file
        if settings := sources.get("settings"):
            now = asdict(PRESETS["from_zero"])
            assert {name: settings.get(name) for name in now} == now
    assert drawn >= 5
