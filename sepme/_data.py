"""Where the files that come with sepme are, and where it may keep files of its own."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(*parts: str) -> Path:
    """A file or folder of the data that come with sepme, like `shipped("paper", "README.md")`.

    They are `atelier` (the model), `paper` (the published tables) and `results` (the measured
    ones). A wheel holds them in the package, as `sepme/data`; a clone or a source archive has them
    beside it, as `data`.
    """
    inside = _PACKAGE / "data"
    return (inside if inside.is_dir() else _PACKAGE.parent / "data").joinpath(*parts)


def cache(*parts: str) -> Path:
    """A file or folder below the user's cache folder: what can be made again at any time."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "sepme", *parts)
