"""How every test of bad input looks at an error."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sepme.errors import SepmeError


@contextmanager
def refused(*words: str) -> Iterator[pytest.ExceptionInfo[SepmeError]]:
    """The body must raise a `SepmeError`: one sentence on one line that holds all the words."""
    with pytest.raises(SepmeError) as caught:
        yield caught
    message = str(caught.value)
    assert "\n" not in message, message
    assert message.endswith("."), message
    assert not re.search(r"[.!?] [A-Z]", message), f"more than one sentence: {message}"
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
