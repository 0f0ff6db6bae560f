"""Faults between two steps of the engine: an outage of a store, a crash, two at the same time."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import sqlalchemy.exc
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from tests import factories
from tests.integration import engines
from tests.integration.backends.at_address import backend_at
from tests.integration.backends.hostile import hostile
from tests.integration.conftest import Api, multipart
from tests.integration.engines import (
    a_batch,
    a_claim,
    chat_lines,
    expire_leases,
    read,
    read_states,
    run_to_end,
)
from tests.waiting import PATIENCE, wait_until
from xalen_batch import broker, catalog, db, files, storage
from xalen_batch.backends import openai
from xalen_batch.backends.contract import Outcome, Request, Retryable
from xalen_batch.broker import Job, Message
from xalen_batch.endpoints.names import CHAT
from xalen_batch.models import Batch, Task
from xalen_batch.pipeline import claim, finalize, record, recover
from xalen_batch.worker import engine as worker_engine
from xalen_batch.worker.engine import Engine
from xalen_batch.worker.process import Poll

pytestmark = pytest.mark.usefixtures("database", "valkey")
engine = engines.engine


class SlowRows(list[record.Row]):
    """Rows that take longer to copy than a statement may take."""

    def __iter__(self) -> Iterator[record.Row]:
        for row in super().__iter__():
            threading.Event().wait(0.3)
            yield row


def too_slow(session: Session, rows: Sequence[record.Row]) -> None:
    session.execute(text("SET LOCAL statement_timeout = 1"))
    copy(session, SlowRows(rows))


def no_connection(session: Session, rows: Sequence[record.Row]) -> None:
    raise sqlalchemy.exc.TimeoutError("QueuePool limit reached")


copy = record.insert


@pytest.mark.parametrize("fails", [too_slow, no_connection])
def test_answers_are_held_while_the_database_cannot_take_them(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[[Session, Sequence[record.Row]], None],
) -> None:
    calls = 0

    def insert(session: Session, rows: Sequence[record.Row]) -> None:
        nonlocal calls
        calls += 1
        (fails if calls == 1 else copy)(session, rows)

    monkeypatch.setattr(record, "insert", insert)
    batch = run_to_end(engine, a_batch(chat_lines(3)))
    assert calls > 1
    assert batch.completed == 3


def unreadable(*_: object) -> list[bytes]:
    raise OSError("the folder is not mounted")


def test_a_storage_outage_loses_no_worker(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = a_batch(chat_lines(25))
    with monkeypatch.context() as outage:
        outage.setattr(storage, "ranges", unreadable)
        outage.setattr(claim, "STORAGE_PAUSE", 0.1)
        engine.drain()
        assert read_states(batch_id) == {"pending"}
    assert run_to_end(engine, batch_id).completed == 25
    with db.transaction() as session:
        assert set(session.scalars(select(Task.losses).where(Task.batch_id == batch_id))) == {0}


def test_a_file_that_cannot_be_read_does_not_keep_other_tasks_from_coming_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suspect, other = a_batch(chat_lines(1)), a_batch(chat_lines(1))
    with db.transaction() as session:
        session.execute(update(Task).where(Task.batch_id == suspect).values(losses=2))
    assert {a_claim().batch_id, a_claim().batch_id} == {suspect, other}
    expire_leases()
    monkeypatch.setattr(storage, "ranges", unreadable)
    recover.due()
    assert read_states(other) == {"pending"}


def test_the_poll_outlives_any_error(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(poll_interval=0.01)
    looks = threading.Semaphore(0)

    def due() -> list[object]:
        looks.release()
        raise ValueError("a bug")

    monkeypatch.setattr(recover, "due", due)
    poll = Poll({}, lambda *_: True, lambda _: None, list)
    poll.start()
    try:
        assert looks.acquire(timeout=PATIENCE)
        assert looks.acquire(timeout=PATIENCE)
    finally:
        poll.stop()


def test_work_that_waits_for_a_thread_is_named_once(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(poll_interval=0.01, tick_interval=3600)
    looks = threading.Semaphore(0)
    waiting: list[Callable[[], object]] = []

    def due() -> list[Message]:
        looks.release()
        return [Message(Job.VALIDATE, "a"), Message(Job.VALIDATE, "b")]

    def spawn(function: Callable[..., object], *args: object) -> bool:
        waiting.append(partial(function, *args))
        return True

    def look(times: int) -> None:
        for _ in range(times):
            assert looks.acquire(timeout=PATIENCE)

    monkeypatch.setattr(recover, "due", due)
    poll = Poll({Job.VALIDATE: str, Job.DELIVER: str}, spawn, lambda _: None, list)
    poll.start()
    try:
        look(5)
        # The third is for webhooks, which every poll looks after.
        assert len(waiting) == 3
        waiting[0]()
        look(3)
        assert len(waiting) == 4
    finally:
        poll.stop()


def test_a_file_that_cannot_be_deleted_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with db.transaction() as session:
        caller = factories.caller(session)
        stuck, other = (
            factories.input_file(session, caller, b"{}\n", expires_at=datetime.now(UTC)).id
            for _ in range(2)
        )

    def delete(key: str) -> None:
        if key == storage.key(stuck):
            raise PermissionError

    monkeypatch.setattr(storage, "delete", delete)
    recover.tick()
    with db.transaction() as session:
        assert session.get_one(factories.File, other).deleted_at is not None
        assert session.get_one(factories.File, stuck).deleted_at is None


def test_an_error_of_ours_in_a_backend_leaves_no_answer_in_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> Outcome:
        raise ValueError("my secret answer")

    async def send() -> Outcome:
        async with hostile() as server, backend_at(server.base_url) as backend:
            return await backend.send(Request(CHAT, b"{}", "r"))

    monkeypatch.setattr(openai, "outcome_of", fail)
    with capture_logs() as events:
        assert isinstance(asyncio.run(send()), Retryable)
    assert [(event["event"], event["error"], "exc_info" in event) for event in events] == [
        ("backend.failed", "ValueError", False)
    ]


def test_a_worker_that_does_not_know_a_model_blames_no_line(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, configure: Callable[..., None]
) -> None:
    batch_id = a_batch(chat_lines(25))
    with monkeypatch.context() as old:
        old.setattr(catalog, "models", dict)
        old.setattr(worker_engine, "UNUSABLE_PAUSE", 0.1)
        engine.drain()
        assert read_states(batch_id) == {"pending"}
    assert run_to_end(engine, batch_id).completed == 25


def test_a_form_around_a_file_is_bounded(api: Api) -> None:
    parts = [(f"field-{number}", None, b"") for number in range(20_000)]
    kind, body = multipart(*parts, ("purpose", None, b"batch"), ("file", "input.jsonl", b"{}"))
    assert api.ask("POST", "/v1/files", body, headers={"content-type": kind}).status == 413


@contextmanager
def worker(log: Path, *command: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process (`command` replaces its usual one), which is ended with the test."""
    env = os.environ | {f"XALEN_{name.upper()}": value for name, value in settings.items()}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command or [Path(sys.executable).with_name("xalen-batch"), "worker"],
            stdout=out,
            stderr=out,
            env=env,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_worker_whose_consumer_gave_up_ends_though_its_slots_are_at_work(
    valkey: redis.Redis, tmp_path: Path
) -> None:
    batch_id = a_batch(chat_lines(3, metadata={"simulate": "hang"}))
    # A bug of ours in the consumer, at one message: Celery gives up.
    program = "\n".join(
        [
            "from xalen_batch.worker import consumer, process",
            "parse = consumer.parse",
            "consumer.parse = lambda raw: 1 / 0 if raw == b'x' else parse(raw)",
            "process.run_worker()",
        ]
    )
    with worker(tmp_path / "log", sys.executable, "-c", program, shutdown_grace="0") as process:
        wait_until(lambda: read_states(batch_id) == {"running"})
        valkey.rpush("xalen_batch", "x")
        assert process.wait(timeout=PATIENCE) != 0
        assert read_states(batch_id) == {"pending"}


