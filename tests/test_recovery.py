"""In the paper's protocol, what is given back is the original again to rounding."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sepme.atelier.paintings import OBJECTS, STYLES
from sepme.composition import applied
from sepme.erasure import PRESETS, closed_form_shift, erase
from sepme.errors import SepmeError
from sepme.model import Backbone, load_catalogue
from sepme.nullspace import constrain, null_space
from sepme.scenes.protocol import PROTOCOLS

EXACT = replace(PRESETS["closed_form"], method="svd", keep_rtol=0.0)
PAPER, CATALOGUE = PROTOCOLS["paper"], load_catalogue()


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_no_retained_name_sees_a_delta(backbone: Backbone, data: st.DataObject) -> None:
    """`e(c_j) Delta_k = 0` to rounding, for real embeddings and any scene of bare names.

    The control: the forgotten name sees its own delta, ten thousand times as much.
    """
    names = data.draw(
        st.lists(st.sampled_from([*STYLES, *OBJECTS]), min_size=2, max_size=9, unique=True)
    )
    erased, others = names[0], names[1:]
    keep = PAPER.retain(CATALOGUE, [erased], others)
    concept = PAPER.forget(CATALOGUE, erased)
    found = constrain(backbone, concept, keep, keep_rtol=0.0, concept_rtol=0.1)
    W = next(iter(backbone.projections().values())).weight.double()
    B = (W @ closed_form_shift(found)).float()  # as a file holds it
    Delta = B.double() @ found.basis

    def seen(rows: Tensor) -> float:
        return float((rows @ Delta.T).norm() / (rows @ W.T).norm())

    assert seen(found.kept_rows) < 1e-5
    assert seen(found.concept_rows) > 1e-2


def test_two_of_six_come_back_to_within_half_a_grey_level(backbone: Backbone) -> None:
    """And the four that stay erased do not."""
    six = ("neon", "swirl", "cubism", "mosaic", "ink", "popart")
    deltas = {}
    for name in six:
        keep = PAPER.retain(CATALOGUE, [name], [other for other in six if other != name])
        deltas[name] = erase(backbone, PAPER.forget(CATALOGUE, name), keep, EXACT)
    with applied(backbone):
        before = backbone.generate(six, 0, steps=10)
    with applied(backbone, *(deltas[name] for name in six[2:])):
        after = backbone.generate(six, 0, steps=10)
    levels = 255 * (after - before).abs().amax(dim=(1, 2, 3))
    assert levels[:2].max() < 0.5
    assert levels[2:].min() > 25


def test_how_many_names_fit(backbone: Backbone) -> None:
    """Six names, the empty prompt and the seal span less than half of the 256 dimensions."""
    names = ("neon", "swirl", "cubism", "mosaic", "ink", "popart")
    rows = backbone.encode(["", *PAPER.retain(CATALOGUE, [], names)]).flatten(0, 1)
    space = null_space(rows, rtol=0.0)
    assert 0.3 * space.d_in < space.rank < 0.5 * space.d_in
    everything = backbone.encode(["", *CATALOGUE.kept_prompts([CATALOGUE["neon"]])]).flatten(0, 1)
    with pytest.raises(SepmeError, match="fill all 256 dimensions"):
        null_space(everything, rtol=0.0)
