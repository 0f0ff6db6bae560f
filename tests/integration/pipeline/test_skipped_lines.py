"""`on_invalid: skip`: the good lines run, and the invalid ones end in the error file."""

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
from sqlalchemy import select

from tests import factories
from tests.factories import RERANK_MODEL, chat_line
from tests.outcome import assert_whole
from xalen_batch import db, ids
from xalen_batch.accounts import quotas
from xalen_batch.accounts.quotas import Quota
from xalen_batch.backends.contract import Answered
from xalen_batch.batches import batches
from xalen_batch.billing import invoices
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Batch, File, Schedule
from xalen_batch.models.files import FilePart
from xalen_batch.pipeline import claim, finalize, record, validate
from xalen_batch.results import results
from xalen_batch.schedules import manual, preflight
from xalen_batch.schedules.definition import Definition
from xalen_batch.states import TaskState
from xalen_batch.validation import read as reading

pytestmark = pytest.mark.usefixtures("database", "valkey")

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
TYPO = chat_line("typo", messages=[{"role": "usr", "content": "Hello"}])


def submit(lines: list[bytes], **columns: object) -> UUID:
    """A batch that skips invalid lines, validated."""
    with db.transaction() as session:
        caller = factories.caller(session)
        file = factories.input_file(session, caller, b"\n".join(lines))
        id = factories.batch(session, caller, file, **{"on_invalid": "skip", **columns}).id
    validate.run(id)
    return id


def read(id: UUID) -> Batch:
    with db.transaction() as session:
        return session.get_one(Batch, id)


def raw(line: dict[str, object]) -> bytes:
    return json.dumps(line).encode()


def run(id: UUID) -> Batch:
    """Answer every line that runs, and end the batch."""
    while (held := claim.claim([], with_suspects=True)) is not None:
        lines = [
            record.LineRef(id, line.line_no, held.model, line.custom_id) for line in held.lines
        ]
        rows = [
            record.row(line, Answered(200, b"{}", Usage(1_000, 500)), held.tariff) for line in lines
        ]
        record.record(held.key, held.fence, rows, to=TaskState.DONE)
    finalize.run(id)
    return assert_whole(id)


def errors(id: UUID) -> list[dict]:
    return [json.loads(line) for line in b"".join(results.chunks(id, FilePart.ERROR)).splitlines()]


MIXED = [
    raw(chat_line("good")),
    raw(TYPO),
    b"{broken",
    raw(chat_line("good")),
    b'{"custom_id": "latin \xe9"}',
    b"",
    raw(chat_line("line-3", "later than the line that would be called so")),
    raw(chat_line("url")).replace(b"/v1/chat/completions", b"/v1/other"),
    raw(chat_line("no body") | {"body": None}),
    raw(chat_line("bad\u2028id", temperature=3)),
    raw({"custom_id": 7}),
]


def test_good_lines_run_and_invalid_ones_end_in_the_error_file_unbilled() -> None:
    id = submit(MIXED)
    batch = read(id)
    assert (batch.status, batch.total, batch.errors) == ("in_progress", 10, None)
    early = errors(id)
    with db.transaction() as session:
        progress = batches.progress(session, [batch])[id]
        assert (progress.total, progress.completed, progress.failed) == (10, 0, 8)
        owner = factories.Owner(batch.account_id, batch.livemode)
        assert quotas.held(session, owner)[Quota.ENQUEUED_LINES] == 2
    ended = run(id)
    assert (ended.status, ended.completed, ended.failed, ended.cancelled) == ("completed", 2, 8, 0)
    found = errors(id)
    assert found == early
    assert [(line["custom_id"], line["error"]["code"]) for line in found] == [
        ("typo", "invalid_request"),
        ("line-3-2", "invalid_json_line"),
        ("line-4", "duplicate_custom_id"),
        ("line-5", "invalid_encoding"),
        ("url", "url_mismatch"),
        ("no body", "missing_required_parameter"),
        ("bad\u2028id", "invalid_request"),
        ("line-11", "invalid_custom_id"),
    ]
    assert all(line["response"] is None for line in found)
    assert found[0]["error"]["message"].startswith("body.messages[0].role: 'usr' is not a role.")
    with db.transaction() as session:
        assert session.get_one(File, ended.error_file_id).size == len(
            b"".join(results.chunks(id, FilePart.ERROR))
        )
        listed = [
            line for line in invoices.of_batch(session, ended).lines if line.kind == "not_billed"
        ]
    assert {line.reason: int(line.quantity) for line in listed} == {
        "invalid_request": 2,
        **dict.fromkeys(
            ("invalid_json_line", "duplicate_custom_id", "invalid_encoding", "url_mismatch"), 1
        ),
        **dict.fromkeys(("missing_required_parameter", "invalid_custom_id"), 1),
    }
    assert {(line.model, line.amount) for line in listed} == {(None, 0)}


