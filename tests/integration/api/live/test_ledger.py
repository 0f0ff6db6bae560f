"""Recording live calls: one ledger a day, each call once, also if a commit's answer is lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal

import pytest
import sqlalchemy.exc
from sqlalchemy import select, text
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from tests import factories
from tests.waiting import wait_until
from xalen_batch import db
from xalen_batch.accounts import accounts
from xalen_batch.api.live import ledger as ledger_module
from xalen_batch.api.live.ledger import Call, Ledger, Recorder, ledger_of
from xalen_batch.endpoints.names import CHAT
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import Unavailable
from xalen_batch.models import Batch, Result, Task

pytestmark = pytest.mark.usefixtures("database", "valkey")
PRICE = {"input": "0.02", "output": "0.04"}


@pytest.fixture
def ledger() -> Ledger:
    with db.transaction() as session:
        caller = accounts.authenticate(session, factories.key(session))
    return ledger_of(caller, factories.CHAT_MODEL, CHAT, PRICE, "simulated")


def results() -> list[Result]:
    with db.reading() as session:
        return list(session.scalars(select(Result).order_by(Result.batch_id, Result.line_no)))


def test_calls_are_numbered_lines_of_one_task(ledger: Ledger) -> None:
    recorders = [Recorder(), Recorder()]
    for number in range(6):
        recorders[number % 2].add(Call(ledger, str(number), 200, Usage(10, 5, 4, 1)))
    wait_until(lambda: len(results()) == 6)
    assert [row.line_no for row in results()] == [1, 2, 3, 4, 5, 6]
    assert {row.custom_id for row in results()} == set("012345")
    with db.reading() as session:
        (task,) = session.scalars(select(Task)).all()
    assert (task.lines, task.completed, task.failed, task.summed) == (6, 6, 0, 6)
    assert (task.input_tokens, task.cached_tokens, task.output_tokens) == (60, 24, 30)
    assert (task.output_bytes, task.error_bytes) == (0, 0)
    assert task.charged == sum((row.amount or Decimal(0) for row in results()), Decimal(0))


def test_each_price_has_a_ledger_of_its_own(ledger: Ledger) -> None:
    recorder = Recorder()
    dearer = ledger_of(ledger.owner, ledger.model, CHAT, {**PRICE, "output": "9"}, "simulated")
    for number, each in enumerate((ledger, dearer, ledger)):
        recorder.add(Call(each, str(number), 200, Usage(0, 1_000_000)))
    wait_until(lambda: len(results()) == 3)
    assert sorted(row.amount for row in results() if row.amount is not None) == [
        Decimal("0.04"),
        Decimal("0.04"),
        Decimal("9"),
    ]
    with db.reading() as session:
        assert len(session.scalars(select(Batch)).all()) == 2


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_lost_answer_of_the_commit_bills_nothing_twice(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, is_committed: bool
) -> None:
    real, failures = db.transaction, 1

    @contextmanager
    def losing() -> Iterator[Session]:
        nonlocal failures
        lost = sqlalchemy.exc.OperationalError("COMMIT", None, Exception("the connection is lost"))
        with real() as session:
            yield session
            if failures and not is_committed:
                failures -= 1
                raise lost
        if failures:
            failures -= 1
            raise lost

    monkeypatch.setattr(ledger_module.db, "transaction", losing)
    monkeypatch.setattr(ledger_module, "RETRY", 0.01)
    recorder = Recorder()
    recorder.add(Call(ledger, "a", 200, Usage(1, 1)))
    wait_until(lambda: failures == 0)
    recorder.add(Call(ledger, "b", 200, Usage(1, 1)))
    wait_until(lambda: "b" in {row.custom_id for row in results()})
    assert [row.custom_id for row in results()] == ["a", "b"]


def test_a_commit_that_is_still_under_way_bills_nothing_twice(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    recorder.add(Call(ledger, "a", 200, Usage(1, 1)))
    recorder.settle()
    real, under_way = db.transaction, list[Session]()

    @contextmanager
    def cut_off() -> Iterator[Session]:
        # The connection is lost with the COMMIT on its way, and PostgreSQL ends it later.
        if under_way:
            with real() as session:
                yield session
            return
        session = Session(db.engine(), expire_on_commit=False)
        under_way.append(session)
        yield session
        raise sqlalchemy.exc.OperationalError("COMMIT", None, Exception("the connection is lost"))

    monkeypatch.setattr(ledger_module.db, "transaction", cut_off)
    monkeypatch.setattr(ledger_module, "RETRY", 0.01)
    recorder.add(Call(ledger, "b", 200, Usage(1, 1)))
    wait_until(_waits_for_a_lock)
    under_way[0].commit()
    under_way[0].close()
    recorder.settle()
    assert [row.custom_id for row in results()] == ["a", "b"]


def test_a_new_ledger_whose_commit_is_in_doubt_is_waited_for_also_over_midnight(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, under_way = db.transaction, list[Session]()

    @contextmanager
    def cut_off() -> Iterator[Session]:
        if under_way:
            # On the next day a ledger of that day would be opened.
            monkeypatch.setattr(ledger_module.ledgers, "open_today", no_other)
            with real() as session:
                yield session
            return
        session = Session(db.engine(), expire_on_commit=False)
        under_way.append(session)
        yield session
        raise sqlalchemy.exc.OperationalError("COMMIT", None, Exception("the connection is lost"))

    def no_other(*_: object) -> None:
        raise AssertionError("another ledger was opened")

    monkeypatch.setattr(ledger_module.db, "transaction", cut_off)
    monkeypatch.setattr(ledger_module, "RETRY", 0.01)
    recorder = Recorder()
    recorder.add(Call(ledger, "a", 200, Usage(1, 1)))
    wait_until(_waits_for_a_lock)
    under_way[0].commit()
    under_way[0].close()
    recorder.settle()
    with capture_logs() as logs:
        recorder.add(Call(ledger, "b", 200, Usage(1, 1)))
        recorder.settle()
    assert logs == []
    assert [row.custom_id for row in results()] == ["a", "b"]


def _waits_for_a_lock() -> bool:
    with db.reading() as session:
        found = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return bool(session.scalar(found))


def test_what_waits_is_recorded_before_the_process_ends(ledger: Ledger) -> None:
    recorder = Recorder()
    for number in range(50):
        recorder.add(Call(ledger, str(number), 200, Usage(1, 1)))
    recorder.close(patience=60)
    assert len(results()) == 50


def test_no_call_is_taken_that_could_not_be_recorded(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "MOST_WAITING", 0)
    recorder = Recorder()
    with pytest.raises(Unavailable):
        recorder.refuse_if_full()


def test_calls_wait_for_the_next_write_but_not_when_the_server_stops(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "INTERVAL", 60)
    recorder = Recorder()
    recorder.add(Call(ledger, "0", 200, Usage(1, 1)))
    wait_until(lambda: len(results()) == 1)
    for number in range(1, 4):
        recorder.add(Call(ledger, str(number), 200, Usage(1, 1)))
    assert len(results()) == 1
    recorder.close(30)
    assert [row.custom_id for row in results()] == ["0", "1", "2", "3"]
