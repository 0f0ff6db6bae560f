"""The Accept-Encoding field of a request (RFC 9110, section 12.5.3)."""

import re

_ITEM = re.compile(r"\s*([^\s;,]+)\s*(?:;\s*q=([01](?:\.\d{0,3})?)\s*)?", re.ASCII)


def accepts(field: str | None, coding: str) -> bool:
    """Whether the field names a content coding, and does not prefer the content without any.

    `*` does not name one: clients send it that can decode gzip and no more.
    """
    items = [_ITEM.fullmatch(item) for item in (field or "").lower().split(",")]
    weights = {item[1]: float(item[2] or 1) for item in items if item is not None}
    return weights.get(coding, 0) > 0 and weights[coding] >= weights.get("identity", 0)
