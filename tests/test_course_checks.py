"""The checks of the exercises speak: each usual mistake is named in one sentence."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from sepme.concept import Concept
from sepme.course.build import TEACHER, is_answer, read, solution
from sepme.course.checks import NotYet, check
from sepme.course.checks._reply import CHECKS, checks
from sepme.course.notebook import FOLDER
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, erase
from sepme.model import Backbone
from sepme.nullspace import constrain, row_basis
from tests.miniature import CONCEPTS, EXACT, KEPT, NAMES, NEON, others, shared, three_deltas
from tests.test_notebooks import LADDER


def ok(name: str, answer: Callable, *context: object) -> None:
    CHECKS[name](answer, *context)


def says(words: str, name: str, answer: Callable, *context: object) -> None:
    """The check of this name must refuse the answer in one sentence that holds these words."""
    with pytest.raises(NotYet) as caught:
        CHECKS[name](answer, *context)
    message = str(caught.value)
    assert words in message, message
    assert "\n" not in message
    assert caught.value._render_traceback_() == [f"Not yet: {message}"]


def test_a_blank_answer_is_called_blank_and_a_right_one_ok(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sepme.course.checks._reply.CHECKS", known := {})

    def one(answer: Callable[[], int]) -> None:
        if answer() != 1:
            raise NotYet("One is meant.")

    known["one"] = one

    def asked(answer: Callable[[], int], name: str = "one") -> None:
        answer.__name__ = name
        check(answer)

    def blank() -> int:
        raise NotImplementedError()

    for words, answer, name in (
        ("`one` is still blank", blank, "one"),
        ("One is meant", lambda: 2, "one"),
        ("No exercise asks for `two`", lambda: 1, "two"),
    ):
        with pytest.raises(NotYet, match=words):
            asked(answer, name)
    assert capsys.readouterr().out == ""
    asked(lambda: 1)
    assert capsys.readouterr().out == "ok: one\n"


def test_a_check_is_found_by_the_name_of_the_answer() -> None:
    assert checks(lambda answer: None).__name__ in CHECKS
    CHECKS.pop("<lambda>")
    assert {"projector", "eta", "uce", "train"} <= set(CHECKS)


def test_feedback_on_other_words_for_a_concept() -> None:
    anchors = ("a photo", "a photo of a boat")
    concept = Concept("neon", ("neon", "neon boat"), "style", anchors)

    def widened(prompts: tuple[str, ...], anchors: tuple[str, ...] = ()) -> Callable:
        return lambda c, alias: Concept(c.name, prompts, c.kind, anchors)

    both, context = (*concept.prompts, "glowing", "glowing boat"), (concept, "glowing")
    short = widened((*concept.prompts, "glowing"), (*anchors, "a photo"))
    mixed = widened(both, (*anchors, *anchors[::-1]))
    says(
        "no longer forgotten", "with_alias", widened(("glowing", "glowing boat"), anchors), *context
    )
    says("with 'glowing' too", "with_alias", short, *context)
    says("anchors stand in the order", "with_alias", mixed, *context)
    says("Return a Concept", "with_alias", lambda c, alias: None, *context)
    ok("with_alias", widened(both, anchors * 2), *context)


def test_feedback_on_the_price_of_tolerance() -> None:
    context = (shared(), NEON, ("", *others(NEON)))

    def price(rtol: float, **wrong: Callable) -> dict[str, float]:
        settings = {"keep_rtol": rtol, "concept_rtol": 0.1, "method": "damped", "quiet": True}
        true = constrain(*context, **settings)
        right = {"taken": true.space.rank, "rank": true.rank, "leakage": true.leakage}
        return right | {name: value(true) for name, value in wrong.items()}

    def longest(true) -> float:
        return float((true.kept_rows @ true.basis.T).norm(dim=1).max())

    ok("price", price, *context)
    for words, wrong in (
        ("You counted the free dimensions", {"taken": lambda true: true.space.free}),
        ("rank", {"rank": lambda true: true.rank + 1}),
        ("divide by ||a||", {"leakage": longest}),
        ("the largest ||Q a||", {"leakage": lambda true: 2 * true.leakage}),
    ):
        says(words, "price", lambda rtol, wrong=wrong: price(rtol, **wrong), *context)


def test_feedback_on_noise_differences() -> None:
    backbone = shared()
    x_t, t = torch.randn(2, *backbone.latent_shape), torch.tensor([500, 900])

    def eps(prompt: str) -> Tensor:
        return backbone.epsilon(x_t, t, backbone.encode([prompt] * 2))

    def ask(words: str, answer: Callable[[str], Tensor | None]) -> None:
        says(words, "difference", lambda x, t, prompt: answer(prompt), backbone, x_t, t)

    ok("difference", lambda x, t, prompt: eps(prompt) - eps(""), backbone, x_t, t)
    ask("points backwards", lambda prompt: eps("") - eps(prompt))
    ask("subtract what the empty prompt", eps)
    ask("guidance comes later", lambda prompt: backbone.guidance * (eps(prompt) - eps("")))
    ask("did you forget `return`", lambda prompt: None)
    ask("should have the shape", lambda prompt: eps(prompt)[0])


def _answers() -> SimpleNamespace:
    """The functions of all solutions; those that need a model are not called here."""
    names = {"torch": torch, "Tensor": Tensor, "Sequence": Sequence, "Mapping": Mapping}
    names |= {"Concept": Concept, "ConceptDelta": ConceptDelta, "Backbone": Backbone}
    names["row_basis"] = row_basis
    for path in sorted(TEACHER.glob("*_exercises.ipynb")):
        for cell in solution(read(path)).cells:
            if is_answer(cell) and not cell.metadata.nbgrader.grade:
                exec(cell.source[cell.source.index("def ") :], names)
    return SimpleNamespace(**names)


RIGHT = _answers()


def stopping(m: float | None = None, first: int = 1, swap: bool = False) -> Callable:
    """The solution of 03.4 with a mistake."""

    def answer(losses, alpha, tau, earliest):
        mean = losses[0] if m is None else m
        weight = 1 - alpha if swap else alpha
        for n, loss in enumerate(losses, start=first):
            mean = weight * mean + (1 - weight) * loss
            if n - first + 1 >= earliest and mean <= tau:
                return n
        return None

    return answer


def ridge(W0: Tensor, C: Tensor, A: Tensor, P: Tensor, lam: float, pull: float) -> Tensor:
    """UCE's formula with another weight of lambda W0."""
    gram = lam * torch.eye(W0.shape[1], dtype=W0.dtype) + C.T @ C + P.T @ P
    return (pull * lam * W0 + W0 @ A.T @ C + W0 @ P.T @ P) @ torch.linalg.inv(gram)


