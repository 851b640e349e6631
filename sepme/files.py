"""Writing files whole or not at all."""

import contextlib
import os
from pathlib import Path

from sepme.errors import SepmeError


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
