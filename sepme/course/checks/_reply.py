"""How a check replies: one helpful sentence in place of a traceback."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sepme.errors import printable

#: A student's function, of which the docstring of the check says what it takes and gives.
Answer = Callable[..., Any]
#: Every check, by the name of the answer that it looks at.
CHECKS: dict[str, Callable[..., None]] = {}


class NotYet(AssertionError):
    """The answer is not right yet, and this is why. JupyterLab shows the sentence alone."""

    def _render_traceback_(self) -> list[str]:  # the name that IPython looks for
        return [printable(f"Not yet: {self}")]


def check(answer: Answer, *context: Any) -> None:
    """Look at an answer to an exercise. Prints "ok" if it is right.

    Args:
        answer: the student's function; its name says which check it needs.
        context: what the check needs beside it; the exercise says what.

    Raises:
        NotYet: it is still blank, or wrong, in one sentence that says how.
    """
    name = answer.__name__
    require(name in CHECKS, f"No exercise asks for `{name}`: keep the name that it had.")
    try:
        CHECKS[name](answer, *context)
    except NotImplementedError:
        still = f"`{name}` is still blank: replace the line that raises NotImplementedError."
        raise NotYet(still) from None
    print(f"ok: {name}")


def checks(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function the check of the answer of its own name; it raises `NotYet` if wrong."""
    CHECKS[function.__name__] = function
    return function


def require(right: bool | Tensor, otherwise: str) -> None:
    """Raise `NotYet` with a sentence unless something is right."""
    if not bool(right):
        raise NotYet(otherwise)


def compare(
    answer: Any, expected: Any, mistakes: Mapping[str, Any], otherwise: str, tolerance: float = 1e-4
) -> None:
    """Raise `NotYet` unless the answer is as expected.

    It says the sentence of the first of the mistakes that gives this result, or `otherwise`.
    """
    if not near(answer, expected, tolerance):
        known = (text for text, wrong in mistakes.items() if near(answer, wrong, tolerance))
        raise NotYet(next(known, otherwise))


def as_tensor(value: object, shape: tuple[int, ...], what: str) -> Tensor:
    """The answer in float64, once it is known to be finite numbers of the right shape."""
    require(value is not None, f"{what} came back as None: did you forget `return`?")
    kind = type(value).__name__
    require(isinstance(value, Tensor | float | int), f"{what} must be a tensor, not a {kind}.")
    tensor = torch.as_tensor(value).detach().double().cpu()
    right = f"{what} should have the shape {list(shape)}; yours has {list(tensor.shape)}."
    require(tuple(tensor.shape) == shape, right)
    require(tensor.isfinite().all(), f"{what} holds a number that is not finite.")
    return tensor


def as_number(value: object, what: str) -> float:
    """The answer as a number, once it is known to be a finite one."""
    return float(as_tensor(value, (), what))


def near(actual: Any, expected: Any, tolerance: float = 1e-4) -> bool:
    """Whether two results of one shape agree, relative to the largest entry expected."""
    actual, expected = (torch.as_tensor(x).detach().double().cpu() for x in (actual, expected))
    size = float(expected.abs().max()) or 1.0
    same_shape = actual.shape == expected.shape
    return same_shape and float((actual - expected).abs().max()) <= tolerance * size


def normal(*shape: int) -> Tensor:
    """The same standard normal numbers in float64 each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
