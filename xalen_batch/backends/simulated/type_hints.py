"""JSON Schemas of the types that people name in prompts."""

import re
from typing import Any

# Words for types, in the order in which they are looked for.
_TYPES: tuple[tuple[re.Pattern[str], dict[str, Any]], ...] = tuple(
    (re.compile(rf"(?:{words})\b", re.I), schema)
    for words, schema in (
        (r"booleans?|bool|true\b.{0,6}\bfalse", {"type": "boolean"}),
        (r"integers?|int|whole numbers?", {"type": "integer"}),
        (r"numbers?|floats?|decimals?|doubles?|numeric", {"type": "number"}),
        (r"(?:iso ?8601 )?date-?time|timestamp", {"type": "string", "format": "date-time"}),
        (r"(?:iso ?8601 )?dates?|YYYY-MM-DD", {"type": "string", "format": "date"}),
        (r"e-?mail(?: address)?", {"type": "string", "format": "email"}),
        (r"urls?|uris?", {"type": "string", "format": "uri"}),
        (r"uuids?", {"type": "string", "format": "uuid"}),
        (r"strings?|str|texts?", {"type": "string"}),
        (r"objects?|dict(?:ionary)?", {"type": "object"}),
        (r"null|none", {"type": "null"}),
    )
)
_LIST = re.compile(r"(?:array|list)s?\b(?:\s*of\b|\s*[\[<(])?\s*|(?=\w+\[\])", re.I)
_RANGE = re.compile(r"(-?\d{1,9}(?:\.\d{1,9})?)\s*(?:-|–|\.\.+|to|and)\s*(-?\d{1,9}(?:\.\d{1,9})?)")
_ARTICLE = re.compile(r"[\s<(\[\"'`*:–—-]*(?:(?:an?|the|optional|required)\s+)?", re.I)
_FILLER = " \t<>()\"'`*."
LONGEST_OPTION = 40


def hinted(hint: str) -> dict[str, Any]:
    """The schema of the type with which a hint begins; an empty one if it begins with none."""
    text = hint[_ARTICLE.match(hint).end() :]  # type: ignore[union-attr]  # it matches nothing too
    if listed := _LIST.match(text):
        return {"type": "array", "items": hinted(text[listed.end() :].replace("[]", "", 1))}
    for words, schema in _TYPES:
        if found := words.match(text):
            is_number = schema["type"] in ("integer", "number")
            return {**schema, **_bounds(text[found.end() :])} if is_number else schema
    return {}


def _bounds(text: str) -> dict[str, Any]:
    found = _RANGE.search(text)
    if not found:
        return {}
    low, high = (float(part) if "." in part else int(part) for part in found.groups())
    return {"minimum": low, "maximum": high} if low < high else {}


def of_example(text: str) -> dict[str, Any]:
    """The schema of a string in an example: a type, one of several strings, or any string."""
    options = [option.strip(_FILLER) for option in text.split("|")]
    if len(options) > 1 and all(0 < len(option) <= LONGEST_OPTION for option in options):
        named = [option for option in options if option != "null"]
        types = [hinted(option).get("type") for option in named]
        if None in types:
            return {"enum": named}
        return {"type": [*dict.fromkeys(types), *(["null"] if "null" in options else [])]}
    return hinted(text) or {"type": "string"}


def of_literal(text: str) -> dict[str, Any]:
    """The schema of an unquoted value in an example."""
    text = text.strip()
    if re.fullmatch(r"-?\d+", text):
        return {"type": "integer"}
    if re.fullmatch(r"-?\d*\.\d+(?:[eE][+-]?\d+)?", text):
        is_share = 0 <= float(text) <= 1
        return {"type": "number", "minimum": 0, "maximum": 1} if is_share else {"type": "number"}
    if re.match(r"true|false", text, re.I):
        return {"type": "boolean"}
    return hinted(text)
