"""A poison line fails alone: crashes that its neighbours shared count against no line."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from tests.integration import engines
from tests.integration.engines import (
    a_batch,
    a_claim,
    answers,
    chat_lines,
    expire_leases,
    lines_of,
    read,
    read_states,
)
from tests.outcome import assert_whole
from tests.waiting import wait_until
from xalen_batch import db
from xalen_batch.backends.contract import Outcome, Request
from xalen_batch.backends.simulated.backend import SimulatedBackend
from xalen_batch.batches import batches
from xalen_batch.models import Batch, Task
from xalen_batch.models.files import FilePart
from xalen_batch.models.tasks import SUSPECT_CRASHES
from xalen_batch.pipeline import claim, finalize, record, recover
from xalen_batch.pipeline.claim import Claim
from xalen_batch.pipeline.poison import ALONE_CRASHES
from xalen_batch.states import TaskState
from xalen_batch.worker.engine import Engine

pytestmark = pytest.mark.usefixtures("database", "valkey")
engine = engines.engine


def lose_workers() -> None:
    expire_leases()
    recover.due()


def losses_of(batch_id: UUID) -> list[int]:
    with db.transaction() as session:
        return list(
            session.scalars(
                select(Task.losses)
                .where(Task.batch_id == batch_id, Task.state != TaskState.DONE)
                .order_by(Task.seq)
            )
        )


def suspect(batch_id: UUID) -> UUID:
    with db.transaction() as session:
        session.execute(
            update(Task).where(Task.batch_id == batch_id).values(losses=SUSPECT_CRASHES)
        )
    return batch_id


def run_alone(held: Claim) -> None:
    record.record(held.key, held.fence, [], crashes=1)


@pytest.mark.parametrize("count", [1, 3, 30])
def test_a_line_that_kills_whoever_runs_it_fails_alone(count: int) -> None:
    batch_id = a_batch(chat_lines(count))
    poison = count // 2 + 1
    killed = 0
    while (held := claim.claim([], with_suspects=True)) is not None:
        if held.is_suspect:
            run_alone(held)
        if any(line.line_no == poison for line in held.lines):
            killed += 1
            lose_workers()
        else:
            record.record(held.key, held.fence, answers(held), to=TaskState.DONE)
    finalize.run(batch_id)
    batch = assert_whole(batch_id, count)
    assert (batch.status, batch.completed, batch.failed) == ("completed", count - 1, 1)
    (line,) = lines_of(batch_id, FilePart.ERROR)
    assert (line["custom_id"], line["response"], line["error"]["code"]) == (
        f"line-{poison - 1}",
        None,
        "worker_lost",
    )
    assert killed <= SUSPECT_CRASHES + 2 + ALONE_CRASHES


def test_a_suspect_is_not_blamed_for_a_loss_before_it_was_run() -> None:
    batch_id = suspect(a_batch(chat_lines(1)))
    for _ in range(10):
        assert a_claim().is_suspect
        lose_workers()
    assert losses_of(batch_id) == [SUSPECT_CRASHES]


def test_a_suspect_whose_worker_lives_to_hand_it_back_is_not_blamed(
    engine: Engine, configure: Callable[..., None]
) -> None:
    configure(shutdown_grace=0.1, flush_interval=0.05, lease=30)
    batch_id = suspect(a_batch(chat_lines(1, metadata={"simulate": "hang"})))
    with ThreadPoolExecutor(1) as slots:
        slot = slots.submit(old(engine).drain)
        wait_until(lambda: losses_of(batch_id) == [SUSPECT_CRASHES + 1])
        engine.stop()
        slot.result(20)
    assert losses_of(batch_id) == [SUSPECT_CRASHES]
    assert read(batch_id).status == "in_progress"


def test_a_process_that_may_die_young_takes_no_suspect(engine: Engine) -> None:
    batch_id = suspect(a_batch(chat_lines(1)))
    engine.drain()
    assert read_states(batch_id) == {"pending"}
    old(engine).drain()
    assert read_states(batch_id) == {"done"}


def old(engine: Engine) -> Engine:
    engine._takes_suspects_from = 0.0
    return engine


class Gates:
    """Backends that answer on command, and record which lines were in flight together."""

    def __init__(self) -> None:
        self.in_flight: set[str] = set()
        self.beside: list[frozenset[str]] = []
        self.open = threading.Event()

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        self.open.set()

    async def send(self, backend: SimulatedBackend, request: Request) -> Outcome:
        batch = request.request_id.split("_")[1][:32]
        self.in_flight.add(batch)
        self.beside.append(frozenset(self.in_flight))
        while not self.open.is_set():
            await asyncio.sleep(0.005)
        self.in_flight.discard(batch)
        return await really(backend, request)


really = SimulatedBackend.send


@pytest.fixture
def gates(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Gates:
    gates = Gates()
    monkeypatch.setattr(
        SimulatedBackend, "send", lambda backend, request: gates.send(backend, request)
    )
    # No slot but those of the test.
    monkeypatch.setattr(engine, "wake", lambda: None)
    return gates


def test_nothing_is_in_flight_beside_a_suspect(engine: Engine, gates: Gates) -> None:
    before = a_batch(chat_lines(1))
    with ThreadPoolExecutor(3) as slots, gates:
        first = slots.submit(old(engine)._run_next)
        wait_until(lambda: gates.in_flight == {before.hex})
        suspected = suspect(a_batch(chat_lines(1)))
        second = slots.submit(engine._run_next)
        wait_until(lambda: read_states(suspected) == {"running"})
        after = a_batch(chat_lines(1))
        assert not engine._run_next()
        assert read_states(after) == {"pending"}
        gates.open.set()
        assert first.result(20)
        assert second.result(20)
        assert engine._run_next()
    assert gates.beside == [{before.hex}, {suspected.hex}, {after.hex}]
    for batch_id in (before, suspected, after):
        finalize.run(batch_id)
        assert assert_whole(batch_id, 1).completed == 1


def test_a_suspect_that_waits_for_its_turn_goes_back_when_its_batch_is_cancelled(
    engine: Engine, gates: Gates
) -> None:
    before = a_batch(chat_lines(1))
    with ThreadPoolExecutor(2) as slots, gates:
        first = slots.submit(old(engine)._run_next)
        wait_until(lambda: gates.in_flight == {before.hex})
        suspected = suspect(a_batch(chat_lines(1)))
        second = slots.submit(engine._run_next)
        wait_until(lambda: read_states(suspected) == {"running"})
        with db.transaction() as session:
            batches.cancel(session, session.get_one(Batch, suspected))
        assert second.result(20)
        assert losses_of(suspected) == [SUSPECT_CRASHES]
        gates.open.set()
        assert first.result(20)
    finalize.run(suspected)
    assert assert_whole(suspected, 1).status == "cancelled"


def test_parts_of_a_suspect_have_places_of_their_own() -> None:
    batch_id = suspect(a_batch(chat_lines(20)))
    held = a_claim()
    run_alone(held)
    record.record(held.key, held.fence, answers(held)[:3])
    lose_workers()
    with db.transaction() as session:
        tasks = session.execute(
            select(Task.seq, Task.lines, Task.losses, Task.state)
            .where(Task.batch_id == batch_id)
            .order_by(Task.seq)
        ).all()
        assert session.scalar(select(func.sum(Task.lines)).where(Task.batch_id == batch_id)) == 20
    assert tasks[0] == (0, 3, SUSPECT_CRASHES + 1, "done")
    assert {task.losses for task in tasks[1:]} == {SUSPECT_CRASHES}
    for task, following in pairwise(tasks[1:]):
        assert task.seq + task.lines == following.seq