def test_cancelling_leaves_invalid_lines_failed_and_the_others_cancelled() -> None:
    id = submit([raw(chat_line("a")), raw(TYPO)])
    with db.transaction() as session:
        batches.cancel(session, session.get_one(Batch, id))
    finalize.run(id)
    ended = assert_whole(id, 2)
    assert (ended.status, ended.failed, ended.cancelled) == ("cancelled", 1, 1)


def test_a_file_without_a_good_line_fails() -> None:
    batch = read(submit([raw(TYPO), b"x"]))
    assert (batch.status, batch.total) == ("failed", 0)
    assert [error["line"] for error in batch.errors or ()] == [1, 2]
    assert errors(batch.id) == []


def test_a_fault_of_the_file_fails_all_the_same(configure) -> None:
    configure(max_batch_lines=2)
    many = read(submit([raw(TYPO), raw(chat_line("a")), raw(chat_line("b"))]))
    assert [error["code"] for error in many.errors or ()] == ["too_many_tasks"]
    priceless = submit(
        [raw(chat_line("a")), raw(TYPO)], price_snapshot={RERANK_MODEL: {"input": "0.003"}}
    )
    assert [error["code"] for error in read(priceless).errors or ()] == ["model_not_priced"]


def test_a_file_that_is_read_in_pieces_skips_the_same_lines(
    monkeypatch: pytest.MonkeyPatch, configure
) -> None:
    monkeypatch.setattr(reading, "LARGE_BYTES", 100)
    monkeypatch.setattr(reading, "PIECE_BYTES", 300)
    configure(validation_processes=1)
    id = submit(MIXED)
    assert (read(id).status, len(errors(id))) == ("in_progress", 8)


def test_a_schedule_takes_such_a_file_and_its_batch_skips() -> None:
    with db.transaction() as session:
        caller = factories.caller(session)
        mixed, bad = (
            factories.input_file(session, caller, lines) for lines in ([chat_line("a"), TYPO], b"")
        )
        schedule = factories.schedule(
            session, caller, input_file_id=ids.render("file", mixed.id), on_invalid="skip"
        )
        schedule_id = schedule.id
        # Without it, a process of the version before can read the definition.
        assert "on_invalid" not in factories.schedule(session, caller).definition
    definition = Definition.model_validate(schedule.definition)
    preflight.check(caller, definition, NOW)
    with pytest.raises(InvalidRequest, match="not a role"):
        preflight.check(caller, definition.model_copy(update={"on_invalid": "fail"}), NOW)
    with pytest.raises(InvalidRequest, match="no requests"):
        preflight.check(
            caller, definition.model_copy(update={"input_file_id": ids.render("file", bad.id)}), NOW
        )
    with db.transaction() as session:
        manual.run_now(session, session.get_one(Schedule, schedule_id))
        batch = session.scalars(select(Batch).where(Batch.schedule_id == schedule_id)).one()
    validate.run(batch.id)
    assert (read(batch.id).status, len(errors(batch.id))) == ("in_progress", 1)
