"""Does one learning rate serve every model? How the correlation falls from the closed form on.

    python benchmarks/rates.py                     # small models; about five minutes
    python benchmarks/rates.py --shapes sd14       # 1.x's shape at full size too: 16 GB

The default takes a rate in units of the correlation: what the first step removes of it, to first
order. Beside it, one absolute rate that fits the Atelier. Shapes with random weights are erased
from as chapter 09 does it: Van Gogh, while other artists and a church are kept. The best that
training can do is to come near zero in few iterations and not to pass it by much.
"""

import warnings
from dataclasses import replace
from typing import Annotated

import pandas as pd
import typer
from _machine import hardware
from _markdown import markdown, write_between

from sepme.concept import Concept
from sepme.course.chapter import open_model
from sepme.erasure import PRESETS, ErasureStep, erase
from sepme.errors import SepmeWarning
from sepme.model import Backbone, load_catalogue
from sepme.shapes import SHAPES, random_pipeline
from sepme.training import Trainer

ITERATIONS = 12
RATES = ((0.02, True), (0.05, True), (0.1, True), (0.01, False))


def asked(model: Backbone, name: str) -> tuple[Concept, list[str]]:
    """What is to be forgotten, and what is to be kept."""
    if name == "atelier":
        catalogue = load_catalogue(None)
        return catalogue["cup"], catalogue.kept_prompts([catalogue["cup"]])
    catalogue = open_model(model)[2]
    return catalogue["Van Gogh"], ["Picasso", "Cezanne", "church", *catalogue.keep]


def row(model: Backbone, name: str, rate: float, relative: bool) -> dict[str, str]:
    """How the mean correlation goes in so many iterations that nothing stops."""
    settings = replace(PRESETS["default"], learning_rate=rate, relative_rate=relative, tau=0.0)
    settings = replace(settings, iterations=ITERATIONS, images=4, pool=16)
    steps: list[ErasureStep] = []
    erase(model, *asked(model, name), settings, trainer=Trainer(steps.append, progress=False))
    found = [step.correlation[0] for step in steps]
    said = {"model": name, "rate": f"{rate:g}" + ("" if relative else ", absolute")}
    said |= {f"iteration {n}": f"{found[n - 1]:.2f}" for n in (1, 2, 3, 5, 8, ITERATIONS)}
    return said | {"lowest": f"{min(found):.2f}"}


def main(
    shapes: Annotated[list[str] | None, typer.Option(help="At full size: sd14 or sd21.")] = None,
) -> None:
    rows = []
    models = [("atelier", False), *((name, True) for name in SHAPES)]
    for name, small in [*models, *((name, False) for name in shapes or ())]:
        if name == "atelier":
            model = Backbone.load()
        else:
            pipe = random_pipeline(name, miniature=small)
            pipe.unet.register_to_config(sample_size=8)
            model = Backbone(pipe, name, steps=3)
        for rate, relative in RATES:
            title = f"{name}, miniature" if small else name
            rows.append(row(model, name, rate, relative) | {"model": title})
            print(rows[-1], flush=True)
    write_between("rates", f"{markdown(pd.DataFrame(rows))}\n\n{hardware()}")


if __name__ == "__main__":
    warnings.simplefilter("ignore", SepmeWarning)
    typer.run(main)
