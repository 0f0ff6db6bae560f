"""The results of a message batch, rendered while they are sent, from the files of its batch."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson
from sqlalchemy.orm import Session

from xalen_batch import files, ids, jsonl
from xalen_batch.accounts.accounts import Owner
from xalen_batch.api.anthropic.messages import errored, result_of
from xalen_batch.api.anthropic.objects import sources
from xalen_batch.api.anthropic.params import param_of
from xalen_batch.config import settings
from xalen_batch.endpoints.usage import table
from xalen_batch.errors import InvalidRequest, NotFound
from xalen_batch.models import Batch
from xalen_batch.results import content
from xalen_batch.results.content import Content
from xalen_batch.states import BatchStatus

# Bytes of a piece of an answer, at least.
PIECE_BYTES = 256 * 1024
# A line holds an answer, in which line breaks may be escaped.
LONGEST_PER_ANSWER = 4

Convert = Callable[[int, dict[str, Any]], dict[str, Any] | None]


def of(session: Session, owner: Owner, batch: Batch) -> Iterator[bytes]:
    """The results of a batch that has ended, in pieces; nothing is read before the first.

    Raises InvalidRequest for a batch that runs, and NotFound if its results are gone.
    """
    name = ids.render("msgbatch", batch.id)
    if not BatchStatus(batch.status).is_terminal:
        raise InvalidRequest(
            f"{name} has not ended, so it has no results yet. Wait until its processing_status is"
            " ended."
        )
    try:
        found = [
            content.of(files.get(session, owner, ids.render("file", id))) for id in sources(batch)
        ]
    except NotFound:
        raise NotFound(f"The results of {name} are gone: deleted, or expired.") from None
    convert = _ran if batch.output_file_id or batch.error_file_id else _not_run(batch)
    return _pieces(found, convert)


def _pieces(found: list[Content], convert: Convert) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    longest = LONGEST_PER_ANSWER * max(settings().answer_max_bytes, settings().max_line_bytes)
    for each in found:
        for span, line in jsonl.lines(content.whole(each), longest=longest):
            result = convert(span.line_no, _parsed(line))
            if result is None:
                continue
            held.append(orjson.dumps(result) + b"\n")
            size += len(held[-1])
            if size >= PIECE_BYTES:
                yield b"".join(held)
                held, size = [], 0
    if held:
        yield b"".join(held)


def _parsed(line: bytes | None) -> dict[str, Any]:
    """A line's object; an empty one for a line of an input file that is none."""
    try:
        return dict(table(orjson.loads(line or b"{}")))
    except orjson.JSONDecodeError:
        return {}


def _ran(_: int, line: dict[str, Any]) -> dict[str, Any]:
    return result_of(line)


def _not_run(batch: Batch) -> Convert:
    """The results of a batch that was cancelled or failed before any line could run.

    Its errors name lines, or else the reason for which all of them failed.
    """
    errors = batch.errors or []
    by_line = {error["line"]: _said(error) for error in errors if error.get("line")}
    whole = [_said(error) for error in errors if not error.get("line")]
    otherwise = (whole or ["The batch failed before this request ran."])[0]

    def convert(line_no: int, line: dict[str, Any]) -> dict[str, Any] | None:
        custom_id = line.get("custom_id")
        if not isinstance(custom_id, str):
            # A batch of another client may have any lines.
            return None
        if batch.status == BatchStatus.CANCELLED:
            return {"custom_id": custom_id, "result": {"type": "canceled"}}
        said = by_line.get(line_no, otherwise)
        return {"custom_id": custom_id, "result": errored("invalid_request_error", said)}

    return convert


def _said(error: Mapping[str, Any]) -> str:
    message, param = str(error.get("message")), error.get("param")
    return f"{param_of(param)}: {message}" if isinstance(param, str) else message
