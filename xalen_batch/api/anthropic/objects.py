"""The objects of Anthropic's Message Batches, and the batches that they show."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy import Select, case, func, select
from sqlalchemy.orm import Session, defer

from xalen_batch import ids, paging
from xalen_batch.accounts.accounts import Owner
from xalen_batch.api.schemas import Identified
from xalen_batch.api.scopes import Scoped
from xalen_batch.endpoints.names import CHAT
from xalen_batch.errors import QUOTED_CHARS, InvalidRequest, NotFound
from xalen_batch.models import Batch, File
from xalen_batch.states import BatchStatus

PATH = "/v1/messages/batches"


class MessageRequestCounts(BaseModel):
    """All but `processing` stay 0 until the batch has ended."""

    processing: int
    succeeded: int
    errored: int
    canceled: int
    expired: int


class MessageBatch(Identified, Scoped):
    always = frozenset({"id", "type", "processing_status", "created_at", "expires_at"})

    type: Literal["message_batch"] = "message_batch"
    processing_status: Literal["in_progress", "canceling", "ended"]
    request_counts: MessageRequestCounts
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    cancel_initiated_at: datetime | None
    archived_at: datetime | None = Field(
        description="When its results were deleted or expired; null: they are there, or to come."
    )
    results_url: str | None

    @classmethod
    def of(cls, batch: Batch, origin: str, archived_at: datetime | None = None) -> Self:
        """`origin`: the URL of this server, before the path."""
        status, id = BatchStatus(batch.status), ids.render("msgbatch", batch.id)
        has_results = status.is_terminal and archived_at is None
        return cls(
            id=id,
            processing_status=_status(status),
            request_counts=_counts(batch, status),
            created_at=batch.created_at.astimezone(UTC),
            expires_at=batch.expires_at.astimezone(UTC),
            ended_at=_utc(_ended_at(batch)),
            cancel_initiated_at=_utc(batch.cancelling_at),
            archived_at=_utc(archived_at),
            results_url=f"{origin}{PATH}/{id}/results" if has_results else None,
        )


class MessageBatchList(BaseModel):
    data: list[MessageBatch]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeletedMessageBatch(BaseModel):
    id: str
    type: Literal["message_batch_deleted"] = "message_batch_deleted"


class MessageErrorBody(BaseModel):
    type: str
    message: str


class MessageError(BaseModel):
    type: Literal["error"] = "error"
    error: MessageErrorBody
    request_id: str | None


def shown(session: Session, found: Sequence[Batch], origin: str) -> list[MessageBatch]:
    """Batches as message batches."""
    gone = _gone(session, found)
    return [MessageBatch.of(batch, origin, gone.get(batch.id)) for batch in found]


def get(session: Session, owner: Owner, public_id: str) -> Batch:
    """A batch of this owner that this view shows. Raises NotFound."""
    id = ids.parse("msgbatch", public_id)
    batch = None
    if id is not None:
        batch = session.scalars(_visible(owner).where(Batch.id == id)).one_or_none()
    if batch is None:
        raise NotFound(f"There is no message batch {public_id[:QUOTED_CHARS]!r}.")
    return batch


def page(
    session: Session,
    owner: Owner,
    *,
    limit: int,
    after_id: str | None,
    before_id: str | None,
    origin: str,
) -> MessageBatchList:
    """A page, newest first: behind `after_id`, or the page before `before_id`."""
    if after_id is not None and before_id is not None:
        raise InvalidRequest("Send after_id or before_id, not both.", param="before_id")
    # The errors of one batch may take 300 KB, and this view does not show them.
    found = paging.page(
        session,
        _visible(owner).options(defer(Batch.errors)),
        Batch.id,
        "batch",
        limit=limit,
        order="desc" if before_id is None else "asc",
        after=_batch_id("after_id", after_id) or _batch_id("before_id", before_id),
    )
    if before_id is not None:
        found.data.reverse()
    data = shown(session, found.data, origin)
    return MessageBatchList(
        data=data,
        has_more=found.has_more,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
    )


def sources(batch: Batch) -> list[UUID]:
    """The ids of the files that tell a batch's results.

    The input file of a batch that ended before it had tasks, so that none of its requests ran.
    """
    found = [id for id in (batch.output_file_id, batch.error_file_id) if id is not None]
    return found or [batch.input_file_id]


def _gone(session: Session, found: Sequence[Batch]) -> dict[UUID, datetime]:
    """When the results of each ended batch went away, for those that are gone."""
    files = {
        file_id: batch.id
        for batch in found
        if BatchStatus(batch.status).is_terminal
        for file_id in sources(batch)
    }
    gone_at = func.least(
        File.deleted_at, case((File.expires_at <= func.now(), File.expires_at))
    ).label("gone_at")
    rows: Any = session.execute(select(File.id, gone_at).where(File.id.in_(files))).all()
    return {files[id]: at for id, at in rows if at is not None}


def _visible(owner: Owner) -> Select[Batch]:
    return select(Batch).where(
        Batch.account_id == owner.account_id,
        Batch.livemode == owner.livemode,
        Batch.endpoint == CHAT,
        Batch.ledger.is_(None),
        Batch.call.is_(None),
        Batch.deleted_at.is_(None),
    )


def _batch_id(name: str, public_id: str | None) -> str | None:
    if public_id is None:
        return None
    id = ids.parse("msgbatch", public_id)
    if id is None:
        raise InvalidRequest(
            f"{name}: {public_id[:QUOTED_CHARS]!r} is not the id of a message batch. Send one such"
            " as `msgbatch_…`.",
            param=name,
        )
    return ids.render("batch", id)


def _status(status: BatchStatus) -> Literal["in_progress", "canceling", "ended"]:
    if status.is_terminal:
        return "ended"
    return "canceling" if status is BatchStatus.CANCELLING else "in_progress"


def _counts(batch: Batch, status: BatchStatus) -> MessageRequestCounts:
    total = batch.total or batch.requests or 0
    counts = dict.fromkeys(MessageRequestCounts.model_fields, 0)
    if not status.is_terminal:
        counts["processing"] = total
    elif batch.total:
        counts["succeeded"], counts["canceled"] = batch.completed, batch.cancelled or 0
        counts["expired"] = batch.expired or 0
        counts["errored"] = total - sum(counts.values())
    else:
        counts["canceled" if status is BatchStatus.CANCELLED else "errored"] = total
    return MessageRequestCounts(**counts)


def _ended_at(batch: Batch) -> datetime | None:
    """The first of the times at which a batch can end; `completed_at` and so on."""
    return batch.completed_at or batch.failed_at or batch.expired_at or batch.cancelled_at


def _utc(time: datetime | None) -> datetime | None:
    return None if time is None else time.astimezone(UTC)
