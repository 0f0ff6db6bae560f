"""A dump of the database and a copy of the folder from different moments, with sealed batches.

docs/operating.md says what each of them loses.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen
from uuid import UUID

import openai
import pytest
from openai.types import Batch

from tests.e2e import processes, stack
from tests.e2e.stack import Stack
from xalen_batch.billing import reconcile
from xalen_batch.pipeline.sweeps import ORPHAN_AFTER

LINES = 40
DROP = "SELECT drop_sealed_results(now() + interval '30 days')"


@pytest.fixture
def services() -> Iterator[Stack]:
    with stack.running() as running:
        yield running


class Ended(NamedTuple):
    """A batch that has ended, the bytes of its output file, and its invoice."""

    batch: Batch
    content: bytes
    invoice: dict[str, Any]

    @classmethod
    def of(cls, services: Stack, batch: Batch, status: str = "completed") -> "Ended":
        ended = services.wait_for(batch, lambda b: b.status == status, timeout=120)
        assert ended.output_file_id is not None
        client = services.client()
        content = client.files.content(ended.output_file_id).content
        return cls(ended, content, client.get(f"/batches/{batch.id}/invoice", cast_to=dict))

    @property
    def file_id(self) -> str:
        return str(self.batch.output_file_id)

    @property
    def object(self) -> str:
        """The key of the object of its output file."""
        return f"output/{UUID(hex=self.file_id.removeprefix('file-')).hex}"


def submit(services: Stack) -> Ended:
    return Ended.of(services, services.submit(LINES))


def expire(services: Stack, batch: Batch) -> None:
    with services.direct() as session:
        id = batch.id.removeprefix("batch_")
        session.execute("UPDATE batches SET expires_at = now() WHERE id = %s", [id])


def wait_until_sealed(services: Stack, *batches: Ended) -> None:
    ids = [one.batch.id.removeprefix("batch_") for one in batches]
    with services.direct() as session:
        unsealed = "SELECT FROM batches WHERE id = ANY(%s::uuid[]) AND sealed_at IS NULL"
        processes.wait_until(
            lambda: not session.execute(unsealed, [ids]).fetchall(),
            log=services.folder / "worker.log",
        )


def drop_rows(services: Stack) -> None:
    """Drop the rows of sealed batches as if it were next month."""
    with services.direct() as session:
        while session.execute(DROP).fetchone() != (None,):
            pass
        assert session.execute("SELECT count(*) FROM results").fetchone() == (0,)


def files_of(services: Stack) -> Path:
    return Path(str(services.settings["data_dir"])) / "files"


def copied(services: Stack, name: str) -> Path:
    """A copy of the folder of the files, as a data folder of its own."""
    shutil.copytree(files_of(services), services.folder / name / "files")
    return services.folder / name


def raw(services: Stack, file_id: str, **headers: str) -> bytes:
    request = Request(
        f"{services.address}/v1/files/{file_id}/content",
        headers={"authorization": f"Bearer {services.key}", **headers},
    )
    with urlopen(request, timeout=60) as answer:
        content: bytes = answer.read()
        return content


def has_logged(services: Stack, event: str, *words: str) -> bool:
    """Whether the API or the worker has logged an event with these words."""
    logs = [services.folder / f"{name}.log" for name in ("api", "worker")]
    return any(
        event in line and all(word in line for word in words)
        for log in logs
        for line in log.read_text("utf-8", "replace").splitlines()
    )


def is_lost(services: Stack, one: Ended) -> bool:
    """Whether a client is told to come back later, and the log names the file."""
    answer = services.ask("GET", f"/v1/files/{one.file_id}/content")
    return answer.is_come_back_later and has_logged(services, "file.lost", one.file_id)


def lost_files(services: Stack) -> set[str]:
    """The files that `reconcile` names."""
    ran = processes.run("reconcile", "--files", "--json", env=services.env())
    found = json.loads(ran.stdout)["data"]
    assert ran.returncode == bool(found)
    assert {one["what"] for one in found} <= {"object of the file"}
    return {one["where"] for one in found}


def assert_books(services: Stack, *batches: Ended) -> None:
    """Assert that the invoices of these batches are as they were, and on the statement."""
    client = services.client()
    for one in batches:
        assert client.get(f"/batches/{one.batch.id}/invoice", cast_to=dict) == one.invoice
    month = client.get(f"/statements/{datetime.now(UTC):%Y-%m}", cast_to=dict)
    invoiced = {line.get("invoice_id") for line in month["lines"]}
    assert {one.invoice["id"] for one in batches} <= invoiced
    assert list(reconcile.differences(services.snapshot)) == []


def test_a_folder_older_than_the_dump_loses_the_answers_that_were_sealed_since(
    services: Stack,
) -> None:
    before = submit(services)
    wait_until_sealed(services, before)
    folder = copied(services, "older")
    since = submit(services)
    wait_until_sealed(services, since)
    running = services.submit_and_wait_for_some()
    dump = services.folder / "newer.dump"
    services.dump(dump)

    restored = services.restore(dump, "older_folder")
    restored.settings["data_dir"] = folder
    with restored.serving():
        client = restored.client()
        assert client.files.content(before.file_id).content == before.content
        # From its rows, while there are any.
        assert client.files.content(since.file_id).content == since.content
        assert raw(restored, since.file_id, range="bytes=5-99") == since.content[5:100]
        assert raw(restored, since.file_id, **{"accept-encoding": "zstd"}) == since.content
        # The lines that had not run wait for their file until the batch expires.
        expire(restored, running)
        ended = Ended.of(restored, running, "expired")
        counts = ended.batch.request_counts
        assert counts is not None
        assert 0 < counts.completed < counts.total == stack.LINES
        assert has_logged(restored, "file.lost", running.input_file_id)
        assert_books(restored, before, since, ended)
        wait_until_sealed(restored, ended)

        drop_rows(restored)
        assert client.files.content(before.file_id).content == before.content
        assert is_lost(restored, since)
        assert_books(restored, before, since)
        uploaded = {one.batch.input_file_id for one in (since, ended)}
        assert lost_files(restored) == {since.file_id} | uploaded
        # Once the object is restored, downloads have the answers again.
        shutil.copy(files_of(services) / since.object, files_of(restored) / since.object)
        assert client.files.content(since.file_id).content == since.content
        assert lost_files(restored) == uploaded


def test_a_folder_newer_than_the_dump_loses_nothing_that_was_not_deleted(services: Stack) -> None:
    before, deleted = submit(services), submit(services)
    wait_until_sealed(services, before, deleted)
    dump = services.folder / "older.dump"
    with services.direct() as holder, holder.transaction():
        # Its batch has ended and is not sealed when the dump is made.
        holder.execute("LOCK TABLE sealed_lines IN SHARE MODE")
        unsealed = submit(services)
        services.dump(dump)
    wait_until_sealed(services, unsealed)
    since = submit(services)
    wait_until_sealed(services, since)
    services.client().files.delete(deleted.file_id)
    folder = copied(services, "newer")
    long_ago = time.time() - ORPHAN_AFTER.total_seconds() - 60
    os.utime(folder / "files" / since.object, (long_ago, long_ago))
    young = UUID(hex=since.batch.input_file_id.removeprefix("file-")).hex

    restored = services.restore(dump, "newer_folder")
    restored.settings["data_dir"] = folder
    with restored.serving():
        client = restored.client()
        with pytest.raises(openai.NotFoundError):
            client.files.content(since.file_id)
        # Sealed again, over the object that is there.
        wait_until_sealed(restored, unsealed)
        for one in (before, unsealed, deleted):
            assert client.files.content(one.file_id).content == one.content
        assert_books(restored, before, unsealed, deleted)
        # Objects that the dump does not know go when they are old enough.
        processes.wait_until(
            lambda: has_logged(restored, "file.orphan_deleted", since.object),
            log=restored.folder / "worker.log",
        )
        assert not (folder / "files" / since.object).exists()
        assert (folder / "files" / "input" / young).exists()

        drop_rows(restored)
        for one in (before, unsealed):
            assert client.files.content(one.file_id).content == one.content
        # The dump does not know that it was deleted.
        assert is_lost(restored, deleted)
        assert lost_files(restored) == {deleted.file_id}
        client.files.delete(deleted.file_id)
        assert lost_files(restored) == set()
        assert_books(restored, before, unsealed, deleted)