def unbound(W0: Tensor, C: Tensor, A: Tensor, S: Tensor, rho: float) -> Tensor:
    return RIGHT.speed(W0, C, A, torch.eye(W0.shape[1], dtype=W0.dtype), rho)


def ever(history, index):
    return "recovered" if any(index in e for e in history[:-1]) else RIGHT.role(history, index)


def wald(k: int, n: int) -> tuple[float, float]:
    half = 1.96 * math.sqrt(k / n * (1 - k / n) / n)
    return k / n - half, k / n + half


HAND = torch.tensor([[1.0, 2, 0, 1], [0, 1, 1, 0], [1, 3, 1, 1]])
S = torch.tensor([[2.0, -1, 1, 0], [-1, 0, 0, 1]]).T
UNIT = S / S.norm(dim=0)
SLOPED = torch.linalg.qr(torch.randn(40, 8, generator=torch.Generator().manual_seed(0))).Q
SLOPED = SLOPED * torch.tensor([500, 100, 20, 9, 2, 1, 0.2, 0.02])
LENGTH = float(SLOPED.norm(dim=1).square().mean().sqrt())
MEASURED = {("boat in neon", ("neon",)): 0.9, ("boat", ("neon",)): 0.01, ("boat", ()): 0.0}
#: What some checks need beside the answer.
CONTEXT = {"solutions": (HAND,), "tolerance": (SLOPED,), "changes": (MEASURED,)}
#: Wrong answers, with what is said of each.
FEEDBACK: dict[str, dict[str, Callable]] = {
    "guided": {
        "once too often": lambda eps_0, r, scale: eps_0 + r + scale * r,
        "straight line": lambda eps_0, r, scale: eps_0 + scale**2 * r,
    },
    "weight": {
        "wrong sign": lambda a_t, a_prev: -RIGHT.weight(a_t, a_prev),
        "enters twice": lambda a_t, a_prev: math.sqrt(1 - a_prev),
        "the latent moves by": lambda a_t, a_prev: 0.1,
    },
    "cosine": {
        "flatten each sample": lambda a, b: (a * b).sum() / a.norm() / b.norm(),
        "has a sign": lambda a, b: RIGHT.cosine(a, b).abs(),
        "divide by both lengths": lambda a, b: (a * b).flatten(1).sum(1),
    },
    "solutions": {
        "not of unit length": lambda: S,
        "independent of the others": lambda: UNIT[:, :1],
        "transpose": lambda: UNIT.T,
        "multiples of each other": lambda: UNIT[:, [0, 0]],
        "x3 and x4 are free": lambda: torch.linalg.svd(HAND).Vh[2:].T,  # orthonormal, by no hand
        "set one to 1": lambda: -UNIT,
        "A times your column 1": lambda: torch.stack([UNIT[:, 0], torch.eye(4)[0]], dim=1),
    },
    "projector": {
        "not symmetric": lambda S: S @ torch.linalg.pinv(S + torch.eye(6, 3)),
        "not idempotent": lambda S: S @ S.T,
        "removes S": lambda S: torch.eye(6) - RIGHT.projector(S),
        "The trace of P": lambda S: torch.eye(6),
    },
    "tolerance": {
        "leaks up to": lambda A, leakage: 3 * leakage / LENGTH,
        "leaves 4 dimensions free where 6": lambda A, leakage: leakage / float(A.norm()),
        "are possible": lambda A, leakage: leakage / float(torch.linalg.matrix_norm(A, 2)),
        "length of a row, 12.8": lambda A, leakage: leakage / LENGTH,
        "leaks up to 1.5": lambda A, leakage: leakage * 40**0.5 / float(A.norm()),  # 40 rows, or 20
        "null_space refuses": lambda A, leakage: leakage,
    },
    "correlation": {
        "one number for the batch": lambda r, r0: (r * r0).mean(),
        "eq. 2 is a mean": lambda r, r0: (r * r0).flatten(1).sum(1),
        "no denominator": RIGHT.normalised,
        "Keep the sign": lambda r, r0: RIGHT.correlation(r, r0).abs(),
    },
    "normalised": {
        "half of the concept is gone": RIGHT.cosine,
        "must give exactly 1": RIGHT.correlation,
    },
    "eta": {
        "constant for the gradient": lambda losses: losses.abs().max() / losses.abs(),
        "Upside down": lambda losses: 1 / RIGHT.eta(losses),
        "must be positive": lambda losses: losses.detach().max() / losses.detach(),
    },
    "stop": {
        "since your m_0 is 0": stopping(m=0.0),
        "one too early": stopping(first=0),
        "you have them exchanged": stopping(swap=True),
        "before the earliest": lambda *a: stopping()(*a[:3], 1),
        "in place of its running mean": lambda *a: stopping()(a[0], 0.0, *a[2:]),
    },
    "changes": {
        "changes by 1.0% only": lambda prompt, erased: bool(erased),
        "one erased concept in the prompt is enough": lambda prompt, erased: False,
        "True or False": lambda prompt, erased: "yes",
    },
    "angles": {
        "Those are the cosines": lambda E, F: RIGHT.angles(E, F).cos(),
        "radians": lambda E, F: RIGHT.angles(E, F).rad2deg(),
        "Smallest angle first": lambda E, F: RIGHT.angles(E, F).flip(0),
        "not finite": lambda E, F: torch.linalg.svdvals(E @ F.T).acos(),
        "`qr` does not": lambda E, F: RIGHT.angles(torch.linalg.qr(E.T).Q.T, F),
        "orthonormal": lambda E, F: (0.1 * torch.linalg.svdvals(E @ F.T)).clamp(max=1).acos(),
    },
    "random_basis": {
        "Two draws are the same": lambda q, d, g: RIGHT.random_basis(
            q, d, torch.Generator().manual_seed(0)
        ),
        "not orthonormal": lambda q, d, g: torch.randn(q, d, generator=g),
        "not uniform": lambda q, d, g: torch.eye(d)[torch.randperm(d, generator=g)[:q]],
        "start from independent normal": lambda q, d, g: (
            torch.linalg.qr(torch.rand(d, q, generator=g)).Q.T
        ),
    },
    "expected_overlap": {
        "That is the root": lambda q1, q2, d: math.sqrt(q1 * q2 / d),
        "Every pair of directions counts": lambda q1, q2, d: min(q1, q2) / d,
        "in 256 dimensions only": lambda q1, q2, d: q1 * q2 / 256,
        "chance gives": lambda q1, q2, d: 0.5,
    },
    "target": {
        "turns the sign": lambda eps_c, eps_0, eta: eps_0 + eta * (eps_c - eps_0),
        "add that of the empty": lambda eps_c, eps_0, eta: -eta * (eps_c - eps_0),
        "as the rewrite does": lambda eps_c, eps_0, eta: eps_c - eta * (eps_c - eps_0),
        "With eta = 2.5": lambda eps_c, eps_0, eta: eps_0 - eta**2 * (eps_c - eps_0),
        "did you forget `return`": lambda eps_c, eps_0, eta: None,
    },
    "eta_of": {"same target twice": lambda f: f, "the two targets differ": lambda f: f + 1},
    "uce": {
        "transposed": lambda *given: RIGHT.uce(*given).T,
        "for lambda = 0.5 only": lambda W0, C, A, P, lam: RIGHT.uce(W0, C, A, P, 0.5),
        "the change alone": lambda W0, *given: RIGHT.uce(W0, *given) - W0,
        "What is preserved": lambda W0, C, A, P, lam: RIGHT.uce(W0, C, A, P[:0], lam),
        "in the inverse only": lambda *given: ridge(*given, pull=0.0),
        "Nothing has changed": lambda W0, C, A, P, lam: RIGHT.uce(W0, C, C, P, lam),
        "not the minimum": lambda W0, C, A, P, lam: RIGHT.uce(W0, C, 2 * A, P, lam),
    },
    "speed": {
        "the edited matrix": lambda W0, *given: W0 + RIGHT.speed(W0, *given),
        "What is kept moves": unbound,
        "projected at the end": lambda *given: unbound(*given) @ given[3] @ given[3].T,
        "The change is zero": lambda W0, *given: 0 * W0,
        "not the best such change": lambda *given: 0.5 * RIGHT.speed(*given),
    },
    "role": {
        "once and is back": lambda history, i: RIGHT.role(history[-1:], i),
        "is erased (again)": ever,
        "is erased, not regular": lambda history, i: "regular",
        "one of erased, recovered, regular": lambda history, i: "forgotten",
        "did you forget `return`": lambda history, i: None,
    },
    "wilson": {
        "Wald's": wald,
        "give shares": lambda k, n: tuple(100 * end for end in RIGHT.wilson(k, n)),
        "lower end comes first": lambda k, n: RIGHT.wilson(k, n)[::-1],
        "denominator": lambda k, n: tuple(e * (1 + 1.96**2 / n) for e in RIGHT.wilson(k, n)),
        "it goes from 0.0000 to 0.0370": lambda k, n: [1.01 * end for end in RIGHT.wilson(k, n)],
        "two numbers": lambda k, n: RIGHT.wilson(k, n)[1],
    },
    "frechet": {
        "the root": lambda *given: math.sqrt(RIGHT.frechet(*given)),
        "means alone": lambda a, u, b, v: (a - b) ** 2,
        "spreads alone": lambda a, u, b, v: RIGHT.frechet(0, u, 0, v),
        "of the roots": lambda a, u, b, v: (a - b) ** 2 + (u - v) ** 2,
        "the distance is 9": lambda a, u, b, v: RIGHT.frechet(a, u, b, v) + u + v,
    },
    "limit": {
        "the slope": lambda n, fids: float(np.polyfit(1 / np.array(n), fids, 1)[0]),
        "still biased": lambda sizes, fids: fids[-1],
        "leaves the others out": lambda n, fids: RIGHT.limit(n[-2:], fids[-2:]),
        "fit it in 1 / n": lambda n, fids: float(np.polyfit(n, fids, 1)[1]),
        "ends at 0, not at -1": lambda sizes, fids: -1.0,
    },
}