def become_a_replica(valkey: redis.Redis) -> None:
    """Make the server a replica, as after a failover."""
    valkey.replicaof("127.0.0.1", "1")


def fill(valkey: redis.Redis) -> None:
    valkey.config_set("maxmemory", 1)


@pytest.mark.parametrize(("refuse", "error"), [(become_a_replica, "ReadOnlyError"), (fill, "")])
def test_a_redis_that_refuses_to_be_written_to_stops_no_worker(
    valkey: redis.Redis, tmp_path: Path, refuse: Callable[[redis.Redis], None], error: str
) -> None:
    held = a_batch(chat_lines(3, metadata={"simulate": "hang"}))
    log = tmp_path / "log"
    with worker(log, poll_interval="0.2") as process:
        wait_until(lambda: read_states(held) == {"running"})
        # A message is there when it wakes up: it can be taken from a Redis that is full, and not
        # from a replica.
        process.send_signal(signal.SIGSTOP)
        broker.celery().send_task(Job.EXECUTE.value)
        refuse(valkey)
        process.send_signal(signal.SIGCONT)
        try:
            wait_until(lambda: error in log.read_text("utf-8"))
            following = a_batch(chat_lines(3))
            wait_until(lambda: read_states(following) == {"done"})
            assert (process.poll(), read_states(held)) == (None, {"running"})
        finally:
            valkey.replicaof("NO", "ONE")
            valkey.config_set("maxmemory", 0)
        broker.celery().send_task(Job.EXECUTE.value)
        wait_until(lambda: valkey.llen("xalen_batch") == 0)


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_library_that_logs_an_error_shows_where_and_no_variables(
    capfd: pytest.CaptureFixture[str], log_format: str
) -> None:
    program = "\n".join(
        [
            "import logging",
            "from xalen_batch import log",
            "log.configure()",
            "def fail(prompt):",
            "    raise ValueError('a bug')",
            "try:",
            "    fail('my ' + 'secret')",
            "except ValueError:",
            "    logging.getLogger('celery.worker').critical('gave up', exc_info=True)",
        ]
    )
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        env=os.environ | {"XALEN_LOG_FORMAT": log_format},
    )
    written = capfd.readouterr().err
    assert "<string>:5 fail" in written
    assert "my secret" not in written


