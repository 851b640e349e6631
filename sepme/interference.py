"""How concepts get in one another's way: angles, energies, sums, and measured damage.

A delta `B Q` sees nothing of the text but its part in the row space of Q. So two deltas meet in
three places. Their row spaces may share directions (principal angles). A prompt of one may have a
part in the row space of the other (energy); without one, the other cannot touch it (paper eq. 6).
And the network is not linear, so two changes together need not be the sum of the two (additivity).
What it comes to is measured: how much does a delta change what is not its own?
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from sepme._checks import choose, texts
from sepme.artefact import same_model, versions
from sepme.composition import Composition
from sepme.concept import evenly
from sepme.delta import ConceptDelta
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.nullspace import row_basis
from sepme.probe import Probe, predicted_noise

__all__ = [
    "Interference",
    "additivity_residual",
    "gram",
    "largest_cosines",
    "measure_noise",
    "measure_pictures",
    "overlap",
    "own_prompts",
    "prompt_energy",
    "random_largest_cosines",
    "row_space",
    "text_change",
]


# ------------------------------------------------------------------ row spaces and their angles
def row_space(delta: ConceptDelta) -> Tensor:
    """Orthonormal rows `[q, d_in]`, float64: the directions of the text that a delta reads.

    They span the rows of all layers' `B_l Q_l`, without what every B_l maps to zero.

    Raises:
        SepmeError: the delta is zero.
    """
    rows = torch.cat([torch.linalg.qr(delta.up[p]).R @ delta.down[p] for p in delta.paths])
    if not rows.any():
        raise SepmeError(f"The delta of {delta.concept!r} is zero, so it reads nothing.")
    return row_basis(rows)


def principal_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of the principal angles of two row spaces, `[min(q_a, q_b)]`, largest first.

    1: a direction that both share; 0: one that is orthogonal to all of the other space. They are
    the singular values of `Q_a Q_b^T` (Björck and Golub 1973). The rows of a and b `[m, d_in]` span
    the spaces and need not be orthonormal.
    """
    angles = subspace_angles(a.T.double().cpu().numpy(), b.T.double().cpu().numpy())
    return torch.from_numpy(np.cos(angles)).flip(0)  # scipy gives the largest angle first


def largest_cosines(spaces: Mapping[str, Tensor]) -> Tensor:
    """The largest principal cosine of every two of these row spaces, `[n, n]`, float64."""
    return _pairwise(lambda a, b: principal_cosines(a, b)[0], spaces.values(), spaces.values())


def overlap(a: Tensor, b: Tensor) -> float:
    """`||Q_a Q_b^T||_F^2 / min(q_a, q_b)`, the mean squared cosine of two row spaces, 0 to 1.

    0: orthogonal; 1: one contains the other. Arguments as of `principal_cosines`.
    """
    return float(principal_cosines(a, b).square().mean())


