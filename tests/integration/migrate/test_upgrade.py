"""An upgrade from the version before sealing: its data in every state, and its workers' statements.

`version_0016.sql` is what its processes left when they were killed; tests/e2e/test_upgrade.py runs
the processes themselves.
"""

import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import obstore
import psycopg
import pytest
from alembic import command
from sqlalchemy import NullPool, create_engine, func, select, text
from structlog.testing import capture_logs

from tests.integration.engines import bytes_of, run_to_end, running
from xalen_batch import db, ids, migrate, storage
from xalen_batch.billing import reconcile, sums
from xalen_batch.models import Batch, File, Invoice, Result, ScheduleRun
from xalen_batch.pipeline import seal, validate
from xalen_batch.schedules import fire
from xalen_batch.states import TERMINAL
from xalen_batch.storage import marks
from xalen_batch.worker.engine import Engine

DATA = Path(__file__).with_name("version_0016.sql")


class End(NamedTuple):
    """The end of a batch: its status and its counts."""

    status: str
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0


# By the state in which the version before left the batch.
ENDS = {
    "completed": End("completed", 2, 1),
    "completed too": End("completed", 2),
    "skipped": End("completed", 2, 2),
    "erased": End("completed", 2),
    "scheduled": End("completed", 1),
    "failed": End("failed"),
    "created": End("completed", 1),
    "scheduled now": End("completed", 1),
    "validating": End("completed", 2),
    "in progress": End("completed", 6),
    "finalizing": End("completed", 2),
    "cancelling": End("cancelled", 2, cancelled=2),
    "expiring": End("expired", 2, expired=2),
}
# The price of the answer to each line, and its tokens.
ANSWER = {"amount": Decimal("0.000001580"), "input_tokens": 8, "output_tokens": 75}

# Statements as the workers of the version before send them.
ADVANCE = text("""
    UPDATE tasks SET state='done', lease_until=NULL, not_before=NULL, completed=(tasks.completed + 1),
        input_tokens=(tasks.input_tokens + :input_tokens), output_tokens=(tasks.output_tokens + :output_tokens),
        output_bytes=(tasks.output_bytes + :bytes), error_bytes=(tasks.error_bytes + 0)
    FROM batches WHERE tasks.batch_id = :batch_id AND tasks.seq = :seq AND tasks.fence = :fence AND tasks.state = 'running'
        AND batches.id = tasks.batch_id RETURNING batches.status
""")
RESULT = text("""
    INSERT INTO results (batch_id, line_no, input_tokens, cached_tokens, output_tokens, reasoning_tokens, status_code,
        amount, model, custom_id, flag, error_code, error_message, is_escaped, body)
    SELECT :batch_id, :line_no, :input_tokens, 0, :output_tokens, 0, 200, :amount, model, 'line-' || :line_no, NULL, NULL,
        NULL, NULL, body
    FROM results WHERE batch_id = :batch_id AND line_no = 1
""")
SPLIT = [
    "UPDATE batches SET model='mistral-small-3-1', enqueued_tokens=142, total=2 WHERE batches.id = :batch_id",
    "INSERT INTO tasks (batch_id, seq, model, lines, line_index) VALUES (:batch_id, 0, 'mistral-small-3-1', 2,"
    " decode('010000000000000000000000a100000002000000a200000000000000a1000000', 'hex'))",
    "UPDATE batches SET status='in_progress', in_progress_at=now(), lease_until=NULL"
    " WHERE batches.id = :batch_id AND batches.status = 'validating'",
]
FINALIZE = [
    "SELECT id FROM batches WHERE batches.id = :batch_id FOR UPDATE",
    "UPDATE batches SET status='finalizing', finalizing_at=now(), lease_until=batches.lease_until"
    " WHERE batches.id = :batch_id AND batches.status = 'in_progress'",
    "INSERT INTO files (id, account_id, livemode, purpose, filename, bytes, sha256, batch_id, part, expires_at, deleted_at)"
    " SELECT :file_id, account_id, livemode, 'batch_output', 'output.jsonl', 1780, NULL, id, 'output',"
    " now() + interval '30 days', NULL FROM batches WHERE id = :batch_id",
    "UPDATE batches SET output_file_id=:file_id, completed=2, input_tokens=16, output_tokens=150 WHERE batches.id = :batch_id",
    "INSERT INTO invoices (id, account_id, livemode, batch_id, month, schedule_id, schedule_name, currency, total)"
    " SELECT :invoice_id, account_id, livemode, id, NULL, NULL, NULL, 'USD', 0.000003160 FROM batches WHERE id = :batch_id",
    "INSERT INTO invoice_lines (invoice_id, position, kind, description, model, component, quantity, unit_price, answered_by,"
    " amount) VALUES (:invoice_id, 1, 'usage', 'mistral-small-3-1, input tokens', 'mistral-small-3-1', 'input', 16, 0.02,"
    " 'simulated', 0.00000032), (:invoice_id, 2, 'usage', 'mistral-small-3-1, output tokens', 'mistral-small-3-1', 'output',"
    " 150, 0.04, 'simulated', 0.00000600)",
    "INSERT INTO invoice_lines (invoice_id, position, kind, description, unit_price, amount)"
    " VALUES (:invoice_id, 3, 'discount', 'Batch discount, 50 %', 0.5, -0.000003160)",
    "UPDATE batches SET failed=0, cancelled=0, expired=0, counted_input_tokens=0, counted_output_tokens=0"
    " WHERE batches.id = :batch_id",
    "UPDATE batches SET status='completed', completed_at=now(), lease_until=NULL"
    " WHERE batches.id = :batch_id AND batches.status = 'finalizing'",
]
ERASE = text(
    "UPDATE results SET body=NULL WHERE results.batch_id = :batch_id AND results.amount IS NOT NULL"
)


