"""Workers killed with -9 at random, frozen, or crashed by a poison line: each line ends once.

Workers that die at named points are the campaign's (tests/chaos/crash_points.py).
"""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import func, select

from tests import factories
from tests.e2e.processes import wait_until
from tests.outcome import assert_whole
from xalen_batch import db, ids, jsonl
from xalen_batch.broker import Job
from xalen_batch.models import Batch, Result, Task
from xalen_batch.models.tasks import SUSPECT_CRASHES
from xalen_batch.pipeline.poison import ALONE_CRASHES
from xalen_batch.states import TERMINAL, TaskState

pytestmark = pytest.mark.usefixtures("database", "valkey")

KILLS = 30
LEASE = 3.0
POLL = 0.1
# Seconds that a busy machine may add to any wait.
BUSY = 60.0


@dataclass(frozen=True)
class Workers:
    process: subprocess.Popen[bytes]
    calls: Path
    number: int

    def pid(self) -> int:
        """The process id of the worker that was started next."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def called(self, of: int | None = None) -> Counter[str]:
        """How often each request was sent, by all workers or by one."""
        lines = (
            [line.split() for line in self.calls.read_text("utf-8").splitlines()]
            if self.calls.exists()
            else []
        )
        return Counter(request for pid, request in lines if of is None or int(pid) == of)


@pytest.fixture
def start(
    tmp_path: Path, configure: Callable[..., None]
) -> Callable[..., "contextmanager[Workers]"]:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(
        "[models.mistral-small-3-1]\nlatency_ms = 100\n[models.mistral-small-3-1.backend]\nkind ="
        ' "simulated"\nmax_in_flight = 16\n'
    )
    configure(
        lease=LEASE,
        poll_interval=POLL,
        tick_interval=2,
        flush_interval=0.1,
        task_lines=40,
        catalog=catalog,
    )

    @contextmanager
    def run(number: int) -> Iterator[Workers]:
        calls = tmp_path / "calls"
        with (tmp_path / "workers.log").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.doomed", str(calls), str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert process.stdin is not None
        try:
            yield Workers(process, calls, number)
        finally:
            process.stdin.close()
            process.wait(timeout=60)

    return run


def submit(count: int, *, poison: int | None = None) -> UUID:
    lines = [
        factories.chat_line(f"line-{n}", "poison" if n == poison else f"Where is parcel {n}?")
        for n in range(count)
    ]
    with db.transaction() as session:
        caller = factories.caller(session)
        batch_id = factories.batch(session, caller, factories.input_file(session, caller, lines)).id
        db.enqueue(session, Job.VALIDATE, batch_id.hex)
    return batch_id


def status(batch_id: UUID) -> str:
    with db.transaction() as session:
        return session.scalars(select(Batch.status).where(Batch.id == batch_id)).one()


def recorded(batch_id: UUID) -> int:
    with db.transaction() as session:
        return (
            session.scalar(
                select(func.count()).select_from(Result).where(Result.batch_id == batch_id)
            )
            or 0
        )


def wait_for_end(batch_id: UUID, *, timeout: float = 240) -> None:
    wait_until(lambda: status(batch_id) in TERMINAL, timeout=timeout)


def test_a_worker_killed_thirty_times_in_one_batch(
    start: Callable[..., "contextmanager[Workers]"],
) -> None:
    dice, lines = random.Random(1), 2_000
    with start(2) as workers:
        pids = [workers.pid(), workers.pid()]
        batch_id = submit(lines)
        wait_until(lambda: recorded(batch_id) > 0, timeout=BUSY)
        for _ in range(KILLS):
            before = recorded(batch_id)
            os.kill(pids.pop(dice.randrange(2)), signal.SIGKILL)
            pids.append(workers.pid())
            time.sleep(dice.uniform(0, 0.3))
            # The batch is to last for all of them, and to move between some.
            if dice.random() < 0.3:
                wait_until(
                    lambda before=before: (
                        recorded(batch_id) > before or status(batch_id) in TERMINAL
                    ),
                    timeout=BUSY,
                )
        assert status(batch_id) == "in_progress", "the batch ended before all the kills"
        wait_for_end(batch_id)
        called = workers.called()
    batch = assert_whole(batch_id, lines)
    assert (batch.status, batch.completed, batch.failed) == ("completed", lines, 0)
    assert len(called) == lines
    logging.getLogger(__name__).info(
        "%d kills, %d lines, %d calls more than lines", KILLS, lines, called.total() - lines
    )


def test_a_line_that_kills_its_worker_fails_alone(
    start: Callable[..., "contextmanager[Workers]"],
) -> None:
    lines = 50
    with start(2) as workers:
        batch_id, other = submit(lines, poison=20), submit(lines)
        wait_for_end(other)
        wait_for_end(batch_id)
        called = workers.called()
    batch = assert_whole(batch_id, lines)
    assert (batch.status, batch.completed, batch.failed) == ("completed", lines - 1, 1)
    with db.transaction() as session:
        failed = session.execute(
            select(Result.custom_id, Result.error_code).where(
                Result.batch_id == batch_id, Result.amount.is_(None)
            )
        ).all()
    assert failed == [("line-20", "worker_lost")]
    assert assert_whole(other, lines).completed == lines
    (killer,) = [request for request, times in called.items() if times == max(called.values())]
    # Two shared crashes, two splits of 25 lines, and three crashes alone; once more for each lease
    # that ran out because the machine was busy.
    assert (
        SUSPECT_CRASHES + ALONE_CRASHES <= called[killer] <= SUSPECT_CRASHES + 2 + ALONE_CRASHES + 2
    )
    logging.getLogger(__name__).info(
        "%d workers lost, %d calls for %d lines", called[killer], called.total(), 2 * lines
    )


def test_a_frozen_worker_that_wakes_up_writes_nothing(
    start: Callable[..., "contextmanager[Workers]"],
) -> None:
    lines = 300
    with start(2) as workers:
        frozen = workers.pid()
        batch_id = submit(lines)
        wait_until(lambda: sum(workers.called(frozen).values()) > 20, timeout=BUSY)
        os.kill(frozen, signal.SIGSTOP)
        held = running_of(frozen)
        wait_for_end(batch_id)
        charged = recorded(batch_id)
        os.kill(frozen, signal.SIGCONT)
        log = workers.calls.with_name("workers.log")
        if held:
            wait_until(
                lambda: log.read_text("utf-8", "replace").count("task.stale") >= 1, timeout=BUSY
            )
        called = workers.called()
    batch = assert_whole(batch_id, lines)
    assert held, "it held nothing when it was frozen"
    assert (batch.status, batch.completed, charged) == ("completed", lines, lines)
    assert len(called) == lines
    # A busy machine may let the lease of the other worker end too.
    twice = {request for request, times in called.items() if times > 1}
    assert twice <= requests_claimed_again(batch_id)
    logging.getLogger(__name__).info("%d calls made twice of %d", called.total() - lines, lines)


def requests_claimed_again(batch_id: UUID) -> set[str]:
    """The requests of the tasks that were claimed more than once."""
    with db.transaction() as session:
        packed = session.scalars(
            select(Task.line_index).where(Task.batch_id == batch_id, Task.attempts > 1)
        ).all()
    spans = [span for index in packed for span in jsonl.unpack(index)]
    return {ids.request_id(batch_id, span.line_no) for span in spans}


def running_of(pid: int) -> list[tuple[UUID, int]]:
    with db.transaction() as session:
        rows = session.execute(
            select(Task.batch_id, Task.seq).where(
                Task.state == TaskState.RUNNING, Task.worker.endswith(f":{pid}")
            )
        )
        return [(row.batch_id, row.seq) for row in rows]
