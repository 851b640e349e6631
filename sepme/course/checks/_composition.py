"""Chapter 04: what changes, the sum of weight changes, and erasing one concept after another."""

from collections.abc import Mapping, Sequence

import torch

from sepme.composition import Composition
from sepme.concept import Concept
from sepme.course.checks._reply import Answer, checks, compare, require
from sepme.delta import ConceptDelta
from sepme.model import Backbone

#: A relative change of the predicted noise that counts as one.
VISIBLE = 0.05


@checks
def changes(answer: Answer, measured: Mapping[tuple[str, tuple[str, ...]], float]) -> None:
    """`changes(prompt, erased)` says beforehand whether the predicted noise changes visibly."""
    for (prompt, erased), amount in measured.items():
        said = answer(prompt, erased)
        require(isinstance(said, bool), f"Answer True or False, not {said!r}.")
        told = f"With {' and '.join(erased) or 'nothing'} erased '{prompt}' changes by {amount:.1%}"
        require(amount > VISIBLE or not said, f"{told} only: does it name any of what is erased?")
        enough = f"{told}: one erased concept in the prompt is enough."
        require(amount <= VISIBLE or said, enough)


@checks
@torch.no_grad()
def composed(answer: Answer, model: Backbone, deltas: Sequence[ConceptDelta]) -> None:
    """`composed(backbone, deltas)` holds W + sum_k Delta_k of every projection, by path."""
    layers = model.projections()
    before = {path: layer.weight.clone() for path, layer in layers.items()}
    weights = answer(model, deltas)
    untouched = all(torch.equal(layers[path].weight, before[path]) for path in layers)
    for path, layer in layers.items():
        layer.weight.copy_(before[path])
    require(untouched, "You changed the model's own weights (they are restored): use W + Delta.")
    require(isinstance(weights, Mapping), "Return a dictionary from module path to weight.")
    missing = sorted(set(layers) - set(weights))
    require(not missing, f"{len(missing)} layers are missing, {missing[:1]} among them.")
    for path, weight in weights.items():
        W, each = before[path], [delta.dense(path).to(before[path]) for delta in deltas]
        mistakes = {
            "You return the change alone: the original weight W has to be in the sum.": sum(each),
            "Only one delta is in the sum, the first: add them all.": W + each[0],
            "Only one delta is in the sum, the last: add them all.": W + each[-1],
        }
        otherwise = f"The weight of {path} is not W + sum_k B_k Q_k (`up @ down`)."
        compare(weight, W + sum(each), mistakes, otherwise)


@checks
def erase_next(answer: Answer, model: Backbone, concepts: Sequence[Concept]) -> None:
    """`erase_next(concept, earlier)` makes a delta that leaves everything before it alone."""
    earlier: list[ConceptDelta] = []
    for concept in concepts:
        name, own = concept.name, set(concept.prompts)
        digests = [delta.digest for delta in earlier]
        delta = answer(concept, tuple(earlier))
        require(isinstance(delta, ConceptDelta), "Return the ConceptDelta of the new concept.")
        require(delta.concept == name, f"This is not a delta of '{name}'.")
        whole = own <= set(delta.forgotten)
        require(whole, f"'{name}' is not whole: forget all of its prompts.")
        for before in earlier:
            lost = sorted(set(before.forgotten) - own - set(delta.kept))[:1]
            require(not lost, f"'{name}' does not keep {lost}, which '{before.concept}' forgot.")
            lost = sorted(set(before.kept) - own - set(delta.kept))[:1]
            require(not lost, f"'{name}' does not keep {lost}, which was promised.")
        same = digests == [delta.digest for delta in earlier]
        require(same, "The earlier deltas must stay the same.")
        earlier.append(delta)
    with Composition(model, earlier) as composition:  # refuses deltas that disturb each other
        composition.erase(*(concept.name for concept in concepts))
