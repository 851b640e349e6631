"""The command line."""

from sepme.cli.main import app

__all__ = ["app"]
