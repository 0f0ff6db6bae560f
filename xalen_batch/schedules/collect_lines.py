"""The body of requests for an inbox: taken apart and checked.

A large one in a process of its own, so this imports no database.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import msgspec
import orjson

from xalen_batch.billing.terms import Terms
from xalen_batch.catalog import Endpoint, Model
from xalen_batch.errors import InvalidRequest
from xalen_batch.validation import json_errors
from xalen_batch.validation.errors import Fault, Faults, quoted, refused
from xalen_batch.validation.file_type import UTF8_BOM
from xalen_batch.validation.lines import scan

Kind = Literal["json", "jsonl"]

SHAPES = (
    'Send one request, a list of them, or {"requests": [...]}; or, as application/jsonl, one on'
    " each line."
)

# A string, also one that is not closed, is kept; the blanks between strings go.
_STRING_OR_BLANKS = re.compile(rb'("[^"\\]*+(?:\\.[^"\\]*+)*+"?)|[ \t\r\n]++', re.DOTALL)
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Sent(NamedTuple):
    """Requests that have been checked for an endpoint: the custom_id and the line of each."""

    endpoint: Endpoint
    lines: list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Checking:
    """The work on one body, whose requests would be lines of a batch on these terms."""

    body: bytes
    kind: Kind
    endpoint: Endpoint
    models: Mapping[str, Model]
    terms: Terms

    def __call__(self) -> Sent | InvalidRequest:
        """An error is returned, so that it can come from another process."""
        try:
            return self._sent()
        except InvalidRequest as error:
            return error

    def _sent(self) -> Sent:
        sent = (
            _Body(self.body, "Line {number}", "") if self.kind == "jsonl" else _of_json(self.body)
        )
        faults, lines = Faults(), list[tuple[str, bytes]]()
        for line in scan([sent.content], endpoint=self.endpoint, models=self.models):
            if isinstance(line, Fault):
                faults.add(line)
            elif fault := refused(line.model, self.terms):
                faults.add(replace(fault, line=line.span.line_no))
            else:
                raw = sent.content[line.span.offset : line.span.offset + line.span.length]
                lines.append((line.custom_id, _on_one_line(raw)))
        if faults:
            raise _refusal(faults, sent)
        return Sent(self.endpoint, lines)


@dataclass(frozen=True, slots=True)
class _Body:
    """What was sent, as JSONL.

    `name` and `param` point at a request, by its {number} or {index}; empty where there is but one.
    """

    content: bytes
    name: str
    param: str


def _of_json(body: bytes) -> _Body:
    """A request, a list of them, or an object with a list of them, each on a line of its own."""
    text = body.removeprefix(UTF8_BOM).strip(b" \t\r\n")
    try:
        if text.startswith(b"["):
            requests, param = _items(text), "[{index}]"
        elif "requests" in (fields := _fields(text)) and "custom_id" not in fields:
            if text.count(b'"requests"') > 1 and (key := json_errors.repeated_key(text)):
                raise InvalidRequest(
                    f"The key {quoted(key)} is there twice, and which one counts is anyone's guess."
                    " Remove one.",
                    param=key,
                )
            requests, param = _items(fields["requests"]), "requests[{index}]"
        else:
            return _Body(_on_one_line(text), "", "")
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
    return _Body(
        b"\n".join(_on_one_line(bytes(request)) for request in requests), "Request {number}", param
    )


def _on_one_line(raw: bytes) -> bytes:
    """JSON without the blanks that mean nothing: one request has one form, however it was indented."""
    return _STRING_OR_BLANKS.sub(rb"\1", raw)


def _refusal(faults: Faults, sent: _Body) -> InvalidRequest:
    """What is wrong with the first request that has a fault, where it is, and how many others have
    one.
    """
    fault = faults.kept[0]
    message, param = fault.message, fault.param
    if fault.line is not None:
        where = sent.name.format(number=f"{fault.line:,}") + _custom_id(
            sent.content.split(b"\n")[fault.line - 1]
        )
        message = f"{where.strip()}: {message}" if where else message
        param = (
            ".".join(
                step for step in (sent.param.format(index=fault.line - 1), fault.param) if step
            )
            or None
        )
    others = (
        f" In all {faults.count:,} requests have errors; none was added."
        if faults.count > 1
        else ""
    )
    return InvalidRequest(message + others, param=param, code=fault.code)


def _custom_id(line: bytes) -> str:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return ""
    return (
        f" (custom_id {quoted(value['custom_id'])})"
        if isinstance(value, dict) and value.get("custom_id")
        else ""
    )
