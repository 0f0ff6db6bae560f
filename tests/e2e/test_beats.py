"""Three beats at once, killed with -9 and started again, over two workers that do not poll: each
instant fires once.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

from tests import factories
from tests.e2e import processes
from tests.e2e.processes import Process
from tests.integration import clock as clocks
from tests.integration.clock import Clock
from xalen_batch import db, ids
from xalen_batch.config import settings as configured
from xalen_batch.models import Batch, ScheduleRun

SCHEDULES, BEATS, WORKERS, INSTANTS = 3, 3, 2, 6
EVERY = timedelta(minutes=5)
START = datetime(2026, 10, 24, 20, 2, tzinfo=UTC)


@pytest.fixture
def clock(database: str) -> Iterator[Clock]:
    with clocks.installed() as clock:
        clock.set(START)
        yield clock


def runs() -> int:
    with db.transaction() as session:
        return session.scalar(select(func.count()).select_from(ScheduleRun)) or 0


@pytest.mark.usefixtures("valkey")
def test_each_instant_fires_once_with_three_beats_that_are_killed(
    clock: Clock, tmp_path: Path
) -> None:
    with db.transaction() as session:
        owner = factories.caller(session)
        file = ids.render(
            "file", factories.input_file(session, owner, [factories.chat_line("a")]).id
        )
        for _ in range(SCHEDULES):
            factories.schedule(
                session, owner, input_file_id=file, cron="*/5 * * * *", overlap="allow"
            )
    with ExitStack() as stack:

        def start(part: str, **settings: object) -> Process:
            env = processes.environment(**inherited(), **settings)
            return stack.enter_context(
                processes.command(part, log=tmp_path / f"{part}.log", env=env)
            )

        for _ in range(WORKERS):
            # No polls: only a tick finds due schedules.
            start("worker", poll_interval=3_600)
        beats = [start("beat", tick_interval=0.5) for _ in range(BEATS)]
        for number in range(1, INSTANTS + 1):
            clock.advance(EVERY)
            # In the middle of whatever it does.
            beats[0].kill()
            beats = [*beats[1:], start("beat", tick_interval=0.5)]
            processes.wait_until(
                lambda number=number: runs() >= number * SCHEDULES, log=tmp_path / "beat.log"
            )
    with db.transaction() as session:
        fired = session.execute(select(ScheduleRun.schedule_id, ScheduleRun.scheduled_for)).all()
        batches = session.scalar(select(func.count()).select_from(Batch))
        of_runs = session.scalar(select(func.count(Batch.run_id.distinct())))
    assert len(fired) == len(set(fired)) == batches == of_runs == SCHEDULES * INSTANTS


def inherited() -> dict[str, object]:
    """Where the test's own stores are."""
    found = configured()
    assert found.database_url is not None
    assert found.redis_url is not None
    return {
        "database_url": found.database_url.get_secret_value(),
        "redis_url": found.redis_url.get_secret_value(),
        "data_dir": found.data_dir,
        "storage_url": found.storage,
    }
