"""Lists of prompts that people bring: a prompt a line, or a table with a column of prompts."""

import csv
import re
from io import StringIO
from pathlib import Path

from sepme._checks import plain
from sepme.artefact import read_text
from sepme.errors import SepmeError, in_words

__all__ = ["read_prompts"]

#: What a column of prompts is called, whatever its case.
COLUMNS = ("prompt", "prompts", "text", "caption")
#: What is no list of prompts -> how its text begins.
_FOREIGN = {
    "JSON or code": r'\s*(\{\s*"|(\w+\s*=\s*)?\[[\[\s]*[{"\'])',
    "RTF": r"\{\\rtf",
    "a web page": r"(?i)\s*<(!doctype|html|\?xml|ul|ol)",
    "a Markdown table": r"\s*\|.*\|\s*\n\s*\|[\s:|-]+\|",
    "a picture's settings": r"(?s)(.*\n)?(Negative prompt:|Steps: \d+, )",
}
_JSON = (".json", ".jsonl", ".ndjson")
#: Not "#cyberpunk city".
_COMMENT = re.compile(r"\s*#+(\s|$)")
#: What every line of a list may bear: the marks of Markdown; quotes, perhaps with Python's comma.
_BORNE = (
    r"\s*(?:[-*•]|\d+[.)])\s+(.+)",
    r'\s*"((?:[^"]|"")+)"\s*,?\s*',
    r"\s*'([^']+)'\s*,?\s*",
    r"\s*“([^“”]+)”\s*,?\s*",
)


def read_prompts(file: Path) -> list[str]:
    """The prompts in a text file (one a line, blank lines and `# comments` left out) or a CSV file.

    A file is a table if its name ends in .csv or .tsv, or if its first line has several cells of
    which one is `prompt`. In a list, a first line like `prompt` is a head. Quotes around all lines,
    commas behind these, and the marks of a Markdown list are no part of a prompt. UTF-8 and UTF-16,
    with a byte order mark or (UTF-8) without.

    Raises:
        SepmeError: a file that cannot be read, JSON and the like, a table without a column of
            prompts or with a row that lacks it, no prompt at all, or a character that cannot be
            printed.
    """
    try:
        text = read_text(file)
    except OSError as error:
        raise SepmeError(
            f"'{file}' cannot be read ({in_words(error)}): give a text file, one prompt a line."
        ) from error
    foreign = [what for what, begins in _FOREIGN.items() if re.match(begins, text)]
    if foreign or file.suffix.lower() in _JSON:
        what = foreign[0] if foreign else "JSON"
        raise SepmeError(f"'{file}' holds {what}: give a text file, one prompt a line, or a table.")
    text = re.sub(r"\Asep=.\s*", "", text)  # Excel's own first line
    lines = re.split(r"\r\n?|\n", text)  # at these alone: splitlines() cuts at U+2028 too
    first = next((line for line in lines if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    head = [cell.strip().strip('"').lower() for cell in first.split(delimiter)]
    if file.suffix.lower() in (".csv", ".tsv") or (len(head) > 1 and "prompt" in head):
        found = _column(file, text, delimiter)
    else:
        found = _bare([line for line in lines if line.strip() and not _COMMENT.match(line)])
    prompts = [plain(" ".join(prompt.split())) for prompt in found]
    prompts = list(dict.fromkeys(prompt for prompt in prompts if prompt))
    if not prompts:
        raise SepmeError(f"'{file}' holds no prompt: write one a line.")
    return prompts


def _bare(lines: list[str]) -> list[str]:
    """The lines of a list without its head, and without what each of them bears."""
    if lines[1:] and lines[0].strip(" \t\"'“”,:").lower() in COLUMNS:
        lines = lines[1:]
    for pattern in _BORNE:
        cells = [re.fullmatch(pattern, line) for line in lines]
        if all(cells):
            lines = [cell[1] for cell in cells]
            if '"' in pattern:
                lines = [line.replace('""', '"') for line in lines]
    return lines


def _column(file: Path, text: str, delimiter: str) -> list[str]:
    """The cells below the head of the column of prompts."""
    try:
        rows = [row for row in csv.reader(StringIO(text), delimiter=delimiter, strict=True) if row]
    except csv.Error as error:
        raise SepmeError(f"'{file}' is no table ({error}): check its quotes.") from error
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    at = next((head.index(name) for name in COLUMNS if name in head), None)
    if at is None:
        raise SepmeError(
            f"'{file}' has no column 'prompt' (its first line is {', '.join(head) or 'empty'}): "
            "name one, or give a text file with one prompt a line."
        )
    for n, row in enumerate(rows, start=1):
        if len(row) <= at:
            raise SepmeError(f"Row {n} of '{file}' has no cell in the column '{head[at]}'.")
        if any(cell.strip() for cell in row[len(head) :]):
            raise SepmeError(
                f"Row {n} of '{file}' has more cells than its head: write a prompt that contains a "
                "comma between double quotes."
            )
    return [row[at] for row in rows[1:]]
