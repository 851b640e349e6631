"""Separable multi-concept erasure for text-to-image diffusion models."""

from importlib import import_module
from typing import Any

from sepme._torchvision import declare_missing_operators

declare_missing_operators()  # before anything imports torchvision

__version__ = "0.1.0"

#: What most programs need, by module; imported at first use, since diffusers takes seconds.
_MODULES = {
    "composition": ("Composition", "applied", "shipped_deltas"),
    "concept": ("Catalogue", "Concept", "catalogue_of", "fill"),
    "delta": ("ConceptDelta", "DenseDelta"),
    "erasure": ("PRESETS", "ErasureSettings", "erase"),
    "errors": ("SepmeError", "SepmeWarning"),
    "model": ("Backbone", "load_catalogue"),
    "nullspace": ("NullSpace", "constrain", "null_space"),
    "probe": ("Probe",),
    "training": ("Trainer",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'sepme' has no attribute {name!r}")
    return getattr(import_module(f"sepme.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
