"""What a training step costs, beside the published one: seconds and peak memory.

    python benchmarks/training_step.py           # the shipped model; writes its table of README.md
    python benchmarks/training_step.py --shapes atelier --shapes sd14    # 1.x's shape too: 16 GB

Every figure comes from a process of its own, on one UNet and one batch. The published step is the
paper's, written down plainly: a dense coefficient matrix of every layer over an elimination basis
of the null space, `Delta = (w x beta S)^T`, four passes of the UNet (two of them with a gradient),
and Adam over all coefficients. It holds one UNet; a code that keeps a copy needs that much more.
Its weights lie as they are loaded, and its layers are torch's and diffusers' own. For ours those of
a large model lie with the channels last, and its layers are those of `sepme._layers`.
The model is in float32 but where "bfloat16" is said; the increments are in float32 everywhere.
"""

import json
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from _machine import backbone, hardware, now
from _markdown import markdown, write_between

from sepme._layers import LEAN
from sepme.concept import Concept
from sepme.correlation import correlation_loss
from sepme.erasure import PRESETS, erase
from sepme.model import Backbone
from sepme.nullspace import null_space
from sepme.training import Trainer

CONCEPT = Concept("neon", ("neon",))
KEEP = ("swirl", "cubism", "mosaic", "ink", "popart")
#: The settings of our steps. The pool is four batches.
OURS = {
    "faithful": {},
    "faithful, pool": {"pool": 4},
    "faithful, pool, no lambda": {"pool": 4, "lam": 0.0},
    "faithful, pool, bfloat16": {"pool": 4},
}
STEPS = 12  #: timed, after one that warms up


def published(model: Backbone, batch: int, done: Callable[[], None]) -> None:
    """Steps of the paper's training (method section and eq. 2, 9, 10)."""
    settings = PRESETS["paper"]
    model.unet.to(memory_format=torch.contiguous_format)
    stock = {ours: theirs for theirs, ours in LEAN.items()}
    for module in model.unet.modules():
        module.__class__ = stock.get(type(module), type(module))
    rows = model.encode(["", *KEEP]).flatten(0, 1)
    S = null_space(rows, settings.keep_rtol, "elimination").basis.T.to(rows)  # [free, d_in]
    theta = {path: layer.weight for path, layer in model.projections().items()}
    w = {
        p: torch.zeros(len(W), len(S), device=W.device, requires_grad=True)
        for p, W in theta.items()
    }
    optimiser = torch.optim.Adam(w.values(), settings.learning_rate)
    x_0 = model.generate(CONCEPT.prompts * batch, output="latents")
    c, c_0 = (model.encode([prompt] * batch) for prompt in ("neon", ""))
    for _ in range(STEPS + 1):
        t = torch.randint(model.timesteps, (batch,)).to(x_0.device)
        x_t = model.add_noise(x_0, torch.randn_like(x_0), t)
        with torch.no_grad():
            r0 = model.epsilon(x_t, t, c) - model.epsilon(x_t, t, c_0)
        changes = {path: w[path] @ (settings.beta * S) for path in theta}
        changed = {path: theta[path] + changes[path] for path in theta}
        r = model.epsilon(x_t, t, c, changed) - model.epsilon(x_t, t, c_0, changed)
        norm = torch.stack([change.abs().sum() for change in changes.values()]).mean()
        loss = correlation_loss(r, r0).mean() + settings.lam * norm
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        done()


def ours(model: Backbone, batch: int, done: Callable[[], None], options: dict[str, Any]) -> None:
    """Steps of `erase`, which is what is measured."""
    options = options | {"pool": options.get("pool", 0) * batch}
    settings = replace(
        PRESETS["faithful"], batch=batch, images=batch, iterations=STEPS + 1, tau=-9.0
    )
    watch = Trainer(callback=lambda _step: done(), progress=False)
    erase(model, CONCEPT, KEEP, replace(settings, **options), trainer=watch)


def measure(method: str, shape: str, batch: int) -> dict[str, float]:
    """Seconds a step (the median) and peak memory in GB, of this process."""
    dtype = torch.bfloat16 if method.endswith("bfloat16") else torch.float32
    model, times = backbone(shape, dtype=dtype), []
    loaded = _peak()

    def done() -> None:
        times.append(now())

    if method == "published":
        published(model, batch, done)
    else:
        ours(model, batch, done, OURS[method])
    seconds = median(b - a for a, b in pairwise(times))
    return {"seconds": seconds, "peak": _peak(), "above": _peak() - loaded}


def _peak() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 2**30 if platform.system() == "Darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main(
    shapes: Annotated[list[str], typer.Option(help="atelier, sd14 or sd21.")] = ["atelier"],  # noqa: B006
    batches: Annotated[list[int], typer.Option(help="Images in a batch.")] = [1, 8],  # noqa: B006
    child: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    if child:
        print(json.dumps(measure(child, shapes[0], batches[0])))
        return
    rows = []
    for shape in shapes:
        for batch in batches if shape == "atelier" else batches[:1]:
            found = {}
            for method in ("published", *OURS):
                options = ["--child", method, "--shapes", shape, "--batches", str(batch)]
                ran = subprocess.run(
                    [sys.executable, __file__, *options], capture_output=True, text=True
                )
                if ran.returncode:
                    raise SystemExit(ran.stderr)
                found[method] = one = json.loads(ran.stdout.splitlines()[-1])
                base = found["published"]
                rows.append(
                    {
                        "shape": shape,
                        "batch": str(batch),
                        "step": method,
                        "seconds": f"{one['seconds']:.3f}",
                        "faster": f"{base['seconds'] / one['seconds']:.1f}x",
                        "peak memory, GB": f"{one['peak']:.2f}",
                        "above the model, GB": f"{one['above']:.2f}",
                        "share of it": f"{one['above'] / base['above']:.2f}",
                    }
                )
                print(rows[-1], flush=True)
    write_between("training_step", f"{markdown(pd.DataFrame(rows))}\n\n{hardware()}")


if __name__ == "__main__":
    typer.run(main)
