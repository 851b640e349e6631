"""How near a restored concept comes to the original while others stay erased.

    python benchmarks/restored.py                # writes results/restored.csv; about ten minutes
    python benchmarks/restored.py --table        # writes the table of README.md from that file

Scene1 at t1, styles: 0 and 1 are restored, 2 to 5 stay erased. The deltas of those four are trained
in several ways. The pictures are drawn in float32, since rounding is what is measured, and compared
with the original model's from the same noise.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from _markdown import markdown, write_between
from torch import Tensor

from sepme.artefact import write_atomically
from sepme.atelier.judge import Judge
from sepme.composition import applied
from sepme.concept import Catalogue
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, erase
from sepme.metrics import lpips_distance
from sepme.model import Backbone, load_catalogue
from sepme.scenes import EVALUATED, PROTOCOLS, Protocol, moments
from sepme.training import Trainer

RESULTS = Path(__file__).resolve().parent / "results" / "restored.csv"
DEFAULT = PRESETS["default"]
#: The settings, and the protocol.
WAYS = {
    "closed form + training, damped at 0.05": (DEFAULT, "catalogue"),
    "closed form + training, cut at 0.005": (
        replace(DEFAULT, method="svd", keep_rtol=0.005),
        "catalogue",
    ),
    "closed form + training, exact": (replace(DEFAULT, method="svd", keep_rtol=0.0), "paper"),
    "faithful, exact": (PRESETS["faithful"], "paper"),
}
MOMENT, STYLES = moments("Scene1")[1], EVALUATED["style"]


def draw(
    model: Backbone, index: int, images: int, protocol: str, deltas: list[ConceptDelta]
) -> Tensor:
    """Pictures `[images, 3, h, w]` of a concept with these deltas on."""
    with applied(model, *deltas):
        asked = STYLES.prompts(index, images, protocol), STYLES.seeds(index, images)
        return model.generate(*asked, steps=10, batch=50)


def train(model: Backbone, catalogue: Catalogue, way: str) -> list[ConceptDelta]:
    """The deltas of the four, each trained by itself."""
    settings, name = WAYS[way]
    protocol: Protocol = PROTOCOLS[name]
    six = [STYLES.name(index) for index in sorted({*MOMENT.erased, *MOMENT.recovered})]
    deltas = []
    for erased in (STYLES.name(index) for index in MOMENT.erased):
        keep = protocol.retain(catalogue, [erased], [other for other in six if other != erased])
        concept = protocol.forget(catalogue, erased)
        deltas.append(erase(model, concept, keep, settings, trainer=Trainer(progress=False)))
    return deltas


def measure(model: Backbone, judge: Judge, catalogue: Catalogue, way: str, images: int) -> dict:
    """How far the restored two are from the original, and whether the four are gone."""
    deltas, protocol = train(model, catalogue, way), WAYS[way][1]
    seen = [
        judge.sees(draw(model, i, images, protocol, deltas), STYLES.name(i)).float().mean()
        for i in MOMENT.erased
    ]

    def restored(on: list[ConceptDelta]) -> Tensor:
        return torch.cat([draw(model, i, images, protocol, on) for i in MOMENT.recovered])

    original, now = restored([]), restored(deltas)
    apart = 255 * (now - original).abs()
    # Of each picture, by how many levels its file differs.
    in_files = ((255 * now).round() - (255 * original).round()).abs().flatten(1).amax(dim=1)
    return {
        "way": f"{way} [{protocol}]",
        "rank": sum(delta.rank for delta in deltas),
        "erased": float(torch.stack(seen).mean()),
        "mean_levels": float(apart.mean()),
        "largest_levels": float(apart.max()),
        "lpips": float(lpips_distance(now, original).mean()),
        "same_bytes": float((in_files == 0).float().mean()),
        "one_level": float((in_files <= 1).float().mean()),
        "all_off": float((restored([]) == original).flatten(1).all(1).float().mean()),
    }


def table(rows: pd.DataFrame) -> str:
    """The rows in Markdown."""
    columns = {
        "way": ("how the four were made [retain set]", "{}"),
        "rank": ("rank of the four", "{:.0f}"),
        "erased": ("erased still seen", "{:.0%}"),
        "mean_levels": ("grey levels apart, mean", "{:.4f}"),
        "largest_levels": ("largest", "{:.2f}"),
        "lpips": ("LPIPS", "{:.1e}"),
        "same_bytes": ("same in 8 bits", "{:.0%}"),
        "one_level": ("within one level in 8 bits", "{:.0%}"),
        "all_off": ("all off: identical", "{:.0%}"),
    }
    shown = {title: rows[name].map(text.format) for name, (title, text) in columns.items()}
    return markdown(pd.DataFrame(shown))


def main(
    images: Annotated[int, typer.Option(min=1, help="Images of each concept.")] = 20,
    table_only: Annotated[
        bool, typer.Option("--table", help="Only write the table of README.md.")
    ] = False,
) -> None:
    """Measure every way, write the file and the table."""
    if not table_only:
        model, judge, catalogue = Backbone.load(), Judge.load(), load_catalogue()
        rows = [measure(model, judge, catalogue, way, images) for way in WAYS]
        write_atomically(RESULTS, pd.DataFrame(rows).to_csv(index=False).encode())
    write_between("restored", table(pd.read_csv(RESULTS)))


if __name__ == "__main__":
    typer.run(main)
