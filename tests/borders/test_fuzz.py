"""Files of random and of nearly right content: each is read, or refused in one sentence.

Each test draws 200 inputs, or as many as the environment variable SEPME_FUZZ says.
"""

import copy
import json
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sepme.artefact import save_artefact
from sepme.cli._inspection import describe
from sepme.cli._prompts import read_prompts
from sepme.composition import Composition
from sepme.concept import Catalogue
from sepme.delta import ConceptDelta, DenseDelta
from sepme.errors import SepmeError, SepmeWarning
from sepme.loading import Sampling
from sepme.scenes.run import read_manifest
from sepme.scenes.tables import RESULTS, paper_tables, read_table, role_means, role_table
from tests.miniature import shared, three_deltas

fuzzed = settings(
    max_examples=int(os.environ.get("SEPME_FUZZ", "200")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

# ---------------------------------------------------------------------- what is drawn
WORDS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", "neon", "\x1b[31m", "\x00", "../../x", "a" * 300, "1e999", "nan", "None"]),
)
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.none(), st.sampled_from([10**400, -1, 2**63])
)
VALUES = st.recursive(
    st.one_of(WORDS, NUMBERS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


def places(content: Any, path: tuple = ()) -> list[tuple]:
    """The ways to every value inside of JSON content."""
    found = [path]
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            found += places(value, (*path, key))
    return found


@st.composite
def changed(draw: st.DrawFn, content: Any) -> Any:
    """The content with up to three of its values exchanged, taken out, or added."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(places(content)))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                content = draw(VALUES)
            continue
        *way, last = path
        parent = content
        for key in way:
            parent = parent[key]
        match draw(st.sampled_from(["exchange", "take out", "add"])):
            case "exchange":
                parent[last] = draw(VALUES)
            case "take out":
                del parent[last]
            case "add" if isinstance(parent, dict):
                parent[draw(WORDS)] = draw(VALUES)
            case "add":
                parent.append(draw(VALUES))
    return content


def texts(content: Any) -> st.SearchStrategy[bytes]:
    """JSON like this content, cut off, of random bytes, or nested very deep."""

    def written(value: Any) -> bytes:
        return json.dumps(value).encode()

    whole = changed(content).map(written)
    return st.one_of(
        whole,
        whole,
        st.tuples(whole, st.integers(0, 200)).map(lambda pair: pair[0][: -1 - pair[1]]),
        st.binary(max_size=200),
        VALUES.map(written),
        st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"\xef\xbb\xbf{}"]),
    )


outcomes: Counter[str] = Counter()


@contextmanager
def understood_or_refused(path: Path) -> Any:
    """Nothing but a `SepmeError` of one sentence may leave the body; nothing else is written."""
    before = sorted(path.parent.iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SepmeWarning)
        try:
            yield
            outcomes["understood"] += 1
        except SepmeError as error:
            outcomes["refused"] += 1
            sentence = str(error)
            assert sentence.endswith(".")
            assert sentence.isprintable(), sentence
    assert sorted(path.parent.iterdir()) == before


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bytes], Path]:
    folder = tmp_path_factory.mktemp("fuzz")

    def write(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


# ---------------------------------------------------------------------- JSON
CATALOGUE = json.loads(
    Catalogue.load(RESULTS.parent / "atelier" / "catalogue.json").to_json(),
)
CATALOGUE["concepts"] = [
    entry | {"prompts": entry["prompts"][:3], "anchors": entry["anchors"][:3]}
    for entry in CATALOGUE["concepts"][:3]
]
CATALOGUE["aliases"] = {"glow": CATALOGUE["concepts"][0]["name"]}


@fuzzed
@given(content=texts(CATALOGUE))
def test_catalogues(file: Callable, content: bytes) -> None:
    path = file("catalogue.json", content)
    with understood_or_refused(path):
        catalogue = Catalogue.load(path)
        first = next(iter(catalogue.concepts.values()))
        assert "" in catalogue.kept_prompts([first])
        assert catalogue[first.name] == first
        assert catalogue.bare(first.name).prompts == (first.name,)
        file("catalogue.json", catalogue.to_json().encode())
        assert Catalogue.load(path) == catalogue


@fuzzed
@given(content=texts(json.loads((RESULTS / "scenes_style.json").read_bytes())))
def test_manifests(file: Callable, content: bytes) -> None:
    path = file("scenes_style.json", content)
    with understood_or_refused(path):
        manifest = read_manifest(path.with_suffix(".csv"))
        assert isinstance(manifest["seed"], int)


@fuzzed
@given(content=texts({"guidance_scale": 4.0, "num_inference_steps": 25}))
def test_sampling(file: Callable, content: bytes) -> None:
    path = file("generation.json", content)
    with understood_or_refused(path):
        found = Sampling.beside(path.parent)
        assert 1 <= found.num_inference_steps <= 1000
        assert found.guidance_scale == 0 or found.guidance_scale >= 1


# ---------------------------------------------------------------------- deltas
@st.composite
def tensors(draw: st.DrawFn, right: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a delta, some of them left out, renamed, or of another shape or type."""
    found = dict(right)
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(found) or ["none"]))
        tensor = found.pop(name, torch.zeros(2, 2))
        match draw(st.sampled_from(["out", "name", "shape", "type", "number", "more"])):
            case "name":
                found[draw(st.text("unet.loraABweight/\\\n", max_size=30))] = tensor
            case "shape":
                shape = draw(st.lists(st.integers(0, 5), max_size=3))
                found[name] = torch.zeros(shape)
            case "type":
                types = [torch.int64, torch.bool, torch.float16, torch.complex64, torch.uint8]
                found[name] = tensor.to(draw(st.sampled_from(types)))
            case "number":
                found[name] = tensor * draw(st.sampled_from([torch.nan, torch.inf, 1e30, 0.0]))
            case "more":
                found |= {name: tensor, draw(st.text(max_size=9)): tensor.clone()}
    return found


RIGHT = three_deltas()[0]


@fuzzed
@given(
    description=changed(json.loads(json.dumps(RIGHT.provenance.to_dict()))),
    content=st.one_of(st.just(dict(RIGHT._tensors())), tensors(dict(RIGHT._tensors()))),
    kind=st.sampled_from([ConceptDelta, DenseDelta]),
)
def test_deltas_of_which_the_hash_is_right(
    file: Callable, description: Any, content: dict, kind: type
) -> None:
    path = file("delta.safetensors", b"")
    try:
        save_artefact(path, kind._HEADER, description, content)
    except (ValueError, TypeError, RecursionError):  # cannot be written at all
        return
    with understood_or_refused(path):
        delta = kind.load(path)
        if kind is ConceptDelta:
            assert describe(delta, prompts=True)
            assert (2 * delta + -delta).concept
            with Composition(shared(), [delta]) as composition:
                composition.erase(delta.concept)
                shared().generate(["neon"], steps=1)
        else:
            delta.check_model(shared())


@fuzzed
@given(
    content=st.one_of(
        st.binary(max_size=300),
        st.integers(0, 2**64 - 1).map(lambda n: n.to_bytes(8, "little") + b"{}"),
        texts({"__metadata__": {"sepme": "{}"}, "a": {"dtype": "F32", "shape": [0]}}).map(
            lambda text: len(text).to_bytes(8, "little") + text
        ),
        VALUES.map(lambda v: json.dumps({"__metadata__": {"sepme": json.dumps(v)}}).encode()).map(
            lambda text: len(text).to_bytes(8, "little") + text
        ),
    )
)
def test_files_that_are_no_deltas(file: Callable, content: bytes) -> None:
    path = file("delta.safetensors", content)
    with understood_or_refused(path):
        ConceptDelta.load(path)
        raise AssertionError("it was taken for a delta")


# ---------------------------------------------------------------------- tables
LINES = (RESULTS / "scenes_style.csv").read_text().splitlines()[:25]
CELLS = st.one_of(
    WORDS.map(lambda word: re.sub("[,\n\r]", " ", word)),
    st.sampled_from(["", "0.5", "-1", "2", "inf", "nan", "1e400", "Scene9", "t9", "esd-x", '"']),
    st.floats().map(str),
)


@st.composite
def results(draw: st.DrawFn) -> bytes:
    lines = draw(st.lists(st.sampled_from(LINES[1:]), unique=True, max_size=12))
    lines = [*draw(st.sampled_from([LINES[:1], LINES[:1], LINES[:1], []])), *lines]
    for _ in range(draw(st.integers(0, 2))):
        if lines:
            at = draw(st.integers(0, len(lines) - 1))
            cells = lines[at].split(",")
            cells[draw(st.integers(0, len(cells) - 1))] = draw(CELLS)
            lines[at] = ",".join(cells)
    text = "\n".join(lines).encode(errors="surrogatepass")
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 5)) == 0 else text


