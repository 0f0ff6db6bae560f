"""Events: what changes an object's state records an event in the same transaction.

An event without a receiver is stored too: the console reads it, and a webhook that is added later
can have it replayed (docs/decisions/0060).
"""

from datetime import timedelta
from typing import NamedTuple, Protocol
from uuid import UUID

from sqlalchemy import delete, select, text
from sqlalchemy.orm import Session

from xalen_batch import db, ids, paging
from xalen_batch.broker import Job
from xalen_batch.models import Event, WebhookDelivery, WebhookEndpoint
from xalen_batch.models.events import EventType
from xalen_batch.paging import Order, Page

# Events that `forget` deletes at most, each with its deliveries.
AT_ONCE = 1_000


class Owned(Protocol):
    """An object of an account and mode: an Owner, or a row such as a Batch."""

    @property
    def account_id(self) -> UUID: ...
    @property
    def livemode(self) -> bool: ...


class Happened(NamedTuple):
    """A change of the object with this id, of the kind that the type says."""

    type: EventType
    object_id: UUID


def record(session: Session, owner: Owned, *changes: Happened) -> None:
    """Write events, and their deliveries to the owner's webhooks, in the caller's transaction.

    Idempotent: an object has one event of a type, unless the object is a webhook. It is one
    statement, also for many changes.
    """
    if not changes:
        return
    receivers = session.execute(
        _RECORD,
        {
            "account_id": owner.account_id,
            "livemode": owner.livemode,
            "ids": [ids.new() for _ in changes],
            "types": [change.type.value for change in changes],
            "objects": [change.object_id for change in changes],
        },
    ).first()
    if receivers is not None:
        db.enqueue(session, Job.DELIVER)


# The receivers are the account's webhooks, and the webhook that a batch brought. The arrays are
# subqueries, which hide their lengths: otherwise a plan for this length looks better to PostgreSQL
# than the generic plan, and it plans each execution, which takes longer than running it.
_RECORD = text("""
    WITH event AS (
        INSERT INTO events (id, account_id, livemode, type, object_id)
        SELECT id, :account_id, :livemode, type, object_id
        FROM unnest(
            (SELECT CAST(:ids AS uuid[])), (SELECT CAST(:types AS text[])),
            (SELECT CAST(:objects AS uuid[]))
        ) AS change (id, type, object_id)
        ON CONFLICT DO NOTHING
        RETURNING id, type, object_id
    )
    INSERT INTO webhook_deliveries (event_id, endpoint_id, account_id, livemode)
    SELECT event.id, receiver.id, :account_id, :livemode
    FROM event CROSS JOIN LATERAL (
        SELECT id
        FROM webhook_endpoints
        WHERE account_id = :account_id AND livemode = :livemode AND batch_id IS NULL
            AND deleted_at IS NULL AND status = 'enabled'
            AND (events IS NULL OR event.type = ANY (events))
        UNION ALL
        SELECT id
        FROM webhook_endpoints
        WHERE batch_id = event.object_id AND deleted_at IS NULL AND status = 'enabled'
    ) AS receiver
    RETURNING endpoint_id
""")


def record_test(session: Session, endpoint: WebhookEndpoint) -> Event:
    """Write a test event of an enabled webhook, for this webhook alone."""
    event = Event(
        id=ids.new(),
        account_id=endpoint.account_id,
        livemode=endpoint.livemode,
        type=EventType.WEBHOOK_TEST.value,
        object_id=endpoint.id,
    )
    session.add(event)
    session.flush()
    session.add(
        WebhookDelivery(
            event_id=event.id,
            endpoint_id=endpoint.id,
            account_id=endpoint.account_id,
            livemode=endpoint.livemode,
        )
    )
    session.flush()
    db.enqueue(session, Job.DELIVER)
    return event


def page(
    session: Session,
    owner: Owned,
    *,
    limit: int,
    order: Order,
    after: str | None,
    type: EventType | None,
) -> Page[Event]:
    """A page of the owner's events; with `type`, only those of it."""
    rows = select(Event).where(
        Event.account_id == owner.account_id, Event.livemode == owner.livemode
    )
    if type is not None:
        rows = rows.where(Event.type == type.value)
    return paging.page(session, rows, Event.id, "evt", limit=limit, order=order, after=after)


def forget(session: Session, life: timedelta) -> int:
    """Delete some events that are older than `life`, with their deliveries; their number."""
    horizon = db.now(session) - life
    some = select(Event.id).where(Event.id < ids.at(horizon)).order_by(Event.id).limit(AT_ONCE)
    gone = session.execute(
        delete(Event).where(Event.id.in_(some)).returning(Event.id),
        execution_options={"synchronize_session": False},
    ).all()
    return len(gone)
