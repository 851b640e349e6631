"""The benchmarks ask what they say they ask; nothing is drawn here."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest

from sepme.atelier.paintings import ALIASES, OBJECTS, STYLES
from sepme.model import load_catalogue
from tests.miniature import fresh, shared, three_deltas

FOLDER = Path(__file__).parent.parent / "benchmarks"


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(FOLDER))  # they import their neighbours
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


@pytest.fixture(scope="module")
def residue() -> ModuleType:
    return benchmark("residue")


EACH = benchmark("erase_each")


@pytest.mark.parametrize("protocol", ["paper", "catalogue"])
@pytest.mark.parametrize("name", ["neon", "boat"])
def test_what_is_called_untrained_is_in_neither_set(protocol: str, name: str) -> None:
    bench = SimpleNamespace(catalogue=load_catalogue(), protocol=protocol)
    concept, keep, known = EACH.Bench.request(bench, name)
    sets = EACH.forgotten(concept, 50)
    used = {*concept.prompts, *keep}
    assert {each.prompt for each in sets["trained"]} <= set(concept.prompts)
    assert not used & {each.prompt for each in (*sets["held_out"], *sets["alias"])}
    assert all(name in each.prompt for which in sets if which != "alias" for each in sets[which])
    assert all(ALIASES[name] in each.prompt for each in sets["alias"])
    assert bool(used & {each.prompt for each in sets["two_concepts"]}) == (protocol == "catalogue")
    unnamed = set(EACH.others(name)) - set(known)
    assert len(unnamed) == (4 if protocol == "paper" else 0)
    assert not any(other in prompt.split() for other in unnamed for prompt in keep)


def test_every_partner_meets_every_held_out_template_and_anchors_name_no_concept() -> None:
    for name, partners in (("neon", OBJECTS), ("boat", STYLES)):
        asked = EACH.forgotten(load_catalogue()[name], 30)["held_out"]
        assert len({each.prompt for each in asked}) == 30
        assert {each.kept for each in asked} == set(partners)
        assert all(each.kept in each.anchor and name not in each.anchor for each in asked)


def test_a_table_names_preset_and_retain_set(tmp_path: Path, monkeypatch) -> None:
    estimate = {"mean": 0.02, "low": 0.0, "high": 0.1, "n": 50}
    columns = [*EACH.TRAINED.values(), *EACH.NOT_TRAINED.values()]
    row = {which: {} for which, value, _ in columns if value}
    for which, value, _ in columns:
        row[which] = row[which] | {value: estimate} if value else 12
    about = {"concept": "neon", "preset": "faithful", "protocol": "paper", "images": 50}
    row |= about | {"sampling": {"steps": 10}, "threads": 1, "base": "0" * 64}
    EACH.write_atomically(tmp_path / "neon.json", EACH.json.dumps(row).encode())
    text = EACH.tables(tmp_path)
    titles = [line for line in text.splitlines() if line.startswith("###")]
    assert len(titles) == 2
    assert all("`faithful`, retain set `paper`" in title for title in titles)
    assert "| neon | 2% (0–10) |" in text
    del row["unnamed"]  # as in the protocol `catalogue`
    assert "| – |" in EACH.line(row, EACH.TRAINED)
    monkeypatch.setattr(sys.modules["_markdown"], "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text("a\n<!-- each -->\nold\n<!-- /each -->\nb\n")
    EACH.write_between("each", "new")
    assert (tmp_path / "README.md").read_text() == "a\n<!-- each -->\nnew\n<!-- /each -->\nb\n"


def test_the_residue_of_every_method_has_its_retain_set_beside_it(residue: ModuleType) -> None:
    def pictures(method: str, concept: str, share: float, guidance: float = 4.0) -> pd.DataFrame:
        head = dict(zip(residue.KEY, ("DDIM", 10, guidance, method, concept), strict=True))
        found = {"seen": [0, 1], "probability": [0.1, 0.9], "residue": [share - 0.1, share + 0.1]}
        return pd.DataFrame(head | found)

    rows = [pictures("uce@paper", "neon", 0.2), pictures("uce@paper", "boat", 0.4)]
    rows += [pictures("blend", "neon", 0.5), pictures("sepme@catalogue", "neon", 0.1)]
    rows += [pictures("sepme@catalogue", "neon", 0.6, guidance=8.0)]
    text = residue.tables(pd.concat(rows))
    methods, samplers = text.split("### Other samplers")
    lines = [line for line in methods.splitlines() if line.startswith("| ")][1:]
    assert [line.split(" | ")[0] for line in lines] == [
        "| *a 30 % blend*",
        "| UCE [paper]",
        "| SepME, closed form + training [catalogue]",
    ]  # those that leave most first
    assert "| UCE [paper] | 50% (15–85) | 0.50" in lines[1]
    assert "| 0.20 | – | – | 0.40 | 4 |" in lines[1]
    assert "guidance 8 | SepME, closed form + training [catalogue]" in samplers
    assert "UCE" not in samplers


def test_the_ablation_asks_what_erase_each_asks() -> None:
    ablation = benchmark("ablation")
    assert len(set(ablation.VARIANTS.values())) == len(ablation.VARIANTS)
    columns = {
        (which, value) for which, value, _ in [*EACH.TRAINED.values(), *EACH.NOT_TRAINED.values()]
    }
    assert set(ablation.QUESTIONS.values()) <= columns


# ---------------------------------------------------------------- benchmarks of speed
def test_the_published_loops_make_the_edit_of_one_gram_matrix() -> None:
    bench, model, edited = benchmark("closed_form"), shared(), ["neon", "ink"]
    new = bench.published(model, edited, ["", "boat"])
    same, other = (bench.shared(model, edited, kept) for kept in (["", "boat"], [""]))
    for path, layer in model.projections().items():  # up to a float32 inverse's rounding
        change = new[path] - layer.weight
        assert (change - same[f"{path}.weight"]).abs().max() < 1e-4
        assert (change - other[f"{path}.weight"]).abs().max() > 5e-3  # the control


def test_a_delta_that_does_nothing_is_found() -> None:
    bench, model = benchmark("closed_form"), fresh()
    assert bench.attach_and_restore(model, three_deltas()) > 0
    with pytest.raises(AssertionError, match="still there"):
        bench.attach_and_restore(model, [0.0 * three_deltas()[0]])


@pytest.mark.parametrize("name", [file.stem for file in sorted(FOLDER.glob("[!_]*.py"))])
def test_every_benchmark_finds_what_it_times(name: str) -> None:
    bench = benchmark(name)
    assert callable(getattr(bench, "main", None)) or hasattr(bench, "app")
    for owner, method in getattr(bench, "PARTS", {}).values():
        assert callable(getattr(owner, method))