def test_an_overdue_batch_has_one_finalizer(monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = a_batch(chat_lines(3))
    with db.transaction() as session:
        session.get_one(Batch, batch_id).expires_at = datetime.now(UTC) - timedelta(seconds=1)
    named: list[list[Message]] = []
    end_open_tasks = finalize._end_open_tasks

    def look_and_end(batch: Batch) -> None:
        named.append(recover.due())
        end_open_tasks(batch)

    monkeypatch.setattr(finalize, "_end_open_tasks", look_and_end)
    finalize.run(batch_id)
    assert named == [[]]
    assert read(batch_id).status == "expired"


def test_a_commit_whose_answer_was_cut_off_counts_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, cut_off = record.record, 0

    def record_and_fail(*args: Any, **kwargs: Any) -> record.Recorded:
        nonlocal cut_off
        recorded = really(*args, **kwargs)
        if args[2] and not cut_off:
            cut_off += 1
            raise sqlalchemy.exc.OperationalError(
                "COMMIT", None, psycopg.OperationalError("connection reset")
            )
        return recorded

    monkeypatch.setattr(record, "record", record_and_fail)
    batch = run_to_end(engine, a_batch(chat_lines(5)))
    assert (cut_off, batch.completed, batch.failed) == (1, 5, 0)


def test_a_crash_of_the_api_leaves_no_words_of_its_error_in_the_log(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("my secret prompt")

    monkeypatch.setattr(files, "page", fail)
    with capture_logs() as events:
        assert api.ask("GET", "/v1/files").status == 500
    (crash,) = [event for event in events if event["event"] == "api.crashed"]
    assert (crash["error"], "exc_info" in crash) == ("ValueError", False)
