"""The training of the shipped model from nothing: `sepme atelier train`, resumable at any moment.

Each stage is skipped when its result is there: train the auto-encoder; train the judge on other
pictures; encode the pictures; train the denoiser with the text encoder; export.
"""

import json
import platform
from dataclasses import asdict
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline

from sepme.artefact import writable_folder
from sepme.atelier._architecture import GENERATION, replace_folder
from sepme.atelier._fit import Progress
from sepme.atelier._judge import train_judge
from sepme.atelier._tokenizer import make_tokenizer
from sepme.atelier._unet import train_unet
from sepme.atelier._vae import train_vae
from sepme.atelier.captions import catalogue
from sepme.atelier.settings import TrainSettings

__all__ = ["train"]


def train(directory: Path, settings: TrainSettings | None = None) -> Path:
    """Train, or go on training, in `directory`; returns the pipeline's directory within it.

    A usable pipeline of the weights so far is put there every `settings.export_every` steps.

    Raises:
        SepmeError: the directory cannot be written, the loss is lost, or the number of steps was
            changed after the learning rate began to fall.
    """
    settings = settings or TrainSettings()
    directory = writable_folder(directory)
    finished = directory / "pipeline"
    train_vae(directory, settings)
    judge = train_judge(directory, settings)

    def export(pipeline: StableDiffusionPipeline, progress: Progress) -> None:
        replace_folder(finished, lambda path: _export(pipeline, path, judge, settings, progress))

    train_unet(directory, settings, make_tokenizer(), export)
    return finished


def _export(
    pipeline: StableDiffusionPipeline,
    path: Path,
    judge: Path,
    settings: TrainSettings,
    progress: Progress,
) -> None:
    """Write the pipeline with its judge, catalogue, defaults, and how it was made."""
    record = {
        "settings": asdict(settings),
        "step": progress.step,
        "seconds": round(progress.seconds),
        "loss": round(progress.loss, 4),
        "bfloat16": settings.half,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": {m.__name__: m.__version__ for m in (torch, diffusers, transformers)},
    }
    pipeline.save_pretrained(path, safe_serialization=True)
    (path / "judge.safetensors").write_bytes(judge.read_bytes())
    (path / "catalogue.json").write_text(catalogue().to_json(), encoding="utf-8")
    for name, content in (("generation", GENERATION), ("training", record)):
        (path / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
