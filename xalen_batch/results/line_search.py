"""Finding one line of a batch: by its custom id in the input, and by its number in the results.

A custom id has no index: the input file is searched for its bytes, chunk by chunk, at the speed of
`bytes.find`. Result files are sorted by number, so a binary search reads some chunks of them.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import orjson

from xalen_batch import jsonl
from xalen_batch.config import MiB

# `chunks(start, end)` reads a range of a file.
Chunks = Callable[[int, int], Iterator[bytes]]


class _Named(msgspec.Struct):
    custom_id: str


_named = msgspec.json.Decoder(_Named).decode


class Found(NamedTuple):
    """A line of a file: its number from 1, and its bytes without the line end."""

    number: int
    line: bytes


def by_custom_id(chunks: Chunks, size: int, custom_id: str, *, longest: int) -> Found | None:
    """The line of an input file with this custom id, or None. Lines are at most `longest` bytes.

    If no usual spelling of the id is in the file and it has ids with escapes, every line is parsed.
    """
    needles = _spellings(custom_id)
    has_escapes = False
    for start, number, chunk_has_escapes in _candidates(chunks(0, size), needles):
        has_escapes |= chunk_has_escapes
        if number:
            line = _line(chunks, start, size, longest)
            if _is_named(line, custom_id):
                return Found(number, line)
    if not has_escapes:
        return None
    for span, content in jsonl.lines(chunks(0, size), longest=longest):
        if content is not None and b"\\" in content and _is_named(content, custom_id):
            return Found(span.line_no, content)
    return None


def _spellings(custom_id: str) -> list[bytes]:
    """The JSON strings that encoders write for an id: in UTF-8, in ASCII, with escaped slashes."""
    usual = orjson.dumps(custom_id)
    ascii = json.dumps(custom_id).encode()
    return list(dict.fromkeys([usual, ascii, usual.replace(b"/", b"\\/")]))


def _candidates(
    chunks: Iterator[bytes], needles: Sequence[bytes]
) -> Iterator[tuple[int, int, bool]]:
    """The offset and number of each line that holds one of the needles; 0, 0 after a chunk.

    With it: whether the chunk has a backslash.
    """
    overlap = max(map(len, needles)) - 1
    # The content that was read last, from the offset `begin` on, and the lines that ended before.
    held, begin, lines_before = b"", 0, 0
    # The offset at which the line begins that `held` begins in.
    line_start = 0
    for chunk in chunks:
        content = held + chunk
        for needle in needles:
            at = content.find(needle)
            while at >= 0:
                newline = content.rfind(b"\n", 0, at)
                start = line_start if newline < 0 else begin + newline + 1
                yield start, lines_before + content.count(b"\n", 0, at) + 1, False
                at = content.find(needle, at + 1)
        yield 0, 0, b"\\" in chunk
        kept = max(0, len(content) - overlap)
        lines_before += content.count(b"\n", 0, kept)
        newline = content.rfind(b"\n", 0, kept)
        if newline >= 0:
            line_start = begin + newline + 1
        held, begin = content[kept:], begin + kept


def _line(chunks: Chunks, start: int, size: int, longest: int) -> bytes:
    """The line that begins at an offset, without its line end; cut behind `longest` bytes."""
    read = bytearray()
    for chunk in chunks(start, min(size, start + longest + 2)):
        newline = chunk.find(b"\n")
        if newline >= 0:
            read += chunk[:newline]
            break
        read += chunk
    return bytes(read).removesuffix(b"\r")


def _is_named(line: bytes, custom_id: str) -> bool:
    try:
        return _named(line.removeprefix(b"\xef\xbb\xbf")).custom_id == custom_id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def by_number(
    chunks: Chunks, size: int, number: int, number_of: Callable[[bytes], int]
) -> bytes | None:
    """The line with this number of a file whose lines are sorted by number, or None.

    `number_of` reads the number from the beginning of a line. Reads about two MiB for each halving,
    and more only of longer lines.
    """
    low, high = 0, size
    while high - low > 2 * MiB:
        # On a multiple of MiB, at which a frame of the object begins.
        middle = (low + high) // 2 // MiB * MiB
        if middle <= low:
            break
        start = _next_start(chunks, middle, high)
        if start is None:
            high = middle
        elif number_of(_line(chunks, start, size, 200)) <= number:
            low = start
        else:
            high = middle + 1
    for _, line in jsonl.lines(chunks(low, size), longest=size):
        found = number_of(line or b"")
        if found == number:
            return line
        if found > number:
            break
    return None


def _next_start(chunks: Chunks, middle: int, high: int) -> int | None:
    """The offset of the first line that begins behind `middle`; None: none does before `high`."""
    at = middle
    for chunk in chunks(middle, high):
        newline = chunk.find(b"\n")
        if newline >= 0:
            start = at + newline + 1
            return start if start < high else None
        at += len(chunk)
    return None
