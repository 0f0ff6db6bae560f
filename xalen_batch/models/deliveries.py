"""The queue of deliveries: guarded UPDATEs of webhooks and of what is sent to them.

A worker leases an endpoint. What it writes afterwards is guarded by the endpoint's fence, so a
worker that lost the lease writes nothing.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, func, or_, select, text, update
from sqlalchemy.orm import Session

from xalen_batch.models.base import table_of
from xalen_batch.models.events import Event
from xalen_batch.models.webhooks import (
    DeliveryState,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookStatus,
)

# Endpoints that one look passes; the next look goes on behind them.
LOOKED_AT = 200
# Deliveries of a disabled endpoint that one call ends.
ENDED_AT_ONCE = 1_000

_ENDPOINTS, _DELIVERIES, _EVENTS = (
    table_of(WebhookEndpoint),
    table_of(WebhookDelivery),
    table_of(Event),
)


class Candidate(NamedTuple):
    """An endpoint with pending deliveries. `is_due`: one is due, and no worker has the endpoint."""

    id: UUID
    account_id: UUID
    consecutive_failures: int
    is_due: bool


def candidates(session: Session, after: UUID) -> list[Candidate]:
    """The next LOOKED_AT endpoints behind `after` that have pending deliveries, sorted by id."""
    return [
        Candidate(*row)
        for row in session.execute(_CANDIDATES, {"after": after, "looked_at": LOOKED_AT})
    ]


# A loose index scan: one look-up for each endpoint, however many deliveries it has.
_CANDIDATES = text("""
    WITH RECURSIVE pending AS (
        (
            SELECT endpoint_id FROM webhook_deliveries
            WHERE state = 'pending' AND endpoint_id > :after
            ORDER BY endpoint_id LIMIT 1
        )
        UNION ALL
        SELECT (
            SELECT endpoint_id FROM webhook_deliveries
            WHERE state = 'pending' AND endpoint_id > pending.endpoint_id
            ORDER BY endpoint_id LIMIT 1
        )
        FROM pending WHERE endpoint_id IS NOT NULL
    ),
    looked_at AS (SELECT endpoint_id FROM pending WHERE endpoint_id IS NOT NULL LIMIT :looked_at)
    SELECT id, account_id, consecutive_failures,
        (lease_until IS NULL OR lease_until < now())
        AND (
            status <> 'enabled' OR (not_before IS NULL OR not_before <= now()) AND EXISTS (
                SELECT FROM webhook_deliveries
                WHERE state = 'pending' AND endpoint_id = id AND due_at <= now()
            )
        )
    FROM looked_at JOIN webhook_endpoints ON id = endpoint_id
    ORDER BY id
