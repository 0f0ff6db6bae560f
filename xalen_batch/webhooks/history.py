"""Deliveries of a webhook: list them, send one again, and replay a span."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import ColumnElement, func, literal, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from xalen_batch import db, events, ids, paging
from xalen_batch.broker import Job
from xalen_batch.errors import QUOTED_CHARS, InvalidRequest, NotFound
from xalen_batch.models import Event, WebhookDelivery, WebhookEndpoint, deliveries
from xalen_batch.models.events import EventType
from xalen_batch.models.webhooks import DeliveryState
from xalen_batch.paging import Page
from xalen_batch.webhooks import endpoints

# Events that one replay sends.
MOST_REPLAYED = 10_000
# The time in an event's id is its process's, and `created_at` that of its transaction's begin.
SLACK = timedelta(hours=1)


class Replayed(StrEnum):
    """The events of a span that a replay sends."""

    FAILED = "failed"  # those that did not arrive, or that the webhook was not told of
    ALL = "all"


class Told(NamedTuple):
    """A delivery with its event."""

    delivery: WebhookDelivery
    event: Event


def page(
    session: Session,
    endpoint: WebhookEndpoint,
    *,
    limit: int,
    after: str | None,
    state: DeliveryState | None,
) -> Page[Told]:
    """A page of a webhook's deliveries, the newest event first; with `state`, only those in it."""
    rows = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint.id)
    if state is not None:
        rows = rows.where(WebhookDelivery.state == state.value)
    found = paging.page(
        session, rows, WebhookDelivery.event_id, "evt", limit=limit, order="desc", after=after
    )
    of_event = {
        event.id: event
        for event in session.scalars(
            select(Event).where(Event.id.in_([delivery.event_id for delivery in found.data]))
        )
    }
    return Page([Told(row, of_event[row.event_id]) for row in found.data], found.has_more)


def test(session: Session, endpoint: WebhookEndpoint) -> Told:
    """Send a test event to a locked webhook soon. Raises WebhookDisabled if it is disabled."""
    endpoints.refuse_if_disabled(endpoint)
    endpoint.not_before = None
    event = events.record_test(session, endpoint)
    return Told(session.get_one(WebhookDelivery, (event.id, endpoint.id)), event)


def redeliver(session: Session, endpoint: WebhookEndpoint, event_id: str) -> Told:
    """Send an event of the account to a locked webhook again, with all attempts anew.

    Raises NotFound for an event that the account does not have or that is forgotten, and
    WebhookDisabled.
    """
    id = ids.parse("evt", event_id)
    event = None
    if id is not None:
        event = session.scalars(
            select(Event).where(
                Event.account_id == endpoint.account_id,
                Event.livemode == endpoint.livemode,
                Event.id == id,
            )
        ).one_or_none()
    if event is None:
        raise NotFound(
            f"No such event: {event_id[:QUOTED_CHARS]}. Events are kept for a bounded time.",
            param="event_id",
        )
    endpoints.refuse_if_disabled(endpoint)
    _send(session, endpoint, [Event.id == event.id])
    delivery = session.get_one(WebhookDelivery, (event.id, endpoint.id), populate_existing=True)
    return Told(delivery, event)


def replay(
    session: Session,
    endpoint: WebhookEndpoint,
    *,
    since: datetime,
    until: datetime,
    what: Replayed,
) -> int:
    """Send the events of a span to a locked webhook again; their number.

    Raises InvalidRequest if the span has more than MOST_REPLAYED events, and WebhookDisabled.
    """
    if until <= since:
        raise InvalidRequest("to: it has to come after `from`.", param="to")
    endpoints.refuse_if_disabled(endpoint)
    of_span: list[ColumnElement[bool]] = [
        Event.account_id == endpoint.account_id,
        Event.livemode == endpoint.livemode,
        Event.id >= ids.at(since - SLACK),
        Event.id < ids.at(until + SLACK),
        Event.created_at >= since,
        Event.created_at < until,
        or_(Event.type != EventType.WEBHOOK_TEST.value, Event.object_id == endpoint.id),
    ]
    if endpoint.events is not None:
        of_span.append(Event.type.in_(endpoint.events))
    if endpoint.batch_id is not None:
        of_span.append(Event.object_id == endpoint.batch_id)
    if what is Replayed.FAILED:
        has_arrived = (
            select(WebhookDelivery.event_id)
            .where(
                WebhookDelivery.event_id == Event.id,
                WebhookDelivery.endpoint_id == endpoint.id,
                WebhookDelivery.state != DeliveryState.FAILED.value,
            )
            .exists()
        )
        of_span.append(~has_arrived)
    some = select(Event.id).where(*of_span).limit(MOST_REPLAYED + 1).subquery()
    number = session.scalar(select(func.count()).select_from(some)) or 0
    if number > MOST_REPLAYED:
        raise InvalidRequest(
            f"from: the span has more than {MOST_REPLAYED:,} events. Replay it in shorter spans.",
            param="from",
            code="too_many_events",
        )
    return _send(session, endpoint, of_span)


def _send(session: Session, endpoint: WebhookEndpoint, which: list[ColumnElement[bool]]) -> int:
    """Make deliveries of events due now, with all attempts; those that wait become due."""
    row = insert(WebhookDelivery).from_select(
        ["event_id", "endpoint_id", "account_id", "livemode"],
        select(Event.id, literal(endpoint.id), Event.account_id, Event.livemode).where(*which),
    )
    sent = session.execute(
        row.on_conflict_do_update(
            index_elements=[WebhookDelivery.event_id, WebhookDelivery.endpoint_id],
            set_=deliveries.ANEW,
        ).returning(WebhookDelivery.event_id)
    ).all()
    endpoint.not_before = None
    session.flush()
    if sent:
        db.enqueue(session, Job.DELIVER)
    return len(sent)
