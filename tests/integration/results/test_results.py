"""Output lines: in input order, by part, in pages bounded by their bytes."""

import json
from uuid import UUID

import pytest
from sqlalchemy import insert, update

from tests import factories
from xalen_batch import db, jsonl
from xalen_batch.models import Result
from xalen_batch.models.files import FilePart
from xalen_batch.results import results


@pytest.fixture
def batch_id(database: str) -> UUID:
    with db.transaction() as session:
        caller = factories.caller(session)
        return factories.batch(session, caller, factories.input_file(session, caller, b"{}")).id


def record(batch_id: UUID, bodies: dict[int, bytes], *, status: int | None = 200) -> None:
    with db.transaction() as session:
        rows = [
            {
                "batch_id": batch_id,
                "line_no": line_no,
                "status_code": status,
                "amount": 1 if status == 200 else None,
                "model": "m",
                "custom_id": f"line \u2028 {line_no}",
                "body": body if status else None,
                "error_code": None if status else "batch_expired",
                "error_message": None if status else "too late",
            }
            for line_no, body in bodies.items()
        ]
        session.execute(insert(Result), rows)


def test_lines_come_in_input_order_however_they_were_recorded(batch_id: UUID) -> None:
    for line_no in (7, 2, 5):
        record(batch_id, {line_no: b'{"n":"\\u0000"}'})
    record(batch_id, {3: b'{"error":{}}'}, status=400)
    record(batch_id, {4: b""}, status=None)
    output = [json.loads(line) for line in lines(batch_id, FilePart.OUTPUT)]
    assert [line["custom_id"] for line in output] == [
        "line \u2028 2",
        "line \u2028 5",
        "line \u2028 7",
    ]
    assert output[0]["response"]["body"] == {"n": "\0"}
    errors = [json.loads(line) for line in lines(batch_id, FilePart.ERROR)]
    assert [line["response"] and line["response"]["status_code"] for line in errors] == [400, None]
    assert errors[1]["error"] == {"code": "batch_expired", "message": "too late"}


def lines(batch_id: UUID, part: FilePart) -> list[bytes]:
    return b"".join(results.chunks(batch_id, part)).splitlines(keepends=True)


def answer(size: int) -> bytes:
    """A JSON string of `size` characters, different for each call."""
    return json.dumps("".join(chr(ord("a") + (size + n) % 26) for n in range(size))).encode()


def test_chunks_are_bounded_by_bytes_and_leave_no_line_out(
    batch_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "PAGE_BYTES", 1_000)
    monkeypatch.setattr(results, "PIECE_BYTES", 600)
    monkeypatch.setattr(results, "PAGE_ROWS", 40)
    # 598 and two quotes are exactly a piece; 1,798 exactly three.
    sizes = [10, 5_000, 400, 400, 400, 2, 598, 599, 1_798, 3_000, *[20] * 100, 2_000]
    record(batch_id, {n: answer(size) for n, size in enumerate(sizes, start=1)})
    chunks = list(results.chunks(batch_id, FilePart.OUTPUT))
    written = [json.loads(line) for line in b"".join(chunks).splitlines()]
    assert [line["response"]["body"].encode() for line in written] == [
        answer(size)[1:-1] for size in sizes
    ]
    frame = len(jsonl.result_line(batch_id, 1, "line \u2028 100", 200, b"", None, None))
    for chunk in chunks:
        assert len(chunk) <= 1_000 + frame * max(1, chunk.count(b"\n"))
        assert chunk.count(b"\n") <= 40


def test_a_long_answer_is_the_same_bytes_in_pieces_as_whole(
    batch_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, status in ((FilePart.OUTPUT, 200), (FilePart.ERROR, 400)):
        body = answer(3 * results.PIECE_BYTES + 1)
        record(batch_id, {status: body}, status=status)
        chunks = list(results.chunks(batch_id, part))
        assert len(chunks) == 4
        assert b"".join(chunks) == jsonl.result_line(
            batch_id, status, f"line \u2028 {status}", status, body, None, None
        )


def test_a_line_recorded_by_an_older_process_keeps_the_bytes_that_were_counted(
    batch_id: UUID,
) -> None:
    record(batch_id, {1: b'{"text":"\xe2\x80\xa8"}'})
    (line,) = lines(batch_id, FilePart.OUTPUT)
    assert line.count("\u2028".encode()) == 2
    assert len(line) == jsonl.result_size(
        1, "line \u2028 1", 200, b'{"text":"\xe2\x80\xa8"}', None, None
    )


def test_an_answer_that_is_erased_while_it_is_read_breaks_the_file_off(batch_id: UUID) -> None:
    record(batch_id, {1: answer(2 * results.PIECE_BYTES)})
    chunks = results.chunks(batch_id, FilePart.OUTPUT)
    next(chunks)
    with db.transaction() as session:
        session.execute(update(Result).values(body=None))
    with pytest.raises(FileNotFoundError, match="line 1"):
        next(chunks)
