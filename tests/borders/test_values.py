"""Values of the wrong type or kind: they work, or are refused in one sentence of ours."""

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sepme._checks import as_python
from sepme.composition import Composition, applied, shipped_deltas
from sepme.concept import Concept
from sepme.delta import ConceptDelta, DenseDelta
from sepme.erasure import ErasureSettings, erase
from sepme.model import Backbone
from sepme.probe import Probe
from tests.miniature import EXACT, KEPT, NEON, QUICK, fresh, latents, others, shared, three_deltas
from tests.refusals import refused

DELTA = three_deltas()[0]
DENSE = DenseDelta({f"{path}.weight": DELTA.dense(path) for path in DELTA.paths}, DELTA.provenance)

REQUESTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "steps of a float": ({"steps": 2.0}, ("steps = 2.0", "whole number")),
    "steps of words": ({"steps": "2"}, ("steps = '2'", "whole number")),
    "too many steps": ({"steps": 1001}, ("steps = 1001", "1 to 1000")),
    "guidance of words": ({"guidance": "3"}, ("guidance = '3'", "or more")),
    "guidance of a list": ({"guidance": [3]}, ("guidance = [3]",)),
    "guidance of two": ({"guidance": torch.ones(2)}, ("guidance = ",)),
    "true for steps": ({"steps": True}, ("steps = True", "whole number")),
    "true of numpy for steps": ({"steps": np.True_}, ("steps = ", "whole number")),
    "true of torch for a batch": ({"batch": torch.tensor(True)}, ("batch = ", "whole number")),
    "true for guidance": ({"guidance": True}, ("guidance = True", "or more")),
    "batch of words": ({"batch": "3"}, ("batch = '3'", "whole number")),
    "no text": ({"prompts": [None]}, ("None is no text",)),
    "text and none": ({"prompts": ["neon", 3]}, ("3 is no text",)),
    "no list": ({"prompts": 3}, ("3 is no text",)),
    "bytes": ({"prompts": b"neon"}, ("is no text",)),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_what_cannot_be_drawn_with_is_said(case: str) -> None:
    given, said = REQUESTS[case]
    with refused(*said):
        shared().generate(**({"prompts": ["neon"]} | given))


@pytest.mark.parametrize("steps", [2, np.int64(2), torch.tensor(2)])
@pytest.mark.parametrize("guidance", [3, np.float32(3), torch.tensor(3.0)])
def test_numbers_of_any_library_are_drawn_with(steps: object, guidance: object) -> None:
    wanted = shared().generate(["neon"], steps=2, guidance=float(guidance))
    assert torch.equal(shared().generate(["neon"], steps=steps, guidance=guidance), wanted)


@pytest.mark.parametrize("value", [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_a_number_of_any_library_becomes_python_s(value: object) -> None:
    assert type(as_python(value)) is int
    assert as_python(value) == 3
    assert type(as_python(np.float32(3))) is float
    assert as_python("3") == "3"


NO_TEXT: dict[str, Callable[[], object]] = {
    "a concept's prompt": lambda: Concept("neon", (None,)),
    "a concept's name": lambda: Concept(3, ("neon",)),
    "an embedding": lambda: shared().encode([None]),
    "no embedding": lambda: shared().encode(None),
    "what is kept": lambda: erase(shared(), NEON, [None], EXACT),
    "what is kept, alone": lambda: erase(shared(), NEON, 3, EXACT),
}


@pytest.mark.parametrize("case", NO_TEXT)
def test_what_is_no_text_is_said(case: str) -> None:
    with refused("is no text"):
        NO_TEXT[case]()


@pytest.mark.parametrize(
    "settings",
    [
        {"batch": "8"},
        {"batch": 2.5},
        {"iterations": 2.5},
        {"iterations": True},
        {"learning_rate": np.True_},
        {"lam": None},
        {"learning_rate": [1]},
        {"alpha": "a"},
        {"tau": "0"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_another_type_are_said(settings: dict[str, Any]) -> None:
    with refused(next(iter(settings)), "give"):
        ErasureSettings(**settings)


ERASE: dict[str, tuple[dict[str, Any], str]] = {
    "a word": ({"concepts": "neon"}, "is no Concept"),
    "words": ({"concepts": ["neon"]}, "'neon' is no Concept"),
    "nothing": ({"concepts": []}, "no concept to erase"),
    "a seed of words": ({"seed": "1"}, "seed = '1'"),
    "true for a seed": ({"seed": True}, "seed = True"),
    "a seed of a float": ({"seed": 1.5}, "seed = 1.5"),
    "one delta before": ({"after": DELTA}, "is no list"),
    "a file before": ({"after": ["neon.safetensors"]}, "is no ConceptDelta"),
    "a preset's name": ({"settings": "default"}, "is no ErasureSettings"),
    "half a picture": ({"micro_batch": 1.5}, "micro_batch = 1.5"),
}


@pytest.mark.parametrize("case", ERASE)
def test_what_cannot_be_erased_with_is_said(case: str) -> None:
    given, said = ERASE[case]
    about = {"concepts": NEON, "keep": others(NEON), "settings": QUICK} | given
    with refused(said):
        erase(shared(), **about)


@pytest.mark.parametrize("timesteps", ["3", [1.5], [1000], [-1], [None], []])
def test_timesteps_that_are_none_are_said(timesteps: object) -> None:
    with refused("timestep"):
        Probe.draw(shared(), ["neon"], timesteps)


# ---------------------------------------------------------------------- deltas
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (lambda d: d / 2, 0.5),
        (lambda d: d / np.float32(4), 0.25),
        (lambda d: d * torch.tensor(3.0), 3),
        (lambda d: sum([d, d]), 2),
        (lambda d: sum([d, d, d]) / 3, 1),
        (lambda d: d - d / 2, 0.5),
        (lambda d: sum([-d]), -1),
    ],
)
def test_deltas_are_added_and_divided(given: Callable, wanted: float) -> None:
    made = given(DELTA)
    for path in DELTA.paths:
        assert torch.allclose(made.dense(path), wanted * DELTA.dense(path), atol=1e-7)


def test_dense_deltas_are_added() -> None:
    assert sum([DENSE]) is DENSE
    for path, change in sum([DENSE, DENSE]).changes.items():
        assert torch.equal(change, 2 * DENSE.changes[path])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: DELTA / 0,
        lambda: DELTA / "2",
        lambda: DELTA * "2",
        lambda: DELTA * None,
        lambda: DELTA * math.inf,
        lambda: DELTA + 3,
        lambda: 3 + DELTA,
        lambda: DELTA + "neon",
        lambda: DELTA - 3,
        lambda: DELTA - DENSE,
        lambda: DENSE + DELTA,
        lambda: DELTA + DENSE,
        lambda: DENSE + None,
        lambda: sum([DELTA, DENSE]),
    ],
)
def test_what_does_not_add_up_is_said(wrong: Callable[[], object]) -> None:
    with refused():
        wrong()


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))]
)
@pytest.mark.parametrize("delta", [DELTA, DENSE, DELTA / 2], ids=["concept", "dense", "half"])
def test_a_copy_is_the_same_delta(again: Callable, delta: ConceptDelta | DenseDelta) -> None:
    digest, made = delta.digest, again(delta)
    assert made is not delta
    assert type(made) is type(delta)
    assert made.digest == digest
    assert made.provenance == delta.provenance


