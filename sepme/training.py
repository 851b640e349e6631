"""Where a long training can be picked up again after a kill, with the same result to the byte.

A checkpoint holds tensors and a few numbers in one safetensors file that is replaced in a single
step. It is read back only by the run that wrote it: the key is a hash of all that decides a run.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sepme.artefact import write_atomically


@dataclass(frozen=True)
class Checkpoint:
    """One file that a run writes now and then and removes when it is done."""

    path: Path
    every: int = 5
    """Iterations between two writes."""

    def write(self, key: str, numbers: Mapping[str, float], tensors: Mapping[str, Tensor]) -> None:
        header = {"state": json.dumps({"key": key, "numbers": dict(numbers)})}
        owned = {
            name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()
        }
        write_atomically(self.path, save(owned, header))

    def read(self, key: str) -> tuple[dict[str, float], dict[str, Tensor]] | None:
        """The numbers and tensors, or None when there is nothing of this very run to go on from."""
        try:
            with safe_open(self.path, framework="pt") as file:
                state = json.loads((file.metadata() or {})["state"])
                if state["key"] != key:
                    return None
                return state["numbers"], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, TypeError, KeyError):  # not a file of ours
            return None

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