@pytest.mark.parametrize("name", FEEDBACK)
def test_a_right_answer_is_ok_and_each_usual_mistake_is_named(name: str) -> None:
    context = CONTEXT.get(name, ())
    ok(name, getattr(RIGHT, name), *context)
    for words, answer in FEEDBACK[name].items():
        says(words, name, answer, *context)


def test_feedback_on_a_composition_by_hand() -> None:
    backbone, deltas = shared(), three_deltas()[:2]
    layers = backbone.projections()

    def change(path: str) -> Tensor:
        return sum(delta.up[path] @ delta.down[path] for delta in deltas)

    def ask(words: str, answer: Callable) -> None:
        says(words, "composed", answer, backbone, deltas)

    def in_place(backbone, deltas):
        for path, layer in layers.items():
            layer.weight += change(path)
        return {path: layer.weight for path, layer in layers.items()}

    before = [layer.weight.clone() for layer in layers.values()]
    right = {path: layer.weight + change(path) for path, layer in layers.items()}
    ok("composed", lambda b, d: right, backbone, deltas)
    ask("the change alone", lambda b, d: {path: change(path) for path in layers})
    ask("Only one delta", lambda b, d: {p: m.weight + d[0].dense(p) for p, m in layers.items()})
    ask("layers are missing", lambda b, d: {})
    ask("You changed the model's own weights", in_place)
    after = [layer.weight for layer in layers.values()]
    assert all(map(torch.equal, after, before))  # the check has put it right


