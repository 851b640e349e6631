"""SepME: train the delta of a concept. `erase` is the whole method.

G-CiRs says what is minimised: the correlation of the noise difference with the original model's.
Weight decoupling says which weights may move: those that the retain set does not see.

| equation | where |
|---|---|
| (2) L_cor = mean(r(c; theta + Delta) . r(c; theta)) | `_Correlation`, with `sepme.correlation` |
| (3) sum_i eta_i L_cor(c_i) + lambda norm(Delta) | `_ChangedModel.loss` |
| (4) m_n, stop at tau | `_Increment.update_momentum` |
| (6) to (8) the null space of the retain set | `sepme.nullspace` |
| (9), (10) Delta = W R, with R in the null space | `_Increment._parametrise` |
| the closed-form start | `closed_form_shift` |

The loop around them is `sepme.training.Trainer`; chapter 03 writes all of it out on one page.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sepme._checks import (
    above_zero,
    as_python,
    at_least,
    below_one,
    choose,
    finite,
    kinds,
    texts,
    whole,
)
from sepme.artefact import Provenance, versions
from sepme.concept import Concept, evenly
from sepme.correlation import (
    Momentum,
    balance,
    correlation_loss,
    noise_difference,
    normalised_correlation,
)
from sepme.delta import ConceptDelta
from sepme.errors import SepmeError
from sepme.model import Backbone, own_modes
from sepme.nullspace import Constraint, Embedded, constrain
from sepme.training import Stateful, Step, Trainer, mix

__all__ = ["PRESETS", "ErasureSettings", "ErasureStep", "erase", "preset"]

Weights = Mapping[str, Tensor]
#: Latents of concepts that were drawn for a training, the latest last.
_DRAWN: dict[Any, Tensor] = {}
_DRAWN_AT_MOST = 128


# ------------------------------------------------------------------ what can be chosen
@dataclass(frozen=True)
class ErasureSettings:
    """Everything that decides a delta, besides the model, the concept and the seed.

    The defaults are the preset "default", measured in `benchmarks/README.md`. Four of them matter
    most. A field says what was published where that is known.

    * **Start**: the closed form. Training corrects what a linear map of embeddings cannot know.
    * **Reference**: the anchor. Against the empty prompt, "a boat in neon style" differs by the
      neon *and* by the boat; against "a photo of a boat" it differs by the neon alone.
    * **Objective**: the squared normalised correlation. Every timestep counts alike, and the
      anti-concept (a negative correlation) is as wrong as the concept.
    * **Directions**: few and damped. The strongest rows of e(c) P carry the concept. Damped
      instead of cut, the null space leaks less for the same reach.

    Raises:
        SepmeError: a value that makes no sense.
    """

    parametrisation: str = "lora"
    """"lora" (B Q), "dense" (w x beta S, eq. 9) or "full" (every attn2 weight, undecoupled; the
    published variant also trains the bias of `to_out`, which a LoRA file cannot hold)."""
    method: str = "damped"
    """Null space: "damped"; or cut at the tolerance, its basis by "svd" or by "elimination" as
    published."""
    keep_rtol: float | None = 0.05
    """Tolerance of the null space of what is kept, relative to the length of a kept token (root
    mean square). 0, as published: every direction is kept that the model's dtype tells from zero.
    None: directions of the size of rounding are left out."""
    concept_rtol: float = 0.1
    """Directions of e(c) P weaker than this times the strongest are left out."""
    start: str = "closed_form"
    """"closed_form", or "zero" as published."""
    reference: str = "anchor"
    """What r(c) is measured against: "empty" (c_0) as published, or the prompt's "anchor", as the
    original model predicts it. The anchor of a concept without anchors is the empty prompt."""
    objective: str = "squared"
    """"squared" normalised correlation, or "product" (eq. 2)."""
    statistic: str = "correlation"
    """What the momentum averages: the normalised "correlation", which falls below 0 for the
    anti-concept, so that training stops at |m_n| <= tau; or the "loss" that is minimised, as eq. 4
    says."""
    iterations: int = 40
    """The most iterations; 1000 as published. With 0 the delta is the start itself."""
    batch: int = 8
    """Noised images an iteration; 1 as published."""
    images: int = 12
    """Images of the concept, drawn by the original model."""
    image_steps: float = 0.5
    """Sampling steps of such an image, as a share of the model's own; 1 as published."""
    pool: int = 48
    """Noised images in all, which the original model passes once; 0 makes new ones in every
    iteration, as published."""
    timesteps: str = "stratified"
    """"stratified" over the batch, or "uniform" as published."""
    learning_rate: float = 0.05
    """Adam's rate."""
    relative_rate: bool = True
    """Whether the rate is in units of the correlation: how much of it Adam's first step removes, to
    first order. It then serves a model of any scale, depth and number of directions. Absolute as
    published."""
    accumulate: bool = False
    """Add each iteration's gradient to those before, as the authors' code does."""
    beta: float = 1.0
    """Scale of the dense basis, beta of eq. 9; 1e-4 as published (with learning rate 0.1)."""
    lam: float = 0.0
    """Weight lambda of ||Delta||_1 / M; 1e-6 as published."""
    alpha: float = 0.9
    """How much of the momentum m_n is the one before (eq. 4)."""
    tau: float = 0.1
    """Stop at |m_n| <= tau, or at m_n <= tau of the loss; published: 0, later 1e-4. Below 0.1,
    differences of the correlation are smaller than the noise of a batch of 8."""
    earliest_stop: int = 11
    """The first iteration that may stop: before, m_n still remembers its start."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, as_python(value))
        choose(("lora", "dense", "full"), parametrisation=self.parametrisation)
        choose(("damped", "svd", "elimination"), method=self.method)
        choose(("closed_form", "zero"), start=self.start)
        choose(("anchor", "empty"), reference=self.reference)
        choose(("squared", "product"), objective=self.objective)
        choose(("correlation", "loss"), statistic=self.statistic)
        choose(("stratified", "uniform"), timesteps=self.timesteps)
        whole(1, batch=self.batch, images=self.images, earliest_stop=self.earliest_stop)
        whole(0, iterations=self.iterations, pool=self.pool)
        at_least(0, lam=self.lam)
        above_zero(learning_rate=self.learning_rate, beta=self.beta, image_steps=self.image_steps)
        below_one(alpha=self.alpha, keep_rtol=self.keep_rtol, concept_rtol=self.concept_rtol)
        finite(tau=self.tau)
        if self.start == "closed_form" and self.parametrisation != "lora":
            raise SepmeError(
                f"The closed form is a 'lora': use start='zero' with '{self.parametrisation}'."
            )
        if self.method == "damped" and self.parametrisation == "dense":
            raise SepmeError(
                "The damped null space has no basis for 'dense': use method='svd' or 'elimination'."
            )

    def sampling_steps(self, model: Backbone) -> int:
        """Sampling steps of an image."""
        return math.ceil(self.image_steps * model.steps)


#: The later version of the paper. Ours, because no source gives them: 16 images.
_PAPER = ErasureSettings(
    parametrisation="dense",  # Delta = (w x beta S)^T: eq. 9 and 10
    method="elimination",  # each solution of A x = 0 scaled to unit length: eq. 8
    keep_rtol=0.0,  # the authors' code eliminates the raw floats
    start="zero",  # w is initialised with zeros
    reference="empty",  # r(c) = eps(c) - eps(c_0): the method section
    objective="product",  # eq. 2, S-28
    statistic="loss",  # eq. 4, S-37
    iterations=1000,  # the method section
    batch=1,  # one image an iteration: the method section
    images=16,
    image_steps=1.0,
    pool=0,
    timesteps="uniform",  # the method section
    learning_rate=0.1,  # later version, settings
    relative_rate=False,
    beta=1e-4,  # later version, settings
    lam=1e-6,  # later version, settings
    alpha=0.9,  # both versions
    tau=1e-4,  # later version; the first has 0
    earliest_stop=12,  # the code asks for i > 10, i counted from 0
)

#: * `default`: the closed form, trained further. Measured in `benchmarks/README.md`.
#: * `closed_form`: its start without training: a fraction of a second.
#: * `from_zero`: the default without the closed form: all of it learnt, from r = r0 to r _|_ r0.
#: * `faithful`: the published method, with the departures that make it work on the shipped model
#:   (chapter 10 takes each back: the reference and the rates are what forgetting needs, the others
#:   spare what nobody named; eight images in place of one could go): the change lives in the row
#:   space of e(c) P ("lora", its strong directions), not in the whole null space; the loss is the
#:   squared normalised correlation of eight timesteps instead of the product at one; c_0 is a
#:   phrase, the anchor, as S-27 allows, since the shipped model paints mosaics for the empty prompt
#:   too; Adam's rate fits orthonormal rows; lambda and tau are in proportion to a loss that starts
#:   at 1.
#: * `paper`: the later version of the paper, for SD v1.4.
#: * `paper_first`: the first version, which differs in tau. It gives no rates; these are the later.
#: * `authors`: what the authors' code does: no gradient is ever zeroed, and the loop makes one step
#:   more. Adam's epsilon is PyTorch's 1e-8. A stop for each concept by itself is in every preset.
#: * `undecoupled`: the published variant for what must never come back.
PRESETS: Mapping[str, ErasureSettings] = {
    "default": ErasureSettings(),
    "closed_form": ErasureSettings(iterations=0),
    "from_zero": ErasureSettings(start="zero", iterations=60, learning_rate=0.03),
    "faithful": replace(
        _PAPER,
        parametrisation="lora",
        method="svd",
        reference="anchor",
        objective="squared",
        iterations=150,
        batch=8,
        timesteps="stratified",
        learning_rate=0.02,
        beta=1.0,
        lam=3e-4,
        tau=0.3,
    ),
    "paper": _PAPER,
    "paper_first": replace(_PAPER, tau=0.0),
    "authors": replace(_PAPER, accumulate=True, iterations=1001),
    "undecoupled": replace(
        _PAPER, parametrisation="full", method="svd", learning_rate=1e-5, beta=1.0
    ),
}


def preset(name: str) -> ErasureSettings:
    """The settings of a preset by name.

    Raises:
        SepmeError: no such preset.
    """
    choose(tuple(PRESETS), preset=name)
    return PRESETS[name]


# ------------------------------------------------------------------ the method
@dataclass(frozen=True)
class ErasureStep(Step):
    """One iteration of `erase` as a callback sees it."""

    momentum: float = math.nan
    """m_n of eq. 4, of the concept that is farthest from its stop."""
    correlation: tuple[float, ...] = ()
    """Mean normalised correlation of each concept: 1 untouched, 0 erased, below 0 overshot."""
    correlation_by_timestep: tuple[float, ...] = ()
    """Normalised correlation of each sample of the first concept, beside `timesteps`."""
    eta: tuple[float, ...] = ()
    """Balance of the concepts (eq. 3)."""
    norm: float = math.nan
    """||Delta||_1 / M, which is computed only where lambda weighs it."""
    deltas: Callable[[], list[ConceptDelta]] = field(default=list, repr=False, compare=False)
    """Copies of the deltas as they are when it is called."""


@overload
def erase(model: Backbone, concepts: Concept, *args: Any, **options: Any) -> ConceptDelta: ...
@overload
def erase(
    model: Backbone, concepts: Sequence[Concept], *args: Any, **options: Any
) -> list[ConceptDelta]: ...
def erase(
    model: Backbone,
    concepts: Concept | Sequence[Concept],
    keep: Sequence[str] = (),
    settings: ErasureSettings = PRESETS["default"],
    *,
    seed: int = 0,
    after: Sequence[ConceptDelta] = (),
    trainer: Trainer | None = None,
    micro_batch: int | None = None,
) -> ConceptDelta | list[ConceptDelta]:
    """Train the delta that makes the model forget a concept and leaves the retain set alone.

    Whatever the model's number type, what is trained, its gradient, the loss, Adam's moments and
    the momentum are float32. A model in float16 or bfloat16 is only passed through.

    Args:
        concepts: what to forget. A list gives one delta each, trained in one run (the
            paper's SepME-dagger).
        keep: the retain set. The empty prompt always belongs to it; "full" keeps nothing.
        seed: decides images, noise and timesteps; `Provenance` says where "same bytes" ends.
        after: deltas that are already on (iterative erasure). Their prompts are kept too.
        trainer: callback, checkpoint and progress bar.
        micro_batch: the most images in one pass of the UNet, by default the whole batch. Less takes
            less memory, and a second forward pass; the gradient is the same but for rounding.

    Raises:
        SepmeError: a contradiction, no free direction, or a loss that is no longer finite.
    """
    keep, (group, after) = texts(keep), checked_group(model, concepts, after)
    base = model.fingerprint
    kinds(ErasureSettings, [settings], "preset('default') gives one")
    whole(1, micro_batch=settings.batch if micro_batch is None else micro_batch)
    whole(0, seed=seed)
    seed = int(seed)
    for concept in group if settings.reference == "anchor" else ():
        if [*map(model.reads, concept.prompts)] == [*map(model.reads, concept.anchors)]:
            raise SepmeError(
                f"The anchors of '{concept.name}' are its own prompts, so that nothing would be "
                "forgotten: say what they should mean instead."
            )
    retained = [retain_set(concept, group, keep, after) for concept in group]
    embedded = None
    with own_modes(model):
        if len(group) > 1 and settings.parametrisation != "full":  # each prompt once for all
            model.refuse_unclear(*zip(group, retained, strict=True))
            own = (text for c in group for text in (*c.prompts, *c.anchors))
            embedded = Embedded.of(model, ("", *chain(*retained), *own))
        increments = [
            _Increment(model, base, concept, group, kept, settings, seed, after, embedded)
            for concept, kept in zip(group, retained, strict=True)
        ]
        _start(model, increments)
        if settings.iterations:
            changed = _ChangedModel(model, increments, after, micro_batch or settings.batch)
            _train(changed, settings, seed, trainer or Trainer())
        deltas = [increment.delta() for increment in increments]
    return deltas[0] if isinstance(concepts, Concept) else deltas


def _train(
    changed: "_ChangedModel", settings: ErasureSettings, seed: int, trainer: Trainer
) -> None:
    """Descend on the increments, from where they start."""
    increments = changed.increments
    groups = [{"params": [*i.weights.values()]} for i in increments]
    adam = torch.optim.Adam(groups, settings.learning_rate)

    def before_step() -> None:
        for increment in increments:
            for sums in increment.state[1:]:
                sums.add()
        if settings.relative_rate and not adam.state:  # before the first step
            for increment, group in zip(increments, adam.param_groups, strict=True):
                group["lr"] = increment.first_rate()

    with changed.model.original():
        trainer.train(
            lambda prepared, rng: changed.loss(prepared, settings, rng),
            adam,
            settings.iterations,
            seed=seed,
            key=[[asdict(i.concept), i.provenance.to_dict()] for i in increments],
            title=f"erasing {', '.join(i.concept.name for i in increments)}",
            report=ErasureStep,
            prepare=lambda: {k: v for i in increments for k, v in i.prepare(changed).items()},
            state=[part for i in increments for part in i.state],  # ends it at tau (eq. 4)
            scale=changed.model.loss_scale,
            before_step=before_step,
        )


def checked_group(
    model: Backbone, concepts: Concept | Sequence[Concept], after: Sequence[ConceptDelta]
) -> tuple[list[Concept], list[ConceptDelta]]:
    """The concepts, none of them erased twice, and what is erased already, all of this model."""
    kinds(Backbone, [model], "Backbone.load reads one, and Backbone(pipe) makes one")
    group = [concepts] if isinstance(concepts, Concept) else list(concepts)
    if not group:
        raise SepmeError("There is no concept to erase: name at least one.")
    model.refuse_fused()
    if any(m is not model.unet and m._compiled_call_impl for m in model.unet.modules()):
        raise SepmeError(
            "Blocks of the UNet were compiled by themselves, which hides their layers: load the "
            "model again, and compile after erasing."
        )
    kinds(Concept, group, "make one, like Concept.from_text('neon')")
    after = kinds(ConceptDelta, after, "give a list of what ConceptDelta.load reads")
    for delta in after:
        delta.check_model(model)
    names = [*(delta.concept for delta in after), *(concept.name for concept in group)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SepmeError(f"'{twice[0]}' is to be erased twice: name what is not erased yet, once.")
    return group, after


class _Noised(NamedTuple):
    """Noised images of a concept, and what the original model predicts of them."""

    x_t: Tensor  #: `[batch, c, h, w]`
    t: Tensor  #: `[batch]`
    index: Tensor  #: which of the concept's images, `[batch]`
    eps_c: Tensor  #: `eps(x_t, c, t; theta)`
    eps_0: Tensor  #: `eps(x_t, c_0, t; theta)`


class _Increment:
    """What one concept brings: its prompts, and the change `Delta_l = W_l R` that is learned.

    R is the same for all layers: Q `[q, d_in]` ("lora"), `beta S^T [free, d_in]` ("dense", eq. 9
    and 10), or the identity ("full"). W_l `[d_out, rows of R]` is learned.
    """

    def __init__(
        self,
        model: Backbone,
        base: str,
        concept: Concept,
        group: Sequence[Concept],
        keep: Sequence[str],
        settings: ErasureSettings,
        seed: int,
        after: Sequence[ConceptDelta],
        embedded: Embedded | None,
    ) -> None:
        self.model, self.concept, self.settings = model, concept, settings
        both = settings.statistic == "correlation"
        self.momentum = Momentum(settings.alpha, settings.tau, settings.earliest_stop, both)
        self.state: list[Stateful] = [self.momentum]
        self.image_seed = mix(seed, -1 - group.index(concept))
        kept = self._parametrise(keep, embedded)
        self.provenance = Provenance(
            concept=concept.name,
            kind=concept.kind,
            base=base,
            base_name=model.name,
            forgotten=concept.prompts,
            anchors=concept.anchors,
            kept=kept,
            settings=recorded_settings(model, group, settings),
            seed=seed,
            after=tuple(delta.digest for delta in after),
            versions=versions(),
        )
        self.prompts = evenly(concept.prompts, settings.images)
        # eps(x_t, c_0) of the changed model is the original's where c_0 is kept by all that is on.
        # An anchor's is the original's by definition.
        to_anchor = settings.reference == "anchor"
        self.keeps_c_0 = to_anchor or all("" in k for k in (kept, *(d.kept for d in after)))

    def _parametrise(self, keep: Sequence[str], embedded: Embedded | None) -> tuple[str, ...]:
        """Set R, and the shift that W_l starts with, if any; return what is kept."""
        model, settings = self.model, self.settings
        self.R, self.shift = None, None
        if settings.parametrisation == "full":
            return ()
        rtol = {"keep_rtol": settings.keep_rtol, "concept_rtol": settings.concept_rtol}
        how = rtol | {"method": settings.method, "embedded": embedded}
        constraint = constrain(model, self.concept, keep, **how)
        dense = settings.parametrisation == "dense"
        R = settings.beta * constraint.space.basis.T if dense else constraint.basis
        self.R = R.to(model.device, torch.float32)
        if settings.start == "closed_form":
            self.shift = closed_form_shift(constraint)
        return constraint.kept

    def start(self, factor: Mapping[str, Tensor]) -> None:
        """Give every W_l its start; from here on it is learned."""
        self.weights = {path: value.clone().requires_grad_() for path, value in factor.items()}
        if self.settings.accumulate:
            self.state.append(_GradientSum([*self.weights.values()]))

    def first_rate(self) -> float:
        """The rate at which Adam's first step removes `learning_rate` of the correlation.

        The first step is -lr sign(g). To first order it lowers what is descended on by lr |g|_1.
        """
        size = sum(float(w.grad.abs().sum()) for w in self.weights.values())
        return self.settings.learning_rate * self.slope / size if size else 0.0

    @cached_property
    def c(self) -> Tensor:
        """e(c) of every image, as `epsilon` takes it."""
        return self.model.conditioning(self.prompts)

    @cached_property
    def c_0(self) -> Tensor:
        """e(c_0), of the empty prompt or of the anchors."""
        anchors = dict(zip(self.concept.prompts, self.concept.anchors, strict=True))
        to_anchor = self.settings.reference == "anchor"
        return self.model.conditioning([anchors[p] if to_anchor else "" for p in self.prompts])

    def factor(self) -> dict[str, Tensor]:
        """`W_l` by module path; differentiable until the concept is erased."""
        if self.momentum.stopped:  # without a gradient, Adam leaves a weight as it is
            return {path: weight.detach() for path, weight in self.weights.items()}
        return self.weights

    def change(self) -> dict[str, Tensor]:
        """`Delta_l = W_l R [d_out, d_in]` by module path."""
        return {path: w if self.R is None else w @ self.R for path, w in self.factor().items()}

    def update_momentum(self, seen: "_Correlation") -> float:
        """m_n (eq. 4) with what this iteration says, or as it was when the concept was erased."""
        if not self.momentum.stopped:
            self.momentum.update(seen.statistic)
        return self.momentum.value

    def draw(self) -> Tensor:
        """x_0 `[images, c, h, w]`: the concept as the original model draws it.

        What was drawn before is not drawn again: other settings of a training need the same images.
        """
        model, seeds = self.model, range(self.image_seed, self.image_seed + len(self.prompts))
        steps, words = self.settings.sampling_steps(model), self.c.float().cpu().numpy().tobytes()
        drawer = (self.provenance.base, model.dtype, model.device, *model.sampler, steps)
        key = (*drawer, hashlib.sha256(words).digest(), tuple(self.prompts), seeds)
        if key not in _DRAWN:
            _DRAWN[key] = model.generate(self.prompts, seeds, steps=steps, output="latents")
            if len(_DRAWN) > _DRAWN_AT_MOST:
                del _DRAWN[next(iter(_DRAWN))]
        return _DRAWN[key]

    def prepare(self, changed: "_ChangedModel") -> dict[str, Tensor]:
        """What is needed once: the images, or the pool of noised ones with what the model says."""
        name, settings, x_0 = self.concept.name, self.settings, self.draw()
        if not settings.pool:
            return {name: x_0}
        blocks = range(-(-settings.pool // settings.batch))
        rngs = [torch.Generator().manual_seed(mix(self.image_seed, block)) for block in blocks]
        pool = zip(*(self._observe(changed, x_0, rng) for rng in rngs), strict=True)
        return {f"{name}: {k}": torch.stack(v) for k, v in zip(_Noised._fields, pool, strict=True)}

    def batch(
        self, prepared: Mapping[str, Tensor], changed: "_ChangedModel", rng: torch.Generator
    ) -> "_Noised":
        """The noised images of one iteration: new ones, or a batch of the pool."""
        name = self.concept.name
        if not self.settings.pool:
            return self._observe(changed, prepared[name], rng)
        block = int(torch.randint(len(prepared[f"{name}: t"]), (), generator=rng))
        return _Noised(*(prepared[f"{name}: {field}"][block] for field in _Noised._fields))

    def _observe(self, changed: "_ChangedModel", x_0: Tensor, rng: torch.Generator) -> "_Noised":
        x_t, t, index = _noised(self.model, x_0, self.settings, rng)
        original = changed.original(x_t, t, self.c[index], self.c_0[index])
        return _Noised(x_t, t, index, *original)

    def noise_differences(self, seen: "_Noised", changed: "_ChangedModel") -> tuple[Tensor, Tensor]:
        """`r(c; theta + Delta)` and `r(c; theta)`, `[batch, c, h, w]`."""
        x_t, t, index, eps_c, eps_0 = seen
        new_c = changed.epsilon(x_t, t, self.c[index])
        new_0 = eps_0 if self.keeps_c_0 else changed.epsilon(x_t, t, self.c_0[index])
        return noise_difference(new_c, new_0), noise_difference(eps_c, eps_0)

    def delta(self) -> ConceptDelta:
        """A copy of the change as it is now, as a LoRA pair."""
        up = {path: w.detach().clone() for path, w in self.weights.items()}
        R = self.R
        down = {path: torch.eye(w.shape[1]).to(w) if R is None else R for path, w in up.items()}
        if self.provenance.settings["parametrisation"] == "dense":
            # R = T Q with orthonormal rows Q, so W R = (W T) Q: the same change as a LoRA pair.
            Q, T = torch.linalg.qr(R.double().T)
            down = dict.fromkeys(up, Q.T.to(R))
            up = {path: (w.double() @ T.T).to(w) for path, w in up.items()}
        about = replace(self.provenance, iterations=self.momentum.iteration)
        return ConceptDelta(down, up, about)


def _start(model: Backbone, increments: Sequence[_Increment]) -> None:
    """All closed forms in one product a layer; zeros for what starts at zero."""
    if increments[0].shift is not None:
        factors = _applied(model, [increment.shift for increment in increments])
    else:
        factors = [zeros(model, None if i.R is None else len(i.R)) for i in increments]
    for increment, factor in zip(increments, factors, strict=True):
        increment.start(factor)


def zeros(model: Backbone, rows: int | None) -> dict[str, Tensor]:
    """`W_l [d_out, rows]` by module path; of the size of the weights of every attn2 for None."""
    if rows is None:
        shapes = {path: weight.shape for path, weight in model.cross_attention().items()}
    else:
        shapes = {path: (w.out_features, rows) for path, w in model.projections().items()}
    return {path: torch.zeros(shape, device=model.device) for path, shape in shapes.items()}


class _ChangedModel:
    """The model with all increments on: those being trained, and those that were on before."""

    def __init__(
        self,
        model: Backbone,
        increments: Sequence[_Increment],
        after: Sequence[ConceptDelta],
        micro_batch: int,
    ) -> None:
        self.model, self.increments, self.micro_batch = model, increments, micro_batch
        place = {"device": model.device, "dtype": torch.float32}
        #: (R, {path: W_l}) of every delta that is on already.
        self.present = [
            (delta.down[path].to(**place), {path: delta.up[path].to(**place)})
            for delta in after
            for path in delta.paths
        ]

    def deltas(self) -> list[ConceptDelta]:
        """Copies of the increments being trained, as they are now."""
        return [increment.delta() for increment in self.increments]

    def loss(
        self, prepared: Mapping[str, Tensor], settings: ErasureSettings, rng: torch.Generator
    ) -> tuple[Tensor, dict[str, Any]]:
        """What one iteration descends on (eq. 3), and the fields of its `ErasureStep`."""
        if self.model.composition is not None:
            raise SepmeError(
                "A composition was attached while the model is trained, and would be trained with: "
                "close it at the end of the callback."
            )
        seen = []
        for increment in self.increments:
            noised = increment.batch(prepared, self, rng)
            r, r0 = increment.noise_differences(noised, self)
            seen.append(_Correlation(r, r0, noised.t, settings))
        losses = torch.stack([one.loss for one in seen])  # L_cor(c_i), eq. 2
        going = torch.tensor([not i.momentum.stopped for i in self.increments]).to(losses)
        eta = going * balance(going * losses)  # what is erased already pulls no more
        for increment, one, weight in zip(self.increments, seen, eta.tolist(), strict=True):
            increment.slope = weight * one.slope
        total = (eta * losses).sum()
        m = max(map(_Increment.update_momentum, self.increments, seen))  # eq. 4, for each concept
        step = {
            "loss": float(total.detach()),
            "timesteps": tuple(seen[0].t.tolist()),
            "momentum": m,
            "correlation": tuple(float(one.ratio.mean()) for one in seen),
            "correlation_by_timestep": tuple(seen[0].ratio.tolist()),
            "eta": tuple(eta.tolist()),
            "deltas": self.deltas,
        }
        if settings.lam:
            norm = _norm([increment.change() for increment in self.increments])
            total, step["norm"] = total + settings.lam * norm, float(norm.detach())  # eq. 3
        return total, step

    @torch.no_grad()
    def original(self, x_t: Tensor, t: Tensor, c: Tensor, c_0: Tensor) -> tuple[Tensor, Tensor]:
        """`eps(x_t, c, t; theta)` and `eps(x_t, c_0, t; theta)`, in one pass of the two."""
        both = [
            self._pass(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([c, c_0])).chunk(2)
            for x_t, t, c, c_0 in self._parts(x_t, t, c, c_0)
        ]
        eps_c, eps_0 = zip(*both, strict=True)
        return torch.cat(eps_c), torch.cat(eps_0)

    def epsilon(self, x_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """`eps(x_t, c, t; theta + sum_k Delta_k)`, differentiable, in float32.

        A part of the batch keeps nothing for the way back. It is computed again then.
        """
        terms = [*self.present, *((i.R, i.factor()) for i in self.increments)]
        parts = self._parts(x_t, t, c)
        if len(parts) == 1:
            return self._pass(*parts[0], terms)
        again = {"use_reentrant": False, "preserve_rng_state": False}
        return torch.cat([checkpoint(self._pass, *part, terms, **again) for part in parts])

    def _parts(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        return [*zip(*(tensor.split(self.micro_batch) for tensor in tensors), strict=True)]

    def _pass(self, x_t: Tensor, t: Tensor, c: Tensor, terms: Sequence[Any] = ()) -> Tensor:
        with added(self.model, terms) as weights:
            return self.model.epsilon(x_t, t, c, weights).float()


@contextmanager
def added(model: Backbone, terms: Sequence[Any]) -> Iterator[dict[str, Tensor]]:
    """Within the block every layer adds `(x R^T) W_l^T` for each of the terms `(R, {path: W_l})`.

    That is `x Delta_l^T` for `Delta_l = W_l R`, which is never built. Where R is None ("full"), the
    changed weights are yielded instead.
    """
    low_rank, whole = defaultdict(list), {}
    theta = model.cross_attention()
    for R, factor in terms:
        for path, W in factor.items():
            if R is None:
                whole[path] = whole.get(path, theta[path].float()) + W
            else:
                low_rank[path].append((R.T, W.T.float()))

    def add(pairs: list[tuple[Tensor, Tensor]], inputs: tuple[Tensor], output: Tensor) -> Tensor:
        x = inputs[0].float()
        return output + sum(x @ down @ up for down, up in pairs).to(output.dtype)

    with ExitStack() as stack:
        for path, pairs in low_rank.items():
            layer = model.unet.get_submodule(path)
            layer = getattr(layer, "base_layer", layer)
            hook = layer.register_forward_hook(lambda _, x, y, pairs=pairs: add(pairs, x, y))
            stack.callback(hook.remove)
        yield {path: weight.to(theta[path].dtype) for path, weight in whole.items()}


class _GradientSum:
    """The gradients of all iterations, added up: the authors' code never sets them to zero."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights, self.sums = weights, [torch.zeros_like(weight) for weight in weights]

    def add(self) -> None:
        """Add this iteration's gradients, and let the optimiser see the sums."""
        for weight, total in zip(self.weights, self.sums, strict=True):
            if weight.grad is not None:
                weight.grad = total.add_(weight.grad)

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"sums": self.sums}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        self.sums = state["sums"]


