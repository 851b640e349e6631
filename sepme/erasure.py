"""Train the delta of a concept: G-CiRs for the loss, weight decoupling for where it may act.

One loop serves the three variants of the method: one concept at a time (SepME), several at once
(SepME-dagger) and without decoupling (SepME-double-dagger). They differ in which weights move,
which is what a `Parametrisation` says.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sepme.artefact import Provenance, settings_hash, versions
from sepme.concept import Concept
from sepme.correlation import (
    Momentum,
    balance,
    correlation_loss,
    noise_difference,
    normalised_correlation,
)
from sepme.delta import ConceptDelta
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.nullspace import Constraint, constrain
from sepme.training import Checkpoint


# ------------------------------------------------------------------ settings
# What decides a delta besides the model, the concept and the seed; and the named choices of it.
def _choose(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise SepmeError(f"{name} = '{value}' is unknown: choose one of {', '.join(known)}.")


@dataclass(frozen=True)
class ErasureSettings:
    """Everything that decides a delta, besides the model, the concept and the seed.

    The defaults are the preset "default", measured in `benchmarks/README.md`. They keep the
    method's shape (decorrelate, inside the null space of what is kept, stop on the momentum). Four
    changes matter most; each field says what was published:

    * **The start** is the closed form instead of zero: the concept's keys and values already point
      to its anchor's, and training corrects what a linear map of embeddings cannot know.
    * **The reference** of the noise difference is the concept's anchor instead of the empty
      prompt. Against the empty prompt, "a boat in neon style" differs by the neon *and* by the
      boat, and decorrelating it works on both; against "a photo of a boat" it differs by the neon.
    * **The correlation is normalised** per sample, so that every timestep counts alike, and
      *squared*, so that the anti-concept (a negative correlation) is as wrong as the concept.
      What the text decides at the noisiest timesteps (neon's black background) weighs next to
      nothing in a mean of epsilon-space products over uniform t.
    * **Few directions, damped.** The rows e(c) P of a concept lie almost along one line; the
      directions after the first few carry little of it and touch the rest as much as the first
      ones do. Damped instead of cut, the null space leaks less for the same reach.
    """

    parametrisation: str = "lora"
    """"lora" (B Q), "dense" (w x beta S, eq. 9) or "full" (every attn2 weight, undecoupled)."""
    method: str = "damped"
    """Null space: "damped"; or cut at the tolerance, its basis by "svd" or by "elimination" as
    published."""
    keep_rtol: float | None = 1e-3
    """Tolerance of the null space of what is kept, relative to its largest singular value; None
    for what the model's dtype rounds away, see `sepme.nullspace.null_space`."""
    concept_rtol: float = 0.1
    """Directions of e(c) P weaker than this times the strongest are left out."""
    start: str = "closed_form"
    """"closed_form", or "zero" as published."""
    reference: str = "anchor"
    """What r(c) is measured against: "empty" (c_0) as published, or "anchor", what the concept's
    prompt should mean afterwards, as the original model predicts it. The anchor of a concept
    without anchors is the empty prompt."""
    objective: str = "squared"
    """"squared" normalised correlation, or "product" (eq. 2)."""
    iterations: int = 40
    """The most iterations; 1000 as published."""
    batch: int = 8
    """Noised images an iteration; 1 as published."""
    images: int = 16
    """Images of the concept, drawn by the original model."""
    timesteps: str = "stratified"
    """"stratified" over the batch, or "uniform" as published."""
    learning_rate: float = 0.01
    beta: float = 1.0
    """Scale of the dense basis, beta of eq. 9; 1e-4 as published (with learning rate 0.1)."""
    lam: float = 0.0
    """Weight lambda of ||Delta||_1 / M; 1e-6 as published."""
    alpha: float = 0.9
    """How much of the momentum m_n is the one before (eq. 4)."""
    tau: float = 0.1
    """Stop at m_n <= tau; 0 as published. A tenth of the original correlation is as near to none
    as the noise of a batch of 8 can tell."""
    earliest_stop: int = 11
    """The first iteration that may stop: before, m_n still remembers its start."""

    def __post_init__(self) -> None:
        _choose("method", self.method, ("damped", "svd", "elimination"))
        _choose("parametrisation", self.parametrisation, ("lora", "dense", "full"))
        _choose("start", self.start, ("closed_form", "zero"))
        _choose("reference", self.reference, ("anchor", "empty"))
        _choose("objective", self.objective, ("squared", "product"))
        _choose("timesteps", self.timesteps, ("stratified", "uniform"))
        for name in ("iterations", "batch", "images", "earliest_stop"):
            if getattr(self, name) < 1:
                raise SepmeError(f"{name} = {getattr(self, name)} makes no sense: give at least 1.")
        for name in ("learning_rate", "beta"):
            if not 0 < getattr(self, name) < math.inf:
                raise SepmeError(
                    f"{name} = {getattr(self, name)} makes no sense: give a number above 0."
                )
        if not 0 <= self.lam < math.inf:
            raise SepmeError(f"lam = {self.lam} makes no sense: give 0 or more.")
        for name in ("alpha", "keep_rtol", "concept_rtol"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise SepmeError(f"{name} = {value} makes no sense: give at least 0, below 1.")
        if not math.isfinite(self.tau):
            raise SepmeError(f"tau = {self.tau} is no number: give one, like 0.")
        if self.start == "closed_form" and self.parametrisation != "lora":
            raise SepmeError(
                "The closed form starts the 'lora' parametrisation only: use start='zero' with "
                f"'{self.parametrisation}'."
            )
        if self.method == "damped" and self.parametrisation == "dense":
            raise SepmeError(
                "The damped null space has no basis for 'dense' to be multiplied with: use "
                "method='svd' or 'elimination' with it, or parametrisation='lora'."
            )


_PAPER = ErasureSettings(
    parametrisation="dense",
    method="elimination",
    keep_rtol=3e-3,
    start="zero",
    reference="empty",
    objective="product",
    iterations=1000,
    batch=1,
    timesteps="uniform",
    learning_rate=0.1,
    beta=1e-4,
    lam=1e-6,
    tau=0.0,
)

#: * `default`: what small trials favoured; measured on the Atelier in `benchmarks/README.md`.
#: * `from_zero`: the default without the closed form: all of it learnt, from r = r0 to r _|_ r0.
#: * `paper`: objective and hyperparameters as published, for SD v1.4.
#: * `paper_rescaled`: the published objective and schedule with rates that move the Atelier, where
#:   the published ones give steps too small to see (`benchmarks/README.md`).
#: * `undecoupled`: the published variant for what must never come back.
PRESETS: Mapping[str, ErasureSettings] = {
    "default": ErasureSettings(),
    "from_zero": ErasureSettings(start="zero", iterations=60, learning_rate=0.03),
    "paper": _PAPER,
    "paper_rescaled": replace(_PAPER, learning_rate=0.01, beta=1.0, lam=0.0),
    "undecoupled": replace(
        _PAPER, parametrisation="full", method="svd", learning_rate=1e-5, beta=1.0
    ),
}


def preset(name: str) -> ErasureSettings:
    """The settings of a preset by name."""
    if name not in PRESETS:
        raise SepmeError(f"Preset '{name}' is unknown: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


# ------------------------------------------------------------------ parametrisation
# Which numbers training moves, and the weight change `Delta_l [d_out, d_in]` they stand for.
Factors = tuple[dict[str, Tensor], dict[str, Tensor]]


class Parametrisation(nn.Module, ABC):
    """Trainable parameters, one per layer, in the order of `paths`."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.paths = tuple(parameters)
        self.values = nn.ParameterList(nn.Parameter(p.clone()) for p in parameters.values())

    def items(self) -> Iterator[tuple[str, Tensor]]:
        return zip(self.paths, self.values, strict=True)

    @abstractmethod
    def change(self) -> dict[str, Tensor]:
        """`Delta_l [d_out, d_in]` by module path, differentiable."""

    @abstractmethod
    def factors(self) -> Factors:
        """`(down [q, d_in], up [d_out, q])` by module path, for a `ConceptDelta`."""


class LowRank(Parametrisation):
    """`Delta_l = B_l Q`: Q fixed and shared, B learned. A LoRA pair (method, claim 1)."""

    def __init__(self, basis: Tensor, up: Mapping[str, Tensor]) -> None:
        super().__init__(up)
        self.register_buffer("basis", basis)

    def change(self) -> dict[str, Tensor]:
        return {path: up @ self.basis for path, up in self.items()}

    def factors(self) -> Factors:
        return dict.fromkeys(self.paths, self.basis), {p: up.detach() for p, up in self.items()}


class Dense(Parametrisation):
    """`Delta_l = (w_l x beta S)^T` (eq. 9, 10): w `[d_out, free]` is learned."""

    def __init__(self, basis: Tensor, beta: float, d_out: Mapping[str, int]) -> None:
        super().__init__({path: basis.new_zeros(n, basis.shape[1]) for path, n in d_out.items()})
        self.beta = beta
        self.register_buffer("basis", basis)

    def change(self) -> dict[str, Tensor]:
        return {path: self.beta * w @ self.basis.T for path, w in self.items()}

    def factors(self) -> Factors:
        # S = Q^T R with orthonormal rows Q, so w S^T = (w R^T) Q: the same change as a LoRA pair.
        orthonormal, triangular = torch.linalg.qr(self.basis.double())
        down = orthonormal.T.to(self.basis.dtype)
        ups = {
            p: (self.beta * w.detach().double() @ triangular.T).to(w.dtype) for p, w in self.items()
        }
        return dict.fromkeys(self.paths, down), ups


class Full(Parametrisation):
    """Every entry of every given weight, undecoupled: for what must never come back."""

    def __init__(self, shapes: Mapping[str, torch.Size], like: Tensor) -> None:
        super().__init__({path: like.new_zeros(shape) for path, shape in shapes.items()})

    def change(self) -> dict[str, Tensor]:
        return dict(self.items())

    def factors(self) -> Factors:
        down = {p: torch.eye(w.shape[1], dtype=w.dtype, device=w.device) for p, w in self.items()}
        return down, {p: w.detach() for p, w in self.items()}


# ------------------------------------------------------------------ closed_form
# Erase without training: send a concept's keys and values to its anchor's, inside the null space.
#
# The increment solves a ridge regression in closed form. With `e` the concept's embedding rows, `a`
# the anchor's rows at the same positions, `k` the kept rows, and `Delta = B Q` as in training,
#
#     min_B  mean |B Q e - W (a - e)|^2  +  mu mean |B Q k|^2  +  rho tr(G) |B|^2 / q
#
#     B = W mean[(a - e)(Q e)^T] (G + mu K + rho tr(G)/q I)^-1,
#     G = mean[(Q e)(Q e)^T],  K = mean[(Q k)(Q k)^T].
#
# The same least-squares idea as UCE (Gandikota et al. 2024), but restricted to the directions Q
# that
# leave what is kept alone, so it takes the same result type as training and serves as its start.
#
def closed_form(
    backbone: Backbone,
    concept: Concept,
    keep: Sequence[str] = (),
    *,
    keep_rtol: float | None = 1e-3,
    concept_rtol: float = 0.1,
    method: str = "damped",
    ridge: float = 1e-3,
    keep_weight: float = 1.0,
) -> ConceptDelta:
    """Erase a concept in a fraction of a second, without images and without gradients.

    Args:
        backbone: the model; it is not changed.
        concept: what to forget, and in its anchors what to say instead.
        keep: prompts that must not change (the empty prompt is always kept).
        keep_rtol: tolerance of the null space of what is kept; None for the least possible.
        concept_rtol: directions of the concept weaker than this times the strongest are left out.
        method: "damped", "svd" or "elimination", see `sepme.nullspace.constrain`.
        ridge: rho of the formula above, relative to the mean energy of the directions.
        keep_weight: mu of the formula above; what leaks within the tolerance is also penalised.

    Raises:
        SepmeError: a prompt both kept and forgotten, or no free direction.
    """
    settings = {
        "keep_rtol": keep_rtol,
        "concept_rtol": concept_rtol,
        "method": method,
        "ridge": ridge,
        "keep_weight": keep_weight,
    }
    room = constrain(
        backbone, concept, keep, keep_rtol=keep_rtol, concept_rtol=concept_rtol, method=method
    )
    up = closed_form_up(backbone, room, ridge=ridge, keep_weight=keep_weight)
    provenance = Provenance(
        concept=concept.name,
        kind=concept.kind,
        base=backbone.fingerprint,
        base_name=backbone.name,
        forgotten=concept.prompts,
        kept=room.kept,
        settings=settings | {"eraser": "closed_form"},
        versions=versions(),
    )
    return ConceptDelta(
        concept.name, dict.fromkeys(up, room.basis.to(backbone.dtype)), up, provenance
    )


def closed_form_up(
    backbone: Backbone, room: Constraint, *, ridge: float = 1e-3, keep_weight: float = 1.0
) -> dict[str, Tensor]:
    """The factor B `[d_out, q]` of every layer, by the formula above."""
    q, e, k = room.basis, room.concept_rows, room.kept_rows
    a = backbone.encode(room.concept.anchors).flatten(0, 1).to(e)
    e_q, k_q = e @ q.T, k @ q.T
    gram = e_q.T @ e_q / len(e_q)  # G
    keep = k_q.T @ k_q / len(k_q)  # K
    damping = ridge * gram.trace() / len(q) * torch.eye(len(q)).to(gram)
    # Where each direction has to go, [d_in, q]: the same for all layers, which only apply W.
    shift = (a - e).T @ e_q / len(e_q) @ torch.linalg.inv(gram + keep_weight * keep + damping)
    return {
        path: (layer.weight.cpu().double() @ shift).to(layer.weight)
        for path, layer in backbone.projections().items()
    }


# ------------------------------------------------------------------ erasure
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
