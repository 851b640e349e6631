"""Chapter 04: what changes, the sum of weight changes, and erasing one concept after another."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sepme.composition import Composition
from sepme.concept import Concept
from sepme.course.checks.feedback import check, near, require
from sepme.delta import ConceptDelta
from sepme.model import Backbone

#: A relative change of the predicted noise that counts as one.
VISIBLE = 0.05


@check
def check_prediction(
    changes: Callable[[str, tuple[str, ...]], bool],
    measured: Mapping[tuple[str, tuple[str, ...]], float],
) -> None:
    """`changes(prompt, erased)` says beforehand whether the predicted noise changes visibly."""
    for (prompt, erased), amount in measured.items():
        answer, names = changes(prompt, erased), " and ".join(erased) or "nothing"
        require(isinstance(answer, bool), f"Answer True or False, not {answer!r}.")
        if answer == (amount > VISIBLE):
            continue
        require(
            not answer,
            f"You say that '{prompt}' changes with {names} erased, but it changes by "
            f"{amount:.1%} only: does it name any of what is erased?",
        )
        require(
            False,
            f"You say that '{prompt}' stays with {names} erased, but it changes by {amount:.0%}: "
            "one erased concept in the prompt is enough.",
        )


@check
@torch.no_grad()
def check_composed(
    composed: Callable[[Backbone, Sequence[ConceptDelta]], Mapping[str, Tensor]],
    backbone: Backbone,
    deltas: Sequence[ConceptDelta],
) -> None:
    """`composed(backbone, deltas)` holds W + sum_k Delta_k of every projection, by path."""
    layers = backbone.projections()
    before = {path: layer.weight.clone() for path, layer in layers.items()}
    weights = composed(backbone, deltas)
    untouched = all(torch.equal(layers[path].weight, before[path]) for path in layers)
    if not untouched:  # an honest mistake: put it right, then say so
        for path, layer in layers.items():
            layer.weight.copy_(before[path])
    require(
        untouched,
        "You changed the model's own weights: use W + Delta, not W += Delta (they are restored).",
    )
    require(isinstance(weights, Mapping), "Return a dictionary from module path to weight.")
    missing = set(layers) - set(weights)
    require(not missing, f"{len(missing)} layers are missing, {sorted(missing)[:1]} among them.")
    for path, weight in weights.items():
        change = sum(delta.dense(path) for delta in deltas).to(before[path])
        require(
            not near(weight, change),
            "You return the change alone: the original weight W has to be in the sum.",
        )
        alone = [before[path] + delta.dense(path).to(before[path]) for delta in deltas]
        require(
            len(alone) == 1 or not any(near(weight, one) for one in alone),
            "Only one delta is in the sum: each adds to what the others left.",
        )
        require(
            near(weight, before[path] + change),
            f"The weight of {path} is not W + sum_k B_k Q_k (`up @ down`).",
        )


@check
def check_next(
    erase_next: Callable[[Concept, Sequence[ConceptDelta]], ConceptDelta],
    backbone: Backbone,
    concepts: Sequence[Concept],
) -> None:
    """`erase_next(concept, earlier)` makes a delta that leaves everything before it alone."""
    earlier: list[ConceptDelta] = []
    for concept in concepts:
        digests = [delta.digest for delta in earlier]
        delta = erase_next(concept, tuple(earlier))
        require(isinstance(delta, ConceptDelta), "Return the ConceptDelta of the new concept.")
        require(delta.concept == concept.name, f"This is not a delta of '{concept.name}'.")
        require(
            set(concept.prompts) <= set(delta.forgotten),
            f"'{concept.name}' is not whole: forget all of its prompts.",
        )
        for before in earlier:
            needed = set(before.forgotten) - set(concept.prompts) - set(delta.kept)
            require(
                not needed,
                f"'{concept.name}' does not keep {sorted(needed)[:1]}, which '{before.concept}' "
                "forgot: a later delta must not disturb what an earlier one did.",
            )
            lost = set(before.kept) - set(concept.prompts) - set(delta.kept)
            require(
                not lost, f"'{concept.name}' does not keep {sorted(lost)[:1]}, which was promised."
            )
        require(
            digests == [delta.digest for delta in earlier], "The earlier deltas must stay the same."
        )
        earlier.append(delta)
    with Composition(backbone, earlier) as composition:  # refuses deltas that disturb each other
        composition.erase(*(concept.name for concept in concepts))
