"""What attached deltas cost: a picture, a pass of the UNet, and a switch to another set of them.

    python benchmarks/adapters.py     # on the Atelier and on 1.x's shape; writes its table

Deltas are put on the pipeline by `Composition`, and by stock diffusers: the same files loaded with
`load_lora_weights`, switched by `set_adapters`, all off by `disable_lora`. In turns with it, the
same pipeline without any is timed. A picture is drawn in 25 steps, by `Backbone.generate` or by the
pipeline itself, in a third of the turns on 1.x's shape, where it takes half a minute. A pass is of
two latents, as guidance takes them. A switch is to a random subset, as the concept mixer does
before it draws. Where all are on, both must predict the same noise, and where all are off, the
bytes of the original. On 1.x's shape, with random weights, the deltas are those of ten names in
closed form. A median switch by `Composition` of more than 50 ms ends it with an error, once the
table is written.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from _machine import backbone, hardware, now
from _markdown import markdown, write_between
from closed_form import NAMES, ours
from scipy.stats import bootstrap
from torch import Tensor

from sepme.composition import Composition, shipped_deltas
from sepme.concept import slug
from sepme.delta import ConceptDelta
from sepme.loading import quiet
from sepme.model import Backbone

Switch = Callable[[Sequence[str]], object]
#: How many are attached, elsewhere ten. The Atelier ships twenty.
COUNTS = {"atelier": (1, 10, 20)}
#: Milliseconds that a switch may take.
BAR = 50.0
#: Switches timed.
SWITCHES = 20
#: Sampling steps of a picture.
STEPS = 25


@contextmanager
def composed(model: Backbone, deltas: Sequence[ConceptDelta], _folder: str) -> Iterator[Switch]:
    with Composition(model, deltas) as composition:
        yield composition.set


@contextmanager
def stock(model: Backbone, deltas: Sequence[ConceptDelta], folder: str) -> Iterator[Switch]:
    with quiet():  # about adapters for the text encoder, which are not in the files
        for name in (slug(delta.concept) for delta in deltas):
            file = f"{name}.safetensors"
            model.pipe.load_lora_weights(folder, weight_name=file, adapter_name=name)

    def switch(concepts: Sequence[str]) -> None:
        if concepts:
            model.pipe.enable_lora()
            model.pipe.set_adapters([slug(concept) for concept in concepts])
        else:
            model.pipe.disable_lora()

    yield switch
    model.pipe.unload_lora_weights()


BY = {"Composition": composed, "stock diffusers": stock}


def nothing() -> None:
    """What comes before a work that needs nothing."""


def in_turns(times: int, works: Mapping[str, tuple[Callable, Callable]]) -> pd.DataFrame:
    """Seconds of each work, a row a turn, after one that warms up: a busy machine slows all alike.

    Every work has something before it that is not timed.
    """
    turns = []
    for _ in range(times + 1):
        seconds = {}
        for name, (before, work) in works.items():
            before()
            start = now()
            work()
            seconds[name] = now() - start
        turns.append(seconds)
    return pd.DataFrame(turns[1:])


def times_none(seconds: pd.DataFrame, work: str) -> str:
    """How many times as long as without: the median over the turns, and its 95 % interval."""
    ratios = seconds[work] / seconds["none"]
    low, high = bootstrap((ratios,), np.median, rng=0, method="percentile").confidence_interval
    return f"{ratios.median():.2f}x ({low:.2f} to {high:.2f})"


def passes(model: Backbone, concept: str) -> Callable[[], Tensor]:
    """A pass of the UNet, as a step with guidance has it: predicts noise."""
    rng = torch.Generator().manual_seed(0)
    x_t = torch.randn(2, *model.latent_shape, generator=rng).to(model.device)
    t, c = torch.tensor([500, 500], device=model.device), model.encode(["", concept])
    return torch.no_grad()(partial(model.epsilon, x_t, t, c))


def draw(model: Backbone, by: str, concept: str) -> None:
    """A picture, texts and decoding included."""
    if by == "Composition":
        model.generate([concept], steps=STEPS)
    else:
        how = {"num_inference_steps": STEPS, "guidance_scale": model.guidance}
        model.pipe(concept, output_type="pt", **how)


def switches(switch: Switch, names: Sequence[str], times: int) -> list[float]:
    """Milliseconds of each of so many switches to random subsets."""
    choose, milliseconds = random.Random(0), []
    for _ in range(times):
        subset = choose.sample(names, choose.randint(0, len(names)))
        start = now()
        switch(subset)
        milliseconds.append(1000 * (now() - start))
    return milliseconds


def measured(
    plain: Backbone,
    model: Backbone,
    deltas: Sequence[ConceptDelta],
    by: str,
    folder: str,
    times: int,
) -> tuple[dict[str, str], Tensor]:
    """A row of the table, and the noise that is predicted with all deltas on."""
    names = [delta.concept for delta in deltas]
    of_plain, of_model = (passes(each, names[0]) for each in (plain, model))
    original, start = of_plain(), now()
    with BY[by](model, deltas, folder) as switch:
        attaching = now() - start
        off, on = partial(switch, []), partial(switch, names)
        off()
        assert torch.equal(of_model(), original), f"{by}: switched off, they still act"
        on()
        erased = of_model()
        assert not torch.equal(erased, original), f"{by}: switched on, they do nothing"
        works = {"none": (nothing, of_plain), "off": (off, of_model), "on": (on, of_model)}
        a_pass = in_turns(times, works)
        of_plain, of_model = (partial(draw, each, by, names[0]) for each in (plain, model))
        few = times if model.name in COUNTS else max(2, times // 3)
        a_picture = in_turns(few, {"none": (nothing, of_plain), "on": (on, of_model)})
        took = switches(switch, names, SWITCHES)
    row = {"by": by, "attaching, s": f"{attaching:.2f}"}
    row |= {"pass without, s": f"{a_pass['none'].median():.3f}"}
    row |= {"pass, all off": times_none(a_pass, "off"), "pass, all on": times_none(a_pass, "on")}
    row |= {"picture, all on": times_none(a_picture, "on")}
    return row | {"switch, ms": f"{median(took):.1f}", "slowest": f"{max(took):.1f}"}, erased


def main(
    shapes: Annotated[list[str], typer.Option(help="atelier, sd14 or sd21.")] = ["atelier", "sd14"],  # noqa: B006
    pixels: Annotated[list[int], typer.Option(help="Of pictures of random weights.")] = [128],  # noqa: B006
    times: Annotated[int, typer.Option(min=2, help="Turns of a pass and of a picture.")] = 15,
) -> None:
    rows = []
    sizes = [(shape, n) for shape in shapes for n in ([64] if shape == "atelier" else pixels)]
    for shape, size in sizes:
        plain, model = backbone(shape, size), backbone(shape, size)
        counts = COUNTS.get(shape, (10,))
        made = [*shipped_deltas(model).values()] or ours(model, NAMES[: max(counts)], [""])
        with TemporaryDirectory() as folder:
            for delta in made:
                delta.save(Path(folder) / f"{slug(delta.concept)}.safetensors")
            for n in counts:
                noises = []
                for by in BY:
                    row, predicted = measured(plain, model, made[:n], by, folder, times)
                    rows.append({"model": shape, "pixels": str(size), "attached": str(n)} | row)
                    noises.append(predicted)
                    print(rows[-1], flush=True)
                torch.testing.assert_close(*noises, rtol=1e-3, atol=1e-4)
    write_between("adapters", f"{markdown(pd.DataFrame(rows))}\n\n{hardware()}")
    if any(row["by"] == "Composition" and float(row["switch, ms"]) > BAR for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
