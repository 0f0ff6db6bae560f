"""Schedules on a clock that a test sets, with their runs and batches."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from tests import factories
from tests.integration import clock as clocks
from tests.integration.clock import Clock
from xalen_batch import db, ids
from xalen_batch.accounts.accounts import Owner
from xalen_batch.models import Batch, Schedule, ScheduleRun
from xalen_batch.states import BatchStatus

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
NIGHT = datetime(2026, 11, 25, 1, 30, tzinfo=UTC)  # 02:30 in Berlin
DAY = timedelta(days=1)


@pytest.fixture
def clock(database: str) -> Iterator[Clock]:
    with clocks.installed() as clock:
        clock.set(NOON)
        yield clock


@pytest.fixture
def owner(database: str) -> Owner:
    with db.transaction() as session:
        return factories.caller(session)


def made(owner: Owner, **fields: Any) -> UUID:
    """A schedule over a file with one line, unless the fields name another input."""
    with db.transaction() as session:
        if not {"template_file_id", "source", "inbox"} & set(fields):
            file = factories.input_file(session, owner, [factories.chat_line("a")])  # type: ignore[arg-type]
            fields.setdefault("input_file_id", ids.render("file", file.id))
        return factories.schedule(session, owner, **fields).id


def get(schedule_id: UUID) -> Schedule:
    with db.transaction() as session:
        return session.get_one(Schedule, schedule_id)


def runs_of(schedule_id: UUID) -> list[ScheduleRun]:
    with db.transaction() as session:
        rows = (
            select(ScheduleRun)
            .where(ScheduleRun.schedule_id == schedule_id)
            .order_by(ScheduleRun.scheduled_for)
        )
        return list(session.scalars(rows))


def states(schedule_id: UUID) -> list[str]:
    return [run.state for run in runs_of(schedule_id)]


def batches_of(schedule_id: UUID) -> list[Batch]:
    with db.transaction() as session:
        return list(
            session.scalars(
                select(Batch).where(Batch.schedule_id == schedule_id).order_by(Batch.id)
            )
        )


def end_batch(
    schedule_id: UUID, to: BatchStatus = BatchStatus.COMPLETED, *, succeeded: int = 1
) -> None:
    """Bring the newest batch to its end, as the engine would."""
    ways = {BatchStatus.FAILED: [], BatchStatus.CANCELLED: [BatchStatus.CANCELLING]}
    with db.transaction() as session:
        batch = session.scalars(
            select(Batch).where(Batch.schedule_id == schedule_id).order_by(Batch.id.desc()).limit(1)
        ).one()
        batch.total, batch.completed, batch.failed = 1, succeeded, 1 - succeeded
        for status in [*ways.get(to, [BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING]), to]:
            assert batch.move(session, status)


def change(schedule_id: UUID, act: Callable[[Any, Schedule], Any]) -> Any:
    with db.transaction() as session:
        return act(session, session.get_one(Schedule, schedule_id, with_for_update=True))
