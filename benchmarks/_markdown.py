"""Tables as Markdown, and their places in README.md."""

from pathlib import Path

import pandas as pd

from sepme.artefact import write_atomically

README = Path(__file__).resolve().parent / "README.md"


def markdown(table: pd.DataFrame) -> str:
    """A table of texts in Markdown: the first column to the left, the others to the right."""
    lines = [list(table.columns), ["---"] + ["--:"] * (table.shape[1] - 1), *table.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_between(marker: str, text: str) -> None:
    """Replace what stands between the two markers of README.md."""
    begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
    head, found, rest = README.read_text().partition(begin)
    if not found:
        raise SystemExit(f"README.md has no marker {begin.strip()}: write it where the table goes.")
    write_atomically(README, (head + begin + text + "\n" + end + rest.partition(end)[2]).encode())
