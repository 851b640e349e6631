"""How concepts get in one another's way: angles, energies, sums, and measured damage.

Two deltas `B_i Q_i` and `B_j Q_j` meet in three places. Their row spaces may share directions of
the text embedding (principal angles). A prompt of one may have a part in the row space of the other
(energy); without one, the other cannot touch it (paper eq. 6). And between weights and noise there
is a network that is not linear, so two changes together need not be the sum of the two
(additivity). What it comes to is measured: how much does a delta change what is not its own?
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sepme.artefact import versions, write_atomically
from sepme.atelier.judge import Judge
from sepme.composition import Composition
from sepme.delta import ConceptDelta
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.nullspace import row_basis
from sepme.probe import Probe


# ------------------------------------------------------------------ subspaces
# Row spaces, the angles between them, and what of a prompt lies in them.
#
# A delta `B Q` sees nothing of the text but its part in the row space of Q, so how two concepts
# relate is a matter of two subspaces of the text embedding, and of what random ones would do.
#
def at_least_two(concepts: Collection[Any]) -> None:
    """Raise SepmeError for fewer than two: nothing here can be said of one concept alone."""
    if len(concepts) < 2:
        raise SepmeError("Entanglement is between two concepts: give at least two.")


def pairwise(entry: Callable[[Any, Any], float], rows: Iterable, columns: Iterable) -> Tensor:
    """`entry(row, column)` of every two, `[rows, columns]`, float64."""
    columns = list(columns)
    entries = [[entry(row, column) for column in columns] for row in rows]
    return torch.tensor(entries, dtype=torch.float64)


# ------------------------------------------------------------------ row spaces and angles
def row_space(delta: ConceptDelta) -> Tensor:
    """Orthonormal rows `[q, d_in]`, float64: the directions of the text that a delta reads.

    The row space of all its layers' `B_l Q_l` on top of one another; directions that every B_l
    maps to zero are none of it.

    Raises:
        SepmeError: the delta is zero.
    """
    rows = [torch.linalg.qr(delta.up[path]).R @ delta.down[path] for path in delta.paths]
    if not any(part.any() for part in rows):
        raise SepmeError(f"The delta of {delta.concept!r} is zero, so it reads nothing.")
    return row_basis(torch.cat(rows))


def principal_cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of the principal angles of two row spaces, `[min(q_a, q_b)]`, largest first.

    1: a direction that both share; 0: one that is orthogonal to all of the other space. They are
    the singular values of `Q_a Q_b^T` (Björck and Golub 1973), whatever bases are given.

    Args:
        a, b: `[m, d_in]`, rows that span the spaces; they need not be orthonormal.

    Raises:
        SepmeError: different widths, or a matrix that spans nothing.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise SepmeError(
            f"Rows of shape {list(a.shape)} and {list(b.shape)} do not live in one space: give "
            "two matrices [m, d_in] of one model."
        )
    return torch.linalg.svdvals(row_basis(a) @ row_basis(b).T).clamp(0, 1)


def largest_cosine(a: Tensor, b: Tensor) -> float:
    """The first of the `principal_cosines`: how near the two spaces come to sharing a direction."""
    return float(principal_cosines(a, b)[0])


def overlap(a: Tensor, b: Tensor) -> float:
    """`||Q_a Q_b^T||_F^2 / min(q_a, q_b)`, the mean squared cosine of two row spaces, 0 to 1.

    0: orthogonal; 1: one contains the other. Arguments and errors as of `principal_cosines`.
    """
    return float(principal_cosines(a, b).square().mean())


def expected_overlap(q_a: int, q_b: int, d_in: int) -> float:
    """The `overlap` to expect of two random subspaces: `E ||Q_a Q_b^T||_F^2 = q_a q_b / d_in`.

    `Q_b^T Q_b` is a projector of trace q_b; averaged over all rotations it is `q_b / d_in I`.

    Raises:
        SepmeError: a dimension below 1 or above d_in.
    """
    _check_dimensions(q_a, q_b, d_in)
    return q_a * q_b / d_in / min(q_a, q_b)


def random_largest_cosines(
    q_a: int, q_b: int, d_in: int, draws: int = 1000, seed: int = 0
) -> Tensor:
    """The largest principal cosine of `draws` pairs of random subspaces, `[draws]`, ascending.

    Its quantiles say how large a cosine has to be before it means something.

    Raises:
        SepmeError: a dimension below 1 or above d_in, or no draw.
    """
    _check_dimensions(q_a, q_b, d_in)
    if draws < 1:
        raise SepmeError(f"{draws} draws say nothing: give at least 1.")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(draws, d_in, q_b, generator=generator, dtype=torch.float64)
    # One of the two may stand still: let it be spanned by the first q_a coordinates.
    first = torch.linalg.qr(rows).Q[:, :q_a]
    return torch.linalg.matrix_norm(first, 2).clamp(max=1).sort().values


def _check_dimensions(q_a: int, q_b: int, d_in: int) -> None:
    if not (1 <= q_a <= d_in and 1 <= q_b <= d_in):
        raise SepmeError(
            f"Subspaces of {q_a} and {q_b} dimensions do not fit into {d_in}: give 1 to {d_in}."
        )


def largest_cosines(spaces: Mapping[str, Tensor]) -> Tensor:
    """The largest principal cosine of every two of these row spaces, `[n, n]`, 1 on the diagonal.

    Raises:
        SepmeError: fewer than two spaces, or what `principal_cosines` refuses.
    """
    at_least_two(spaces)
    return pairwise(largest_cosine, spaces.values(), spaces.values())


def prompt_energy(rows: Mapping[str, Tensor], spaces: Mapping[str, Tensor]) -> Tensor:
    """How much of each prompt's rows lies in each row space: `||E Q^T||_F^2 / ||E||_F^2`, 0 to 1.

    Directed: what of E lies in Q says nothing of the way back. Where it is 0, a delta that reads
    Q leaves the prompt alone for every image and every timestep (paper eq. 6).

    Args:
        rows: name -> embedding rows E `[m, d_in]` of one or more prompts.
        spaces: name -> rows `[q, d_in]` that span what a delta reads (`row_space`).

    Returns:
        `[rows, spaces]`.

    Raises:
        SepmeError: nothing given, different widths, or rows that are all zero.
    """
    _check_widths(rows, spaces)
    bases = [row_basis(space) for space in spaces.values()]
    return pairwise(_energy, [given.double().cpu() for given in rows.values()], bases)


def _check_widths(rows: Mapping[str, Tensor], spaces: Mapping[str, Tensor]) -> None:
    if not rows or not spaces:
        raise SepmeError("There is nothing to compare: give at least one prompt and one delta.")
    widths = {given.shape[-1] for given in (*rows.values(), *spaces.values())}
    if len(widths) > 1:
        raise SepmeError(
            f"Rows of widths {', '.join(map(str, sorted(widths)))} do not live in one space: "
            "give embeddings and deltas of one model."
        )


def _energy(rows: Tensor, basis: Tensor) -> float:
    size = rows.square().sum()
    if not size > 0:
        raise SepmeError("The rows of a prompt are all zero, so no part of them lies anywhere.")
    return float(((rows @ basis.T).square().sum() / size).clamp(max=1))


# ------------------------------------------------------------------ whole deltas
def text_change(deltas: Mapping[str, ConceptDelta], rows: Mapping[str, Tensor]) -> Tensor:
    """How much each delta changes each prompt's keys and values: `||E Delta^T||_F`, all layers.

    It weighs the energy of E in the row space by what the delta makes of it, and is exactly 0
    where nothing changes (paper eq. 6).

    Args:
        deltas: name -> delta.
        rows: name -> embedding rows E `[m, d_in]` of one or more prompts.

    Returns:
        `[deltas, rows]`, float64, in units of keys and values.

    Raises:
        SepmeError: nothing given, or different widths.
    """
    _check_widths(rows, {name: next(iter(d.down.values())) for name, d in deltas.items()})
    given = [some.double().cpu() for some in rows.values()]
    return pairwise(_text_change, deltas.values(), given)


def _text_change(delta: ConceptDelta, rows: Tensor) -> float:
    squares = [
        (rows @ delta.down[path].double().T @ delta.up[path].double().T).square().sum()
        for path in delta.paths
    ]
    return float(torch.stack(squares).sum().sqrt())


def gram(deltas: Sequence[ConceptDelta]) -> Tensor:
    """`<Delta_i, Delta_j>_F / (||Delta_i||_F ||Delta_j||_F)` over all layers, `[n, n]`, float64.

    From the factors alone: `<B_i Q_i, B_j Q_j>_F = <B_i^T B_j, Q_i Q_j^T>_F`. A layer that only
    one of two deltas changes adds nothing.

    Raises:
        SepmeError: fewer than two deltas, deltas of different models, or one that is zero.
    """
    deltas = list(deltas)
    at_least_two(deltas)
    _one_model(deltas)
    products = pairwise(_inner_product, deltas, deltas)
    sizes = products.diagonal().sqrt()
    for delta, size in zip(deltas, sizes, strict=True):
        if size == 0:
            raise SepmeError(f"The delta of {delta.concept!r} is zero, so it has no direction.")
    return products / torch.outer(sizes, sizes)


def _inner_product(a: ConceptDelta, b: ConceptDelta) -> float:
    total = 0.0
    for path in set(a.paths) & set(b.paths):
        up = a.up[path].double().T @ b.up[path].double()
        total += float((up * (a.down[path].double() @ b.down[path].double().T)).sum())
    return total


def _one_model(deltas: Sequence[ConceptDelta]) -> None:
    if other := [delta for delta in deltas if delta.base != deltas[0].base]:
        raise SepmeError(
            f"The deltas of {deltas[0].concept!r} and {other[0].concept!r} were made for different "
            f"models ({deltas[0].base[:12]} and {other[0].base[:12]}): make both for one."
        )


# ------------------------------------------------------------------ interference
__all__ = [
    "Interference",
    "additivity_residual",
    "expected_overlap",
    "gram",
    "largest_cosine",
    "largest_cosines",
    "measure_noise",
    "measure_pictures",
    "overlap",
    "own_prompts",
    "predicted_noise",
    "principal_cosines",
    "prompt_energy",
    "random_largest_cosines",
    "row_space",
    "text_change",
]


# ------------------------------------------------------------------ the result of a measurement
@dataclass(frozen=True, eq=False)
class Interference:
    """How much the delta of each emitter changes what each receiver's prompts give.

    `measure_noise` and `measure_pictures` make one; `save` and `load` keep it as JSON, without the
    pictures.

    Raises:
        SepmeError: fewer than two concepts, a name twice, or a matrix of another shape or with an
            entry that is not finite.
    """

    emitters: tuple[str, ...]
    """Concepts whose delta is on, one at a time: the rows."""
    receivers: tuple[str, ...]
    """Concepts whose prompts are looked at: the columns."""
    matrix: Tensor
    """`[emitters, receivers]`: the change that the emitter's delta makes, relative to the change
    that the receiver's own delta makes. 0 is none, 1 as much as erasing the receiver itself."""
    measure: str
    """What was compared: "predicted noise" or "pictures"."""
    details: Mapping[str, Tensor] = field(default_factory=dict)
    """Further matrices `[emitters, receivers]`, by what they say: "change" (without a unit, before
    it is made relative), "keys and values" (their change, relative to the receiver's own delta's),
    "prompt energy", "overlap", "largest cosine", and with a judge "seen" and "seen before" (shares
    of the pictures)."""
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Receiver -> its prompts that were looked at."""
    seed: int = 0
    """Of the pictures: the i-th prompt of a receiver is drawn from seed + i."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """The model, the digests of the deltas, versions; JSON values only."""
    before: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """Receiver -> the original model's pictures `[n, 3, h, w]`, where pictures were measured."""
    after: Mapping[tuple[str, str], Tensor] = field(default_factory=dict, repr=False)
    """(emitter, receiver) -> the same with the emitter's delta on."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "emitters", tuple(self.emitters))
        object.__setattr__(self, "receivers", tuple(self.receivers))
        _check_names(self.emitters, self.receivers)
        shape = (len(self.emitters), len(self.receivers))
        for what, matrix in {self.measure: self.matrix, **self.details}.items():
            if tuple(matrix.shape) != shape or not matrix.isfinite().all():
                raise SepmeError(
                    f"The matrix {what!r} must be {shape[0]} x {shape[1]} finite numbers, one for "
                    f"each emitter and receiver; it is {list(matrix.shape)}."
                )

    @property
    def names(self) -> tuple[str, ...]:
        """All concepts, each once, the emitters first."""
        return tuple(dict.fromkeys((*self.emitters, *self.receivers)))

    def pair(self, emitter: str, receiver: str) -> dict[str, float]:
        """All that is known of a pair, by name: what was measured first, then the details.

        Raises:
            SepmeError: a name that is no emitter or no receiver.
        """
        place = _index(self.emitters, emitter), _index(self.receivers, receiver)
        named = {self.measure: self.matrix, **self.details}
        return {name: float(matrix[place]) for name, matrix in named.items()}

    def save(self, path: str | Path) -> Path:
        """Write JSON, all but the pictures.

        Raises:
            SepmeError: the file cannot be written.
        """
        content = {
            "emitters": self.emitters,
            "receivers": self.receivers,
            "matrix": self.matrix.tolist(),
            "measure": self.measure,
            "details": {name: matrix.tolist() for name, matrix in self.details.items()},
            "prompts": {name: list(prompts) for name, prompts in self.prompts.items()},
            "seed": self.seed,
            "provenance": dict(self.provenance),
        }
        return write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> "Interference":
        """Read what `save` wrote.

        Raises:
            SepmeError: a file that is missing or that holds something else.
        """
        saved = {entry.name for entry in fields(cls)} - {"before", "after"}
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if set(content) != saved:
                raise ValueError
            matrices = {n: _matrix(rows) for n, rows in content["details"].items()}
            prompts = {name: tuple(given) for name, given in content["prompts"].items()}
            content |= {"matrix": _matrix(content["matrix"]), "details": matrices}
            return cls(**content | {"prompts": prompts})
        except SepmeError:
            raise
        except OSError as error:
            raise SepmeError(f"{path} cannot be opened: check that the file exists.") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise SepmeError(
                f"{path} is no measurement of interference: give a file that Interference.save "
                "wrote."
            ) from error


def _check_names(emitters: Sequence[str], receivers: Sequence[str]) -> None:
    at_least_two({*emitters, *receivers})
    for names in (emitters, receivers):
        if not names or len(set(names)) < len(names):
            raise SepmeError(
                f"The concepts {', '.join(names) or '(none)'} cannot label a matrix: give at least "
                "one emitter and one receiver, and each of them once."
            )


def _index(names: Sequence[str], name: str) -> int:
    if name not in names:
        raise SepmeError(f"{name!r} was not measured: choose one of {', '.join(names)}.")
    return names.index(name)


def _matrix(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# ------------------------------------------------------------------ noise predictions
@torch.no_grad()
def predicted_noise(backbone: Backbone, probe: Probe) -> Tensor:
    """`eps(x_t, c, t)` of the model as it is now, for a probe's own prompts, `[n, c, h, w]`.

    n is the number of timesteps times that of pictures.
    """
    timesteps, pictures = probe.x_t.shape[:2]
    t = torch.tensor(probe.timesteps, device=backbone.device).repeat_interleave(pictures)
    embeddings = backbone.encode(probe.prompts).repeat(timesteps, 1, 1)
    return backbone.epsilon(probe.x_t.flatten(0, 1), t, embeddings)


def additivity_residual(composition: Composition, a: str, b: str, probe: Probe) -> float:
    """How far two deltas together are from the sum of each alone, without unit.

    With `r_I = eps(theta + sum_{k in I} Delta_k) - eps(theta)` on the probe,
    `||r_ab - r_a - r_b|| / (||r_a|| + ||r_b||)`: 0 if the two do not notice each other, and 0
    where neither changes anything.

    Args:
        composition: carries the deltas of a and b; it is left as it was.

    Raises:
        SepmeError: a and b are the same, or one is not in the composition.
    """
    if a == b:
        raise SepmeError(f"{a!r} is named twice: additivity is between two concepts.")

    def predict(*names: str) -> Tensor:
        with composition.erased(*names) as backbone:
            return predicted_noise(backbone, probe).double()

    original = predict()
    r_a, r_b, r_ab = (predict(*names) - original for names in ((a,), (b,), (a, b)))
    size = float(r_a.norm() + r_b.norm())
    return float((r_ab - r_a - r_b).norm()) / size if size > 0 else 0.0


# ------------------------------------------------------------------ who disturbs whom, measured
def own_prompts(deltas: Mapping[str, ConceptDelta], n: int = 4) -> dict[str, tuple[str, ...]]:
    """Up to n prompts of each concept, evenly spread, that no other one's delta forgets.

    "A boat in neon style" is boat's as much as neon's: that both change it is no damage.

    Raises:
        SepmeError: a concept has no prompt of its own, or n is below 1.
    """
    if n < 1:
        raise SepmeError(f"{n} prompts show nothing: give at least 1.")
    chosen = {}
    for name, delta in deltas.items():
        foreign = {p for other in deltas.values() if other is not delta for p in other.forgotten}
        own = [prompt for prompt in delta.forgotten if prompt not in foreign]
        if not own:
            raise SepmeError(
                f"Every prompt of {name!r} is forgotten by another concept too: say by `prompts` "
                "what to look at."
            )
        few = min(n, len(own))
        chosen[name] = tuple(own[i * len(own) // few] for i in range(few))
    return chosen


def measure_noise(
    composition: Composition,
    probes: Mapping[str, Probe],
    emitters: Sequence[str] | None = None,
    *,
    progress: bool = False,
) -> Interference:
    """The interference in predicted noise: quick, since no picture is drawn with a delta on.

    The change is the mean over the probes of `||eps(theta + Delta) - eps(theta)||_2`, relative
    to what the receiver's own delta makes of the same probes.

    Args:
        composition: carries the deltas; it is left as it was.
        probes: receiver -> noised pictures of its prompts, for example of its `own_prompts`.
        emitters: concepts whose delta is switched on, alone; all of the composition by default.

    Raises:
        SepmeError: fewer than two concepts, one that is not in the composition, or a receiver
            whose own delta changes nothing.
    """
    trial = _Trial(composition, {name: given.prompts for name, given in probes.items()}, emitters)
    before, after = trial.look(
        lambda backbone, name: predicted_noise(backbone, probes[name]), progress
    )
    return trial.result("predicted noise", before, after, _noise_change)


def measure_pictures(
    composition: Composition,
    prompts: Mapping[str, Sequence[str]],
    emitters: Sequence[str] | None = None,
    *,
    judge: Judge | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Interference:
    """The interference in pictures: the same noise, drawn with each emitter's delta on.

    The change is the mean absolute difference of the pixels (0 to 1), relative to what the
    receiver's own delta makes of the same pictures. With a judge, the details say in which share
    of the pictures it sees the receiver, with the delta on ("seen") and before ("seen before").

    Args:
        composition: carries the deltas; it is left as it was.
        prompts: receiver -> what to draw, for example its `own_prompts`.
        emitters: concepts whose delta is switched on, alone; all of the composition by default.
        judge: asked whether each receiver is in its pictures.
        seed: the i-th prompt of a receiver is drawn from seed + i.

    Raises:
        SepmeError: fewer than two concepts, one that is not in the composition, a receiver
            without prompts, or one whose own delta changes nothing.
    """
    trial = _Trial(composition, prompts, emitters)
    before, after = trial.look(
        lambda backbone, name: backbone.generate(trial.prompts[name], seed), progress
    )
    found = trial.result("pictures", before, after, _pixel_change)
    details = found.details
    if judge is not None:
        details = {
            **details,
            "seen": trial.table(lambda i, j: _share(judge, after[i, j], j)),
            "seen before": trial.table(lambda _, j: _share(judge, before[j], j)),
        }
    return replace(found, details=details, seed=seed, before=before, after=after)


def _noise_change(difference: Tensor) -> float:
    return float(difference.flatten(1).norm(dim=1).mean())


def _pixel_change(difference: Tensor) -> float:
    return float(difference.abs().mean())


def _share(judge: Judge, images: Tensor, name: str) -> float:
    return float(judge.sees(images, name).double().mean())


class _Trial:
    """Whose delta is switched on, and what is looked at then: the same for every measure."""

    def __init__(
        self,
        composition: Composition,
        prompts: Mapping[str, Sequence[str]],
        emitters: Sequence[str] | None,
    ) -> None:
        self.composition, self.deltas = composition, composition.deltas
        self.emitters = tuple(self.deltas if emitters is None else emitters)
        self.prompts = {name: tuple(given) for name, given in prompts.items()}
        _check_names(self.emitters, tuple(self.prompts))
        self.names = tuple(dict.fromkeys((*self.emitters, *self.prompts)))
        for name in self.names:
            if name not in self.deltas:
                known = ", ".join(self.deltas) or "none"
                raise SepmeError(
                    f"No delta of {name!r} is attached (attached: {known}): erase it first."
                )
        for name, given in prompts.items():
            if not given or isinstance(given, str):
                raise SepmeError(f"{name!r} needs a list of prompts to look at: give at least one.")

    def look(
        self, at: Callable[[Backbone, str], Tensor], progress: bool
    ) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:
        """What `at(backbone, receiver)` shows of each receiver, before, and with each delta on."""
        with self.composition.erased() as backbone:
            before = {name: at(backbone, name) for name in self.prompts}
        after = {}
        for state in tqdm(self.names, desc="measuring", disable=not progress, leave=False):
            # One that emits nothing is switched on for its own prompts only, as the yardstick.
            names = self.prompts if state in self.emitters else [state]
            with self.composition.erased(state) as backbone:
                after |= {(state, name): at(backbone, name) for name in names}
        return before, after

    def table(self, entry: Callable[[str, str], float]) -> Tensor:
        """`entry(emitter, receiver)`, `[emitters, receivers]`."""
        return pairwise(entry, self.emitters, self.prompts)

    def result(
        self,
        measure: str,
        before: Mapping[str, Tensor],
        after: Mapping[tuple[str, str], Tensor],
        size: Callable[[Tensor], float],
    ) -> Interference:
        change = {pair: size(shown - before[pair[1]]) for pair, shown in after.items()}
        for name in self.prompts:
            if change[name, name] == 0:
                raise SepmeError(
                    f"The delta of {name!r} changes nothing of its own prompts, so no change is "
                    "relative to it: choose prompts that it forgets."
                )
        return Interference(
            emitters=self.emitters,
            receivers=tuple(self.prompts),
            matrix=self.table(lambda i, j: change[i, j] / change[j, j]),
            measure=measure,
            details={"change": self.table(lambda i, j: change[i, j]), **self.geometry()},
            prompts=self.prompts,
            provenance=self.provenance(),
        )

    def geometry(self) -> dict[str, Tensor]:
        """What the weights and the text alone say of each pair."""
        with self.composition.erased() as backbone:
            rows = {j: backbone.encode(given).flatten(0, 1) for j, given in self.prompts.items()}
        deltas = {name: self.deltas[name] for name in self.names}
        spaces = {name: row_space(delta) for name, delta in deltas.items()}
        own = torch.cat([text_change({j: deltas[j]}, {j: rows[j]}) for j in rows], dim=1)
        emitting = {name: deltas[name] for name in self.emitters}
        return {
            "keys and values": text_change(emitting, rows) / own,
            "prompt energy": prompt_energy(rows, {i: spaces[i] for i in self.emitters}).T,
            "overlap": self.table(lambda i, j: overlap(spaces[i], spaces[j])),
            "largest cosine": self.table(lambda i, j: largest_cosine(spaces[i], spaces[j])),
        }

    def provenance(self) -> dict[str, Any]:
        first = self.deltas[self.names[0]]
        return {
            "base": first.base,
            "base_name": first.provenance.base_name,
            "deltas": {name: self.deltas[name].digest for name in self.names},
            "versions": versions(),
        }
