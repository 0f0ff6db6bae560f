"""Queued calls: flex, whose client waits, and Responses in the background.

Each is a batch of one line, which no list shows. So workers run it as any other line, with its
lease, retries and charge, and a crash of the API loses nothing.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from fastapi import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from xalen_batch import db, disk, files, ids, storage
from xalen_batch.accounts.accounts import Caller
from xalen_batch.api.live.requests import FLEX, LiveCall
from xalen_batch.batches import batches
from xalen_batch.errors import NotCancellable, StillQueued, XalenError
from xalen_batch.files import Purpose
from xalen_batch.models import Batch, File
from xalen_batch.ratelimit import account
from xalen_batch.results import content
from xalen_batch.results.content import Stored
from xalen_batch.states import TERMINAL, QueuedCall
from xalen_batch.storage import marks

CUSTOM_ID = "call"
WINDOW = "24h"
# Seconds between two looks at the calls whose clients wait, over all of them.
LOOK = 0.1
# Parameters of the call that its line does not have.
_OF_CALL = frozenset({"stream", "stream_options", "background", "service_tier", "store"})


def enqueue(call: LiveCall, kind: QueuedCall) -> UUID:
    """Create the batch of a queued call. Raises the errors of an upload and of a batch."""
    disk.refuse_if_full()
    line = {
        "custom_id": CUSTOM_ID,
        "method": "POST",
        "url": call.endpoint,
        "body": {name: value for name, value in call.exact.items() if name not in _OF_CALL},
    }
    raw = msgspec.json.encode(line) + b"\n"
    id = ids.new()
    marks.confirm()
    storage.write(storage.key(id), [raw])
    with db.transaction() as session:
        account.admit_change(session, call.caller)
        file = files.create(
            session,
            call.caller,
            id=id,
            purpose=Purpose.CALL,
            filename="call.jsonl",
            size=len(raw),
            sha256=hashlib.sha256(raw).digest(),
        )
        batch = batches.create(
            session,
            call.caller,
            input_file_id=ids.render("file", file.id),
            endpoint=call.endpoint,
            completion_window=WINDOW,
            call=kind,
            # At list price, unless it has the patience of a batch.
            discount_rate=None if call.fields.get("service_tier") == FLEX else Decimal(0),
        )
        return batch.id


class Waiting:
    """The queued calls whose clients wait, of one API process; event loop thread only."""

    def __init__(self) -> None:
        self._ends: dict[UUID, asyncio.Event] = {}
        self._looking: asyncio.Task[None] | None = None

    async def end(self, batch_id: UUID) -> None:
        """Wait until a batch has ended."""
        self._ends[batch_id] = asyncio.Event()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            await self._ends[batch_id].wait()
        finally:
            del self._ends[batch_id]

    async def _look(self) -> None:
        while self._ends:
            try:
                ended = await asyncio.to_thread(_ended, list(self._ends))
            except db.UNAVAILABLE:
                ended = []
            for batch_id in ended:
                if batch_id in self._ends:
                    self._ends[batch_id].set()
            await asyncio.sleep(LOOK)


def _ended(batch_ids: list[UUID]) -> list[UUID]:
    with db.reading() as session:
        ended = select(Batch.id).where(Batch.id.in_(batch_ids), Batch.status.in_(TERMINAL))
        return list(session.scalars(ended))


def give_up(caller: Caller, batch_id: UUID) -> None:
    """Cancel a call whose client has gone."""
    with db.transaction() as session:
        batch = batches.get(session, caller, ids.render("batch", batch_id))
        try:
            batches.cancel(session, batch)
        except NotCancellable:
            return


def still_queued(batch_id: UUID) -> StillQueued:
    """The error of a call whose client has waited long enough."""
    name = ids.render("batch", batch_id)
    return StillQueued(
        f"The call is still queued, and goes on as {name}: GET /v1/batches/{name} tells when it has"
        f" ended, GET /v1/batches/{name}/output has its answer. Do not send it again."
    )


def answer(caller: Caller, batch_id: UUID) -> tuple[int, dict[str, Any]]:
    """The status and the body of the answer to a call whose batch has ended."""
    with db.reading() as session:
        batch = batches.get(session, caller, ids.render("batch", batch_id))
        line = line_of(session, batch)
    if line is None:
        return 500, failure(batch)
    response = line["response"]
    if response is None:
        return 500, {"error": {"type": "server_error", "param": None, **line["error"]}}
    body: dict[str, Any] = response["body"]
    return response["status_code"], body


def rendered(body: dict[str, Any], status: int = 200) -> Response:
    """An answer whose numbers are as the client or the model wrote them."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def line_of(session: Session, batch: Batch) -> dict[str, Any] | None:
    """The output or error line of a call's batch; None: it has none, or it was deleted."""
    file_id = batch.output_file_id or batch.error_file_id
    file = None if file_id is None else session.get(File, file_id)
    if file is None or file.deleted_at is not None:
        return None
    found = content.of(file)
    chunks = found.chunks(0, found.size) if isinstance(found, Stored) else found.chunks()
    line: dict[str, Any] = msgspec.json.decode(b"".join(chunks))
    return line


def failure(batch: Batch) -> dict[str, Any]:
    """The error body of a call whose batch has no line."""
    first: Mapping[str, Any] = next(iter(batch.errors or ()), {})
    return XalenError(
        first.get("message") or f"The call is {batch.status}.",
        param=(first.get("param") or "").removeprefix("body.") or None,
        code=first.get("code") or batch.status,
    ).body()
