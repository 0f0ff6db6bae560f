"""The store mark: a folder without it is unavailable storage, and no file there counts as lost."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text, update
from structlog.testing import capture_logs

from tests import factories
from tests.conftest import as_owner
from tests.integration.conftest import Api, Doctor, multipart
from tests.integration.engines import engine  # noqa: F401  # a fixture
from xalen_batch import catalog, db, files, storage
from xalen_batch.api import app
from xalen_batch.models import Batch, File, Task, workers
from xalen_batch.pipeline import finalize, recover, sweeps, validate
from xalen_batch.states import BatchStatus
from xalen_batch.storage import marks
from xalen_batch.validation import read as reading
from xalen_batch.worker import process
from xalen_batch.worker.engine import Engine

pytestmark = pytest.mark.usefixtures("database")

Configure = Callable[..., None]


@contextmanager
def unmounted() -> Iterator[Path]:
    """Replace the storage folder by an empty one, as a mount point without its disk."""
    folder = storage.folder()
    away = folder.with_name("away")
    folder.rename(away)
    folder.mkdir()
    marks._is_here.cache_clear()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        away.rename(folder)
        marks._is_here.cache_clear()


@pytest.fixture
def unplaced() -> Iterator[UUID]:
    """A newly migrated database whose store is not marked yet; returns the mark."""
    path = storage.folder() / storage.MARK
    with as_owner() as session:
        session.execute(text("UPDATE store_mark SET placed_at = NULL"))
    path.unlink()
    marks.identity.cache_clear()
    with db.reading() as session:
        (id,) = session.scalars(text("SELECT id FROM store_mark")).all()
    yield id
    path.write_text(str(id))
    with as_owner() as session:
        session.execute(text("UPDATE store_mark SET placed_at = now()"))
    marks.identity.cache_clear()


@pytest.fixture
def other(tmp_path: Path, configure: Configure) -> Path:
    """An empty folder as the storage of this process."""
    folder = tmp_path / "other"
    folder.mkdir()
    configure(storage_url=folder.as_uri())
    return folder


def a_batch(lines: int = 2) -> Batch:
    with db.transaction() as session:
        caller = factories.caller(session)
        file = factories.input_file(
            session, caller, [factories.chat_line(str(n)) for n in range(lines)]
        )
        return factories.batch(session, caller, file)


def status(batch: Batch) -> str:
    with db.transaction() as session:
        return session.get_one(Batch, batch.id).status


def let_the_lease_end(batch: Batch) -> None:
    with db.transaction() as session:
        session.execute(update(Batch).where(Batch.id == batch.id).values(lease_until=None))


def placed() -> bool:
    with db.reading() as session:
        return bool(session.scalar(text("SELECT placed_at IS NOT NULL FROM store_mark")))


def serve(patch: pytest.MonkeyPatch) -> None:
    """Start the API in this process, without its changes to the process itself."""
    for module, name in (
        (app.signal, "signal"),
        (app.memory, "settle"),
        (app.pool, "prepare"),
        (app.sys, "setswitchinterval"),
    ):
        patch.setattr(module, name, lambda *_: None)
    app.serve("127.0.0.1", 0)


class TestPlacing:
    def test_the_first_api_process_marks_an_empty_folder(self, unplaced: UUID) -> None:
        with pytest.raises(marks.Unplaced):
            marks.confirm()
        marks.place()
        marks.confirm()
        assert storage.look(None) == (unplaced, False)
        assert placed()

    def test_an_api_that_starts_marks_a_new_store_before_any_request(
        self, unplaced: UUID, other: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other.rmdir()
        seen: list[bool] = []
        monkeypatch.setattr(app.GracefulServer, "run", lambda _, sockets: seen.append(placed()))
        serve(monkeypatch)
        assert seen == [True]

    def test_an_api_starts_where_the_store_is_of_another_database(
        self, unplaced: UUID, other: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (other / storage.MARK).write_text(f"{uuid4()}\n")
        started: list[bool] = []
        monkeypatch.setattr(app.GracefulServer, "run", lambda _, sockets: started.append(True))
        serve(monkeypatch)
        assert (started, placed()) == ([True], False)

    def test_the_first_upload_of_an_installation_makes_the_folder(
        self, unplaced: UUID, api: Api, other: Path
    ) -> None:
        other.rmdir()
        assert api.upload()["object"] == "file"
        assert storage.look(None) == (unplaced, False)

    def test_processes_at_once_leave_one_mark(self, unplaced: UUID) -> None:
        def place(_: int) -> bool:
            try:
                marks.place()
            except db.UNAVAILABLE:
                # Another process has the row's lock: this one tries again later.
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            assert any(threads.map(place, range(8)))
        assert storage.look(None)[0] == unplaced
        assert placed()

    def test_one_that_died_before_its_commit_is_gone_on_from(self, unplaced: UUID) -> None:
        (storage.folder() / storage.MARK).write_text(f"{unplaced}\n")
        marks.place()
        assert placed()

    def test_an_older_installation_takes_the_folder_that_has_its_files(
        self, unplaced: UUID
    ) -> None:
        a_batch()
        # The mark of another database, of which this one is a copy from before there were marks.
        (storage.folder() / storage.MARK).write_text(str(uuid4()))
        marks.place()
        assert storage.look(None)[0] == unplaced

    def test_an_older_installation_refuses_a_folder_without_its_files(self, unplaced: UUID) -> None:
        a_batch()
        with unmounted() as folder:
            with pytest.raises(marks.Elsewhere, match="holds none of the last 1 files"):
                marks.place()
            assert list(folder.iterdir()) == []
        assert not placed()
        marks.place()

    def test_a_new_database_leaves_another_ones_store_alone(
        self, unplaced: UUID, other: Path
    ) -> None:
        (other / storage.MARK).write_text(str(uuid4()))
        with pytest.raises(marks.Elsewhere, match="another database"):
            marks.place()
        assert not placed()

    def test_a_process_with_another_folder_marks_nothing(self, other: Path) -> None:
        with pytest.raises(
            marks.Elsewhere, match=f"{other} is not the store of this database: it holds no mark"
        ):
            marks.place()
        assert list(other.iterdir()) == []

    @pytest.mark.parametrize("content", ["", "no id", "\xff"])
    def test_a_mark_that_cannot_be_read_is_none(self, other: Path, content: str) -> None:
        (other / storage.MARK).write_bytes(content.encode("latin-1"))
        with pytest.raises(marks.Elsewhere, match="holds no mark"):
            marks.confirm()

    def test_a_folder_that_is_not_there_is_away(self, configure: Configure, tmp_path: Path) -> None:
        configure(storage_url=(tmp_path / "none").as_uri())
        with pytest.raises(marks.Elsewhere, match="cannot be read: No such file"):
            marks.confirm_gone("input/x")

    def test_a_store_that_was_moved_is_known_again(
        self, configure: Configure, tmp_path: Path
    ) -> None:
        shutil.copytree(storage.folder(), tmp_path / "moved")
        configure(storage_url=(tmp_path / "moved").as_uri())
        marks.confirm()

    def test_the_remedy_in_the_message_works(self, other: Path) -> None:
        with pytest.raises(marks.Elsewhere) as caught:
            marks.confirm()
        mark = str(caught.value).partition("write ")[2].split()[0]
        (other / storage.MARK).write_text(mark)
        marks.confirm()


class TestValidating:
    def test_a_worker_that_sees_another_folder_leaves_the_batch_to_others(
        self, configure: Configure, tmp_path: Path
    ) -> None:
        batch = a_batch()
        (tmp_path / "other").mkdir()
        configure(storage_url=(tmp_path / "other").as_uri())
        validate.run(batch.id)
        with db.transaction() as session:
            row = session.get_one(Batch, batch.id)
            assert (row.status, row.lease_until, row.losses, row.errors) == (
                "validating",
                None,
                0,
                None,
            )
        configure(storage_url="")
        validate.run(batch.id)
        assert status(batch) == "in_progress"

    def test_a_disk_that_goes_in_mid_validation_is_waited_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = a_batch()
        read = reading.read
        with ExitStack() as away, monkeypatch.context() as patch:

            def go_and_read(*args: Any, **options: Any) -> reading.Reading:
                away.enter_context(unmounted())
                return read(*args, **options)

            patch.setattr(reading, "read", go_and_read)
            with pytest.raises(marks.Elsewhere, match="it holds no mark"):
                validate.run(batch.id)
        assert status(batch) == "validating"
        let_the_lease_end(batch)
        validate.run(batch.id)
        assert status(batch) == "in_progress"

    def test_a_disk_that_is_back_before_it_was_asked_about_is_no_loss(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = a_batch()
        read = reading.read

        def away(*args: Any, **options: Any) -> reading.Reading:
            with unmounted():
                return read(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(reading, "read", away)
            with pytest.raises(marks.Elsewhere, match="was away for a moment"):
                validate.run(batch.id)
        let_the_lease_end(batch)
        validate.run(batch.id)
        assert status(batch) == "in_progress"

    def test_a_file_that_is_really_gone_fails_its_batch(self) -> None:
        batch = a_batch()
        storage.delete(storage.key(batch.input_file_id))
        validate.run(batch.id)
        with db.transaction() as session:
            row = session.get_one(Batch, batch.id)
            assert row.status == "failed"
            assert row.errors is not None
            assert row.errors[0]["code"] == "file_not_found"


class TestRunning:
    def test_a_worker_that_sees_another_folder_claims_nothing(self, engine: Engine) -> None:
        batch = a_batch()
        validate.run(batch.id)
        with unmounted():
            engine.drain()
            with db.transaction() as session:
                (task,) = session.query(Task).where(Task.batch_id == batch.id)
                assert (task.state, task.fence, task.not_before) == ("pending", 0, None)

    def test_lines_of_a_batch_that_ends_are_not_named_lost_while_the_store_is_away(self) -> None:
        batch = a_batch()
        validate.run(batch.id)
        with db.transaction() as session:
            session.execute(
                update(Batch)
                .where(Batch.id == batch.id)
                .values(expires_at=text("now() - interval '1 second'"))
            )
        with unmounted(), pytest.raises(marks.Elsewhere):
            finalize.run(batch.id)
        let_the_lease_end(batch)
        finalize.run(batch.id)
        with db.transaction() as session:
            names = session.scalars(text("SELECT custom_id FROM results ORDER BY line_no")).all()
            assert (session.get_one(Batch, batch.id).status, names) == (
                BatchStatus.EXPIRED,
                ["0", "1"],
            )

    def test_another_installations_files_are_no_orphans(
        self, other: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sweeps.ORPHANS, "rest", 0.0)
        theirs = other / storage.key(uuid4())
        theirs.parent.mkdir()
        theirs.write_bytes(b"theirs")
        os.utime(theirs, (0, 0))
        recover.tick()
        assert theirs.read_bytes() == b"theirs"

    def test_a_file_is_not_erased_while_its_bytes_would_stay(self) -> None:
        batch = a_batch()
        with unmounted(), pytest.raises(marks.Elsewhere), db.transaction() as session:
            files.erase(session, session.get_one(File, batch.input_file_id))
        with db.transaction() as session:
            assert session.get_one(File, batch.input_file_id).deleted_at is None


class TestUploads:
    def test_while_the_store_is_away_nothing_is_taken(self, api: Api) -> None:
        kind, body = multipart(("purpose", None, b"batch"), ("file", "a", b"{}"))
        with unmounted() as folder:
            answer = api.ask("POST", "/v1/files", body, headers={"content-type": kind})
            assert (answer.status, answer.error["code"]) == (503, "service_unavailable")
            assert not list(folder.rglob("*/*"))
        assert api.ask("POST", "/v1/files", body, headers={"content-type": kind}).status == 200

    def test_a_disk_that_goes_while_bytes_arrive_is_told_before_the_file_counts(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = marks.confirm_kept

        def away(key: str) -> None:
            with unmounted():
                kept(key)

        kind, body = multipart(("purpose", None, b"batch"), ("file", "a", b"{}"))
        with monkeypatch.context() as patch:
            patch.setattr(marks, "confirm_kept", away)
            assert api.ask("POST", "/v1/files", body, headers={"content-type": kind}).status == 503
        assert api.ask("GET", "/v1/files").json["data"] == []


def a_worker(name: str, **sees: Any) -> None:
    with db.transaction() as session:
        workers.seen(session, name, **sees)


class TestTelling:
    def test_readyz_fails_while_the_store_is_away(self, api: Api) -> None:
        with unmounted() as folder:
            answer = api.ask("GET", "/readyz", key=None)
            assert (answer.status, answer.json["checks"]["storage"]["status"]) == (503, "failed")
            assert "does not see the store" in answer.json["checks"]["storage"]["error"]
            # A stranger may read this answer, so it has no path.
            assert str(folder) not in answer.body.decode()
        assert api.ask("GET", "/readyz", key=None).status == 200

    @pytest.mark.parametrize(
        ("sees", "told"),
        [
            ({"store": UUID(int=1)}, "worker far-host:17 does not see the store"),
            ({"store": None}, "worker far-host:17 does not see the store"),
            ({"catalog": "another"}, "worker far-host:17 has another catalog"),
        ],
    )
    def test_readyz_and_doctor_name_the_worker_that_differs(
        self,
        api: Api,
        doctor: Doctor,
        sees: dict[str, Any],
        told: str,
    ) -> None:
        sound = {"store": marks.identity(), "catalog": catalog.fingerprint()}
        a_worker("near-host:16:a", **sound)
        a_worker("far-host:17:b", **sound | sees)
        answer = api.ask("GET", "/readyz", key=None)
        assert (answer.status, answer.json["status"]) == (200, "degraded")
        assert told in answer.json["checks"]["workers"]["error"]
        assert "near-host" not in answer.body.decode()
        _, checks = doctor()
        assert checks["workers"]["status"] == "warning"
        assert told in checks["workers"]["detail"]

    def test_a_worker_of_an_older_version_is_left_out(self, api: Api) -> None:
        a_worker("old-host:1:c")
        assert api.ask("GET", "/readyz", key=None).json["status"] == "ok"

    def test_doctor_names_a_folder_that_is_not_the_store(self, doctor: Doctor, other: Path) -> None:
        code, checks = doctor()
        assert (code, checks["store mark"]["status"]) == (1, "failed")
        assert f"{other} is not the store of this database" in checks["store mark"]["detail"]

    def test_it_is_logged_once_when_the_store_goes_and_once_when_it_comes_back(self) -> None:
        with capture_logs() as events:
            with unmounted():
                for _ in range(3):
                    marks._is_here.cache_clear()
                    assert not marks.is_here()
            for _ in range(3):
                marks._is_here.cache_clear()
                assert marks.is_here()
        assert [event["event"] for event in events] == ["store.elsewhere", "store.here"]


class TestStorageMark:
    def test_a_worker_sees_the_mark(self) -> None:
        assert process.StorageMark().mark == marks.identity()

    def test_a_disk_that_hangs_does_not_hold_up_the_poll(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        released, asked = threading.Event(), []

        def hang(key: str | None) -> tuple[UUID | None, bool]:
            asked.append(key)
            released.wait()
            return marks.identity(), False

        monkeypatch.setattr(storage, "look", hang)
        monkeypatch.setattr(process, "FIRST_MARK_TIMEOUT", 0.01)
        seen = process.StorageMark()
        try:
            assert [seen.mark for _ in range(3)] == [None] * 3
            assert len(asked) == 1
        finally:
            released.set()
        seen._thread.shutdown(wait=True)
