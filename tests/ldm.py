"""A pipeline as one file, as people download it."""

from pathlib import Path

from safetensors.torch import save_file

from sepme._ldm import checkpoint
from sepme.shapes import Pipeline


def one_file(pipe: Pipeline, file: Path) -> Path:
    """Write the whole pipeline as a checkpoint of the original layout."""
    save_file(checkpoint(pipe), file)
    return file
