"""The deltas that ship with the Atelier: one a concept, of this very model, as the code makes."""

import pytest
import torch

from sepme.atelier.paintings import OBJECTS, STYLES
from sepme.composition import shipped_deltas
from sepme.erasure import PRESETS, erase, recorded_settings
from sepme.model import Backbone, load_catalogue
from sepme.nullspace import constrain
from tests.miniature import QUIET
from tests.tolerance import assert_close


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.load(device="cpu")


def test_there_is_one_for_every_style_and_object_and_each_keeps_all_others(
    backbone: Backbone,
) -> None:
    deltas, catalogue = shipped_deltas(backbone), load_catalogue()
    assert catalogue is not None
    assert set(deltas) == {*STYLES, *OBJECTS}
    for name, delta in deltas.items():
        concept = catalogue[name]
        assert delta.forgotten == concept.prompts
        assert set(delta.kept) == {"", *catalogue.kept_prompts([concept])}
        assert dict(delta.provenance.settings) == recorded_settings(
            backbone, [concept], PRESETS["default"]
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_same_directions_are_free_in_half_precision(dtype: torch.dtype) -> None:
    half, catalogue = Backbone.load(device="cpu", dtype=dtype), load_catalogue()
    assert catalogue is not None
    for name, delta in shipped_deltas(half).items():
        how = {key: delta.provenance.settings[key] for key in ("keep_rtol", "concept_rtol")}
        keep = catalogue.kept_prompts([catalogue[name]])
        Q = constrain(half, catalogue[name], keep, method="damped", **how).basis
        assert Q.shape == delta.basis.shape, name
        cosines = torch.linalg.svdvals(Q.double() @ delta.basis.double().T)
        assert cosines.min() > 0.9, name


@pytest.mark.slow
def test_one_of_them_made_again_is_the_same(backbone: Backbone) -> None:
    """Up to the arithmetic of another machine, which training multiplies a little."""
    catalogue, shipped = load_catalogue(), shipped_deltas(backbone)["cubism"]
    assert catalogue is not None
    concept = catalogue["cubism"]
    again = erase(backbone, concept, catalogue.kept_prompts([concept]), trainer=QUIET)
    assert_close(again.basis, shipped.basis, scale=30.0)
    for path in shipped.paths:
        one, other = again.dense(path), shipped.dense(path)
        assert torch.linalg.norm(one - other) <= 0.05 * torch.linalg.norm(other)
