"""The pace of batches in progress: measured in steps, and one event for a batch that is late."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text, update

from tests import factories, ran
from tests.conftest import as_owner
from tests.integration import plans
from tests.ran import answered
from xalen_batch import db
from xalen_batch.models import Batch, BatchPace
from xalen_batch.models.events import Event, EventType
from xalen_batch.pipeline import claim, pace, record
from xalen_batch.states import BatchStatus

pytestmark = pytest.mark.usefixtures("database", "valkey")

LINES = [factories.chat_line(f"n{n}") for n in range(100)]


def walk() -> int:
    """Walk once; the number of steps."""
    return len(list(pace.walk()))


def pass_time(seconds: float) -> None:
    """Let the measurements be older."""
    with db.transaction() as session:
        session.execute(
            update(BatchPace).values(measured_at=BatchPace.measured_at - timedelta(seconds=seconds))
        )


def a_batch(*, hours_left: float = 20.0, running: float = 3_600, **columns: Any) -> Batch:
    """A batch in progress with 100 lines, of which none has run."""
    now = datetime.now(UTC)
    times = {
        "created_at": now - timedelta(hours=24 - hours_left),
        "expires_at": now + timedelta(hours=hours_left),
    }
    batch = ran.submitted(LINES, **times, **columns)
    with db.transaction() as session:
        session.get_one(Batch, batch.id).in_progress_at = now - timedelta(seconds=running)
    return ran.again(batch.id)


def run_lines(batch: Batch, number: int) -> None:
    while number:
        held = claim.claim([], with_suspects=True)
        assert held is not None
        assert held.batch_id == batch.id
        rows = [
            record.row(
                record.LineRef(batch.id, line.line_no, held.model, line.custom_id),
                answered(),
                held.tariff,
            )
            for line in held.lines[:number]
        ]
        record.record(held.key, held.fence, rows)
        number -= len(rows)


def paces() -> dict[Any, BatchPace]:
    with db.reading() as session:
        return {found.batch_id: found for found in session.scalars(select(BatchPace))}


def at_risk() -> list[Any]:
    with db.reading() as session:
        found = select(Event.object_id).where(Event.type == EventType.BATCH_AT_RISK)
        return list(session.scalars(found))


def test_a_pace_is_the_lines_that_ended_between_two_measurements() -> None:
    batch = a_batch()
    walk()
    assert (paces()[batch.id].done, paces()[batch.id].lines_per_second) == (0, None)
    run_lines(batch, 30)
    # Too early: it is not measured again.
    walk()
    assert paces()[batch.id].done == 0
    pass_time(60)
    walk()
    found = paces()[batch.id]
    assert found.done == 30
    assert found.lines_per_second == pytest.approx(0.5, rel=0.05)
    assert found.seconds == pytest.approx(60, rel=0.05)
    assert at_risk() == []


def test_a_batch_that_will_be_late_has_one_event_while_lines_can_still_run() -> None:
    late, fine = a_batch(hours_left=0.02), a_batch()
    walk()
    pass_time(60)
    walk()
    # One measurement may be an accident.
    assert at_risk() == []
    for _ in range(3):
        pass_time(60)
        walk()
    assert at_risk() == [late.id]
    found = paces()
    assert found[late.id].at_risk_at is not None
    assert found[fine.id].at_risk_at is None
    assert ran.again(late.id).status == BatchStatus.IN_PROGRESS


def test_a_pace_that_recovers_gives_no_event() -> None:
    batch = a_batch(hours_left=0.02)
    walk()
    pass_time(60)
    walk()
    assert paces()[batch.id].is_late
    run_lines(batch, 99)
    pass_time(60)
    walk()
    assert not paces()[batch.id].is_late
    pass_time(60)
    walk()
    assert at_risk() == []


def test_a_closed_window_changes_no_pace() -> None:
    now = datetime.now(UTC)
    hours = {"start": "00:00", "end": "23:59", "days": ["mon"], "timezone": "UTC"}
    batch = a_batch(
        execution_window=hours,
        window_opens_at=now - timedelta(hours=1),
        window_closes_at=now + timedelta(hours=1),
    )
    walk()
    run_lines(batch, 60)
    pass_time(60)
    walk()
    before = paces()[batch.id].lines_per_second
    with db.transaction() as session:
        session.get_one(Batch, batch.id).window_opens_at = now + timedelta(minutes=30)
    pass_time(60)
    walk()
    assert paces()[batch.id].lines_per_second == before == pytest.approx(1, rel=0.05)


def test_ended_batches_are_forgotten_and_queued_calls_left_out() -> None:
    batch, call = a_batch(), a_batch(call="flex")
    walk()
    assert set(paces()) == {batch.id}
    ran.end(batch.id, {})
    walk()
    assert paces() == {}
    assert ran.again(call.id).status == BatchStatus.IN_PROGRESS


def test_a_walk_goes_in_steps_by_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "BATCHES_AT_ONCE", 2)
    made = {a_batch(hours_left=hours).id for hours in (20, 10, 10, 15, 5)}
    assert walk() == 3
    assert set(paces()) == made
    # Nothing is due.
    assert walk() == 0


def test_its_cost_does_not_grow_with_the_batches_that_have_ended() -> None:
    template = a_batch()
    with as_owner() as session:
        session.execute(
            text("""
                INSERT INTO batches (id, account_id, livemode, endpoint, completion_window, status,
                    input_file_id, price_snapshot, discount_rate, expires_at, completed_at, sealed_at)
                SELECT gen_random_uuid(), account_id, livemode, endpoint, completion_window,
                    'completed', input_file_id, price_snapshot, discount_rate, expires_at, now(), now()
                FROM batches CROSS JOIN generate_series(1, 20000) WHERE id = :id
            """),
            {"id": template.id},
        )
        session.execute(text("ANALYZE batches"))
    (plan,) = plans.of(lambda session: session.execute(pace.due(None)).all())
    assert plan["Actual Rows"] == 1
    assert "batches" not in plans.scanned(plan)
    # The table has more than 800 pages.
    assert plans.pages(plan) < 100
