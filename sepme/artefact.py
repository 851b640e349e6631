"""Writing files whole or not at all."""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from sepme.errors import SepmeError


# ------------------------------------------------------------------ artefact
def write_atomically(path: str | Path, content: bytes) -> Path:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a half.

    The bytes go to a temporary name in the same folder, which then replaces `path` in one step;
    folders that are missing are created.

    Raises:
        SepmeError: the folder or the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        _discard(temporary)
        reason = error.strerror or type(error).__name__
        raise SepmeError(
            f"{path} cannot be written ({reason}): choose a file in a folder that you may write to."
        ) from error
    except BaseException:  # interrupted: leave no half-written file, then let it through
        _discard(temporary)
        raise
    return path


def _discard(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # it was never created, or its folder is not a folder
        temporary.unlink()


# ------------------------------------------------------------------ provenance
# Where a delta comes from: enough to say what it may be used for, and to make it again.
#: The packages whose version can change a delta's numbers.
PACKAGES = ("sepme", "torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True)
class Provenance:
    """How a delta was made. Holds no time and no place: same seed, same bytes."""

    concept: str
    kind: str
    base: str
    """Fingerprint of the model it was made for (`Backbone.fingerprint`)."""
    base_name: str
    forgotten: tuple[str, ...]
    """Prompts that it makes the model forget."""
    kept: tuple[str, ...]
    """Prompts that it cannot change."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that was chosen; JSON values only."""
    seed: int = 0
    iterations: int = 0
    after: tuple[str, ...] = ()
    """Digests of the deltas that were on while it was trained (iterative erasure)."""
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "forgotten", tuple(self.forgotten))
        object.__setattr__(self, "kept", tuple(self.kept))
        object.__setattr__(self, "after", tuple(self.after))
        # As JSON would return them (tuples become lists), so that a round trip changes nothing.
        object.__setattr__(self, "settings", json.loads(canonical_json(dict(self.settings))))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, so that equal provenance is equal text."""
        return canonical_json(self.to_dict())

    @classmethod
    def from_dict(cls, content: Any) -> "Provenance":
        """Read what `to_dict` wrote.

        Raises:
            SepmeError: a field is missing or unknown.
        """
        names = {entry.name for entry in fields(cls)}
        if not isinstance(content, dict) or set(content) != names:
            raise SepmeError(
                "The provenance does not have the fields that this version of sepme writes: "
                "make the delta again, or use the sepme that wrote it."
            )
        return cls(**content)

    @classmethod
    def from_json(cls, text: str) -> "Provenance":
        try:
            content = json.loads(text)
        except ValueError as error:
            raise SepmeError("The provenance is not JSON: make the delta again.") from error
        return cls.from_dict(content)


def canonical_json(content: Any) -> str:
    """The one JSON text of these values: sorted keys, no spaces, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def settings_hash(settings: Mapping[str, Any]) -> str:
    """sha256 of settings, to tell whether a checkpoint belongs to the run that finds it."""
    return hashlib.sha256(canonical_json(dict(settings)).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a delta's numbers, where installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # then nothing here needs it
            found[package] = metadata.version(package)
    return found
