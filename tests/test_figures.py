"""The paper's figures: made from tables, published beside measured, and left out if unmeasured."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colors
from PIL import Image

from sepme.scenes import SCENES, WATERMARK, cast, moments
from sepme.scenes.figures import (
    COMPARED,
    FIGURES,
    LABEL,
    MEASURED,
    STYLES,
    NotMeasured,
    Sources,
    build,
    build_index,
    build_tables,
)
from sepme.scenes.plots import interference_table, role_bars
from sepme.scenes.protocol import ALONE
from sepme.scenes.published import published
from sepme.scenes.run import HEADER, _write, read_rows
from sepme.scenes.summary import Bar, complete, measured_bars, published_bars, role_table, short
from sepme.scenes.tables import DAGGER, tables
from tests.refusals import refused

LEVELS = {"erased": 0.1, "recovered": 0.9, "regular": 0.8}


def row(kind: str, method: str, moment, index: int, **values: float) -> dict:
    who = cast(kind)
    place = {
        "kind": kind,
        "method": method,
        "scene": moment.scene,
        "time": moment.time,
        "concept_index": str(index),
        "concept": who.name(index),
        "role": moment.role(index),
        "erased": " ".join(map(str, moment.erased)),
        "cell": "c",
    }
    acc = LEVELS[moment.role(index)]
    numbers = {"acc": acc, "acc_low": acc - 0.05, "acc_high": acc + 0.05}
    numbers |= {"lpips": 0.2, "lpips_low": 0.1, "lpips_high": 0.3, "images": 100.0}
    return dict.fromkeys(HEADER) | place | numbers | values


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables with a row for every cell of every compared method."""
    folder = tmp_path_factory.mktemp("results")
    methods = (*COMPARED, "sepme-joint", "sepme-regularised")
    for kind in ("style", "object"):
        rows = [
            row(kind, method, moment, index)
            for method in methods
            for scene in ("Scene1", "Scene4", *ALONE)
            for moment in moments(scene)
            for index in range(10)
        ]
        _write(folder / f"scenes_{kind}.csv", rows)
        (folder / f"scenes_{kind}.json").write_text(json.dumps({"model": "atelier", "images": 100}))
    return folder


# ---------------------------------------------------------------- summary
def test_means_by_role_by_hand() -> None:
    first, second, *_ = moments("Scene1")
    rows = [
        row("style", "sepme", first, 0, acc=0.2, acc_low=0.1, acc_high=0.5),
        row("style", "sepme", first, 1, acc=0.4, acc_low=0.3, acc_high=0.4),
        row("style", "sepme", second, 0, acc=1.0, acc_low=0.9, acc_high=1.0),
        row("style", "sepme", first, WATERMARK, acc=0.7, acc_low=0.6, acc_high=0.8),
    ]
    bars = measured_bars(rows, "acc", ["Scene1"])
    erased = bars["sepme", "erased"]
    assert erased.cells == 2
    assert erased.mean == pytest.approx(0.3)
    assert erased.low == pytest.approx(0.3 - np.hypot(0.1, 0.1) / 2)
    assert erased.high == pytest.approx(0.3 + 0.3 / 2)
    assert bars["sepme", "recovered"].mean == 1.0
    assert ("sepme", "regular") not in bars  # the watermark is not a regular concept
    mark = measured_bars(rows, "acc", ["Scene1"], by="watermark")
    assert {key: bar.mean for key, bar in mark.items()} == {("sepme", "watermark"): 0.7}
    assert measured_bars(rows, "acc", ["Scene4"]) == {}


def test_a_method_with_a_missing_cell_is_left_out() -> None:
    whole = [row("style", "uce", m, i) for m in moments("Scene1") for i in range(10)]
    torn = [row("style", "fmn", m, i) for m in moments("Scene1") for i in range(10)][:-1]
    elsewhere = [row("style", "esd-x", m, i) for m in moments("Scene4") for i in range(10)]
    rows = [*whole, *torn, *elsewhere]
    assert complete(rows, ["Scene1"]) == whole
    assert complete(rows, ["Scene1", "Scene4"]) == []
    few = complete(rows, ["Scene1"], [6])
    assert {r["method"] for r in few} == {"uce", "fmn"}
    wanted = sum(len({*m.erased, 6}) for m in moments("Scene1"))
    assert len(few) == 2 * wanted
    header, body = role_table(rows, "acc")
    assert header == ("acc", "erased", "recovered", "regular", "watermark")
    assert [line[0] for line in body] == ["Scene1 uce", "Scene1 fmn (incomplete)", "Scene4 esd-x"]
    with refused("No cell of this table holds fid"):
        role_table(rows, "fid")