def random_largest_cosines(
    q_a: int, q_b: int, d_in: int, draws: int = 1000, seed: int = 0
) -> Tensor:
    """The largest principal cosine of `draws` pairs of random subspaces, `[draws]`, ascending.

    Its quantiles say how large a cosine has to be before it means something.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(draws, d_in, q_b, generator=generator, dtype=torch.float64)
    # One of the two may stand still: let it be spanned by the first q_a coordinates.
    first = torch.linalg.qr(rows).Q[:, :q_a]
    return torch.linalg.matrix_norm(first, 2).clamp(max=1).sort().values


def _pairwise(entry: Callable[[Any, Any], Any], rows: Iterable, columns: Iterable) -> Tensor:
    """`entry(row, column)` of every two, `[rows, columns]`, float64."""
    columns = list(columns)
    entries = [[float(entry(row, column)) for column in columns] for row in rows]
    return torch.tensor(entries, dtype=torch.float64)


# ------------------------------------------------------------------ deltas and prompts
def prompt_energy(rows: Mapping[str, Tensor], spaces: Mapping[str, Tensor]) -> Tensor:
    """`||E Q^T||_F^2 / ||E||_F^2`, `[rows, spaces]`, float64: how much of E lies in a row space.

    It is between 0 and 1. Where it is 0, a delta that reads Q leaves the prompt alone for every
    image and every timestep (paper eq. 6).

    Args:
        rows: name -> embedding rows E `[m, d_in]` of one or more prompts.
        spaces: name -> rows `[q, d_in]` that span what a delta reads (`row_space`).
    """
    embeddings = [E.double().cpu() for E in rows.values()]
    bases = [row_basis(space) for space in spaces.values()]
    energy = _pairwise(lambda E, Q: (E @ Q.T).square().sum() / E.square().sum(), embeddings, bases)
    return energy.clamp(max=1)  # against rounding


def text_change(deltas: Mapping[str, ConceptDelta], rows: Mapping[str, Tensor]) -> Tensor:
    """`||E Delta^T||_F` over all layers, `[deltas, rows]`, float64, in units of keys and values.

    E `[m, d_in]` are the embedding rows of one or more prompts. It is exactly 0 where the delta
    does not change their keys and values (paper eq. 6).
    """

    def change(delta: ConceptDelta, E: Tensor) -> Tensor:
        factors = [(delta.down[path].double(), delta.up[path].double()) for path in delta.paths]
        return sum((E @ Q.T @ B.T).square().sum() for Q, B in factors).sqrt()

    return _pairwise(change, deltas.values(), [E.double().cpu() for E in rows.values()])


def gram(deltas: Sequence[ConceptDelta]) -> Tensor:
    """`<Delta_i, Delta_j>_F / (||Delta_i||_F ||Delta_j||_F)` over all layers, `[n, n]`, float64.

    From the factors alone: `<B_i Q_i, B_j Q_j>_F = <B_i^T B_j, Q_i Q_j^T>_F`.

    Raises:
        SepmeError: deltas of different models.
    """
    if not all(same_model(delta.base, deltas[0].base) for delta in deltas):
        raise SepmeError("The deltas were made for different models: compare those of one model.")

    def inner(a: ConceptDelta, b: ConceptDelta) -> float:
        total = 0.0
        for path in (p for p in a.paths if p in b.paths):  # one that only one changes adds nothing
            B = a.up[path].double().T @ b.up[path].double()
            total += float((B * (a.down[path].double() @ b.down[path].double().T)).sum())
        return total

    products = _pairwise(inner, deltas, deltas)
    sizes = products.diagonal().sqrt()
    return products / torch.outer(sizes, sizes)


def additivity_residual(composition: Composition, a: str, b: str, probe: Probe) -> float:
    """How far two deltas together are from the sum of each alone, without unit.

    With `r_I = eps(theta + sum_{k in I} Delta_k) - eps(theta)` on the probe,
    `||r_ab - r_a - r_b|| / (||r_a|| + ||r_b||)`: 0 if the two do not notice each other, and 0
    where neither changes anything. The composition is left as it was.

    Raises:
        SepmeError: one of them is not in the composition.
    """

    def predict(*names: str) -> Tensor:
        with composition.erased(*names) as backbone:
            return predicted_noise(backbone, probe).double()

    original = predict()
    r_a, r_b, r_ab = (predict(*names) - original for names in ((a,), (b,), (a, b)))
    size = float(r_a.norm() + r_b.norm())
    return float((r_ab - r_a - r_b).norm()) / size if size > 0 else 0.0


# ------------------------------------------------------------------ who disturbs whom
@dataclass(frozen=True, eq=False)
class Interference:
    """How much the delta of each erased concept changes what each evaluated one's prompts give."""

    erased: tuple[str, ...]  #: the rows: concepts whose delta is on, one at a time
    evaluated: tuple[str, ...]  #: the columns: concepts whose prompts are looked at
    #: `[erased, evaluated]`: the change that the erased concept's delta makes, relative to the
    #: change that the evaluated concept's own delta makes. 0 is none, 1 as much as erasing it.
    matrix: Tensor
    measure: str  #: what was compared: "predicted noise" or "pictures"
    #: Further matrices `[erased, evaluated]`, by what they say: "change" (before it is made
    #: relative), "keys and values" (their change, relative to the own delta's), "prompt energy",
    #: "overlap", "largest cosine", and with a judge "seen" and "seen before" (shares).
    details: Mapping[str, Tensor] = field(default_factory=dict)
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  #: by evaluated concept
    seed: int = 0  #: of the pictures: the i-th prompt of a concept is drawn from seed + i
    #: The model, the digests of the deltas, versions; JSON values only.
    provenance: Mapping[str, Any] = field(default_factory=dict)
    #: Evaluated concept -> the original model's pictures `[n, 3, h, w]`, where there are any.
    before: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    #: (erased, evaluated) -> the same with the erased concept's delta on.
    after: Mapping[tuple[str, str], Tensor] = field(default_factory=dict, repr=False)

    def to_frame(self) -> pd.DataFrame:
        """One row for each pair (erased, evaluated); the measure first, then the details."""
        names = ("erased", "evaluated")
        pairs = pd.MultiIndex.from_product([self.erased, self.evaluated], names=names)
        matrices = {self.measure: self.matrix, **self.details}
        return pd.DataFrame({name: m.flatten().numpy() for name, m in matrices.items()}, pairs)

    def pair(self, erased: str, evaluated: str) -> dict[str, float]:
        """The row of `to_frame` of one pair.

        Raises:
            SepmeError: a name that was not measured.
        """
        choose(self.erased, erased=erased)
        choose(self.evaluated, evaluated=evaluated)
        return self.to_frame().loc[(erased, evaluated)].to_dict()


