"""Sweeps: each in small steps, and none is stopped by another's errors."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
from sqlalchemy import delete, func, select, text, update
from structlog.testing import capture_logs

from tests import billing, factories
from tests.conftest import as_owner
from xalen_batch import db, erasure, files, ids, storage
from xalen_batch.accounts.accounts import Caller, Owner
from xalen_batch.billing import statements
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import NotFound
from xalen_batch.models import Batch, Erasure, File, IdempotencyKey, Result
from xalen_batch.models.quotas import AccountTally
from xalen_batch.pipeline import recover, seal, sweeps
from xalen_batch.pipeline.sweeps import Sweep

PAST = datetime.now(UTC) - timedelta(days=30)

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def caller() -> Caller:
    with db.transaction() as session:
        return factories.caller(session)


@pytest.fixture(autouse=True)
def every_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin each walk at every tick, instead of once an hour."""
    for sweep in sweeps.ALL:
        monkeypatch.setattr(sweep, "rest", 0.0)


def an_expired_file(caller: Caller, age: int = 1) -> File:
    with db.transaction() as session:
        return factories.input_file(
            session, caller, b"{}", expires_at=PAST - timedelta(minutes=age)
        )


def an_old_key(caller: Caller) -> None:
    with db.transaction() as session:
        session.add(
            IdempotencyKey(
                account_id=caller.account_id,
                livemode=False,
                key="k",
                route="POST /",
                fingerprint=b"",
                answer=b"",
                created_at=PAST,
            )
        )


def an_orphan() -> Path:
    key = storage.key(ids.new())
    storage.write(key, [b"{}"])
    path = storage.folder() / key
    os.utime(path, (0, 0))
    return path


def is_deleted(file: File) -> bool:
    with db.transaction() as session:
        return session.get_one(File, file.id).deleted_at is not None


def a_batch(lines: int) -> Batch:
    return billing.ended([billing.Ran(Usage(1_000, 10)) for _ in range(lines)])


def answers(batch: Batch) -> int:
    with db.transaction() as session:
        return (
            session.scalar(select(func.count(Result.body)).where(Result.batch_id == batch.id)) or 0
        )


