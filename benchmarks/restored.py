"""How near a concept that was given back comes to the original while others stay erased.

    python benchmarks/restored.py                # writes results/restored.csv; about ten minutes
    python benchmarks/restored.py --table        # the table of README.md, from that file

Scene1 at t1, styles: 0 and 1 are back, 2 to 5 stay erased. The increments of those four are made in
several ways; the pictures of the two are drawn in float32 and in mixed precision, and compared with
what the original model draws in the same precision from the same noise.
"""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from sepme.artefact import write_atomically
from sepme.atelier.judge import Judge
from sepme.composition import applied
from sepme.course.chapter import open_model
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, erase
from sepme.metrics import lpips_distance
from sepme.scenes.methods import Setting
from sepme.scenes.pictures import Sampling
from sepme.scenes.protocol import cast, moments
from sepme.training import Trainer

RESULTS = Path(__file__).resolve().parent / "results" / "restored.csv"
DEFAULT = PRESETS["default"]
EXACT = replace(DEFAULT, method="svd", keep_rtol=None)
#: The null space, and who is in what it is the null space of.
WAYS = {
    "damped at 1e-3, told of everything (default)": (DEFAULT, "everything"),
    "cut at 1e-4, told of everything": (replace(EXACT, keep_rtol=1e-4), "everything"),
    "cut at float32's rounding, told of everything": (EXACT, "everything"),
    "damped at 1e-3, told of the scene": (DEFAULT, "scene"),
    "cut at float32's rounding, told of the scene": (EXACT, "scene"),
}
MOMENT = moments("Scene1")[1]


def draw(world: Setting, index: int, images: int, exact: bool, changes: list[Any]) -> torch.Tensor:
    """Bytes `[images, 3, h, w]` of a concept; drawn anew, as a cache would hide a change."""
    prompts, seeds = world.cast.prompts(index, images), world.cast.seeds(index, images)
    sampling = Sampling()
    mixed = torch.autocast(world.backbone.device.type, torch.bfloat16, enabled=not exact)
    with applied(world.backbone, *changes), mixed:
        drawn = world.backbone.generate(
            prompts, seeds, steps=sampling.steps, guidance=sampling.guidance
        )
    return (drawn * 255).round().byte()


def made(world: Setting, way: str) -> list[ConceptDelta]:
    """The increments of the four, each trained by itself."""
    settings, told = WAYS[way]
    six = sorted({*MOMENT.erased, *MOMENT.recovered})
    deltas, quiet = [], Trainer(progress=False)
    for index in MOMENT.erased:
        others = [i for i in six if i != index]
        keep = world.everything(index) if told == "everything" else world.kept(index, others)
        deltas.append(erase(world.backbone, world.concept(index), keep, settings, trainer=quiet))
    return deltas


def back(world: Setting, images: int, exact: bool, changes: list[Any]) -> torch.Tensor:
    """The pictures of the two that are back."""
    return torch.cat([draw(world, index, images, exact, changes) for index in MOMENT.recovered])


def compared(
    world: Setting,
    judge: Judge,
    originals: dict[str, torch.Tensor],
    deltas: list[ConceptDelta],
    images: int,
) -> dict[str, float]:
    """How far the two that are back are from the original, and whether the four are gone."""
    seen = []
    for index in MOMENT.erased:
        pictures = draw(world, index, images, True, deltas)
        seen.append(judge.sees(pictures / 255, world.cast.name(index)).float().mean())
    row: dict[str, float] = {
        "rank": sum(delta.rank for delta in deltas),
        "erased": float(torch.stack(seen).mean()),
    }
    for name, original in originals.items():
        exact = name == "float32"
        now, all_off = (back(world, images, exact, on) for on in (deltas, []))
        apart = (now.int() - original.int()).abs().flatten(1)
        row |= {
            f"{name}_identical": float((apart.amax(dim=1) == 0).float().mean()),
            f"{name}_levels": float(apart.float().mean()),
            f"{name}_lpips": float(lpips_distance(now / 255, original / 255).mean()),
            f"{name}_all_off": float((all_off == original).flatten(1).all(dim=1).float().mean()),
        }
    return row


def table(rows: list[dict[str, str]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| null space | rank of the four | erased still seen | float32: identical | grey levels "
        "apart | LPIPS | mixed: identical | grey levels apart | LPIPS | all off: identical |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        n = {name: float(value) for name, value in row.items() if name != "way"}
        cells = [f"{n['rank']:.0f}", f"{n['erased']:.1%}"]
        for name in ("float32", "mixed"):
            cells += [
                f"{n[f'{name}_identical']:.0%}",
                f"{n[f'{name}_levels']:.2f}",
                f"{n[f'{name}_lpips']:.5f}",
            ]
        cells.append(f"{min(n['float32_all_off'], n['mixed_all_off']):.0%}")
        lines.append(f"| {row['way']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(
    images: Annotated[int, typer.Option(min=1, help="Pictures of each concept.")] = 20,
    table_only: Annotated[bool, typer.Option("--table", help="Only print the table.")] = False,
) -> None:
    """Measure every way, write the file, print the table."""
    if not table_only:
        backbone, judge, catalogue = open_model()
        world = Setting(backbone, catalogue, cast("style"), RESULTS.parent)
        originals = {n: back(world, images, n == "float32", []) for n in ("float32", "mixed")}
        rows = []
        for way in WAYS:
            row = compared(world, judge, originals, made(world, way), images)
            rows.append({"way": way} | row)
            typer.echo(f"{way}: done")
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(RESULTS, text.getvalue().encode())
    with RESULTS.open(newline="", encoding="utf-8") as file:
        typer.echo(table(list(csv.DictReader(file))))


if __name__ == "__main__":
    typer.run(main)
