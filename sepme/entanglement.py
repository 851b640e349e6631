"""How concepts get in one another's way: angles, energies, sums, and measured damage.

Two deltas `B_i Q_i` and `B_j Q_j` meet in three places. Their row spaces may share directions of
the text embedding (principal angles). A prompt of one may have a part in the row space of the other
(energy); without one, the other cannot touch it (paper eq. 6). And between weights and noise there
is a network that is not linear, so two changes together need not be the sum of the two
(additivity). What it comes to is measured: how much does a delta change what is not its own?
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sepme.atelier.judge import Judge
from sepme.backbone import Backbone
from sepme.composition import Composition
from sepme.decay import Probe
from sepme.delta import ConceptDelta
from sepme.errors import SepmeError
from sepme.files import write_atomically
from sepme.provenance import versions
from sepme.subspaces import (
    at_least_two,
    expected_overlap,
    gram,
    largest_cosine,
    largest_cosines,
    overlap,
    pairwise,
    principal_cosines,
    prompt_energy,
    random_largest_cosines,
    row_space,
    text_change,
)

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
