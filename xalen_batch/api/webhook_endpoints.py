"""/v1/webhook_endpoints and /v1/webhook_event_types: webhooks as OpenAI's SDKs manage them.

A second view of the rows and services of /v1/webhooks. `name` is the description there.
"""

from datetime import timedelta
from typing import Any, Literal, Self

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from xalen_batch import db, ids
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.api import long_work
from xalen_batch.api.deps import BriefAdmin, calling
from xalen_batch.api.http.responses import secret_for
from xalen_batch.api.schemas import Identified, ListObject
from xalen_batch.api.scopes import Scoped
from xalen_batch.api.webhook_schemas import Description, Types
from xalen_batch.api.webhooks import After, Limit
from xalen_batch.fields import Text
from xalen_batch.models import WebhookEndpoint
from xalen_batch.models.events import EventType
from xalen_batch.ratelimit import account
from xalen_batch.webhooks import endpoints, samples

router = APIRouter(prefix="/v1/webhook_endpoints", tags=["webhooks"])
types_router = APIRouter(prefix="/v1/webhook_event_types", tags=["webhooks"])

# Characters of a secret's end that its hint shows.
HINT_CHARS = 4


class OpenAIWebhookObject(Identified, Scoped):
    """A webhook, with OpenAI's fields."""

    always = frozenset({"id", "object"})

    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    event_types: list[str] = Field(description="The types of events that it gets.")
    name: str = Field(description="Its description, or its URL if it has none.")
    signing_secret_hint: str | None = Field(
        description="The end of its secret; null: a batch brought it without a secret."
    )
    updated_at: int | None = Field(description="The last change of a field here, or of the secret.")
    url: str

    @classmethod
    def of(cls, endpoint: WebhookEndpoint) -> Self:
        return cls(**_shown(endpoint))


class NewOpenAIWebhookObject(OpenAIWebhookObject):
    """A webhook with a new secret: the one answer that has it."""

    always = OpenAIWebhookObject.always | {"signing_secret"}

    signing_secret: str

    @classmethod
    def of(cls, endpoint: WebhookEndpoint) -> Self:
        return cls(**_shown(endpoint), signing_secret=endpoint.secret)


def _shown(endpoint: WebhookEndpoint) -> dict[str, Any]:
    every = [type.value for type in EventType]
    # A rotation by an API of the version before sets `rotated_at` alone.
    times = (endpoint.created_at, endpoint.rotated_at, endpoint.changed_at)
    return {
        "id": ids.render("whe", endpoint.id),
        "created_at": int(endpoint.created_at.timestamp()),
        "event_types": every if endpoint.events is None else endpoint.events,
        "name": endpoint.description or endpoint.url,
        "signing_secret_hint": _hint(endpoint.secret),
        "updated_at": int(max(time for time in times if time).timestamp()),
        "url": endpoint.url,
    }


def _hint(secret: str) -> str | None:
    return f"whsec_…{secret.rstrip('=')[-HINT_CHARS:]}" if secret else None