def test_feedback_on_one_concept_after_another() -> None:
    backbone = shared()

    def next_keeping(keep: Callable) -> Callable:
        def erase_next(concept, earlier):
            kept = [prompt for prompt in keep(concept, earlier) if prompt not in concept.prompts]
            return erase(backbone, concept, kept, EXACT)

        return erase_next

    def ask(words: str, keep: Callable) -> None:
        says(words, "erase_next", next_keeping(keep), backbone, CONCEPTS)

    ok("erase_next", next_keeping(lambda concept, earlier: (*KEPT, *NAMES)), backbone, CONCEPTS)
    ask("which 'neon' forgot", lambda concept, earlier: KEPT)
    ask("which was promised", lambda concept, earlier: NAMES if earlier else (*KEPT, *NAMES))


def test_feedback_on_gram_matrices() -> None:
    one, two, three = three_deltas()
    deltas = [one, -one + 0.5 * two, three]

    def flat(delta, paths=None) -> Tensor:
        return torch.cat([delta.dense(path).flatten() for path in paths or delta.paths])

    def cosines(deltas, paths=None) -> Tensor:
        rows = torch.stack([flat(delta, paths) for delta in deltas])
        rows = rows / rows.norm(dim=1, keepdim=True)
        return rows @ rows.T

    def products(deltas) -> Tensor:
        return torch.stack([torch.stack([flat(a) @ flat(b) for b in deltas]) for a in deltas])

    def mean_of_layers(deltas) -> Tensor:
        return torch.stack([cosines(deltas, [path]) for path in deltas[0].paths]).mean(dim=0)

    ok("gram", cosines, deltas)
    says("Keep the sign", "gram", lambda deltas: cosines(deltas).abs(), [one, two])
    says("mean of the layers' cosines", "gram", mean_of_layers, deltas)
    says("products, not cosines", "gram", products, deltas)
    says("Keep the sign", "gram", lambda deltas: cosines(deltas).abs(), deltas)
    says("one layer only", "gram", lambda ds: cosines(ds, ds[0].paths[:1]), deltas)
    says("cosine 1 with itself", "gram", lambda deltas: 0.5 * cosines(deltas), deltas)
    says("symmetric", "gram", lambda ds: cosines(ds) + torch.ones(4, 4).triu(1), deltas)


