"""Answers at the cap, all at once: the engine holds a bounded number of their bytes, and every line
gets its answer.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import func, select, text

from tests import factories
from tests.conftest import as_owner
from tests.integration.backends import hostile
from tests.integration.backends.hostile import GOOD, Hostile
from tests.integration.backends.hostile_backend import server  # noqa: F401
from tests.integration.engines import a_batch, chat_lines, run_to_end
from tests.waiting import PATIENCE
from xalen_batch import db
from xalen_batch.backends.buffer import READ_BYTES, Buffer
from xalen_batch.models import Result
from xalen_batch.worker.engine import ANSWERS_SHARE, Engine

pytestmark = pytest.mark.usefixtures("database", "valkey")

MiB = 1024 * 1024
LINES, AT_ONCE = 48, 32
CAP = MiB
WORKER_BYTES = 32 * MiB
CATALOG = (
    '[models.mistral-small-3-1.backend]\nkind = "openai"\nbase_url = "{}"\nmax_in_flight = 128\n'
)


@pytest.fixture
def engine(server: Hostile, configure: Callable[..., None], tmp_path: Path) -> Iterator[Engine]:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(CATALOG.format(server.base_url), "utf-8")
    configure(
        catalog=catalog,
        flush_interval=0.05,
        request_timeout=30,
        answer_max_bytes=CAP,
        worker_bytes=WORKER_BYTES,
    )
    with ThreadPoolExecutor(16) as pool:
        engine = Engine(pool.submit)
        yield engine
        engine.stop()
        pool.shutdown(wait=True)
        engine.close()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that the lane's buffer held, after each time that they grew."""
    found: list[int] = []
    arrived, answered = Buffer.arrived, Buffer.answered

    def noted(grow: Callable[..., None]) -> Callable[..., None]:
        def growing(buffer: Buffer, *values: object) -> None:
            grow(buffer, *values)
            found.append(buffer.held)

        return growing

    monkeypatch.setattr(Buffer, "arrived", noted(arrived))
    monkeypatch.setattr(Buffer, "answered", noted(answered))
    return found


def together(server: Hostile, count: int) -> None:
    """Have the server answer with CAP bytes once `count` requests have arrived."""
    content = GOOD[:-1] + b" " * (CAP - len(GOOD)) + b"}"

    async def answer(writer: asyncio.StreamWriter) -> None:
        while len(server.seen) < count:
            await asyncio.sleep(0.01)
        await hostile.reply(content)(writer)

    server.answer = answer


def a_live_batch() -> UUID:
    with db.transaction() as session:
        caller = factories.caller(session, livemode=True)
    return a_batch(chat_lines(LINES), caller)


@contextmanager
def recording_waits(held: list[int], at_least: float) -> Iterator[None]:
    """Lock the results for `at_least` seconds, and until no byte has arrived for a second."""
    is_locked, is_left = threading.Event(), threading.Event()

    def hold() -> None:
        with as_owner() as session:
            session.execute(text("LOCK TABLE results IN SHARE MODE"))
            is_locked.set()
            is_left.wait(at_least)
            seen = -1
            while not is_left.is_set() and (not held or seen != len(held)):
                seen = len(held)
                is_left.wait(1)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert is_locked.wait(PATIENCE)
        yield
    finally:
        is_left.set()
        holder.join()


def test_answers_at_the_cap_are_held_within_the_budget(
    engine: Engine,
    server: Hostile,
    held: list[int],
) -> None:
    together(server, AT_ONCE)
    batch_id = a_live_batch()
    with recording_waits(held, at_least=0):
        batch = run_to_end(engine, batch_id, timeout=PATIENCE)
    assert (batch.completed, batch.failed, len(server.seen)) == (LINES, 0, LINES)
    with db.transaction() as session:
        assert (
            session.scalar(
                select(func.sum(func.length(Result.body))).where(Result.batch_id == batch.id)
            )
            == LINES * CAP
        )
    share = int(WORKER_BYTES * ANSWERS_SHARE)
    assert share <= max(held) <= share + LINES * READ_BYTES + CAP
    (lane,) = engine._lanes.values()
    assert lane.buffer.held == 0


def test_answers_that_wait_for_the_database_are_not_timed_out(
    engine: Engine,
    server: Hostile,
    configure: Callable[..., None],
    held: list[int],
) -> None:
    together(server, AT_ONCE)
    configure(request_timeout=4)
    batch_id = a_live_batch()
    with recording_waits(held, at_least=6):
        batch = run_to_end(engine, batch_id, timeout=PATIENCE)
    assert (batch.completed, batch.failed, len(server.seen)) == (LINES, 0, LINES)
