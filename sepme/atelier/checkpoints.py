"""Files that are either whole or absent: safetensors checkpoints that carry a state as JSON."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sepme.errors import SepmeError

_KEY = "sepme"  # the header entry that holds the state


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a JSON state to `path`, under another name until all is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, unfinished, metadata={_KEY: json.dumps(state, sort_keys=True)})
    os.replace(unfinished, path)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and the state in `path`; None when there is no such file."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})[_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise SepmeError(
            f"{path.name} is damaged or no checkpoint of ours: delete it to start that stage anew."
        ) from error


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix` and a slash, without it."""
    return {
        n.removeprefix(prefix + "/"): t for n, t in tensors.items() if n.startswith(prefix + "/")
    }


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `prefix` and a slash before their names; undone by `under`."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a new directory, then put it in the place of `path`."""
    unfinished, old = (path.with_name(f".{path.name}.{word}") for word in ("unfinished", "old"))
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    fill(unfinished)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        os.replace(path, old)
    os.replace(unfinished, path)
    shutil.rmtree(old, ignore_errors=True)
