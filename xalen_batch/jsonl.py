"""The two JSONL shapes: where the lines of an input file are, and what an output line looks like."""

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec
import orjson

_ENTRY = struct.Struct("<IQI")


class Span(NamedTuple):
    """Where a line is: its number from 1 (blank lines count), the offset of its first byte, its length in bytes."""

    line_no: int
    offset: int
    length: int


def pack(spans: Iterable[Span]) -> bytes:
    """Spans as 16 bytes each, for a task's `line_index`."""
    return b"".join(_ENTRY.pack(*span) for span in spans)


def unpack(index: bytes) -> Iterator[Span]:
    return map(Span._make, _ENTRY.iter_unpack(index))


class InputLine(msgspec.Struct):
    """What running a line needs of it. The line has been validated when this is read."""

    custom_id: str
    body: msgspec.Raw


input_line = msgspec.json.Decoder(InputLine).decode


def output_line(*, id: str, request_id: str, custom_id: str, status_code: int, body: bytes) -> bytes:
    """A line that was answered: `body` is the backend's JSON object as bytes on one line."""
    return b'{"id":"%b","custom_id":%b,"response":{"status_code":%d,"request_id":"%b","body":%b},"error":null}\n' % (
        id.encode(),
        orjson.dumps(custom_id),
        status_code,
        request_id.encode(),
        body,
    )


def error_line(*, id: str, custom_id: str, code: str, message: str) -> bytes:
    """A line that ended without any answer."""
    return b'{"id":"%b","custom_id":%b,"response":null,"error":%b}\n' % (
        id.encode(),
        orjson.dumps(custom_id),
        orjson.dumps({"code": code, "message": message}),
    )
