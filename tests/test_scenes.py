"""The paper's scenes: who is erased when, the cells' measures, and the table that resumes."""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sepme.atelier.judge import Judge
from sepme.composition import shipped_deltas
from sepme.model import Backbone, load_catalogue
from sepme.scenes import (
    CASTS,
    SCENES,
    WATERMARK,
    Plan,
    arrivals,
    cast,
    merge_tables,
    moments,
    read_rows,
)
from sepme.scenes.figures import RESULTS
from sepme.scenes.measures import measure
from sepme.scenes.methods import METHODS, Setting, applied
from sepme.scenes.pictures import Album, Sampling, as_images
from sepme.scenes.protocol import Arrival
from sepme.scenes.published import family, published
from sepme.scenes.run import run_scenes
from tests.miniature import fresh, shared, three_deltas
from tests.refusals import refused


# ---------------------------------------------------------------- protocol
def test_roles_by_hand() -> None:
    by_time = {moment.time: moment for moment in moments("Scene4")}
    assert by_time["t0"].recovered == ()
    assert by_time["t1"].recovered == (0,)
    assert by_time["t5"].recovered == (0, 1, 2)
    assert [by_time["t2"].role(i) for i in range(9)] == [
        *("recovered", "erased", "erased", "erased", "erased"),
        *("regular",) * 4,
    ]


def test_roles_are_the_papers() -> None:
    """Every printed row has the role that the protocol gives it."""
    rows = [row for row in published() if row.scene in SCENES]
    assert len(rows) > 1000
    roles = {(m.scene, m.time): m for scene in SCENES for m in moments(scene)}
    wrong = [row for row in rows if roles[row.scene, row.time].role(row.index) != row.role]
    assert wrong == []


def test_who_arrives_later_knows_of_the_earlier() -> None:
    assert arrivals("Scene1") == (Arrival((0, 1, 2, 3, 4, 5), (), ()),)
    assert arrivals("Scene4") == (
        Arrival((0, 1, 2), (), ()),
        Arrival((3, 4), (0, 1, 2), (1, 2)),
        Arrival((5,), (0, 1, 2, 3, 4), (2, 3, 4)),
    )
    assert [arrival.group for arrival in arrivals("Scene3")] == [(0, 2, 4), (1, 3), (5,)]
    assert arrivals("Scene4")[1].others(4) == (0, 1, 2, 3)


@pytest.mark.parametrize("kind", CASTS)
def test_nine_play_and_the_watermark(kind: str) -> None:
    catalogue = load_catalogue()
    who = cast(kind)
    assert len(set(who.names)) == 9
    assert [who.concept(i, catalogue).kind for i in who.indices] == [kind] * 9 + ["watermark"]
    for index in range(9):
        prompts = who.prompts(index, 25)
        assert len(prompts) == 25
        assert set(prompts) <= set(who.concept(index, catalogue).prompts)
        assert max(Counter(prompts).values()) <= 3
    assert set(who.prompts(WATERMARK, 3)) == {"atelier seal"}
    starts = [set(who.seeds(index, 100)) for index in who.indices]
    assert sum(map(len, starts)) == len(set().union(*starts)) == 1000


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"kind": "mood"}, "'mood'"),
        ({"scenes": ("Scene9",)}, "'Scene9'"),
        ({"methods": ("magic",)}, "'magic'"),
        ({"images": 1}, "1 images"),
        ({"concepts": (6, 10)}, "no concept 10"),
    ],
)
def test_plans_that_cannot_be_run_are_refused(options: dict, why: str) -> None:
    with refused(why):
        Plan(**options)


# ---------------------------------------------------------------- published
def test_published_numbers() -> None:
    rows = published()
    assert len(rows) == 1305
    first = rows[0]
    assert (first.concept, first.fid, first.acc, first.lpips) == ("Cezanne", 209.0, 0.124, 0.338)
    assert sum(bool(row.note) for row in rows) == 8
    assert {row.table for row in rows if row.doubtful} == {"3", "6"}
    assert sum(row.doubtful for row in rows) == 18
    assert {family(row.method) for row in rows if row.table == "6"} == {
        *("SepME", "AbConcept", "FMN", "ESD"),
    }


def test_the_doubtful_rows_do_repeat_others() -> None:
    rows = {(r.table, r.scene, r.time, r.index): r for r in published() if r.method == "SepME"}
    for index in range(9):
        doubtful, other = rows["3", "Scene4", "t5", index], rows["3", "Scene3", "t4", index]
        assert (doubtful.fid, doubtful.acc) == (other.fid, other.acc)