def retain_set(
    concept: Concept, group: Sequence[Concept], keep: Sequence[str], after: Sequence[ConceptDelta]
) -> list[str]:
    """What a concept must not touch: `keep`, the others of its group, what was erased before."""
    others = [p for other in group for p in other.prompts]
    others += [p for delta in after for p in delta.forgotten]
    return list(dict.fromkeys([*texts(keep), *(p for p in others if p not in concept.prompts)]))


def _noised(
    model: Backbone, images: Tensor, settings: ErasureSettings, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Forward diffusion of some images: `x_t`, `t [batch]`, and which images `[batch]`."""
    index = torch.randint(len(images), (settings.batch,), generator=rng)
    u = torch.rand(settings.batch, generator=rng)
    if settings.timesteps == "stratified":
        u = (torch.arange(settings.batch) + u) / settings.batch
    t = (u * model.timesteps).long().clamp(max=model.timesteps - 1).to(model.device)
    x_0 = images[index]
    noise = torch.randn(x_0.shape, generator=rng).to(x_0)
    return model.add_noise(x_0, noise, t), t, index


class _Correlation:
    """What one concept's batch says: ratio `[batch]`, loss, and what the momentum averages.

    The slope is the loss's by the correlation: the root mean square, or the mean weighted by r0^2.
    """

    def __init__(self, r: Tensor, r0: Tensor, t: Tensor, settings: ErasureSettings) -> None:
        ratio = normalised_correlation(r, r0)
        if settings.objective == "squared":
            self.loss = ratio.square().mean()
            self.slope = 2 * float(self.loss.detach()) ** 0.5
        else:
            self.loss = correlation_loss(r, r0).mean()  # eq. 2
            self.slope = float(correlation_loss(r0, r0).mean())
        self.statistic = (self.loss if settings.statistic == "loss" else ratio.mean()).detach()
        self.t, self.ratio = t, ratio.detach()


def _norm(changes: Sequence[Weights]) -> Tensor:
    """`||sum_k Delta_k||_1 / M` over the M layers (eq. 3, S-34)."""
    layers = [sum(change[path] for change in changes).abs().sum() for path in changes[0]]
    return torch.stack(layers).mean()


def recorded_settings(
    model: Backbone, concepts: Sequence[Concept], settings: ErasureSettings
) -> dict[str, Any]:
    """What a delta's provenance says of how it was trained, prompts and seed apart."""
    together = len(concepts) > 1 and settings.iterations > 0
    jointly = {"jointly": [concept.name for concept in concepts]} if together else {}
    sampling = {"guidance": model.guidance, "steps": settings.sampling_steps(model)}  # of images
    said = asdict(settings) | {"dtype": str(model.dtype).removeprefix("torch.")}
    learnt = model.learnt(text for c in concepts for text in (*c.prompts, *c.anchors))
    words = {"learnt": learnt} if learnt else {}
    return said | {"eraser": "sepme"} | sampling | jointly | words


# ------------------------------------------------------------------ the start
def closed_form_shift(
    constraint: Constraint, *, ridge: float = 1e-3, keep_weight: float = 1.0
) -> Tensor:
    """Where each direction has to go, S `[d_in, q]`, so that a concept becomes its anchor.

    The factor of a layer is `B = W S`: the layers differ in W alone. With `e` the concept's
    embedding rows, `a` the anchor's rows at the same positions and `k` the kept rows, B solves a
    ridge regression inside the directions Q that may move:

        min_B  mean |B Q e - W (a - e)|^2  +  mu mean |B Q k|^2  +  rho tr(G) |B|^2 / q

        S = mean[(a - e)(Q e)^T] (G + mu K + rho tr(G)/q I)^-1,
        G = mean[(Q e)(Q e)^T],  K = mean[(Q k)(Q k)^T].

    It is the least-squares idea of UCE (Gandikota et al. 2024), restricted to those directions.

    Args:
        ridge: rho, relative to the mean energy of the directions.
        keep_weight: mu; what leaks within the tolerance is penalised.
    """
    q, e, concept = constraint.basis, constraint.concept_rows, constraint.concept
    a = constraint.embedded.rows(concept.anchors)
    e_q, k_q = (constraint.seen(of).flatten(0, 1) for of in (concept.prompts, constraint.kept))
    G, K = e_q.T @ e_q / len(e_q), k_q.T @ k_q / len(k_q)
    damping = ridge * G.trace() / len(q) * torch.eye(len(q)).to(G)
    return (a - e).T @ e_q / len(e_q) @ torch.linalg.inv(G + keep_weight * K + damping)


def _applied(model: Backbone, shifts: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """`B = W shift` of every layer for each of the shifts, all of them in one product."""
    together, sizes = torch.cat([*shifts], dim=1), [shift.shape[1] for shift in shifts]
    factors: list[dict[str, Tensor]] = [{} for _ in shifts]
    for path, layer in model.projections().items():
        product = layer.weight.cpu().double() @ together
        for factor, B in zip(factors, product.split(sizes, dim=1), strict=True):
            dtype = torch.promote_types(layer.weight.dtype, torch.float32)
            factor[path] = B.to(layer.weight.device, dtype)
    return factors
