"""Tables as Markdown."""

import pandas as pd


def markdown(table: pd.DataFrame) -> str:
    """A table of texts in Markdown: the first column to the left, the others to the right."""
    lines = [list(table.columns), ["---"] + ["--:"] * (table.shape[1] - 1), *table.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
