"""Extension: /v1/webhooks and /v1/events.

No route takes an Idempotency-Key: the answer would be stored, and it may hold a secret.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from xalen_batch import events
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api.deps import calling
from xalen_batch.api.http.responses import secret_for
from xalen_batch.api.schemas import ListObject
from xalen_batch.api.webhook_schemas import (
    DeletedWebhook,
    DeliveryObject,
    EventObject,
    NewWebhookObject,
    ReplayObject,
    ReplayRequest,
    SecretRotation,
    WebhookChange,
    WebhookObject,
    WebhookRequest,
)
from xalen_batch.models.events import EventType
from xalen_batch.models.webhooks import DeliveryState
from xalen_batch.paging import Order
from xalen_batch.webhooks import endpoints, history

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])
events_router = APIRouter(prefix="/v1/events", tags=["webhooks"])

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(description="The last id of the page before.")]


@router.post("", response_model=NewWebhookObject)
@calling(Scope.ADMIN)
def create_webhook(session: Session, caller: Caller, body: WebhookRequest) -> Response:
    """Post the account's events to a URL from now on. Its secret is in this answer alone."""
    endpoint = endpoints.create(
        session,
        caller,
        url=body.url,
        types=body.events,
        description=body.description,
        is_enabled=body.enabled,
    )
    return secret_for(caller, NewWebhookObject.of(endpoint))


@router.get("")
@calling(Scope.READ)
def list_webhooks(
    session: Session,
    caller: Caller,
    limit: Limit = 20,
    after: After = None,
    batch_id: Annotated[
        str | None, Query(description="The webhook that this batch brought, `batch_…`.")
    ] = None,
) -> ListObject[WebhookObject]:
    """The account's webhooks, newest first; never a secret."""
    page = endpoints.page(session, caller, limit=limit, after=after, batch_id=batch_id)
    return ListObject[WebhookObject].of(
        [WebhookObject.of(endpoint) for endpoint in page.data], page.has_more
    )


@router.get("/{webhook_id}")
@calling(Scope.READ)
def retrieve_webhook(session: Session, caller: Caller, webhook_id: str) -> WebhookObject:
    return WebhookObject.of(endpoints.get(session, caller, webhook_id))


@router.patch("/{webhook_id}")
@calling(Scope.ADMIN)
def change_webhook(
    session: Session, caller: Caller, webhook_id: str, body: WebhookChange
) -> WebhookObject:
    """Change it. What waits for it goes to the new URL."""
    endpoint = endpoints.lock(session, caller, webhook_id)
    sent = body.model_fields_set
    endpoints.change(
        session,
        endpoint,
        url=body.url,
        types=body.events if "events" in sent else endpoints.types_of(endpoint),
        description=body.description if "description" in sent else endpoint.description,
    )
    if body.enabled is not None:
        endpoints.set_enabled(session, endpoint, body.enabled)
    return WebhookObject.of(endpoint)


@router.delete("/{webhook_id}")
@calling(Scope.ADMIN)
def delete_webhook(session: Session, caller: Caller, webhook_id: str) -> DeletedWebhook:
    """Delete it with its secret. What waits for it is not sent."""
    endpoints.delete_one(session, endpoints.lock(session, caller, webhook_id))
    return DeletedWebhook(id=webhook_id)


@router.post("/{webhook_id}/rotate", response_model=NewWebhookObject)
@calling(Scope.ADMIN)
def rotate_webhook_secret(
    session: Session, caller: Caller, webhook_id: str, body: SecretRotation | None = None
) -> Response:
    """Make a new secret. The old one signs as well for the overlap, by default a day."""
    endpoint = endpoints.lock(session, caller, webhook_id)
    overlap = endpoints.OVERLAP if body is None else timedelta(seconds=body.overlap_seconds)
    endpoints.rotate(session, endpoint, overlap)
    return secret_for(caller, NewWebhookObject.of(endpoint))


@router.post("/{webhook_id}/test")
@calling(Scope.ADMIN)
def test_webhook(session: Session, caller: Caller, webhook_id: str) -> DeliveryObject:
    """Send it the event `xalen.webhook.test`. Any body is ignored."""
    endpoint = endpoints.lock(session, caller, webhook_id)
    return DeliveryObject.of(history.test(session, endpoint))


@router.get("/{webhook_id}/deliveries")
@calling(Scope.READ)
def list_deliveries(
    session: Session,
    caller: Caller,
    webhook_id: str,
    limit: Limit = 20,
    after: After = None,
    state: Annotated[DeliveryState | None, Query(description="Only those in this state.")] = None,
) -> ListObject[DeliveryObject]:
    """Its deliveries, the newest event first, each with its last attempt."""
    endpoint = endpoints.get(session, caller, webhook_id)
    page = history.page(session, endpoint, limit=limit, after=after, state=state)
    return ListObject[DeliveryObject].of(
        [DeliveryObject.of(told) for told in page.data], page.has_more
    )


@router.post("/{webhook_id}/deliveries/{event_id}/redeliver")
@calling(Scope.ADMIN)
def redeliver_event(
    session: Session, caller: Caller, webhook_id: str, event_id: str
) -> DeliveryObject:
    """Send it an event again, with all attempts anew. Any body is ignored."""
    endpoint = endpoints.lock(session, caller, webhook_id)
    return DeliveryObject.of(history.redeliver(session, endpoint, event_id))


@router.post("/{webhook_id}/replay")
@calling(Scope.ADMIN)
def replay_events(
    session: Session, caller: Caller, webhook_id: str, body: ReplayRequest
) -> ReplayObject:
    """Send it the events of a span again, at most 10,000."""
    endpoint = endpoints.lock(session, caller, webhook_id)
    number = history.replay(
        session, endpoint, since=_utc(body.since), until=_utc(body.until), what=body.state
    )
    return ReplayObject(events=number)


@events_router.get("")
@calling(Scope.READ)
def list_events(
    session: Session,
    caller: Caller,
    limit: Limit = 20,
    after: After = None,
    order: Annotated[Order, Query(description="`asc`: the oldest first.")] = "desc",
    type: Annotated[EventType | None, Query(description="Only those of this type.")] = None,
) -> ListObject[EventObject]:
    """The account's events of the last 30 days, whether a webhook gets them or not."""
    page = events.page(session, caller, limit=limit, after=after, order=order, type=type)
    return ListObject[EventObject].of([EventObject.of(event) for event in page.data], page.has_more)


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)