@pytest.fixture
def engine(
    empty_database: None, configure: Callable[..., None], tmp_path: Path
) -> Iterator[Engine]:
    """An engine on a migrated database with the data of the version before."""
    configure(storage_url=(tmp_path / "files").as_uri(), flush_interval=0.05, lease=30)
    marks.identity.cache_clear()
    command.upgrade(migrate.alembic(), "0016")
    load()
    migrate.migrate()
    marks.place()
    with running() as engine:
        yield engine


def load() -> None:
    """Insert the data as if it were a minute old, and store the input files."""
    moment = time.time_ns() // 1_000_000 >> 16
    content = DATA.read_text("utf-8")
    content = content.replace("{then}", f"{moment - 1:08x}").replace("{soon}", f"{moment:08x}")
    with create_engine(db.owner_url(), poolclass=NullPool).begin() as owner:
        owner.execute(text("SET session_replication_role = replica"))
        connection = owner.connection.driver_connection
        assert isinstance(connection, psycopg.Connection)
        connection.execute(content.encode())
        for id, lines in owner.execute(text("SELECT id, content FROM inputs")):
            obstore.put(storage.store(), storage.key(id), lines.encode())
        # The killed processes renew no lease. One batch has expired.
        for table in ("batches", "tasks"):
            owner.execute(
                text(f"UPDATE {table} SET lease_until = now() WHERE lease_until IS NOT NULL")
            )
        owner.execute(text("UPDATE files SET expires_at = now() + interval '30 days'"))
        owner.execute(
            text(
                "UPDATE batches SET expires_at = now() + (status <> 'finalizing')::int * interval '1 day'"
            )
        )


def batch_of(state: str) -> Batch:
    """The batch that was in this state."""
    with db.reading() as session:
        return session.scalars(select(Batch).where(Batch.meta["was"].as_string() == state)).one()


def as_old(statements: list[str], **values: Any) -> None:
    """Run a transaction of a worker of the version before."""
    with db.engine().begin() as worker:
        for statement in statements:
            worker.execute(
                text(statement), {k: v for k, v in values.items() if f":{k}" in statement}
            )


def record_as_old(batch: Batch, *, seq: int, line_no: int, fence: int) -> bool:
    """Record a line and end its task, as a worker of the version before; whether it has the fence."""
    answered = {**ANSWER, "batch_id": batch.id, "line_no": line_no}
    with db.engine().begin() as worker:
        advanced = worker.execute(
            ADVANCE, {**answered, "seq": seq, "fence": fence, "bytes": 890}
        ).all()
        if advanced:
            worker.execute(RESULT, answered)
        return bool(advanced)


