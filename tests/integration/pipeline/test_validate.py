"""Validation on a real database: a batch gets all its tasks, or fails with all its errors."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update

from tests import factories
from tests.factories import CHAT_MODEL, RERANK_MODEL, chat_line
from xalen_batch import broker, db, jsonl, storage
from xalen_batch.batches import batches
from xalen_batch.broker import Job, Message
from xalen_batch.models import Account, Batch, Task
from xalen_batch.pipeline import validate
from xalen_batch.states import BatchStatus
from xalen_batch.validation import read

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(autouse=True)
def hints(monkeypatch):
    """The messages that left after a commit."""
    sent = []
    monkeypatch.setattr(broker, "publish", sent.extend)
    return sent


def submit(lines, **columns) -> Batch:
    with db.transaction() as session:
        caller = factories.caller(session)
        return factories.batch(
            session, caller, factories.input_file(session, caller, lines), **columns
        )


def reread(batch: Batch) -> Batch:
    with db.transaction() as session:
        return session.get_one(Batch, batch.id)


def tasks(batch: Batch) -> list[Task]:
    with db.transaction() as session:
        return list(
            session.scalars(select(Task).where(Task.batch_id == batch.id).order_by(Task.seq))
        )


def test_a_good_file_becomes_tasks_that_cover_each_line_once(hints):
    batch = submit([chat_line(str(number)) for number in range(95)])
    validate.run(batch.id)
    found = reread(batch)
    assert (found.status, found.total, found.model, found.errors) == (
        BatchStatus.IN_PROGRESS,
        95,
        CHAT_MODEL,
        None,
    )
    assert found.in_progress_at is not None
    assert found.lease_until is None
    spans = [span for task in tasks(batch) for span in jsonl.unpack(task.line_index)]
    raws = storage.ranges(
        storage.key(batch.input_file_id),
        [span.offset for span in spans],
        [span.length for span in spans],
    )
    assert [jsonl.input_line(raw).custom_id for raw in raws] == [
        str(number) for number in range(95)
    ]
    assert [task.lines for task in tasks(batch)] == [25, 25, 25, 20]
    assert hints == [Message(Job.EXECUTE)]


def test_where_lines_are_is_stored_as_it_is():
    """A task's `line_index` is not compressed, since that takes longer than writing it."""
    batch = submit([chat_line(str(number)) for number in range(8_000)])
    validate.run(batch.id)
    with db.transaction() as session:
        stored = session.scalars(
            select(func.pg_column_size(Task.line_index)).where(Task.batch_id == batch.id)
        ).all()
    assert stored == [16_000] * 8


def test_a_large_batch_wakes_several_workers(hints):
    batch = submit([chat_line(str(number)) for number in range(450)])
    validate.run(batch.id)
    assert hints == [Message(Job.EXECUTE), Message(Job.EXECUTE, "1"), Message(Job.EXECUTE, "2")]


def test_lines_of_two_models_get_tasks_of_their_own_and_the_batch_names_no_model():
    batch = submit(
        [
            chat_line(str(number), model=RERANK_MODEL if number % 2 else CHAT_MODEL)
            for number in range(6)
        ]
    )
    validate.run(batch.id)
    assert reread(batch).model is None
    assert [(task.model, task.lines) for task in tasks(batch)] == [
        (CHAT_MODEL, 3),
        (RERANK_MODEL, 3),
    ]


def test_a_bad_file_fails_whole_with_every_line_named(hints):
    batch = submit(
        [
            chat_line("a"),
            chat_line("a"),
            {**chat_line("b"), "url": "/v1/rerank"},
            chat_line("c\x00"),
        ]
    )
    validate.run(batch.id)
    found = reread(batch)
    assert (found.status, found.total) == (BatchStatus.FAILED, 0)
    assert found.failed_at is not None
    assert [(error["line"], error["code"]) for error in found.errors] == [
        (2, "duplicate_custom_id"),
        (3, "url_mismatch"),
        (4, "invalid_custom_id"),
    ]
    assert all(set(error) == {"code", "line", "message", "param"} for error in found.errors)
    assert not tasks(batch)
    assert not hints


def test_a_batch_of_which_other_lines_could_run_says_how():
    batch = submit([chat_line("a"), chat_line("a")])
    validate.run(batch.id)
    assert reread(batch).errors[0]["message"].endswith(validate.OTHER_LINES)
    nothing = submit(b"x\n")
    validate.run(nothing.id)
    assert validate.OTHER_LINES not in reread(nothing).errors[0]["message"]


def test_errors_beyond_the_limit_are_told_by_their_number(configure):
    configure(max_reported_errors=3)
    batch = submit(b"x\n" * 10)
    validate.run(batch.id)
    errors = reread(batch).errors
    assert [error["code"] for error in errors] == ["invalid_json_line"] * 3 + ["too_many_errors"]
    assert errors[-1]["message"].startswith("7 more errors")


def test_a_file_that_is_gone_fails_the_batch():
    batch = submit([chat_line("a")])
    storage.delete(storage.key(batch.input_file_id))
    validate.run(batch.id)
    found = reread(batch)
    assert found.status == BatchStatus.FAILED
    assert [(error["code"], error["line"], error["param"]) for error in found.errors] == [
        ("file_not_found", None, "input_file_id")
    ]


def test_a_model_without_a_price_in_the_snapshot_fails_the_batch():
    batch = submit(
        [chat_line("a"), chat_line("b", model=RERANK_MODEL)],
        price_snapshot={RERANK_MODEL: {"input": "0.003"}},
    )
    validate.run(batch.id)
    (error,) = reread(batch).errors
    assert (error["code"], error["param"]) == ("model_not_priced", "body.model")
    assert CHAT_MODEL in error["message"]


