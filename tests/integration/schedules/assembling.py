"""Runs of each kind of input, and a check of the file that assembling them wrote."""

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from tests import factories
from tests.factories import chat_line
from xalen_batch import db, ids, jsonl, storage
from xalen_batch.accounts.accounts import Caller
from xalen_batch.models import Batch, File, InboxRequest, Schedule, ScheduleRun, Task
from xalen_batch.schedules import assemble, inbox, runs
from xalen_batch.schedules import fire as firing
from xalen_batch.schedules.runs import Trigger
from xalen_batch.schedules.turn import Turn
from xalen_batch.states import BatchStatus, RunState

# 02:30 in Berlin.
NIGHT = datetime(2026, 11, 25, 1, 30, tzinfo=UTC)
TEMPLATE = "daily-{{scheduled_date-1d}}-"


@pytest.fixture
def caller(database: str) -> Caller:
    with db.transaction() as session:
        return factories.caller(session)


def home(caller: Caller) -> Path:
    place = storage.folder() / "drop" / caller.account_id.hex / "test" / "in"
    place.mkdir(parents=True, exist_ok=True)
    return place


def template(caller: Caller, lines: Any) -> str:
    with db.transaction() as session:
        return ids.render("file", factories.input_file(session, caller, lines).id)


def made(caller: Caller, kind: str, ids_of_lines: Iterable[str]) -> Schedule:
    """A schedule whose next run reads lines of these custom_ids."""
    names = list(ids_of_lines)
    if kind == "template":
        return schedule(
            caller,
            template_file_id=template(
                caller, [chat_line(TEMPLATE + name, "Since {{scheduled_date}}") for name in names]
            ),
        )
    if kind == "source":
        for name in names:
            (home(caller) / f"{name}.jsonl").write_bytes(
                factories.jsonl([chat_line(name)]).rstrip(b"\n")
            )
        return schedule(caller, source={"prefix": "in"})
    with db.transaction() as session:
        of_inbox = factories.schedule(session, caller)
        inbox.add(
            session, of_inbox, [(name, json.dumps(chat_line(name)).encode()) for name in names]
        )
        return of_inbox


def schedule(caller: Caller, **what: Any) -> Schedule:
    with db.transaction() as session:
        return factories.schedule(session, caller, **what)


def fire(schedule: Schedule) -> Batch:
    with db.transaction() as session:
        run = ScheduleRun(**runs.blank(schedule, NIGHT, Trigger.SCHEDULE, RunState.WAITING))
        session.add(run)
        session.flush()
        locked = session.get_one(Schedule, schedule.id)
        firing.begin(session, locked, run, [], NIGHT, Turn())
        assert run.state == RunState.RUNNING, run.message
        return session.scalars(select(Batch).where(Batch.run_id == run.id)).one()


def reread(batch: Batch) -> tuple[Batch, File]:
    with db.transaction() as session:
        return session.get_one(Batch, batch.id), session.get_one(File, batch.input_file_id)


def stored(batch: Batch) -> bytes:
    return b"".join(storage.chunks(storage.key(batch.input_file_id)))


def expire_lease() -> None:
    with db.transaction() as session:
        session.execute(update(Batch).values(lease_until=func.now() - timedelta(seconds=1)))


def requests_in_inbox() -> int:
    with db.transaction() as session:
        return session.scalar(select(func.count()).select_from(InboxRequest)) or 0


def check_runs(batch: Batch, custom_ids: Iterable[str]) -> None:
    """Assert that the batch runs, that its file's row has the size and hash of its bytes, and that
    its tasks have the right offset for each line.
    """
    found, file = reread(batch)
    assert (found.status, found.errors) == (BatchStatus.IN_PROGRESS, None)
    content = stored(batch)
    assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).digest())
    with db.transaction() as session:
        indexes = session.scalars(
            select(Task.line_index).where(Task.batch_id == batch.id).order_by(Task.seq)
        ).all()
    spans = sorted(span for index in indexes for span in jsonl.unpack(index))
    raws = storage.ranges(
        storage.key(file.id), [span.offset for span in spans], [span.length for span in spans]
    )
    assert [jsonl.input_line(raw).custom_id for raw in raws] == list(custom_ids)
    assert requests_in_inbox() == 0


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and write about one line at a time, so that a test can act between two steps."""
    monkeypatch.setattr(assemble, "WRITTEN_AT_ONCE", 1)
    monkeypatch.setattr(inbox, "PAGE_ROWS", 1)
    monkeypatch.setattr(storage, "READ_CHUNK", 100)
