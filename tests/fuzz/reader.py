"""Invariants of reading an input file with any bytes."""

import json
import zlib
from collections.abc import Iterator
from decimal import Decimal
from uuid import UUID

import orjson

from xalen_batch import catalog, jsonl
from xalen_batch.billing.terms import Terms
from xalen_batch.endpoints.chat import ChatRequest, UsualChat
from xalen_batch.endpoints.names import ENDPOINTS
from xalen_batch.jsonl import Block
from xalen_batch.validation import fast_path, prefix_order
from xalen_batch.validation.errors import Fault
from xalen_batch.validation.estimate import estimate
from xalen_batch.validation.lines import GoodLine, LineReader, scan

MODELS = catalog.read(None)
TERMS = Terms(
    {id: {"input": "0.02", "output": "0.04"} for id in MODELS}, dict.fromkeys(MODELS, "openai")
)
CODES = frozenset(
    [
        "invalid_encoding",
        "empty_file",
        "too_many_tasks",
        "line_too_long",
        "invalid_json_line",
        "missing_required_parameter",
        "invalid_custom_id",
        "duplicate_custom_id",
        "invalid_method",
        "url_mismatch",
        "model_not_found",
        "invalid_request",
        "context_length_exceeded",
    ]
)
LONGEST_MESSAGE = 600
HALF = Decimal("0.5")


def check(content: bytes) -> None:
    """Read the bytes of a file in every way.

    An exception is a bug.
    """
    _lines(content)
    # In three of four cases None: then the first line decides, so inputs reach every endpoint.
    endpoint = ENDPOINTS[0] if zlib.crc32(content) % 4 == 0 else None
    whole = list(scan([content], endpoint=endpoint, models=MODELS))
    assert whole, "a file is good or has a fault"
    in_pieces = list(scan(pieces(content), endpoint=endpoint, models=MODELS))
    assert list(map(_told, whole)) == list(map(_told, in_pieces)), (
        "it depends on how the bytes arrive"
    )
    for found in whole:
        if isinstance(found, Fault):
            _fault(found)
        else:
            _good(found, content)
    estimate([content], endpoint=endpoint, models=MODELS, terms=TERMS, discount_rate=HALF).render()


def pieces(content: bytes) -> Iterator[bytes]:
    """Cut the bytes into pieces whose sizes depend only on the bytes, so that a replay is exact."""
    state = zlib.crc32(content)
    at = 0
    while at < len(content):
        state = (state * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
        size = 1 + (state >> 16) % (3, 40, 4000)[state % 3]
        yield content[at : at + size]
        at += size


def _lines(content: bytes) -> None:
    found = list(jsonl.lines([content], longest=len(content)))
    assert found == list(jsonl.lines(pieces(content), longest=len(content)))
    assert list(jsonl.unpack(jsonl.pack(span for span, _ in found))) == [span for span, _ in found]
    at = 0
    for number, (span, raw) in enumerate(found, 1):
        assert span.line_no == number
        assert span.offset == at
        assert content[span.offset : span.offset + span.length] == raw
        at = span.offset + span.length
        end = content[at : at + 2]
        at += 2 if end == b"\r\n" else 1 if end[:1] == b"\n" else len(end)
    assert at == len(content), "bytes that are in no line"
    for span, raw in found:
        short, long = (LineReader(ENDPOINTS[0], MODELS) for _ in range(2))
        block = Block([span], content, 0)
        for value in fast_path.decode(block) or []:
            if usual := short._usual(block, span, value):
                _alike(usual, long._any(block, span, raw or b""))


def _told(found: GoodLine | Fault) -> object:
    """All facts of a line, except the object that holds its bytes."""
    return (
        found
        if isinstance(found, Fault)
        else (found.span, found.custom_id, found.endpoint, found.model, found.request, found.raw)
    )


def _alike(usual: GoodLine, any_: GoodLine | Fault) -> None:
    """The fast path accepts only lines that the slow path accepts, with the same result."""
    assert isinstance(any_, GoodLine), any_
    assert (
        usual.custom_id,
        usual.model,
        usual.endpoint,
        usual.raw,
        list(usual.request.cacheable),
    ) == (
        any_.custom_id,
        any_.model,
        any_.endpoint,
        any_.raw,
        list(any_.request.cacheable),
    )
    assert isinstance(usual.request, ChatRequest | UsualChat)
    assert isinstance(any_.request, ChatRequest | UsualChat)
    assert (usual.request.choices, usual.request.longest_answer) == (
        any_.request.choices,
        any_.request.longest_answer,
    )


def _fault(fault: Fault) -> None:
    assert fault.code in CODES, fault
    assert fault.line is None or fault.line >= 1
    for text in (fault.message, fault.param or ""):
        assert len(text) <= LONGEST_MESSAGE, len(text)
        assert text.isprintable(), text
        assert "\0" not in text.encode().decode()


def _good(line: GoodLine, content: bytes) -> None:
    """Assert that a good line can be read by its span, gives the same value in any JSON parser, and
    can be stored in a row.
    """
    span = line.span
    raw = content[span.offset : span.offset + span.length]
    assert raw == line.raw
    sent = jsonl.input_line(raw)
    assert sent.custom_id == line.custom_id
    assert "\0" not in line.custom_id
    assert 0 < len(line.custom_id.encode()) <= 4 * fast_path.MAX_CUSTOM_ID
    body = bytes(sent.body)
    assert json.loads(body, parse_constant=_refuse, parse_int=_whole) == orjson.loads(body)
    assert json.loads(body)["model"] == line.model
    assert b"\n" not in body
    if not MODELS[line.model].is_reranker:
        assert len(prefix_order.prefix_hashes(line.request.cacheable)) <= prefix_order.MAX_HASHES
    is_escaped = jsonl.has_line_break(line.custom_id)
    answered = jsonl.result_line(UUID(int=1), 1, line.custom_id, 200, b"{}", None, None, is_escaped)
    assert len(answered.decode().splitlines()) == 1
    assert json.loads(answered)["custom_id"] == line.custom_id


def _whole(digits: str) -> int | float:
    """A whole number as most parsers read it: one that 64 bits cannot hold is a float."""
    value = int(digits)
    return value if -(2**63) <= value < 2**64 else float(value)


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} passed")
