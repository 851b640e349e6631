"""Many concepts in closed form: a delta for each, beside UCE's joint edit.

    python benchmarks/closed_form.py     # 1, 10 and 100 concepts; writes its table of README.md

On Stable Diffusion 1.x's text encoder and projections with random weights, and on the Atelier,
which knows 20 concepts. Edited are bare names; kept are ten other names and the empty prompt.

* **ours** is `erase` of a group by the preset `closed_form`: a delta for each concept, which keeps
  all tokens of all other prompts and comes off alone. The script checks that on every concept.
* **UCE** edits every matrix once for all concepts (Gandikota et al. 2024, arXiv 2308.14761, eq. 7).
  As published, `trainscripts/uce_sd_erase.py`: prompts are encoded one by one, and of each one row
  is used, that of the last token before the end of text. Every layer passes the rows of anchors and
  kept prompts. Then for every layer, for every edited and every kept prompt, one outer product is
  added to either of two matrices, in float32; one inverse and one product end the layer.
* **all rows**: their first code, `train-scripts/train_erase.py`, uses the rows from the last token
  on, beside the anchor's, and all rows of a kept prompt. The same loop on these rows is a lower
  bound of what it takes: that code also encodes every prompt and passes it through all layers again
  for each layer, and sums outer products one by one, where this is one product a prompt.
* **shared** is UCE as `sepme.baselines` has it: one Gram matrix, one solve, in float64.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from _machine import backbone, hardware, now, watched
from _markdown import markdown, write_between
from torch import Tensor
from torchvision.models import ResNet50_Weights

from sepme import erasure
from sepme.baselines import BASELINES
from sepme.baselines.prompts import OWN, last_subject
from sepme.composition import Composition
from sepme.concept import Concept
from sepme.delta import ConceptDelta
from sepme.model import Backbone, load_catalogue
from sepme.training import Trainer

NAMES = ResNet50_Weights.DEFAULT.meta["categories"][::9]  #: 112 of ImageNet's
KEPT = 10
#: What is timed within a method.
PARTS = {
    "encoding": (Backbone, "encode"),
    "directions": (erasure, "constrain"),
    "their aims": (erasure, "closed_form_shift"),
    "W times these": (erasure, "_applied"),
    "copies": (erasure._Increment, "delta"),
}


def ours(model: Backbone, edited: Sequence[str], kept: Sequence[str]) -> list[ConceptDelta]:
    concepts, quiet = [Concept.from_text(name) for name in edited], Trainer(progress=False)
    return erasure.erase(model, concepts, kept, erasure.PRESETS["closed_form"], trainer=quiet)


@torch.no_grad()
def published(
    model: Backbone, edited: Sequence[str], kept: Sequence[str], *, all_rows: bool = False
) -> dict[str, Tensor]:
    """UCE's loops: the new weight of every layer. Both scales are 1 and lambda is 0.5."""
    layers, scale, lam = model.projections(), 1.0, 0.5

    def rows(prompt: str, *, whole: bool) -> Tensor:
        e, last = model.encode([prompt])[0], last_subject(model, prompt)
        return e[0 if whole else last :] if all_rows else e[last : last + 1]

    c = {text: rows(text, whole=text in kept) for text in (*edited, *kept)}
    outputs = {}
    for text in dict.fromkeys(("", *kept)):
        e = rows(text, whole=True)
        outputs[text] = [layer(e) for layer in layers.values()]
    pairs = [*((text, "") for text in edited), *((text, text) for text in kept)]
    changed = {}
    for n, (path, layer) in enumerate(layers.items()):
        mat1 = lam * layer.weight
        mat2 = lam * torch.eye(layer.in_features, device=model.device)
        for text, anchor in pairs:
            v = outputs[anchor][n][: len(c[text])]
            mat1 += scale * (v.T @ c[text])
            mat2 += scale * (c[text].T @ c[text])
        changed[path] = mat1 @ torch.inverse(mat2)
    return changed


