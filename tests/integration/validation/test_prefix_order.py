"""Lines about the same document run one after the other, and are read by their offsets."""

import json
from uuid import UUID

import pytest
from sqlalchemy import insert, select

from tests import factories
from tests.factories import chat_line, rerank_line
from xalen_batch import db, jsonl, storage
from xalen_batch.batches import batches
from xalen_batch.endpoints.names import RERANK
from xalen_batch.models import Batch, Result, Task
from xalen_batch.models.files import FilePart
from xalen_batch.pipeline import finalize, validate
from xalen_batch.results import results
from xalen_batch.states import BatchStatus

pytestmark = pytest.mark.usefixtures("database", "valkey")

DOCUMENTS = {name: f"{name} is a long document. " * 100 for name in ("Ann", "Bob", "Cat")}
INTERLEAVED = [f"{name}-{n}" for n in range(8) for name in DOCUMENTS]
BY_DOCUMENT = [f"{name}-{n}" for name in DOCUMENTS for n in range(8)]


def a_batch(lines: list[dict], **columns: object) -> UUID:
    """A batch that is split and ready to run."""
    with db.transaction() as session:
        caller = factories.caller(session)
        batch_id = factories.batch(
            session, caller, factories.input_file(session, caller, lines), **columns
        ).id
    validate.run(batch_id)
    return batch_id


def about_documents() -> list[dict]:
    return [
        chat_line(custom_id, DOCUMENTS[custom_id[:3]] + f"Question {custom_id}?")
        for custom_id in INTERLEAVED
    ]


def run_order(batch_id: UUID) -> list[tuple[int, str]]:
    """Line number and custom_id of each line as workers get them: task by task, each read as a
    claim reads it.
    """
    with db.transaction() as session:
        batch = session.get_one(Batch, batch_id)
        tasks = session.scalars(
            select(Task).where(Task.batch_id == batch_id).order_by(Task.seq)
        ).all()
    found = []
    for task in tasks:
        assert task.seq == len(found)
        spans = list(jsonl.unpack(task.line_index))
        raws = storage.ranges(
            storage.key(batch.input_file_id),
            [span.offset for span in spans],
            [span.length for span in spans],
        )
        found += [
            (span.line_no, jsonl.input_line(raw).custom_id)
            for span, raw in zip(spans, raws, strict=True)
        ]
    return found


def read(batch_id: UUID, part: FilePart) -> list[str]:
    return [
        json.loads(line)["custom_id"]
        for line in b"".join(results.chunks(batch_id, part)).splitlines()
    ]


def test_lines_run_document_by_document_and_the_output_is_in_the_order_of_the_input() -> None:
    batch_id = a_batch(about_documents())
    ran = run_order(batch_id)
    assert [custom_id for _, custom_id in ran] == BY_DOCUMENT
    for line_no, custom_id in ran:
        row = {"batch_id": batch_id, "line_no": line_no, "custom_id": custom_id, "model": "m"}
        with db.transaction() as session:
            session.execute(insert(Result), row | {"status_code": 200, "body": b"{}", "amount": 0})
    assert read(batch_id, FilePart.OUTPUT) == INTERLEAVED


def test_what_never_ran_is_listed_in_the_order_of_the_input() -> None:
    batch_id = a_batch(about_documents())
    with db.transaction() as session:
        batches.cancel(session, session.get_one(Batch, batch_id))
    finalize.run(batch_id)
    with db.transaction() as session:
        assert session.get_one(Batch, batch_id).status == BatchStatus.CANCELLED
    assert read(batch_id, FilePart.ERROR) == INTERLEAVED


def test_a_rerankers_lines_run_in_the_order_of_the_input() -> None:
    query = DOCUMENTS["Ann"][:300]
    lines = [rerank_line(str(n), query if n % 2 else query[::-1]) for n in range(6)]
    assert [line_no for line_no, _ in run_order(a_batch(lines, endpoint=RERANK))] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


def test_a_chat_with_a_reranker_runs_in_the_order_of_the_input() -> None:
    asked = [
        json.dumps({"query": DOCUMENTS[name], "documents": [name]}) for name in ("Ann", "Bob") * 2
    ]
    lines = [
        chat_line(str(n), content, model=factories.RERANK_MODEL) for n, content in enumerate(asked)
    ]
    assert [line_no for line_no, _ in run_order(a_batch(lines))] == [1, 2, 3, 4]
