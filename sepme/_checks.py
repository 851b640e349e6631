"""How settings and words are checked, each in one sentence."""

import math
import unicodedata
from collections.abc import Sequence

from sepme.errors import JOINERS, SepmeError


def choose(known: Sequence[str], **values: str) -> None:
    """Refuse a word that is none of the known ones."""
    for name, value in values.items():
        if value not in known:
            raise SepmeError(f"{name} = '{value}' is unknown: choose one of {', '.join(known)}.")


def at_least(least: float, **values: float) -> None:
    """Refuse a number below `least`, an infinite one, and NaN."""
    for name, value in values.items():
        if not least <= value < math.inf:
            raise SepmeError(f"{name} = {value} makes no sense: give at least {least:g}.")


def above_zero(**values: float) -> None:
    """Refuse a number that is not above 0, and an infinite one."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise SepmeError(f"{name} = {value} makes no sense: give a number above 0.")


def below_one(**values: float | None) -> None:
    """Refuse a number outside of [0, 1); None is a choice of its own."""
    for name, value in values.items():
        if value is not None and not 0 <= value < 1:
            raise SepmeError(f"{name} = {value} makes no sense: give at least 0, below 1.")


def guided(guidance: float) -> None:
    """Refuse a guidance scale that diffusers would not draw with."""
    if guidance != 0 and not 1 <= guidance < math.inf:
        raise SepmeError(
            f"guidance = {guidance} cannot be drawn with: give 0 (no words), 1 (the prompt's own "
            "prediction), or more."
        )


def plain(text: str) -> str:
    """The text in Unicode's composed form (NFC).

    Raises:
        SepmeError: it contains a character that no screen shows, like a terminal's escape or a mark
            that turns the direction of reading; those that join letters are none of these.
    """
    text = unicodedata.normalize("NFC", text)
    hidden = [c for c in text if unicodedata.category(c)[0] == "C" and c not in JOINERS]
    if hidden:
        raise SepmeError(
            f"{text!r} contains the character U+{ord(hidden[0]):04X}, which cannot be printed: "
            "take it out."
        )
    return text
