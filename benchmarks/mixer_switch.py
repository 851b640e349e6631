"""How long the concept mixer takes to switch from one set of erased concepts to another.

python benchmarks/mixer_switch.py

All deltas that ship with the Atelier are on the pipeline; a random subset of them is switched on,
again and again. The bar is a median of at most 50 ms. Drawing is not part of it.
"""

import random
import time
from statistics import median
from typing import Annotated

import typer

from sepme.course.chapter import open_model, shipped_deltas
from sepme.widgets.mixer import Mixer

BAR = 50.0


def switch_times(mixer: Mixer, switches: int, seed: int = 0) -> list[float]:
    """Milliseconds of each of so many switches to random subsets."""
    choose, names = random.Random(seed), list(mixer.deltas)
    composition, times = mixer.composition(), []
    for _ in range(switches):
        subset = choose.sample(names, choose.randint(0, len(names)))
        start = time.perf_counter()
        composition.set(dict.fromkeys(subset, 1.0))
        times.append(1000 * (time.perf_counter() - start))
    composition.close()
    return times


def main(switches: Annotated[int, typer.Option(help="How many switches.")] = 100) -> None:
    """Print the median, and end with an error above the bar."""
    backbone, judge, _ = open_model()
    mixer = Mixer(backbone, judge, shipped_deltas(backbone))
    times = switch_times(mixer, switches)
    typer.echo(
        f"{len(mixer.deltas)} deltas, {switches} switches to random subsets: median "
        f"{median(times):.1f} ms, slowest {max(times):.1f} ms (bar: {BAR:g} ms)"
    )
    if median(times) > BAR:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
