"""What every chapter opens with: the model that speaks, the concepts it is about, its claims."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from IPython.display import DisplayHandle, Markdown, display
from matplotlib import pyplot as plt
from torch import Tensor

from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Judge
from sepme.concept import PAPER_OBJECTS, PAPER_STYLES, Catalogue, catalogue_of, parse_names
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, Step
from sepme.errors import SepmeError
from sepme.model import ATELIER, Backbone, load_catalogue
from sepme.plots import correlation_decay
from sepme.tasks import Job, erase_into, shipped_deltas

#: Deltas that a chapter had to make for a model that brings none.
CACHE = ATELIER.parent.parent / "build" / "deltas"


# ------------------------------------------------------------------ the model and its concepts
def open_model(
    model: str | Path | None = None, *, styles: str | None = None, objects: str | None = None
) -> tuple[Backbone, Judge | None, Catalogue]:
    """The model that a chapter speaks about, the judge that it brings, if any, and its concepts.

    A model whose folder holds no `catalogue.json` gets a catalogue of free words, by default those
    that the paper erases from Stable Diffusion v1.4.

    Args:
        model: a diffusers directory or a hub id; by default what the environment variable
            SEPME_MODEL says, and without one the model that ships with the project.
        styles, objects: the words, with commas between them, like "Van Gogh, Monet"; by default
            what SEPME_STYLES and SEPME_OBJECTS say. They come before the model's own catalogue.

    Raises:
        SepmeError: see `Backbone.load`, `Judge.load`, `Catalogue.load` and `catalogue_of`.
    """
    model = model or os.environ.get("SEPME_MODEL") or None
    styles = styles or os.environ.get("SEPME_STYLES")
    objects = objects or os.environ.get("SEPME_OBJECTS")
    catalogue = None if styles or objects else load_catalogue(model)
    if catalogue is None:
        catalogue = catalogue_of(
            parse_names(styles) if styles else PAPER_STYLES,
            parse_names(objects) if objects else PAPER_OBJECTS,
        )
    backbone = Backbone.load(model)
    weights = (Path(model) if model else ATELIER) / "judge.safetensors"
    judge = Judge.load(weights) if weights.is_file() else None
    return backbone, judge, catalogue


def cast(catalogue: Catalogue, **parts: tuple[str, ...]) -> dict[str, str]:
    """Which concepts play the parts of those that the text names: `{"neon": "Van Gogh", ...}`.

    Where the catalogue has a concept of that name it plays itself; otherwise the next of its kind
    that has no part yet. The order is that of the arguments.

    Args:
        parts: kind to names, like `style=("neon", "ink"), object=("boat",)`.

    Raises:
        SepmeError: the catalogue has fewer concepts of a kind than there are parts.
    """
    given: dict[str, str] = {}
    for kind, names in parts.items():
        known = of_kind(catalogue, kind)
        if len(known) < len(names):
            raise SepmeError(
                f"This chapter needs {len(names)} concepts of the kind '{kind}' and the catalogue "
                f"has {len(known)}: name as many in SEPME_{kind.upper()}S, with commas between."
            )
        others = iter([name for name in known if name not in names])
        given |= {name: name if name in known else next(others) for name in names}
    return given


def of_kind(catalogue: Catalogue, kind: str) -> list[str]:
    """The names of all concepts of a kind, in the catalogue's order."""
    return [concept.name for concept in catalogue.concepts.values() if concept.kind == kind]


def deltas_of(
    backbone: Backbone, catalogue: Catalogue, names: Sequence[str]
) -> dict[str, ConceptDelta]:
    """The deltas beside the model and those of `names`, erased now where there is none.

    Each keeps everything else that the catalogue knows. What is erased here is written to
    `build/deltas`, where the next call finds it again.

    Raises:
        SepmeError: see `shipped_deltas` and `sepme.tasks.erase_into`.
    """
    found = shipped_deltas(backbone)
    missing = [catalogue[name] for name in names if name not in found]
    folder = CACHE / backbone.fingerprint[:12]
    jobs = [
        Job((concept,), catalogue.kept_prompts([concept]), PRESETS["default"])
        for concept in missing
    ]
    files = erase_into(folder, jobs, backbone, overwrite=True, say=lambda _: None) if jobs else []
    return found | {delta.concept: delta for delta in map(ConceptDelta.load, files)}


