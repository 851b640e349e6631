"""The one error that sepme raises on purpose."""


class SepmeError(ValueError):
    """Bad input, in one sentence: what was wrong and what to do about it.

    Raised before any work starts and before anything is written, so that whoever meets it can
    correct the input and run again. Every other exception that escapes sepme is a bug.
    """
