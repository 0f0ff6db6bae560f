"""Explains why a line is not JSON that all backends read alike.

Slow, with precise messages: called only for lines that a strict parser refused.
"""

import json
import math
import re
from array import array
from itertools import accumulate
from typing import Any, NoReturn

from xalen_batch.errors import quoted
from xalen_batch.validation.errors import Fault

# Far below the limits of parsers (pydantic has about 200), so that no backend refuses a line that
# we accepted.
MAX_DEPTH = 128

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
# Maps an opening bracket to +1 and a closing one to -1, as signed bytes.
_LEVEL = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_REST = bytes(set(range(256)) - set(b"[{]}"))


class _Wrong(Exception):
    """Raised by a hook of the JSON parser; its message is for the user."""


def diagnose(raw: bytes, line: int) -> Fault:
    """The fault of a line, with its remedy."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Fault(
            "invalid_encoding",
            f"Byte {error.start + 1} of the line (0x{raw[error.start]:02x}) is not UTF-8. Save the"
            " file as UTF-8, for example with: iconv -f WINDOWS-1252 -t UTF-8 input.jsonl >"
            " utf8.jsonl",
            line,
        )
    return Fault("invalid_json_line", _reason(raw, text), line)


def is_too_deep(raw: bytes) -> bool:
    """Whether objects and lists are nested in more than MAX_DEPTH levels."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return False
    levels = array("b", _STRING.sub(b"", raw).translate(_LEVEL, _REST))
    return max(accumulate(levels), default=0) > MAX_DEPTH


def repeated_key(raw: bytes) -> str | None:
    """The first key that occurs twice in the line or its body or params; None: all are unique.

    Parsers disagree on which of the two values counts.
    """
    outer = json.loads(raw, object_pairs_hook=_Pairs)
    for pairs in (outer, *(value for key, value in outer if key in ("body", "params"))):
        if isinstance(pairs, _Pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    return key
                seen.add(key)
    return None


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of an object, in order, with duplicates."""


def _reason(raw: bytes, text: str) -> str:
    if b"\x00" in raw:
        return (
            f"Character {text.index(chr(0)) + 1} of the line is a NUL. Remove it; inside a string"
            " write it as \\u0000."
        )
    if is_too_deep(raw):
        return (
            f"The line is nested too deeply: more than {MAX_DEPTH} objects or lists inside each"
            " other. Flatten it."
        )
    try:
        json.loads(text, parse_constant=_constant, parse_float=_number, parse_int=_number)
    except _Wrong as wrong:
        return str(wrong)
    except json.JSONDecodeError as error:
        return _malformed(text, error)
    return (
        "A string holds half of a surrogate pair (such as \\ud83d alone), which is no character."
        " Write the whole pair or remove it."
    )


def _malformed(text: str, error: json.JSONDecodeError) -> str:
    if text.startswith("\ufeff"):
        return "The line begins with a byte order mark, as when files are joined. Remove it."
    if text.strip() in ("{", "[", "[{") or (
        text.startswith("[") and text.rstrip().endswith(("{", ","))
    ):
        return (
            "The line is only the beginning of a JSON value. Put each request on one line of its"
            " own, as JSONL, not indented and not in a list."
        )
    if text.startswith(("'", "{'")):
        return (
            "Not JSON: strings and keys need double quotes. Write the lines with json.dumps, not"
            " with str."
        )
    return (
        f"Not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}. Each line must be"
        " one whole JSON object; write it with a JSON library."
    )


def _constant(name: str) -> NoReturn:
    raise _Wrong(f"{name} is not JSON. Use a number, or null.")


def _number(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _Wrong(
            f"The number {quoted(digits)} is too large to be read as one. Shorten it, or write it"
            " as a string."
        )
    return value
