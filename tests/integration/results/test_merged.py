"""Merged results: each line once, in the order of the first input, with its last result."""

import json

import pytest
from sqlalchemy import delete

from tests import factories, ran
from tests.conftest import as_owner
from tests.ran import BUSY, answered
from xalen_batch import db, files, ids
from xalen_batch.accounts.accounts import Owner
from xalen_batch.batches import batches, retries
from xalen_batch.errors import NotFound
from xalen_batch.models import Batch, Result
from xalen_batch.pipeline import validate
from xalen_batch.results import merged, results
from xalen_batch.states import LineError

pytestmark = pytest.mark.usefixtures("database", "valkey")

ENDINGS = {
    "one": answered("first"),
    "two": BUSY,
    "three": LineError.REQUEST_TIMEOUT,
    "four": answered("first"),
    "five": BUSY,
    "six": None,
}


def owner_of(batch: Batch) -> Owner:
    return Owner(batch.account_id, batch.livemode)


def retried(batch: Batch, *codes: str) -> Batch:
    """A retry whose lines have not run."""
    with db.transaction() as session:
        name = ids.render("batch", batch.id)
        made = retries.create(session, owner_of(batch), name, codes=codes or None)
    validate.run(made.id)
    return made


def found(batch: Batch) -> merged.Merged:
    with db.reading() as session:
        return merged.of(session, owner_of(batch), ids.render("batch", batch.id))


def read(batch: Batch) -> list[tuple[str, str]]:
    """Each line's custom id, with the text of its answer, or its code."""
    lines = [json.loads(line) for line in b"".join(found(batch).content.chunks()).splitlines()]
    return [(line["custom_id"], _said(line)) for line in lines]


def _said(line: dict) -> str:
    if line["response"] is None:
        return line["error"]["code"]
    body = line["response"]["body"]
    return body["text"] if "text" in body else body["error"]["code"]


@pytest.mark.parametrize("is_sealed", [False, True])
def test_the_last_result_of_each_line_counts_also_that_of_a_retry_of_a_retry(
    is_sealed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged, "CHUNK_BYTES", 300)
    first = ran.ended(ENDINGS)
    busy = ran.end(retried(first, "http_503").id, {"two": answered("again"), "five": BUSY})
    others = ran.end(retried(first).id, {"three": LineError.WORKER_LOST, "six": answered("again")})
    third = ran.end(retried(busy).id, {"five": answered("third")})
    if is_sealed:
        for batch in (first, busy, others, third):
            ran.sealed(batch)
        with as_owner() as session:
            session.execute(delete(Result))
    assert read(first) == [
        ("one", "first"),
        ("two", "again"),
        ("three", "worker_lost"),
        ("four", "first"),
        ("five", "third"),
        ("six", "again"),
    ]
    assert read(busy) == [("two", "again"), ("five", "third")]
    assert found(first).is_complete
    # Two of the first, and of the retries two, two and one: bytes of each are counted.
    assert found(first).content.files == 7


def test_a_line_of_a_retry_keeps_its_bytes() -> None:
    first = ran.ended({"one": BUSY})
    again = ran.end(retried(first).id, {"one": answered("\u2028 Grüße")})
    whole = b"".join(found(first).content.chunks())
    assert whole == b"".join(found(again).content.chunks())
    assert whole.startswith(f'{{"id":"batch_req_{again.id.hex}000001"'.encode())


def test_until_a_line_of_the_retry_has_ended_its_first_result_stands() -> None:
    first = ran.ended(ENDINGS)
    open_retry = retried(first)
    assert [said for _, said in read(first)] == [
        "first",
        "busy",
        "request_timeout",
        "first",
        "busy",
        "batch_cancelled",
    ]
    assert not found(first).is_complete
    ran.end(open_retry.id, {"three": answered("again")})
    assert read(first)[2] == ("three", "again")
    # The others were cancelled with the retry: that is their last result.
    assert read(first)[1] == ("two", "batch_cancelled")
    assert found(first).is_complete


def test_a_batch_without_retries_has_its_lines_merged() -> None:
    first = ran.ended(ENDINGS)
    assert [name for name, _ in read(first)] == list(ENDINGS)
    running = ran.submitted([factories.chat_line("one")])
    assert read(running) == []
    assert not found(running).is_complete


def test_long_lines_and_chunks_that_end_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "PIECE_BYTES", 100)
    monkeypatch.setattr(results, "PAGE_BYTES", 250)
    monkeypatch.setattr(merged, "MiB", 1_000)
    endings = {f"n{n}": answered("x" * (n * 97 % 1_500)) for n in range(1, 30)} | {"last": BUSY}
    first = ran.ended(endings)
    pieces = list(found(first).content.chunks())
    assert max(map(len, pieces)) <= 1_000
    assert [name for name, _ in read(first)] == list(endings)


def test_results_that_were_deleted_are_not_found() -> None:
    first = ran.ended(ENDINGS)
    again = ran.end(retried(first).id, {"two": answered()})
    with db.transaction() as session:
        batch = batches.get(session, owner_of(first), ids.render("batch", again.id))
        assert batch.output_file_id is not None
        files.delete(session, owner_of(first), ids.render("file", batch.output_file_id))
    with pytest.raises(NotFound, match=ids.render("file", batch.output_file_id)):
        found(first)
