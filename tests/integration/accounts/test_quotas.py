"""Quotas on a real database: exact under concurrency, and freed by a commit."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.orm import Session

from tests import factories
from tests.conftest import Stores, as_owner
from tests.factories import chat_line
from tests.integration import plans
from xalen_batch import db, files, ids, storage
from xalen_batch.accounts import accounts, quotas
from xalen_batch.accounts.accounts import Caller, Owner
from xalen_batch.accounts.quotas import Quota
from xalen_batch.api import idempotency
from xalen_batch.batches import batches
from xalen_batch.errors import TooManyRequests
from xalen_batch.models import Batch, File, IdempotencyKey, InboxRequest, Schedule, ScheduleRun
from xalen_batch.pipeline import finalize, recover, validate
from xalen_batch.schedules import fire, inbox, runs
from xalen_batch.states import BatchStatus, RunState

pytestmark = pytest.mark.usefixtures("database")

Configure = Callable[..., None]


@pytest.fixture
def caller(database: str) -> Caller:
    with db.transaction() as session:
        return factories.caller(session)


@pytest.fixture
def file_id(caller: Caller) -> str:
    return uploaded(caller, 3)


def uploaded(caller: Caller, lines: int) -> str:
    with db.transaction() as session:
        return ids.render(
            "file",
            factories.input_file(session, caller, [chat_line(str(n)) for n in range(lines)]).id,
        )


def create(owner: Owner, file_id: str) -> Batch:
    with db.transaction() as session:
        return batches.create(
            session,
            owner,
            input_file_id=file_id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
        )


def held(owner: Owner) -> dict[Quota, int]:
    with db.reading() as session:
        return quotas.held(session, owner)


def reread(batch: Batch) -> Batch:
    with db.transaction() as session:
        return session.get_one(Batch, batch.id)


def at_once(times: int, act: Callable[[int], Any]) -> list[TooManyRequests]:
    """Call `act` from `times` threads at the same time; return the refusals."""
    start = Barrier(times)

    def one(number: int) -> TooManyRequests | None:
        start.wait()
        try:
            act(number)
        except TooManyRequests as refusal:
            return refusal
        return None

    with ThreadPoolExecutor(times) as pool:
        return [refusal for refusal in pool.map(one, range(times)) if refusal is not None]


class TestOpenBatches:
    def test_of_twenty_at_once_exactly_as_many_are_made_as_the_limit_says(
        self, caller: Caller, file_id: str, configure: Configure
    ) -> None:
        configure(quota_open_batches=5)
        refused = at_once(20, lambda _: create(caller, file_id))
        assert len(refused) == 15
        assert held(caller)[Quota.OPEN_BATCHES] == 5
        assert {(refusal.status, refusal.code, refusal.type) for refusal in refused} == {
            (429, "open_batches_limit", "rate_limit_error")
        }
        assert refused[0].message.startswith(
            "The account's limit is 5 open batches. It has 5, and this would add 1."
        )
        assert refused[0].retry_after == quotas.RETRY_AFTER

    def test_who_dies_between_counting_and_committing_takes_nothing_and_holds_nobody_up(
        self, caller: Caller, file_id: str, configure: Configure
    ) -> None:
        configure(quota_open_batches=1)
        with pytest.raises(db.UNAVAILABLE):
            self.die_before_committing(caller, file_id)
        create(caller, file_id)

    @staticmethod
    def die_before_committing(caller: Caller, file_id: str) -> None:
        with db.transaction() as session:
            pid = session.scalar(select(func.pg_backend_pid()))
            batches.create(
                session,
                caller,
                input_file_id=file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
            )
            with db.transaction() as other:
                other.execute(select(func.pg_terminate_backend(pid)))

    @pytest.mark.parametrize(
        "end",
        [BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED],
    )
    def test_a_batch_that_ends_gives_its_share_back(
        self, caller: Caller, file_id: str, configure: Configure, end: BatchStatus
    ) -> None:
        configure(quota_open_batches=1)
        batch = create(caller, file_id)
        ways = {
            BatchStatus.FAILED: [],
            BatchStatus.COMPLETED: [BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING],
            BatchStatus.EXPIRED: [BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING],
            BatchStatus.CANCELLED: [BatchStatus.CANCELLING],
        }
        for status in [*ways[end], end]:
            with pytest.raises(TooManyRequests):
                create(caller, file_id)
            with db.transaction() as session:
                assert session.get_one(Batch, batch.id).move(session, status)
        create(caller, file_id)

    def test_each_account_and_mode_has_its_own(
        self, caller: Caller, file_id: str, configure: Configure, tmp_path: Path
    ) -> None:
        # A live batch is refused unless the catalog and the account both let it be simulated.
        (tmp_path / "catalog.toml").write_text(
            f'[models.{factories.CHAT_MODEL}.backend]\nkind = "simulated"\n'
        )
        configure(quota_open_batches=1, catalog=tmp_path / "catalog.toml")
        create(caller, file_id)
        with db.transaction() as session:
            accounts.let_simulate(session, caller.account_id, True)
            live, other = (
                Caller(caller.account_id, True, caller.scopes, caller.key_id),
                factories.caller(session),
            )
        for owner in (live, other):
            create(owner, uploaded(owner, 1))

    def test_an_operator_gives_an_account_another_limit_or_none(
        self, caller: Caller, file_id: str, configure: Configure
    ) -> None:
        configure(quota_open_batches=0)
        for most, fits in [(2, 2), (None, 4)]:
            with db.transaction() as session:
                quotas.change(session, caller, {Quota.OPEN_BATCHES: most})
            while held(caller)[Quota.OPEN_BATCHES] < fits:
                create(caller, file_id)
        with db.transaction() as session:
            quotas.reset(session, caller, Quota.OPEN_BATCHES)
        with pytest.raises(TooManyRequests):
            create(caller, file_id)


class TestLinesAndTokens:
    def test_a_batch_that_does_not_fit_fails_its_validation_and_says_what_is_held(
        self, caller: Caller, file_id: str, configure: Configure
    ) -> None:
        configure(quota_enqueued_lines=5)
        first, second = create(caller, file_id), create(caller, file_id)
        for batch in (first, second):
            validate.run(batch.id)
        assert (reread(first).status, reread(first).total) == (BatchStatus.IN_PROGRESS, 3)
        failed = reread(second)
        assert (failed.status, failed.total, failed.enqueued_tokens) == (BatchStatus.FAILED, 0, 0)
        [error] = failed.errors or []
        assert (error["code"], error["line"], error["param"]) == ("line_limit_exceeded", None, None)
        assert error["message"].startswith(
            "The account's limit is 5 lines in open batches. It has 3, and this would add 3. Wait"
            " until"
        )
        assert held(caller)[Quota.ENQUEUED_LINES] == 3

    def test_tokens_over_the_limit_have_openais_code_and_one_batch_that_is_too_large_another_remedy(
        self, caller: Caller, file_id: str, configure: Configure
    ) -> None:
        configure(quota_enqueued_tokens=10)
        batch = create(caller, file_id)
        validate.run(batch.id)
        [error] = reread(batch).errors or []
        assert error["code"] == "token_limit_exceeded"
        assert "more than the limit itself" in error["message"]

    def test_a_line_counts_as_a_token_for_four_of_its_bytes(self, caller: Caller) -> None:
        lines = [chat_line("a"), chat_line("b", "And now something longer, with ümlauts.")]
        with db.transaction() as session:
            file = factories.input_file(session, caller, lines)
        validate.run(create(caller, ids.render("file", file.id)).id)
        sizes = [len(json.dumps(line, ensure_ascii=False).encode()) for line in lines]
        assert held(caller)[Quota.ENQUEUED_TOKENS] == sum((size + 3) // 4 for size in sizes)

    @pytest.mark.parametrize(
        ("setting", "code"),
        [("lines", "enqueued_lines_limit"), ("tokens", "enqueued_tokens_limit")],
    )
    def test_nothing_is_made_while_there_is_no_room_at_all(
        self, caller: Caller, file_id: str, configure: Configure, setting: str, code: str
    ) -> None:
        batch = create(caller, file_id)
        validate.run(batch.id)
        configure(**{f"quota_enqueued_{setting}": 3})
        with pytest.raises(TooManyRequests) as refusal:
            create(caller, file_id)
        assert refusal.value.code == code
        with db.transaction() as session:
            batches.cancel(session, session.get_one(Batch, batch.id))
        finalize.run(batch.id)
        create(caller, file_id)

    def test_of_batches_validated_at_once_no_more_start_than_fit(
        self, caller: Caller, file_id: str, configure: Configure
    ) -> None:
        configure(quota_enqueued_lines=7)
        made = [create(caller, file_id) for _ in range(6)]
        assert at_once(6, lambda number: validate.run(made[number].id)) == []
        states = [reread(batch).status for batch in made]
        assert sorted(states) == [BatchStatus.FAILED] * 4 + [BatchStatus.IN_PROGRESS] * 2
        assert held(caller)[Quota.ENQUEUED_LINES] == 6


class TestStorage:
    @staticmethod
    def keep(caller: Caller, size: int) -> File:
        with db.transaction() as session:
            return files.create(
                session,
                caller,
                id=ids.new(),
                purpose="batch",
                filename="a.jsonl",
                size=size,
                sha256=b"",
            )

    def test_of_many_uploads_at_once_exactly_those_are_kept_that_fit(
        self, caller: Caller, configure: Configure
    ) -> None:
        configure(quota_storage_bytes=450)
        refused = at_once(12, lambda _: self.keep(caller, 100))
        assert len(refused) == 8
        assert {refusal.code for refusal in refused} == {"storage_bytes_limit"}
        assert held(caller)[Quota.STORAGE_BYTES] == 400
        self.keep(caller, 50)

    def test_a_file_that_is_deleted_or_expires_gives_its_bytes_back(
        self, caller: Caller, configure: Configure
    ) -> None:
        configure(quota_storage_bytes=100)
        with db.transaction() as session:
            files.delete(session, caller, ids.render("file", self.keep(caller, 100).id))
        kept = self.keep(caller, 100)
        with pytest.raises(TooManyRequests):
            self.keep(caller, 1)
        with db.transaction() as session:
            session.execute(
                update(File)
                .where(File.id == kept.id)
                .values(expires_at=datetime.now(UTC) - timedelta(seconds=1))
            )
        recover.tick()
        self.keep(caller, 100)

    def test_output_files_count_and_are_never_refused(
        self, caller: Caller, file_id: str, configure: Configure
    ) -> None:
        before = held(caller)[Quota.STORAGE_BYTES]
        configure(quota_storage_bytes=before)
        batch = create(caller, file_id)
        validate.run(batch.id)
        with db.transaction() as session:
            batches.cancel(session, session.get_one(Batch, batch.id))
        finalize.run(batch.id)
        ended = reread(batch)
        with db.reading() as session:
            errors = session.get_one(File, ended.error_file_id)
        assert (ended.status, held(caller)[Quota.STORAGE_BYTES]) == (
            BatchStatus.CANCELLED,
            before + errors.size,
        )
        with pytest.raises(TooManyRequests):
            self.keep(caller, 1)


class TestSchedules:
    @staticmethod
    def run_of(schedule_id: UUID) -> ScheduleRun:
        with db.transaction() as session:
            return session.scalars(
                select(ScheduleRun).where(ScheduleRun.schedule_id == schedule_id)
            ).one()

    @staticmethod
    def due(caller: Caller, **fields: Any) -> UUID:
        """A schedule that fires at the next poll."""
        with db.transaction() as session:
            made = factories.schedule(session, caller, cron="* * * * *", **fields)
            made.next_fire_at = datetime.now(UTC).replace(second=0, microsecond=0)
            return made.id

    @pytest.fixture(autouse=True)
    def every_minute(self, configure: Configure) -> None:
        configure(schedule_min_interval=60)

    def test_a_run_over_its_quota_waits_says_why_and_starts_when_there_is_room(
        self, caller: Caller, file_id: str, configure: Configure
    ) -> None:
        configure(quota_open_batches=1)
        other = create(caller, file_id)
        id = self.due(caller, input_file_id=file_id)
        for _ in range(2):
            fire.run()
            run = self.run_of(id)
            assert (run.state, run.reason) == (RunState.WAITING, "open_batches_limit")
            assert "The account's limit is 1 open batches" in (run.message or "")
        with db.transaction() as session:
            session.get_one(Batch, other.id).move(session, BatchStatus.FAILED)
        fire.run()
        assert self.run_of(id).state == RunState.RUNNING

    def test_a_run_that_waited_for_as_long_as_it_may_fails_with_the_reason(
        self, caller: Caller, file_id: str, configure: Configure
    ) -> None:
        configure(quota_open_batches=0)
        id = self.due(caller, input_file_id=file_id, catch_up_window="1h")
        fire.run()
        with db.transaction() as session:
            past = datetime.now(UTC) - timedelta(hours=2)
            session.execute(update(ScheduleRun).values(created_at=past, scheduled_for=past))
        fire.run()
        run = self.run_of(id)
        assert (run.state, run.reason) == (RunState.FAILED, "open_batches_limit")
        assert (run.message or "").endswith("The run waited for 1h.")

    def test_a_night_whose_lines_do_not_fit_fails_with_what_the_batch_says(
        self, caller: Caller, file_id: str, configure: Configure
    ) -> None:
        configure(quota_enqueued_lines=2)
        id = self.due(caller, input_file_id=file_id)
        fire.run()
        with db.transaction() as session:
            [batch_id] = session.scalars(select(Batch.id).where(Batch.schedule_id == id))
        validate.run(batch_id)
        fire.run()
        run = self.run_of(id)
        assert (run.state, run.reason) == (RunState.FAILED, "line_limit_exceeded")
        assert "limit is 2 lines in open batches" in (run.message or "")

    def test_requests_are_counted_when_they_arrive_and_always_fit_into_their_file(
        self, caller: Caller, configure: Configure
    ) -> None:
        id = self.due(caller, inbox={})
        line = json.dumps(chat_line("a")).encode()
        with db.transaction() as session:
            inbox.add(session, session.get_one(Schedule, id), [("a", line)])
        assert (held(caller)[Quota.INBOX_REQUESTS], held(caller)[Quota.STORAGE_BYTES]) == (
            1,
            len(line) + 1,
        )
        fire.run()
        # Lower than the bytes that are stored already.
        configure(quota_storage_bytes=10)
        with db.transaction() as session:
            batch = session.scalars(select(Batch).where(Batch.schedule_id == id)).one()
        validate.run(batch.id)
        assert reread(batch).status == BatchStatus.IN_PROGRESS
        assert (held(caller)[Quota.INBOX_REQUESTS], held(caller)[Quota.STORAGE_BYTES]) == (
            0,
            len(line) + 1,
        )

    def test_what_a_run_puts_together_beyond_its_quota_fails_it_and_leaves_no_bytes(
        self, caller: Caller, file_id: str, configure: Configure
    ) -> None:
        id = self.due(caller, template_file_id=file_id)
        fire.run()
        configure(quota_storage_bytes=held(caller)[Quota.STORAGE_BYTES] + 10)
        with db.transaction() as session:
            batch = session.scalars(select(Batch).where(Batch.schedule_id == id)).one()
        validate.run(batch.id)
        assert [error["code"] for error in reread(batch).errors or []] == ["storage_limit_exceeded"]
        with pytest.raises(FileNotFoundError):
            next(storage.chunks(storage.key(batch.input_file_id)))
        fire.run()
        assert (self.run_of(id).state, self.run_of(id).reason) == (
            RunState.FAILED,
            "storage_limit_exceeded",
        )


class TestTallies:
    """The tallies of triggers equal the rows, also after many concurrent transactions."""

    @staticmethod
    def schedule(caller: Caller) -> Schedule:
        with db.transaction() as session:
            return factories.schedule(session, caller)

    @staticmethod
    def told(caller: Caller) -> tuple[int, int]:
        found = held(caller)
        return found[Quota.INBOX_REQUESTS], found[Quota.STORAGE_BYTES]

    @staticmethod
    def file(session: Session, caller: Caller, size: int) -> UUID:
        row = File(id=ids.new(), purpose="batch", filename="a.jsonl", size=size)
        row.account_id, row.livemode = caller.account_id, caller.livemode
        session.add(row)
        session.flush()
        return row.id

    @staticmethod
    def there(caller: Caller) -> tuple[int, int]:
        with db.reading() as session:
            rows = select(
                func.count(), func.coalesce(func.sum(func.octet_length(InboxRequest.line) + 1), 0)
            ).join(Schedule, Schedule.id == InboxRequest.schedule_id)
            number, size = session.execute(
                rows.where(Schedule.account_id == caller.account_id)
            ).one()
            return number, int(size)

    def test_of_many_at_once_exactly_as_many_requests_are_accepted_as_the_limit_says(
        self, caller: Caller, configure: Configure
    ) -> None:
        configure(quota_inbox_requests=7)
        schedules = [self.schedule(caller) for _ in range(2)]

        def add(number: int) -> str:
            try:
                with db.transaction() as session:
                    inbox.add(
                        session,
                        session.get_one(Schedule, schedules[number % 2].id),
                        [(f"{number}", b"x" * number)],
                    )
            except TooManyRequests as error:
                return str(error.code)
            return "added"

        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(add, range(20))) == ["added"] * 7 + ["inbox_requests_limit"] * 13
        assert self.told(caller) == self.there(caller)
        assert self.told(caller)[0] == 7

    def test_what_is_assigned_released_and_discarded_is_counted_for_as_long_as_it_is_there(
        self, caller: Caller
    ) -> None:
        schedule = self.schedule(caller)
        with db.transaction() as session:
            inbox.add(
                session,
                session.get_one(Schedule, schedule.id),
                [(f"{n}", b"x" * n) for n in range(5)],
            )
        assert self.told(caller) == self.there(caller) == (5, 15)
        with db.transaction() as session:
            locked = session.get_one(Schedule, schedule.id)
            [run] = runs.record(
                session,
                [runs.blank(locked, datetime.now(UTC), runs.Trigger.MANUAL, RunState.WAITING)],
            )
            assert inbox.assign(session, locked, run) == 5
        assert self.told(caller) == (5, 15)
        with db.transaction() as session:
            inbox.release(session, run)
        assert self.told(caller) == self.there(caller) == (5, 15)
        with db.transaction() as session:
            assert inbox.discard(session, schedule.id) == 5
        assert self.told(caller) == self.there(caller) == (0, 0)

    def test_files_and_their_bytes_count_until_they_are_deleted_or_erased(
        self, caller: Caller
    ) -> None:
        def told() -> tuple[int, int]:
            found = held(caller)
            return found[Quota.FILES], found[Quota.STORAGE_BYTES]

        with db.transaction() as session:
            first, second = self.file(session, caller, 5), self.file(session, caller, 7)
        assert told() == (2, 12)
        with db.transaction() as session:
            session.get_one(File, first).size = 6
            session.flush()
            session.rollback()
        with db.transaction() as session:
            session.get_one(File, first).size = 8
        assert told() == (2, 15)
        with db.transaction() as session:
            session.get_one(File, first).deleted_at = datetime.now(UTC)
        assert told() == (1, 7)
        with as_owner() as session:
            session.execute(delete(File).where(File.id.in_([first, second])))
        assert told() == (0, 0)

    def test_an_upload_does_not_wait_for_a_batch_that_is_ending(self, caller: Caller) -> None:
        with db.transaction() as ending, db.transaction() as upload:
            upload.execute(text("SET LOCAL lock_timeout = '1s'"))
            self.file(ending, caller, 5)
            self.file(upload, caller, 7)
            upload.commit()
        assert held(caller)[Quota.STORAGE_BYTES] == 12

    def test_a_request_that_waits_already_takes_no_room(
        self, caller: Caller, configure: Configure
    ) -> None:
        configure(quota_inbox_requests=1)
        schedule = self.schedule(caller)
        for accepted in (1, 0):
            with db.transaction() as session:
                assert (
                    inbox.add(
                        session, session.get_one(Schedule, schedule.id), [("a", b"x")]
                    ).accepted
                    == accepted
                )

    def test_an_idempotency_key_counts_from_its_commit_until_it_is_forgotten(
        self, caller: Caller
    ) -> None:
        def claim(session: Session, key: str) -> None:
            idempotency.once(
                session, caller, key, route="POST /", fingerprint=b"", create=lambda: b"{}"
            )

        with db.transaction() as session:
            claim(session, "a")
            session.rollback()
        with db.transaction() as session:
            claim(session, "b")
            claim(session, "c")
        assert held(caller)[Quota.IDEMPOTENCY_KEYS] == 2
        with db.transaction() as session:
            session.execute(delete(IdempotencyKey).where(IdempotencyKey.key == "b"))
        assert held(caller)[Quota.IDEMPOTENCY_KEYS] == 1

    def test_requests_under_way_with_a_key_each_do_not_wait_for_each_other(
        self, caller: Caller
    ) -> None:
        with db.transaction() as one, db.transaction() as other:
            other.execute(text("SET LOCAL lock_timeout = '1s'"))
            for session, key in ((one, "a"), (other, "b")):
                idempotency.once(
                    session, caller, key, route="POST /", fingerprint=b"", create=lambda: b"{}"
                )


def test_counting_looks_only_at_what_is_open_and_adds_no_files_up(
    stores: Stores, caller: Caller, file_id: str
) -> None:
    with db.transaction() as session:
        some = session.get_one(File, ids.parse("file", file_id))
        made = reread(create(caller, file_id))
        row = {name: getattr(made, name) for name in BATCH}
        session.execute(
            insert(Batch),
            [
                row | {"id": ids.new(), "status": "in_progress" if n < 100 else "completed"}
                for n in range(5_000)
            ],
        )
        one = {
            name: getattr(some, name)
            for name in ("account_id", "livemode", "purpose", "filename", "size")
        }
        session.execute(
            insert(File), [one | {"id": ids.new(), "livemode": n >= 2_000} for n in range(20_000)]
        )
    with psycopg.connect(stores.migrate_database_url, autocommit=True) as owner:
        owner.execute("VACUUM ANALYZE batches, files")
    counted, *others = plans.of(lambda session: quotas.held(session, caller))
    assert "batches" not in plans.scanned(counted)
    assert plans.pages(counted) < 150
    assert all({"batches", "files"}.isdisjoint(plans.looked_into(plan)) for plan in others)
    with db.reading() as session:
        assert quotas.held(session, caller)[Quota.OPEN_BATCHES] == 101
        assert session.scalar(select(func.count()).select_from(Batch)) == 5_001


BATCH = (
    "account_id",
    "livemode",
    "endpoint",
    "completion_window",
    "input_file_id",
    "price_snapshot",
    "discount_rate",
    "expires_at",
    "total",
)
