"""The Range field of a request (RFC 9110, section 14)."""

import re

from xalen_batch.errors import RangeNotSatisfiable

# One range of bytes. Empty elements of a list are allowed.
_ONE = re.compile(
    r"bytes=[\s,]*(?:(?P<first>\d{1,19})-(?P<last>\d{1,19})?|-(?P<suffix>\d{1,19}))[\s,]*",
    re.ASCII | re.IGNORECASE,
)


def parse(field: str | None, size: int) -> range | None:
    """The positions that a Range field asks for, of content of `size` bytes.

    None for the whole content, which also answers a field that is malformed, has another unit or
    several ranges, or asks for a part of nothing. Raises RangeNotSatisfiable.
    """
    asked = None if field is None else _ONE.fullmatch(field)
    if asked is None or size == 0:
        return None
    if asked["suffix"] is not None:
        start, end = max(size - int(asked["suffix"]), 0), size
    else:
        start = int(asked["first"])
        end = size if asked["last"] is None else int(asked["last"]) + 1
        if asked["last"] is not None and end <= start:
            return None
    if start >= size:
        raise RangeNotSatisfiable(size)
    return range(start, min(end, size))
