"""Cancel and expiry race the last line, in real transactions.

A batch ends once, and a line is billed if and only if it succeeded.
XALEN_TEST_RACES sets the number of batches; the default fits into a test run.
"""

import logging
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from uuid import UUID

import pytest
from sqlalchemy import func, update

from tests import factories
from tests.billing import REFUSED
from tests.integration.engines import read
from tests.outcome import assert_reconciled, assert_whole
from tests.waiting import PATIENCE
from xalen_batch import db
from xalen_batch.backends.contract import Answered
from xalen_batch.batches import batches
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import NotCancellable
from xalen_batch.models import Batch
from xalen_batch.pipeline import claim, finalize, record, recover, validate
from xalen_batch.pipeline.claim import Claim
from xalen_batch.states import TERMINAL, TaskState

pytestmark = pytest.mark.usefixtures("database", "valkey")

# Read at import, since the tests' environment has no variables of the developer.
RACES = int(os.environ.get("XALEN_TEST_RACES", "100"))
LINES = 2
ENDS = (Answered(200, b"{}", Usage(1_000, 500)), REFUSED)


def answer(held: Claim) -> None:
    rows = [
        record.row(
            record.LineRef(held.batch_id, line.line_no, held.model, line.custom_id),
            ENDS[number % 2],
            held.tariff,
        )
        for number, line in enumerate(held.lines)
    ]
    record.record(held.key, held.fence, rows, to=TaskState.DONE)
    finalize.run(held.batch_id)


def hand_back(held: Claim) -> None:
    record.record(held.key, held.fence, [], to=TaskState.PENDING)
    finalize.run(held.batch_id)


def cancel(held: Claim) -> None:
    with suppress(NotCancellable), db.transaction() as session:
        batches.cancel(session, session.get_one(Batch, held.batch_id))
    finalize.run(held.batch_id)


def expire(held: Claim) -> None:
    with db.transaction() as session:
        session.execute(
            update(Batch)
            .where(Batch.id == held.batch_id)
            .values(expires_at=func.now() - timedelta(seconds=1))
        )
    finalize.run(held.batch_id)


def sweep(held: Claim) -> None:
    for message in recover.due():
        if message.id is not None:
            finalize.run(UUID(hex=message.id))


def test_a_batch_has_one_end_whoever_comes_first() -> None:
    dice = random.Random(12)
    with db.transaction() as session:
        caller = factories.caller(session)
        file = factories.input_file(
            session, caller, [factories.chat_line(f"line-{n}") for n in range(LINES)]
        )
    ends: Counter[str] = Counter()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(RACES):
            held = a_task_in_flight(caller, file)
            racers = [
                answer if dice.random() < 0.8 else hand_back,
                *dice.sample([cancel, expire, sweep], dice.choice([1, 2, 3])),
            ]
            race(pool, [partial(racer, held) for racer in racers], dice)
            batch = ended(held.batch_id)
            # Lines that had succeeded are kept and billed, whatever the end status.
            unsuccessful = batch.total - batch.completed
            assert batch.completed == unsuccessful == 1 or (batch.completed, unsuccessful) == (
                0,
                LINES,
            )
            assert batch.failed == batch.completed
            assert (batch.status == "completed") <= (batch.completed == 1)
            ends[batch.status] += 1
    assert_reconciled()
    assert set(ends) == {"completed", "cancelled", "expired"}
    # Shown by `pytest --log-cli-level=info`.
    logging.getLogger(__name__).info("%d races: %s", RACES, dict(ends))


def a_task_in_flight(caller: factories.Caller, file: factories.File) -> Claim:
    with db.transaction() as session:
        batch_id = factories.batch(session, caller, file).id
    validate.run(batch_id)
    held = claim.claim([], with_suspects=True)
    assert held is not None
    assert (held.batch_id, len(held.lines)) == (batch_id, LINES)
    return held


def race(pool: ThreadPoolExecutor, racers: list[Callable[[], None]], dice: random.Random) -> None:
    barrier = threading.Barrier(len(racers))
    dice.shuffle(racers)

    def run(racer: Callable[[], None], delay: float) -> None:
        barrier.wait(PATIENCE)
        # Up to about the duration of a transaction, so that each racer is first at times.
        threading.Event().wait(delay)
        racer()

    running: list[Future[None]] = [
        pool.submit(run, racer, dice.choice([0, dice.uniform(0, 0.02)])) for racer in racers
    ]
    for racer in running:
        racer.result(30)


def ended(batch_id: UUID) -> Batch:
    """End the batch if none of the racers has; return it."""
    if read(batch_id).status not in TERMINAL:
        held = claim.claim([], with_suspects=True)
        if held is not None:
            answer(held)
        finalize.run(batch_id)
    return assert_whole(batch_id, LINES, is_proven=True)
