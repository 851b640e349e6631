"""The training of the shipped model from nothing: `sepme atelier train`, resumable at any moment.

Each stage is skipped when its result is there: train the auto-encoder; train the judge on other
pictures; encode the pictures; train the denoiser with the text encoder; export.
"""

from pathlib import Path

from sepme.artefact import writable_folder
from sepme.atelier._judge import train_judge
from sepme.atelier._unet import train_unet
from sepme.atelier._vae import train_vae
from sepme.atelier.settings import TrainSettings

__all__ = ["train"]


def train(directory: Path, settings: TrainSettings | None = None) -> Path:
    """Train, or go on training, in `directory`; returns the pipeline's directory within it.

    A usable pipeline of the weights so far is put there every `settings.export_every` steps.

    Raises:
        SepmeError: no place to write, no finite loss, or a number of steps that changed too late.
    """
    settings, directory = settings or TrainSettings(), writable_folder(directory)
    train_vae(directory, settings)
    return train_unet(directory, settings, train_judge(directory, settings))
