"""The methods that SepME is compared with, behind one signature.

Presets: `official` (the published code), `rewrite` (ESD's later one), `sepme_paper` (what the SepME
authors ran, where they did) and `atelier` (rates that erase on the shipped model).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sepme._checks import choose, texts
from sepme.baselines import abconcept, esd, fmn, sdd, speed, uce
from sepme.baselines._closed import ClosedForm, edit
from sepme.baselines._train import Objective, Student, train
from sepme.composition import refuse_attached
from sepme.concept import Concept
from sepme.delta import DenseDelta
from sepme.errors import SepmeError
from sepme.model import IN_USE, Backbone, own_modes
from sepme.training import Trainer

__all__ = ["BASELINES", "Baseline"]


@dataclass(frozen=True)
class Baseline:
    """One method, or one variant of it, with its presets."""

    name: str
    title: str  #: what tables and figures call it
    method: ClosedForm | Callable[..., Objective]
    presets: Mapping[str, Any]
    uses_keep: bool = False  #: whether it takes a retain set

    def preset(self, name: str) -> Any:
        """The settings of a preset by name."""
        choose(tuple(self.presets), **{f"The preset of {self.title}": name})
        return self.presets[name]

    def erase(
        self,
        backbone: Backbone,
        concept: Concept,
        settings: Any = "official",
        *,
        keep: Sequence[str] = (),
        seed: int = 0,
        trainer: Trainer | None = None,
    ) -> DenseDelta:
        """Make the change that erases one concept.

        Args:
            settings: the method's settings, or the name of a preset.
            keep: the retain set, of a method that uses one.
            seed: decides everything random; a closed form is deterministic.
            trainer: callback, checkpoint and progress bar; a closed form has none.

        Raises:
            SepmeError: a pipeline with something attached, a retain set that the method cannot use,
                a prompt both kept and forgotten, or training in another type than float32.
        """
        settings = self.preset(settings) if isinstance(settings, str) else settings
        keep = tuple(texts(keep))
        refuse_attached(backbone)
        if keep and not self.uses_keep:
            raise SepmeError(f"{self.title} has no use for prompts to keep: leave out keep.")
        backbone.refuse_unclear((concept, keep))
        closed = isinstance(self.method, ClosedForm)
        if not closed and backbone.dtype != torch.float32:
            found = f"{self.title} trains in float32, and this model is in {backbone.dtype}"
            raise SepmeError(f"{found}: load it with dtype=torch.float32.")
        with IN_USE, own_modes(backbone):  # others would draw what is half trained
            if closed:
                return edit(backbone, concept, settings, self.method, keep)
            student = Student(backbone, settings)
            retained = {"keep": keep} if self.uses_keep else {}
            objective = self.method(student, concept, settings, **retained)
            return train(student, concept, objective, seed, trainer)


#: All baselines, by name.
BASELINES: Mapping[str, Baseline] = {
    entry.name: entry
    for entry in (
        Baseline("esd-x", "ESD-x", esd.objective, esd.PRESETS),
        Baseline("esd-u", "ESD-u", esd.objective, esd.PRESETS_U),
        Baseline("esd-x-strict", "ESD-x-strict", esd.objective, esd.PRESETS_X_STRICT),
        Baseline("sdd", "SDD", sdd.objective, sdd.PRESETS),
        Baseline("abconcept", "AbConcept", abconcept.objective, abconcept.PRESETS),
        Baseline(
            "abconcept-noise", "AbConcept (noise)", abconcept.objective, abconcept.PRESETS_NOISE
        ),
        Baseline(
            *("abconcept-retained", "AbConcept (retaining prior)"),
            *(abconcept.objective, abconcept.PRESETS_RETAINED),
            uses_keep=True,
        ),
        Baseline("fmn", "FMN", fmn.objective, fmn.PRESETS),
        Baseline("fmn-inverted", "FMN (inverted)", fmn.objective, fmn.PRESETS_INVERTED),
        Baseline("uce", "UCE", uce.UCE, uce.PRESETS, uses_keep=True),
        Baseline("speed", "SPEED-style", speed.SPEED, speed.PRESETS, uses_keep=True),
    )
}
