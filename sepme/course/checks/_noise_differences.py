"""Chapter 01: what a prompt adds to the predicted noise."""

from collections.abc import Callable

import torch
from torch import Tensor

from sepme.course.checks._reply import as_number, as_tensor, checks, compare, near, normal, require
from sepme.model import Backbone


@checks
@torch.no_grad()
def difference(
    answer: Callable[[Tensor, Tensor, str], Tensor], model: Backbone, x_t: Tensor, t: Tensor
) -> None:
    """`difference(x_t, t, prompt)` is r(c) = eps(x_t, c, t) - eps(x_t, c_0, t)."""
    prompt, shape = "a photo of a boat", tuple(x_t.shape)
    eps_c, eps_0 = (model.epsilon(x_t, t, model.conditioning([p] * len(x_t))) for p in (prompt, ""))
    r = eps_c - eps_0
    mistakes = {
        "Your r(c) points backwards: subtract c_0 from c.": -r,
        "That is the prompt's noise: subtract what the empty prompt predicts.": eps_c,
        "That is r(c) times the guidance scale: guidance comes later.": model.guidance * r,
    }
    found = as_tensor(answer(x_t, t, prompt), shape, "r(c)")
    compare(found, r, mistakes, "This is not eps(x_t, c, t) - eps(x_t, c_0, t).")
    nothing = as_tensor(answer(x_t, t, ""), shape, "r(c_0)")
    require(nothing.abs().max() < 1e-5, "The empty prompt must add nothing to itself.")


@checks
def guided(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """`guided(eps_0, r, scale)` is eps_0 + scale * r."""
    eps_0, r = normal(2, 3, 4, 8, 8)
    for scale in (0.0, 1.0, 4.0, -1.0):
        found = as_tensor(answer(eps_0, r, scale), tuple(r.shape), "the guided noise")
        once_more = "You add r once too often: scale 1 gives eps(x_t, c, t), which is eps_0 + r."
        right = f"Wrong at scale {scale:g}: it is a straight line through eps_0 and eps_0 + r."
        compare(found, eps_0 + scale * r, {once_more: eps_0 + (1 + scale) * r}, right)


@checks
def weight(answer: Callable[[float, float], float]) -> None:
    """`weight(a_t, a_prev)` is the k with x_prev(eps_c) - x_prev(eps_0) = k r (S-27)."""
    x_t, eps_0, r = normal(3, 3, 4, 8, 8)
    for a_t, a_prev in ((0.3, 0.5), (0.05, 0.1), (0.9, 1.0)):
        step = _ddim(x_t, eps_0 + r, a_t, a_prev) - _ddim(x_t, eps_0, a_t, a_prev)
        true, k = float((step * r).sum() / (r * r).sum()), as_number(answer(a_t, a_prev), "k")
        mistakes = {
            "Right size, wrong sign: more predicted noise means that less of it stays.": -true,
            "The noise enters twice: it also stands in the predicted x_0.": (1 - a_prev) ** 0.5,
        }
        moves = f"With a_t = {a_t}, a_prev = {a_prev} the latent moves by {true:.4f} r, not {k:.4f}"
        compare(k, true, mistakes, f"{moves}: put eps_0 + r and eps_0 into the step and subtract.")


@checks
def cosine(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`cosine(a, b)` is <a, b> / (||a|| ||b||) for each sample, `[n]`."""
    a, b = normal(2, 3, 4, 8, 8)
    b = b + torch.tensor([1.0, 0.0, -1.0]).reshape(3, 1, 1, 1) * a  # like, unlike, opposite
    true = torch.cosine_similarity(a.flatten(1), b.flatten(1))
    value = answer(a, b)
    single = isinstance(value, Tensor) and value.numel() == 1
    require(not single, "There are 3 samples, so 3 cosines: flatten each sample, not the batch.")
    found, scaled = (as_tensor(v, (3,), "the cosine") for v in (value, answer(3 * a, 0.5 * b)))
    require(near(found, scaled), "Three times a has another cosine: divide by both lengths.")
    mistakes = {"A cosine has a sign: opposite concepts have -1.": true.abs()}
    compare(found, true, mistakes, "This is not <a, b> / (||a|| ||b||).")


def _ddim(x_t: Tensor, eps: Tensor, a_t: float, a_prev: float) -> Tensor:
    """One deterministic DDIM step (Song et al. 2021, eq. 12 with sigma = 0)."""
    x_0 = (x_t - (1 - a_t) ** 0.5 * eps) / a_t**0.5
    return a_prev**0.5 * x_0 + (1 - a_prev) ** 0.5 * eps