def test_a_delta_without_a_direction_is_refused(tmp_path) -> None:
    down = {path: factor[:0] for path, factor in DELTA.down.items()}
    up = {path: factor[:, :0] for path, factor in DELTA.up.items()}
    with refused("'neon'", "rank 0"):
        ConceptDelta(down, up, DELTA.provenance)
    empty = copy.copy(DELTA)
    object.__setattr__(empty, "down", down)  # as another program may have written it
    object.__setattr__(empty, "up", up)
    with refused("'neon'", "rank 0"):
        ConceptDelta.load(empty.save(tmp_path / "neon.safetensors"))


@pytest.mark.parametrize("name", ["._neon.safetensors", "neon (1).safetensors", "ink.safetensors"])
def test_the_deltas_beside_a_model_are_one_of_each_concept(name: str, tmp_path: Path) -> None:
    backbone = fresh()
    backbone.pipe.register_to_config(_name_or_path=str(tmp_path))
    neon, ink, _ = three_deltas()
    neon.save(tmp_path / "deltas" / "neon.safetensors")
    other = (ink if name.startswith("ink") else neon).save(tmp_path / "deltas" / name)
    if name.startswith("._"):
        other.write_bytes(b"\0\5\x16\7")  # what macOS notes of a file on a foreign disk
    if "(1)" in name:
        with refused("second delta of 'neon'", "move one"):
            shipped_deltas(backbone)
    else:
        assert set(shipped_deltas(backbone)) == {"neon", other.stem.removeprefix("._")}


# ---------------------------------------------------------------------- compositions
@pytest.mark.parametrize(
    ("does", "given", "said"),
    [
        ("set", [{"neon": "1"}], "'neon' = '1'"),
        ("set", [{"neon": None}], "'neon' = None"),
        ("set", [{"neon": math.nan}], "'neon' = nan"),
        ("set", [{"neon": [1]}], "'neon' = [1]"),
        ("set", [{3: 1}], "3 is no text"),
        ("set", [3], "3 is no text"),
        ("set", [None], "None is no text"),
        ("set", [[["neon"]]], "['neon'] is no text"),
        ("erase", [["neon", "ink"]], "is no text"),
        ("restore", [["neon"]], "is no text"),
    ],
)
def test_a_switch_of_another_type_is_said_and_switches_nothing(does, given, said) -> None:
    with Composition(shared(), three_deltas()) as composition:
        composition.erase("ink")
        with refused(said):
            getattr(composition, does)(*given)
        assert composition.strengths == {"ink": 1.0}


def test_a_strength_of_any_library_is_taken() -> None:
    backbone = fresh()
    with Composition(backbone, three_deltas()) as composition:
        for strength in (0.5, np.float64(0.5), torch.tensor(0.5)):
            composition.set({"neon": strength})
            assert composition.strengths == {"neon": 0.5}
            latents(backbone)


@pytest.mark.parametrize("deltas", [[DENSE], [DENSE, DENSE]])
def test_dense_deltas_are_applied_and_taken_off(deltas: list[DenseDelta]) -> None:
    backbone = fresh()
    before = latents(backbone, KEPT)
    with applied(backbone, *deltas):
        assert not torch.equal(latents(backbone, KEPT), before)
    assert torch.equal(latents(backbone, KEPT), before)


@pytest.mark.parametrize("model", [3, ["a", "b"], object()], ids=["number", "list", "object"])
def test_a_model_that_is_no_path_is_refused(model: object) -> None:
    with refused("is no path", "name a folder"):
        Backbone.load(model)  # type: ignore[arg-type]
