"""What every chapter opens with: the model in use, the concepts it names, and its claims."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from IPython import display as shown
from IPython.display import HTML, DisplayHandle, display
from matplotlib import pyplot as plt
from torch import Tensor

from sepme._data import cache
from sepme._words import in_code, in_html, in_markdown
from sepme.artefact import same_model
from sepme.atelier.judge import OBJECT_NAMES, STYLE_NAMES, Judge
from sepme.composition import shipped_deltas
from sepme.concept import Catalogue, Concept, catalogue_of, parse_names
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, ErasureSettings, ErasureStep
from sepme.errors import SepmeError
from sepme.jobs.tasks import erase_into, plan
from sepme.model import ATELIER, Backbone, load_catalogue
from sepme.plots import correlation_decay
from sepme.scenes.run import read_manifest
from sepme.scenes.tables import RESULTS

__all__ = [
    "Claims",
    "LiveDecay",
    "Markdown",
    "banner",
    "choose_concepts",
    "deltas_of",
    "is_shipped",
    "of_kind",
    "open_model",
    "seen",
    "with_tolerance",
]

#: Deltas that a chapter had to make for a model that brings none.
CACHE = cache("deltas")
#: What the paper erases (0 to 5) and never erases (6 to 8), for Stable Diffusion v1.4.
PAPER_STYLES = (
    *("Cezanne", "Van Gogh", "Picasso", "Jackson Pollock", "Caravaggio", "Keith Haring"),
    *("Kelly McKernan", "Tyler Edlin", "Kilian Eng"),
)
PAPER_OBJECTS = (
    *("chain saw", "church", "gas pump", "tench", "garbage truck", "english springer"),
    *("golf ball", "parachute", "french horn"),
)


# ------------------------------------------------------------------ the model and its concepts
@dataclass(frozen=True)
class ChapterCatalogue(Catalogue):
    """The concepts of a chapter, and what the reader chose to keep, and up to which tolerance."""

    keep: tuple[str, ...] = ()
    keep_rtol: float | None = None

    def kept_prompts(self, forget: Sequence[Concept]) -> tuple[str, ...]:
        """The retain set: the catalogue's, and the reader's prompts that are not forgotten."""
        forgotten = {prompt for concept in forget for prompt in concept.prompts}
        more = (prompt for prompt in self.keep if prompt not in forgotten)
        return tuple(dict.fromkeys((*super().kept_prompts(forget), *more)))


def open_model(
    model: str | Path | Backbone | None = None,
    *,
    styles: str | None = None,
    objects: str | None = None,
    keep: str | None = None,
    keep_rtol: float | str | None = None,
) -> tuple[Backbone, Judge | None, ChapterCatalogue]:
    """The model of a chapter, the judge that comes with it, if any, and its concepts.

    Args:
        model: what `Backbone.load` takes, or what it gave; by default the environment variable
            SEPME_MODEL, and without one the model that ships with the project.
        styles, objects: names with commas between them, like "Van Gogh, Monet"; by default
            SEPME_STYLES and SEPME_OBJECTS. They replace the model's own catalogue. A model without
            a catalogue gets the concepts that the paper erases from Stable Diffusion v1.4.
        keep: more prompts for the retain set of every delta, with commas between them; by default
            SEPME_KEEP. The empty prompt and all prompts of the other concepts belong to it anyway,
            so name few concepts where room is short.
        keep_rtol: tolerance of the null space of what is kept, relative to the length of a kept
            token; by default SEPME_KEEP_RTOL, and without one each preset's own.

    Raises:
        SepmeError: a tolerance that is no number from 0 to below 1; see also `Backbone.load`,
            `Judge.load`, `Catalogue.load` and `catalogue_of`.
    """
    model = model or os.environ.get("SEPME_MODEL") or None
    styles = styles or os.environ.get("SEPME_STYLES")
    objects = objects or os.environ.get("SEPME_OBJECTS")
    keep = keep or os.environ.get("SEPME_KEEP")
    rtol = _tolerance(os.environ.get("SEPME_KEEP_RTOL") if keep_rtol is None else keep_rtol)
    loaded = isinstance(model, Backbone)
    catalogue = None if loaded or styles or objects else load_catalogue(model)
    if catalogue is None:
        catalogue = catalogue_of(
            parse_names(styles) if styles else PAPER_STYLES,
            parse_names(objects) if objects else PAPER_OBJECTS,
        )
    backbone = model if loaded else Backbone.load(model)
    pd.options.display.html.use_mathjax = False  # a name like "Li$a" in a table is no formula
    weights = None if loaded else (Path(model) if model else ATELIER) / "judge.safetensors"
    judge = Judge.load(weights) if weights and weights.is_file() else None
    more = tuple(parse_names(keep)) if keep else ()
    return backbone, judge, ChapterCatalogue(catalogue.concepts, catalogue.aliases, more, rtol)


def _tolerance(given: float | str | None) -> float | None:
    """The tolerance as a number, or None where none was given."""
    if given is None or given == "":
        return None
    with suppress(ValueError):
        if 0 <= (rtol := float(given)) < 1:
            return rtol
    raise SepmeError(f"The tolerance {given!r} is not possible: give a number like 0.02.")


def with_tolerance(
    presets: Mapping[str, ErasureSettings], catalogue: ChapterCatalogue
) -> Mapping[str, ErasureSettings]:
    """The presets with the tolerance that was chosen for `open_model`, or just as they are."""
    if catalogue.keep_rtol is None:
        return presets
    return {name: replace(one, keep_rtol=catalogue.keep_rtol) for name, one in presets.items()}


def choose_concepts(catalogue: Catalogue, **named: tuple[str, ...]) -> dict[str, str]:
    """A concept of the catalogue for each that the text names: `{"neon": "Van Gogh", ...}`.

    A concept of that name stands for itself; otherwise the next of its kind that is still free
    stands for it.

    Args:
        named: kind to names, like `style=("neon", "ink"), object=("boat",)`.

    Raises:
        SepmeError: the catalogue has fewer concepts of a kind than the text names.
    """
    chosen: dict[str, str] = {}
    for kind, names in named.items():
        known = of_kind(catalogue, kind)
        if len(known) < len(names):
            raise SepmeError(
                f"This chapter needs {len(names)} concepts of the kind '{kind}' and the catalogue "
                f"has {len(known)}: name as many in SEPME_{kind.upper()}S, with commas between."
            )
        others = iter([name for name in known if name not in names])
        chosen |= {name: name if name in known else next(others) for name in names}
    return chosen


def of_kind(catalogue: Catalogue, kind: str) -> list[str]:
    """The names of all concepts of a kind, in the catalogue's order."""
    return [concept.name for concept in catalogue.concepts.values() if concept.kind == kind]


