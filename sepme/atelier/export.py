"""Write the finished model as what ships: a stock pipeline directory with a few small files."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline

from sepme.atelier._architecture import GENERATION
from sepme.atelier.captions import catalogue
from sepme.atelier.checkpoints import write_directory
from sepme.atelier.settings import TrainSettings


def training_record(
    settings: TrainSettings, step: int, seconds: float, loss: float
) -> dict[str, Any]:
    """How a model was made, for training.json and its card."""
    return {
        "settings": asdict(settings),
        "step": step,
        "seconds": round(seconds),
        "loss": round(loss, 4),
        "bfloat16": settings.half,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": {m.__name__: m.__version__ for m in (torch, diffusers, transformers)},
    }


def export_pipeline(
    pipeline: StableDiffusionPipeline, directory: Path, judge: Path, training: Mapping[str, Any]
) -> None:
    """Replace `directory` by the pipeline with catalogue, defaults, training record and judge."""
    texts = {
        "catalogue.json": catalogue().to_json(),
        "generation.json": json.dumps(GENERATION, indent=1) + "\n",
        "training.json": json.dumps(training, indent=1) + "\n",
    }

    def fill(path: Path) -> None:
        pipeline.save_pretrained(path, safe_serialization=True)
        for name, text in texts.items():
            (path / name).write_text(text, encoding="utf-8")
        (path / "judge.safetensors").write_bytes(judge.read_bytes())

    write_directory(directory, fill)
