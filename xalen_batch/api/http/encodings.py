"""The Accept-Encoding field of a request (RFC 9110, section 12.5.3)."""

import re

_ITEM = re.compile(r"\s*([^\s;,]+)\s*(?:;\s*q=([01](?:\.\d{0,3})?)\s*)?", re.ASCII)


def asks_for(field: str | None, coding: str) -> bool:
    """Whether a content coding is the only one that the field accepts.

    Clients list every coding that they believe they decode. Those that want one name it alone.
    """
    items = [_ITEM.fullmatch(item) for item in (field or "").lower().split(",")]
    weights = {item[1]: float(item[2] or 1) for item in items if item is not None}
    identity = weights.pop("identity", 0)
    return {name for name, weight in weights.items() if weight} == {coding} and (
        weights[coding] >= identity
    )
