"""Files that are whole, verified and say where they come from.

An artefact is a safetensors file. Its header holds one JSON text: how the tensors were made, and
the sha256 of that text and of every tensor. Reading checks the hash, so an edited or truncated file
is never taken for what it was.
"""

import codecs
import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar

import psutil
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from sepme._checks import plain
from sepme.errors import SepmeError, in_words

__all__ = [
    "Provenance",
    "digest_of",
    "load_artefact",
    "refuse_overwriting",
    "save_artefact",
    "save_json",
    "versions",
    "writable_folder",
    "write_atomically",
]

#: How a pointer begins that Git LFS puts in place of a file.
_POINTER = b"version https://git-lfs"
#: The packages whose version can change a delta's numbers.
PACKAGES = ("sepme", "torch", "diffusers", "transformers", "peft")


# ------------------------------------------------------------------ where it comes from
class _Known(BaseModel):
    """The settings that are looked up in a delta's provenance, whatever else is there."""

    eraser: str = ""
    parametrisation: str = ""
    keep_rtol: float | None = None
    jointly: list[str] = []
    learnt: dict[str, str] = {}
    scale: float = 1.0


@dataclass(frozen=True)
class Provenance:
    """How a delta was made, without time and place.

    The same seed, machine and number of threads give the same bytes. Another number of threads
    moves a trained delta by about 7e-6 of its size (`benchmarks/reproducible.py`).
    """

    concept: str
    kind: str
    base: str  #: fingerprint of the model that the delta was made for (`Backbone.fingerprint`)
    base_name: str
    forgotten: tuple[str, ...]  #: the forget set: prompts that it makes the model forget
    kept: tuple[str, ...]  #: the retain set: prompts that it must not change
    #: Everything else that was chosen; JSON values only.
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    seed: int = 0
    iterations: Annotated[int, Field(ge=0)] = 0
    #: What each prompt of the forget set is to mean instead, in their order, where that is said.
    anchors: tuple[str, ...] = ()
    #: Digests of the deltas that were on while it was trained (iterative erasure).
    after: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        prompts = (*self.forgotten, *self.anchors, *self.kept)
        for text in (self.concept, self.kind, self.base_name, *prompts):
            plain(text)
        for name in ("forgotten", "anchors", "kept", "after"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "versions", dict(self.versions))  # `versions()` gives one to all
        # As JSON would return them (tuples become lists), so that a round trip changes nothing.
        object.__setattr__(self, "settings", json.loads(canonical_json(dict(self.settings))))

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Any) -> "Provenance":
        """Read what `to_dict` wrote.

        Raises:
            SepmeError: a field is missing, unknown, or of another type.
        """
        try:
            found = TypeAdapter(cls).validate_json(canonical_json(content), strict=True)
            _Known.model_validate(found.settings, strict=True)
        except ValidationError as error:
            raise SepmeError(
                "The provenance is not what this version of sepme writes "
                f"({in_words(error)}): make the delta again, or use the sepme that wrote it."
            ) from error
        return found


@cache  # a call takes about 20 ms, and every erasure asks
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a delta's numbers, where installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # then nothing here needs it
            found[package] = metadata.version(package)
    return found


def same_model(one: str, other: str) -> bool:
    """Whether two fingerprints are of one model, perhaps in two number types."""
    halves = zip((one[:32], one[32:]), (other[:32], other[32:]), strict=True)
    return any(a == b != "" for a, b in halves)


