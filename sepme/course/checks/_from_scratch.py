"""Chapter 08: the student's own embeddings, directions, loop, composition and restoring.

Its third step, the normalised correlation, is checked as in chapter 03.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sepme.concept import Concept
from sepme.correlation import Momentum
from sepme.course.checks._reply import Answer, as_tensor, checks, compare, near, normal, require
from sepme.erasure import ErasureSettings, erase
from sepme.model import Backbone
from sepme.nullspace import constrain, null_space
from sepme.training import Trainer

Weights = Mapping[str, Tensor]
#: Concept -> its B by path, and Q.
Deltas = Mapping[str, tuple[Weights, Tensor]]


@checks
def rows_of(answer: Answer, model: Backbone) -> None:
    """`rows_of(prompts)` stacks the embeddings of all tokens, `[prompts * tokens, d]`."""
    prompts = ["", "a boat"]
    embeddings, value = model.encode(prompts), answer(prompts)
    apart = isinstance(value, Tensor) and value.shape == embeddings.shape
    require(not apart, "These are [prompts, tokens, d]: put the rows of all prompts in one matrix.")
    true = embeddings.flatten(0, 1)
    rows = as_tensor(value, tuple(true.shape), "the matrix of rows")
    require(near(rows, true), "These are not the embeddings that backbone.encode gives.")
    exact = value.dtype == torch.float64 and value.device.type == "cpu"
    require(exact, "The rows should be in double precision on the CPU: rounding would leak.")


@checks
def directions(answer: Answer) -> None:
    """`directions(A, E, keep_rtol, concept_rtol)` are the strong directions of E P, as rows."""
    sizes = torch.tensor([9, 5, 2, 1, 5e-3, 1e-5, 1e-6, 1e-6, 1e-7, 1e-7], dtype=torch.float64)
    A = torch.linalg.qr(normal(30, 10)).Q * sizes @ torch.linalg.qr(normal(10, 10)).Q
    E = torch.tensor([4, 2, 0.02], dtype=torch.float64)[:, None] * normal(43, 10)[40:]
    true = null_space(A, 1e-3).directions(E, 0.1)
    Q = answer(A, E, 1e-3, 0.1)
    require(isinstance(Q, Tensor) and Q.ndim == 2, "Return a matrix Q, one direction a row.")
    require(len(Q) != 10, "Your directions are columns: return them as rows, [q, d].")
    require(Q.shape[1] == 10, "Your rows are coordinates in the null space: go back to d by S.")
    require(len(Q) != 3, "Leave out the direction that is weaker than concept_rtol times s[0].")
    Q = as_tensor(Q, tuple(true.shape), "Q")
    require(near(Q @ Q.T, torch.eye(len(Q))), "The rows of Q are not orthonormal: Q Q^T is not 1.")
    seen = float((A @ Q.T).norm(dim=0).max())
    require(seen < 2e-3, f"What is kept sees them, ||A q|| = {seen:.2g}: use the null space of A.")
    require(near(Q.T @ Q, true.T @ true), "Q spans other directions than the strong ones of E P.")


@checks
def train(
    answer: Answer,
    model: Backbone,
    concept: Concept,
    keep: Sequence[str],
    settings: ErasureSettings,
    batches: object,
) -> None:
    """`train(batches, Q, iterations, tau)` gives `{path: B}` and the momenta, as `erase` does."""
    steps, tolerances = [], {"keep_rtol": settings.keep_rtol, "concept_rtol": settings.concept_rtol}
    Q = constrain(model, concept, keep, **tolerances, method="svd").basis

    def library(iterations: int) -> Tensor:
        few = replace(settings, iterations=iterations)
        trainer = Trainer(steps.append, progress=False)
        delta = erase(model, concept, keep, few, trainer=trainer)
        return torch.cat([delta.dense(path).double().flatten() for path in delta.paths])

    def student(iterations: int, tau: float = 0.0) -> tuple[Tensor, Sequence[float]]:
        result = answer(batches, Q, iterations, tau)
        pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Mapping)
        require(pair, "Return two things: the factors {path: B} and the list of momenta.")
        B, momenta = result
        require(set(B) == set(model.projections()), "There must be one B for each path of THETA.")
        dense = [(B[path].detach().double().cpu() @ Q).flatten() for path in sorted(B)]
        return torch.cat(dense), momenta

    def same(one: Tensor, other: Tensor) -> bool:  # but for rounding, which Adam amplifies
        return float((one - other).norm()) < 0.02 * float(other.norm())

    (found, _), true = student(1), library(1)
    require(found.abs().max() > 0, "B is still zero after an iteration: call backward and step.")
    require(not same(found, -true), "B moves the wrong way: minimise the mean of kappa squared.")
    first = "Your first step is not the library's: check the loss, the anchor c_0, Adam's rate."
    require(same(found, true), first)
    steps.clear()
    (found, momenta), true = student(3), library(3)
    later = "The third step is wrong: is kappa squared, zero_grad called, each batches[n] used?"
    require(same(found, true), later)
    losses = [step.correlation[0] for step in steps]
    from_zero = Momentum(settings.alpha).over([0.0, *losses])[0][1:]
    mistakes = {
        "These are the means of kappa, not their momentum: average as in (4).": losses,
        "Your m_0 is 0; the momentum starts at the first L.": from_zero,
    }
    otherwise = "The momenta are not alpha m + (1 - alpha) L, one an iteration, L the mean kappa."
    true, momenta = [step.momentum for step in steps], [float(m) for m in momenta]
    compare(momenta, true, mistakes, otherwise, tolerance=1e-3)
    earliest = settings.earliest_stop
    made = len(student(earliest + 1, tau=9.0)[1])
    late = f"With tau = 9 it should stop after iteration {earliest}, not {made}."
    require(made == earliest, late)


@checks
@torch.no_grad()
def compose(answer: Answer, model: Backbone, theta: Weights, own: Deltas) -> None:
    """`compose(names)` makes the live weights theta + sum_k B_k Q_k, whatever was on before."""
    original, names = {path: weight.clone() for path, weight in theta.items()}, list(own)
    try:
        for wanted in (names[:1], names, names[-1:]):
            answer(wanted)
            for path, layer in model.projections().items():
                W = original[path]
                require(torch.equal(theta[path], W), "You changed THETA: leave it as it is.")
                change = sum(own[name][0][path] @ own[name][1] for name in wanted)
                mistakes = {
                    "The weights are still the original ones: write into layer.weight.": W,
                    "The weights are the change alone: theta belongs into the sum.": change,
                }
                otherwise = f"After compose({wanted}) the weights are not theta + sum_k B_k Q_k"
                compare(layer.weight, W + change, mistakes, f"{otherwise}: start from THETA.", 1e-6)
    finally:
        _write(model, original)


@checks
@torch.no_grad()
def restore(answer: Answer, model: Backbone, theta: Weights, own: Deltas) -> None:
    """`restore()` gives the live model its original weights back, bit for bit."""
    for B, Q in own.values():  # empty while `train` is still blank
        _write(model, {path: weight + B[path] @ Q for path, weight in theta.items()})
    try:
        answer()
        off = [layer.weight - theta[path] for path, layer in model.projections().items()]
        most = max(float(difference.abs().max()) for difference in off)
        rounds = f"The weights are off by {most:.1g}: (theta + Delta) - Delta rounds; copy THETA."
        require(most == 0 or most > 1e-5, rounds)
        require(most == 0, "The weights are not the original ones: copy THETA into every layer.")
    finally:
        _write(model, theta)


def _write(model: Backbone, weights: Weights) -> None:
    for path, layer in model.projections().items():
        layer.weight.copy_(weights[path])