def test_what_is_incomplete_is_not_drawn(results: Path, tmp_path: Path) -> None:
    lines = (results / "scenes_style.csv").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("style,uce,Scene1,t3,8,")]
    assert len(kept) == len(lines) - 1
    (tmp_path / "scenes_style.csv").write_text("".join(kept))
    rows = Sources(tmp_path).complete("style", ["sepme", "uce"], ["Scene1"])
    assert {r["method"] for r in rows} == {"sepme"}
    with pytest.raises(NotMeasured, match="No method was measured in every cell"):
        Sources(tmp_path).complete("style", ["uce"], ["Scene1"])


def test_published_means_leave_out_what_is_doubtful() -> None:
    bars = published_bars(published(), "acc", ["Scene4"], tables=["6"])
    values = [
        cell.acc
        for cell in published()
        if (cell.table, cell.scene, cell.method) == ("6", "Scene4", "SepME")
        and cell.role == "recovered"
        and cell.time != "t5"
    ]
    assert bars["SepME", "recovered"].mean == pytest.approx(np.mean(values))
    assert bars["SepME", "recovered"].low is None


def test_printed_names_fit_an_axis() -> None:
    assert short("SepME") == "SepME"
    assert short("ESD50") == "ESD\n(50 it.)"
    assert short("FMN[50,30]") == "FMN\n(50,30 it.)"


