"""Collect, the part for a process of its own: split a body into requests, and check each.

Imports no database.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import msgspec
import orjson

from xalen_batch.billing.terms import Terms
from xalen_batch.catalog import Model
from xalen_batch.endpoints.names import Endpoint
from xalen_batch.errors import InvalidRequest, quoted
from xalen_batch.validation import json_errors
from xalen_batch.validation.errors import Fault, Faults, refused
from xalen_batch.validation.file_type import UTF8_BOM
from xalen_batch.validation.lines import scan

Kind = Literal["json", "jsonl"]

SHAPES = (
    'Send one request, a list of them, or {"requests": [...]}; or, as application/jsonl, one on'
    " each line."
)

# Keep strings, closed or not; drop the whitespace between them.
_STRING_OR_BLANKS = re.compile(rb'("[^"\\]*+(?:\\.[^"\\]*+)*+"?)|[ \t\r\n]++', re.DOTALL)
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Sent(NamedTuple):
    """Requests that have passed the checks of an endpoint, as (custom_id, line) pairs.

    `inputs`: the texts to embed in each line that has any, by custom_id.
    """

    endpoint: Endpoint
    lines: list[tuple[str, bytes]]
    inputs: dict[str, int]


@dataclass(frozen=True, slots=True)
class Checking:
    """A check of one body against the terms of a batch made now. Called in another process."""

    body: bytes
    kind: Kind
    endpoint: Endpoint
    models: Mapping[str, Model]
    terms: Terms

    def __call__(self) -> Sent | InvalidRequest:
        """The requests, or the error: the other process sends back return values only."""
        try:
            return self._sent()
        except InvalidRequest as error:
            return error

    def _sent(self) -> Sent:
        if self.kind == "jsonl":
            sent = _Body(self.body, "Line {number}", "")
        else:
            sent = _of_json(self.body)
        faults = Faults()
        lines: list[tuple[str, bytes]] = []
        inputs: dict[str, int] = {}
        for line in scan([sent.content], endpoint=self.endpoint, models=self.models):
            if isinstance(line, Fault):
                faults.add(line)
                continue
            fault = refused(line.model, self.terms)
            if fault is not None:
                faults.add(replace(fault, line=line.span.line_no))
                continue
            raw = sent.content[line.span.offset : line.span.offset + line.span.length]
            lines.append((line.custom_id, _on_one_line(raw)))
            if line.request.inputs:
                inputs[line.custom_id] = line.request.inputs
        if faults:
            raise _refusal(faults, sent)
        return Sent(self.endpoint, lines, inputs)


@dataclass(frozen=True, slots=True)
class _Body:
    """A body as JSONL.

    `name` and `param` are formats that name a request in an error, by its {number} or {index}; both
    are empty if the body is a single request.
    """

    content: bytes
    name: str
    param: str


def _of_json(body: bytes) -> _Body:
    """The JSONL of a JSON body: one request, a list of requests, or {"requests": [...]}."""
    text = body.removeprefix(UTF8_BOM).strip(b" \t\r\n")
    try:
        if text.startswith(b"["):
            requests, param = _items(text), "[{index}]"
        else:
            fields = _fields(text)
            if "requests" not in fields or "custom_id" in fields:
                return _Body(_on_one_line(text), "", "")
            _refuse_if_twice(text)
            requests, param = _items(fields["requests"]), "requests[{index}]"
    except RecursionError:
        raise InvalidRequest(
            "The body is nested too deeply. Flatten it.", code="invalid_json"
        ) from None
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidRequest(
            f"The body cannot be read: {error}. {SHAPES}", code="invalid_json"
        ) from None
    if not requests:
        raise InvalidRequest(f"There is no request in the body. {SHAPES}", param="requests")
    lines = b"\n".join(_on_one_line(bytes(request)) for request in requests)
    return _Body(lines, "Request {number}", param)


def _refuse_if_twice(text: bytes) -> None:
    """InvalidRequest if the body has a duplicate key: a decoder keeps only the last one."""
    key = json_errors.repeated_key(text) if text.count(b'"requests"') > 1 else None
    if key:
        raise InvalidRequest(
            f"The key {quoted(key)} is there twice, and which one counts is anyone's guess."
            " Remove one.",
            param=key,
        )


def _on_one_line(raw: bytes) -> bytes:
    """JSON without insignificant whitespace, so equal requests have equal bytes."""
    return _STRING_OR_BLANKS.sub(rb"\1", raw)


def _refusal(faults: Faults, sent: _Body) -> InvalidRequest:
    """The error of the first invalid request, with its place and the number of invalid requests."""
    fault = faults.kept[0]
    message, param = fault.message, fault.param
    if fault.line is not None:
        custom_id = _custom_id(sent.content.split(b"\n")[fault.line - 1])
        where = sent.name.format(number=f"{fault.line:,}") + custom_id
        if where:
            message = f"{where.strip()}: {message}"
        steps = (sent.param.format(index=fault.line - 1), fault.param)
        param = ".".join(step for step in steps if step) or None
    if faults.count > 1:
        message += f" In all {faults.count:,} requests have errors; none was added."
    return InvalidRequest(message, param=param, code=fault.code)


def _custom_id(line: bytes) -> str:
    """A request's custom_id in the words of a message, or nothing."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return ""
    custom_id = value.get("custom_id") if isinstance(value, dict) else None
    return f" (custom_id {quoted(custom_id)})" if custom_id else ""
