"""Chapter 00: other words for a concept, and the price of tolerance."""

from collections.abc import Callable, Mapping

from sepme.concept import Concept
from sepme.course.checks.feedback import check, near, require
from sepme.model import Backbone
from sepme.nullspace import constrain

#: Directions weaker than this are left out, as the default preset does.
CONCEPT_RTOL = 0.1
FIGURES = {"taken", "rank", "leakage"}


@check
def check_with_alias(
    with_alias: Callable[[Concept, str], Concept], concept: Concept, alias: str
) -> None:
    """`with_alias(concept, alias)` forgets every prompt in both words, to the same anchors."""
    wider = with_alias(concept, alias)
    require(isinstance(wider, Concept), "Return a Concept: Concept(name, prompts, kind, anchors).")
    require(wider.name == concept.name, f"The concept should still be called '{concept.name}'.")
    lost = set(concept.prompts) - set(wider.prompts)
    require(not lost, f"{sorted(lost)[:1]} is no longer forgotten: add to the prompts, keep all.")
    wanted = [prompt.replace(concept.name, alias) for prompt in concept.prompts]
    missing = [prompt for prompt in wanted if prompt not in wider.prompts]
    require(not missing, f"{missing[:1]} is missing: say every prompt with '{alias}' too.")
    pairs = zip([*concept.prompts, *wanted], concept.anchors * 2, strict=True)
    became = dict(zip(wider.prompts, wider.anchors, strict=True))
    for prompt, anchor in pairs:
        require(
            became[prompt] == anchor,
            f"'{prompt}' should become '{anchor}', not '{became[prompt]}': anchors stand in the "
            "order of the prompts.",
        )


@check
def check_price(
    price: Callable[[float], Mapping[str, float]], backbone: Backbone, concept: Concept, keep: tuple
) -> None:
    """`price(rtol)` gives the dimensions taken, the rank of Q and the relative leakage."""
    for rtol in (1e-3, 3e-2):
        answer = price(rtol)
        require(
            isinstance(answer, Mapping) and set(answer) == FIGURES,
            f"Return a dictionary with the keys {', '.join(sorted(FIGURES))}.",
        )
        room = constrain(
            *(backbone, concept, keep),
            keep_rtol=rtol,
            concept_rtol=CONCEPT_RTOL,
            method="damped",
        )
        require(
            answer["taken"] != room.space.free,
            "You counted the free dimensions: `taken` is the rank of what is kept.",
        )
        require(
            answer["taken"] == room.space.rank,
            f"At rtol = {rtol:g} the kept prompts take {room.space.rank} dimensions, not "
            f"{answer['taken']}: does your tolerance reach null_space?",
        )
        require(
            answer["rank"] == room.rank,
            f"At rtol = {rtol:g} the delta has rank {room.rank}, not {answer['rank']}: Q has one "
            "row a direction.",
        )
        if near(answer["leakage"], room.leakage, 1e-2):
            continue
        longest = float((room.kept_rows @ room.basis.T).norm(dim=1).max())
        require(
            not near(answer["leakage"], longest),
            "That is how long a leak is, not which part of its token: divide by ||a||.",
        )
        require(
            False,
            f"At rtol = {rtol:g} the largest ||Q a|| / ||a|| over the kept tokens is "
            f"{room.leakage:.3g}, not {float(answer['leakage']):.3g}.",
        )
