"""Rows of CSV: RFC 4180, UTF-8, with texts that no spreadsheet takes for a formula."""

import csv
import io
import unicodedata
from collections.abc import Iterable, Sequence

MEDIA_TYPE = "text/csv; charset=utf-8; header=present"
# The first characters of a formula, also in full width: NFKC makes them these.
_FORMULA = ("=", "+", "-", "@")
_QUOTE = "'"


def text(value: str | None) -> str:
    """A text that others chose, as a cell that no spreadsheet computes; "" for None.

    Behind spaces and control characters, a formula begins with `=`, `+`, `-` or `@`. Such a text,
    one that begins with a tab or a line break, and one that begins with an apostrophe get an
    apostrophe in front. So the text is the cell without its first apostrophe.
    """
    if not value:
        return ""
    first = value[0]
    if first.isalnum() and first.isascii():
        return value
    seen = next((char for char in value if not _is_blank(char)), "")
    is_formula = unicodedata.normalize("NFKC", seen).startswith(_FORMULA)
    return f"{_QUOTE}{value}" if is_formula or first in "\t\r\n'" else value


def _is_blank(char: str) -> bool:
    """Whether spreadsheets may skip a character at the beginning of a cell."""
    return char.isspace() or unicodedata.category(char).startswith("C")


def render(rows: Iterable[Sequence[str]]) -> bytes:
    """Rows of cells as CSV. A lone surrogate, which UTF-8 cannot hold, becomes `?`."""
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\r\n").writerows(rows)
    return out.getvalue().encode("utf-8", "replace")
