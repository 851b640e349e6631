"""Words from outside, shown as they are written: in HTML and in Markdown."""

import re
from html import escape


def in_html(words: object, *, quote: bool = True) -> str:
    """The words for HTML, where `$` and a backslash begin no formula."""
    return re.sub(
        r"[$\\]", lambda sign: f"<span>&#{ord(sign[0])};</span>", escape(str(words), quote)
    )


def in_markdown(words: object) -> str:
    """The words for a line of Markdown, or for a cell of its tables."""
    line = in_html(" ".join(str(words).split()), quote=False)
    return re.sub(r"[`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", line)


def in_code(words: object) -> str:
    """The words for a line of Markdown, between as many backticks as they need."""
    line = " ".join(str(words).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence}{line}{fence}" if fence == "`" else f"{fence} {line} {fence}"
