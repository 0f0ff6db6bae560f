"""Stores that fail under the API and a worker, one process each: the answers, the rows and files
that are left, and the recovery.
"""

import os
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import psycopg
import pytest
import redis
from alembic import command
from sqlalchemy import func, text

from tests.conftest import Stores, as_owner
from tests.fault_proxy import FaultProxy
from tests.integration.conftest import Api, multipart
from tests.integration.engines import (  # noqa: F401
    a_batch,
    a_claim,
    answers,
    charged,
    chat_lines,
    engine,
    expire_leases,
    lines_of,
    run_to_end,
)
from tests.integration.schedules.assembling import (  # noqa: F401
    caller,
    check_runs,
    expire_lease,
    fire,
    made,
    reread,
    small,
)
from tests.waiting import wait_until
from xalen_batch import broker, db, ids, migrate, storage
from xalen_batch.accounts.accounts import Caller
from xalen_batch.api import health
from xalen_batch.batches import batches
from xalen_batch.config import settings
from xalen_batch.models import Base, Batch
from xalen_batch.models.files import FilePart
from xalen_batch.pipeline import claim, finalize, record, recover, sweeps, validate
from xalen_batch.states import TaskState
from xalen_batch.worker.engine import Engine

MiB = 1024 * 1024


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Refuse longer writes, as the system does when a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def stored() -> set[Path]:
    return {path for path in (storage.folder() / "input").glob("*") if path.is_file()}


class TestAFullStore:
    def test_an_upload_is_507_and_leaves_nothing(self, api: Api) -> None:
        before = stored()
        with no_file_longer_than(MiB), pytest.raises(openai.APIStatusError) as caught:
            api.client.files.create(file=bytes(6 * MiB), purpose="batch")
        assert (caught.value.status_code, caught.value.code) == (507, "storage_full")
        assert stored() == before
        assert api.ask("GET", "/v1/files").json["data"] == []
        assert api.upload(bytes(6 * MiB))["bytes"] == 6 * MiB

    @pytest.mark.usefixtures("small")
    def test_a_batch_whose_input_is_put_together_waits_and_goes_on(self, caller: Caller) -> None:
        batch = fire(made(caller, "inbox", "abc"))
        before = stored()
        with no_file_longer_than(10), pytest.raises(storage.UNAVAILABLE) as caught:
            validate.run(batch.id)
        assert storage.is_full(caught.value)
        assert reread(batch)[0].status == "validating"
        assert stored() == before
        expire_lease()
        validate.run(batch.id)
        check_runs(batch, "abc")

    @pytest.mark.parametrize(
        ("error", "is_full"),
        [
            (
                OSError(
                    "Generic LocalFileSystem error: Unable to copy data to file: No space left on"
                    " device (os error 28)"
                ),
                True,
            ),
            (OSError(28, "No space left on device"), True),
            (OSError("Generic LocalFileSystem error: Permission denied (os error 13)"), False),
            (PermissionError(13, "Permission denied"), False),
        ],
    )
    def test_it_is_known_by_the_systems_number(self, error: OSError, is_full: bool) -> None:
        assert storage.is_full(error) is is_full


class TestALostFile:
    def test_its_download_is_503_and_not_a_crash(self, api: Api) -> None:
        file = api.upload()
        storage.delete(storage.key(ids.parse("file", file["id"])))  # type: ignore[arg-type]
        answer = api.ask("GET", f"/v1/files/{file['id']}/content")
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (
            503,
            "service_unavailable",
            "5",
        )

    def test_what_is_cut_short_is_not_served_as_if_it_were_whole(self, api: Api) -> None:
        file = api.upload(b"{}\n" * 1_000)
        path = storage.folder() / storage.key(ids.parse("file", file["id"]))  # type: ignore[arg-type]
        path.write_bytes(path.read_bytes()[:1_500])
        with pytest.raises(openai.InternalServerError, match="503"):
            api.client.files.content(file["id"]).read()

    @pytest.mark.usefixtures("database", "valkey")
    def test_a_cancelled_batch_ends_and_says_so(self) -> None:
        batch_id = a_batch(chat_lines(3))
        with db.transaction() as session:
            batch = session.get_one(Batch, batch_id)
            storage.delete(storage.key(batch.input_file_id))
            batches.cancel(session, batch)
        finalize.run(batch_id)
        with db.transaction() as session:
            ended = session.get_one(Batch, batch_id)
        assert (ended.status, ended.cancelled, charged(batch_id)) == ("cancelled", 3, 0)
        lines = lines_of(batch_id, FilePart.ERROR)
        assert [line["custom_id"] for line in lines] == [
            f"line {n} of the lost input file" for n in (1, 2, 3)
        ]
        assert all("Its input file was lost" in line["error"]["message"] for line in lines)


class TestLeftovers:
    def test_what_a_killed_upload_wrote_goes_and_a_running_one_stays(
        self, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sweeps.ORPHANS, "rest", 0.0)
        storage.write("input/kept", [b"{}"])
        folder = storage.folder() / "input"
        old, fresh = folder / f"{ids.new().hex}#1", folder / f"{ids.new().hex}#2"
        for path in (old, fresh):
            path.write_bytes(b"half a f")
        assert old.name not in [Path(key).name for key, _ in storage.listing("input")]
        long_ago = (datetime.now(UTC) - sweeps.ORPHAN_AFTER - timedelta(minutes=1)).timestamp()
        os.utime(old, (long_ago, long_ago))
        recover.tick()
        assert (old.exists(), fresh.exists()) == (False, True)
        fresh.unlink()
        storage.delete("input/kept")


