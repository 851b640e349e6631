"""Chapter 01: what a prompt adds to the predicted noise."""

from collections.abc import Callable

import torch
from torch import Tensor

from sepme.course.checks.feedback import as_tensor, check, near, require
from sepme.model import Backbone


@check
@torch.no_grad()
def check_difference(
    difference: Callable[[Tensor, Tensor, str], Tensor], backbone: Backbone, x_t: Tensor, t: Tensor
) -> None:
    """`difference(x_t, t, prompt)` is r(c) = eps(x_t, c, t) - eps(x_t, c_0, t)."""
    prompt = "a photo of a boat"
    eps_c, eps_0 = (
        backbone.epsilon(x_t, t, backbone.encode([text] * len(x_t))).double().cpu()
        for text in (prompt, "")
    )
    r = as_tensor(difference(x_t, t, prompt), tuple(x_t.shape), "r(c)")
    require(not near(r, eps_0 - eps_c), "Your r(c) points backwards: subtract c_0 from c.")
    require(
        not near(r, eps_c),
        "That is the noise predicted for the prompt: subtract what the empty prompt predicts.",
    )
    require(
        not near(r, backbone.guidance * (eps_c - eps_0)),
        "That is r(c) times the guidance scale: guidance comes later.",
    )
    require(near(r, eps_c - eps_0), "This is not eps(x_t, c, t) - eps(x_t, c_0, t).")
    nothing = as_tensor(difference(x_t, t, ""), tuple(x_t.shape), "r(c_0)")
    require(nothing.abs().max() < 1e-5, "The empty prompt must add nothing to itself.")


@check
def check_guided(guided: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """`guided(eps_0, r, scale)` is eps_0 + scale * r."""
    eps_0, r = _random(2)
    for scale in (0.0, 1.0, 4.0, -1.0):
        answer = as_tensor(guided(eps_0, r, scale), tuple(r.shape), "the guided noise")
        require(
            not near(answer, eps_0 + (1 + scale) * r),
            "You add r once too often: at scale 1 guidance gives eps(x_t, c, t), which is "
            "eps_0 + r.",
        )
        require(
            near(answer, eps_0 + scale * r),
            f"At scale {scale:g} this is not right: scale 0 gives eps_0, scale 1 gives eps_0 + r, "
            "and in between and beyond it is a straight line.",
        )


@check
def check_weight(weight: Callable[[float, float], float]) -> None:
    """`weight(a_t, a_prev)` is the k with x_prev(eps_c) - x_prev(eps_0) = k r (S-27)."""
    x_t, eps_0, r = _random(3)
    for a_t, a_prev in ((0.3, 0.5), (0.05, 0.1), (0.9, 1.0)):
        k = float(as_tensor(weight(a_t, a_prev), (), "the weight"))
        step = _ddim(x_t, eps_0 + r, a_t, a_prev) - _ddim(x_t, eps_0, a_t, a_prev)
        expected = float((step * r).sum() / (r * r).sum())
        require(
            not near(k, -expected),
            "Right size, wrong sign: more predicted noise means that less of it stays.",
        )
        require(
            not near(k, (1 - a_prev) ** 0.5),
            "The noise enters twice: eps also stands in the predicted image x_0.",
        )
        require(
            near(k, expected),
            f"For a_t = {a_t}, a_prev = {a_prev} the latent moves by {expected:.4f} r, not by "
            f"{k:.4f} r: put eps_0 + r and eps_0 into the step and subtract.",
        )


@check
def check_cosine(cosine: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`cosine(a, b)` is <a, b> / (||a|| ||b||) for each sample, `[n]`."""
    a, b = _random(2)
    b = b + torch.tensor([1.0, 0.0, -1.0]).reshape(3, 1, 1, 1) * a  # like, unlike, opposite
    expected = (a * b).flatten(1).sum(1) / (a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1))
    value = cosine(a, b)
    require(
        not isinstance(value, Tensor) or value.numel() == len(a),
        f"There are {len(a)} samples, so {len(a)} cosines: flatten each sample, not the batch.",
    )
    answer = as_tensor(value, (len(a),), "the cosine")
    require(not near(answer, expected.abs()), "A cosine has a sign: opposite concepts have -1.")
    require(
        near(answer, as_tensor(cosine(3 * a, 0.5 * b), (len(a),), "the cosine")),
        "Three times a has another cosine than a: divide by both lengths.",
    )
    require(near(answer, expected), "This is not <a, b> / (||a|| ||b||).")


def _ddim(x_t: Tensor, eps: Tensor, a_t: float, a_prev: float) -> Tensor:
    """One deterministic DDIM step (Song et al. 2021, eq. 12 with sigma = 0)."""
    x_0 = (x_t - (1 - a_t) ** 0.5 * eps) / a_t**0.5
    return a_prev**0.5 * x_0 + (1 - a_prev) ** 0.5 * eps


def _random(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 4, 8, 8, generator=generator, dtype=torch.float64)
