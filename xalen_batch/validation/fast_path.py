"""The fast path: a block whose lines all have the usual chat form is decoded in one call.

A line of another form, good or invalid, takes the slow path of `lines.py`, which words its error.
"""

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from xalen_batch.endpoints.chat import UsualChat
from xalen_batch.jsonl import Block

MAX_CUSTOM_ID = 512

# Keys that decide what runs. A higher count than usual may mean a duplicate key.
KEYS = re.compile(rb'"(?:custom_id|body|model|messages|query|documents|input|prompt|instructions)"')
# How many of KEYS a chat line has: custom_id, body, model and messages.
CHAT_KEYS = 4
OPENING, CLOSING = b"{}"
# A letter or `_` as a \u escape. Clients do not write one, but it could disguise one of KEYS.
ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")


class UsualLine(Struct, forbid_unknown_fields=True, gc=False):
    custom_id: Annotated[str, Meta(min_length=1, max_length=MAX_CUSTOM_ID)]
    method: Literal["POST"]
    url: str
    body: UsualChat


# Decodes all values in a buffer. It does not check that each line has one (see `decode`).
usual_lines = msgspec.json.Decoder(UsualLine).decode_lines


def decode(block: Block) -> list[UsualLine] | None:
    """The value of each line, if all lines have the usual form; else None.

    `UsualLine` forbids unknown fields, so no part of these lines goes unread, and no key of them
    occurs twice.
    """
    data, count = block.data, len(block.spans)
    if data is None:
        return None
    begin, end = block.ends
    try:
        values = usual_lines(memoryview(data)[begin:end])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    # The decoder ignores line ends. Reject values that span lines: each line must start with `{`
    # and end with `}`, and `}` newline `{` cannot occur within a value.
    if count > 1 and not _all_in_braces(block):
        return None
    # Each line then has at least one value, and each value at least one of each key. So this count
    # is exact only if each line has one value and no key is repeated.
    if len(KEYS.findall(data, begin, end)) != CHAT_KEYS * count:
        return None
    if _has_escaped_letter(data, begin, end):
        return None
    return values


def may_repeat_keys(line: bytes) -> bool:
    """Whether one of KEYS may occur twice in a line; if so, a full parse has to tell."""
    found = KEYS.findall(line)
    return len(found) != len(set(found)) or _has_escaped_letter(line, 0, len(line))


def _all_in_braces(block: Block) -> bool:
    data, start = block.data or b"", block.start
    return all(
        length and data[offset - start] == OPENING and data[offset - start + length - 1] == CLOSING
        for _, offset, length in block.spans
    )


def _has_escaped_letter(data: bytes, begin: int, end: int) -> bool:
    # The cheapest search first: for one byte it is ten times as fast as for four, and for four
    # faster than a pattern.
    if data.find(b"\\", begin, end) < 0 or data.find(b"\\u00", begin, end) < 0:
        return False
    return ESCAPED_LETTER.search(data, begin, end) is not None
