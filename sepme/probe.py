"""Where a concept lives in the predicted noise, and how it fades while its delta is trained.

`r(c) = eps(x_t, c, t) - eps(x_t, c_0, t)` is a picture of its own: what the words c add to the
prediction at every pixel. A `Probe` holds the noised pictures x_t at which it is looked at, the
same ones every time; a `Recording` is one training run seen through one probe.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from sepme.artefact import Provenance, canonical_json, write_atomically
from sepme.concept import Concept
from sepme.correlation import noise_difference, normalised_correlation
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, ErasureSettings, erase
from sepme.erasure import ErasureStep as Step
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

#: The header key of a recording's description.
HEADER = "sepme.recording"


@dataclass(frozen=True, eq=False)
class Recording:
    """One training run: its steps, and what a fixed probe saw of it at a few iterations.

    A snapshot is taken before the first iteration, every few iterations, and after the last one.
    """

    concept: str
    prompt: str
    """The prompt whose maps are recorded."""
    reference: str
    """What its r(c) is measured against: an anchor, or "" for the empty prompt."""
    image: Tensor
    """`[3, H, W]` in [0, 1]: the picture of `prompt` whose noised latents the maps look at."""
    timesteps: tuple[int, ...]
    """The probe's timesteps, ascending: 0 is the clean picture."""
    iterations: tuple[int, ...]
    """How many iterations were done at each snapshot, ascending, 0 first."""
    original: Tensor
    """`r(c; theta) [timesteps, c, h, w]`."""
    maps: Tensor
    """`r(c; theta + Delta) [snapshots, timesteps, c, h, w]` on the same x_t."""
    correlation: Tensor
    """Normalised correlation `[snapshots, timesteps, pictures]` on the whole probe: 1 untouched,
    0 erased, below 0 overshot."""
    layers: tuple[str, ...]
    """Module paths of the layers that change."""
    sizes: Tensor
    """`||Delta_l||_F [snapshots, layers]`."""
    steps: tuple[Step, ...]
    """Every iteration of the training, in order."""
    provenance: Provenance
    """Of the delta that came out: model, prompts, settings, seed, versions."""

    @property
    def decay(self) -> tuple[float, ...]:
        """The probe's mean correlation at each snapshot."""
        return tuple(self.correlation.mean(dim=(1, 2)).tolist())

    @property
    def losses(self) -> tuple[float, ...]:
        """What the momentum of eq. 4 averages, one number an iteration."""
        if self.provenance.settings["objective"] == "product":
            return tuple(step.loss for step in self.steps)
        return tuple(
            sum(eta * c for eta, c in zip(step.eta, step.correlation, strict=True))
            for step in self.steps
        )

    def save(self, path: str | Path) -> Path:
        """Write the recording as one safetensors file; its header holds what is not a tensor.

        Raises:
            SepmeError: the name does not end in .safetensors, or cannot be written.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise SepmeError(f"{path.name} is no name for a recording: end it in .safetensors.")
        header = {name: getattr(self, name) for name in _PLAIN}
        header |= {"steps": [step.numbers() for step in self.steps]}
        header |= {"provenance": self.provenance.to_dict()}
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        return write_atomically(path, to_safetensors(tensors, {HEADER: canonical_json(header)}))

    @classmethod
    def load(cls, path: str | Path) -> "Recording":
        """Read what `save` wrote.

        Raises:
            SepmeError: no such file, or no recording of this version of sepme.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads(file.metadata()[HEADER])
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
            plain = {name: _tuples(header[name]) for name in _PLAIN}
            steps = tuple(
                Step(**{k: _tuples(v) for k, v in step.items()}) for step in header["steps"]
            )
            provenance = Provenance.from_dict(header["provenance"])
        except (OSError, SafetensorError, ValueError, TypeError, LookupError) as error:
            raise SepmeError(
                f"{path} is no recording that this version of sepme can read: record it again."
            ) from error
        return cls(**plain, **tensors, steps=steps, provenance=provenance)


_PLAIN = ("concept", "prompt", "reference", "timesteps", "iterations", "layers")
_TENSORS = ("image", "original", "maps", "correlation", "sizes")


def _tuples(value: object) -> object:
    """JSON knows lists only."""
    return tuple(value) if isinstance(value, list) else value


