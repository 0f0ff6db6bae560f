"""Each line is charged at most once, with deliveries twice, late, reordered or never."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal, localcontext
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.exc import IntegrityError

from tests import factories
from tests.billing import REFUSED
from tests.conftest import as_owner
from xalen_batch import db, money
from xalen_batch.backends.contract import Answered, Refused
from xalen_batch.batches import batches
from xalen_batch.billing import invoices, prices, reconcile
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Batch, Price, Result, Task
from xalen_batch.pipeline import claim, finalize, record, recover, validate
from xalen_batch.states import BatchStatus, LineError, TaskState

pytestmark = pytest.mark.usefixtures("database", "valkey")

LINES = 7
# A question to the chat model, and query and documents to the reranker.
PROMPT = '{"query": "Where is my parcel?", "documents": ["On its way.", "Lost."]}'
# An answer of a repeated call is another answer, with other usage: only the recorded one is
# charged.
OUTCOMES = st.one_of(
    st.builds(
        lambda more, written, cached: Answered(200, b"{}", Usage(cached + more, written, cached)),
        *[st.integers(0, 5_000)] * 3,
    ),
    st.just(REFUSED),
)


@dataclass
class Worker:
    """A worker that has claimed a task.

    Without `is_owner`, its lease ran out or its task ended, and the worker does not know it.
    """

    held: claim.Claim
    recorded: list[record.Row] = field(default_factory=list)
    is_owner: bool = True

    @property
    def left(self) -> list[int]:
        done = {row.line.line_no for row in self.recorded}
        return [line.line_no for line in self.held.lines if line.line_no not in done]

    def row(self, line_no: int, outcome: Answered | Refused) -> record.Row:
        return record.row(
            record.LineRef(self.held.batch_id, line_no, self.held.model, f"line-{line_no}"),
            outcome,
            self.held.tariff,
        )


class Deliveries(RuleBasedStateMachine):
    """`charged` is the model: the right charge of each line that ended, None for a failed one."""

    def __init__(self) -> None:
        super().__init__()
        self.workers: list[Worker] = []
        self.charged: dict[int, Decimal | None] = {}

    @initialize(mixed=st.booleans(), livemode=st.booleans())
    def submit(self, mixed: bool, livemode: bool) -> None:
        models = [factories.CHAT_MODEL, factories.RERANK_MODEL if mixed else factories.CHAT_MODEL]
        lines = [
            factories.chat_line(f"line-{number}", PROMPT, model=models[number % 2])
            for number in range(1, LINES + 1)
        ]
        with as_owner() as session:
            session.execute(delete(Task))  # what an example that failed has left
        with db.transaction() as session:
            prices.sync(session, prices.differences(session))
            caller = factories.caller(session, livemode=livemode)
            self.batch_id = factories.batch(
                session, caller, factories.input_file(session, caller, lines)
            ).id
        validate.run(self.batch_id)

    @rule()
    def claim(self) -> None:
        held = claim.claim([], with_suspects=True)
        if held is not None:
            assert held.batch_id == self.batch_id
            assert not {line.line_no for line in held.lines} & set(self.charged)
            self.workers.append(Worker(held))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), outcomes=st.lists(OUTCOMES, min_size=3, max_size=3), is_end=st.booleans())
    def deliver(
        self, data: st.DataObject, outcomes: list[Answered | Refused], is_end: bool
    ) -> None:
        """Some answers of a worker arrive, in any order; a stale worker's arrive too late."""
        worker = data.draw(st.sampled_from(self.workers))
        lines = data.draw(st.permutations(worker.left))
        if not is_end:
            lines = lines[: data.draw(st.integers(0, len(lines)))]
        rows = [worker.row(line, outcome) for line, outcome in zip(lines, outcomes, strict=False)]
        self.record(worker, rows, TaskState.DONE if is_end else TaskState.RUNNING)

    def record(self, worker: Worker, rows: list[record.Row], to: TaskState) -> None:
        recorded = record.record(worker.held.key, worker.held.fence, rows, to=to)
        assert recorded.is_stale != worker.is_owner
        if worker.is_owner:
            self.charged |= {row.line.line_no: row.amount for row in rows}
            worker.recorded += rows
            worker.is_owner = to is TaskState.RUNNING

    @precondition(lambda self: any(worker.recorded for worker in self.workers))
    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        """Repeat a flush: the fence, the count of lines or the primary key refuses all of it."""
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.recorded]))
        if worker.is_owner:
            with pytest.raises((IntegrityError, psycopg.errors.UniqueViolation)):
                record.record(worker.held.key, worker.held.fence, worker.recorded)
        else:
            assert record.record(worker.held.key, worker.held.fence, worker.recorded).is_stale

    @precondition(lambda self: any(worker.is_owner for worker in self.workers))
    @rule(data=st.data())
    def hand_back(self, data: st.DataObject) -> None:
        self.record(
            data.draw(st.sampled_from([worker for worker in self.workers if worker.is_owner])),
            [],
            TaskState.PENDING,
        )

    @precondition(lambda self: any(worker.is_owner for worker in self.workers))
    @rule(data=st.data())
    def lose_worker(self, data: st.DataObject) -> None:
        """A lease runs out; the worker may only be frozen, and wake up later."""
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.is_owner]))
        self.expire(Task.batch_id == worker.held.key[0], Task.seq == worker.held.key[1])
        worker.is_owner = False

    def expire(self, *which: ColumnElement[bool]) -> None:
        with db.transaction() as session:
            session.execute(
                update(Task)
                .where(*which, Task.state == TaskState.RUNNING)
                .values(lease_until=func.now() - timedelta(seconds=1))
            )
        recover.due()
        self.learn_lost_lines()

    def learn_lost_lines(self) -> None:
        """A line that lost its worker again and again has failed alone."""
        with db.transaction() as session:
            lost = session.scalars(
                select(Result.line_no).where(
                    Result.batch_id == self.batch_id, Result.error_code == LineError.WORKER_LOST
                )
            ).all()
        self.charged = {**dict.fromkeys(lost), **self.charged}

    @rule()
    def change_prices(self) -> None:
        """Remove the prices of the batch's models; the batch keeps those of its creation."""
        with db.transaction() as session:
            session.execute(
                update(Price)
                .where(Price.valid_to.is_(None))
                .values(valid_to=func.clock_timestamp())
            )

    @precondition(lambda self: len(self.charged) > 2)
    @rule()
    def cancel(self) -> None:
        with db.transaction() as session:
            batches.cancel(session, session.get_one(Batch, self.batch_id))

    @invariant()
    def the_results_are_what_was_recorded_first(self) -> None:
        assert self.found() == self.charged

    def found(self) -> dict[int, Decimal | None]:
        with db.transaction() as session:
            rows = session.execute(
                select(Result.line_no, Result.amount).where(Result.batch_id == self.batch_id)
            ).all()
        return {row.line_no: row.amount for row in rows}

    def teardown(self) -> None:
        """End the batch: every line has ended once, and the invoice equals the charges."""
        if not hasattr(self, "batch_id"):
            return
        self.expire()
        while (held := claim.claim([], with_suspects=True)) is not None:
            worker = Worker(held)
            self.record(
                worker,
                [worker.row(line, Answered(200, b"{}", Usage(10, 1))) for line in worker.left],
                TaskState.DONE,
            )
        finalize.run(self.batch_id)
        with db.transaction() as session:
            batch = session.get_one(Batch, self.batch_id)
            invoice = invoices.of_batch(session, batch)
        found = self.found()
        assert {
            line: amount for line, amount in found.items() if line in self.charged
        } == self.charged
        assert batch.status in (BatchStatus.COMPLETED, BatchStatus.CANCELLED)
        assert len(found) == batch.total == LINES
        with localcontext(money.EXACT):
            assert invoice.total == sum(amount for amount in found.values() if amount is not None)
        assert list(reconcile.differences()) == []


def test_each_line_is_charged_at_most_once_however_it_is_delivered(
    configure: Callable[..., None], tmp_path: Path
) -> None:
    file = tmp_path / "catalog.toml"
    file.write_text(f'[models.{factories.CHAT_MODEL}]\nprice = {{ cached_input = "0.0007" }}\n')
    configure(task_lines=3, catalog=file)
    run_state_machine_as_test(
        Deliveries,
        settings=settings(
            max_examples=30,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            # Not `explain`: it takes minutes, and the steps of a failure speak for themselves.
            phases=[Phase.reuse, Phase.generate, Phase.shrink],
        ),
    )
