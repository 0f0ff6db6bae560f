"""Messages are hints: delivered five times in any order or never, a batch ends the same."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from celery import Celery
from sqlalchemy import select

from tests import factories
from tests.integration import engines
from tests.integration.engines import a_batch, a_claim, answers, chat_lines, read
from tests.outcome import assert_whole
from tests.waiting import wait_until
from xalen_batch import broker, db, ids
from xalen_batch.broker import Job, Message
from xalen_batch.models import Invoice, Result
from xalen_batch.pipeline import record, recover
from xalen_batch.states import TaskState
from xalen_batch.webhooks.sender import Sender
from xalen_batch.worker import tasks
from xalen_batch.worker.engine import Engine

pytestmark = pytest.mark.usefixtures("database", "valkey")
engine = engines.engine

LINES = 60
TIMES = 5


class Post:
    """Delivers each message `times` times, in random order, to threads that run the jobs."""

    def __init__(self, engine: Engine, pool: ThreadPoolExecutor, times: int, seed: int) -> None:
        self.jobs: dict[Job, Callable[..., Any]] = tasks.register(Celery("test"), engine, Sender())
        self.pool = pool
        self.times = times
        self.dice = random.Random(seed)
        self.lock = threading.Lock()
        self.waiting: list[Message] = []
        self.running = 0
        self.delivered = 0

    def publish(self, messages: list[Message]) -> None:
        with self.lock:
            self.waiting += [message for message in messages for _ in range(self.times)]

    def deliver(self) -> None:
        """Deliver all messages under way, and those that follow from them."""
        while self.waiting or self.running:
            with self.lock:
                message = (
                    self.waiting.pop(self.dice.randrange(len(self.waiting)))
                    if self.waiting
                    else None
                )
                self.running += message is not None
            if message is None:
                threading.Event().wait(0.005)
            else:
                self.pool.submit(self.run, message)

    def run(self, message: Message) -> None:
        try:
            self.jobs[message.job](*message.args)
        finally:
            with self.lock:
                self.running -= 1
                self.delivered += 1


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(12) as pool:
        yield pool


def submit() -> UUID:
    """A batch of both models, some of whose lines are refused; its first message is sent by
    `broker.publish`.
    """
    lines = [factories.chat_line(f"line-{n}", f"Where is parcel {n}?") for n in range(LINES - 2)]
    lines[7]["body"]["max_tokens"] = 10_000_000
    question = '{"query": "Where is my parcel?", "documents": ["On its way.", "Lost."]}'
    lines += [
        factories.chat_line(f"rank-{n}", question, model=factories.RERANK_MODEL) for n in range(2)
    ]
    with db.transaction() as session:
        caller = factories.caller(session)
        batch_id = factories.batch(
            session, caller, factories.input_file(session, caller, lines), id=ids.new()
        ).id
        db.enqueue(session, Job.VALIDATE, batch_id.hex)
    return batch_id


def outcome(batch_id: UUID) -> tuple[str, int, int, Decimal, list[tuple[Any, ...]]]:
    """All that its owner can see of how it ended, but for its ids."""
    batch = assert_whole(batch_id, LINES)
    with db.transaction() as session:
        total = session.scalars(select(Invoice.total).where(Invoice.batch_id == batch_id)).one()
        rows = session.execute(
            select(Result.line_no, Result.custom_id, Result.status_code, Result.amount)
            .where(Result.batch_id == batch_id)
            .order_by(Result.line_no)
        ).all()
    return batch.status, batch.completed, batch.failed, total, [tuple(row) for row in rows]


@pytest.mark.parametrize("seed", range(3))
def test_messages_that_come_five_times_in_any_order_end_a_batch_as_none_do(
    engine: Engine, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    post = Post(engine, pool, TIMES, seed)
    monkeypatch.setattr(broker, "publish", post.publish)
    five = submit()
    wait_until(lambda: post.deliver() or read(five).status == "completed")
    assert post.delivered >= 3 * TIMES

    # All messages are lost: only sweeps find the work.
    monkeypatch.setattr(broker, "publish", lambda messages: None)
    monkeypatch.setattr(recover, "LOST_AFTER", recover.LOST_AFTER * 0)
    none = submit()
    jobs = post.jobs

    def sweep() -> bool:
        for message in recover.due():
            jobs[message.job](*message.args)
        return read(none).status == "completed"

    wait_until(sweep)
    assert outcome(five) == outcome(none)


def test_the_tick_finds_ended_batches_whose_last_message_was_lost_however_many_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = {a_batch(chat_lines(1)) for _ in range(3)}
    monkeypatch.setattr(broker, "publish", lambda messages: None)
    for _ in ended:
        held = a_claim()
        record.record(held.key, held.fence, answers(held), to=TaskState.DONE)
    # As a poll does if more batches run than it checks.
    assert len(recover.due(ended_among=1)) == 1
    sent: list[Message] = []
    monkeypatch.setattr(broker, "publish", sent.extend)
    recover.tick()
    assert {message.id for message in sent if message.job is Job.FINALIZE} == {
        id.hex for id in ended
    }
