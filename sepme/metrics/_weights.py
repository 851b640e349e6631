"""Published weights inside installed packages: found without importing them, read as data."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from sepme.errors import SepmeError


def in_package(package: str, *parts: str) -> Path | None:
    """A file inside an installed package, or None; the package itself is not imported."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]).joinpath(*parts)
    return path if path.is_file() else None


def checked_bytes(path: Path, sha256: str, network: str) -> bytes:
    """A file's bytes, if their sha256 begins with the given digits.

    Raises:
        SepmeError: it does not.
    """
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(sha256):
        raise SepmeError(
            f"The file {path.name} is not the published {network} (sha256 {found[:8]}..., expected "
            f"{sha256[:8]}...): delete it and install it again."
        )
    return content
