"""Both kinds of delta: their algebra, their file, and the files that they refuse."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sepme.artefact import Provenance, canonical_json, digest_of, versions
from sepme.delta import ConceptDelta, DenseDelta
from tests.refusals import refused
from tests.tolerance import assert_close

K, V = "down_blocks.0.attn2.to_k", "mid_block.attn2.to_v"


def provenance(concept: str = "neon", **changes) -> Provenance:
    made = Provenance(
        concept=concept,
        kind="style",
        base="c0ffee" * 8,
        base_name="atelier",
        forgotten=(concept, f"a boat in {concept} style"),
        kept=("", "boat", f"not {concept}"),
        settings={"rtol": 3e-3, "widths": (64, 128)},
        seed=7,
        iterations=44,
        versions={"python": "3.11.0"},
    )
    return replace(made, **changes)


def make(concept: str = "neon", seed: int = 0, **changes) -> ConceptDelta:
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(6, 3, generator=generator)).Q.T
    up = {K: torch.randn(4, 3, generator=generator), V: torch.randn(5, 3, generator=generator)}
    return ConceptDelta({K: Q, V: Q}, up, provenance(concept, **changes))


def make_dense(concept: str = "neon", *paths: str, seed: int = 0, **changes) -> DenseDelta:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"a.weight": (2, 3), "a.bias": (2,), "b.weight": (4, 3)}
    made = {p: torch.randn(sizes[p], generator=generator) for p in paths or ("a.weight", "a.bias")}
    settings = {"eraser": "ESD", "widths": (1, 2)}
    return DenseDelta(made, provenance(concept, settings=settings, **changes))


# ---------------------------------------------------------------- algebra
def test_a_provenance_owns_its_versions() -> None:
    given = {"torch": "1"}
    found = replace(provenance(), versions=given)
    given["torch"] = "2"
    assert found.versions == {"torch": "1"}


@pytest.mark.parametrize(
    "settings", [{"learnt": ["<x>"]}, {"learnt": {"<x>": 3}}, {"scale": "1"}, {"jointly": "neon"}]
)
def test_looked_up_settings_of_another_type_are_refused(settings: dict[str, object]) -> None:
    content = replace(provenance(), settings=settings).to_dict()
    with refused("provenance is not what"):
        Provenance.from_dict(content)


def test_dense_rank_basis_and_norms() -> None:
    Q = torch.eye(3)[:2]
    up = {K: torch.tensor([[1.0, -2.0]]), V: torch.tensor([[0.0, 2.0]])}
    delta = ConceptDelta({K: Q, V: Q}, up, provenance())
    assert_close(delta.dense(K), torch.tensor([[1.0, -2.0, 0.0]]))
    assert delta.rank == 2
    assert torch.equal(delta.basis, Q)
    assert delta.norm() == pytest.approx((3 + 2) / 2)  # ||Delta||_1 / M, M = 2 layers
    assert delta.norm(2) == pytest.approx(3 / 2)
    assert delta.frobenius() == pytest.approx(3.0)
    assert (delta.base, delta.kept[0], delta.forgotten[0]) == ("c0ffee" * 8, "", "neon")


def test_layers_with_different_bases_share_none() -> None:
    delta = make()
    assert replace(delta, down={K: delta.down[K], V: -delta.down[V]}).basis is None


def test_layers_of_less_rank_are_filled_up_with_zeros() -> None:
    full = make()
    down, up = {**full.down, V: full.down[V][:1]}, {**full.up, V: full.up[V][:, :1]}
    delta = ConceptDelta(down, up, provenance())
    assert [len(factor) for factor in delta.down.values()] == [3, 3]
    assert torch.equal(delta.dense(V), up[V] @ down[V])


def test_the_algebra_is_that_of_the_dense_increments() -> None:
    a, b = make("neon", 0), make("boat", 1)
    for path in (K, V):
        assert_close((a + b).dense(path), a.dense(path) + b.dense(path))
        assert_close((0.5 * a).dense(path), 0.5 * a.dense(path))
        assert_close((a - a).dense(path), torch.zeros_like(a.dense(path)), scale=5.0)
    assert (a + b).rank == 6
    assert (a * 0.5 * 0.5).provenance.settings["scale"] == 0.25


def test_a_sum_over_different_layers_has_all_of_them() -> None:
    a, b = make("neon", 0), make("boat", 1)
    a, b = (replace(x, down={p: x.down[p]}, up={p: x.up[p]}) for x, p in ((a, K), (b, V)))
    assert (a + b).paths == (K, V)
    assert_close((a + b).dense(V), b.dense(V))


def test_a_sum_forgets_what_either_forgets_and_keeps_what_both_keep() -> None:
    total = make("neon") + make("boat")
    assert total.concept == total.provenance.concept == "neon + boat"
    assert total.forgotten[::2] == ("neon", "boat")
    assert total.kept == ("", "boat")


def test_a_dense_deltas_norm_counts_layers_not_parameters() -> None:
    changes = {
        "a.weight": torch.tensor([[1.0, -2.0]]),
        "a.bias": torch.tensor([3.0]),
        "b.weight": torch.tensor([[4.0]]),
    }
    delta = DenseDelta(changes, provenance(settings={"eraser": "ESD"}))
    assert delta.norm() == pytest.approx((1 + 2 + 3 + 4) / 2)  # ||Delta||_1 / M, M = 2
    assert delta.norm(2) == pytest.approx(30**0.5 / 2)
    assert (delta.concept, delta.method) == ("neon", "ESD")


def test_a_sum_of_dense_deltas_has_what_either_changes() -> None:
    a, b = make_dense("neon"), make_dense("boat", "a.weight", "b.weight", seed=1)
    total = a + b
    assert total.paths == ("a.bias", "a.weight", "b.weight")
    assert torch.equal(total.changes["a.weight"], a.changes["a.weight"] + b.changes["a.weight"])
    assert torch.equal(total.changes["a.bias"], a.changes["a.bias"])
    assert total.forgotten[::2] == ("neon", "boat")
    assert (total.concept, total.method) == ("neon + boat", "sum")


def test_a_delta_owns_its_numbers() -> None:
    Q, B = torch.eye(3)[:2].double(), torch.ones(4, 2).double().requires_grad_()
    delta, dense = (
        ConceptDelta({K: Q}, {K: B}, provenance()),
        DenseDelta({K: B, V: Q}, provenance()),
    )
    Q.zero_()
    assert delta.frobenius() > 0
    assert dense.changes[V].sum() == 2
    assert dense.changes[K].dtype == torch.float32
    for tensors in (delta.up, dense.changes):
        assert not tensors[K].requires_grad
        with pytest.raises(TypeError):
            tensors[K] = torch.zeros(4, 2)


# ---------------------------------------------------------------- files
@pytest.mark.parametrize("make", [make, make_dense])
def test_a_file_brings_everything_back(tmp_path: Path, make: Callable) -> None:
    delta = make()
    path = delta.save(tmp_path / "new" / "neon.safetensors")
    back = type(delta).load(path, base=delta.base)
    assert (back.provenance, back.paths) == (delta.provenance, delta.paths)
    assert back.digest == delta.digest
    for kind in ("up", "down", "changes"):
        for name, tensor in getattr(delta, kind, {}).items():
            assert torch.equal(getattr(back, kind)[name], tensor)
    assert path.read_bytes() == back.save(tmp_path / "again.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_file_keeps_the_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    delta = ConceptDelta(
        {K: torch.eye(2, 3, dtype=dtype)}, {K: torch.ones(4, 2, dtype=dtype)}, provenance()
    )
    assert ConceptDelta.load(delta.save(tmp_path / "neon.safetensors")).up[K].dtype == dtype


def test_the_file_is_named_as_diffusers_names_a_lora(tmp_path: Path) -> None:
    names = load_file(make().save(tmp_path / "neon.safetensors"))
    assert set(names) == {f"unet.{p}.lora_{f}.weight" for p in (K, V) for f in "AB"}


def test_the_same_delta_gives_the_same_bytes_whatever_the_order_and_the_process(tmp_path) -> None:
    delta = make()
    turned = ConceptDelta(
        dict(reversed(delta.down.items())),
        dict(reversed(delta.up.items())),
        replace(delta.provenance, settings={"widths": (64, 128), "rtol": 3e-3}),
    )
    one = delta.save(tmp_path / "one.safetensors").read_bytes()
    assert turned.save(tmp_path / "two.safetensors").read_bytes() == one
    again = (
        "import sys; from sepme.delta import ConceptDelta;"
        "ConceptDelta.load(sys.argv[1]).save(sys.argv[2])"
    )
    subprocess.run(
        [sys.executable, "-c", again, tmp_path / "one.safetensors", tmp_path / "3.safetensors"],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        cwd=Path(__file__).parents[1],
        check=True,
    )
    assert (tmp_path / "3.safetensors").read_bytes() == one


def test_provenance_survives_json_and_settings_have_one_hash() -> None:
    made = provenance()
    assert Provenance.from_dict(json.loads(canonical_json(made.to_dict()))) == made
    assert digest_of({"a": 1, "b": (2,)}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
    assert {"python", "torch"} <= set(versions())


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ConceptDelta({}, {}, provenance()), ("both factors",)),
        (
            lambda: ConceptDelta({K: torch.eye(2)}, {V: torch.eye(2)}, provenance()),
            ("both factors",),
        ),
        (
            lambda: ConceptDelta({K: torch.eye(2, 3)}, {K: torch.ones(4, 3)}, provenance()),
            (K, "[2, 3]", "[4, 3]"),
        ),
        (
            lambda: ConceptDelta({K: torch.eye(1)}, {K: torch.tensor([[math.inf]])}, provenance()),
            ("'neon'", "not finite", K),
        ),
        (lambda: make() + make("boat", base="another"), ("different models",)),
        (lambda: DenseDelta({}, provenance()), ("at least one parameter",)),
        (lambda: DenseDelta({K: torch.tensor([math.nan])}, provenance()), (K, "not finite")),
        (lambda: make_dense() + make_dense("boat", base="another"), ("different models",)),
    ],
)
def test_numbers_that_make_no_delta_are_refused(make: Callable, words: tuple[str, ...]) -> None:
    with refused(*words):
        make()


def cut_to(length: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:length])


def one_bit_of_a_tensor(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def a_word_of_the_provenance(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"boat", b"goat"))


def header(text: str, name: str | None = None) -> Callable[[Path], object]:
    """Keep the tensors, say something else about them."""
    return lambda path: save_file(load_file(path), path, {name or kind_of(path): text})


def kind_of(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return next(iter(file.metadata()))


@pytest.mark.parametrize("make", [make, make_dense])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        *((cut_to(length), "truncated") for length in (0, 4, 100, -1)),
        (one_bit_of_a_tensor, "was changed after"),
        (a_word_of_the_provenance, "was changed after"),
        *((header(text), "was changed after") for text in ("", "[]", "{}")),
        (header('{"sha256": "0", "provenance": NaN}'), "was changed after"),
        (header("{}", "other"), "not written by sepme"),
        (lambda path: path.unlink(), "neon.safetensors"),
        (lambda path: (path.unlink(), path.mkdir()), "neon.safetensors"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_refused(
    tmp_path: Path, make: Callable, spoil: Callable, words: str
) -> None:
    delta = make()
    path = delta.save(tmp_path / "neon.safetensors")
    spoil(path)
    with refused("neon.safetensors", words):
        type(delta).load(path)


@pytest.mark.parametrize("make", [make, make_dense])
def test_another_model_and_another_kind_of_delta_are_refused(
    tmp_path: Path, make: Callable
) -> None:
    delta = make()
    path = delta.save(tmp_path / "neon.safetensors")
    with refused("atelier", "not for this model", "'neon'"):
        type(delta).load(path, base="another")
    with refused("not written by sepme"):
        (DenseDelta if isinstance(delta, ConceptDelta) else ConceptDelta).load(path)


def test_a_nan_in_a_file_is_refused(tmp_path: Path) -> None:
    delta = make()
    delta.up[K][0, 0] = math.nan  # as if written by a version that did not look
    with refused("not finite", K):
        ConceptDelta.load(delta.save(tmp_path / "neon.safetensors"))


def test_a_provenance_of_another_version_is_refused(tmp_path: Path, monkeypatch) -> None:
    delta = make()
    monkeypatch.setattr(Provenance, "to_dict", lambda self: {"concept": "neon"})
    path = delta.save(tmp_path / "neon.safetensors")
    with refused("provenance", "Field required"):
        ConceptDelta.load(path)


def test_a_name_or_a_folder_that_cannot_be_written_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with refused("neon.bin", ".safetensors"):
        make().save(tmp_path / "neon.bin")
    with refused("cannot be written"):
        make().save(tmp_path / "file" / "neon.safetensors")

    def no_permission(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sepme.artefact.os.replace", no_permission)
    with refused("neon.safetensors", "Permission denied"):
        make().save(tmp_path / "neon.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = make().save(tmp_path / "neon.safetensors")
    before = path.read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sepme.artefact.os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(seed=1).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
