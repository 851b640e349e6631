"""What sepme says on purpose: the one error and the one warning."""

import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = ["SepmeError", "SepmeWarning", "warn"]

#: In Persian, in Indian scripts and in emoji (zero width non-joiner and joiner).
JOINERS = "\u200c\u200d"


class SepmeError(ValueError):
    """Bad input, in one sentence: what was wrong and what to do about it.

    Raised before any work starts and before anything is written, so that whoever meets it can
    correct the input and run again. Every other exception that escapes sepme is a bug. What cannot
    be printed, and would act on a terminal, is escaped.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


class SepmeWarning(UserWarning):
    """One sentence about what can be done as asked, but will hardly be what was meant."""


def warn(sentence: str) -> None:
    """Issue a `SepmeWarning` for the line outside of this package that asked for the work."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("sepme."):
        level, frame = level + 1, frame.f_back
    warnings.warn(printable(sentence), SepmeWarning, stacklevel=level)


def printable(text: str) -> str:
    """The text, with an escape in place of each character that a screen does not show."""
    return "".join(
        c if c.isprintable() or c in JOINERS else c.encode("unicode_escape").decode() for c in text
    )


def in_words(error: "ValidationError | OSError") -> str:
    """The first thing that a check of foreign content found, or why a file cannot be read."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join([".".join(map(str, first["loc"])), first["msg"]]).removeprefix(": ")[:200]
