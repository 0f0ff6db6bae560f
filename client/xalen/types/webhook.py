"""Webhooks, their deliveries, and events."""

from datetime import datetime
from typing import Literal, NotRequired, TypedDict

from openai import BaseModel

EventType = Literal[
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
    "response.completed",
    "response.failed",
    "response.cancelled",
    "response.incomplete",
    "xalen.batch.at_risk",
    "xalen.schedule.run.failed",
    "xalen.schedule.run.missed",
    "xalen.invoice.issued",
    "xalen.webhook.test",
    "xalen.webhook.disabled",
]
DeliveryState = Literal["pending", "delivered", "failed"]
Replayed = Literal["failed", "all"]
# ISO 8601 (UTC without an offset) or Unix seconds.
Time = datetime | str | float


class NewWebhook(TypedDict):
    url: str
    # The types of events that it gets; all by default.
    events: NotRequired[list[EventType] | None]
    description: NotRequired[str | None]
    # False: it gets no events until it is enabled.
    enabled: NotRequired[bool]


class WebhookChanges(TypedDict, total=False):
    """Fields that are left out stay as they are."""

    url: str | None
    # None: all.
    events: list[EventType] | None
    description: str | None
    # True forgets its failures.
    enabled: bool | None


class BatchWebhook(TypedDict):
    """A webhook that gets the events of one batch; without a secret they are not signed."""

    url: str
    secret: NotRequired[str | None]


class Webhook(BaseModel):
    id: str
    object: Literal["webhook_endpoint"]
    url: str
    description: str | None
    events: list[str] | None
    status: Literal["enabled", "disabled"]
    # `manual`, `gone` (the receiver answered 410) or `failing` (for 5 days).
    disabled_reason: str | None
    batch_id: str | None
    created_at: int
    # Until then the secret from before the last rotation signs as well.
    previous_secret_expires_at: int | None
    last_delivery_at: int | None
    last_status_code: int | None
    consecutive_failures: int
    livemode: bool


class NewlySecretWebhook(Webhook):
    """A webhook with a new secret, which no other answer has."""

    secret: str


class DeletedWebhook(BaseModel):
    id: str
    object: Literal["webhook_endpoint"]
    deleted: bool


class EventData(BaseModel):
    id: str


class Event(BaseModel):
    """A change of the object that `data` names, as receivers get it."""

    id: str
    object: Literal["event"]
    created_at: int
    type: str
    data: EventData


class WebhookDelivery(BaseModel):
    """An event for a webhook, under the event's id, and its last attempt."""

    id: str
    object: Literal["webhook_delivery"]
    event: Event
    state: DeliveryState
    attempts: int
    next_attempt_at: int | None
    last_attempt_at: int | None
    duration_ms: int | None
    status_code: int | None
    error: str | None
    # The beginning of the last answer.
    response: str | None


class WebhookReplay(BaseModel):
    object: Literal["webhook_replay"]
    # The number of events that are sent.
    events: int