# ---------------------------------------------------------------- chapter 06
#: What the claims of chapter 06 look at, as it was measured there.
METHODS = ("original", "ESD-x", "SDD", "AbConcept", "FMN", "UCE", "SPEED-style", "SepME")
OTHERS_SEEN = dict.fromkeys(METHODS, 1.0) | {"FMN": 5 / 6}


def holds_in_chapter_06(what: str, others_seen: Mapping[str, float]) -> bool:
    """Whether a claim of chapter 06 holds if the judge sees these shares of the others."""
    (cell,) = [
        cell.source
        for cell in nbformat.read(FOLDER / "06_baselines_side_by_side.ipynb", 4).cells
        if cell.cell_type == "code" and f'"{what}"' in cell.source
    ]
    columns = ("seen", "others", "harm", "size", "against_empty", "against_anchor")
    measured = pd.DataFrame(0.0, METHODS, columns).assign(others=pd.Series(others_seen))
    made: dict[str, bool] = {}
    exec(cell, {"measured": measured, "judge": True, "claim": made.__setitem__})
    return made[what]


def test_all_but_fmn_means_every_other_method_and_not_fmn() -> None:
    what = "all but FMN leave the others recognisable"
    assert holds_in_chapter_06(what, OTHERS_SEEN)
    for name in METHODS[1:]:  # FMN does as well as the others, or one more method fails
        assert not holds_in_chapter_06(what, OTHERS_SEEN | {name: 1.0 if name == "FMN" else 5 / 6})


# ---------------------------------------------------------------- chapter 08, on the miniature
STYLE = Concept("neon", ("neon", "neon boat"), "style", ("a photo", "boat"))
KEEP = ("", "boat", "a cat")
STEPS = ("rows", "directions", "normalised", "batches", "train", "compose", "restore")


