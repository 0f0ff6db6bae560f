"""Disks that run short: new work waits, running work is recorded, and all resumes by itself."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy import select
from structlog.testing import capture_logs

from tests import factories
from tests.conftest import Stores
from tests.integration import engines
from xalen_batch import db, disk, ids
from xalen_batch.batches import batches
from xalen_batch.config import settings
from xalen_batch.disk import GiB, Store
from xalen_batch.errors import StorageFull
from xalen_batch.models import Batch, ScheduleRun, Task
from xalen_batch.pipeline import validate
from xalen_batch.schedules import fire
from xalen_batch.standalone import stores as embedded
from xalen_batch.states import RunState
from xalen_batch.worker.engine import Engine

pytestmark = pytest.mark.usefixtures("database", "valkey")


class Disks:
    """The free bytes of the stores' folders, which a test sets."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left = {Store.FILES: 100 * GiB, Store.DATABASE: 100 * GiB}
        folders = {Store.FILES: Path("files"), Store.DATABASE: Path("postgres")}
        patch.setattr(disk, "_folders", lambda: folders)
        patch.setattr(
            disk,
            "free",
            lambda folder: self.left[
                next(store for store, path in folders.items() if path == folder)
            ],
        )

    def set(self, store: Store, left: int) -> None:
        self.left[store] = left
        disk._short.cache_clear()


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disks]:
    disk._short.cache_clear()
    disk._was_short.clear()
    yield Disks(monkeypatch)
    monkeypatch.undo()
    disk._short.cache_clear()


@pytest.fixture
def engine(configure: Callable[..., None]) -> Iterator[Engine]:
    configure(task_lines=10, flush_interval=0.05)
    with ThreadPoolExecutor(16) as pool:
        engine = Engine(pool.submit)
        yield engine
        engine.stop()
        pool.shutdown(wait=True)
        engine.close()


def a_batch(lines: int = 1) -> UUID:
    with db.transaction() as session:
        caller = factories.caller(session)
        file = factories.input_file(
            session, caller, [factories.chat_line(str(n)) for n in range(lines)]
        )
        return factories.batch(session, caller, file).id


def status(batch_id: UUID) -> str:
    with db.transaction() as session:
        return session.get_one(Batch, batch_id).status


def attempts(batch_id: UUID) -> int:
    with db.transaction() as session:
        return sum(session.scalars(select(Task.attempts).where(Task.batch_id == batch_id)))


def test_nothing_is_claimed_while_the_databases_disk_is_short_and_it_goes_on_by_itself(
    engine: Engine, disks: Disks
) -> None:
    batch_id = a_batch(25)
    validate.run(batch_id)
    disks.set(Store.DATABASE, GiB - 1)
    for _ in range(3):
        engine.drain()
    assert attempts(batch_id) == 0
    disks.set(Store.DATABASE, GiB)
    assert engines.run_to_end(engine, batch_id).status == "completed"
    assert attempts(batch_id) > 0


def test_batches_run_while_only_the_files_disk_is_short(engine: Engine, disks: Disks) -> None:
    batch_id = a_batch(5)
    validate.run(batch_id)
    disks.set(Store.FILES, 0)
    assert engines.run_to_end(engine, batch_id).status == "completed"


@pytest.mark.parametrize("store", list(Store))
def test_a_new_batch_is_validated_later(disks: Disks, store: Store) -> None:
    batch_id = a_batch()
    disks.set(store, 0)
    validate.run(batch_id)
    assert status(batch_id) == "validating"
    disks.set(store, 5 * GiB)
    validate.run(batch_id)
    assert status(batch_id) == "in_progress"


@pytest.mark.parametrize("store", list(Store))
def test_no_batch_is_made_and_a_schedules_run_waits_with_the_reason(
    disks: Disks, configure: Callable[..., None], store: Store
) -> None:
    configure(schedule_min_interval=60)
    with db.transaction() as session:
        caller = factories.caller(session)
        file_id = ids.render(
            "file", factories.input_file(session, caller, [factories.chat_line("a")]).id
        )
        schedule = factories.schedule(session, caller, cron="* * * * *", input_file_id=file_id)
        schedule.next_fire_at = datetime.now(UTC).replace(second=0, microsecond=0)
    disks.set(store, 0)
    asked: dict[str, Any] = {
        "input_file_id": file_id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    with pytest.raises(StorageFull, match=f"disk of the {store}"), db.transaction() as session:
        batches.create(session, caller, **asked)
    fire.run()
    run = the_run()
    assert (run.state, run.reason) == (RunState.WAITING, "storage_full")
    disks.set(store, 5 * GiB)
    fire.run()
    assert the_run().state == RunState.RUNNING


def the_run() -> ScheduleRun:
    with db.transaction() as session:
        return session.scalars(select(ScheduleRun)).one()


def test_it_is_told_once_that_a_disk_is_short_and_once_that_it_is_not(disks: Disks) -> None:
    with capture_logs() as events:
        for left in (GiB - 1, GiB - 2, GiB, GiB + 1):
            disks.set(Store.FILES, left)
            disk.short()
    assert [event["event"] for event in events] == ["disk.short", "disk.has_room"]


def test_what_is_watched_is_the_folder_of_the_files_and_the_database_that_up_starts(
    stores: Stores,
    configure: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert embedded.database_folder() is None
    assert set(disk._folders()) == {Store.FILES}
    ours = embedded.Postgres(tmp_path / "postgres", tmp_path / "log")
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "serve_password").write_text("secret")
    configure(data_dir=tmp_path, database_url=ours.url)
    assert settings().database_url == SecretStr(ours.url)
    monkeypatch.setattr(disk, "_database_folder", embedded.database_folder)
    assert disk._folders() == {
        Store.FILES: Path(stores.data_dir / "files"),
        Store.DATABASE: tmp_path / "postgres",
    }
    assert all(space.free > 0 for space in disk.spaces())


def test_free_space_is_that_of_the_disk_a_folder_will_be_made_on(tmp_path: Path) -> None:
    assert abs(disk.free(tmp_path / "not" / "yet") - disk.free(tmp_path)) < GiB
