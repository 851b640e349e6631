"""Results on the disk as JSON and on the screen as plain tables; and where they may be written."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sepme.artefact import write_atomically
from sepme.errors import SepmeError


def writable_folder(path: str | Path) -> Path:
    """The folder, created if it is missing.

    Raises:
        SepmeError: it cannot be created or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SepmeError(
            f"The folder {path} cannot be written to ({reason}): choose another with --out."
        ) from error
    return path


def save_json(path: str | Path, content: Any) -> Path:
    """Write a result as indented JSON, whole or not at all; NaN is refused."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    return write_atomically(path, (text + "\n").encode())


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A plain table: the first column left, the others right, a rule below the header."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        first = row[0].ljust(widths[0])
        return "  ".join([first, *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])

    rule = "  ".join("-" * width for width in widths)
    return "\n".join(text.rstrip() for text in (line(cells[0]), rule, *map(line, cells[1:])))


def demo_table(report: dict[str, Any]) -> str:
    """What `sepme demo` prints: the figures of report.json, in words."""
    erased = [
        (
            name,
            percent(row["accuracy_before"]),
            percent(row["accuracy_after"]),
            row["pictures"],
            row["iterations"],
            f"{row['seconds']:.1f}",
        )
        for name, row in report["erased"].items()
    ]
    header = ("erased concept", "seen before", "seen after", "pictures", "iterations", "seconds")
    kept = report["retained"]
    parts = {"style right": "style", "object right": "object", "both right": "accuracy"}
    shown = [
        (label, percent(kept[f"{part}_before"]), percent(kept[f"{part}_after"]), kept["pictures"])
        for label, part in parts.items()
    ]
    return "\n\n".join(
        [
            table(header, erased),
            table(("everything else", "before", "after", "pictures"), shown),
            "\n".join(_findings(report)),
        ]
    )


def _findings(report: dict[str, Any]) -> list[str]:
    kept, restored = report["retained"], report["restored"]
    lpips = kept["lpips"]
    distance = f"{lpips:.4f} (mean LPIPS, AlexNet)" if lpips is not None else kept["lpips_note"]
    exact = (
        "bit for bit the original"
        if restored["bit_exact"]
        else f"NOT the original (largest difference {restored['max_abs_diff']:.2g})"
    )
    independent = report["composition"]["order_independent"]
    order = "makes no difference" if independent else "MAKES A DIFFERENCE"
    return [
        f"Change of everything else   {distance}",
        f"All concepts given back     {exact}",
        f"Order of erasing            {order}",
        f"Seconds in total            {report['seconds']['total']:.0f}",
    ]