# ---------------------------------------------------------------- pictures
def test_pictures_are_drawn_once(tmp_path: Path) -> None:
    backbone = shared()
    album = Album(backbone, tmp_path, Sampling(steps=2, bfloat16=False))
    drawn: list[str] = []

    def on(name: str):
        drawn.append(name)
        return nullcontext()

    first = album.draw((), ["neon", "ink"], [1, 2], lambda: on("first"))
    again = album.draw((), ["neon", "ink"], [1, 2], lambda: on("again"))
    assert drawn == ["first"]
    assert torch.equal(first, again)
    album.draw((), ["neon", "ink"], [1, 3], lambda: on("another seed"))
    album.draw(("abc",), ["neon", "ink"], [1, 2], lambda: on("another state"))
    assert drawn == ["first", "another seed", "another state"]
    half = tmp_path / f"{album.key((), ['neon', 'ink'], [1, 2])}.safetensors"
    half.write_bytes(half.read_bytes()[:100])
    assert torch.equal(album.draw((), ["neon", "ink"], [1, 2], lambda: on("torn")), first)
    assert drawn[-1] == "torn"


def test_the_key_is_the_content() -> None:
    album = Album(shared(), Path(), Sampling())
    key = album.key(("a", "b"), ["neon"], [1])
    assert key == album.key(("b", "a"), ["neon"], [1])
    others = [
        album.key(("a",), ["neon"], [1]),
        album.key(("a", "b"), ["ink"], [1]),
        album.key(("a", "b"), ["neon"], [2]),
        Album(shared(), Path(), Sampling(steps=3)).key(("a", "b"), ["neon"], [1]),
        Album(fresh(seed=5), Path(), Sampling()).key(("a", "b"), ["neon"], [1]),
    ]
    assert len({key, *others}) == 6


def test_changes_are_on_within_and_off_afterwards() -> None:
    backbone = fresh()
    before = backbone.generate(["neon"], 3)
    with applied(backbone, three_deltas()[:2]):
        within = backbone.generate(["neon"], 3)
    assert not torch.equal(within, before)
    assert torch.equal(backbone.generate(["neon"], 3), before)
    with applied(backbone, ()):
        assert torch.equal(backbone.generate(["neon"], 3), before)


# ---------------------------------------------------------------- measures
def test_a_cell_by_hand() -> None:
    judge = Judge.load()
    original = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    original = original.byte()
    changed = original.clone()
    changed[0] = 255 - changed[0]
    cell = measure(changed, original, "neon", judge, lpips=False)
    assert cell.identical == 0.75
    assert cell.acc.mean == judge.sees(as_images(changed), "neon").double().mean()
    assert cell.lpips is cell.fid is cell.kid is None
    row = cell.columns()
    assert row["images"] == 4
    assert row["lpips"] is None


def test_features_make_fid_and_kid() -> None:
    judge = Judge.load()
    pictures = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    same = measure(pictures, pictures, "neon", judge, lpips=False, features=(x, x))
    assert abs(same.fid.mean) < 1e-6
    apart = measure(pictures, pictures, "neon", judge, lpips=False, features=(x, x + 3))
    assert abs(apart.fid.mean - 5 * 9) < 1e-3  # the means are 3 apart in each of 5 dimensions


# ---------------------------------------------------------------- methods and the run
def test_what_a_concept_keeps_is_what_was_known() -> None:
    world = Setting(shared(), load_catalogue(), cast("style"), Path())
    neon, pixel = world.concept(0), world.concept(8)
    kept = world.kept(0, [1, 2])
    assert "atelier seal" in kept
    assert set(world.concept(1).prompts) <= set(kept)
    assert not set(kept) & set(neon.prompts)
    assert not set(kept) & set(pixel.prompts)


def test_the_paper_and_its_baselines_are_there() -> None:
    assert {"sepme", "sepme-joint", "esd-x", "sdd", "abconcept", "fmn", "uce", "speed"} <= {
        *METHODS
    }
    for entry in METHODS.values():
        json.dumps(entry.describe())


@pytest.mark.slow
def test_a_run_resumes_and_its_restored_cells_are_the_original(
    backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plan = Plan(
        scenes=("Scene1",),
        methods=("uce",),
        images=2,
        fid=False,
        sampling=Sampling(steps=2, batch=2, bfloat16=False),
    )
    judge, catalogue = Judge.load(), load_catalogue()
    here = (backbone, judge, catalogue, plan, tmp_path / "out", tmp_path / "work")
    said: list[str] = []
    table = run_scenes(*here, progress=False, say=said.append)
    rows = read_rows(table)
    assert len(rows) == 3 * 10
    assert {row["role"] for row in rows} == {"erased", "recovered", "regular"}
    whole = table.read_bytes()

    # With the last state's rows gone, the same command makes them again: the same bytes.
    lines = whole.decode().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if ",t3," not in line))
    run_scenes(*here, progress=False, say=said.append)
    assert table.read_bytes() == whole
    assert [line.split(": ")[1] for line in said] == [
        *("30 rows", "20 rows are there already, the rest is measured now", "30 rows"),
    ]

    few = replace(plan, concepts=(6,))
    run_scenes(*here[:3], few, tmp_path / "few", tmp_path / "work", progress=False)
    there = {
        (row["time"], int(row["concept_index"])) for row in read_rows(tmp_path / "few" / table.name)
    }
    wanted = {(m.time, i) for m in moments("Scene1") for i in (*m.erased, 6)}
    assert there == wanted

    other = replace(plan, images=3)
    with refused("another run", "'images'"):
        run_scenes(backbone, judge, catalogue, other, *here[4:], progress=False)
    table.with_suffix(".json").unlink()  # nothing says any more what the rows are about
    with refused("no manifest"):
        run_scenes(*here, progress=False)


