"""How a check speaks: one helpful sentence in place of a traceback."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

#: Two numbers of float32 mathematics agree when they differ by less than this part of their size.
TOLERANCE = 1e-4


class NotYet(AssertionError):
    """The answer is not right yet, and this is why. JupyterLab shows the sentence alone."""

    def _render_traceback_(self) -> list[str]:  # the name that IPython looks for
        return [f"Not yet: {self}"]


def check(function: Callable[..., None]) -> Callable[..., None]:
    """Make a check of a function that raises `NotYet` for a wrong answer, its first argument.

    It prints "ok" for a right one, and says so when the answer is still blank.
    """

    @wraps(function)
    def checked(answer: Callable[..., Any], *context: Any, **options: Any) -> None:
        name = getattr(answer, "__name__", "the answer")
        try:
            function(answer, *context, **options)
        except NotImplementedError:
            raise NotYet(
                f"`{name}` is still blank: replace the line that raises NotImplementedError."
            ) from None
        print(f"ok: {name}")

    return checked


def require(right: bool | Tensor, otherwise: str) -> None:
    """Raise `NotYet` with a sentence unless something is right."""
    if not bool(right):
        raise NotYet(otherwise)


def as_tensor(value: object, shape: tuple[int, ...], what: str) -> Tensor:
    """The answer in float64, once it is known to be finite numbers of the right shape."""
    require(value is not None, f"{what} came back as None: did you forget `return`?")
    require(
        isinstance(value, Tensor | float | int),
        f"{what} must be a torch tensor; yours is a {type(value).__name__}.",
    )
    tensor = torch.as_tensor(value).detach().double().cpu()
    require(
        tuple(tensor.shape) == shape,
        f"{what} should have the shape {list(shape)}; yours has {list(tensor.shape)}.",
    )
    require(tensor.isfinite().all(), f"{what} holds a number that is not finite.")
    return tensor


def near(actual: Tensor | float, expected: Tensor | float, tolerance: float = TOLERANCE) -> bool:
    """Whether two results of one shape agree, relative to the largest entry expected."""
    actual, expected = (torch.as_tensor(x).detach().double().cpu() for x in (actual, expected))
    size = float(expected.abs().max()) or 1.0
    return actual.shape == expected.shape and float((actual - expected).abs().max()) <= (
        tolerance * size
    )
