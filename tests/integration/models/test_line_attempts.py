"""Failed attempts at lines: what is kept of them, and for how long."""

from uuid import UUID

import pytest
from sqlalchemy import func, select

from tests import factories, ran
from xalen_batch import db, files, ids
from xalen_batch.accounts.accounts import Caller
from xalen_batch.models import LineAttempts, LostLease, line_attempts
from xalen_batch.models.line_attempts import MOST_LINES, MOST_LOST, MOST_OF_LINE, Attempt
from xalen_batch.pipeline import claim, record

pytestmark = pytest.mark.usefixtures("database", "valkey")

BATCH = ids.new()


def busy(at: float) -> Attempt:
    return Attempt(at, 0.25, "busy", 503, 1)


def add(*attempts: tuple[int, Attempt], batch_id: UUID = BATCH) -> None:
    with db.transaction() as session:
        line_attempts.add(session, batch_id, attempts)


def of_line(line_no: int, batch_id: UUID = BATCH) -> tuple[int, list[Attempt]]:
    with db.reading() as session:
        return line_attempts.of_line(session, batch_id, line_no)


def rows(table: type[LineAttempts] | type[LostLease]) -> int:
    with db.reading() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_a_line_keeps_its_last_attempts_and_the_number_of_all() -> None:
    add((7, busy(1.0)), (8, busy(1.5)), (7, busy(2.0)))
    add(*((7, busy(float(at))) for at in range(3, 26)))
    failed, found = of_line(7)
    assert failed == 25
    assert found == [busy(float(at)) for at in range(16, 26)]
    assert len(found) == MOST_OF_LINE
    assert of_line(8) == (1, [busy(1.5)])
    assert of_line(9) == (0, [])


def test_a_repeated_transaction_adds_nothing_twice() -> None:
    for _ in range(2):
        add((1, busy(1.0)), (1, busy(2.0)))
    assert of_line(1) == (2, [busy(1.0), busy(2.0)])


def test_a_batch_keeps_attempts_of_a_bounded_number_of_lines() -> None:
    add(*((line_no, busy(1.0)) for line_no in range(1, MOST_LINES + 1)))
    add((1, busy(2.0)), (MOST_LINES + 1, busy(2.0)))
    assert of_line(1)[0] == 2
    assert of_line(MOST_LINES + 1) == (0, [])
    add((1, busy(3.0)), batch_id=(other := ids.new()))
    assert of_line(1, other)[0] == 1


def test_lost_leases_are_among_the_attempts_of_lines_without_a_result(database: str) -> None:
    batch = ran.submitted([factories.chat_line(name) for name in "ab"])
    add((1, busy(1.0)), batch_id=batch.id)
    for fence in range(MOST_LOST + 5):
        with db.transaction() as session:
            line_attempts.add_lost(session, batch.id, (0, fence), [1, 2])
    failed, found = of_line(2, batch.id)
    assert failed == len(found) == MOST_OF_LINE
    assert {(one.error, one.seconds, one.server) for one in found} == {("worker_lost", None, None)}
    assert rows(LostLease) == MOST_LOST


def test_a_line_with_a_result_was_not_lost() -> None:
    batch = ran.ended({"a": ran.answered(), "b": ran.answered()})
    with db.transaction() as session:
        line_attempts.add_lost(session, batch.id, (0, 5), [1, 2])
    assert rows(LostLease) == 0


@pytest.fixture
def caller() -> Caller:
    with db.transaction() as session:
        return factories.caller(session)


@pytest.mark.parametrize("is_sealed", [False, True])
def test_they_are_erased_with_the_answers(caller: Caller, is_sealed: bool) -> None:
    batch = ran.ended({"a": ran.answered(), "b": ran.BUSY}, caller)
    add((2, busy(1.0)), batch_id=batch.id)
    if is_sealed:
        batch = ran.sealed(batch)
    with db.transaction() as session:
        files.delete(session, caller, ids.render("file", batch.output_file_id or ids.new()))
    assert (of_line(2, batch.id), rows(LineAttempts)) == ((0, []), 0)


def test_a_worker_that_has_lost_its_lease_writes_none() -> None:
    batch = ran.submitted([factories.chat_line("a")])
    held = claim.claim([], with_suspects=True)
    assert held is not None
    assert record.record(held.key, held.fence - 1, [], attempts=[(1, busy(1.0))]).is_stale
    assert of_line(1, batch.id) == (0, [])
    # Without any outcome, as of a line that waits for its retry.
    assert not record.record(held.key, held.fence, [], attempts=[(1, busy(1.0))]).is_stale
    assert of_line(1, batch.id) == (1, [busy(1.0)])
