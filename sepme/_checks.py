"""How settings and words are checked, each in one sentence."""

import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import index
from typing import Any

from sepme.errors import JOINERS, SepmeError


def choose(known: Sequence[str], **values: str) -> None:
    """Refuse a word that is none of the known ones."""
    for name, value in values.items():
        if value not in known:
            raise SepmeError(f"{name} = '{value}' is unknown: choose one of {', '.join(known)}.")


def at_least(least: float, **values: float) -> None:
    """Refuse a number below `least`, an infinite one, NaN, and what is no number."""
    _check(lambda value: least <= value < math.inf, f"give at least {least:g}", values)


def above_zero(**values: float) -> None:
    """Refuse a number that is not above 0, and an infinite one."""
    _check(lambda value: 0 < value < math.inf, "give a number above 0", values)


def below_one(**values: float | None) -> None:
    """Refuse a number outside of [0, 1); None is a choice of its own."""
    _check(lambda value: value is None or 0 <= value < 1, "give at least 0, below 1", values)


def guided(guidance: float) -> None:
    """Refuse a guidance scale that diffusers would not draw with."""
    wish = "give 0 (no words), 1 (the prompt's own prediction), or more"
    _check(lambda value: value == 0 or 1 <= value < math.inf, wish, {"guidance": guidance})


def finite(**values: float) -> None:
    """Refuse infinity, NaN, and what is no number."""
    _check(math.isfinite, "give a number, like 1", values)


def as_python(value: Any) -> Any:
    """A single number of numpy or torch as Python's own, and whatever else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def integer(value: Any) -> int:
    """A whole number of any library as Python's own; a TypeError for others, and for True."""
    value = as_python(value)
    if isinstance(value, bool):
        raise TypeError(f"{value} is no number")
    return index(value)


def whole(least: int, most: float = math.inf, **values: int) -> None:
    """Refuse what is no whole number of this range; 2.0 and True are none."""
    wish = f"at least {least}" if most == math.inf else f"{least} to {most}"
    _check(lambda value: least <= integer(value) <= most, f"give a whole number, {wish}", values)


def _check(holds: Callable[[Any], bool], wish: str, values: Mapping[str, Any]) -> None:
    """Refuse the values that are not as wished, or that cannot be asked; True is no number."""
    for name, value in values.items():
        try:
            own = as_python(value)
            fine = not isinstance(own, bool) and bool(holds(own))
        except (TypeError, ValueError, ArithmeticError, RuntimeError):  # words, lists, tensors
            fine = False
        if not fine:
            raise SepmeError(f"{name} = {value!r:.80} makes no sense: {wish}.")


def kinds(kind: type, values: Iterable[Any], remedy: str) -> list[Any]:
    """The values as a list, which may be read more than once; what is of another type is refused.

    Raises:
        SepmeError: something else than values of this type.
    """
    if not isinstance(values, Iterable):
        raise SepmeError(f"{values!r:.80} is no list: {remedy}.")
    for value in (values := list(values)):
        if not isinstance(value, kind):
            raise SepmeError(f"{value!r:.80} is no {kind.__name__}: {remedy}.")
    return values


def texts(prompts: str | Iterable[str]) -> list[str]:
    """The prompts as a list; one alone is a list of one.

    Raises:
        SepmeError: something else than text.
    """
    several = isinstance(prompts, Iterable) and not isinstance(prompts, str)
    prompts = list(prompts) if several else [prompts]
    if wrong := [prompt for prompt in prompts if not isinstance(prompt, str)]:
        raise SepmeError(f"{wrong[0]!r:.80} is no text: write each prompt between quotes.")
    return prompts


def plain(text: str) -> str:
    """The text in Unicode's composed form (NFC).

    Raises:
        SepmeError: it contains a character that no screen shows, like a terminal's escape or a mark
            that turns the direction of reading; those that join letters are none of these.
    """
    text = unicodedata.normalize("NFC", *texts(text))
    hidden = [c for c in text if unicodedata.category(c)[0] == "C" and c not in JOINERS]
    if hidden:
        raise SepmeError(
            f"{text!r} contains the character U+{ord(hidden[0]):04X}, which cannot be printed: "
            "take it out."
        )
    return text
