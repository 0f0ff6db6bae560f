"""Tasks: those of sealed batches are forgotten, in steps that skip the others."""

from uuid import UUID

import pytest
from sqlalchemy import func, select, text

from tests.billing import Ran, ended
from tests.conftest import as_owner
from xalen_batch import db
from xalen_batch.batches import batches
from xalen_batch.billing import invoices, reconcile
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Batch, Task, tasks
from xalen_batch.pipeline import seal

pytestmark = pytest.mark.usefixtures("database", "valkey")

LINES = [Ran(Usage(7, 9))] * 3


def forget(older_than: float = -60) -> int:
    """Forget all tasks that can be; returns the number of steps."""
    after, steps = None, 0
    while True:
        with db.transaction() as session:
            after = tasks.forget(session, older_than, after)
        if after is None:
            return steps
        steps += 1


def left(batch_id: UUID) -> int:
    with db.reading() as session:
        return (
            session.scalar(select(func.count()).select_from(Task).where(Task.batch_id == batch_id))
            or 0
        )


def shown(batch_id: UUID) -> tuple[object, ...]:
    with db.reading() as session:
        batch = session.get_one(Batch, batch_id)
        progress = batches.progress(session, [batch])[batch.id]
        return progress, invoices.of_batch(session, batch).total


def test_only_a_sealed_batch_loses_its_tasks() -> None:
    batch = ended(LINES)
    assert left(batch.id) == 1
    forget()
    assert left(batch.id) == 1
    seal.run()
    before = shown(batch.id)
    forget()
    assert left(batch.id) == 0
    assert shown(batch.id) == before
    assert list(reconcile.differences()) == []


def test_tasks_are_kept_until_they_are_old() -> None:
    batch = ended(LINES)
    seal.run()
    assert forget(older_than=3_600) == 0
    assert left(batch.id) == 1


def test_a_task_that_must_stay_does_not_stop_those_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "FORGOTTEN_AT_ONCE", 1)
    kept, second, third = (ended(LINES) for _ in range(3))
    seal.run()
    with as_owner() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text("UPDATE batches SET sealed_at = NULL WHERE id = :id"), {"id": kept.id})
    assert forget() == 3
    assert [left(batch.id) for batch in (kept, second, third)] == [1, 0, 0]