""")


def claim(session: Session, ids: Collection[UUID], lease: float) -> list[WebhookEndpoint]:
    """Lease those of these endpoints that no other worker has, and return them."""
    found = session.scalars(_CLAIM, {"ids": list(ids), "lease": lease})
    return list(found)


_LEASE_END = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, bindparam("lease"))
_CLAIM = (
    select(WebhookEndpoint)
    .from_statement(
        update(_ENDPOINTS)
        .where(
            _ENDPOINTS.c.id.in_(
                select(_ENDPOINTS.c.id)
                .where(
                    _ENDPOINTS.c.id == func.any(bindparam("ids")),
                    or_(_ENDPOINTS.c.lease_until.is_(None), _ENDPOINTS.c.lease_until < func.now()),
                )
                .with_for_update(key_share=True, skip_locked=True)
            )
        )
        .values(fence=_ENDPOINTS.c.fence + 1, lease_until=_LEASE_END)
        .returning(*_ENDPOINTS.columns)
    )
    .execution_options(populate_existing=True)
)


class Due(NamedTuple):
    """A delivery that is due, with its event."""

    event_id: UUID
    type: str
    object_id: UUID
    created_at: datetime
    attempts: int


def due(session: Session, endpoint_id: UUID, limit: int) -> list[Due]:
    """The next deliveries of an endpoint that are due, in the order of their events."""
    rows = session.execute(_DUE, {"own_endpoint_id": endpoint_id, "most": limit})
    return [Due(*row) for row in rows]


_DUE = (
    select(
        _EVENTS.c.id,
        _EVENTS.c.type,
        _EVENTS.c.object_id,
        _EVENTS.c.created_at,
        _DELIVERIES.c.attempts,
    )
    .join(_DELIVERIES, _DELIVERIES.c.event_id == _EVENTS.c.id)
    .where(
        _DELIVERIES.c.endpoint_id == bindparam("own_endpoint_id"),
        # A literal, so that the planner may use the partial index.
        text("webhook_deliveries.state = 'pending'"),
        _DELIVERIES.c.due_at <= func.now(),
    )
    .order_by(_DELIVERIES.c.due_at, _DELIVERIES.c.event_id)
    .limit(bindparam("most"))
)


class Attempt(NamedTuple):
    """The end of an attempt. `pause`: seconds until the next one; None: there is none.

    `back_off`: seconds in which the endpoint gets nothing. `error`: None for a success.
    """

    status: int | None
    error: str | None
    response: bytes
    duration_ms: int
    pause: float | None = None
    back_off: float = 0.0


def record(
    session: Session, endpoint: WebhookEndpoint, event_id: UUID, attempt: Attempt, lease: float
) -> WebhookEndpoint | None:
    """Write the end of an attempt, and extend the lease. Returns the endpoint as it is now.

    None, and nothing is written: another worker has leased the endpoint.
    """
    failed = attempt.error is not None
    fresh: WebhookEndpoint | None = session.scalars(
        _ATTEMPTED[failed],
        {
            "own_id": endpoint.id,
            "own_fence": endpoint.fence,
            "status_code": attempt.status,
            "back_off": attempt.back_off,
            "lease": lease,
        },
    ).one_or_none()
    if fresh is None:
        return None
    state = DeliveryState.DELIVERED
    if failed:
        state = DeliveryState.FAILED if attempt.pause is None else DeliveryState.PENDING
    session.execute(
        _ENDED,
        {
            "own_endpoint_id": endpoint.id,
            "own_event_id": event_id,
            "state": state.value,
            "pause": attempt.pause or 0.0,
            "duration_ms": attempt.duration_ms,
            "status_code": attempt.status,
            "error": attempt.error,
            "response": attempt.response,
        },
    )
    return fresh


def _attempted(failed: bool) -> Any:
    columns = _ENDPOINTS.c
    values: dict[str, Any] = {"consecutive_failures": 0, "failing_since": None, "not_before": None}
    if failed:
        seconds = func.make_interval(0, 0, 0, 0, 0, 0, bindparam("back_off"))
        values = {
            "consecutive_failures": columns.consecutive_failures + 1,
            "failing_since": func.coalesce(columns.failing_since, func.now()),
            "not_before": func.now() + seconds,
        }
    return (
        select(WebhookEndpoint)
        .from_statement(
            update(_ENDPOINTS)
            .where(columns.id == bindparam("own_id"), columns.fence == bindparam("own_fence"))
            .values(
                last_delivery_at=func.now(),
                last_status_code=bindparam("status_code"),
                lease_until=_LEASE_END,
                **values,
            )
            .returning(*columns)
        )
        .execution_options(populate_existing=True)
    )


_ATTEMPTED = {failed: _attempted(failed) for failed in (False, True)}
_ENDED = (
    update(_DELIVERIES)
    .where(
        _DELIVERIES.c.endpoint_id == bindparam("own_endpoint_id"),
        _DELIVERIES.c.event_id == bindparam("own_event_id"),
    )
    .values(
        state=bindparam("state"),
        attempts=_DELIVERIES.c.attempts + 1,
        due_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, bindparam("pause")),
        attempted_at=func.now(),
        duration_ms=bindparam("duration_ms"),
        status_code=bindparam("status_code"),
        error=bindparam("error"),
        response=bindparam("response"),
    )
)


def release(session: Session, endpoint: WebhookEndpoint) -> None:
    """End a lease, unless another worker has the endpoint."""
    session.execute(
        update(_ENDPOINTS)
        .where(_ENDPOINTS.c.id == endpoint.id, _ENDPOINTS.c.fence == endpoint.fence)
        .values(lease_until=None)
    )


def disable(session: Session, endpoint_id: UUID, reason: str) -> bool:
    """Disable an endpoint. False: it was disabled or deleted already."""
    row = session.execute(
        update(_ENDPOINTS)
        .where(
            _ENDPOINTS.c.id == endpoint_id,
            _ENDPOINTS.c.status == WebhookStatus.ENABLED.value,
            _ENDPOINTS.c.deleted_at.is_(None),
        )
        .values(status=WebhookStatus.DISABLED.value, disabled_reason=reason)
        .returning(_ENDPOINTS.c.id)
    ).one_or_none()
    return row is not None


def enable(session: Session, endpoint_id: UUID) -> None:
    """Enable an endpoint, and forget its failures."""
    session.execute(
        update(_ENDPOINTS)
        .where(_ENDPOINTS.c.id == endpoint_id)
        .values(
            status=WebhookStatus.ENABLED.value,
            disabled_reason=None,
            consecutive_failures=0,
            failing_since=None,
            not_before=None,
        )
    )


def end_pending(session: Session, endpoint_id: UUID, error: str) -> int:
    """End some pending deliveries of an endpoint that gets none any more; their number."""
    some = (
        select(_DELIVERIES.c.event_id)
        .where(
            _DELIVERIES.c.endpoint_id == endpoint_id, text("webhook_deliveries.state = 'pending'")
        )
        .limit(ENDED_AT_ONCE)
    )
    rows: Sequence[Any] = session.execute(
        update(_DELIVERIES)
        .where(_DELIVERIES.c.endpoint_id == endpoint_id, _DELIVERIES.c.event_id.in_(some))
        .values(state=DeliveryState.FAILED.value, error=error)
        .returning(_DELIVERIES.c.event_id)
    ).all()
    return len(rows)


# The columns of a delivery that is sent again from its first attempt on.
ANEW = {"state": DeliveryState.PENDING.value, "attempts": 0, "due_at": func.now()}
