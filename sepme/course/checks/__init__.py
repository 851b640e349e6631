"""One file of checks a chapter. A check says in one sentence what is wrong, or prints "ok"."""

from sepme.course.checks.feedback import NotYet

__all__ = ["NotYet"]
