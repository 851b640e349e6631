"""Let a CPU build of torch live beside a torchvision that was built for CUDA.

torchvision's compiled operators only load beside the torch they were built for. Where they do not,
`import torchvision` (and with it `lpips`, `diffusers` and `transformers`) stops with "operator
torchvision::nms does not exist", because it describes two operators that were never declared.
Nothing here calls them; the imports need no more than their schemas. So these are declared, and
only where the real operators are absent: beside a matching torch this module changes nothing.
"""

import contextlib
from importlib.util import find_spec
from pathlib import Path

import torch

#: The operators that `import torchvision` describes without asking whether they exist.
SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def declare_missing_operators() -> list[str]:
    """Declare the schemas that torchvision expects and torch lacks; return the names declared."""
    torchvision = find_spec("torchvision")
    if torchvision is None:
        return []
    # As torchvision does it: load the library if it fits, go on without it if it does not.
    for library in Path(torchvision.origin).parent.glob("_C.*"):
        with contextlib.suppress(OSError):
            torch.ops.load_library(library)
    missing = [name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    for name in missing:
        torch.library.define(f"torchvision::{name}", SCHEMAS[name])
    return missing
