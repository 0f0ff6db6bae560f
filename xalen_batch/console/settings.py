"""Settings of an account: its keys, its webhooks with their deliveries, and its quotas."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from xalen_batch.accounts import keys, quotas
from xalen_batch.accounts.accounts import Scope
from xalen_batch.accounts.sessions import Visitor
from xalen_batch.api.key_schemas import KeyObject
from xalen_batch.api.limits import Standing
from xalen_batch.api.webhook_schemas import DeliveryObject, WebhookObject
from xalen_batch.console import routes, views
from xalen_batch.console.routes import PATH, PageRoute
from xalen_batch.webhooks import endpoints, history

router = APIRouter(prefix=f"{PATH}/settings", route_class=PageRoute, include_in_schema=False)
MOST_KEYS = MOST_WEBHOOKS = 50
DELIVERIES_ON_PAGE = 25


@router.get("")
@routes.page()
def show_settings(request: Request, session: Session, visitor: Visitor) -> Response:
    """Keys (for a key with the scope `admin`), webhooks, and the quotas that are used."""
    found = None
    if Scope.ADMIN in visitor.caller.scopes:
        page = keys.page(session, visitor.caller, limit=MOST_KEYS, after=None)
        found = [KeyObject.of(key) for key in page.data]
    webhooks = endpoints.page(
        session, visitor.caller, limit=MOST_WEBHOOKS, after=None, batch_id=None
    )
    limits, held = quotas.limits(session, visitor.caller), quotas.held(session, visitor.caller)
    return views.show(
        request,
        visitor,
        "settings.html",
        keys=found,
        own=visitor.caller.actor,
        webhooks=[WebhookObject.of(endpoint) for endpoint in webhooks.data],
        quotas=[(quota.value, Standing.of(used, limits[quota])) for quota, used in held.items()],
    )


@router.get("/webhooks/{webhook_id}")
@routes.page()
def show_webhook(
    request: Request,
    session: Session,
    visitor: Visitor,
    webhook_id: str,
    after: Annotated[str | None, Query(max_length=100)] = None,
) -> Response:
    """A webhook with its deliveries, the newest event first."""
    endpoint = endpoints.get(session, visitor.caller, webhook_id)
    told = history.page(session, endpoint, limit=DELIVERIES_ON_PAGE, after=after, state=None)
    deliveries = [DeliveryObject.of(each) for each in told.data]
    path = f"{PATH}/settings/webhooks/{webhook_id}"
    return views.show(
        request,
        visitor,
        "webhook.html",
        webhook=WebhookObject.of(endpoint),
        deliveries=deliveries,
        older=f"{path}?after={deliveries[-1].id}" if told.has_more else None,
        may_admin=Scope.ADMIN in visitor.caller.scopes,
    )


@router.post("/webhooks/{webhook_id}/deliveries/{event_id}")
@routes.change(Scope.ADMIN)
def redeliver(
    request: Request, session: Session, visitor: Visitor, webhook_id: str, event_id: str
) -> Response:
    """Send an event to it again, with all attempts anew."""
    history.redeliver(session, endpoints.lock(session, visitor.caller, webhook_id), event_id)
    return routes.to(f"{PATH}/settings/webhooks/{webhook_id}")


@router.post("/webhooks/{webhook_id}/enabled")
@routes.change(Scope.ADMIN)
def enable(request: Request, session: Session, visitor: Visitor, webhook_id: str) -> Response:
    """Enable a webhook again; its failures are forgotten."""
    endpoints.set_enabled(session, endpoints.lock(session, visitor.caller, webhook_id), True)
    return routes.to(f"{PATH}/settings/webhooks/{webhook_id}")