def canonical_json(content: Any) -> str:
    """The one JSON text of these values: sorted keys, no spaces, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(content: Any, tensors: Mapping[str, Tensor] | None = None) -> str:
    """sha256 of JSON values and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(canonical_json(content).encode())
    for name, tensor in sorted((tensors or {}).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------ verified tensors
def save_artefact(
    path: str | Path, kind: str, description: Any, tensors: Mapping[str, Tensor]
) -> Path:
    """Write tensors and what describes them; the same content always gives the same bytes.

    Args:
        kind: the header key. `load_artefact` refuses a file of another kind.
        description: JSON values.

    Raises:
        SepmeError: the name does not end in .safetensors, or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise SepmeError(f"{path.name} is no name for such a file: end it in .safetensors.")
    header = {"provenance": description, "sha256": digest_of(description, tensors)}
    return write_atomically(path, to_safetensors(dict(tensors), {kind: canonical_json(header)}))


def load_artefact(path: str | Path, kind: str) -> tuple[Any, dict[str, Tensor]]:
    """The description and the tensors that `save_artefact` wrote, every bit checked.

    Raises:
        SepmeError: a missing, truncated, edited or foreign file.
    """
    check_whole(path)
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(kind)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if text is None:
        raise SepmeError(
            f"{path} was not written by sepme for this purpose: choose a file that sepme wrote."
        )
    try:
        header = json.loads(text)
        intact = header["sha256"] == digest_of(header["provenance"], tensors)
    except (ValueError, TypeError, KeyError, RecursionError):
        intact = False
    if not intact:
        raise SepmeError(f"{path} was changed after sepme wrote it: make it again.")
    return header["provenance"], tensors


def check_whole(path: str | Path) -> None:
    """Raise SepmeError if this is no safetensors file that can be read and has all its bytes."""
    try:
        with regular(path).open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise SepmeError(
                    f"{path} is what Git LFS puts in place of a large file: get the file itself "
                    "with 'git lfs pull'."
                )
        with safe_open(path, framework="pt"):
            pass
    except OSError as error:
        raise SepmeError(
            f"{path} cannot be opened ({in_words(error)}): check that the file exists, and its "
            "rights."
        ) from error
    except SafetensorError as error:
        raise SepmeError(
            f"{path} is not a whole safetensors file: it may be truncated, make or copy it again."
        ) from error


# ------------------------------------------------------------------ files and folders
def regular(path: str | Path) -> Path:
    """The path, unless what is there would be waited for, as a pipe is (OSError)."""
    try:
        there = stat.S_ISREG(os.stat(path).st_mode)
    except ValueError as error:  # a name that no file can have
        raise OSError(errno.EINVAL, str(error)) from error
    if not there:
        raise OSError(errno.EINVAL, "it is no regular file")
    return Path(path)


def read_text(path: str | Path) -> str:
    """The text of a file that people bring: UTF-8, or UTF-16 with its byte order mark.

    Raises:
        OSError: it cannot be read, or holds something else.
    """
    content = regular(path).read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(errno.EINVAL, "it is neither UTF-8 nor UTF-16") from error


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Write `content` so that a reader sees the old file or the new one, never a half.

    The bytes go to a temporary name in the same folder, which then replaces `path` in one step.
    Missing folders are created. A link stays one, and the file that it leads to is written; a file
    keeps its mode.

    Raises:
        SepmeError: the folder or the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    whole = Path(os.path.realpath(path))
    new = temporary(whole.parent)
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(content)
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(whole, new)
        os.replace(new, whole)
    except OSError as error:
        raise SepmeError(
            f"{path} cannot be written ({in_words(error)}): choose a file in a folder that you may "
            "write to."
        ) from error
    finally:  # also when interrupted: no half-written file stays
        with contextlib.suppress(OSError):
            new.unlink()
    return path


def temporary(folder: Path) -> Path:
    """A name for what is not whole yet, of this thread alone; those of dead processes are deleted.

    A process that is killed while it writes leaves its file behind, and whoever writes next into
    the same folder sweeps it up.
    """
    for left in folder.glob(".sepme-*.tmp*"):
        with contextlib.suppress(OSError, ValueError):  # another's file, another's name
            if not psutil.pid_exists(int(left.name.split("-")[1])):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return folder / f".sepme-{os.getpid()}-{threading.get_native_id()}.tmp"


def save_json(path: str | Path, content: Any) -> Path:
    """Write a result as indented JSON, whole or not at all; NaN is refused."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    return write_atomically(path, (text + "\n").encode())


def writable_folder(path: str | Path) -> Path:
    """The folder, which need not exist: the first file that is written into it creates it.

    Raises:
        SepmeError: it cannot be created or written to.
    """
    path, whole = Path(path), Path(path).absolute()
    try:
        there = next(place for place in (whole, *whole.parents) if os.path.lexists(place))
        with tempfile.TemporaryFile(dir=there):
            pass
        for name in (whole, *whole.relative_to(there).parts):  # one of them may be too long
            with contextlib.suppress(FileNotFoundError):
                os.lstat(there / name)
    except OSError as error:
        raise SepmeError(
            f"{path} cannot be written to ({in_words(error)}): choose another place with --out."
        ) from error
    return path


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse, before any work, to write over what is read, by whatever name.

    Raises:
        SepmeError: an output is an input, or lies in a folder that is one.
    """
    for output, read in product(outputs, list(inputs)):
        place, source = (Path(os.path.realpath(path)) for path in (output, read))  # loops too
        linked = output.exists() and read.exists() and output.samefile(read)
        if linked or source in (place, *place.parents):
            raise SepmeError(f"'{output}' would overwrite '{read}': choose another with --out.")