class TestEachOnItsOwn:
    @pytest.mark.parametrize("broken", sweeps.ALL, ids=lambda sweep: sweep.name)
    @pytest.mark.parametrize("error", [RuntimeError, OSError])
    def test_one_that_fails_stops_no_other(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch, broken: Sweep, error: type[Exception]
    ) -> None:
        def fail() -> Iterator[None]:
            raise error
            yield

        file, orphan = an_expired_file(caller), an_orphan()
        an_old_key(caller)
        monkeypatch.setattr(broken, "walk", fail)
        with capture_logs() as logs:
            recover.tick()
        told = [entry for entry in logs if entry["event"].startswith("sweep.")]
        assert [(entry["sweep"], entry["error"]) for entry in told] == [
            (broken.name, error.__name__)
        ]
        with db.transaction() as session:
            keys = session.scalar(select(func.count()).select_from(IdempotencyKey))
        left = {
            sweeps.EXPIRED.name: not is_deleted(file),
            sweeps.ORPHANS.name: orphan.exists(),
            sweeps.KEYS.name: bool(keys),
        }
        assert [name for name, is_left in left.items() if is_left] == [
            name for name in left if name == broken.name
        ]

    @pytest.mark.parametrize("at_once", [1, 100])
    def test_a_file_that_cannot_be_deleted_holds_up_no_other(
        self, caller: Caller, monkeypatch: pytest.MonkeyPatch, at_once: int
    ) -> None:
        monkeypatch.setattr(sweeps, "FILES_AT_ONCE", at_once)
        stuck, other = an_expired_file(caller, age=2), an_expired_file(caller)
        delete = storage.delete

        def refuse(key: str) -> None:
            if key == storage.key(stuck.id):
                raise PermissionError
            delete(key)

        monkeypatch.setattr(storage, "delete", refuse)
        with capture_logs() as logs:
            recover.tick()
        assert (is_deleted(stuck), is_deleted(other)) == (False, True)
        [told] = [entry for entry in logs if entry["event"] == "sweep.postponed"]
        assert (told["sweep"], told["file_id"], told["error"]) == (
            "expired files",
            stuck.id,
            "PermissionError",
        )

    def test_a_statement_that_cannot_be_issued_holds_up_no_other(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stuck, other = ids.new(), ids.new()
        issued: list[UUID] = []
        monkeypatch.setattr(
            statements,
            "due",
            lambda _: [SimpleNamespace(account_id=id) for id in (stuck, other) if id not in issued],
        )

        def fail_for_one(_: object, due: SimpleNamespace) -> bool:
            if due.account_id == stuck:
                raise ArithmeticError
            issued.append(due.account_id)
            return True

        monkeypatch.setattr(statements, "issue", fail_for_one)
        with capture_logs() as logs:
            sweeps.STATEMENTS.run()
        assert issued == [other]
        assert {entry["account_id"] for entry in logs if entry["event"] == "sweep.failed"} == {
            stuck
        }


class TestSteps:
    def test_a_walk_goes_on_in_the_next_tick_and_then_rests(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sweeps.ORPHANS, "turn", 0.0)
        monkeypatch.setattr(sweeps, "OBJECTS_AT_ONCE", 1)
        orphans = [an_orphan() for _ in range(3)]
        left = []
        # Three entries of the folder are looked at for unfinished files, then three objects.
        for _ in range(6):
            sweeps.ORPHANS.run()
            left.append(sum(path.exists() for path in orphans))
        assert left == [3, 3, 3, 2, 1, 0]
        sweeps.ORPHANS.run()
        monkeypatch.setattr(sweeps.ORPHANS, "rest", sweeps.HOUR)
        late = an_orphan()
        sweeps.ORPHANS.run()
        assert late.exists()
        monkeypatch.setattr(sweeps.ORPHANS, "rest", 0.0)
        for _ in range(2):
            sweeps.ORPHANS.run()
        assert not late.exists()

    def test_a_large_output_file_is_gone_at_once_and_its_answers_in_steps(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(erasure, "LINES_AT_ONCE", 2)
        monkeypatch.setattr(sweeps.ANSWERS, "turn", 0.0)
        batch = a_batch(5)
        with db.transaction() as session:
            file = session.get_one(File, batch.output_file_id)
            files.erase(session, file)
        assert answers(batch) == 3
        steps = []
        for _ in range(3):
            sweeps.ANSWERS.run()
            steps.append(answers(batch))
        assert steps == [1, 0, 0]
        with db.transaction() as session:
            assert session.scalar(select(func.count()).select_from(Erasure)) == 0
            assert (
                session.scalar(select(func.count(Result.amount)).where(Result.batch_id == batch.id))
                == 5
            )

    def test_an_expired_output_file_does_not_wait_for_its_answers(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(erasure, "LINES_AT_ONCE", 2)
        batch = a_batch(5)
        with db.transaction() as session:
            session.execute(
                update(File).where(File.id == batch.output_file_id).values(expires_at=PAST)
            )
        recover.tick()
        assert answers(batch) == 0
        with db.transaction() as session, pytest.raises(NotFound):
            files.get(
                session,
                Owner(batch.account_id, batch.livemode),
                ids.render("file", batch.output_file_id or ids.new()),
            )

    def test_files_of_several_accounts_expire_together(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with db.transaction() as session:
            callers = [factories.caller(session) for _ in range(2)]
        expired = [an_expired_file(callers[n % 2], age=n) for n in range(6)]
        with db.transaction() as session:
            kept = factories.input_file(session, callers[0], b"{}")
        monkeypatch.setattr(sweeps, "FILES_AT_ONCE", 4)
        with capture_logs() as logs:
            list(sweeps._expire_files())
        gone = [entry["file_id"] for entry in logs if entry["event"] == "file.expired"]
        assert sorted(gone) == sorted(file.id for file in expired)
        assert all(is_deleted(file) for file in expired)
        assert [key for key, _ in storage.listing("input")] == [storage.key(kept.id)]
        with db.transaction() as session:
            tallies = select(AccountTally.account_id, AccountTally.name, AccountTally.amount)
            counted = {row[:2]: row.amount for row in session.execute(tallies) if row.amount}
        own = callers[0].account_id
        assert counted == {(own, "files"): 1, (own, "file_bytes"): 2}

    def test_a_sealed_file_without_rows_leaves_nothing_to_erase(
        self,
    ) -> None:
        batches = [a_batch(2), a_batch(2)]
        seal.run()
        with as_owner() as session:
            session.execute(text("SET LOCAL session_replication_role = replica"))
            session.execute(delete(Result).where(Result.batch_id == batches[0].id))
            session.execute(update(File).where(File.part.is_not(None)).values(expires_at=PAST))
        list(sweeps._expire_files())
        assert list(storage.listing("output")) == []
        with db.transaction() as session:
            assert session.scalars(select(Erasure.file_id)).all() == [batches[1].output_file_id]
        list(sweeps._erase_answers())
        assert answers(batches[1]) == 0
