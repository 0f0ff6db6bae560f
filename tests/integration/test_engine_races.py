"""What goes wrong between two steps of the engine: an outage of a store, a crash, two at once."""

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
import sqlalchemy.exc
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests.integration import test_engine
from tests.integration.test_engine import a_batch, chat_lines, run_to_end
from xalen_batch.pipeline import record
from xalen_batch.pipeline.engine import Engine

pytestmark = pytest.mark.usefixtures("database", "valkey")
engine = test_engine.engine


class SlowRows(list[record.Row]):
    """Rows that take longer to copy than a statement may take."""

    def __iter__(self) -> Iterator[record.Row]:
        for row in super().__iter__():
            threading.Event().wait(0.3)
            yield row


def too_slow(session: Session, rows: Sequence[record.Row]) -> None:
    session.execute(text("SET LOCAL statement_timeout = 1"))
    copy(session, SlowRows(rows))


def no_connection(session: Session, rows: Sequence[record.Row]) -> None:
    raise sqlalchemy.exc.TimeoutError("QueuePool limit reached")


copy = record.insert


@pytest.mark.parametrize("fails", [too_slow, no_connection])
def test_answers_are_held_while_the_database_cannot_take_them(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, fails: Callable[[Session, Sequence[record.Row]], None]
) -> None:
    calls = 0

    def insert(session: Session, rows: Sequence[record.Row]) -> None:
        nonlocal calls
        calls += 1
        (fails if calls == 1 else copy)(session, rows)

    monkeypatch.setattr(record, "insert", insert)
    batch = run_to_end(engine, a_batch(chat_lines(3)), timeout=10)
    assert (calls, batch.completed) == (2, 3)
