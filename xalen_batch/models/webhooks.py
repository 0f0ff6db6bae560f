"""Webhooks: endpoints that are told of events, and the deliveries of events to them."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, Text, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from xalen_batch.models.base import Base


class WebhookStatus(StrEnum):
    ENABLED = "enabled"
    DISABLED = "disabled"  # it gets no events until its owner enables it again


class DeliveryState(StrEnum):
    PENDING = "pending"  # an attempt is due at `due_at`
    DELIVERED = "delivered"  # the receiver answered with 2xx
    FAILED = "failed"  # all attempts failed, or the webhook was disabled


class WebhookEndpoint(Base):
    """A URL that gets events of its account and mode, or with `batch_id` those of one batch.

    A worker leases an endpoint to send its deliveries, so one delivery at a time is in flight. The
    fence rises with each lease; a worker with a lower one writes nothing.
    """

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        # Target of the key of deliveries.
        UniqueConstraint("account_id", "livemode", "id"),
        ForeignKeyConstraint(
            ["batch_id", "account_id", "livemode"],
            ["batches.id", "batches.account_id", "batches.livemode"],
        ),
        # For the receivers of an event (events.py).
        Index(
            "ix_webhook_endpoints_owner",
            "account_id",
            "livemode",
            postgresql_where=text("batch_id IS NULL AND deleted_at IS NULL"),
        ),
        Index(
            "uq_webhook_endpoints_batch_id",
            "batch_id",
            unique=True,
            postgresql_where=text("batch_id IS NOT NULL"),
        ),
        # For the sweep.
        Index(
            "ix_webhook_endpoints_deleted_at",
            "deleted_at",
            postgresql_where=text("deleted_at IS NOT NULL"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    account_id: Mapped[UUID] = mapped_column(ForeignKey("accounts.id"))
    livemode: Mapped[bool]
    # The batch that brought this webhook; null for one of the account.
    batch_id: Mapped[UUID | None]
    url: Mapped[str]
    description: Mapped[str | None]
    # The types of events that it gets; null: all.
    events: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    status: Mapped[str] = mapped_column(server_default=WebhookStatus.ENABLED.value)
    disabled_reason: Mapped[str | None]
    # `whsec_…`, which signs each delivery; empty once the endpoint is deleted. After a rotation the
    # previous secret signs as well, until its time is over.
    secret: Mapped[str]
    previous_secret: Mapped[str | None]
    previous_secret_until: Mapped[datetime | None]
    rotated_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # Of the last change of URL, events, description or secret. Null: none is known.
    changed_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]

    # Of the last attempt of any delivery.
    last_delivery_at: Mapped[datetime | None]
    last_status_code: Mapped[int | None]
    # Failed attempts since the last success, and the time of the first of them.
    consecutive_failures: Mapped[int] = mapped_column(server_default="0")
    failing_since: Mapped[datetime | None]

    # No attempt before: the receiver failed, or asked for a pause.
    not_before: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]


class WebhookDelivery(Base):
    """An event for an endpoint, and the last attempt to send it."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        ForeignKeyConstraint(
            ["account_id", "livemode", "event_id"],
            ["events.account_id", "events.livemode", "events.id"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(
            ["account_id", "livemode", "endpoint_id"],
            [
                "webhook_endpoints.account_id",
                "webhook_endpoints.livemode",
                "webhook_endpoints.id",
            ],
            ondelete="CASCADE",
        ),
        # The endpoints with pending deliveries, and of each the delivery that is due first.
        Index(
            "ix_webhook_deliveries_pending",
            "endpoint_id",
            "due_at",
            "event_id",
            postgresql_where=text("state = 'pending'"),
        ),
        Index("ix_webhook_deliveries_endpoint_id_event_id", "endpoint_id", "event_id"),
    )

    event_id: Mapped[UUID] = mapped_column(primary_key=True)
    endpoint_id: Mapped[UUID] = mapped_column(primary_key=True)
    account_id: Mapped[UUID]
    livemode: Mapped[bool]
    state: Mapped[str] = mapped_column(server_default=DeliveryState.PENDING.value)
    # Attempts that ended; a worker that is killed during one does not count it.
    attempts: Mapped[int] = mapped_column(server_default="0")
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # Of the last attempt: its time, milliseconds, and the receiver's answer or the error.
    attempted_at: Mapped[datetime | None]
    duration_ms: Mapped[int | None]
    status_code: Mapped[int | None]
    error: Mapped[str | None]
    # The beginning of the answer's body.
    response: Mapped[bytes | None]