# ------------------------------------------------------------------ measuring it
class _Judge(Protocol):
    """Says for each picture `[n, 3, h, w]` whether it shows a concept, `[n]`."""

    def sees(self, images: Tensor, name: str) -> Tensor: ...


def own_prompts(deltas: Mapping[str, ConceptDelta], n: int = 4) -> dict[str, tuple[str, ...]]:
    """Up to n prompts of each concept, evenly spread, that no other one's delta forgets.

    Both "boat" and "neon" may change "a boat in neon style": that is no damage.

    Raises:
        SepmeError: a concept has no prompt of its own.
    """
    chosen = {}
    for name, delta in deltas.items():
        foreign = {p for other in deltas.values() if other is not delta for p in other.forgotten}
        own = [prompt for prompt in delta.forgotten if prompt not in foreign]
        if not own:
            raise SepmeError(f"Others forget all of {name!r}'s prompts too: give `prompts`.")
        chosen[name] = tuple(evenly(own, min(n, len(own))))
    return chosen


def measure_noise(
    composition: Composition, probes: Mapping[str, Probe], erased: Sequence[str] | None = None
) -> Interference:
    """The interference in predicted noise: quick, since no picture is drawn with a delta on.

    The change is the mean over the probes of `||eps(theta + Delta) - eps(theta)||_2`, relative
    to what the evaluated concept's own delta makes of the same probes.

    Args:
        composition: carries the deltas; it is left as it was.
        probes: evaluated concept -> noised pictures of its prompts, like its `own_prompts`.
        erased: concepts whose delta is switched on, alone; all of the composition by default.

    Raises:
        SepmeError: fewer than two concepts, one that is not in the composition, or an evaluated
            one without prompts or whose own delta changes nothing.
    """

    def look(backbone: Backbone, name: str) -> Tensor:
        return predicted_noise(backbone, probes[name]).flatten(0, 1)

    def size(difference: Tensor) -> float:
        return float(difference.flatten(1).norm(dim=1).mean())

    prompts = {name: probe.prompts for name, probe in probes.items()}
    found = _measure(composition, prompts, erased, "predicted noise", look, size)
    return replace(found, before={}, after={})


def measure_pictures(
    composition: Composition,
    prompts: Mapping[str, Sequence[str]],
    erased: Sequence[str] | None = None,
    *,
    judge: _Judge | None = None,
    seed: int = 0,
) -> Interference:
    """The interference in pictures: the same noise, drawn with each erased concept's delta on.

    The change is the mean absolute difference of the pixels (0 to 1), relative to what the
    evaluated concept's own delta makes of the same pictures.

    Args:
        prompts: evaluated concept -> what to draw, like its `own_prompts`.
        judge: adds to the details in which share of the pictures it sees the concept.
        seed: the i-th prompt of a concept is drawn from seed + i.

    Other arguments and errors are those of `measure_noise`.
    """
    prompts = {name: tuple(texts(given)) for name, given in prompts.items()}

    def look(backbone: Backbone, name: str) -> Tensor:
        return backbone.generate(prompts[name], seed)

    def size(difference: Tensor) -> float:
        return float(difference.abs().mean())

    def seen(images: Tensor, name: str) -> Tensor:
        return judge.sees(images, name).double().mean()

    found = _measure(composition, prompts, erased, "pictures", look, size)
    details, at = dict(found.details), (found.erased, found.evaluated)
    if judge is not None:
        details["seen"] = _pairwise(lambda i, j: seen(found.after[i, j], j), *at)
        details["seen before"] = _pairwise(lambda _, j: seen(found.before[j], j), *at)
    return replace(found, details=details, seed=seed)


