"""Webhooks and events for tests, and reads of their deliveries."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, update

from tests import factories
from xalen_batch import db, events, ids
from xalen_batch.accounts.accounts import Owner
from xalen_batch.events import Happened, Owned
from xalen_batch.models import WebhookDelivery, WebhookEndpoint
from xalen_batch.models.deliveries import Due
from xalen_batch.models.events import EventType
from xalen_batch.webhooks import payload, signing

SECRET = "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c="


def an_owner(*, livemode: bool = False) -> Owner:
    with db.transaction() as session:
        return Owner(factories.account(session).id, livemode)


def an_endpoint(owner: Owned, url: str = "https://example.com/hook", **columns: Any) -> UUID:
    with db.transaction() as session:
        made = WebhookEndpoint(
            **{
                "id": ids.new(),
                "account_id": owner.account_id,
                "livemode": owner.livemode,
                "url": url,
                "secret": SECRET,
                **columns,
            }
        )
        session.add(made)
        return made.id


def tell(owner: Owned, *changes: Happened) -> None:
    with db.transaction() as session:
        events.record(session, owner, *changes)


def completed(owner: Owned, number: int = 1) -> None:
    """Record the ends of batches, one after another."""
    for _ in range(number):
        tell(owner, Happened(EventType.BATCH_COMPLETED, ids.new()))


def endpoint(id: UUID) -> WebhookEndpoint:
    with db.reading() as session:
        return session.get_one(WebhookEndpoint, id)


def deliveries_to(endpoint_id: UUID) -> list[WebhookDelivery]:
    with db.reading() as session:
        rows = (
            select(WebhookDelivery)
            .where(WebhookDelivery.endpoint_id == endpoint_id)
            .order_by(WebhookDelivery.event_id)
        )
        return list(session.scalars(rows))


def set_endpoint(id: UUID, **columns: Any) -> None:
    with db.transaction() as session:
        session.execute(update(WebhookEndpoint).where(WebhookEndpoint.id == id).values(**columns))


def set_deliveries(endpoint_id: UUID, **columns: Any) -> None:
    with db.transaction() as session:
        session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.endpoint_id == endpoint_id)
            .values(**columns)
        )


def an_event_of_each_type(*secrets: str) -> list[dict[str, Any]]:
    """A delivery of every type, in their order, as a worker sends it now: body and headers."""
    now = datetime.now(UTC)
    found = []
    for type in EventType:
        event = Due(ids.new(), type.value, ids.new(), now, 0)
        body = payload.body(event)
        id = payload.event_id(event)
        headers = signing.headers(secrets, id, int(now.timestamp()), body)
        found.append({"body": body.decode(), "headers": headers})
    return found
