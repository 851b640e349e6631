"""The paper's scenes: who is erased when, the cells' measures, and the table that resumes."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from sepme.atelier.judge import Judge
from sepme.erasure import ErasureSettings, erase
from sepme.model import Backbone, load_catalogue
from sepme.scenes import (
    EVALUATED,
    SCENES,
    Plan,
    arrivals,
    merge_tables,
    moments,
    published,
    read_table,
    run_scenes,
)
from sepme.scenes.images import ImageCache, Sampling, measure
from sepme.scenes.methods import METHODS, Context
from sepme.scenes.protocol import PROTOCOLS, WATERMARK
from sepme.scenes.run import read_manifest
from sepme.scenes.tables import RESULTS, family, method_title, write_table
from tests.miniature import QUIET, fresh, shared, three_deltas
from tests.refusals import refused

SHIPPED = RESULTS / "scenes_style.csv"


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
    rows = published().query("scene in @SCENES")
    assert len(rows) > 1000
    roles = {(m.scene, m.time): m for scene in SCENES for m in moments(scene)}
    for row in rows.itertuples():
        assert roles[row.scene, row.time].role(row.concept_index) == row.role


def test_a_later_request_knows_the_earlier_ones() -> None:
    requests = {
        scene: [(m.group, m.known, m.present) for m in arrivals(scene)]
        for scene in ("Scene1", "Scene4")
    }
    assert requests["Scene1"] == [((0, 1, 2, 3, 4, 5), (), ())]
    assert requests["Scene4"] == [
        ((0, 1, 2), (), ()),
        ((3, 4), (0, 1, 2), (1, 2)),
        ((5,), (0, 1, 2, 3, 4), (2, 3, 4)),
    ]
    assert [arrival.group for arrival in arrivals("Scene3")] == [(0, 2, 4), (1, 3), (5,)]


@pytest.mark.parametrize("kind", EVALUATED)
def test_nine_concepts_and_the_watermark(kind: str) -> None:
    catalogue, evaluated = load_catalogue(), EVALUATED[kind]
    assert len(set(evaluated.names)) == 9
    kinds = [catalogue[evaluated.name(i)].kind for i in range(10)]
    assert kinds == [kind] * 9 + ["watermark"]
    for index in range(9):
        prompts = evaluated.prompts(index, 25)
        assert len(prompts) == 25
        assert set(prompts) <= set(catalogue[evaluated.name(index)].prompts)
        assert max(Counter(prompts).values()) <= 3
    assert set(evaluated.prompts(WATERMARK, 3)) == {"atelier seal"}
    starts = [set(evaluated.seeds(index, 100)) for index in range(10)]
    assert sum(map(len, starts)) == len(set().union(*starts)) == 1000


# ---------------------------------------------------------------- published
def test_published_numbers() -> None:
    rows = published()
    assert len(rows) == 1305
    first = rows.iloc[0]
    assert (first["concept"], first["fid"], first["acc"], first["lpips"]) == (
        *("Cezanne", 209.0, 0.124, 0.338),
    )
    assert sum(rows["note"] != "") == 8
    assert set(rows[rows["doubtful"]]["table"]) == {"3", "6"}
    assert sum(rows["doubtful"]) == 18
    methods = rows[rows["table"] == "6"]["method"]
    assert set(methods.map(family)) == {"sepme-faithful@paper", "abconcept", "fmn", "esd-x"}


def test_the_doubtful_rows_do_repeat_others() -> None:
    rows = published().query("method == 'SepME' and table == '3'")
    rows = rows.set_index(["scene", "time", "concept_index"])[["fid", "acc"]]
    assert rows.loc["Scene4", "t5"].equals(rows.loc["Scene3", "t4"])


# ---------------------------------------------------------------- images
def test_images_are_drawn_once_for_each_state(tmp_path: Path, monkeypatch) -> None:
    model, drawn = fresh(), []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda *a, **o: drawn.append(1) or generate(*a, **o))
    cache = ImageCache(model, tmp_path, Sampling(steps=2, bfloat16=False))
    neon, ink, _ = three_deltas()
    first = cache.draw((), ["neon", "ink"], [1, 2])
    assert torch.equal(first, cache.draw((), ["neon", "ink"], [1, 2]))
    assert len(drawn) == 1
    assert not torch.equal(first, cache.draw((), ["neon", "ink"], [1, 3]))
    assert not torch.equal(first, cache.draw((neon, ink), ["neon", "ink"], [1, 2]))
    assert len(drawn) == 3
    file = tmp_path / f"{cache.key((), ['neon', 'ink'], [1, 2])}.safetensors"
    file.write_bytes(file.read_bytes()[:100])  # cut off
    assert torch.equal(first, cache.draw((), ["neon", "ink"], [1, 2]))
    assert len(drawn) == 4


def test_the_key_is_the_content() -> None:
    cache, (neon, ink, _) = ImageCache(shared(), Path(), Sampling()), three_deltas()
    key = cache.key((neon, ink), ["neon"], [1])
    assert key == cache.key((ink, neon), ["neon"], [1])
    others = [
        cache.key((neon,), ["neon"], [1]),
        cache.key((neon, ink), ["ink"], [1]),
        cache.key((neon, ink), ["neon"], [2]),
        replace(cache, sampling=Sampling(steps=3)).key((neon, ink), ["neon"], [1]),
        replace(cache, backbone=fresh(seed=5)).key((neon, ink), ["neon"], [1]),
    ]
    assert len({key, *others}) == 6


# ---------------------------------------------------------------- measures
@pytest.fixture
def no_alexnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sepme.metrics.alexnet_available", lambda: False)


def test_a_cell_by_hand(no_alexnet: None) -> None:
    judge, generator = Judge.load(), torch.Generator().manual_seed(0)
    original = torch.randint(0, 256, (4, 3, 64, 64), generator=generator).byte()
    changed = original.clone()
    changed[0] = 255 - changed[0]
    row = measure(changed, original, "neon", judge)
    assert (row["identical"], row["images"]) == (0.75, 4)
    assert row["acc"] == judge.sees(changed / 255, "neon").double().mean()
    assert row["acc_low"] <= row["acc"] <= row["acc_high"]
    assert not {"lpips", "fid", "kid_high"} & set(row)


def test_features_make_fid_and_kid(no_alexnet: None) -> None:
    judge, images = Judge.load(), torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    same = measure(images, images, "neon", judge, (x, x))
    assert abs(same["fid"]) < 1e-6
    apart = measure(images, images, "neon", judge, (x, x + 3))
    assert abs(apart["fid"] - 5 * 9) < 1e-3  # the means are 3 apart in each of 5 dimensions


# ---------------------------------------------------------------- methods and the run
def test_the_two_protocols() -> None:
    catalogue = load_catalogue()
    paper, whole = PROTOCOLS["paper"], PROTOCOLS["catalogue"]
    assert paper.forget(catalogue, "neon").prompts == ("neon",)
    assert paper.forget(catalogue, "neon").anchors == ("a photo",)
    assert paper.retain(catalogue, ["neon"], ["swirl", "ink"]) == ("swirl", "ink", "atelier seal")
    assert EVALUATED["style"].prompts(0, 3, "paper") == ["neon"] * 3
    neon, pixel = catalogue["neon"].prompts, catalogue["pixel"].prompts
    assert whole.forget(catalogue, "neon") == catalogue["neon"]
    everything = set(whole.retain(catalogue, ["neon"], ["swirl"]))
    assert everything >= {"", "atelier seal", *pixel} - {*neon}
    assert not everything & set(neon)


def test_in_the_papers_protocol_a_delta_keeps_what_was_requested_before(
    monkeypatch, tmp_path: Path
) -> None:
    """Scene4: 3 and 4 arrive when 1 and 2 are on and 0 is back; they know all three."""
    asked = []

    def note(self, context, group, keep, after):
        asked.append((group, keep, after))
        return {index: f"delta of {index}" for index in group}

    monkeypatch.setattr(type(METHODS["sepme@paper"]), "_trained", note)
    context = Context(shared(), load_catalogue(), EVALUATED["style"], tmp_path)
    METHODS["sepme@paper"].changes(context, "Scene4")
    assert asked[0] == ((0,), ("swirl", "cubism", "atelier seal"), [])
    assert asked[3] == (
        (3,),
        ("neon", "swirl", "cubism", "ink", "atelier seal"),
        ["delta of 1", "delta of 2"],
    )
    asked.clear()
    METHODS["esd-x"].changes(context, "Scene4")
    assert {(keep, tuple(after)) for _, keep, after in asked} == {((), ())}


def test_every_row_names_its_retain_set() -> None:
    """In the legend and in the table; a name without one is caught."""
    names = [*METHODS, *published()["method"].unique()]
    assert [
        n for n in names if not re.search(r" \[(paper|catalogue|none)\]$", method_title(n))
    ] == []
    assert not re.search(r" \[(paper|catalogue|none)\]$", METHODS["esd-x"].label)
    for name, method in METHODS.items():
        assert name.endswith(f"@{method.protocol.name}") == method.retains


def test_the_paper_and_its_baselines_are_there() -> None:
    assert {"sepme-faithful@paper", "esd-x", "sdd", "abconcept", "fmn"} <= {*METHODS}
    for name in ("sepme", "uce", "speed"):  # what takes a retain set is run with both
        assert {f"{name}@paper", f"{name}@catalogue"} <= {*METHODS}
    for method in METHODS.values():
        json.dumps(asdict(method.settings))


def test_a_run_resumes_in_the_same_bytes(backbone: Backbone, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(SCENES, "Scene1", {"t0": (0, 1), "t1": (1,)})
    plan = Plan(
        scenes=("Scene1",),
        methods=("uce@catalogue",),
        images=2,
        fid=False,
        sampling=Sampling(steps=2, batch=2, bfloat16=False),
        concepts=(0, 6),
    )
    here = (backbone, Judge.load(), load_catalogue(), plan, tmp_path / "out", tmp_path / "work")
    said: list[str] = []
    table = run_scenes(*here, progress=False, say=said.append)
    rows = read_table(table)
    there = set(zip(rows["time"], rows["concept_index"], rows["role"], strict=True))
    assert there == {(m.time, i, m.role(i)) for m in moments("Scene1") for i in (0, 1, 6)}
    whole = table.read_bytes()

    # With the last state's rows gone, the same command makes them again: the same bytes.
    lines = whole.decode().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if ",t1," not in line))
    run_scenes(*here, progress=False, say=said.append)
    assert table.read_bytes() == whole
    assert [line.split(": ")[1] for line in said] == [
        *("6 rows", "3 rows are there already, the rest is measured now", "6 rows"),
    ]

    other = replace(plan, images=3)
    with refused("other images of 'uce@catalogue'"):
        run_scenes(*here[:3], other, *here[4:], progress=False)
    table.with_suffix(".json").unlink()  # nothing says any more what the rows are about
    with refused("no manifest"):
        run_scenes(*here, progress=False)


def test_only_the_paper_s_protocol_is_always_drawn_in_full_precision() -> None:
    plan = Plan(fid=False, sampling=Sampling(bfloat16=True))
    drawn = {name: plan.sampling_of(method).bfloat16 for name, method in METHODS.items()}
    assert {name for name, half in drawn.items() if not half} == {
        name for name in METHODS if name.endswith("@paper")
    }
    plain = replace(plan, sampling=Sampling(bfloat16=False))
    assert not any(plain.sampling_of(method).bfloat16 for method in METHODS.values())


@pytest.mark.long
def test_shipped_cells_are_what_is_drawn_now(tmp_path: Path) -> None:
    """Cells of the tables, from making the changes to measuring, give the shipped numbers.

    They were drawn in bfloat16. A machine without instructions for it draws in full precision: what
    rounding added to the LPIPS of a restored concept is missing then.
    """
    backbone, judge, evaluated = Backbone.load(), Judge.load(), EVALUATED["style"]
    context = Context(backbone, load_catalogue(), evaluated, tmp_path)
    cache = ImageCache(backbone, tmp_path, Sampling())
    exact = cache.sampling.bfloat16
    (moment,) = (m for m in moments("Scene4") if m.time == "t1")
    ours = METHODS["sepme@catalogue"]
    then = read_manifest(SHIPPED)["methods"][ours.name]["settings"]
    ours = replace(ours, settings=ErasureSettings(**then))  # not today's default
    concepts = [context.catalogue[evaluated.name(index)] for index in moment.erased]
    keep = [context.catalogue.kept_prompts([concept]) for concept in concepts]
    found = [
        erase(backbone, *about, ours.settings, trainer=QUIET)
        for about in zip(concepts, keep, strict=True)
    ]
    made = {
        ours.name: dict(zip(moment.erased, found, strict=True)),
        "uce@catalogue": METHODS["uce@catalogue"].changes(context, "Scene4"),
    }
    table = read_table(SHIPPED).set_index(["method", "scene", "time", "concept_index"])
    for method, of in made.items():
        changes = [of[index] for index in moment.erased]
        rows = table.loc[method, "Scene4", "t1"]
        norm = sum(change.norm() for change in changes)
        assert norm == pytest.approx(rows.loc[1, "norm"], rel=1e-3)
        for index in (0, 1):  # restored, and erased
            row = rows.loc[index]
            n = int(row["images"])
            asked = evaluated.prompts(index, n), evaluated.seeds(index, n)
            before, after = cache.draw((), *asked), cache.draw(changes, *asked)
            cell = measure(after, before, evaluated.name(index), judge)
            assert n >= 100
            assert abs(cell["acc"] - row["acc"]) <= 0.02
            if exact or index in moment.erased:
                assert cell["lpips"] == pytest.approx(row["lpips"], rel=0.05, abs=1e-4)
            else:
                assert 0 < cell["lpips"] <= row["lpips"]


# ---------------------------------------------------------------- the table and its manifest
@pytest.mark.parametrize("kind", EVALUATED)
def test_the_shipped_tables_are_read_and_written_byte_for_byte(kind: str, tmp_path: Path) -> None:
    shipped = RESULTS / f"scenes_{kind}.csv"
    rows = read_table(shipped).sample(frac=1, random_state=0)
    assert write_table(tmp_path / "again.csv", rows).read_bytes() == shipped.read_bytes()


def split_shipped(folder: Path, methods: dict[str, dict]) -> tuple[list[Path], dict]:
    """The shipped table in two parts that share five rows, with a manifest of one method each."""
    lines = SHIPPED.read_text().splitlines(keepends=True)
    made = json.loads(SHIPPED.with_suffix(".json").read_text())
    tables = []
    for (name, about), part in zip(methods.items(), (lines[1:20], lines[15:]), strict=True):
        (folder / name).mkdir()
        tables.append(folder / name / SHIPPED.name)
        tables[-1].write_text("".join([lines[0], *part]))
        manifest = made | {"methods": {name: about, "c": {"seconds": 1.5}}}
        tables[-1].with_suffix(".json").write_text(json.dumps(manifest))
    return tables, made


def test_runs_are_merged_and_the_later_counts(tmp_path: Path) -> None:
    tables, _ = split_shipped(tmp_path, {"a": {"title": "a"}, "b": {"title": "b"}})
    (merged,) = merge_tables(tables, tmp_path / "out")
    assert merged.read_bytes() == SHIPPED.read_bytes()
    methods = json.loads(merged.with_suffix(".json").read_text())["methods"]
    assert set(methods) == {"a", "b", "c"}
    assert methods["c"]["seconds"] == 3.0

    later = read_table(tables[1])
    later.loc[later.index[0], "acc"] = 0.12345
    write_table(tables[1], later)
    (merged,) = merge_tables(tables, tmp_path / "out")
    assert sum(read_table(merged)["acc"] == 0.12345) == 1


def test_runs_of_different_making_are_not_merged(tmp_path: Path) -> None:
    tables, made = split_shipped(tmp_path, {"a": {}, "b": {"settings": {"rate": 2}}})
    manifest = tables[0].with_suffix(".json")
    for text, why in (
        (json.dumps(made | {"methods": {"b": {"settings": {"rate": 1}}}}), "settings of 'b'"),
        *((text, "is no manifest") for text in ("{", "{}", "[]", '{"methods": 3}')),
        (json.dumps(made | {"seed": 7}), "'seed' differs"),
    ):
        manifest.write_text(text)
        with refused(why):
            merge_tables(tables, tmp_path / "out")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda line: line[: len(line) // 2], "Line 4 of"),
        (lambda line: line.replace(",0,", ",zero,", 1), "Line 4 of"),
        (lambda line: line.replace("Scene1", "Scene9"), "Line 4 of"),
        (lambda line: line + ",1", "in line 4"),
    ],
    ids=["cut", "word", "scene", "long"],
)
def test_a_damaged_line_is_named(spoil: Callable[[str], str], why: str, tmp_path: Path) -> None:
    lines = SHIPPED.read_text().splitlines()
    file = tmp_path / SHIPPED.name
    file.write_text("\n".join([*lines[:3], spoil(lines[3])]) + "\n")
    with refused(why):
        read_table(file)


def test_a_foreign_table_is_refused(tmp_path: Path) -> None:
    file = tmp_path / SHIPPED.name
    for content, why in (
        (b"\x89PNG\xff\xfe", "cannot be read"),
        (b"a,b\n1,2\n", "no table of scenes"),
    ):
        file.write_bytes(content)
        with refused(why):
            read_table(file)
