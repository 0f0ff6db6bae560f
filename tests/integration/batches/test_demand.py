"""The view of the lines that are left: by model, mode, deadline and execution window."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from tests import factories, ran
from tests.conftest import as_owner
from tests.integration import plans
from xalen_batch import db
from xalen_batch.batches import demand
from xalen_batch.models import Batch
from xalen_batch.pipeline import claim, record
from xalen_batch.states import TaskState

pytestmark = pytest.mark.usefixtures("database", "valkey")

LINES = [factories.chat_line(f"n{n}") for n in range(10)]


def a_batch(*, hours_left: float, **columns: Any) -> Batch:
    return ran.submitted(
        LINES, expires_at=datetime.now(UTC) + timedelta(hours=hours_left), **columns
    )


def found() -> list[demand.Demand]:
    with db.reading() as session:
        return demand.of_all(session)


def test_lines_count_by_the_time_until_their_deadline() -> None:
    batches = [a_batch(hours_left=hours) for hours in (-1, 0.5, 0.6, 5, 23, 30)]
    rows = {row.due: row for row in found()}
    assert {due: (row.batches, row.lines) for due, row in rows.items()} == {
        "overdue": (1, 10),
        "1h": (2, 20),
        "6h": (1, 10),
        "24h": (1, 10),
        "later": (1, 10),
    }
    assert set(rows) == set(demand.DUE)
    assert {row.model for row in rows.values()} == {"mistral-small-3-1"}
    assert not any(row.livemode for row in rows.values())
    assert all(row.is_open for row in rows.values())
    assert rows["1h"].oldest == batches[1].created_at
    assert rows["1h"].input_tokens == 2 * batches[1].enqueued_tokens > 0


def test_lines_with_a_result_are_no_demand() -> None:
    batch = a_batch(hours_left=5)
    held = claim.claim([], with_suspects=True)
    assert held is not None
    rows = [ran.row(held, line, ran.answered()) for line in held.lines]
    record.record(held.key, held.fence, rows[:4])
    (row,) = found()
    assert row.lines == 6
    assert row.input_tokens == -(-batch.enqueued_tokens * 6 // 10)
    record.record(held.key, held.fence, rows[4:], to=TaskState.DONE)
    assert found() == []


def test_a_closed_window_is_told() -> None:
    now = datetime.now(UTC)
    hours = {"start": "00:00", "end": "23:59", "days": ["mon"], "timezone": "UTC"}
    a_batch(
        hours_left=5,
        execution_window=hours,
        window_opens_at=now + timedelta(hours=1),
        window_closes_at=now + timedelta(hours=2),
    )
    assert [(row.is_open, row.lines) for row in found()] == [(False, 10)]


def test_its_cost_does_not_grow_with_what_has_ended() -> None:
    template = a_batch(hours_left=5)
    with as_owner() as session:
        session.execute(
            text("""
                INSERT INTO batches (id, account_id, livemode, endpoint, completion_window, status,
                    input_file_id, price_snapshot, discount_rate, expires_at, completed_at)
                SELECT gen_random_uuid(), account_id, livemode, endpoint, completion_window,
                    'completed', input_file_id, price_snapshot, discount_rate, expires_at, now()
                FROM batches CROSS JOIN generate_series(1, 20000) WHERE id = :id
            """),
            {"id": template.id},
        )
        session.execute(
            text("""
                INSERT INTO tasks (batch_id, seq, model, state, lines, line_index)
                SELECT id, 0, 'mistral-small-3-1', 'done', 10, ''
                FROM batches WHERE status = 'completed'
            """)
        )
        session.execute(text("ANALYZE batches, tasks"))
    (plan,) = plans.of(demand.of_all)
    assert plan["Actual Rows"] == 1
    assert plans.scanned(plan) == set()
    assert plans.pages(plan) < 100
