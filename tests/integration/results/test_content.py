"""Content: what a download sends when an object is not there."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, text, update
from structlog.testing import capture_logs

from tests.billing import REFUSED, Ran, ended
from tests.conftest import as_owner
from tests.waiting import wait_until
from xalen_batch import db, storage
from xalen_batch.billing.reconcile import FIRST
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import File
from xalen_batch.pipeline import seal
from xalen_batch.results import content
from xalen_batch.results.content import Stored

pytestmark = pytest.mark.usefixtures("database", "valkey")


@pytest.fixture
def file() -> File:
    """The output file of a sealed batch, whose object is lost."""
    batch = ended([Ran(Usage(1, 2)), Ran(REFUSED), Ran(Usage(3, 4))])
    seal.run()
    with db.transaction() as session:
        found = session.get_one(File, batch.output_file_id)
    storage.delete(storage.output_key(found.id))
    return found


@pytest.fixture
def whole(file: File) -> bytes:
    """Its content, rendered from the rows."""
    assert file.batch_id is not None
    return b"".join(content._rows(file))


def read(file: File, *span: Any) -> bytes:
    found = content.of(file)
    assert isinstance(found, Stored)
    return b"".join(found.chunks(*(span or (0, file.size))))


def test_lines_come_from_rows_while_they_are_there(file: File, whole: bytes) -> None:
    assert len(whole) == file.size
    with capture_logs() as logs:
        assert read(file) == whole
        assert read(file, 10, 200) == whole[10:200]
        assert read(file, file.size - 3, file.size) == whole[-3:]
    assert {(entry["event"], entry["file_id"]) for entry in logs} == {("file.lost", file.id)}


def test_without_rows_it_is_not_there(file: File) -> None:
    with as_owner() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text("DELETE FROM results"))
    with pytest.raises(FileNotFoundError):
        read(file)


def test_a_store_that_is_away_has_lost_nothing(
    file: File, configure: Callable[..., None], tmp_path: Path
) -> None:
    configure(storage_url=tmp_path.as_uri())
    with pytest.raises(OSError, match="store"), capture_logs() as logs:
        read(file)
    assert logs == []


def test_without_its_object_no_compressed_form_is_there(file: File) -> None:
    found = content.of(file)
    assert isinstance(found, Stored)
    assert found.zstd is not None
    assert not found.zstd.is_there()


class TestLook:
    def test_names_files_whose_object_is_lost(self, file: File) -> None:
        looked = content.look(FIRST)
        assert looked is not None
        assert looked.lost == {file.id: file.size}
        assert content.look(looked.last) is None

    def test_walks_through_all_files(self, file: File, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(content, "FILES_AT_ONCE", 1)
        number, lost, after = 0, {}, FIRST
        while looked := content.look(after):
            number, after = number + looked.number, looked.last
            lost |= looked.lost
        # The input file, the output and the error file.
        assert (number, lost) == (3, {file.id: file.size})

    def test_leaves_out_deleted_files_and_those_that_are_rows(self, file: File) -> None:
        ended([Ran(Usage(1, 2))])
        with db.transaction() as session:
            session.get_one(File, file.id).deleted_at = func.now()
        looked = content.look(FIRST)
        assert looked is not None
        assert looked.lost == {}

    def test_waits_for_a_deletion_that_has_not_committed(self, file: File) -> None:
        with ThreadPoolExecutor(1) as pool, db.transaction() as session:
            session.execute(update(File).where(File.id == file.id).values(deleted_at=func.now()))
            looking = pool.submit(content.look, FIRST)
            waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            wait_until(lambda: session.scalar(waits))
            session.commit()
            looked = looking.result()
        assert looked is not None
        assert looked.lost == {}

    def test_a_store_that_is_away_has_lost_nothing(
        self, file: File, configure: Callable[..., None], tmp_path: Path
    ) -> None:
        configure(storage_url=tmp_path.as_uri())
        with pytest.raises(OSError, match="store"):
            content.look(FIRST)