def _measure(
    composition: Composition,
    prompts: Mapping[str, Sequence[str]],
    erased: Sequence[str] | None,
    measure: str,
    look: Callable[[Backbone, str], Tensor],
    size: Callable[[Tensor], float],
) -> Interference:
    """Compare what `look(backbone, name)` shows of each concept before and with each delta on."""
    deltas = composition.deltas
    erased = tuple(deltas if erased is None else erased)
    names = _checked(deltas, erased, prompts)
    with composition.erased() as backbone:
        before = {name: look(backbone, name) for name in prompts}
        rows = {name: backbone.encode(given).flatten(0, 1) for name, given in prompts.items()}
    after = {}
    for on in names:
        # A concept that is not among the erased is switched on as the yardstick of its own prompts.
        seen = prompts if on in erased else [on]
        with composition.erased(on) as backbone:
            after |= {(on, name): look(backbone, name) for name in seen}
    change = {(i, j): size(shown - before[j]) for (i, j), shown in after.items()}
    if silent := [name for name in prompts if change[name, name] == 0]:
        raise SepmeError(f"The delta of {silent[0]!r} changes nothing here: choose its prompts.")
    if broken := [on for (on, _), moved in change.items() if not isfinite(moved)]:
        raise SepmeError(
            f"With the delta of {broken[0]!r} the {measure} are not finite: erase it again, or "
            "load the model in float32."
        )
    return Interference(
        erased,
        tuple(prompts),
        _pairwise(lambda i, j: change[i, j] / change[j, j], erased, prompts),
        measure,
        details={
            "change": _pairwise(lambda i, j: change[i, j], erased, prompts),
            **_geometry({name: deltas[name] for name in names}, erased, rows),
        },
        prompts=prompts,
        provenance={
            "base": backbone.fingerprint,
            "base_name": backbone.name,
            "deltas": {name: deltas[name].digest for name in names},
            "versions": versions(),
        },
        before=before,
        after=after,
    )


def _checked(
    deltas: Mapping[str, ConceptDelta],
    erased: Sequence[str],
    prompts: Mapping[str, Sequence[str]],
) -> list[str]:
    """The names of all concepts that are asked for, each once."""
    names = list(dict.fromkeys((*erased, *prompts)))
    if not erased or not prompts or len(set(erased)) < len(erased) or len(names) < 2:
        raise SepmeError(
            "Interference is between two concepts: give at least one to erase and another one to "
            "evaluate, each of them once."
        )
    if missing := [name for name in names if name not in deltas]:
        raise SepmeError(
            f"No delta of {missing[0]!r} is attached (attached: {', '.join(deltas) or 'none'}): "
            "erase it first."
        )
    if empty := [name for name, given in prompts.items() if not given]:
        raise SepmeError(f"{empty[0]!r} has no prompt to look at: give at least one.")
    return names


def _geometry(
    deltas: Mapping[str, ConceptDelta], erased: Sequence[str], rows: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What the weights and the text alone say of each pair, `[erased, rows]`."""
    spaces = {name: row_space(delta) for name, delta in deltas.items()}
    own = torch.cat([text_change({j: deltas[j]}, {j: E}) for j, E in rows.items()], dim=1)
    on, evaluated = [spaces[i] for i in erased], [spaces[j] for j in rows]
    return {
        "keys and values": text_change({i: deltas[i] for i in erased}, rows) / own,
        "prompt energy": prompt_energy(rows, dict(zip(erased, on, strict=True))).T,
        "overlap": _pairwise(overlap, on, evaluated),
        "largest cosine": _pairwise(lambda a, b: principal_cosines(a, b)[0], on, evaluated),
    }
