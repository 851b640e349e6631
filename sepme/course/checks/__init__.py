"""`check(answer)` says in one sentence what is not right yet about an answer, or prints "ok".

The check is found by the name of the answer: `check(projector)` looks at a function `projector`.
Every other module of this package holds the checks of one chapter.
"""

from importlib import import_module
from pkgutil import iter_modules

from sepme.course.checks._reply import NotYet, check

__all__ = ["NotYet", "check"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
