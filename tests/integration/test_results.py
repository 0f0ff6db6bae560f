"""Output lines: in input order, by part, in pages bounded by their bytes."""

import json
from uuid import UUID

import pytest
from sqlalchemy import insert

from tests import factories
from xalen_batch import db, results
from xalen_batch.models import Result
from xalen_batch.models.files import FilePart


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
    output = [json.loads(line) for line in results.lines(batch_id, FilePart.OUTPUT)]
    assert [line["custom_id"] for line in output] == ["line \u2028 2", "line \u2028 5", "line \u2028 7"]
    assert output[0]["response"]["body"] == {"n": "\0"}
    errors = [json.loads(line) for line in results.lines(batch_id, FilePart.ERROR)]
    assert [line["response"] and line["response"]["status_code"] for line in errors] == [400, None]
    assert errors[1]["error"] == {"code": "batch_expired", "message": "too late"}
    assert len(list(results.lines(batch_id, FilePart.OUTPUT, after=5))) == 1


def test_pages_are_bounded_by_bytes_and_leave_no_line_out(batch_id: UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "PAGE_BYTES", 1_000)
    monkeypatch.setattr(results, "PAGE_ROWS", 40)
    sizes = [10, 5_000, 400, 400, 400, 2, 3_000, *[20] * 100]
    record(batch_id, {n: b'"' + b"x" * size + b'"' for n, size in enumerate(sizes, start=1)})
    pages = [page.splitlines(keepends=True) for page in results.chunks(batch_id, FilePart.OUTPUT)]
    lines = [line for page in pages for line in page]
    assert lines == list(results.lines(batch_id, FilePart.OUTPUT))
    assert len(lines) == len(sizes)
    for page in pages:
        bodies = [len(json.loads(line)["response"]["body"]) + 2 for line in page]
        assert sum(bodies[:-1]) < 1_000
        assert len(page) <= 40
