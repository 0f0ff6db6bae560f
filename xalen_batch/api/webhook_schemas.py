"""Schemas of webhooks, their deliveries, and events.

Unknown fields are refused: a misspelt field must not send events elsewhere.
"""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from xalen_batch import ids
from xalen_batch.api.schemas import Identified
from xalen_batch.api.scopes import Scoped
from xalen_batch.fields import STORABLE, Text, Time
from xalen_batch.models import Event, WebhookEndpoint
from xalen_batch.models.events import EventType, object_kind
from xalen_batch.models.webhooks import DeliveryState
from xalen_batch.webhooks.endpoints import LONGEST_OVERLAP, OVERLAP
from xalen_batch.webhooks.history import Replayed, Told

Description = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500), STORABLE
]
Types = Annotated[list[EventType], Field(min_length=1, max_length=100)]


class WebhookObject(Identified, Scoped):
    always = frozenset({"id", "object", "status"})

    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    url: str
    description: str | None
    events: list[str] | None = Field(description="The types of events that it gets; null: all.")
    status: str = Field(description="`enabled`, or `disabled`: it gets no events.")
    disabled_reason: str | None = Field(
        description=(
            "`manual`: by its owner. `gone`: the receiver answered 410. `failing`: every attempt"
            " of 5 days failed."
        )
    )
    batch_id: str | None = Field(description="The batch that brought it; null: of the account.")
    created_at: int
    previous_secret_expires_at: int | None = Field(
        description="Until then the secret from before the last rotation signs as well."
    )
    last_delivery_at: int | None = Field(description="The time of the last attempt.")
    last_status_code: int | None
    consecutive_failures: int = Field(description="Attempts that failed since the last success.")
    livemode: bool

    @classmethod
    def of(cls, endpoint: WebhookEndpoint) -> Self:
        return cls(**_shown(endpoint))


class NewWebhookObject(WebhookObject):
    """A webhook with a new secret: the one answer that has it."""

    always = WebhookObject.always | {"secret"}

    secret: str

    @classmethod
    def of(cls, endpoint: WebhookEndpoint) -> Self:
        return cls(**_shown(endpoint), secret=endpoint.secret)


def _shown(endpoint: WebhookEndpoint) -> dict[str, object]:
    return {
        "id": ids.render("whe", endpoint.id),
        "url": endpoint.url,
        "description": endpoint.description,
        "events": endpoint.events,
        "status": endpoint.status,
        "disabled_reason": endpoint.disabled_reason,
        "batch_id": endpoint.batch_id and ids.render("batch", endpoint.batch_id),
        "created_at": int(endpoint.created_at.timestamp()),
        "previous_secret_expires_at": _seconds(endpoint.previous_secret_until),
        "last_delivery_at": _seconds(endpoint.last_delivery_at),
        "last_status_code": endpoint.last_status_code,
        "consecutive_failures": endpoint.consecutive_failures,
        "livemode": endpoint.livemode,
    }


class DeletedWebhook(BaseModel):
    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    deleted: Literal[True] = True


class EventData(BaseModel):
    id: str = Field(description="The id of the object that changed.")


class EventObject(Identified):
    """An event as its receivers get it."""

    object: Literal["event"] = "event"
    created_at: int
    type: str
    data: EventData

    @classmethod
    def of(cls, event: Event) -> Self:
        return cls(
            id=ids.render("evt", event.id),
            created_at=int(event.created_at.timestamp()),
            type=event.type,
            data=EventData(id=ids.render(object_kind(event.type), event.object_id)),
        )


class DeliveryObject(Identified, Scoped):
    """An event for a webhook, under the event's id, and its last attempt."""

    always = frozenset({"id", "object", "state"})

    object: Literal["webhook_delivery"] = "webhook_delivery"
    event: EventObject
    state: str = Field(description="`pending`, `delivered` or `failed`.")
    attempts: int = Field(description="Attempts that ended.")
    next_attempt_at: int | None = Field(description="Of a pending one, by its own failures.")
    last_attempt_at: int | None
    duration_ms: int | None
    status_code: int | None
    error: str | None = Field(description="Why the last attempt failed.")
    response: str | None = Field(description="The beginning of the last answer, at most 2 KiB.")

    @classmethod
    def of(cls, told: Told) -> Self:
        delivery = told.delivery
        is_pending = delivery.state == DeliveryState.PENDING
        return cls(
            id=ids.render("evt", delivery.event_id),
            event=EventObject.of(told.event),
            state=delivery.state,
            attempts=delivery.attempts,
            next_attempt_at=_seconds(delivery.due_at) if is_pending else None,
            last_attempt_at=_seconds(delivery.attempted_at),
            duration_ms=delivery.duration_ms,
            status_code=delivery.status_code,
            error=delivery.error,
            response=(
                None if delivery.response is None else delivery.response.decode("utf-8", "replace")
            ),
        )


class ReplayObject(BaseModel):
    object: Literal["webhook_replay"] = "webhook_replay"
    events: int = Field(description="The number of events that are sent.")


class WebhookRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: Text = Field(
        description="Where events are posted.", examples=["https://example.com/hooks/xalen"]
    )
    events: Types | None = Field(None, description="The types of events it gets. Unset: all.")
    description: Description | None = Field(None, description="A note for its owner.")
    enabled: bool = Field(True, description="False: it gets no events until it is enabled.")


class WebhookChange(BaseModel):
    """Fields that are left out stay as they are."""

    model_config = ConfigDict(extra="forbid")

    url: Text | None = None
    events: Types | None = Field(None, description="Null: all.")
    description: Description | None = None
    enabled: bool | None = Field(
        None, description="True forgets its failures; false: it gets no events."
    )


class SecretRotation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    overlap_seconds: int = Field(
        int(OVERLAP.total_seconds()),
        ge=0,
        le=int(LONGEST_OVERLAP.total_seconds()),
        description="How long the old secret signs as well.",
    )


class ReplayRequest(BaseModel):
    """A span of events by their time, ISO 8601 (UTC without an offset) or Unix seconds."""

    model_config = ConfigDict(extra="forbid")

    since: Time = Field(alias="from", description="The first event may be at this time.")
    until: Time = Field(alias="to", description="The last event is before this time.")
    state: Replayed = Field(
        Replayed.FAILED,
        description=(
            "`failed`: events that did not arrive, or that the webhook was not told of. `all`:"
            " those that arrived, too."
        ),
    )


def _seconds(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp())
