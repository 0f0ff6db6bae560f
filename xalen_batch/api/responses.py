"""Answers that are not a plain object: a stored body, and bytes to download."""

from collections.abc import Iterator, Mapping
from itertools import chain
from urllib.parse import quote

from fastapi import Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from xalen_batch.accounts import Caller
from xalen_batch.api import scopes
from xalen_batch.idempotency import Answer


def stored(answer: Answer) -> Response:
    """An object just created, or the same answer again for the same Idempotency-Key.

    Whole, whatever the key's scopes: it has what the request said, ids, and the state in which everything begins.
    """
    return _stored(answer, answer.body)


def stored_for(caller: Caller, answer: Answer, kind: type[BaseModel]) -> Response:
    """The same for an answer that says something of what was there before: with what the caller's key may see of it."""
    return _stored(answer, scopes.render_stored(answer.body, kind, caller.scopes))


def _stored(answer: Answer, body: bytes) -> Response:
    headers = {"idempotent-replayed": "true"} if answer.is_replay else None
    return Response(body, headers=headers, media_type="application/json")


def download(chunks: Iterator[bytes], filename: str, *, size: int | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """Bytes as they come from their source, whatever the client says it accepts. `size`: in bytes, where known."""
    # The first chunk is fetched now, while an error can still become an answer.
    first = next(chunks, b"")
    known = {"content-length": str(size)} if size is not None else {}
    return StreamingResponse(
        chain([first], chunks),
        headers={"content-disposition": _attachment(filename), "x-content-type-options": "nosniff", **known, **(headers or {})},
        media_type="application/octet-stream",
    )


def _attachment(filename: str) -> str:
    """The name in ASCII for old clients, and as it is for the others (RFC 6266)."""
    plain = "".join(char if char.isascii() and char not in '"\\/' else "_" for char in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
