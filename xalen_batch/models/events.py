"""Events: changes of objects that an account can be told of."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import Index, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch import ids
from xalen_batch.models.base import Base


class EventType(StrEnum):
    """The types of events. Those with the prefix `xalen.` are not OpenAI's."""

    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_EXPIRED = "batch.expired"
    BATCH_CANCELLED = "batch.cancelled"
    # Of Responses that run in the background.
    RESPONSE_COMPLETED = "response.completed"
    RESPONSE_FAILED = "response.failed"
    RESPONSE_CANCELLED = "response.cancelled"
    RESPONSE_INCOMPLETE = "response.incomplete"
    # The batch will most likely miss its deadline.
    BATCH_AT_RISK = "xalen.batch.at_risk"
    RUN_FAILED = "xalen.schedule.run.failed"
    RUN_MISSED = "xalen.schedule.run.missed"
    INVOICE_ISSUED = "xalen.invoice.issued"
    WEBHOOK_TEST = "xalen.webhook.test"
    WEBHOOK_DISABLED = "xalen.webhook.disabled"


def object_kind(type: str) -> ids.Kind:
    """The kind of object that an event of this type is about."""
    return _KINDS[type.removeprefix("xalen.").partition(".")[0]]


_KINDS: dict[str, ids.Kind] = {
    "batch": "batch",
    "response": "resp",
    "schedule": "run",
    "invoice": "inv",
    "webhook": "whe",
}


class Event(Base):
    """One change of an object; it has no foreign key, since the sweep deletes it on its own."""

    __tablename__ = "events"
    __table_args__ = (
        # Target of the key of deliveries, and the index of an account's events.
        UniqueConstraint("account_id", "livemode", "id"),
        # An object tells each change once; a webhook may be tested and disabled several times.
        Index(
            "uq_events_object_id_type",
            "object_id",
            "type",
            unique=True,
            postgresql_where=text("type NOT LIKE 'xalen.webhook.%'"),
        ),
    )

    # A UUIDv7, so the sweep finds the oldest events by it.
    id: Mapped[UUID] = mapped_column(primary_key=True)
    account_id: Mapped[UUID]
    livemode: Mapped[bool]
    # `EventType`
    type: Mapped[str]
    object_id: Mapped[UUID]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