def end_all(engine: Engine) -> None:
    """Run every open batch to its end, and the schedule's turn."""
    with db.reading() as session:
        left = session.scalars(select(Batch.id).where(Batch.status.not_in(TERMINAL))).all()
    for id in left:
        validate.run(id)
    for id in left:
        run_to_end(engine, id)
    fire.run()


def assert_ended() -> None:
    """Assert that each batch has ended as it should, with each line once, and that the books agree."""
    with db.reading() as session:
        batches = session.scalars(select(Batch)).all()
        found = {
            batch.meta["was"]: End(
                batch.status,
                batch.completed,
                batch.failed,
                batch.cancelled or 0,
                batch.expired or 0,
            )
            for batch in batches
        }
        invoiced = session.scalars(select(Invoice.batch_id)).all()
        runs = session.scalars(select(ScheduleRun.state)).all()
    assert found == ENDS
    assert sorted(invoiced) == sorted(batch.id for batch in batches if batch.status != "failed")
    assert runs == ["succeeded"] * len(runs)
    assert list(reconcile.differences()) == []


def contents() -> dict[UUID, bytes]:
    """What a download of each file that is not deleted gives."""
    with db.reading() as session:
        files = session.scalars(select(File).where(File.deleted_at.is_(None))).all()
    found = {file.id: bytes_of(file) for file in files}
    assert {id: len(content) for id, content in found.items()} == {f.id: f.size for f in files}
    return found


def seal_and_drop() -> None:
    """Seal all ended batches, and drop their rows as if it were next month."""
    seal.run()
    with db.transaction() as session:
        left = select(func.count()).where(Batch.sealed_at.is_(None), Batch.status != "failed")
        assert session.scalar(left) == 0
        while session.scalar(text("SELECT drop_sealed_results(now() + interval '30 days')")):
            pass
        assert session.scalar(select(func.count()).select_from(Result)) == 0


def test_every_state_ends_and_is_sealed(engine: Engine) -> None:
    end_all(engine)
    assert_ended()
    before = contents()
    seal_and_drop()
    assert contents() == before
    assert_ended()


def test_lines_that_workers_of_both_versions_record_are_billed_once(engine: Engine) -> None:
    batch = batch_of("in progress")
    assert record_as_old(batch, seq=0, line_no=2, fence=1)
    with capture_logs() as logs:
        end_all(engine)
    assert batch.id in [e["batch_id"] for e in logs if e["event"] == "invoice.sums_missing"]
    with db.transaction() as session:
        assert sums.of_tasks(session, batch.id, lines=6) is None
    assert_ended()
    seal_and_drop()
    assert_ended()


def test_a_task_that_a_new_worker_took_is_closed_to_the_old_one(engine: Engine) -> None:
    end_all(engine)
    assert not record_as_old(batch_of("in progress"), seq=0, line_no=2, fence=1)
    assert_ended()


def test_an_old_worker_splits_a_batch_and_ends_another_one(engine: Engine) -> None:
    as_old(SPLIT, batch_id=batch_of("validating").id)
    ended = {"batch_id": batch_of("finalizing").id, "file_id": ids.new(), "invoice_id": ids.new()}
    as_old(FINALIZE, **ended)
    end_all(engine)
    assert_ended()
    before = contents()
    assert ended["file_id"] in before
    seal_and_drop()
    assert contents() == before
    assert_ended()


def test_an_old_api_erases_the_answers_of_a_sealed_file(engine: Engine) -> None:
    batch = batch_of("completed")
    end_all(engine)
    seal.run()
    with db.engine().begin() as api:
        api.execute(
            text("UPDATE files SET deleted_at=now() WHERE files.id = :id"),
            {"id": batch.output_file_id},
        )
        api.execute(ERASE, {"batch_id": batch.id})
    assert batch.output_file_id not in contents()
    seal_and_drop()
    assert_ended()
