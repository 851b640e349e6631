"""How near a restored concept comes to the original while others stay erased.

    python benchmarks/restored.py                # writes results/restored.csv; about ten minutes
    python benchmarks/restored.py --table        # the table of README.md, from that file

Scene1 at t1, styles: 0 and 1 are restored, 2 to 5 stay erased. The deltas of those four are trained
in several ways. The images of the two are drawn in float32 and in mixed precision, and compared
with the original model's from the same noise in the same precision.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from torch import Tensor

from sepme.artefact import write_atomically
from sepme.composition import applied
from sepme.course.chapter import open_model
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, erase
from sepme.metrics import lpips_distance
from sepme.scenes import EVALUATED, Plan, moments
from sepme.scenes.methods import Context
from sepme.training import Trainer

RESULTS = Path(__file__).resolve().parent / "results" / "restored.csv"
DEFAULT = PRESETS["default"]
EXACT = replace(DEFAULT, method="svd", keep_rtol=None)
#: The null space, and the retain set that it is the null space of.
WAYS = {
    "damped at 1e-3, retains everything (default)": (DEFAULT, "everything"),
    "cut at 1e-4, retains everything": (replace(EXACT, keep_rtol=1e-4), "everything"),
    "cut at float32's rounding, retains everything": (EXACT, "everything"),
    "damped at 1e-3, retains the scene": (DEFAULT, "scene"),
    "cut at float32's rounding, retains the scene": (EXACT, "scene"),
}
MOMENT = moments("Scene1")[1]
PRECISIONS = ("float32", "mixed")


def draw(
    context: Context, index: int, images: int, precision: str, *deltas: ConceptDelta
) -> Tensor:
    """Bytes `[images, 3, h, w]` of a concept; drawn anew, as a cache would hide a change."""
    who, sampling, model = context.evaluated, Plan(fid=False).sampling, context.backbone
    mixed = torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "mixed")
    asked = who.prompts(index, images), who.seeds(index, images)
    with applied(model, *deltas), mixed:
        drawn = model.generate(*asked, steps=sampling.steps, guidance=sampling.guidance)
    return (drawn * 255).round().byte()


def restored(context: Context, images: int, precision: str, *deltas: ConceptDelta) -> Tensor:
    """The images of the two restored concepts."""
    parts = [draw(context, index, images, precision, *deltas) for index in MOMENT.recovered]
    return torch.cat(parts)


def train(context: Context, way: str) -> list[ConceptDelta]:
    """The deltas of the four, each trained by itself."""
    settings, retain = WAYS[way]
    six = sorted({*MOMENT.erased, *MOMENT.recovered})
    deltas, quiet = [], Trainer(progress=False)
    for index in MOMENT.erased:
        others = [i for i in six if i != index]
        everything = retain == "everything"
        keep = context.retain_all([index]) if everything else context.retain_known(index, others)
        about = (context.backbone, context.concept(index), keep, settings)
        deltas.append(erase(*about, trainer=quiet))
    return deltas


def measure(context: Context, judge, originals: dict, way: str, images: int) -> dict:
    """How far the restored two are from the original, and whether the four are gone."""
    deltas, seen = train(context, way), []
    for index in MOMENT.erased:
        drawn = draw(context, index, images, "float32", *deltas)
        seen.append(judge.sees(drawn / 255, context.evaluated.name(index)).float().mean())
    row = {
        "way": way,
        "rank": sum(delta.rank for delta in deltas),
        "erased": float(torch.stack(seen).mean()),
    }
    for precision, original in originals.items():
        now, all_off = (restored(context, images, precision, *on) for on in (deltas, ()))
        apart = (now.int() - original.int()).abs().flatten(1)
        row |= {
            f"{precision}_identical": float((apart.amax(dim=1) == 0).float().mean()),
            f"{precision}_levels": float(apart.float().mean()),
            f"{precision}_lpips": float(lpips_distance(now / 255, original / 255).mean()),
            f"{precision}_all_off": float((all_off == original).flatten(1).all(1).float().mean()),
        }
    return row


def table(rows: pd.DataFrame) -> str:
    """The rows in Markdown."""
    lines = [
        "| null space | rank of the four | erased still seen | float32: identical | grey levels "
        "apart | LPIPS | mixed: identical | grey levels apart | LPIPS | all off: identical |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    rows["all_off"] = rows[["float32_all_off", "mixed_all_off"]].min(axis=1)
    formats = {"way": "{}", "rank": "{:.0f}", "erased": "{:.1%}"}
    for name in PRECISIONS:
        formats |= {f"{name}_identical": "{:.0%}", f"{name}_levels": "{:.2f}"}
        formats |= {f"{name}_lpips": "{:.5f}"}
    formats["all_off"] = "{:.0%}"
    for _, row in rows.iterrows():
        cells = [text.format(row[name]) for name, text in formats.items()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    images: Annotated[int, typer.Option(min=1, help="Images of each concept.")] = 20,
    table_only: Annotated[bool, typer.Option("--table", help="Only print the table.")] = False,
) -> None:
    """Measure every way, write the file, print the table."""
    if not table_only:
        backbone, judge, catalogue = open_model()
        context = Context(backbone, catalogue, EVALUATED["style"], RESULTS.parent)
        originals = {precision: restored(context, images, precision) for precision in PRECISIONS}
        rows = [measure(context, judge, originals, way, images) for way in WAYS]
        write_atomically(RESULTS, pd.DataFrame(rows).to_csv(index=False).encode())
    typer.echo(table(pd.read_csv(RESULTS)))


if __name__ == "__main__":
    typer.run(main)
