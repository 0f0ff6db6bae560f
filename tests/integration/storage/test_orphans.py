"""Objects without a file row, left by a crash: a sweep deletes them once they are old enough."""

import os
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import obstore
import pytest

from tests import factories
from xalen_batch import db, ids, storage
from xalen_batch.pipeline import recover, sweeps

# A process that dies in the middle of a multipart upload.
CUT_OFF = """
import asyncio, os, sys
from xalen_batch import storage
async def upload():
    async with storage.writer(sys.argv[1]) as out:
        for _ in range(12):
            await out.write(bytes(1024 * 1024))
        os._exit(9)
asyncio.run(upload())
"""


def age(path: Path, hours: float) -> None:
    then = time.time() - hours * 3600
    os.utime(path, (then, then))


def of(file_id: UUID) -> list[Path]:
    """All stored objects and parts of one file."""
    return sorted((storage.folder() / "input").glob(f"{file_id.hex}*"))


@pytest.fixture(autouse=True)
def every_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Walk at every tick, instead of once an hour."""
    monkeypatch.setattr(sweeps.ORPHANS, "rest", 0.0)


@pytest.fixture
def orphan(database: str) -> Path:
    id = ids.new()
    obstore.put(storage.store(), storage.key(id), b"{}")
    return storage.folder() / storage.key(id)


@pytest.fixture
def cut_off(database: str) -> UUID:
    id = ids.new()
    assert (
        subprocess.run([sys.executable, "-c", CUT_OFF, storage.key(id)], timeout=60).returncode == 9
    )
    assert len(of(id)) == 1
    return id


def test_an_upload_whose_row_was_never_made_goes_when_it_is_old(orphan: Path) -> None:
    recover.tick()
    assert orphan.exists()
    age(orphan, 7)
    recover.tick()
    assert not orphan.exists()


def test_an_upload_that_was_cut_off_goes_when_it_is_old(cut_off: UUID) -> None:
    recover.tick()
    assert len(of(cut_off)) == 1
    age(of(cut_off)[0], 7)
    recover.tick()
    assert of(cut_off) == []


def test_what_belongs_to_a_file_stays_however_old(database: str) -> None:
    with db.transaction() as session:
        file = factories.input_file(session, factories.caller(session), [factories.chat_line("a")])
    age(of(file.id)[0], 1000)
    recover.tick()
    assert len(of(file.id)) == 1
