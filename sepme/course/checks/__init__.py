"""`check(answer)` says in one sentence what is not right yet about an answer, or prints "ok".

The check is found by the name of the answer: `check(projector)` looks at a function `projector`.
There is one file of checks a chapter.
"""

from importlib import import_module

from sepme.course.checks._reply import NotYet, check

__all__ = ["NotYet", "check"]

for _chapter in (
    *("quickstart", "noise_differences", "null_space", "decorrelation", "composition"),
    *("interference", "baselines", "measures", "from_scratch"),
):
    import_module(f"sepme.course.checks._{_chapter}")
