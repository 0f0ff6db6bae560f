"""An engine on a real database, batches for it, and reads of their state."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from tests import factories
from tests.waiting import PATIENCE
from xalen_batch import db
from xalen_batch.accounts.accounts import Caller
from xalen_batch.backends.contract import Answered
from xalen_batch.broker import Job
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Batch, File, Result, Task
from xalen_batch.models.files import FilePart
from xalen_batch.pipeline import claim, finalize, record, recover, validate
from xalen_batch.results import content, results
from xalen_batch.results.content import Rendered
from xalen_batch.states import TaskState
from xalen_batch.worker.engine import Engine


@pytest.fixture
def engine(configure: Callable[..., None]) -> Iterator[Engine]:
    configure(task_lines=10, flush_interval=0.05, lease=30)
    with running() as engine:
        yield engine


@contextmanager
def running() -> Iterator[Engine]:
    """An engine with the settings in force, on threads of its own."""
    with ThreadPoolExecutor(16) as pool:
        engine = Engine(pool.submit)
        yield engine
        engine.stop()
        pool.shutdown(wait=True)
        engine.close()


def a_batch(lines: list[dict], caller: Caller | None = None, **columns: object) -> UUID:
    """A batch that is split and ready to run."""
    with db.transaction() as session:
        caller = caller or factories.caller(session)
        batch_id = factories.batch(
            session, caller, factories.input_file(session, caller, lines), **columns
        ).id
    validate.run(batch_id)
    return batch_id


def chat_lines(count: int, **body: object) -> list[dict]:
    return [factories.chat_line(f"line-{n}", f"Where is parcel {n}?", **body) for n in range(count)]


def run_to_end(engine: Engine, batch_id: UUID, timeout: float = PATIENCE) -> Batch:
    """Drive the engine by polls alone, as a worker without a broker does."""
    over = threading.Event()
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        batch = read(batch_id)
        if batch.status in ("completed", "cancelled", "expired", "failed"):
            return batch
        for message in recover.due():
            if message.job is Job.FINALIZE:
                finalize.run(UUID(hex=message.id))
            elif message.job is Job.EXECUTE:
                engine.wake()
        over.wait(0.02)
    raise AssertionError(f"the batch is still {batch.status}")


def read(batch_id: UUID) -> Batch:
    with db.transaction() as session:
        return session.get_one(Batch, batch_id)


def lines_of(batch_id: UUID, part: FilePart) -> list[dict]:
    return [json.loads(line) for line in b"".join(results.chunks(batch_id, part)).splitlines()]


def bytes_of(file: File) -> bytes:
    """What a download of a file sends now."""
    found = content.of(file)
    chunks = found.chunks() if isinstance(found, Rendered) else found.chunks(0, found.size)
    return b"".join(chunks)


def expire_leases() -> None:
    with db.transaction() as session:
        session.execute(
            update(Task)
            .where(Task.state == TaskState.RUNNING)
            .values(lease_until=func.now() - timedelta(seconds=1))
        )


def charged(batch_id: UUID) -> Decimal:
    with db.transaction() as session:
        return session.scalar(
            select(func.coalesce(func.sum(Result.amount), 0)).where(Result.batch_id == batch_id)
        )


def answers(held: claim.Claim) -> list[record.Row]:
    return [
        record.row(
            record.LineRef(held.batch_id, line.line_no, held.model, line.custom_id),
            Answered(200, b"{}", Usage(1_000, 500)),
            held.tariff,
        )
        for line in held.lines
    ]


def a_claim() -> claim.Claim:
    held = claim.claim([], with_suspects=True)
    assert held is not None
    return held


def read_states(batch_id: UUID) -> set[str]:
    with db.transaction() as session:
        return set(session.scalars(select(Task.state).where(Task.batch_id == batch_id)))
