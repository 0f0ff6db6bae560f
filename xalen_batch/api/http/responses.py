"""Answers other than a plain object: bodies stored for idempotency, and streams."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Generic, TypeVar
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
from xalen_batch.api.idempotency import IdempotentAnswer
from xalen_batch.api.schemas import Identified, ListObject
from xalen_batch.config import MiB

T = TypeVar("T", bound=Identified)

JSON = "application/json"
# The most bytes of an answer that are copied for a connection at once. More than its high-water
# mark of 64 KiB: what comes behind a slice waits until most of the slice has left.
SLICE_BYTES = 256 * 1024
# The bytes that a stream holds for a client that does not read: two pieces of about 1 MiB, and a
# slice of each of the two before.
STREAM_BYTES = 5 * MiB // 2
# The bytes of a file of which a piece is held until its lines' turn comes.
FILE_BYTES = 1 * MiB
# The pieces that are read at a time, in this process and for one account. These threads are not
# those of short requests, which a slow store would block. The limit for an account keeps its
# streams from delaying those of others.
THREADS = 16
THREADS_PER_ACCOUNT = 4


def stored(answer: IdempotentAnswer) -> Response:
    """The answer of a POST that created an object, or its stored answer for an Idempotency-Key.

    All fields are shown, whatever the scopes of the API key: they hold only the request's own
    values, new ids, and the initial state.
    """
    return _stored(answer, answer.body)


def stored_for(caller: Caller, answer: IdempotentAnswer, kind: type[BaseModel]) -> Response:
    """As `stored`, with only the fields that the caller's key may read.

    For an answer that also describes objects which existed before the request.
    """
    return _stored(answer, scopes.render_stored(answer.body, kind, caller.scopes))


def _stored(answer: IdempotentAnswer, body: bytes) -> Response:
    headers = {"idempotent-replayed": "true"} if answer.is_replay else None
    return Response(body, headers=headers, media_type=JSON)


def secret_for(caller: Caller, answer: BaseModel) -> Response:
    """The one answer that has a secret, which nothing on the way may keep."""
    body = scopes.render(answer, caller.scopes)
    return Response(body, headers={"cache-control": "no-store"}, media_type=JSON)


class Stream(StreamingResponse):
    """Streams pieces of at most about 1 MiB; reads one ahead while the client takes the one before.

    Reserves STREAM_BYTES of its account's budget of answers, and FILE_BYTES for each further file
    that is read side by side, until the last piece is sent or the client is gone. The refusal of
    the budget, and an error of the first piece, are still answered in the error envelope. The event
    loop thread calls it; threads of `_threads` read the pieces.
    """

    def __init__(
        self,
        pieces: Iterator[bytes],
        *,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str = JSON,
        files: int = 1,
    ) -> None:
        super().__init__((), status_code, headers=headers, media_type=media_type)
        self._pieces = pieces
        self._held = STREAM_BYTES + (files - 1) * FILE_BYTES

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
        self._semaphore = _semaphores.setdefault(
            budget.key(owner), asyncio.Semaphore(THREADS_PER_ACCOUNT)
        )
        with budget.answers.holding(owner, self._held):
            self.body_iterator = self._from(await self._next())
            await super().__call__(scope, receive, send)

    async def _from(self, piece: bytes) -> AsyncIterator[bytes | memoryview]:
        # Without a length the server copies all that it sends, into chunks.
        is_chunked = "content-length" not in self.headers
        while piece:
            rest = piece
            if not is_chunked and len(piece) > SLICE_BYTES:
                # The connection keeps a view, and so the whole piece, until all of it has left.
                # Once it has the view, the piece before has left, and the next may be read.
                yield memoryview(piece)[:-SLICE_BYTES]
                rest = piece[-SLICE_BYTES:]
            coming = asyncio.ensure_future(self._next())
            try:
                yield rest
                piece = await coming
            finally:
                # After a disconnect nothing awaits `coming`: fetch its exception, or asyncio logs
                # it.
                if not coming.cancel() and not coming.cancelled():
                    coming.exception()

    async def _next(self) -> bytes:
        async with self._semaphore:
            return await asyncio.get_running_loop().run_in_executor(
                _threads(), next, self._pieces, b""
            )


# The semaphore of each account and mode; weak, so that it lives as long as a stream of theirs.
_semaphores: WeakValueDictionary[Owner | None, asyncio.Semaphore] = WeakValueDictionary()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="stream")


def listed(
    session: Session,
    caller: Caller,
    page: Callable[[Session, int, str | None], ListObject[T]],
    *,
    limit: int,
    after: str | None,
    portion: int,
) -> Response:
    """A page of at most `limit` objects after the id `after`, rendered `portion` objects at a time.

    `page(session, limit, after)` reads one portion. Only the first is read with `session`; others
    have a session each.
    """
    first = page(session, min(limit, portion), after)
    if limit <= portion or not first.has_more:
        return Response(scopes.render(first, caller.scopes), media_type=JSON)
    return Stream(iter(_List(first, caller, page, limit, portion).read, b""))


class _List(Generic[T]):
    """Renders a ListObject as JSON, one portion of its objects at a time."""

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
        content = b""
        if found.data:
            content = opening + b",".join(scopes.render(item, self._scopes) for item in found.data)
        if self._left:
            return content
        return content + b"]," + orjson.dumps({**self._ids, "has_more": found.has_more})[1:]

    def _next(self) -> ListObject[T]:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        with db.reading() as session:
            found = self._page(session, min(self._left, self._portion), self._ids["last_id"])
        self._ids["last_id"] = found.last_id or self._ids["last_id"]
        return found
