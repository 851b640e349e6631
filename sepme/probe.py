"""Where a concept lives in the predicted noise, and how it fades while its delta is trained.

`r(c) = eps(x_t, c, t) - eps(x_t, c_0, t)` is what the words c add to the prediction at every pixel.
A `Probe` holds the noised pictures x_t at which it is looked at, the same ones every time. A
`Recording` is one training run seen through one probe.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sepme._checks import texts, whole
from sepme.artefact import Provenance
from sepme.concept import Concept, evenly
from sepme.correlation import noise_difference, normalised_correlation
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, ErasureSettings, ErasureStep, erase
from sepme.errors import SepmeError
from sepme.model import Backbone
from sepme.training import Trainer

__all__ = [
    "Probe",
    "Recording",
    "correlation_by_layer",
    "correlation_map",
    "correlations",
    "cosines",
    "magnitude",
    "noise_differences",
    "predicted_noise",
    "record",
]


# ------------------------------------------------------------------ looking at the noise
@dataclass(frozen=True, eq=False)
class Probe:
    """Noised pictures at fixed timesteps: the same x_t for every question."""

    prompts: tuple[str, ...]  #: what the pictures were drawn from, one prompt each
    timesteps: tuple[int, ...]  #: ascending; 0 is the clean picture
    x_t: Tensor  #: `[timesteps, pictures, c, h, w]`; each picture keeps its noise

    @classmethod
    def draw(
        cls,
        backbone: Backbone,
        prompts: str | Sequence[str],
        timesteps: Sequence[int] | int = 8,
        seed: int = 0,
    ) -> "Probe":
        """Let the original model draw the prompts, and noise what it drew (forward diffusion).

        Args:
            timesteps: which ones, or how many evenly spaced ones.
            seed: of the first picture and of its noise; the next picture takes the next.

        Raises:
            SepmeError: no timestep, or one that the model does not have.
        """
        prompts = tuple(texts(prompts))
        total = backbone.timesteps
        if isinstance(timesteps, int):  # the middles of equal parts of 0 ... total
            timesteps = [(2 * i + 1) * total // (2 * timesteps) for i in range(timesteps)]
        timesteps = [*timesteps]
        for t in timesteps:
            whole(0, total - 1, timestep=t)
        grid = tuple(sorted(set(timesteps)))
        if not grid:
            raise SepmeError(f"A probe needs timesteps from 0 to {total - 1}: give one or more.")
        seeds = range(seed, seed + len(prompts))
        with backbone.original():
            x_0 = backbone.generate(prompts, seeds, output="latents")
        # Not the seeds' own first numbers: those are the noise that the pictures began from.
        generators = [torch.Generator().manual_seed(2**32 + s) for s in seeds]
        place = {"dtype": torch.float32, "device": "cpu"}
        noise = [torch.randn(x_0.shape[1:], generator=g, **place) for g in generators]
        noise = torch.stack(noise).to(x_0)
        times = [torch.full((len(x_0),), t, device=x_0.device) for t in grid]
        return cls(prompts, grid, torch.stack([backbone.add_noise(x_0, noise, t) for t in times]))


@torch.no_grad()
def predicted_noise(
    backbone: Backbone,
    probe: Probe,
    prompts: Sequence[str] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """`eps(x_t, c, t)` of the model as it is now, `[timesteps, pictures, c, h, w]` on the CPU.

    The prompts c are one for each picture, by default what it was drawn from. `weights` (by module
    path) are used instead of the model's own.
    """
    embeddings = backbone.conditioning(probe.prompts if prompts is None else prompts)
    made = [  # one timestep at a time, to bound the memory
        backbone.epsilon(x_t, torch.full((len(x_t),), t, device=x_t.device), embeddings, weights)
        for t, x_t in zip(probe.timesteps, probe.x_t, strict=True)
    ]
    return torch.stack(made).float().cpu()


def noise_differences(
    backbone: Backbone,
    probe: Probe,
    prompts: str | Sequence[str] | None = None,
    references: str | Sequence[str] = "",
    delta: ConceptDelta | None = None,
) -> Tensor:
    """`r(c) = eps(x_t, c, t) - eps(x_t, c_0, t)`, `[timesteps, pictures, c, h, w]` on the CPU.

    Against the empty prompt both predictions are the changed model's. An anchor's is the original
    model's, since it says what the prompt should mean afterwards (as in `sepme.erasure`).

    Args:
        prompts: c, one for all pictures or one each; by default what the pictures were drawn from.
        references: c_0, likewise: the empty prompt as in the paper, or anchors.
        delta: what to change the model by; the model itself is not touched, and what is attached
            to it does not matter.

    Raises:
        SepmeError: not one prompt or reference for each picture, or a delta of another model.
    """
    prompts = _one_each(probe.prompts if prompts is None else prompts, probe)
    references = _one_each(references, probe)
    changed = {}
    if delta is not None:
        delta.check_model(backbone)
        theta = backbone.cross_attention()
        changed = {path: theta[path] + delta.dense(path).to(theta[path]) for path in delta.paths}
    with backbone.original():
        eps_c = predicted_noise(backbone, probe, prompts, changed)
        eps_0 = predicted_noise(backbone, probe, references, {} if any(references) else changed)
    return noise_difference(eps_c, eps_0)


def _one_each(prompts: str | Sequence[str], probe: Probe) -> list[str]:
    n = len(probe.prompts)
    prompts = [prompts] * n if isinstance(prompts, str) else list(prompts)
    if len(prompts) != n:
        raise SepmeError(f"{len(prompts)} prompts for {n} pictures: give one, or one a picture.")
    return prompts


def magnitude(r: Tensor) -> Tensor:
    """Root mean square over the channels, `[..., h, w]`: how much the words say at each pixel."""
    return r.square().mean(dim=-3).sqrt()


def correlation_map(r: Tensor, r0: Tensor) -> Tensor:
    """`r * r0`, mean over the channels, `[..., h, w]`: eq. 2 before its mean over the pixels."""
    return (r * r0).mean(dim=-3)


def correlations(r: Tensor, r0: Tensor) -> Tensor:
    """Normalised correlation of each noised picture, `[timesteps, pictures]`."""
    flat = normalised_correlation(r.flatten(0, 1), r0.flatten(0, 1))
    return flat.unflatten(0, r.shape[:2])


def cosines(differences: Tensor) -> Tensor:
    """How alike the r of k concepts are on the same x_t: `[timesteps, k, k]`, from -1 to 1.

    The cosine of the angle between two r, of `[k, timesteps, pictures, c, h, w]`, is taken picture
    by picture, then averaged.
    """
    unit = torch.nn.functional.normalize(differences.flatten(3), dim=-1)  # [k, t, n, chw]
    return torch.einsum("itnd,jtnd->tij", unit, unit) / differences.shape[2]


def correlation_by_layer(
    backbone: Backbone,
    probe: Probe,
    delta: ConceptDelta,
    references: str | Sequence[str] = "",
    parts: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, float]:
    """What remains of a concept's correlation when only a part of its delta is on.

    Parts are module paths by label, by default every layer by itself. Each has the mean normalised
    correlation over the probe: 1 where that part does nothing, 0 where it erases alone.
    """
    parts = {path: [path] for path in delta.paths} if parts is None else parts
    r0 = noise_differences(backbone, probe, references=references)
    remaining = {}
    for label, paths in parts.items():
        down, up = ({path: factor[path] for path in paths} for factor in (delta.down, delta.up))
        part = replace(delta, down=down, up=up)
        r = noise_differences(backbone, probe, references=references, delta=part)
        remaining[label] = float(correlations(r, r0).mean())
    return remaining


# ------------------------------------------------------------------ recording a training
@dataclass(frozen=True, eq=False)
class Recording:
    """One training run: its steps, and what a fixed probe saw of it at a few iterations."""

    prompt: str  #: the prompt whose maps are recorded
    image: Tensor  #: `[3, H, W]` in [0, 1]: the prompt's, whose noised latents the maps look at
    timesteps: tuple[int, ...]  #: the probe's
    iterations: tuple[int, ...]  #: how many were done at each snapshot, ascending, 0 first
    original: Tensor  #: `r(c; theta) [timesteps, c, h, w]`
    maps: Tensor  #: `r(c; theta + Delta) [snapshots, timesteps, c, h, w]` on the same x_t
    #: Normalised, `[snapshots, timesteps, pictures]`: 1 untouched, 0 erased, below 0 overshot.
    correlation: Tensor
    steps: tuple[ErasureStep, ...]  #: every iteration of the training, in order
    provenance: Provenance  #: of the delta that came out

    @property
    def decay(self) -> tuple[float, ...]:
        """The probe's mean correlation at each snapshot."""
        return tuple(self.correlation.mean(dim=(1, 2)).tolist())

    @property
    def losses(self) -> tuple[float, ...]:
        """What the momentum of eq. 4 averages, one number for each iteration."""
        if self.provenance.settings["statistic"] == "loss":
            return tuple(step.loss for step in self.steps)
        return tuple(
            sum(eta * c for eta, c in zip(step.eta, step.correlation, strict=True))
            for step in self.steps
        )