class DeletedOpenAIWebhook(BaseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class WebhookTestObject(BaseModel):
    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    event_type: str
    status_code: int = Field(description="The status of the receiver's answer.")
    success: Literal[True] = Field(True, description="The receiver answered, with any status.")
    webhook_endpoint_id: str


class EventTypesObject(BaseModel):
    object: Literal["list"] = "list"
    data: list[str]


class OpenAIWebhookRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    event_types: Types = Field(description="The types of events that it gets.")
    name: Description
    url: Text = Field(
        description="Where events are posted.", examples=["https://example.com/hooks/xalen"]
    )


class OpenAIWebhookChange(BaseModel):
    """Fields that are left out or null stay as they are."""

    model_config = ConfigDict(extra="forbid")

    event_types: Types | None = Field(None, description="All types of events that it gets.")
    name: Description | None = None
    url: Text | None = None


class OpenAISecretRotation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keep_old_secret_active_for_24_hours: bool = Field(
        False, description="Whether the old secret signs as well for 24 hours."
    )


class WebhookTestRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    event_type: EventType = Field(description="The type of the sample.")


@router.post("", response_model=NewOpenAIWebhookObject)
@calling(Scope.ADMIN)
def create_webhook_endpoint(
    session: Session, caller: Caller, body: OpenAIWebhookRequest
) -> Response:
    """Post the account's events to a URL from now on. Its secret is in this answer alone."""
    endpoint = endpoints.create(
        session, caller, url=body.url, types=body.event_types, description=body.name
    )
    return secret_for(caller, NewOpenAIWebhookObject.of(endpoint))


@router.get("")
@calling(Scope.READ)
def list_webhook_endpoints(
    session: Session, caller: Caller, limit: Limit = 20, after: After = None
) -> ListObject[OpenAIWebhookObject]:
    """The account's webhooks, newest first; never a secret."""
    page = endpoints.page(session, caller, limit=limit, after=after, batch_id=None)
    return ListObject[OpenAIWebhookObject].of(
        [OpenAIWebhookObject.of(endpoint) for endpoint in page.data], page.has_more
    )


@router.get("/{webhook_id}")
@calling(Scope.READ)
def retrieve_webhook_endpoint(
    session: Session, caller: Caller, webhook_id: str
) -> OpenAIWebhookObject:
    return OpenAIWebhookObject.of(endpoints.get(session, caller, webhook_id))


@router.post("/{webhook_id}")
@calling(Scope.ADMIN)
def update_webhook_endpoint(
    session: Session, caller: Caller, webhook_id: str, body: OpenAIWebhookChange
) -> OpenAIWebhookObject:
    """Change it. What waits for it goes to the new URL."""
    endpoint = endpoints.lock(session, caller, webhook_id)
    endpoints.change(
        session,
        endpoint,
        url=body.url,
        types=body.event_types or endpoints.types_of(endpoint),
        description=body.name or endpoint.description,
    )
    return OpenAIWebhookObject.of(endpoint)


@router.delete("/{webhook_id}")
@calling(Scope.ADMIN)
def delete_webhook_endpoint(
    session: Session, caller: Caller, webhook_id: str
) -> DeletedOpenAIWebhook:
    """Delete it with its secret. What waits for it is not sent."""
    endpoints.delete_one(session, endpoints.lock(session, caller, webhook_id))
    return DeletedOpenAIWebhook(id=webhook_id)


@router.post("/{webhook_id}/rotate_secret", response_model=NewOpenAIWebhookObject)
@calling(Scope.ADMIN)
def rotate_webhook_endpoint_secret(
    session: Session, caller: Caller, webhook_id: str, body: OpenAISecretRotation | None = None
) -> Response:
    """Make a new secret. The old one signs no more, or with the option for 24 hours as well."""
    endpoint = endpoints.lock(session, caller, webhook_id)
    keeps = body is not None and body.keep_old_secret_active_for_24_hours
    endpoints.rotate(session, endpoint, endpoints.OVERLAP if keeps else timedelta())
    return secret_for(caller, NewOpenAIWebhookObject.of(endpoint))


@router.post("/{webhook_id}/test")
def test_webhook_endpoint(
    caller: BriefAdmin, webhook_id: str, body: WebhookTestRequest
) -> WebhookTestObject:
    """Post a sample event to it now, and return the receiver's status. No list has the sample."""
    with long_work.admitted(caller):
        # No session is held while the receiver answers.
        with db.reading() as session:
            account.admit_change(session, caller)
            endpoint = endpoints.get(session, caller, webhook_id)
        status = samples.send(endpoint, body.event_type)
    return WebhookTestObject(
        event_type=body.event_type.value, status_code=status, webhook_endpoint_id=webhook_id
    )


@types_router.get("")
@calling(Scope.READ)
def list_webhook_event_types(session: Session, caller: Caller) -> EventTypesObject:
    """The types of events that a webhook can get."""
    return EventTypesObject(data=[type.value for type in EventType])
