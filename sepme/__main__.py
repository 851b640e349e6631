"""`python -m sepme`: the command, where its folder is not on the path."""

from sepme.cli.main import app

app()
