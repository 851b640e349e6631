"""Chapter 00: other words for a concept, and the price of tolerance."""

from collections.abc import Mapping

from sepme.concept import Concept
from sepme.course.checks._reply import Answer, checks, compare, require
from sepme.model import Backbone
from sepme.nullspace import constrain


@checks
def with_alias(answer: Answer, concept: Concept, alias: str) -> None:
    """`with_alias(concept, alias)` forgets every prompt in both words, to the same anchors."""
    wider = answer(concept, alias)
    require(isinstance(wider, Concept), "Return a Concept: Concept(name, prompts, kind, anchors).")
    require(wider.name == concept.name, f"The concept should still be called '{concept.name}'.")
    lost = sorted(set(concept.prompts) - set(wider.prompts))[:1]
    require(not lost, f"{lost} is no longer forgotten: add to the prompts, keep all.")
    wanted = [prompt.replace(concept.name, alias) for prompt in concept.prompts]
    missing = [prompt for prompt in wanted if prompt not in wider.prompts][:1]
    require(not missing, f"{missing} is missing: say every prompt with '{alias}' too.")
    anchors = dict(zip(wider.prompts, wider.anchors, strict=True))
    for prompt, anchor in zip([*concept.prompts, *wanted], concept.anchors * 2, strict=True):
        told = f"'{prompt}' should become '{anchor}', not '{anchors[prompt]}'"
        require(anchors[prompt] == anchor, f"{told}: anchors stand in the order of the prompts.")


@checks
def price(answer: Answer, model: Backbone, concept: Concept, keep: tuple) -> None:
    """`price(rtol)` gives the dimensions taken, the rank of Q and the relative leakage."""
    for rtol in (0.05, 0.8):
        paid, told = answer(rtol), f"At rtol = {rtol:g}"
        wanted = isinstance(paid, Mapping) and set(paid) == {"taken", "rank", "leakage"}
        require(wanted, "Return a dictionary with the keys leakage, rank, taken.")
        settings = {"keep_rtol": rtol, "concept_rtol": 0.1, "method": "damped"}  # the default's
        true = constrain(model, concept, keep, **settings, quiet=True)
        mistakes = {"You counted the free dimensions: `taken` is the rank.": true.space.free}
        right = f"{told} the kept prompts take {true.space.rank} dimensions, not {paid['taken']}."
        compare(paid["taken"], true.space.rank, mistakes, right)
        right = f"{told} the delta has rank {true.rank}, not {paid['rank']}: count the rows of Q."
        compare(paid["rank"], true.rank, {}, right)
        longest = (true.kept_rows @ true.basis.T).norm(dim=1).max()
        mistakes = {"That is a leak's length, not its part of the token: divide by ||a||.": longest}
        found = f"{true.leakage:.3g}, not {float(paid['leakage']):.3g}"
        right = f"{told} the largest ||Q a|| / ||a|| over the kept tokens is {found}."
        compare(paid["leakage"], true.leakage, mistakes, right, tolerance=1e-2)
