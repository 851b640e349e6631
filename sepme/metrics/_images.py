"""What counts as images here."""

from torch import Tensor

from sepme.errors import SepmeError


def check_images(*sets: Tensor) -> None:
    """Raise a `SepmeError` unless these are images `[n, 3, h, w]` in [0, 1], all of one shape."""
    for x in sets:
        known = isinstance(x, Tensor)
        fits = known and x.ndim == 4 and x.shape[1] == 3 and len(x) and x.is_floating_point()
        if not (fits and x.min() >= 0 and x.max() <= 1):  # which NaN is not either
            found = f"{x.dtype} of shape {list(x.shape)}" if known else f"a {type(x).__name__}"
            raise SepmeError(
                "Images are floating point tensors of shape [n, 3, h, w] with values in [0, 1], "
                f"not {found}."
            )
    if len({x.shape for x in sets}) > 1:
        shapes = ", ".join(str(list(x.shape)) for x in sets)
        raise SepmeError(f"Images that are compared one by one have one shape, not {shapes}.")