@pytest.mark.slow
def test_shipped_cells_are_what_is_drawn_now(tmp_path: Path) -> None:
    """Cells of the tables, from making the changes to measuring, give the shipped numbers."""
    backbone, judge, who = Backbone.load(), Judge.load(), cast("style")
    world = Setting(backbone, load_catalogue(), who, tmp_path, progress=False)
    album = Album(backbone, tmp_path, Sampling())
    (moment,) = (m for m in moments("Scene4") if m.time == "t1")
    shipped = shipped_deltas(backbone)  # training them again takes a minute
    made = {
        "sepme": {index: shipped[who.name(index)] for index in moment.erased},
        "uce": METHODS["uce"].changes(world, "Scene4"),
    }
    for method, of in made.items():
        changes = [of[index] for index in moment.erased]
        rows = {
            int(row["concept_index"]): row
            for row in read_rows(RESULTS / "scenes_style.csv")
            if (row["method"], row["scene"], row["time"]) == (method, "Scene4", "t1")
        }
        assert sum(change.norm() for change in changes) == pytest.approx(rows[1]["norm"], rel=1e-3)
        for index in (0, 1):  # given back, and erased
            n = int(rows[index]["images"])
            asked = who.prompts(index, n), who.seeds(index, n)
            before = album.draw((), *asked, nullcontext)
            after = album.draw((method,), *asked, lambda c=changes: applied(backbone, c))
            cell = measure(after, before, who.name(index), judge)
            assert n >= 100
            assert abs(cell.acc.mean - rows[index]["acc"]) <= 0.02
            assert cell.lpips.mean == pytest.approx(rows[index]["lpips"], rel=0.05, abs=1e-4)


def test_runs_are_merged_and_the_later_counts(tmp_path: Path) -> None:
    shipped = RESULTS / "scenes_style.csv"
    lines = shipped.read_text().splitlines(keepends=True)
    parts = lines[1:20], lines[15:]  # five rows are in both
    made = json.loads(shipped.with_suffix(".json").read_text())
    for name, part in zip("ab", parts, strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / shipped.name).write_text("".join([lines[0], *part]))
        methods = {name: {"title": name}, "c": {"seconds": 1.5}}
        manifest = json.dumps(made | {"methods": methods})
        (tmp_path / name / "scenes_style.json").write_text(manifest)
    tables = [tmp_path / name / shipped.name for name in "ab"]
    (merged,) = merge_tables(tables, tmp_path / "out")
    assert merged.read_bytes() == shipped.read_bytes()
    methods = json.loads(merged.with_suffix(".json").read_text())["methods"]
    assert set(methods) == {"a", "b", "c"}
    assert methods["c"]["seconds"] == 3.0

    changed = read_rows(tables[1])[0]["acc"]
    text = tables[1].read_text().splitlines(keepends=True)
    text[1] = text[1].replace(f",{changed:.6g},", ",0.125,", 1)
    tables[1].write_text("".join(text))
    (merged,) = merge_tables(tables, tmp_path / "out")
    assert sum(row["acc"] == 0.125 for row in read_rows(merged)) == 1

    others = {name: {"settings": {"rate": rate}} for name, rate in (("a", 1), ("b", 2))}
    tables[0].with_suffix(".json").write_text(json.dumps(made | {"methods": others}))
    with refused("other settings of 'b'"):
        merge_tables(tables, tmp_path / "out")
    for text in ("{", "{}", "[]", '{"methods": 3}'):
        tables[0].with_suffix(".json").write_text(text)
        with refused("is no manifest"):
            merge_tables(tables, tmp_path / "out")
    tables[0].with_suffix(".json").write_text(json.dumps(made | {"seed": 7}))
    with refused("another run", "'seed'"):
        merge_tables(tables, tmp_path / "out")
    tables[0].with_suffix(".json").unlink()
    with refused("no manifest"):
        merge_tables(tables, tmp_path / "out")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: line[: len(line) // 2],
        lambda line: line.replace(",0,", ",zero,", 1),
        lambda line: line.replace("Scene1", "Scene9"),
        lambda line: line + ",1",
    ],
    ids=["cut", "word", "scene", "long"],
)
def test_a_damaged_line_is_named(spoil: Callable[[str], str], tmp_path: Path) -> None:
    lines = (RESULTS / "scenes_style.csv").read_text().splitlines()
    file = tmp_path / "scenes_style.csv"
    file.write_text("\n".join([*lines[:3], spoil(lines[3])]) + "\n")
    with refused("Line 4 of", "is damaged"):
        read_rows(file)


def test_a_foreign_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe")
    with refused("cannot be read"):
        read_rows(tmp_path / "picture.csv")
    file = tmp_path / "scenes_style.csv"
    file.write_text("a,b\n1,2\n")
    with refused("no table of scenes"):
        read_rows(file)
