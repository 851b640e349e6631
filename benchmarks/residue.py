"""How much residue each method leaves, and whether other samplers bring a concept back.

    python benchmarks/residue.py run methods samplers    # resumable; results/residue.csv
    python benchmarks/residue.py table                   # into README.md

A row of the file is a picture. Half of the prompts are the bare name, half name another concept too
("a painting of a boat in the style of neon"). Changes are trained for each concept alone.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from _markdown import write_between
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from erase_each import Asked, crossings, others
from torch import Tensor

from sepme._data import cache
from sepme.artefact import digest_of
from sepme.atelier.judge import Judge
from sepme.atelier.paintings import STYLES
from sepme.concept import BOTH
from sepme.delta import ConceptDelta, DenseDelta
from sepme.erasure import erase
from sepme.metrics import estimate_share, residual_share
from sepme.metrics.estimate import estimate_mean
from sepme.model import Backbone, load_catalogue
from sepme.scenes.images import ImageCache, Sampling
from sepme.scenes.methods import METHODS
from sepme.training import Trainer

RESULTS = Path(__file__).resolve().parent / "results" / "residue.csv"
CONCEPTS = ("neon", "swirl", "cubism", "boat")
CONTROLS = {"original": "*original*", "blend": "*a 30 % blend*", "neighbour": "*next of its kind*"}
#: Joint training is that of one concept here; the other variants of a method are left out.
LEFT_OUT = {"sepme-joint@catalogue", "sepme-regularised@catalogue", "esd-x-strict"}
LEFT_OUT |= {"abconcept-noise", "fmn-inverted"}
SAMPLED = ("sepme@catalogue", "sepme-faithful@paper")
SAMPLERS = {"DDIM": DDIMScheduler, "Euler": EulerDiscreteScheduler}
SAMPLERS["DPM++"] = DPMSolverMultistepScheduler
USUAL = ("DDIM", 10, 4.0)
#: Sampler, steps, guidance.
OTHERS = [("DDIM", 10, 1.0), ("DDIM", 10, 2.0), ("DDIM", 10, 8.0), ("DDIM", 50, 4.0)]
OTHERS += [("Euler", 10, 4.0), ("DPM++", 10, 4.0)]
KEY = ["sampler", "steps", "guidance", "method", "concept"]


def asked_for(concept: str, sampling: tuple) -> list[Asked]:
    """Its pictures: 26 with the usual sampling, 8 with another."""
    style, images = concept in STYLES, 26 if sampling == USUAL else 8
    return crossings(concept, ("{s}" if style else "{o}", BOTH[0]), images, 9500, style)


class Bench:
    """The model and the judge."""

    def __init__(self) -> None:
        self.model, self.catalogue, self.judge = Backbone.load(), load_catalogue(), Judge.load()
        self.usual = self.model.pipe.scheduler

    def change(self, method: str, name: str) -> ConceptDelta | DenseDelta:
        """What a method changes to erase one concept, trained now or in an earlier run."""
        row, base = METHODS[method], self.model.fingerprint
        key = digest_of({"settings": asdict(row.settings), "base": base})[:12]
        file = cache("residue", f"{method}-{name}-{key}.safetensors")
        if not file.exists():
            known = others(name)[:5] if row.protocol.name == "paper" else others(name)
            keep = row.protocol.retain(self.catalogue, [name], known) if row.retains else ()
            about = (self.model, row.protocol.forget(self.catalogue, name))
            how = {"keep": keep, "settings": row.settings, "trainer": Trainer(progress=False)}
            (row.baseline.erase if row.baseline else erase)(*about, **how).save(file)
        return (DenseDelta if row.baseline else ConceptDelta).load(file, base=base)

    def draw(self, asked: list[Asked], sampling: tuple, *changes, anchors: bool = False) -> Tensor:
        sampler, steps, guidance = sampling
        self.model.pipe.scheduler = SAMPLERS[sampler].from_config(self.usual.config)
        how = Sampling(steps=steps, guidance=guidance, bfloat16=False)
        prompts = [each.anchor if anchors else each.prompt for each in asked]
        try:
            pictures = ImageCache(self.model, cache("residue", sampler), how)
            return pictures.draw(changes, prompts, [each.seed for each in asked]) / 255
        finally:
            self.model.pipe.scheduler = self.usual

    def measure(self, method: str, name: str, sampling: tuple) -> pd.DataFrame:
        """A row for each picture."""
        asked, neighbour = (asked_for(each, sampling) for each in (name, others(name)[0]))
        original, anchor = (self.draw(asked, sampling, anchors=which) for which in (False, True))
        if method == "original":
            drawn = original
        elif method == "blend":
            drawn = torch.lerp(anchor, original, 0.3)
        elif method == "neighbour":
            drawn = self.draw(neighbour, sampling)
        else:
            drawn = self.draw(asked, sampling, self.change(method, name))
        probability, seen = self.judge.judge(drawn).of(name)
        share = residual_share(drawn, original, anchor)
        found = {"seen": seen.int(), "probability": probability, "residue": share}
        head = dict(zip(KEY, (*sampling, method, name), strict=True))
        return pd.DataFrame(head | {"prompt": [a.prompt for a in asked]} | found)


def run(bench: Bench, what: list[str]) -> None:
    """Measure what is missing; rows are appended in one write, so that two runs can share."""
    methods = [*CONTROLS, *(name for name in METHODS if name not in LEFT_OUT)]
    cells = [(USUAL, m, c) for m in methods for c in CONCEPTS] if "methods" in what else []
    if "samplers" in what:
        cells += [(s, m, c) for s in OTHERS for m in ("original", *SAMPLED) for c in CONCEPTS]
    for sampling, method, concept in cells:
        known = pd.read_csv(RESULTS)[KEY] if RESULTS.exists() else pd.DataFrame(columns=KEY)
        if (*sampling, method, concept) not in set(known.itertuples(index=False, name=None)):
            rows = bench.measure(method, concept, sampling)
            rows.to_csv(RESULTS, mode="a", header=known.empty, index=False, float_format="%.4f")
            print(*sampling, method, concept, rows.mean(numeric_only=True).round(3).to_dict())


def line(*names: str, rows: pd.DataFrame) -> str:
    """A line of a table: the share seen, probability and residue with their intervals."""
    seen = estimate_share(rows.seen.to_list())
    means = [estimate_mean(rows[value].to_list()) for value in ("probability", "residue")]
    texts = [f"{seen.mean:.0%} ({100 * seen.low:.0f}–{100 * seen.high:.0f})"]
    texts += [f"{e.mean:.2f} ({e.low:.2f} to {e.high:.2f})" for e in means]
    by = rows.groupby("concept").residue.mean()
    texts += [f"{by[name]:.2f}" if name in by else "–" for name in CONCEPTS]
    return f"| {' | '.join([*names, *texts, str(len(rows))])} |"


def tables(rows: pd.DataFrame) -> str:
    """The two tables: the methods, those that leave most first, and the samplers."""
    titles = CONTROLS | {name: method.title for name, method in METHODS.items()}
    usual = (rows[KEY[:3]] == list(USUAL)).all(axis=1)
    found = sorted(rows[usual].groupby("method"), key=lambda each: -each[1].residue.mean())
    methods = [line(titles[method], rows=part) for method, part in found]
    measured = (~usual).any()  # with other samplers too
    chosen = rows[rows.method.isin(("original", *SAMPLED)) & measured]
    samplers = [
        line(f"{sampler}, {steps} steps, guidance {g:g}", titles[method], rows=part)
        for (sampler, steps, g, method), part in chosen.groupby(KEY[:4], sort=False)
    ]
    values = ["seen", "probability", "residue", *CONCEPTS, "pictures"]
    texts = []
    for title, first, lines in (
        ("Residue of each method [retain set]", ["method"], methods),
        ("Other samplers [retain set]", ["drawn with", "method"], samplers),
    ):
        if not lines:
            continue
        rule = "|" + "---|" * len(first) + "--:|" * len(values)
        texts += [f"### {title}", "\n".join([f"| {' | '.join(first + values)} |", rule, *lines])]
    return "\n\n".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("what", nargs="*", default=["methods", "samplers"])
    options = parser.parse_args()
    if options.command == "table":
        return write_between("residue", tables(pd.read_csv(RESULTS)))
    return run(Bench(), options.what)


if __name__ == "__main__":
    main()
