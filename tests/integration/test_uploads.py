"""Uploads in parts as a sweep and a crash leave them."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from tests import factories
from xalen_batch import db, files, ids, storage, uploads
from xalen_batch.accounts import quotas
from xalen_batch.accounts.accounts import Caller
from xalen_batch.accounts.quotas import Quota
from xalen_batch.errors import UploadBusy
from xalen_batch.models import Upload, UploadPart
from xalen_batch.pipeline import sweeps
from xalen_batch.states import UploadStatus

PARTS = (b"one", b"two")


@pytest.fixture
def caller(database: str) -> Caller:
    with db.transaction() as session:
        return factories.caller(session)


@pytest.fixture(autouse=True)
def every_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps.ORPHANS, "rest", 0.0)


def begin(caller: Caller) -> str:
    with db.transaction() as session:
        upload = uploads.create(
            session, caller, size=6, purpose="batch", filename="a.jsonl", mime_type="txt"
        )
        return ids.render("upload", upload.id)


def add(caller: Caller, upload: str, content: bytes) -> str:
    id = ids.new()
    obstore.put(storage.store(), storage.part_key(id), content)
    with db.transaction() as session:
        uploads.add_part(session, caller, upload, id=id, size=len(content), sha256=content)
    return ids.render("part", id)


def path_of(part: str) -> Path:
    return storage.folder() / "parts" / part.removeprefix("part_")


def of(caller: Caller, upload: str) -> Upload:
    with db.reading() as session:
        return uploads.get(session, caller, upload)


def move_back(upload: str, by: timedelta) -> None:
    """Let an upload have expired this long ago."""
    with db.transaction() as session:
        session.execute(
            update(Upload)
            .where(Upload.id == ids.parse("upload", upload))
            .values(expires_at=func.now() - by)
        )


def held(caller: Caller) -> tuple[int, int, int]:
    with db.reading() as session:
        found = quotas.held(session, caller)
    return found[Quota.PENDING_UPLOADS], found[Quota.FILES], found[Quota.STORAGE_BYTES]


def test_the_sweep_ends_an_upload_whose_hour_is_over(caller: Caller) -> None:
    over, young = begin(caller), begin(caller)
    parts = [add(caller, over, part) for part in PARTS]
    kept = add(caller, young, PARTS[0])
    assert held(caller) == (2, 2, 12)
    move_back(over, timedelta(seconds=1))
    sweeps.UPLOADS.run()
    assert (of(caller, over).status, of(caller, young).status) == ("expired", "pending")
    assert [path_of(part).exists() for part in (*parts, kept)] == [False, False, True]
    assert held(caller) == (1, 1, 6)
    with db.reading() as session:
        assert session.scalars(select(UploadPart.id)).all() == [ids.parse("part", kept)]


def test_the_sweep_clears_what_a_crash_behind_the_commit_left(caller: Caller) -> None:
    upload = begin(caller)
    parts = [add(caller, upload, part) for part in PARTS]
    # The process dies before `clear`.
    uploads.complete(caller, upload, parts, None)
    move_back(upload, timedelta(seconds=1))
    sweeps.UPLOADS.run()
    found = of(caller, upload)
    assert (found.status, found.is_cleared) == ("completed", True)
    assert not any(path_of(part).exists() for part in parts)
    again = uploads.complete(caller, upload, parts, None)
    assert again.file.id == found.file_id
    assert held(caller) == (0, 1, 6)


def test_a_clearing_that_broke_off_goes_on(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = begin(caller)
    parts = [add(caller, upload, part) for part in PARTS]
    move_back(upload, timedelta(seconds=1))
    delete = storage.delete

    def break_off(key: str) -> None:
        delete(key)
        if key.startswith("parts/"):
            raise OSError("the process died here")

    with monkeypatch.context() as broken:
        broken.setattr(storage, "delete", break_off)
        sweeps.UPLOADS.run()
    assert (of(caller, upload).status, of(caller, upload).is_cleared) == ("expired", False)
    sweeps.UPLOADS.run()
    assert of(caller, upload).is_cleared
    assert not any(path_of(part).exists() for part in parts)


def test_one_upload_that_cannot_be_cleared_does_not_stop_the_next(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = begin(caller), begin(caller)
    part = add(caller, bad, PARTS[0])
    for upload, seconds in ((bad, 2), (good, 1)):
        move_back(upload, timedelta(seconds=seconds))

    def fail(key: str) -> None:
        raise OSError("this object cannot be deleted")

    monkeypatch.setattr(storage, "delete", fail)
    sweeps.UPLOADS.run()
    assert (of(caller, bad).is_cleared, of(caller, good).is_cleared) == (False, True)
    assert path_of(part).exists()


def test_an_upload_that_is_joined_does_not_expire_meanwhile(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(caller)
    parts = [add(caller, upload, part) for part in PARTS]
    write = storage.write
    seen: list[object] = []

    def slow(key: str, chunks: object) -> None:
        move_back(upload, timedelta(seconds=1))
        sweeps.UPLOADS.run()
        seen.append(of(caller, upload).status)
        write(key, chunks)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "write", slow)
    assert uploads.complete(caller, upload, parts, None).upload.status == "completed"
    assert seen == ["pending"]


def test_a_part_without_a_row_goes_when_it_is_old(caller: Caller) -> None:
    orphan = ids.render("part", ids.new())
    upload = begin(caller)
    known = add(caller, upload, PARTS[0])
    path_of(orphan).write_bytes(b"x")
    cut_off = path_of(orphan).with_name(path_of(orphan).name + "#1")
    cut_off.write_bytes(b"x")
    sweeps.ORPHANS.run()
    assert path_of(orphan).exists()
    then = time.time() - 7 * 3600
    for path in (path_of(orphan), cut_off, path_of(known)):
        os.utime(path, (then, then))
    sweeps.ORPHANS.run()
    assert [path.exists() for path in (path_of(orphan), cut_off, path_of(known))] == [
        False,
        False,
        True,
    ]


def test_a_join_that_fails_leaves_no_file(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = begin(caller)
    parts = [add(caller, upload, part) for part in PARTS]
    before = set((storage.folder() / "input").glob("*"))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no row")

    with monkeypatch.context() as broken:
        broken.setattr(files, "create", fail)
        with pytest.raises(RuntimeError):
            uploads.complete(caller, upload, parts, None)
    assert set((storage.folder() / "input").glob("*")) == before
    assert of(caller, upload).status == "pending"
    assert held(caller) == (1, 1, 6)
    # After an error of the database the commit may have succeeded: its bytes are kept.
    real = db.transaction

    def lost(*_: object, **__: object) -> None:
        raise OperationalError("", None, Exception())

    with monkeypatch.context() as broken:
        broken.setattr(files, "create", lost)
        with pytest.raises(OperationalError):
            uploads.complete(caller, upload, parts, None)
    assert len(set((storage.folder() / "input").glob("*")) - before) == 1
    assert db.transaction is real
    uploads.complete(caller, upload, parts, None)


def test_old_rows_are_forgotten(caller: Caller) -> None:
    old, young = begin(caller), begin(caller)
    for upload in (old, young):
        move_back(upload, timedelta(seconds=1))
    sweeps.UPLOADS.run()
    move_back(old, uploads.KEPT + timedelta(seconds=1))
    sweeps.UPLOADS.run()
    with db.reading() as session:
        assert session.scalars(select(Upload.id)).all() == [ids.parse("upload", young)]


def test_an_upload_that_another_sweep_has_forgotten_is_over(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(caller)
    id = of(caller, upload).id
    move_back(upload, uploads.KEPT + timedelta(seconds=1))
    uploads.expire(id)
    end, forgotten = Upload.end, list[int]()

    def forget() -> None:
        with db.transaction() as session:
            forgotten.append(uploads.forget(session))

    def raced(self: Upload, session: Session, status: UploadStatus) -> bool:
        forget()
        return end(self, session, status)

    monkeypatch.setattr(Upload, "end", raced)
    uploads.expire(id)
    forget()
    uploads.expire(id)
    # The row is locked while it ends.
    assert forgotten == [0, 1]


def test_two_changes_of_one_upload_exclude_each_other_and_parts_do_not(caller: Caller) -> None:
    upload = begin(caller)
    with db.transaction() as session:
        uploads.cancel(session, caller, upload)
        with pytest.raises(UploadBusy):
            add(caller, upload, PARTS[0])
        session.rollback()
    with db.transaction() as one, db.transaction() as two:
        for session in (one, two):
            uploads._lock(session, of(caller, upload).id, is_shared=True)
        with db.transaction() as third, pytest.raises(UploadBusy):
            uploads.cancel(third, caller, upload)


def test_long_joins_keep_their_transaction_alive(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, configure: Callable[..., None]
) -> None:
    """PostgreSQL ends a transaction that rests; a statement now and then keeps it."""
    monkeypatch.setattr(uploads, "PING_EVERY", 0.0)
    upload = begin(caller)
    parts = [add(caller, upload, part) for part in PARTS]
    pinged = []
    refuse = uploads.disk.refuse_if_full
    monkeypatch.setattr(uploads.disk, "refuse_if_full", lambda: (pinged.append(1), refuse()))
    uploads.complete(caller, upload, parts, None)
    # Once before the join, and once behind each chunk.
    assert len(pinged) == 3