# ------------------------------------------------------------------ looking at the noise
@dataclass(frozen=True, eq=False)
class Probe:
    """Noised pictures at fixed timesteps: the same x_t for every question."""

    prompts: tuple[str, ...]
    """What the pictures were drawn from, one prompt each."""
    timesteps: tuple[int, ...]
    """Ascending; 0 is the clean picture."""
    x_t: Tensor
    """`[timesteps, pictures, c, h, w]`; a picture keeps its noise, only the share of it grows."""

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
            SepmeError: no prompt, or a timestep that the model does not have.
        """
        prompts = _listed(prompts)
        grid = _grid(timesteps, backbone.timesteps)
        seeds = range(seed, seed + len(prompts))
        with backbone.original():
            x_0 = backbone.generate(prompts, seeds, output="latents")
        # Not the seeds' own first numbers: those are the noise that the pictures began from.
        generators = [torch.Generator().manual_seed(2**32 + s) for s in seeds]
        noise = torch.stack([torch.randn(x_0.shape[1:], generator=g) for g in generators]).to(x_0)
        x_t = [
            backbone.add_noise(x_0, noise, torch.full((len(x_0),), t, device=x_0.device))
            for t in grid
        ]
        return cls(prompts, grid, torch.stack(x_t))


def _listed(prompts: str | Sequence[str]) -> tuple[str, ...]:
    return (prompts,) if isinstance(prompts, str) else tuple(prompts)


def _grid(timesteps: Sequence[int] | int, total: int) -> tuple[int, ...]:
    """The middles of equal parts of 0 ... total, or the timesteps asked for, ascending."""
    if isinstance(timesteps, int):
        timesteps = [(2 * i + 1) * total // (2 * timesteps) for i in range(timesteps)]
    grid = tuple(sorted(set(timesteps)))
    if not grid or not 0 <= grid[0] <= grid[-1] < total:
        raise SepmeError(f"A probe needs at least one timestep from 0 to {total - 1}: give those.")
    return grid


@torch.no_grad()
def noise_differences(
    backbone: Backbone,
    probe: Probe,
    prompts: str | Sequence[str] | None = None,
    references: str | Sequence[str] = "",
    delta: ConceptDelta | None = None,
) -> Tensor:
    """`r(c) = eps(x_t, c, t) - eps(x_t, c_0, t)`, `[timesteps, pictures, c, h, w]` on the CPU.

    Args:
        prompts: c, one for all pictures or one each; by default what the pictures were drawn from.
        references: c_0, likewise: the empty prompt as in the paper, or anchors.
        delta: what to change the model by; the model itself is not touched, and what is attached
            to it does not matter.

    Against the empty prompt both predictions are the changed model's; an anchor's is the original
    model's, since it says what the prompt should mean afterwards (as in `sepme.erasure`).

    Raises:
        SepmeError: not one prompt or reference a picture, or a delta of another model.
    """
    prompts = _one_each(probe.prompts if prompts is None else prompts, probe)
    references = _one_each(references, probe)
    weights = _changed(backbone, delta)
    with backbone.original():
        eps_c = predicted_noise(backbone, probe, prompts, weights)
        fixed = {} if any(references) else weights
        eps_0 = predicted_noise(backbone, probe, references, fixed)
    return noise_difference(eps_c, eps_0)


def _one_each(prompts: str | Sequence[str], probe: Probe) -> list[str]:
    n = len(probe.prompts)
    prompts = [prompts] * n if isinstance(prompts, str) else list(prompts)
    if len(prompts) != n:
        raise SepmeError(f"{len(prompts)} prompts for {n} pictures: give one, or one a picture.")
    return prompts


def _changed(backbone: Backbone, delta: ConceptDelta | None) -> dict[str, Tensor]:
    """theta + Delta, of the layers that change."""
    if delta is None:
        return {}
    if delta.base != backbone.fingerprint:
        raise SepmeError(
            f"The delta of '{delta.concept}' belongs to another base model: erase it again on "
            "this one."
        )
    theta = backbone.cross_attention()
    return {path: theta[path] + delta.dense(path).to(theta[path]) for path in delta.paths}


@torch.no_grad()
def predicted_noise(
    backbone: Backbone,
    probe: Probe,
    prompts: Sequence[str] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """`eps(x_t, c, t)` of the model as it is now, `[timesteps, pictures, c, h, w]` on the CPU.

    Args:
        prompts: c, one for each picture; by default what the pictures were drawn from.
        weights: module path -> weight to use instead of the model's own.
    """
    embeddings = backbone.encode(probe.prompts if prompts is None else prompts)
    made = [  # one timestep at a time, to bound the memory
        backbone.epsilon(x_t, torch.full((len(x_t),), t, device=x_t.device), embeddings, weights)
        for t, x_t in zip(probe.timesteps, probe.x_t, strict=True)
    ]
    return torch.stack(made).float().cpu()


def magnitude(r: Tensor) -> Tensor:
    """Root mean square over the channels, `[..., h, w]`: how much the words say at each pixel."""
    return r.square().mean(dim=-3).sqrt()


def correlation_map(r: Tensor, r0: Tensor) -> Tensor:
    """`r * r0`, mean over the channels, `[..., h, w]`: eq. 2 before its mean over the pixels.

    Never negative where `r = r0`; the concept is erased when its positive and negative places
    balance.
    """
    return (r * r0).mean(dim=-3)


def correlations(r: Tensor, r0: Tensor) -> Tensor:
    """Normalised correlation of each noised picture, `[timesteps, pictures]`."""
    flat = normalised_correlation(r.flatten(0, 1), r0.flatten(0, 1))
    return flat.unflatten(0, r.shape[:2])


def cosines(differences: Tensor) -> Tensor:
    """How alike several concepts are in the noise: `[timesteps, k, k]`, from -1 to 1.

    Args:
        differences: `[k, timesteps, pictures, c, h, w]`, the r of k concepts on the same x_t.

    The cosine of the angle between two r is taken picture by picture, then averaged.
    """
    unit = torch.nn.functional.normalize(differences.flatten(3), dim=-1)  # [k, t, n, chw]
    return torch.einsum("itnd,jtnd->tij", unit, unit) / differences.shape[2]


# ------------------------------------------------------------------ layer by layer
def correlation_by_layer(
    backbone: Backbone,
    probe: Probe,
    delta: ConceptDelta,
    references: str | Sequence[str] = "",
    parts: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, float]:
    """What remains of a concept's correlation when only a part of its delta is on.

    Args:
        parts: label -> module paths; by default every layer by itself.

    Returns:
        label -> mean normalised correlation over the probe: 1 where that part does nothing, 0
        where it erases alone.
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
    callback: Callable[[Step], None] | None = None,
    progress: bool = True,
) -> tuple[ConceptDelta, Recording]:
    """Erase a concept as `sepme.erasure.erase` does, and look on through one fixed probe.

    The delta is the very same as without looking on.

    Args:
        prompts: whose pictures make the probe, some of the concept's own; by default three of
            them. The first one's maps are recorded.
        timesteps: the probe's, or how many evenly spaced ones.
        every: a snapshot every so many iterations, besides those before the first and after the
            last.
        seed: of the training and of the probe.

    Raises:
        SepmeError: see `erase`; or a prompt that is not the concept's, or `every` below 1.
    """
    if every < 1:
        raise SepmeError(f"every = {every} takes no snapshot: give at least 1.")
    watch = _Watch(backbone, concept, settings.reference, prompts, timesteps, seed)
    steps: list[Step] = []

    def collect(step: Step) -> None:
        steps.append(step)
        if callback is not None:
            callback(step)
        if step.iteration % every == 0:
            watch.look(step.iteration, step.deltas()[0])

    options = {"seed": seed, "trainer": Trainer(callback=collect, progress=progress)}
    start = erase(backbone, concept, keep, replace(settings, iterations=0), **options)
    watch.look(0, start)
    delta = erase(backbone, concept, keep, settings, **options)
    if len(steps) % every:
        watch.look(len(steps), delta)
    return delta, watch.recording(steps, delta)


