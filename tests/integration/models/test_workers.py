"""Which workers are alive."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from tests.waiting import PATIENCE
from xalen_batch import db
from xalen_batch.models import Worker, workers

pytestmark = pytest.mark.usefixtures("database")


def seen(worker_id: str) -> int:
    with db.transaction() as session:
        return workers.seen(session, worker_id)


def set_back(worker_id: str, by: timedelta) -> None:
    """Make the worker's last heartbeat older."""
    with db.transaction() as session:
        session.execute(
            update(Worker).where(Worker.id == worker_id).values(seen_at=func.clock_timestamp() - by)
        )


def rows() -> set[str]:
    with db.transaction() as session:
        return set(session.scalars(select(Worker.id)))


def test_a_worker_counts_itself_and_the_others_once_each() -> None:
    assert [seen(worker_id) for worker_id in ("a", "b", "a", "c", "b")] == [1, 2, 2, 3, 3]


def test_a_worker_that_says_nothing_for_five_seconds_does_not_count_until_it_is_seen_again() -> (
    None
):
    seen("a")
    set_back("a", workers.LIVE_FOR)
    assert seen("b") == 1
    assert seen("a") == 2


def test_a_worker_that_stopped_does_not_count() -> None:
    seen("a")
    with db.transaction() as session:
        workers.gone(session, "a")
    assert seen("b") == 1
    assert rows() == {"b"}


def test_rows_of_killed_workers_go_when_another_starts() -> None:
    for worker_id in ("killed", "slow", "alive"):
        seen(worker_id)
    set_back("killed", workers.KEPT_FOR + timedelta(seconds=1))
    set_back("slow", workers.KEPT_FOR - timedelta(seconds=20))
    seen("alive")
    assert rows() == {"killed", "slow", "alive"}
    seen("new")
    assert rows() == {"slow", "alive", "new"}


def test_a_row_that_another_session_holds_is_left_and_waited_for_by_nobody() -> None:
    seen("held")
    set_back("held", timedelta(hours=1))
    with Session(db.engine()) as holder, db.transaction() as session:
        holder.execute(select(Worker).where(Worker.id == "held").with_for_update())
        session.execute(text("SET LOCAL lock_timeout = '1s'"))
        assert workers.seen(session, "new") == 1


def test_workers_that_start_and_renew_at_once_do_not_wait_for_each_other() -> None:
    together = threading.Barrier(8)

    def live(number: int) -> int:
        together.wait(timeout=PATIENCE)
        for _ in range(20):
            count = seen(f"worker-{number}")
            set_back(f"dead-{number}", timedelta(hours=1))
        return count

    for number in range(8):
        seen(f"dead-{number}")
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(live, range(8)))
    assert max(counts) == 8
