"""The command line."""

import _thread
import sys
import threading
from typing import Any

_report = sys.unraisablehook


def _heed(lost: Any) -> None:
    """Ctrl-C comes a moment later where Python would lose it, while an object is deleted."""
    if lost.exc_type is KeyboardInterrupt:
        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        _report(lost)


sys.unraisablehook = _heed

try:
    from sepme.cli.main import app
except KeyboardInterrupt:  # the imports alone take seconds
    print("\nsepme: Interrupted before anything was done: run it again.", file=sys.stderr)
    raise SystemExit(130) from None

__all__ = ["app"]