class TestRedisThatHangs:
    @pytest.fixture
    def proxy(
        self, api: Api, valkey: redis.Redis, configure: Callable[..., None]
    ) -> Iterator[FaultProxy]:
        path = Path(valkey.connection_pool.connection_kwargs["path"])
        with FaultProxy(path) as proxy:
            configure(redis_url=f"redis://127.0.0.1:{proxy.port}/0")
            broker.celery.cache_clear()
            broker._publisher.cache_clear()
            yield proxy
        broker.celery.cache_clear()
        broker._publisher.cache_clear()
        broker._quiet_until = 0.0

    @pytest.mark.timing
    @pytest.mark.parametrize(
        "fault",
        [
            FaultProxy.black_hole,
            FaultProxy.refuse,
            FaultProxy.reset,
            lambda proxy: proxy.delay(0.5),
        ],
    )
    def test_no_call_blocks_for_two_seconds(
        self, api: Api, proxy: FaultProxy, fault: Callable[[FaultProxy], None]
    ) -> None:
        create = {
            "input_file_id": api.upload()["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        assert api.ask("POST", "/v1/batches", create).status == 200
        accepted = proxy.accepted
        assert accepted
        fault(proxy)

        def is_quick(method: str, path: str, body: Any = None) -> bool:
            # Reset the pause after a failure, in which the next call would not try Redis at all.
            broker._quiet_until = 0.0
            begun = time.monotonic()
            assert api.ask(method, path, body).status == 200
            return time.monotonic() - begun < 2

        # A busy machine slows single calls; a wait for Redis would slow all of them.
        assert any(is_quick("POST", "/v1/batches", create) for _ in range(3))
        assert any(is_quick("GET", "/readyz") for _ in range(3))
        assert api.ask("GET", "/readyz").json["status"] == "degraded"


class TestADatabaseThatIsAway:
    def test_a_full_disk_is_503_with_a_time_to_come_back(self, api: Api) -> None:
        with as_owner() as session:
            session.execute(
                text(
                    "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE"
                    " 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';"
                    " END $$"
                )
            )
            session.execute(
                text(
                    "CREATE TRIGGER full_disk BEFORE INSERT ON files FOR EACH ROW EXECUTE FUNCTION"
                    " full_disk()"
                )
            )
        try:
            kind, body = multipart(("purpose", None, b"batch"), ("file", "a", b"{}"))
            answer = api.ask("POST", "/v1/files", body, headers={"content-type": kind})
            assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (
                503,
                "service_unavailable",
                "5",
            )
        finally:
            with as_owner() as session:
                session.execute(text("DROP FUNCTION full_disk CASCADE"))
        assert api.upload()["object"] == "file"

    def test_health_is_answered_while_every_thread_waits_for_it(
        self, api: Api, stores: Stores, database: str
    ) -> None:
        threads = settings().pool_size - health.CONNECTIONS
        with (
            psycopg.connect(stores.migrate_database_url) as locker,
            ThreadPoolExecutor(60) as clients,
        ):
            locker.execute("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE")
            waiting = [clients.submit(api.ask, "GET", "/v1/batches") for _ in range(60)]
            is_waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            with psycopg.connect(database, autocommit=True) as watcher:
                wait_until(lambda: watcher.execute(is_waiting).fetchone() == (threads,))
            assert api.ask("GET", "/livez", key=None).status == 200
            ready = api.ask("GET", "/readyz", key=None)
            # Every thread holds a connection, and two are left for the checks.
            assert (ready.status, {check["status"] for check in ready.json["checks"].values()}) == (
                200,
                {"ok"},
            )
            assert not any(call.done() for call in waiting)
            locker.rollback()
            assert [call.result().status for call in waiting] == [200] * 60


@pytest.mark.usefixtures("database", "valkey")
class TestAnotherVersionsMigration:
    def test_the_newest_one_is_run_over_a_batch_in_progress(self, engine: Engine) -> None:
        batch_id = a_batch(chat_lines(30))
        held = a_claim()
        record.record(held.key, held.fence, answers(held)[:5])
        command.downgrade(migrate.alembic(), "-1")
        migrate.migrate()
        before = charged(batch_id)
        assert before > 0
        expire_leases()
        batch = run_to_end(engine, batch_id)
        assert (batch.status, batch.completed, batch.failed) == ("completed", 30, 0)
        assert charged(batch_id) > before

    def test_columns_that_are_added_in_mid_batch_disturb_nothing(self, engine: Engine) -> None:
        soon = {
            "window_opens_at": func.now() - timedelta(hours=1),
            "window_closes_at": func.now() + timedelta(hours=1),
        }
        window = {"start": "00:00", "end": "23:59", "timezone": "UTC"}
        db.engine().dispose()
        for _ in range(8):
            # Prepare the statement on the connection, as in a process that has run for long.
            assert claim.claim([], with_suspects=True) is None
        batch_id = a_batch(chat_lines(30), execution_window=window, **soon)
        with added_columns():
            held = a_claim()
            assert held.closes_at is not None
            record.record(held.key, held.fence, [], to=TaskState.PENDING)
            batch = run_to_end(engine, batch_id)
        assert (batch.status, batch.completed, batch.failed) == ("completed", 30, 0)


@contextmanager
def added_columns() -> Iterator[None]:
    """Add a column to each table, which this version does not know."""
    names = [table.name for table in Base.metadata.sorted_tables]
    for name in names:
        # One at a time, since running transactions hold locks.
        with as_owner() as session:
            session.execute(text(f"ALTER TABLE {name} ADD COLUMN of_a_later_version int"))
    try:
        yield
    finally:
        for name in names:
            with as_owner() as session:
                session.execute(text(f"ALTER TABLE {name} DROP COLUMN of_a_later_version"))
