"""JSONL: finding the lines of an input file, and rendering the lines of output files."""

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from uuid import UUID

import msgspec
import orjson

from xalen_batch.ids import line_id, request_id

_ENTRY = struct.Struct("<IQI")
_LENGTH = struct.Struct("<12xI")
SPAN_BYTES = _ENTRY.size
# Encodes one line of an index in 16 bytes: its number, offset and length.
entry = _ENTRY.pack
CR = 0x0D
# Most lines of a block. The Span of a short line takes fifty times the memory of the line.
BLOCK_LINES = 1_000


class Span(NamedTuple):
    """The position of a line: its number, its offset and its length in bytes.

    Numbers start at 1, and blank lines count.
    """

    line_no: int
    offset: int
    length: int


def pack(spans: Iterable[Span]) -> bytes:
    """Spans as 16 bytes each, for a task's `line_index`."""
    return b"".join(entry(*span) for span in spans)


def unpack(index: bytes | bytearray) -> Iterator[Span]:
    """The spans of an index that `pack` made."""
    return map(Span._make, _ENTRY.iter_unpack(index))


def renumber(index: bytes | bytearray, by: int) -> bytes:
    """The same index, with `by` added to every line's number."""
    # The index is read as one large integer in base 2**128, with one entry for a digit. The number
    # is the low part of each digit, so one addition renumbers all lines.
    added = entry(by, 0, 0) * (len(index) // SPAN_BYTES)
    return (int.from_bytes(index, "little") + int.from_bytes(added, "little")).to_bytes(
        len(index), "little"
    )


class Block(NamedTuple):
    """At least one line, or several consecutive ones, with the bytes that hold them.

    `data` begins at the offset `start` of the object. It is None for a single line that was longer
    than the limit, whose bytes were dropped.
    """

    spans: list[Span]
    data: bytes | None
    start: int

    @property
    def ends(self) -> tuple[int, int]:
        """The offsets in `data` of the first line's beginning and of the last line's end."""
        first, last = self.spans[0], self.spans[-1]
        return first.offset - self.start, last.offset + last.length - self.start

    def line(self, span: Span) -> bytes:
        """The bytes of one of the lines, without its line end."""
        begin = span.offset - self.start
        return (self.data or b"")[begin : begin + span.length]


def blocks(chunks: Iterable[bytes], *, longest: int, start: int = 0) -> Iterator[Block]:
    """The lines of a stream in blocks, each of one chunk and of at most BLOCK_LINES lines.

    A line that spans chunks is a block of its own; if it is longer than `longest` bytes, its bytes
    are dropped. `start`: the offset of the stream in the object. The last line may lack a newline.
    """
    number, offset, size = 1, start, 0
    # The beginning of the current line, from earlier chunks; `size` is its length.
    held: list[bytes] = []
    for chunk in chunks:
        begin = chunk.find(b"\n") + 1 if size else 0
        if begin:
            size += begin - 1
            held.append(chunk[: begin - 1])
            yield _block(number, offset, size, held if size <= longest else None)
            number, offset, size, held = number + 1, offset + size + 1, 0, []
        while not size and (spans := _spans(chunk, begin, number, offset, longest)):
            yield Block(spans, chunk, offset - begin)
            end = chunk.find(b"\n", begin + spans[-1].offset + spans[-1].length - offset) + 1
            number, offset, begin = number + len(spans), offset + end - begin, end
        size += len(chunk) - begin
        if size > longest:
            held.clear()
        else:
            held.append(chunk[begin:])
    if size:
        yield _block(number, offset, size, held if size <= longest else None)


def _block(number: int, offset: int, size: int, held: list[bytes] | None) -> Block:
    """The block of one line that spans chunks; None for `held`: its bytes were dropped."""
    if held is None:
        return Block([Span(number, offset, size)], None, offset)
    data = b"".join(held)
    return Block([Span(number, offset, size - data.endswith(b"\r"))], data, offset)


def _spans(chunk: bytes, begin: int, number: int, offset: int, longest: int) -> list[Span]:
    """At most BLOCK_LINES lines that end in a chunk, from the line that begins at `begin` on."""
    spans: list[Span] = []
    find, ends = chunk.find, offset - begin
    while len(spans) < BLOCK_LINES and (end := find(b"\n", begin)) >= 0:
        length = end - begin
        if 0 < length <= longest and chunk[end - 1] == CR:
            length -= 1
        spans.append(Span(number, begin + ends, length))
        number, begin = number + 1, end + 1
    return spans


def lines(chunks: Iterable[bytes], *, longest: int) -> Iterator[tuple[Span, bytes | None]]:
    """The lines of a stream without line ends; None for a line of more than `longest` bytes."""
    for block in blocks(chunks, longest=longest):
        for span in block.spans:
            yield span, None if span.length > longest else block.line(span)


def lengths(index: bytes) -> Iterator[int]:
    """The length of each line in an index."""
    return (length for (length,) in _LENGTH.iter_unpack(index))


class InputLine(msgspec.Struct):
    """The fields of a validated line that a worker needs to run it."""

    custom_id: str
    body: msgspec.Raw


input_line = msgspec.json.Decoder(InputLine).decode


BREAKS = "\x85\u2028\u2029"
# Line breaks of `str.splitlines` that JSON strings may hold unescaped. JSON requires escapes for
# the others (\n, \r, \v, \f and \x1c to \x1e). Bytes of one UTF-8 sequence never occur inside
# another, and valid JSON has these characters only inside strings, so replacing bytes is safe.
LINE_BREAKS = {char.encode(): f"\\u{ord(char):04x}".encode() for char in BREAKS}


def escaped(json: bytes) -> bytes:
    """The same JSON value, with BREAKS escaped, so that `text.splitlines()` does not split it.

    Costs one or two scans if there is nothing to escape.
    """
    # Both lead bytes are rare in most scripts, and the search for one byte is many times faster
    # than the search for three.
    if json.isascii() or (json.find(b"\xc2") < 0 and json.find(b"\xe2") < 0):
        return json
    for raw, escape in LINE_BREAKS.items():
        json = json.replace(raw, escape)
    return json


def has_line_break(*texts: str | None) -> bool:
    """Whether `escaped` would change any of the texts."""
    return any(
        not text.isascii() and any(char in text for char in BREAKS) for text in texts if text
    )


# The end of an output line, after its answer.
ANSWER_END = b'},"error":null}\n'
_OUTPUT_LINE = (
    b'{"id":"batch_%b","custom_id":%b,"response":{"status_code":%d,"request_id":"%b","body":%b'
    + ANSWER_END
)


def output_line(*, request_id: str, custom_id: bytes, status_code: int, body: bytes) -> bytes:
    """The output line of a request that was answered.

    `custom_id` is JSON, and `body` the backend's JSON object on one line.
    """
    request = request_id.encode()
    # The format adds the prefix of the line's id (`ids.line_id`).
    return _OUTPUT_LINE % (request, custom_id, status_code, request, body)


def error_line(*, id: str, custom_id: bytes, error: bytes) -> bytes:
    """The line of a request that ended without an answer; `custom_id` and `error` are JSON."""
    return b'{"id":"%b","custom_id":%b,"response":null,"error":%b}\n' % (
        id.encode(),
        custom_id,
        error,
    )


def result_line(
    batch_id: UUID,
    line_no: int,
    custom_id: str,
    status_code: int | None,
    body: bytes | None,
    error_code: str | None,
    error_message: str | None,
    is_escaped: bool | None = None,
) -> bytes:
    """The line of a result in an output or error file. The same columns give the same bytes.

    `is_escaped`: render the custom id and the error through `escaped`. The body is stored in its
    rendered form.
    """
    name = _json(custom_id, is_escaped)
    if status_code is None:
        error = _json({"code": error_code or "", "message": error_message or ""}, is_escaped)
        return error_line(id=line_id(batch_id, line_no), custom_id=name, error=error)
    return output_line(
        request_id=request_id(batch_id, line_no),
        custom_id=name,
        status_code=status_code,
        body=body or b"null",
    )


def _json(value: str | dict[str, str], is_escaped: bool | None) -> bytes:
    return escaped(orjson.dumps(value)) if is_escaped else orjson.dumps(value)


def result_size(
    line_no: int,
    custom_id: str,
    status_code: int | None,
    body: bytes | None,
    error_code: str | None,
    error_message: str | None,
    is_escaped: bool | None = None,
) -> int:
    """The length of `result_line`, which is the same for every batch.

    It is computed without rendering an answer, since every result is counted when it is recorded.
    """
    if status_code is None:
        return len(
            result_line(_ANY, line_no, custom_id, None, None, error_code, error_message, is_escaped)
        )
    # Both ids have the line number in at least six hex digits.
    longer = 2 * max(0, (line_no.bit_length() + 3) // 4 - 6)
    return _FRAME + longer + len(_json(custom_id, is_escaped)) + len(body or b"null")


_ANY = UUID(int=0)
# The length of an output line without its custom id and its answer.
_FRAME = len(result_line(_ANY, 0, "", 200, b"{}", None, None)) - len(b'""') - len(b"{}")
