"""The one tolerance of all tests."""

import torch
from torch import Tensor

#: How many rounding errors a computation may pile up. Small matrices stay far below it.
ROUNDINGS = 256


def assert_close(
    actual: Tensor | float, expected: Tensor | float, *, scale: float | None = None
) -> None:
    """Assert that two results are equal up to the rounding of their dtype.

    Args:
        actual, expected: same shape; the coarser of their dtypes sets the tolerance.
        scale: the size of the largest numbers on the way to the result, which the rounding errors
            are relative to; by default the largest entry of `expected`. Needed where large
            numbers cancel, above all where zero is expected.
    """
    actual, expected = _tensor(actual), _tensor(expected)
    assert actual.shape == expected.shape, f"shapes {actual.shape} and {expected.shape} differ"
    if actual.numel() == 0:
        return
    eps = max(torch.finfo(actual.dtype).eps, torch.finfo(expected.dtype).eps)
    size = float(expected.abs().max()) if scale is None else scale
    tolerance = ROUNDINGS * eps * size
    difference = float((actual.double() - expected.double()).abs().max())
    assert difference <= tolerance, f"differs by {difference:.3e}, more than {tolerance:.3e}"


def _tensor(value: Tensor | float) -> Tensor:
    return value.detach().cpu() if isinstance(value, Tensor) else torch.tensor(value).double()
