"""Answers that are not a plain object: a stored body, and what is streamed as its client takes it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Generic, TypeVar
from urllib.parse import quote
from weakref import WeakValueDictionary

import orjson
from fastapi import Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.types import Receive, Scope, Send

from xalen_batch import db
from xalen_batch.accounts.accounts import Caller, Owner
from xalen_batch.api import deps, scopes
from xalen_batch.api.http import budget, paths
from xalen_batch.api.idempotency import Answer
from xalen_batch.api.schemas import Identified, ListObject
from xalen_batch.config import MiB

T = TypeVar("T", bound=Identified)

JSON = "application/json"
# Bytes that a stream holds for a client who does not read: a piece of about 1 MiB, the next one,
# and what the connection was given.
STREAM_HOLDS = 5 * MiB // 2
# Pieces that are read at a time in this process, and for one account. The threads of short requests
# stay free, however slow a store is; and an account that reads many streams at once takes no more
# turns of another's.
THREADS = 16
THREADS_PER_ACCOUNT = 4


def stored(answer: Answer) -> Response:
    """An object just created, or the same answer again for the same Idempotency-Key.

    Whole, whatever the key's scopes: it has what the request said, ids, and the state in which
    everything begins.
    """
    return _stored(answer, answer.body)


def stored_for(caller: Caller, answer: Answer, kind: type[BaseModel]) -> Response:
    """The same for an answer that says something of what was there before: with what the caller's
    key may see of it.
    """
    return _stored(answer, scopes.render_stored(answer.body, kind, caller.scopes))


def _stored(answer: Answer, body: bytes) -> Response:
    headers = {"idempotent-replayed": "true"} if answer.is_replay else None
    return Response(body, headers=headers, media_type=JSON)


class Stream(StreamingResponse):
    """Pieces from their source, of about 1 MiB at most, each read while the client takes the one
    before.

    Counts in its account's budget of answers until the last piece is handed over or the client is
    gone. TooManyRequests or Unavailable where it does not fit, and any error of the first piece,
    still become an answer.
    """

    def __init__(
        self,
        pieces: Iterator[bytes],
        *,
        headers: Mapping[str, str] | None = None,
        media_type: str = JSON,
    ) -> None:
        super().__init__((), headers=headers, media_type=media_type)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if paths.method(scope) == "HEAD":
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            await send({"type": "http.response.body"})
            return
        owner = deps.caller_of(scope)
        self._turn = _turns.setdefault(budget.key(owner), asyncio.Semaphore(THREADS_PER_ACCOUNT))
        with budget.answers.holding(owner, STREAM_HOLDS):
            self.body_iterator = self._from(await self._next())
            await super().__call__(scope, receive, send)

    async def _from(self, piece: bytes) -> AsyncIterator[bytes]:
        while piece:
            coming = asyncio.ensure_future(self._next())
            try:
                yield piece
                piece = await coming
            finally:
                # The client may be gone before an error is there: reading it keeps asyncio from
                # logging it.
                if not coming.cancel() and not coming.cancelled():
                    coming.exception()

    async def _next(self) -> bytes:
        async with self._turn:
            return await asyncio.get_running_loop().run_in_executor(
                _threads(), next, self._pieces, b""
            )


# By account and mode, for as long as a stream of theirs goes on.
_turns: WeakValueDictionary[Owner | None, asyncio.Semaphore] = WeakValueDictionary()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="stream")


def download(
    chunks: Iterator[bytes],
    filename: str,
    *,
    size: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Bytes as they come from their source, whatever the client says it accepts.

    `size`: in bytes, where known.
    """
    known = {"content-length": str(size)} if size is not None else {}
    return Stream(
        chunks,
        headers={
            "content-disposition": _attachment(filename),
            "x-content-type-options": "nosniff",
            **known,
            **(headers or {}),
        },
        media_type="application/octet-stream",
    )


def listed(
    session: Session,
    caller: Caller,
    page: Callable[[Session, int, str | None], ListObject[T]],
    *,
    limit: int,
    after: str | None,
    portion: int,
) -> Response:
    """A list of at most `limit` objects behind the id `after`, made of no more than `portion` of
    them at a time.

    `page`: a session, how many, and the id before them. The first portion is read with `session`,
    which is not kept.
    """
    first = page(session, min(limit, portion), after)
    if limit <= portion or not first.has_more:
        return Response(scopes.render(first, caller.scopes), media_type=JSON)
    return Stream(iter(_List(first, caller, page, limit, portion).read, b""))


class _List(Generic[T]):
    """The bytes of a ListObject, a portion of its objects at a time."""

    def __init__(
        self,
        first: ListObject[T],
        caller: Caller,
        page: Callable[[Session, int, str | None], ListObject[T]],
        limit: int,
        portion: int,
    ) -> None:
        self._first: ListObject[T] | None = first
        self._scopes = caller.scopes
        self._page = page
        self._left = limit
        self._portion = portion
        self._ids = {"first_id": first.first_id, "last_id": first.last_id}

    def read(self) -> bytes:
        """The next piece; empty at the end."""
        if not self._left:
            return b""
        opening = b'{"object":"list","data":[' if self._first else b","
        found = self._next()
        self._left = self._left - len(found.data) if found.has_more else 0
        content = (
            opening + b",".join(scopes.render(item, self._scopes) for item in found.data)
            if found.data
            else b""
        )
        if self._left:
            return content
        return content + b"]," + orjson.dumps({**self._ids, "has_more": found.has_more})[1:]

    def _next(self) -> ListObject[T]:
        if (found := self._first) is not None:
            self._first = None
            return found
        with db.reading() as session:
            found = self._page(session, min(self._left, self._portion), self._ids["last_id"])
        self._ids["last_id"] = found.last_id or self._ids["last_id"]
        return found


def _attachment(filename: str) -> str:
    """The name in ASCII for old clients, and as it is for the others (RFC 6266)."""
    plain = "".join(char if char.isascii() and char not in '"\\/' else "_" for char in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