def ladder(**edits: tuple[str, str]) -> dict[str, object]:
    """The names that the solution of chapter 08 defines, on the miniature, a cell edited or not."""
    names = {"backbone": shared(), "torch": torch, "Tensor": Tensor, "Concept": Concept}
    names |= {"replace": replace, "PRESETS": PRESETS}
    for cell in solution(read(TEACHER / LADDER)).cells:
        if cell.id in STEPS:
            source = cell.source.replace("batches = Batches(neon)", "")
            old, new = edits.get(cell.id, ("", ""))
            assert old in source
            exec(source.replace(old, new) if old else source, names)
    names["SETTINGS"] = replace(names["SETTINGS"], images=2, batch=2)
    return names


def loop(names: dict[str, object]) -> tuple:
    """What the check of `train` is given."""
    return shared(), STYLE, KEEP, names["SETTINGS"], names["Batches"](STYLE)


def test_the_solution_of_chapter_08_equals_the_library_on_another_model() -> None:
    names = ladder()
    ok("rows_of", names["rows_of"], shared())
    ok("directions", names["directions"])
    ok("train", names["train"], *loop(names))


@pytest.mark.parametrize(
    ("words", "old", "new"),
    [
        ("wrong way", "kappa.square().mean()", "(-kappa.square()).mean()"),
        ("Adam's rate", "lr=SETTINGS.learning_rate", "lr=0.01"),
        ("is kappa squared", "kappa.square().mean()", "kappa.mean()"),
        ("zero_grad called", "adam.zero_grad()", "pass"),
        ("still zero", "adam.step()", "pass"),
        ("not their momentum", "SETTINGS.alpha * last + (1 - SETTINGS.alpha) * L", "L"),
        ("m_0 is 0", "if momenta else L", "if momenta else 0.0"),
        (
            "L the mean kappa",
            "float(kappa.detach().mean())",
            "float(kappa.detach().square().mean())",
        ),
        ("should stop after", "if len(momenta) >= SETTINGS.earliest_stop and", "if False and"),
        ("Return two things", "items()}, momenta", "items()}"),
    ],
)
def test_feedback_on_the_loop(words: str, old: str, new: str) -> None:
    names = ladder(train=(old, new))
    says(words, "train", names["train"], *loop(names))


@pytest.mark.parametrize(
    ("words", "old", "new"),
    [
        ("weaker than concept_rtol", "V[s > concept_rtol * s[0]] @ S", "V @ S"),
        ("go back to d", "V[s > concept_rtol * s[0]] @ S", "V[s > concept_rtol * s[0]]"),
        ("What is kept sees them", "keep_rtol * length", "10 * length"),
        (
            "What is kept sees them",
            "keep_rtol * length",
            "keep_rtol * s[0]",
        ),  # not a token's length
        ("not orthonormal", "V[s > concept_rtol * s[0]] @ S", "2 * V[s > concept_rtol * s[0]] @ S"),
    ],
)
def test_feedback_on_directions(words: str, old: str, new: str) -> None:
    says(words, "directions", ladder(directions=(old, new))["directions"])


def test_feedback_on_composing_and_restoring() -> None:
    backbone, deltas = shared(), three_deltas()[:2]
    own = {delta.concept: (delta.up, delta.basis) for delta in deltas}
    before = {path: layer.weight.clone() for path, layer in backbone.projections().items()}

    def ask(words: str, name: str, old: str, new: str) -> None:
        names = ladder(**{name: (old, new)})
        names["OWN"] = own
        says(words, name, names[name], backbone, names["THETA"], own)

    names = ladder() | {"OWN": own}
    for name in ("compose", "restore"):
        names[name].__globals__["OWN"] = own
        ok(name, names[name], backbone, names["THETA"], own)
    ask("start from THETA", "compose", "THETA[path] + change", "layer.weight + change")
    ask("still the original", "compose", "layer.weight.copy_(THETA[path] + change)", "pass")
    ask("the change alone", "compose", "THETA[path] + change", "0 * THETA[path] + change")
    ask("copy THETA into every layer", "restore", "layer.weight.copy_(THETA[path])", "pass")
    first = "(lambda B, Q: layer.weight.sub_(B[path] @ Q))(*[*OWN.values()][-1])"
    ask("Delta rounds", "restore", "layer.weight.copy_(THETA[path])", first)
    for path, layer in backbone.projections().items():  # the checks have put it right
        assert torch.equal(layer.weight, before[path])