def test_a_message_delivered_twice_does_nothing_the_second_time(hints):
    batch = submit([chat_line("a")])
    validate.run(batch.id)
    before = reread(batch).in_progress_at
    hints.clear()
    validate.run(batch.id)
    assert reread(batch).in_progress_at == before
    assert len(tasks(batch)) == 1
    assert not hints


def test_a_batch_that_someone_else_validates_is_left_alone_until_their_lease_ends():
    batch = submit([chat_line("a")], fence=4, lease_until=datetime.now(UTC) + timedelta(minutes=1))
    validate.run(batch.id)
    assert (reread(batch).status, reread(batch).fence) == (BatchStatus.VALIDATING, 4)
    with db.transaction() as session:
        session.execute(update(Batch).values(lease_until=func.now() - timedelta(seconds=1)))
    validate.run(batch.id)
    assert (reread(batch).status, reread(batch).fence) == (BatchStatus.IN_PROGRESS, 5)


def while_reading(monkeypatch, act) -> None:
    """Do something to the batch after its file has begun to be read."""
    chunks = storage.chunks

    def interrupted(key):
        yield from chunks(key)
        act()

    monkeypatch.setattr(storage, "chunks", interrupted)


def test_a_batch_cancelled_while_its_file_is_read_gets_no_tasks(monkeypatch):
    batch = submit([chat_line("a")])

    def cancelled():
        with db.transaction() as session:
            batches.cancel(session, session.get_one(Batch, batch.id))

    while_reading(monkeypatch, cancelled)
    validate.run(batch.id)
    assert reread(batch).status == BatchStatus.CANCELLING
    assert not tasks(batch)


def test_a_validation_whose_fence_is_stale_writes_nothing(monkeypatch):
    batch = submit([chat_line("a")])

    def taken_over():
        with db.transaction() as session:
            session.execute(update(Batch).values(fence=Batch.fence + 1))

    while_reading(monkeypatch, taken_over)
    validate.run(batch.id)
    assert reread(batch).status == BatchStatus.VALIDATING
    assert not tasks(batch)


def test_a_long_reading_extends_its_lease_and_stops_when_it_is_lost(monkeypatch):
    batch = submit([chat_line(str(number)) for number in range(3)])
    monkeypatch.setattr(validate, "EXTEND_EVERY", 0.0)
    monkeypatch.setattr(read, "LINES_PER_LOOK", 1)
    ends = []
    extend = validate._Lease.extend

    def watched(lease):
        extend(lease)
        ends.append(reread(batch).lease_until)
        with db.transaction() as session:
            session.execute(update(Batch).values(fence=Batch.fence + int(len(ends) == 2)))

    monkeypatch.setattr(validate._Lease, "extend", watched)
    validate.run(batch.id)
    assert len(ends) == 2
    assert ends[0] < ends[1]
    assert not tasks(batch)


def test_an_account_that_was_away_starts_level_with_those_at_work():
    busy, idle = submit([chat_line("a")]), submit([chat_line("b")])
    validate.run(busy.id)
    with db.transaction() as session:
        session.execute(
            update(Account).where(Account.id == busy.account_id).values(virtual_time=700.0)
        )
    validate.run(idle.id)
    with db.transaction() as session:
        assert session.get_one(Account, idle.account_id).virtual_time == 700.0


def test_an_unknown_batch_is_nothing_to_do():
    validate.run(factories.ids.new())


def lease_of(batch: Batch) -> timedelta:
    with db.transaction() as session:
        left = session.scalar(select(Batch.lease_until - func.now()).where(Batch.id == batch.id))
        assert left is not None
        return left


class Killed(BaseException):
    pass


def test_a_file_that_kills_its_worker_waits_longer_each_time_and_ends_at_the_deadline(
    monkeypatch,
):
    batch = submit([chat_line("a")])

    def killed(*_):
        raise Killed

    leases = []
    with monkeypatch.context() as patch:
        patch.setattr(storage, "chunks", killed)
        for _ in range(12):
            with pytest.raises(Killed):
                validate.run(batch.id)
            leases.append(round(lease_of(batch) / timedelta(seconds=60)))
            with db.transaction() as session:
                session.execute(update(Batch).values(lease_until=func.now() - timedelta(seconds=1)))
    assert leases == [1, 1, 1, 1, 2, 4, 8, 16, 32, 64, 64, 64]
    with db.transaction() as session:
        session.execute(update(Batch).values(expires_at=func.now()))
    validate.run(batch.id)
    found = reread(batch)
    assert found.status == BatchStatus.FAILED
    assert [(error["code"], error["param"]) for error in found.errors] == [
        ("file_not_readable", "input_file_id")
    ]
    assert "12 workers were lost" in found.errors[0]["message"]


def test_who_fails_and_lives_is_no_loss_however_often(monkeypatch):
    batch = submit([chat_line("a")])

    def away(*_):
        raise OSError("stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "chunks", away)
        for _ in range(12):
            with pytest.raises(OSError, match="stale"):
                validate.run(batch.id)
            assert lease_of(batch) < timedelta(seconds=61)
            with db.transaction() as session:
                session.execute(
                    update(Batch).values(
                        lease_until=func.now() - timedelta(seconds=1), expires_at=func.now()
                    )
                )
    assert (reread(batch).status, reread(batch).fence, reread(batch).losses) == (
        BatchStatus.VALIDATING,
        12,
        0,
    )
    validate.run(batch.id)
    assert reread(batch).status == BatchStatus.IN_PROGRESS


def test_a_file_that_is_read_at_last_is_fine_though_its_deadline_is_over():
    batch = submit([chat_line("a")], losses=2, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    validate.run(batch.id)
    assert reread(batch).status == BatchStatus.IN_PROGRESS