class _Watch:
    """One probe of a concept, and what it has seen so far."""

    def __init__(
        self,
        backbone: Backbone,
        concept: Concept,
        reference: str,
        prompts: Sequence[str] | None,
        timesteps: Sequence[int] | int,
        seed: int,
    ) -> None:
        self.backbone, self.concept, self.seed = backbone, concept, seed
        self.prompts = tuple(concept.prompts[:: max(1, len(concept.prompts) // 3)][:3])
        self.prompts = self.prompts if prompts is None else _listed(prompts)
        self.timesteps = _grid(timesteps, backbone.timesteps)
        anchors = dict(zip(concept.prompts, concept.anchors, strict=True))
        strange = [prompt for prompt in self.prompts if prompt not in anchors]
        if strange or not self.prompts:
            what = f"'{strange[0]}' is no prompt" if strange else "There is no prompt"
            raise SepmeError(f"{what} of '{concept.name}' to look at: choose among its own.")
        self.references = [anchors[p] if reference == "anchor" else "" for p in self.prompts]
        self.seen: list[tuple[int, Tensor, Tensor, Tensor]] = []

    @cached_property
    def probe(self) -> Probe:
        return Probe.draw(self.backbone, self.prompts, self.timesteps, self.seed)

    @cached_property
    def original(self) -> Tensor:
        return noise_differences(self.backbone, self.probe, references=self.references)

    def look(self, iteration: int, delta: ConceptDelta) -> None:
        r = noise_differences(self.backbone, self.probe, references=self.references, delta=delta)
        sizes = torch.stack([delta.dense(path).norm() for path in delta.paths])
        self.seen.append((iteration, r[:, 0], correlations(r, self.original), sizes))

    def recording(self, steps: Sequence[Step], delta: ConceptDelta) -> Recording:
        iterations, maps, correlation, sizes = zip(*self.seen, strict=True)
        with self.backbone.original():
            image = self.backbone.generate(self.prompts[:1], self.seed)[0]
        return Recording(
            concept=self.concept.name,
            prompt=self.prompts[0],
            reference=self.references[0],
            image=image,
            timesteps=self.timesteps,
            iterations=iterations,
            original=self.original[:, 0],
            maps=torch.stack(maps),
            correlation=torch.stack(correlation),
            layers=delta.paths,
            sizes=torch.stack(sizes),
            steps=tuple(steps),
            provenance=delta.provenance,
        )