def shared(model: Backbone, edited: Sequence[str], kept: Sequence[str]) -> dict[str, Tensor]:
    """UCE's change of every layer, by `sepme.baselines`."""
    method, concept = BASELINES["uce"], Concept("all", tuple(edited))
    settings = replace(method.preset("official"), prompt=OWN)
    return dict(method.erase(model, concept, settings, keep=kept).changes)


METHODS: dict[str, Callable[..., Any]] = {
    "UCE, as published": published,
    "UCE, all rows": partial(published, all_rows=True),
    "UCE, shared": shared,
    "ours": ours,
}


def measured(method: Callable[..., Any], *arguments: Any) -> tuple[dict[str, float], Any]:
    """Seconds in all, of `PARTS`, and but for encoding; and what was made."""
    seconds: dict[str, float] = {}
    with ExitStack() as stack:
        for what, (owner, name) in PARTS.items():
            stack.enter_context(watched(seconds, what, owner, name))
        start = now()
        made = method(*arguments)
        seconds["all"] = now() - start
    return seconds | {"rest": seconds["all"] - seconds["encoding"]}, made


@torch.no_grad()
def attach_and_restore(model: Backbone, deltas: Sequence[ConceptDelta]) -> float:
    """Seconds to attach the deltas. Each changes what the layers say; off, not a bit of it."""
    names = [delta.concept for delta in deltas]
    e, paths = dict(zip(names, model.encode(names), strict=True)), model.projections()

    def said(name: str) -> str:
        outputs = [model.unet.get_submodule(path)(e[name]).flatten() for path in paths]
        return sha256(torch.cat(outputs).cpu().numpy()).hexdigest()

    original, start = {name: said(name) for name in names}, now()
    with Composition(model, deltas) as composition:
        seconds = now() - start
        for name in names:
            composition.set([name])
            assert said(name) != original[name], f"{name} is still there"
            composition.restore(name)
            assert said(name) == original[name], f"{name} did not come back"
        composition.set(names)
        assert not any(said(name) == original[name] for name in names)
        composition.restore_all()
        assert all(said(name) == original[name] for name in names)
    return seconds


def main(
    shapes: Annotated[list[str], typer.Option(help="sd14, sd21 or atelier.")] = ["sd14", "atelier"],  # noqa: B006
    concepts: Annotated[list[int], typer.Option(help="How many at once.")] = [1, 10, 100],  # noqa: B006
    repeats: Annotated[int, typer.Option(help="Every figure is the median of so many.")] = 3,
) -> None:
    rows, notes = [], [hardware()]
    for shape in shapes:
        model = backbone(shape)
        model.fingerprint  # noqa: B018 - hashing the weights, once for a pipeline, is not counted
        names = [*load_catalogue().concepts] if shape == "atelier" else NAMES
        for n in (n for n in concepts if n + KEPT <= len(names)):
            prompts, base = (names[:n], ["", *names[-KEPT:]]), 0.0
            for title, method in METHODS.items():
                runs = [measured(method, model, *prompts) for _ in range(repeats)]
                found = pd.DataFrame([seconds for seconds, _ in runs]).median()
                base = base or found["rest"]
                cells = {what: f"{found[what]:.2f}" for what in ("all", "encoding", "rest")}
                cells["rest, of UCE's"] = f"{found['rest'] / base:.2f}x"
                rows.append({"model": shape, "concepts": str(n), "method": title} | cells)
                print(rows[-1], flush=True)
            attached = attach_and_restore(model, runs[-1][1])
        parts = ", ".join(f"{what} {found[what]:.2f} s" for what in [*PARTS][1:])
        notes.append(
            f"{shape}, ours, {n}: {parts}. Attaching all of them takes {attached:.1f} s. Each was "
            "given back bit for bit."
        )
    write_between("closed_form", markdown(pd.DataFrame(rows)) + "\n\n" + "\n\n".join(notes))


if __name__ == "__main__":
    typer.run(main)
