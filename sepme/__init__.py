"""Separable multi-concept erasure for text-to-image diffusion models."""

from importlib import import_module
from typing import Any

from sepme.torchvision_ops import declare_missing_operators

declare_missing_operators()  # before anything imports torchvision

__version__ = "0.1.0"

#: What most programs need, by the room it comes from; imported at first use, since diffusers takes
#: seconds.
_ROOMS = {
    "backbone": ("Backbone", "load_catalogue"),
    "composition": ("Composition",),
    "concept": ("Catalogue", "Concept"),
    "delta": ("ConceptDelta",),
    "eraser": ("Step", "erase", "erase_jointly", "erase_undecoupled"),
    "errors": ("SepmeError",),
    "nullspace": ("NullSpace", "null_space"),
    "settings": ("PRESETS", "ErasureSettings"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_ROOM_OF)


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'sepme' has no attribute {name!r}")
    return getattr(import_module(f"sepme.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