# ---------------------------------------------------------------- plots
def test_bars_stand_where_their_numbers_are() -> None:
    bars = {("a", "erased"): Bar(0.25, 0.2, 0.4, 3), ("b", "erased"): Bar(0.5, None, None, 3)}
    ax = role_bars(bars, "acc", {"a": "A"})
    heights = [patch.get_height() for patch in ax.patches]
    assert heights == [25, 50]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["A", "b"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["erased"]
    with refused("no cell"):
        role_bars({}, "acc", {})


def test_a_bar_too_low_to_see_says_its_number() -> None:
    bars = {("a", "erased"): Bar(0.001, None, None, 3), ("b", "erased"): Bar(0.5, None, None, 3)}
    assert [text.get_text() for text in role_bars(bars, "lpips", {}).texts] == ["0.001"]


def test_a_map_needs_as_many_names_as_numbers() -> None:
    ax = interference_table([[1.0, 2.0]], ["x"], ["y", "z"], "FID")
    assert [text.get_text() for text in ax.texts] == ["1.00", "2.00"]
    with refused("1 x 2 numbers for 2 rows"):
        interference_table([[1.0, 2.0]], ["x", "w"], ["y", "z"], "FID")


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
    looks = list(STYLES.values())
    assert len({(look["facecolor"], look["hatch"]) for look in looks}) == len(looks)
    for i, one in enumerate(looks):
        for other in looks[:i]:
            apart = np.abs(
                _as_seen(one["facecolor"], matrix) - _as_seen(other["facecolor"], matrix)
            ).max()
            assert apart > 0.05 or one["hatch"] != other["hatch"]


# ---------------------------------------------------------------- tables
def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_hold_every_cell_by_role() -> None:
    first, second, _ = moments("Scene1")
    rows = [
        row("style", "sepme", first, 0, acc=0.02, acc_low=0.01, acc_high=0.07, lpips=0.4),
        row("style", "sepme", second, 0, acc=0.995, acc_low=0.9, acc_high=1.0, lpips=0.001),
        row("style", "sepme", first, WATERMARK, acc=0.5),
    ]
    text = tables("style", rows, MEASURED)
    ours = text[text.index(f"Classifier accuracy, % ({MEASURED})") :].splitlines()[2:6]
    header, _, gone, back = map(cells, ours)
    assert header[:3] == ["time", "method", "0 neon"]
    assert "atelier seal" not in text
    assert gone[:4] == ["t0", "SepME", "**2** [1, 7]", "–"]
    assert back[:3] == ["t1", "SepME", "*100* [90, 100]"]
    theirs = text[text.index(f"Classifier accuracy, % ({LABEL})") :].splitlines()[2:5]
    assert cells(theirs[0])[2] == "0 Cezanne"
    assert cells(theirs[2])[:4] == ["t0", "SepME, table 2", "**12.4**", "**36.8**"]
    printed = [r for r in published() if r.kind == "style" and r.scene in SCENES]
    doubts = sum(r.doubtful or bool(r.note) for r in printed)
    assert text.split("## †")[0].count(DAGGER) >= doubts  # once for each measure of the cell


def test_tables_without_measurements_say_so(tmp_path: Path) -> None:
    said: list[str] = []
    files = build_tables(tmp_path, Sources(tmp_path / "none"), say=said.append)
    assert [file.name for file in files] == ["tables_style.md", "tables_object.md"]
    assert all(MEASURED not in file.read_text() for file in files)
    assert sum("published numbers only" in line for line in said) == 2


# ---------------------------------------------------------------- all of them
def asks_the_model(name: str) -> bool:
    return name.startswith(("noise", "correlation", "before_after"))


@pytest.mark.slow
def test_every_figure_is_drawn_with_its_manifest(results: Path, tmp_path: Path) -> None:
    said: list[str] = []
    files = build(tmp_path, Sources(results), say=said.append)
    assert len(files) == 3 * len(FIGURES)
    assert not any("left out" in line for line in said)
    for name in FIGURES:
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 200
        manifest = json.loads((tmp_path / f"{name}.json").read_text())
        assert manifest["caption"] == FIGURES[name].caption
        assert manifest["sources"]
    text = (tmp_path / "bars_style_scene1.svg").read_text()
    assert LABEL in text
    assert MEASURED in text
    build_tables(tmp_path, Sources(results), say=said.append)
    index = build_index(tmp_path).read_text()
    assert all(f"]({name}.png)" in index and FIGURES[name].caption in index for name in FIGURES)
    assert "(tables_style.md), [objects](tables_object.md)" in index
    again = tmp_path / "again"
    build(again, Sources(results), only=["watermark_style"], say=said.append)
    for suffix in ("svg", "png", "json"):
        name = f"watermark_style.{suffix}"
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("with_fid", [(), ("sepme",), ("sepme", "esd-x")])
def test_a_map_of_fid_is_drawn_of_whom_it_was_measured(tmp_path: Path, with_fid) -> None:
    rows = [
        row("style", method, moment, index, fid=30.0 if method in with_fid else None)
        for method in ("sepme", "esd-x")
        for scene in ALONE
        for moment in moments(scene)
        for index in range(10)
    ]
    _write(tmp_path / "scenes_style.csv", rows)
    figure = FIGURES["interference"].draw(Sources(tmp_path))
    maps = [ax for ax in figure.axes if ax.axison and ax.get_xlabel()]
    assert len(maps) == 2 + len(with_fid)
    assert [ax.texts[0].get_text() for ax in maps] == ["0.20"] * 2 + ["30"] * len(with_fid)


def test_what_is_not_measured_is_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    names = [name for name in FIGURES if not asks_the_model(name)]
    assert build(tmp_path, Sources(tmp_path / "none"), only=names, say=said.append) == []
    assert len(said) == len(names) > 5
    assert all("left out" in line for line in said)


def test_an_unknown_figure_is_refused(tmp_path: Path) -> None:
    with refused("'mona_lisa'"):
        build(tmp_path, Sources(), only=["mona_lisa"])


def test_numbers_survive_the_table(results: Path) -> None:
    rows = read_rows(results / "scenes_style.csv")
    assert rows[0]["acc"] in LEVELS.values()
    assert rows[0]["fid"] is None
    assert {r["scene"] for r in rows} <= {*SCENES, *ALONE}
