"""The command line."""

import sys

try:
    from sepme.cli.main import app
except KeyboardInterrupt:  # the imports alone take seconds
    print("\nsepme: Interrupted before anything was done: run it again.", file=sys.stderr)
    raise SystemExit(130) from None

__all__ = ["app"]
