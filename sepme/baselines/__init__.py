"""The methods that SepME is compared with, behind one signature.

Every method has `erase(backbone, concept, settings, *, keep, seed, callback, checkpoint,
progress) -> WeightChange`. Where a method has no use for prompts to keep it refuses them, and
`Baseline.uses_keep` says so beforehand; nothing is ignored silently but what its docstring names.
Presets: `official` (the published code), `sepme_paper` (what the SepME authors ran, where they
did) and `atelier` (rates that erase on the shipped model), beside a few variants.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sepme.baselines import abconcept, esd, fmn, sdd, speed, uce
from sepme.baselines._training import Step
from sepme.concept import Concept
from sepme.delta import WeightChange
from sepme.errors import SepmeError
from sepme.model import Backbone

__all__ = ["BASELINES", "Baseline", "Step", "baseline"]


@dataclass(frozen=True)
class Baseline:
    """One method, or one variant of it, with its presets."""

    name: str
    title: str
    """What tables and figures call it."""
    method: Callable[..., WeightChange]
    presets: Mapping[str, Any]
    uses_keep: bool = False
    """Whether it takes prompts to keep; the others refuse them."""

    def preset(self, name: str) -> Any:
        """The settings of a preset by name."""
        if name not in self.presets:
            raise SepmeError(
                f"{self.title} has no preset '{name}': choose one of {', '.join(self.presets)}."
            )
        return self.presets[name]

    def erase(
        self, backbone: Backbone, concept: Concept, settings: Any = "official", **options: Any
    ) -> WeightChange:
        """Make the change that erases one concept; see the method's own `erase`.

        Args:
            settings: the method's settings, or the name of a preset.
            options: `keep`, `seed`, `callback`, `checkpoint` and `progress`.
        """
        settings = self.preset(settings) if isinstance(settings, str) else settings
        return self.method(backbone, concept, settings, **options)


#: By the name that one types.
BASELINES: Mapping[str, Baseline] = {
    entry.name: entry
    for entry in (
        Baseline("esd-x", "ESD-x", esd.erase, esd.PRESETS),
        Baseline("esd-u", "ESD-u", esd.erase, esd.PRESETS_U),
        Baseline("esd-x-strict", "ESD-x-strict", esd.erase, esd.PRESETS_X_STRICT),
        Baseline("sdd", "SDD", sdd.erase, sdd.PRESETS),
        Baseline("abconcept", "AbConcept", abconcept.erase, abconcept.PRESETS),
        Baseline("abconcept-noise", "AbConcept (noise)", abconcept.erase, abconcept.PRESETS_NOISE),
        Baseline("fmn", "FMN", fmn.erase, fmn.PRESETS),
        Baseline("fmn-inverted", "FMN (inverted)", fmn.erase, fmn.PRESETS_INVERTED),
        Baseline("uce", "UCE", uce.erase, uce.PRESETS, uses_keep=True),
        Baseline("speed", "SPEED-style", speed.erase, speed.PRESETS, uses_keep=True),
    )
}


def baseline(name: str) -> Baseline:
    """The baseline of this name."""
    if name not in BASELINES:
        raise SepmeError(f"Baseline '{name}' is unknown: choose one of {', '.join(BASELINES)}.")
    return BASELINES[name]