@fuzzed
@given(content=st.one_of(results(), results(), results(), st.binary(max_size=200)))
def test_tables_of_results(file: Callable, content: bytes) -> None:
    path = file("scenes_style.csv", content)
    with understood_or_refused(path):
        rows = read_table(path)
        assert rows["acc"].dropna().between(0, 1).all()
        assert paper_tables("style", rows).isascii() is False
        if len(rows):
            role_means(rows, "acc")
            role_table(rows, "acc")


# ---------------------------------------------------------------------- lists of prompts
CHARACTERS = st.characters() | st.sampled_from(list(',;\t"\n\r#\ufeff\x00\x85\u2028'))


@fuzzed
@given(
    content=st.one_of(
        st.binary(max_size=100),
        st.tuples(
            st.text(CHARACTERS, max_size=80),
            st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-16-be"]),
        ).map(lambda pair: pair[0].encode(pair[1], errors="replace")),
        st.lists(st.lists(st.text(CHARACTERS, max_size=8), max_size=3), max_size=4).map(
            lambda rows: "\n".join(["prompt,seed", *map(",".join, rows)]).encode(errors="replace")
        ),
    ),
    name=st.sampled_from(["prompts.txt", "prompts.csv", "prompts.tsv"]),
)
def test_lists_of_prompts(file: Callable, content: bytes, name: str) -> None:
    path = file(name, content)
    with understood_or_refused(path):
        prompts = read_prompts(path)
        assert prompts
        assert len(set(prompts)) == len(prompts)
        joined = "".join(prompts).replace("\u200c", "").replace("\u200d", "")
        assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in joined)


def test_what_is_meant_to_catch_a_traceback_does(file: Callable) -> None:
    with pytest.raises(ZeroDivisionError), understood_or_refused(file("x", b"")):
        raise ZeroDivisionError
    with pytest.raises(AssertionError), understood_or_refused(file("x", b"")):
        raise SepmeError("no full stop")
    with pytest.raises(AssertionError), understood_or_refused(file("x", b"")):
        file("y", b"left over")


def test_both_outcomes_were_frequent() -> None:
    """What is drawn is neither all right nor all wrong (this test runs after the others)."""
    assert min(outcomes["understood"], outcomes["refused"]) > sum(outcomes.values()) / 10