def deltas_of(
    backbone: Backbone, catalogue: ChapterCatalogue, names: Sequence[str]
) -> dict[str, ConceptDelta]:
    """The deltas beside the model, and those of `names`, which are erased now if missing.

    A delta that is erased here keeps the catalogue's retain set. It is written to the user's cache
    folder, where the next call finds it.
    """
    found = shipped_deltas(backbone)
    missing = [catalogue[name] for name in names if name not in found]
    if missing:
        settings = with_tolerance(PRESETS, catalogue)["default"]
        tasks = plan(missing, (), catalogue, settings)
        folder = CACHE / backbone.fingerprint[:12]
        files = erase_into(folder, tasks, backbone, overwrite=True, say=lambda _: None)
        found |= {delta.concept: delta for delta in map(ConceptDelta.load, files)}
    return found


# ------------------------------------------------------------------ what it says of itself
class Markdown(shown.Markdown):
    """Text of a cell. HTML in it, which can only come from a name, is shown and not obeyed."""

    def __init__(self, text: str) -> None:
        super().__init__(re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text))


def is_shipped(backbone: Backbone) -> bool:
    """Whether the chapters were written about this very model, whatever its folder is called."""
    measured = read_manifest(RESULTS / "scenes_style.csv")["fingerprint"]
    return same_model(backbone.fingerprint, measured)


def banner(
    backbone: Backbone,
    chosen: Mapping[str, str] | None = None,
    catalogue: ChapterCatalogue | None = None,
    *,
    minutes: float,
    gigabytes: float,
    stand_in: bool = False,
) -> shown.Markdown:
    """The model in use, what the reader chose for it, and what the chapter costs.

    Args:
        stand_in: the model has random weights, and the chapter was written about it.
    """
    whose = (
        "the small model that ships with sepme. The text is about this model; none of its figures "
        "is the paper's."
        if is_shipped(backbone)
        else "a model of your own. The text was written about the Atelier's pictures, not these."
    )
    if stand_in:
        whose = (
            "a shape with random weights. What it draws is noise; what erasing costs, what stays "
            "the same and what is exact are as with real weights."
        )
    lines = [
        f"**The model in use: {in_code(backbone.name)}**, {whose}",
        f"On {backbone.device.type}, {backbone.steps} sampling steps, guidance "
        f"{backbone.guidance:g}, weights `{backbone.fingerprint[:12]}`.",
        f"Expect about {minutes:g} minute{'s' * (minutes != 1)} and {gigabytes:g} GB with "
        f"{'this model' if stand_in else 'the Atelier'} on two CPU cores.",
    ]
    read = [f"*{in_markdown(new)}* for {old}" for old, new in (chosen or {}).items() if new != old]
    if read:
        lines.append("Where the text names the Atelier's concepts, read " + ", ".join(read) + ".")
    lines += _own_choices(catalogue)
    return shown.Markdown("  \n".join(f"> {line}" for line in lines))


