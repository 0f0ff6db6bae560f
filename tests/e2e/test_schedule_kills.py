"""Schedules fired by processes that are killed with -9 all the time: every instant has one run,
every run one batch.

PostgreSQL's clock runs fast, so that hours of instants pass in seconds. XALEN_TEST_KILLS asks for a
longer campaign.
"""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import pytest
from sqlalchemy import func, select

from tests import factories
from tests.integration import clock as clocks
from tests.integration.clock import Clock
from xalen_batch import db, ids
from xalen_batch.models import Batch, Schedule, ScheduleRun
from xalen_batch.schedules import fire

# Read at import, since the tests' environment has no variables of the developer.
KILLS = int(os.environ.get("XALEN_TEST_KILLS", "50"))
SCHEDULES = 10
TICKERS = 6
# The longer the campaign, the slower the clock: no run ends here, and with thousands of open runs
# firing would fall behind a fast clock.
PACE = 90_000 / max(KILLS, 150)
EVERY = timedelta(minutes=5)
START = datetime(2026, 10, 24, 20, 2, tzinfo=UTC)


@pytest.fixture
def clock(database: str) -> Iterator[Clock]:
    with clocks.installed() as clock:
        clock.set(START)
        yield clock


def pids(out: IO[bytes], number: int) -> list[int]:
    return [int(out.readline()) for _ in range(number)]


@pytest.mark.usefixtures("valkey")
def test_every_instant_has_one_run_and_every_run_one_batch(
    clock: Clock, configure: Callable[..., None], tmp_path: Path
) -> None:
    # No batch ends here, and no run may wait for one.
    configure(quota_open_batches="none")
    with db.transaction() as session:
        owner = factories.caller(session)
        file = ids.render(
            "file", factories.input_file(session, owner, [factories.chat_line("a")]).id
        )
        for _ in range(SCHEDULES):
            factories.schedule(
                session,
                owner,
                input_file_id=file,
                cron="*/5 * * * *",
                overlap="allow",
                misfire="all",
                misfire_limit=100,
                catch_up_window="2d",
            )
    clock.run_fast(START, PACE)
    kills = kill_at_random(tmp_path / "tickers.log")
    # The clock stands still, and due schedules fire without kills.
    end = clock.now()
    clock.run_fast(end, 0)
    fire.run()
    expected = instants(START, end)
    with db.transaction() as session:
        schedules = session.scalars(select(Schedule.id)).all()
        for id in schedules:
            fired = session.scalars(
                select(ScheduleRun.scheduled_for).where(ScheduleRun.schedule_id == id)
            ).all()
            assert sorted(fired) == expected
        runs = session.scalar(select(func.count()).select_from(ScheduleRun)) or 0
        with_a_batch = session.scalar(select(func.count(Batch.run_id.distinct()))) or 0
        batches = session.scalar(select(func.count()).select_from(Batch)) or 0
        states = set(session.scalars(select(ScheduleRun.state).distinct()))
    assert (len(schedules), states) == (SCHEDULES, {"running"})
    assert runs == with_a_batch == batches == SCHEDULES * len(expected)
    assert kills == KILLS
    # Shown by `pytest --log-cli-level=info`.
    logging.getLogger(__name__).info(
        "%d kills, %d firings, %s by the clock", kills, runs, end - START
    )


def kill_at_random(log: Path) -> int:
    """Kill tickers until there were enough kills; return their number."""
    dice = random.Random(7)
    with log.open("wb") as errors:
        parent = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.tickers", str(TICKERS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    assert parent.stdin is not None
    assert parent.stdout is not None
    try:
        tickers = pids(parent.stdout, TICKERS)
        for _ in range(KILLS):
            # At a random time, so at a random step of its work.
            time.sleep(dice.uniform(0.02, 0.2))
            os.kill(tickers.pop(dice.randrange(TICKERS)), signal.SIGKILL)
            tickers += pids(parent.stdout, 1)
    finally:
        parent.stdin.close()
        parent.wait(timeout=30)
    return KILLS


def instants(start: datetime, end: datetime) -> list[datetime]:
    """Every five minutes between two times: counted, not computed by any cron."""
    first = datetime.fromtimestamp(
        (start.timestamp() // EVERY.total_seconds() + 1) * EVERY.total_seconds(), UTC
    )
    return [first + EVERY * n for n in range(int((end - first) / EVERY) + 1)]
