"""The two JSONL shapes: where the lines of an input file are, and what an output line looks like."""

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
# The 16 bytes of an index for one line: its number, offset and length.
entry = _ENTRY.pack
CR = 0x0D
# Most lines of a block: where a short one is takes fifty times its own room.
BLOCK_LINES = 1_000


class Span(NamedTuple):
    """Where a line is: its number from 1 (blank lines count), the offset of its first byte, its
    length in bytes.
    """

    line_no: int
    offset: int
    length: int


def pack(spans: Iterable[Span]) -> bytes:
    """Spans as 16 bytes each, for a task's `line_index`."""
    return b"".join(entry(*span) for span in spans)


def unpack(index: bytes | bytearray) -> Iterator[Span]:
    return map(Span._make, _ENTRY.iter_unpack(index))


def renumber(index: bytes | bytearray, by: int) -> bytes:
    """The same index, with `by` added to every line's number."""
    # An entry begins with its number, so all of them are the digits of one large number, and one
    # addition does it.
    added = entry(by, 0, 0) * (len(index) // SPAN_BYTES)
    return (int.from_bytes(index, "little") + int.from_bytes(added, "little")).to_bytes(
        len(index), "little"
    )


class Block(NamedTuple):
    """Lines that follow each other, one at least. `data` holds them all, and begins at `start` in
    the object.

    `data` is None for a single line that was too long to be held.
    """

    spans: list[Span]
    data: bytes | None
    start: int

    @property
    def ends(self) -> tuple[int, int]:
        """Where in `data` the lines begin, and where they end."""
        first, last = self.spans[0], self.spans[-1]
        return first.offset - self.start, last.offset + last.length - self.start

    def line(self, span: Span) -> bytes:
        """The bytes of one of its lines, without its line end."""
        begin = span.offset - self.start
        return (self.data or b"")[begin : begin + span.length]


def blocks(chunks: Iterable[bytes], *, longest: int, start: int = 0) -> Iterator[Block]:
    """The lines of a stream of bytes, however it is cut into chunks: a chunk's worth at a time, or
    `BLOCK_LINES`.

    A line of more than `longest` bytes that is in no chunk whole is a block of its own, and never
    held. `start`: how many bytes of the object come before the stream. A last line without a
    newline is a line.
    """
    number, offset, size = 1, start, 0
    # What the chunks before have of the line that goes on.
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
    """One line that came in pieces."""
    if held is None:
        return Block([Span(number, offset, size)], None, offset)
    data = b"".join(held)
    return Block([Span(number, offset, size - data.endswith(b"\r"))], data, offset)


def _spans(chunk: bytes, begin: int, number: int, offset: int, longest: int) -> list[Span]:
    """Lines that end in a chunk, from the one that begins at `begin`, but no more than a block has."""
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
    """The lines of a stream, without their line ends, as `blocks` finds them; None for one of more
    than `longest` bytes.
    """
    for block in blocks(chunks, longest=longest):
        for span in block.spans:
            yield span, None if span.length > longest else block.line(span)


def lengths(index: bytes) -> Iterator[int]:
    """The length of each line in an index."""
    return (length for (length,) in _LENGTH.iter_unpack(index))


class InputLine(msgspec.Struct):
    """What running a line needs of it. The line has been validated when this is read."""

    custom_id: str
    body: msgspec.Raw


input_line = msgspec.json.Decoder(InputLine).decode


BREAKS = "\x85\u2028\u2029"
# Characters that JSON strings may hold unescaped and at which `str.splitlines` cuts all the same;
# of the others at which it does (\n, \r, \v, \f and \x1c to \x1e) JSON itself asks for escapes.
# Each UTF-8 sequence begins with a lead byte, so none is found within another character, and valid
# JSON has them inside strings alone.
LINE_BREAKS = {char.encode(): f"\\u{ord(char):04x}".encode() for char in BREAKS}


def escaped(json: bytes) -> bytes:
    """The same JSON value, with no character in it at which a client's `text.splitlines()` would
    cut. Costs a scan or two where there is none.
    """
    # Both lead bytes are rare in most scripts, and one byte is found many times as fast as three.
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


# What ends an output line, behind its answer.
ANSWER_END = b'},"error":null}\n'
_OUTPUT_LINE = (
    b'{"id":"batch_%b","custom_id":%b,"response":{"status_code":%d,"request_id":"%b","body":%b'
    + ANSWER_END
)


def output_line(*, request_id: str, custom_id: bytes, status_code: int, body: bytes) -> bytes:
    """A line that was answered: `custom_id` is JSON, `body` the backend's JSON object as bytes on
    one line.
    """
    request = request_id.encode()
    # The line's id is `ids.line_id`.
    return _OUTPUT_LINE % (request, custom_id, status_code, request, body)


def error_line(*, id: str, custom_id: bytes, error: bytes) -> bytes:
    """A line that ended without any answer: `custom_id` and `error` are JSON."""
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
    """The output or error file's line of a recorded result. The same columns always give the same
    bytes.

    `is_escaped`: the custom id and the error are rendered through `escaped`; the body is stored as
    it is rendered.
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
    """The length of `result_line`, whatever the batch, without making it: every line is counted
    when it is recorded.
    """
    if status_code is None:
        return len(
            result_line(_ANY, line_no, custom_id, None, None, error_code, error_message, is_escaped)
        )
    # Both ids carry the line number, in six hex digits or more.
    longer = 2 * max(0, (line_no.bit_length() + 3) // 4 - 6)
    return _FRAME + longer + len(_json(custom_id, is_escaped)) + len(body or b"null")


_ANY = UUID(int=0)
# What stands around a custom id and an answer.
_FRAME = len(result_line(_ANY, 0, "", 200, b"{}", None, None)) - len(b'""') - len(b"{}")