def _own_choices(catalogue: ChapterCatalogue | None) -> list[str]:
    """A sentence for the retain set and one for the tolerance, where the reader chose them."""
    lines = []
    if catalogue and catalogue.keep:
        more = ", ".join(f"*{in_markdown(prompt)}*" for prompt in catalogue.keep)
        lines.append(f"Your retain set: all prompts of the other concepts, and {more}.")
    if catalogue and catalogue.keep_rtol is not None:
        lines.append(f"Your tolerance of the null space: {catalogue.keep_rtol:g}.")
    return lines


class Claims:
    """What a chapter says about the model, checked in the cell that shows it.

    On the shipped model, with the concepts, the retain set and the tolerance of the text, a claim
    that does not hold ends the notebook. Otherwise it is a finding: it is shown below the cell and
    in `table`. What mathematics promises for every model belongs into an `assert` instead.

    Attributes:
        made: each claim in words, and whether it held; None where it could not be checked.
    """

    def __init__(
        self,
        backbone: Backbone,
        chosen: Mapping[str, str],
        catalogue: ChapterCatalogue | None = None,
    ) -> None:
        as_written = all(old == new for old, new in chosen.items()) and not _own_choices(catalogue)
        self.strict = is_shipped(backbone) and as_written
        self.made: list[tuple[str, bool | None]] = []

    def __call__(self, what: str, holds: bool | Tensor | None) -> None:
        """State a claim; raise AssertionError if it does not hold where the text must be right.

        Args:
            holds: None, or a tensor without entries, if there is nothing to check it with: a model
                of your own has no judge.
        """
        entries = torch.as_tensor([] if holds is None else holds)
        holds = bool(entries.all()) if entries.numel() else None
        self.made.append((what, holds))
        if holds is False:
            if self.strict:
                raise AssertionError(f"The text says that {what}, and here that is not so.")
            otherwise = f"> **Otherwise on this model.** The text says that {in_markdown(what)}."
            display(shown.Markdown(otherwise))

    def table(self) -> HTML:
        """Every claim of the chapter, and whether it holds for the model in use."""
        words = {True: "yes", False: "NO", None: "not run"}
        rows = [(in_html(what), words[holds]) for what, holds in self.made]
        frame = pd.DataFrame(rows, columns=["the text says that", "holds"])
        with pd.option_context("display.max_colwidth", None):
            table = frame.to_html(index=False, justify="left", escape=False)
        run, told = [holds for _, holds in self.made if holds is not None], []
        if run:
            told = [f"{sum(run)} of {len(run)} claims of this chapter hold for this model."]
        if left := len(self.made) - len(run):
            told += [f"{left} could not be checked with this model, and were not run."]
        return HTML(f"<p>{' '.join(told)}</p>{table}")


# ------------------------------------------------------------------ what it shows
def seen(judge: Judge | None, images: Tensor) -> list[str]:
    """What the judge sees in each picture, as "style, object"; without a judge, nothing."""
    if judge is None:
        return [""] * len(images)
    verdict = judge.judge(images)
    pairs = zip(verdict.style.tolist(), verdict.object.tolist(), strict=True)
    return [f"{STYLE_NAMES[style]}, {OBJECT_NAMES[thing]}" for style, thing in pairs]


class LiveDecay:
    """A callback for `sepme.erasure.erase` that draws the correlation during the training.

    Attributes:
        steps: every `Step` of the training so far.
    """

    def __init__(self, concept: str, *, tau: float | None = None, every: int = 5) -> None:
        self.concept, self.tau, self.every = concept, tau, every
        self.steps: list[ErasureStep] = []
        self._place: DisplayHandle | None = None

    def __call__(self, step: ErasureStep) -> None:
        self.steps.append(step)
        if step.iteration % self.every == 0:
            self.draw()

    def draw(self) -> None:
        """Draw the steps so far in the place of the last drawing."""
        figure = correlation_decay({self.concept: self.steps}, tau=self.tau).figure
        plt.close(figure)  # else the notebook would show it once more at the end of the cell
        if self._place is None:
            self._place = display(figure, display_id=True)
        else:
            self._place.update(figure)
