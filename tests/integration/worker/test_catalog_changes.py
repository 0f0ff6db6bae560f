"""The catalog changes while a batch runs: no line is lost, and none is charged twice."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import func, select

from tests import factories
from tests.integration.backends.hostile import GOOD, Hostile, reply
from tests.integration.backends.hostile_backend import CATALOG, engine, server
from tests.integration.engines import a_batch, charged, chat_lines, lines_of, read, run_to_end
from tests.waiting import wait_until
from xalen_batch import catalog, db
from xalen_batch.models import Result
from xalen_batch.models.files import FilePart
from xalen_batch.worker import engine as worker_engine
from xalen_batch.worker.engine import Engine

__all__ = ["engine", "server"]

pytestmark = pytest.mark.usefixtures("database", "valkey")
other_server = server
SOON = 30
# Requests in flight before the first answer: half of the backend's 8.
FIRST = 4


@pytest.fixture
def file(
    engine: Engine, tmp_path: Path, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The catalog file, which the engine follows as a worker's poll makes it."""
    monkeypatch.setattr(catalog, "LOOK_EVERY", 0.0)
    configure(catalog=tmp_path / "catalog.toml", flush_interval=0.05, lease=30, task_lines=4)
    over = threading.Event()

    def follow() -> None:
        while not over.wait(0.02):
            engine.follow_catalog()

    thread = threading.Thread(target=follow)
    thread.start()
    yield tmp_path / "catalog.toml"
    over.set()
    thread.join()


def live_batch(count: int) -> UUID:
    with db.transaction() as session:
        caller = factories.caller(session, livemode=True)
    return a_batch(chat_lines(count), caller)


def held(server: Hostile) -> threading.Event:
    """Keep the answers of a server back until the event is set."""
    go = threading.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        while not go.is_set():
            await asyncio.sleep(0.005)
        await reply(GOOD)(writer)

    server.answer = answer
    return go


def assert_whole(batch_id: UUID, count: int) -> None:
    batch = read(batch_id)
    assert (batch.status, batch.completed, batch.failed) == ("completed", count, 0)
    output = lines_of(batch_id, FilePart.OUTPUT)
    assert [line["custom_id"] for line in output] == [f"line-{n}" for n in range(count)]
    # Each answer has 3 tokens read and 2 written, at half of the list price.
    assert charged(batch_id) == count * Decimal("0.00000007")


def recorded(batch_id: UUID) -> int:
    with db.transaction() as session:
        return session.scalar(
            select(func.count()).select_from(Result).where(Result.batch_id == batch_id)
        )


def woken(engine: Engine, condition: Callable[[], object]) -> Callable[[], object]:
    """The condition, for which the engine looks for work."""

    def look() -> object:
        engine.wake()
        return condition()

    return look


def test_lines_that_are_not_in_flight_go_to_the_new_server(
    engine: Engine, server: Hostile, other_server: Hostile, file: Path
) -> None:
    go = held(server)
    other_server.answer = reply(GOOD)
    batch_id = live_batch(60)
    engine.wake()
    wait_until(lambda: len(server.seen) == FIRST, timeout=SOON)
    file.write_text(CATALOG.format(other_server.base_url), "utf-8")
    # The old server answers nothing, and the others do not wait for it.
    wait_until(woken(engine, lambda: recorded(batch_id) == 60 - FIRST), timeout=SOON)
    go.set()
    run_to_end(engine, batch_id, timeout=SOON)
    assert_whole(batch_id, 60)
    assert (len(server.seen), len(other_server.seen)) == (FIRST, 60 - FIRST)
    prompts = Counter(seen.body for seen in (*server.seen, *other_server.seen))
    assert max(prompts.values()) == 1


def test_the_lines_of_a_model_that_is_removed_wait_until_it_is_back(
    engine: Engine, server: Hostile, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_engine, "UNUSABLE_PAUSE", 0.1)
    new = (
        '[models.new]\nname = "N"\nowned_by = "x"\ncategory = "compact"\nparameters = "1B"\n'
        'context_window = 8192\nendpoints = ["/v1/chat/completions"]\nprice = { input = "1" }\n'
        f'[models.new.backend]\nbase_url = "{server.base_url}"\nmax_in_flight = 8\n'
    )
    file.write_text(new, "utf-8")
    wait_until(lambda: "new" in catalog.models(), timeout=SOON)
    with db.transaction() as session:
        caller = factories.caller(session, livemode=True)
    go = held(server)
    batch_id = a_batch(
        [factories.chat_line(f"line-{n}", f"{n}", model="new") for n in range(40)],
        caller,
        price_snapshot={"new": {"input": "1", "output": "2"}},
    )
    engine.wake()
    wait_until(lambda: len(server.seen) == FIRST, timeout=SOON)
    file.write_text("", "utf-8")
    # The lane sends nothing more.
    wait_until(lambda: not engine._lanes.values(), timeout=SOON)
    go.set()
    # What was in flight is answered and recorded; the rest waits.
    wait_until(woken(engine, lambda: recorded(batch_id) == FIRST), timeout=SOON)
    assert len(server.seen) == FIRST
    file.write_text(new, "utf-8")
    run_to_end(engine, batch_id, timeout=SOON)
    batch = read(batch_id)
    assert (batch.status, batch.completed, batch.failed) == ("completed", 40, 0)
    assert len(server.seen) == 40


def test_a_broken_file_changes_nothing(engine: Engine, server: Hostile, file: Path) -> None:
    go = held(server)
    batch_id = live_batch(30)
    engine.wake()
    wait_until(lambda: len(server.seen) == FIRST, timeout=SOON)
    file.write_text("[models.", "utf-8")
    wait_until(catalog.has_broken_file, timeout=SOON)
    go.set()
    run_to_end(engine, batch_id, timeout=SOON)
    assert_whole(batch_id, 30)
    assert len(server.seen) == 30