# ------------------------------------------------------------------ what it says of itself
def is_shipped(backbone: Backbone) -> bool:
    """Whether the chapters were written about this very model."""
    return backbone.name == ATELIER.name


def banner(
    backbone: Backbone, parts: Mapping[str, str] | None = None, *, minutes: float, gigabytes: float
) -> Markdown:
    """Which model speaks in this notebook, and how long and large it is on the Atelier.

    Args:
        parts: which concept plays which part, from `cast`.
    """
    own = is_shipped(backbone)
    whose = (
        "the small model that ships with sepme. What follows is about this model; "
        "none of its figures is the paper's."
        if own
        else "a model of your own. The text was written about the Atelier's pictures, not these."
    )
    lines = [
        f"**The model that speaks here: `{backbone.name}`**, {whose}",
        f"On {backbone.device.type}, {backbone.steps} sampling steps, guidance "
        f"{backbone.guidance:g}, weights `{backbone.fingerprint[:12]}`.",
        f"Expect about {minutes:g} minutes and {gigabytes:g} GB"
        + (" on two CPU cores." if own else " with the Atelier on two CPU cores."),
    ]
    played = [f"*{new}* for {old}" for old, new in (parts or {}).items() if new != old]
    if played:
        lines.append("Where the text names the Atelier's concepts, read " + ", ".join(played) + ".")
    return Markdown("  \n".join(f"> {line}" for line in lines))


class Claims:
    """What a chapter says about the model, checked where it is said.

    On the shipped model and its concepts, which the text was written about, a claim that does not
    hold ends the notebook. On a model of your own it is a finding: it is shown below the cell, and
    counted in `table`. What mathematics promises for every model belongs into an `assert` instead.

    Attributes:
        made: each claim in words, and whether it held.
    """

    def __init__(self, backbone: Backbone, parts: Mapping[str, str]) -> None:
        as_written = all(part == player for part, player in parts.items())
        self.strict = is_shipped(backbone) and as_written
        self.made: list[tuple[str, bool]] = []

    def __call__(self, what: str, holds: bool | Tensor) -> None:
        """State a claim.

        Raises:
            AssertionError: it does not hold, on the shipped model.
        """
        holds = bool(torch.as_tensor(holds).all())
        self.made.append((what, holds))
        if not holds:
            if self.strict:
                raise AssertionError(f"The text says that {what}, and here that is not so.")
            display(Markdown(f"> **Otherwise on this model.** The text says that {what}."))

    def table(self) -> Markdown:
        """Every claim of the chapter, and whether it holds for the model that speaks."""
        held = sum(holds for _, holds in self.made)
        rows = [f"| {what} | {'yes' if holds else '**no**'} |" for what, holds in self.made]
        return Markdown(
            f"{held} of {len(self.made)} claims of this chapter hold for this model.\n\n"
            "| the text says that | holds |\n|---|---|\n" + "\n".join(rows)
        )


# ------------------------------------------------------------------ what it shows
def seen(judge: Judge | None, images: Tensor) -> list[str]:
    """What the judge sees in each picture, as "style, object"; without a judge, nothing."""
    if judge is None:
        return [""] * len(images)
    verdict = judge.judge(images)
    pairs = zip(verdict.style.tolist(), verdict.object.tolist(), strict=True)
    return [f"{STYLE_NAMES[style]}, {OBJECT_NAMES[thing]}" for style, thing in pairs]


class LiveDecay:
    """A callback for `sepme.erasure.erase` that draws the correlation's decay while it happens.

    Attributes:
        steps: every `Step` of the training so far.
    """

    def __init__(self, concept: str, *, tau: float | None = None, every: int = 5) -> None:
        self.concept, self.tau, self.every = concept, tau, every
        self.steps: list[Step] = []
        self._place: DisplayHandle | None = None

    def __call__(self, step: Step) -> None:
        self.steps.append(step)
        if step.iteration % self.every == 0:
            self.draw()

    def draw(self) -> None:
        """Draw what there is, in the place of the drawing before."""
        figure = correlation_decay({self.concept: self.steps}, tau=self.tau).figure
        plt.close(figure)  # else the notebook would show it once more at the end of the cell
        if self._place is None:
            self._place = display(figure, display_id=True)
        else:
            self._place.update(figure)
