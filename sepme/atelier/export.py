"""Write the finished model as what ships: a stock pipeline directory with a few small files."""

import json
from pathlib import Path

from diffusers import StableDiffusionPipeline

from sepme.atelier.architecture import GENERATION
from sepme.atelier.captions import catalogue
from sepme.atelier.checkpoints import write_directory


def export_pipeline(pipeline: StableDiffusionPipeline, directory: Path, judge: Path | None) -> None:
    """Put the pipeline, the catalogue, how to generate, and the judge if any, into `directory`."""

    def fill(path: Path) -> None:
        pipeline.save_pretrained(path, safe_serialization=True)
        (path / "catalogue.json").write_text(catalogue().to_json(), encoding="utf-8")
        (path / "generation.json").write_text(json.dumps(GENERATION, indent=1) + "\n", "utf-8")
        if judge is not None and judge.exists():
            (path / "judge.safetensors").write_bytes(judge.read_bytes())

    write_directory(directory, fill)
