"""Train the delta of a concept: G-CiRs for the loss, weight decoupling for where it may act.

One loop serves the three variants of the method: one concept at a time (SepME), several at once
(SepME-dagger) and without decoupling (SepME-double-dagger). They differ in which weights move,
which is what a `Parametrisation` says.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sepme.backbone import Backbone
from sepme.checkpoint import Checkpoint
from sepme.closed_form import closed_form_up
from sepme.concept import Concept
from sepme.constraint import constrain
from sepme.correlation import (
    Momentum,
    balance,
    correlation_loss,
    noise_difference,
    normalised_correlation,
)
from sepme.delta import ConceptDelta
from sepme.errors import SepmeError
from sepme.parametrisation import Dense, Full, LowRank, Parametrisation
from sepme.provenance import Provenance, settings_hash, versions
from sepme.settings import PRESETS, ErasureSettings


@dataclass(frozen=True)
class Step:
    """One iteration as a callback sees it."""

    iteration: int
    """Counted from 1."""
    loss: float
    momentum: float
    """m_n of eq. 4: of the correlation (eq. 2), normalised if the objective is "squared"."""
    correlation: tuple[float, ...]
    """Mean normalised correlation of each concept: 1 untouched, 0 erased, below 0 overshot."""
    timesteps: tuple[int, ...]
    """The timesteps of the batch (of the first concept)."""
    correlation_by_timestep: tuple[float, ...]
    """Normalised correlation of each sample of the first concept, beside `timesteps`."""
    eta: tuple[float, ...]
    """Balance of the concepts (eq. 3)."""
    norm: float
    """||Delta||_1 / M."""


Callback = Callable[[Step], None]
#: Called with the number of finished iterations, and the deltas as they stand after them.
Observer = Callable[[int, list[ConceptDelta]], None]


def erase(
    backbone: Backbone,
    concept: Concept,
    keep: Sequence[str] = (),
    settings: ErasureSettings = PRESETS["default"],
    *,
    seed: int = 0,
    after: Sequence[ConceptDelta] = (),
    callback: Callback | None = None,
    observer: Observer | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = True,
) -> ConceptDelta:
    """Train the delta that makes the model forget one concept and leaves `keep` alone.

    Args:
        backbone: the model; it is never changed.
        concept: what to forget.
        keep: prompts that must not change (the empty prompt is always kept; the parametrisation
            "full" keeps nothing).
        settings: see `ErasureSettings` and `PRESETS`.
        seed: decides the images of the concept, the noise and the timesteps.
        after: deltas that are already on (iterative erasure). Their prompts are kept too, and
            they are not touched.
        callback: called with a `Step` after every iteration.
        observer: called with copies of the unfinished deltas, before the first iteration and after
            every one.
        checkpoint: where to write progress, and to go on from if it is of this very run.

    Raises:
        SepmeError: bad settings, a prompt both kept and forgotten, no free direction, a delta of
            another model, or a loss that is no longer finite.
    """
    return erase_jointly(
        backbone,
        [concept],
        keep,
        settings,
        seed=seed,
        after=after,
        callback=callback,
        observer=observer,
        checkpoint=checkpoint,
        progress=progress,
    )[0]


def erase_jointly(
    backbone: Backbone,
    concepts: Sequence[Concept],
    keep: Sequence[str] = (),
    settings: ErasureSettings = PRESETS["default"],
    *,
    seed: int = 0,
    after: Sequence[ConceptDelta] = (),
    callback: Callback | None = None,
    observer: Observer | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = True,
) -> list[ConceptDelta]:
    """Train the deltas of several concepts in one run (SepME-dagger), each keeping the others.

    The objective is eq. 3, `sum_i eta_i L_cor(c_i) + lambda ||Delta||_1 / M`, with the sum of all
    deltas on. Arguments and errors are those of `erase`; one delta a concept comes back.
    """
    if not concepts:
        raise SepmeError("There is no concept to erase: name at least one.")
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    run = _Run(backbone, list(concepts), keep, settings, seed, tuple(after))
    run.train(callback, observer, checkpoint, progress)
    return run.deltas()


def erase_undecoupled(
    backbone: Backbone,
    concept: Concept,
    settings: ErasureSettings = PRESETS["undecoupled"],
    **options: object,
) -> ConceptDelta:
    """Forget by moving every cross-attention weight (SepME-double-dagger): nothing is kept.

    For what must never come back. The delta has full rank, and it disturbs other concepts.
    """
    if settings.parametrisation != "full":
        raise SepmeError(
            "Undecoupled erasure needs parametrisation='full': start from PRESETS['undecoupled']."
        )
    return erase(backbone, concept, (), settings, **options)  # type: ignore[arg-type]


class _Subject:
    """What one concept brings to training: its room, its parameters, its images, its embeddings."""

    def __init__(self, run: "_Run", index: int) -> None:
        self.concept = run.concepts[index]
        others = [p for c in run.concepts for p in c.prompts if p not in self.concept.prompts]
        earlier = [
            p for delta in run.after for p in delta.forgotten if p not in self.concept.prompts
        ]
        self.kept = tuple(dict.fromkeys([*run.keep, *others, *earlier]))
        self.parameters = self._parametrise(run)
        self.prompts = _spread(self.concept.prompts, run.settings.images)
        self.embeddings = run.backbone.encode(self.prompts)
        self.references = run.backbone.encode(self._references(run.settings.reference))
        self.images = Tensor()  # drawn, or read from the checkpoint, before the first iteration

    def _references(self, reference: str) -> list[str]:
        """What r(c) of each prompt is measured against (c_0, or the prompt's anchor)."""
        if reference == "empty":
            return [""] * len(self.prompts)
        anchors = dict(zip(self.concept.prompts, self.concept.anchors, strict=True))
        return [anchors[prompt] for prompt in self.prompts]

    def _parametrise(self, run: "_Run") -> Parametrisation:
        backbone, settings = run.backbone, run.settings
        if settings.parametrisation == "full":
            self.kept = ()
            weights = backbone.cross_attention()
            return Full({n: w.shape for n, w in weights.items()}, like=next(iter(weights.values())))
        room = constrain(
            backbone,
            self.concept,
            self.kept,
            keep_rtol=settings.keep_rtol,
            concept_rtol=settings.concept_rtol,
            method=settings.method,
        )
        self.kept = room.kept
        d_out = {path: layer.out_features for path, layer in backbone.projections().items()}
        place = {"device": backbone.device, "dtype": backbone.dtype}
        if settings.parametrisation == "dense":
            return Dense(room.space.basis.to(**place), settings.beta, d_out)
        if settings.start == "closed_form":
            up = closed_form_up(backbone, room)
        else:
            up = {path: torch.zeros(n, room.rank, **place) for path, n in d_out.items()}
        return LowRank(room.basis.to(**place), up)

    def draw(self, run: "_Run", seed: int) -> None:
        """x_0: images of the concept as the original model draws them."""
        seeds = range(seed, seed + len(self.prompts))
        self.images = run.backbone.generate(self.prompts, seeds, output="latents")


class _Run:
    """The state of one training, from the first iteration to the finished deltas."""

    def __init__(
        self,
        backbone: Backbone,
        concepts: list[Concept],
        keep: tuple[str, ...],
        settings: ErasureSettings,
        seed: int,
        after: tuple[ConceptDelta, ...],
    ) -> None:
        for delta in after:
            if delta.base != backbone.fingerprint:
                raise SepmeError(
                    f"The delta of '{delta.concept}' belongs to another base model: "
                    "erase it again on this one."
                )
        names = [*(delta.concept for delta in after), *(concept.name for concept in concepts)]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise SepmeError(
                f"'{twice[0]}' is to be erased twice: name it once, and not if a delta of it is "
                "already on."
            )
        self.backbone, self.concepts, self.keep = backbone, concepts, keep
        self.settings, self.seed, self.after = settings, seed, after
        self.weights = backbone.cross_attention()
        self.fixed = _sum_of(after, backbone)
        self.subjects = [_Subject(self, index) for index in range(len(concepts))]
        trainable = [p for subject in self.subjects for p in subject.parameters.parameters()]
        self.optimiser = torch.optim.Adam(trainable, lr=settings.learning_rate)
        self.momentum = Momentum(settings.alpha, settings.tau, settings.earliest_stop)
        # Whether eps(x_t, c_0) of the changed model is the original's: it is, unless undecoupled.
        # An anchor's is the original's by definition.
        self.keeps_reference = settings.reference == "anchor" or all(
            "" in kept
            for kept in [*(s.kept for s in self.subjects), *(delta.kept for delta in after)]
        )

    # ------------------------------------------------------------------ the loop
    def train(
        self,
        callback: Callback | None,
        observer: Observer | None,
        checkpoint: Checkpoint | None,
        progress: bool,
    ) -> None:
        with self.backbone.original():
            self._prepare(checkpoint)
            self._train(callback, observer, checkpoint, progress)

    def _train(
        self,
        callback: Callback | None,
        observer: Observer | None,
        checkpoint: Checkpoint | None,
        progress: bool,
    ) -> None:
        self._show(observer)
        names = ", ".join(c.name for c in self.concepts)
        limit = self.settings.iterations
        with tqdm(
            total=limit, initial=self.iteration, desc=f"erasing {names}", disable=not progress
        ) as bar:
            while self.iteration < limit and not self.momentum.stopped:
                step = self._iterate()
                bar.update()
                bar.set_postfix(correlation=f"{sum(step.correlation) / len(step.correlation):.2f}")
                if callback is not None:
                    callback(step)
                self._show(observer)
                if checkpoint is not None and self.iteration % checkpoint.every == 0:
                    self._save(checkpoint)

    def _show(self, observer: Observer | None) -> None:
        if observer is not None:
            observer(self.iteration, self.deltas())

    @property
    def iteration(self) -> int:
        return self.momentum.iteration

    def _iterate(self) -> Step:
        settings = self.settings
        generator = torch.Generator().manual_seed(_mix(self.seed, self.iteration))
        weights = self._changed_weights()
        losses, measures, ratios, timesteps = [], [], [], []
        for subject in self.subjects:
            t, r, r0 = self._differences(subject, weights, generator)
            ratio = normalised_correlation(r, r0)
            if settings.objective == "squared":
                losses.append(ratio.square().mean())
                measures.append(ratio.mean())
            else:
                losses.append(correlation_loss(r, r0).mean())
                measures.append(losses[-1])
            ratios.append(ratio.detach())
            timesteps.append(t)
        eta = balance(torch.stack(losses))
        correlation = (eta * torch.stack(losses)).sum()  # sum_i eta_i L_cor(c_i)
        norm = self._norm()
        self.optimiser.zero_grad()
        (correlation + settings.lam * norm).backward()  # eq. 3
        # Eq. 4 looks at the signed correlation also where its square is minimised: m_n <= tau
        # says "uncorrelated". The update refuses a number that is not finite.
        self.momentum.update((eta * torch.stack(measures)).sum().detach())
        self.optimiser.step()
        return Step(
            iteration=self.iteration,
            loss=float(correlation.detach()),
            momentum=self.momentum.value,
            correlation=tuple(float(ratio.mean()) for ratio in ratios),
            timesteps=tuple(timesteps[0].tolist()),
            correlation_by_timestep=tuple(ratios[0].tolist()),
            eta=tuple(eta.tolist()),
            norm=float(norm.detach()),
        )

    def _differences(
        self, subject: _Subject, weights: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`t [b]`, `r(c; theta + Delta)` and `r(c; theta)` `[b, c, h, w]`, on fresh noise."""
        x_t, t, chosen = self._noised(subject, generator)
        c, c_0 = subject.embeddings[chosen], subject.references[chosen]
        with torch.no_grad():  # theta has no trainable weight
            both = self.backbone.epsilon(
                torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([c, c_0]), self.weights
            )
        eps_c, eps_0 = both.chunk(2)
        changed = self.backbone.epsilon(x_t, t, c, weights)
        changed_0 = eps_0 if self.keeps_reference else self.backbone.epsilon(x_t, t, c_0, weights)
        return t, noise_difference(changed, changed_0), noise_difference(eps_c, eps_0)

    def _noised(
        self, subject: _Subject, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, total = self.settings.batch, self.backbone.timesteps
        chosen = torch.randint(len(subject.images), (n,), generator=generator)
        u = torch.rand(n, generator=generator)
        if self.settings.timesteps == "stratified":
            u = (torch.arange(n) + u) / n
        t = (u * total).long().clamp(max=total - 1)
        x_0 = subject.images[chosen]
        noise = torch.randn(x_0.shape, generator=generator).to(x_0)
        t = t.to(self.backbone.device)
        return self.backbone.add_noise(x_0, noise, t), t, chosen

    def _changed_weights(self) -> dict[str, Tensor]:
        """theta + sum_k Delta_k, of the layers that change."""
        changes = dict(self.fixed)
        for subject in self.subjects:
            for path, change in subject.parameters.change().items():
                changes[path] = changes[path] + change if path in changes else change
        return self.weights | {
            path: self.weights[path] + change for path, change in changes.items()
        }

    def _norm(self) -> Tensor:
        """||Delta||_1 / M (eq. 3)."""
        sums = [
            torch.stack([change.abs().sum() for change in subject.parameters.change().values()])
            for subject in self.subjects
        ]
        return torch.cat(sums).sum() / len(sums[0])

    # ------------------------------------------------------------------ to the disk and back
    def _prepare(self, checkpoint: Checkpoint | None) -> None:
        """Go on from the checkpoint if there is one of this run; else draw the concepts' images."""
        saved = checkpoint.read(self._key()) if checkpoint is not None else None
        if saved is not None:
            self._restore(*saved)
            return
        for index, subject in enumerate(self.subjects):
            subject.draw(self, _mix(self.seed, -1 - index))
        if checkpoint is not None:
            self._save(checkpoint)

    def _key(self) -> str:
        return settings_hash(
            {
                "settings": recorded_settings(self.backbone, self.concepts, self.settings),
                "base": self.backbone.fingerprint,
                "concepts": [asdict(concept) for concept in self.concepts],
                "keep": list(self.keep),
                "after": [delta.digest for delta in self.after],
                "seed": self.seed,
                "versions": versions(),
            }
        )

    def _parameters(self) -> list[torch.nn.Parameter]:
        return self.optimiser.param_groups[0]["params"]

    def _save(self, checkpoint: Checkpoint) -> None:
        tensors = {f"images.{i}": subject.images for i, subject in enumerate(self.subjects)}
        for i, parameter in enumerate(self._parameters()):
            tensors[f"value.{i}"] = parameter
            for name, moment in self.optimiser.state[parameter].items():
                tensors[f"{name}.{i}"] = moment
        checkpoint.write(
            self._key(), {"iteration": self.iteration, "momentum": self.momentum.value}, tensors
        )

    def _restore(self, numbers: dict[str, float], tensors: dict[str, Tensor]) -> None:
        self.momentum.iteration, self.momentum.value = (
            int(numbers["iteration"]),
            numbers["momentum"],
        )
        for i, subject in enumerate(self.subjects):
            subject.images = tensors[f"images.{i}"].to(self.backbone.device)
        for i, parameter in enumerate(self._parameters()):
            parameter.data.copy_(tensors[f"value.{i}"])
            moments = {
                n: tensors[f"{n}.{i}"]
                for n in ("step", "exp_avg", "exp_avg_sq")
                if f"{n}.{i}" in tensors
            }
            if moments:
                moments |= {n: moments[n].to(parameter.device) for n in ("exp_avg", "exp_avg_sq")}
                self.optimiser.state[parameter] = moments

    def deltas(self) -> list[ConceptDelta]:
        made = []
        for subject in self.subjects:
            down, up = subject.parameters.factors()
            provenance = Provenance(
                concept=subject.concept.name,
                kind=subject.concept.kind,
                base=self.backbone.fingerprint,
                base_name=self.backbone.name,
                forgotten=subject.concept.prompts,
                kept=subject.kept,
                settings=recorded_settings(self.backbone, self.concepts, self.settings),
                seed=self.seed,
                iterations=self.iteration,
                after=tuple(delta.digest for delta in self.after),
                versions=versions(),
            )
            made.append(ConceptDelta(subject.concept.name, down, up, provenance))
        return made


def recorded_settings(
    backbone: Backbone, concepts: Sequence[Concept], settings: ErasureSettings
) -> dict[str, Any]:
    """What a delta's provenance says of how it was trained, prompts and seed apart.

    How the images of the concept are drawn decides the delta too, and so do the other concepts
    that were erased jointly with it.
    """
    jointly = {"jointly": [concept.name for concept in concepts]} if len(concepts) > 1 else {}
    sampling = {"guidance": backbone.guidance, "steps": backbone.steps}
    return asdict(settings) | {"eraser": "sepme"} | sampling | jointly


def _sum_of(deltas: Sequence[ConceptDelta], backbone: Backbone) -> dict[str, Tensor]:
    """The change that deltas make together, by module path, on the backbone's device."""
    total: dict[str, Tensor] = {}
    for delta in deltas:
        for path in delta.paths:
            change = delta.dense(path).to(backbone.device, backbone.dtype)
            total[path] = total[path] + change if path in total else change
    return total


def _spread(prompts: Sequence[str], n: int) -> list[str]:
    """n of the prompts, evenly spread over them all, repeated where there are fewer."""
    return [
        prompts[(i * len(prompts)) // n if n < len(prompts) else i % len(prompts)] for i in range(n)
    ]


def _mix(seed: int, index: int) -> int:
    """A seed of its own for every iteration (and, below zero, every concept's images)."""
    return (seed * 1_000_003 + index * 7_919 + 2**40) % 2**62