def record(
    backbone: Backbone,
    concept: Concept,
    keep: Sequence[str] = (),
    settings: ErasureSettings = PRESETS["from_zero"],
    *,
    prompts: Sequence[str] | None = None,
    timesteps: Sequence[int] | int = 8,
    every: int = 5,
    seed: int = 0,
    callback: Callable[[ErasureStep], None] | None = None,
    progress: bool = True,
) -> tuple[ConceptDelta, Recording]:
    """Erase a concept as `sepme.erasure.erase` does, and look on through one fixed probe.

    The delta is the very same as without looking on.

    Args:
        prompts: some of the concept's own whose pictures make the probe, by default three. The
            first one's maps are recorded.
        timesteps: the probe's, or how many evenly spaced ones.
        every: iterations between snapshots, besides those before the first and after the last.
        seed: of the training and of the probe.

    Raises:
        SepmeError: see `erase`; or a prompt that is not the concept's, or `every` below 1.
    """
    whole(1, every=every)
    prompts, references = _watched(concept, prompts, settings.reference)
    start = erase(backbone, concept, keep, replace(settings, iterations=0), seed=seed)
    probe = Probe.draw(backbone, prompts, timesteps, seed)
    look = partial(noise_differences, backbone, probe, references=references)
    r0, r = look(), {0: look(delta=start)}  # r: iteration -> [timesteps, pictures, c, h, w]
    steps: list[ErasureStep] = []

    def watch(step: ErasureStep) -> None:
        steps.append(step)
        if callback is not None:
            callback(step)
        if step.iteration % every == 0:
            r[step.iteration] = look(delta=step.deltas()[0])

    trainer = Trainer(watch, progress=progress)
    delta = erase(backbone, concept, keep, settings, seed=seed, trainer=trainer)
    r[len(steps)] = look(delta=delta)
    with backbone.original():
        image = backbone.generate(prompts[:1], seed)[0]
    return delta, Recording(
        prompt=prompts[0],
        image=image,
        timesteps=probe.timesteps,
        iterations=tuple(r),
        original=r0[:, 0],
        maps=torch.stack([seen[:, 0] for seen in r.values()]),
        correlation=torch.stack([correlations(seen, r0) for seen in r.values()]),
        steps=tuple(steps),
        provenance=delta.provenance,
    )


def _watched(
    concept: Concept, prompts: Sequence[str] | None, reference: str
) -> tuple[tuple[str, ...], list[str]]:
    """The prompts to look at, and what r(c) of each is measured against."""
    some = evenly(concept.prompts, min(3, len(concept.prompts)))
    prompts = tuple(some if prompts is None else prompts)
    anchors = dict(zip(concept.prompts, concept.anchors, strict=True))
    if not prompts or not set(prompts) <= set(anchors):
        raise SepmeError(f"Give at least one prompt of '{concept.name}' itself to look at.")
    return prompts, [anchors[p] if reference == "anchor" else "" for p in prompts]
