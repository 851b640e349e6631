"""Train the shipped model from nothing: `sepme atelier train`, resumable at any moment.

Stages, each skipped when its result is there: paint the pictures; train the auto-encoder; encode
the pictures; train the judge on other pictures; train the denoiser with the text encoder; export.
"""

import argparse
from dataclasses import fields
from pathlib import Path

from diffusers import StableDiffusionPipeline

from sepme.atelier._tokenizer import make_tokenizer
from sepme.atelier.export import export_pipeline, training_record
from sepme.atelier.loop import Loop
from sepme.atelier.settings import TrainSettings
from sepme.atelier.train_judge import train_judge
from sepme.atelier.train_unet import train_unet
from sepme.atelier.train_vae import train_vae
from sepme.errors import SepmeError
from sepme.report import writable_folder


def train(directory: Path, settings: TrainSettings | None = None) -> Path:
    """Train, or go on training, in `directory`; returns the pipeline's directory within it.

    A usable pipeline of the weights so far is put there every `settings.export_seconds`.
    Raises SepmeError when the directory cannot be written or a checkpoint in it is damaged.
    """
    settings = settings or TrainSettings()
    directory = writable_folder(directory)
    finished = directory / "pipeline"
    train_vae(directory, settings)
    judge = train_judge(directory, settings)

    def export(pipeline: StableDiffusionPipeline, loop: Loop) -> None:
        record = training_record(settings, loop.step, loop.seconds, loop.loss)
        export_pipeline(pipeline, finished, judge, record)

    train_unet(directory, settings, make_tokenizer(), export)
    return finished


def main() -> None:
    """Command line for `python -m sepme.atelier.train`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and model")
    for field in fields(TrainSettings):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=field.type, default=field.default
        )
    chosen = vars(parser.parse_args())
    try:
        print(train(chosen.pop("out"), TrainSettings(**chosen)))
    except SepmeError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
