"""The life of a batch against a model in plain Python.

Messages come in any order, and processes crash at every step.
XALEN_TEST_STATEFUL sets the number of examples of a longer campaign, with twice the steps.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

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
from sqlalchemy import delete, func, select, update

from tests import factories
from tests.billing import REFUSED
from tests.conftest import as_owner, empty
from tests.factories import CHAT_MODEL, RERANK_MODEL
from tests.outcome import assert_whole
from xalen_batch import broker, catalog, db, files, ids
from xalen_batch.api import idempotency
from xalen_batch.backends.contract import Answered, Exhausted, Retryable
from xalen_batch.batches import batches
from xalen_batch.billing import invoices, prices
from xalen_batch.broker import Job, Message
from xalen_batch.endpoints.names import CHAT
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import FileBusy, InvalidRequest, NotCancellable
from xalen_batch.models import Batch, Invoice, InvoiceLine, Price, Result, Task
from xalen_batch.pipeline import claim, finalize, record, recover, validate
from xalen_batch.pipeline.record import Ended
from xalen_batch.states import BATCH_MOVES, BatchStatus, LineError, TaskState

pytestmark = pytest.mark.usefixtures("database", "valkey")

# Read at import, since the tests' environment has no variables of the developer.
EXAMPLES = int(os.environ.get("XALEN_TEST_STATEFUL", "0"))
PROMPT = '{"query": "Where is my parcel?", "documents": ["On its way.", "Lost."]}'
GONE = {"model": "no-such-model", "messages": [{"role": "user", "content": "?"}]}
# A call that is repeated is answered anew, with other usage: only the one on record is charged.
ENDS: st.SearchStrategy[Ended] = st.one_of(
    st.builds(
        lambda read, written: Answered(200, b"{}", Usage(read, written)),
        st.integers(0, 5_000),
        st.integers(0, 5_000),
    ),
    st.just(REFUSED),
    st.just(Exhausted(Retryable("no answer", is_timeout=True), 5)),
)


class Killed(BaseException):
    """Stands for `kill -9`: uncommitted work is lost, and no clean-up runs."""


@dataclass
class Known:
    """The model: the expected state of a batch."""

    owner: Any
    lines: int
    prices: Mapping[str, Mapping[str, str]]
    # Lines that cannot pass validation.
    is_bad: bool
    statuses: list[str] = field(default_factory=lambda: [BatchStatus.VALIDATING.value])
    # The right charge of each line that ended; None for one that failed.
    ended: dict[int, Decimal | None] = field(default_factory=dict)
    is_cancelled: bool = False
    is_overdue: bool = False
    invoice: tuple[Any, ...] | None = None


@dataclass
class Worker:
    """A worker that holds a task.

    Without `is_owner`, its lease ran out or its task ended, and the worker does not know it.
    """

    held: claim.Claim
    is_owner: bool = True
    done: set[int] = field(default_factory=set)

    @property
    def left(self) -> list[claim.ClaimedLine]:
        return [line for line in self.held.lines if line.line_no not in self.done]


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.known: dict[UUID, Known] = {}
        self.workers: list[Worker] = []
        self.messages: list[Message] = []
        self.by_key: dict[str, UUID] = {}
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(broker, "publish", self.messages.extend)

    @initialize(lines=st.integers(1, 7), mixed=st.booleans(), is_validated=st.booleans())
    def begin(self, lines: int, mixed: bool, is_validated: bool) -> None:
        empty()
        with db.transaction() as session:
            self.owner = factories.caller(session)
        self.create(lines, mixed, 1, None)
        if is_validated:
            self.run(self.messages.pop(), None)

    # Rules: callers, prices and deadlines.

    @precondition(lambda self: len(self.known) < 3)
    @rule(
        lines=st.integers(1, 7),
        mixed=st.booleans(),
        is_bad=st.integers(0, 4),
        key=st.sampled_from([None, "a", "b"]),
    )
    def create(self, lines: int, mixed: bool, is_bad: int, key: str | None) -> None:
        models = [CHAT_MODEL, RERANK_MODEL if mixed else CHAT_MODEL]
        content = [
            factories.chat_line(f"line-{n}", PROMPT, model=models[n % 2]) for n in range(lines)
        ]
        if is_bad == 0:
            content[lines // 2]["body"] = GONE
        with db.transaction() as session:
            file = factories.input_file(session, self.owner, content)
        self.send(key, file.id, lines, is_bad == 0)

    def send(self, key: str | None, file_id: UUID, lines: int, is_bad: bool) -> None:
        made: list[UUID] = []

        def make() -> bytes:
            batch = batches.create(
                session,
                self.owner,
                input_file_id=ids.render("file", file_id),
                endpoint=CHAT,
                completion_window="24h",
            )
            made.append(batch.id)
            return batch.id.bytes

        with db.reading() as session:
            frozen = batches.offered(session, self.owner, CHAT).prices
        if not frozen and key not in self.by_key:
            with pytest.raises(InvalidRequest, match="has no price"), db.transaction() as session:
                idempotency.once(
                    session,
                    self.owner,
                    key,
                    route="POST /v1/batches",
                    fingerprint=b"same",
                    create=make,
                )
            return
        with db.transaction() as session:
            answer = idempotency.once(
                session, self.owner, key, route="POST /v1/batches", fingerprint=b"same", create=make
            )
        id = UUID(bytes=answer.body)
        assert answer.is_replay == (not made)
        assert id == self.by_key.get(key, id) if key else made == [id]
        if key:
            self.by_key[key] = id
        if made:
            self.known[id] = Known(self.owner, lines, frozen, is_bad)

    # One rule for all disturbances: as separate rules they would be most of the steps, and few
    # batches would ever run.
    @precondition(lambda self: self.known)
    @rule(data=st.data(), how=st.sampled_from(["prices", "delete", "cancel", "deadline"]))
    def meddle(self, data: st.DataObject, how: str) -> None:
        id = self.some_batch(data)
        if how == "prices":
            self.change_prices(data.draw(st.sampled_from(["0.02", "0.03", "7", None])))
        elif how == "delete":
            self.delete_file(id)
        elif how == "cancel":
            self.cancel(id)
        else:
            self.pass_deadline(id)

    def cancel(self, id: UUID) -> None:
        with db.transaction() as session:
            batch = session.get_one(Batch, id)
            if self.is_cancellable(batch.status):
                batches.cancel(session, batch)
                self.known[id].is_cancelled = True
            else:
                with pytest.raises(NotCancellable):
                    batches.cancel(session, batch)

    def is_cancellable(self, status: str) -> bool:
        return status in ("validating", "in_progress", "cancelling", "cancelled")

    def delete_file(self, id: UUID) -> None:
        """Delete a batch's input file; this is refused until the batch has ended."""
        with db.transaction() as session:
            batch = session.get_one(Batch, id)
            name = ids.render("file", batch.input_file_id)
            if not BatchStatus(batch.status).is_terminal:
                with pytest.raises((InvalidRequest, FileBusy)):
                    files.delete(session, self.owner, name)
                return
            file = session.get_one(factories.File, batch.input_file_id)
            if file.deleted_at is None:
                files.delete(session, self.owner, name)

    def change_prices(self, usd: str | None) -> None:
        """Set new prices, which apply to new batches; None: remove all prices."""
        with db.transaction() as session:
            session.execute(
                update(Price)
                .where(Price.valid_to.is_(None))
                .values(valid_to=func.clock_timestamp())
            )
            if usd is not None:
                for model in catalog.models().values():
                    change = prices.Change(model.id, "input", False, None, Decimal(usd))
                    prices._open(
                        session,
                        change,
                        Decimal(usd),
                        session.scalar(select(func.clock_timestamp())),
                    )

    def pass_deadline(self, id: UUID) -> None:
        with db.transaction() as session:
            session.execute(
                update(Batch)
                .where(Batch.id == id)
                .values(expires_at=func.now() - timedelta(seconds=1))
            )
        self.known[id].is_overdue = True

    # Rules: time and faults.

    @precondition(lambda self: self.workers)
    @rule(is_all=st.booleans(), data=st.data())
    def end_leases(self, is_all: bool, data: st.DataObject) -> None:
        """Let leases run out; their workers may be dead, or only frozen."""
        owners = self.owners
        self.lose(owners if is_all or not owners else [data.draw(st.sampled_from(owners))])

    @precondition(lambda self: self.owners)
    @rule(data=st.data(), ends=st.lists(ENDS, min_size=7, max_size=7))
    def freeze(self, data: st.DataObject, ends: list[Ended]) -> None:
        """Freeze a worker until another may have its task, then resume it."""
        worker = data.draw(st.sampled_from(self.owners))
        self.lose([worker])
        self.take()
        assert self.write(worker, worker.left, ends, TaskState.DONE).is_stale

    @property
    def owners(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.is_owner]

    def lose(self, lost: list[Worker]) -> None:
        past = func.now() - timedelta(seconds=1)
        with db.transaction() as session:
            for worker in lost:
                batch_id, seq = worker.held.key
                session.execute(
                    update(Task)
                    .where(
                        Task.batch_id == batch_id, Task.seq == seq, Task.state == TaskState.RUNNING
                    )
                    .values(lease_until=past)
                )
                worker.is_owner = False
            session.execute(
                update(Batch).where(Batch.lease_until.is_not(None)).values(lease_until=past)
            )
        recover.due()
        self.learn()

    @rule(is_tick=st.booleans())
    def sweep(self, is_tick: bool) -> None:
        with db.transaction() as session:
            # Old enough to count as lost, even on a fast machine.
            session.execute(update(Batch).values(created_at=Batch.created_at - recover.LOST_AFTER))
        if is_tick:
            recover.tick()
        else:
            self.messages += recover.due()
        self.learn()

    # Rules: workers.

    @precondition(lambda self: self.messages)
    @rule(
        data=st.data(),
        times=st.sampled_from([1, 1, 2, 0]),
        dies=st.sampled_from([None, None, None, "between", "uncommitted", "midway"]),
    )
    def deliver(self, data: st.DataObject, times: int, dies: str | None) -> None:
        """Deliver a message in any order, zero, one or two times; its receiver may be killed."""
        message = self.messages.pop(data.draw(st.integers(0, len(self.messages) - 1)))
        for _ in range(times):
            self.run(message, dies)

    @precondition(lambda self: self.known)
    @rule(
        data=st.data(),
        job=st.sampled_from([Job.VALIDATE, Job.FINALIZE]),
        dies=st.sampled_from([None, "between", "uncommitted", "midway"]),
    )
    def deliver_late(self, data: st.DataObject, job: Job, dies: str | None) -> None:
        """Deliver a message that was never sent, or was sent long ago."""
        self.run(Message(job, self.some_batch(data).hex), dies)

    def run(self, message: Message, dies: str | None) -> None:
        jobs = {Job.VALIDATE: validate.run, Job.FINALIZE: finalize.run}
        if message.job in jobs:
            with killed(dies):
                jobs[message.job](UUID(hex=message.id))
            self.learn()
        elif message.job is Job.EXECUTE:
            self.take()

    @precondition(
        lambda self: any(
            known.statuses[-1] == BatchStatus.IN_PROGRESS for known in self.known.values()
        )
    )
    @rule(tasks=st.integers(1, 3))
    def work(self, tasks: int) -> None:
        for _ in range(tasks):
            self.take()

    def take(self) -> None:
        held = claim.claim([], with_suspects=True)
        if held is None:
            return
        known = self.known[held.batch_id]
        assert not known.is_cancelled
        assert not known.is_overdue
        assert not {line.line_no for line in held.lines} & set(known.ended)
        if held.is_suspect:
            record.record(held.key, held.fence, [], crashes=1)
        self.workers.append(Worker(held))

    @precondition(lambda self: self.workers)
    @rule(
        data=st.data(),
        ends=st.lists(ENDS, min_size=7, max_size=7),
        how=st.sampled_from(["goes on", "ends", "hands back", "dies"]),
    )
    def answer(self, data: st.DataObject, ends: list[Ended], how: str) -> None:
        """End some lines of a worker's task, in any order.

        A worker that lost its task comes too late, and one that is killed has not committed.
        """
        worker = data.draw(st.sampled_from(self.workers))
        lines = data.draw(st.permutations(worker.left))
        if how != "ends":
            lines = lines[: data.draw(st.integers(0, len(lines)))]
        to = {"ends": TaskState.DONE, "hands back": TaskState.PENDING}.get(how, TaskState.RUNNING)
        with killed("uncommitted" if how == "dies" and lines else None):
            recorded = self.write(worker, lines, ends, to)
            assert recorded.is_stale != worker.is_owner
            worker.is_owner &= to is TaskState.RUNNING

    def write(
        self,
        worker: Worker,
        lines: Sequence[claim.ClaimedLine],
        ends: Sequence[Ended],
        to: TaskState,
    ) -> record.Recorded:
        held = worker.held
        rows = [
            record.row(
                record.LineRef(held.batch_id, line.line_no, held.model, line.custom_id),
                end,
                held.tariff,
            )
            for line, end in zip(lines, ends, strict=False)
        ]
        recorded = record.record(
            held.key,
            held.fence,
            rows,
            to=to,
            crashes=-int(held.is_suspect and to is TaskState.PENDING),
        )
        if not recorded.is_stale:
            worker.done |= {row.line.line_no for row in rows}
            self.known[held.batch_id].ended |= {row.line.line_no: row.amount for row in rows}
        return recorded

    # Invariants.

    def some_batch(self, data: st.DataObject) -> UUID:
        return data.draw(st.sampled_from(sorted(self.known)))

    def learn(self) -> None:
        """Note the lines that ended without a worker: not run, or failed as poison."""
        codes = [LineError.WORKER_LOST, LineError.BATCH_CANCELLED, LineError.BATCH_EXPIRED]
        with db.transaction() as session:
            for row in session.execute(
                select(Result.batch_id, Result.line_no, Result.error_code).where(
                    Result.error_code.in_(codes)
                )
            ):
                known = self.known[row.batch_id]
                assert known.ended.setdefault(row.line_no, None) is None
                if row.error_code == LineError.BATCH_CANCELLED:
                    assert known.is_cancelled
                if row.error_code == LineError.BATCH_EXPIRED:
                    assert known.is_overdue

    @invariant()
    def a_status_moves_only_along_its_edges(self) -> None:
        with db.transaction() as session:
            found = {row.id: row.status for row in session.execute(select(Batch.id, Batch.status))}
        assert set(found) == set(self.known)
        for id, status in found.items():
            seen = self.known[id].statuses
            if status != seen[-1]:
                assert is_reachable(seen[-1], status)
                seen.append(status)

    @invariant()
    def the_results_are_what_was_recorded_first(self) -> None:
        with db.transaction() as session:
            rows = session.execute(select(Result.batch_id, Result.line_no, Result.amount)).all()
        for id, known in self.known.items():
            assert {row.line_no: row.amount for row in rows if row.batch_id == id} == known.ended

    @invariant()
    def progress_counts_the_results(self) -> None:
        with db.transaction() as session:
            found = session.scalars(select(Batch)).all()
            counted = batches.progress(session, found)
        for id, known in self.known.items():
            charged = sum(amount is not None for amount in known.ended.values())
            assert (counted[id].completed, counted[id].done) == (charged, len(known.ended))

    @invariant()
    def prices_stay_frozen(self) -> None:
        with db.transaction() as session:
            for row in session.execute(select(Batch.id, Batch.price_snapshot)):
                assert row.price_snapshot == self.known[row.id].prices

    @invariant()
    def an_invoice_never_changes(self) -> None:
        with db.transaction() as session:
            issued = {
                id: invoice_of(session, id) for id in session.scalars(select(Invoice.batch_id))
            }
        for id, known in self.known.items():
            if known.invoice is not None:
                assert issued[id] == known.invoice
            known.invoice = issued.get(id)

    def teardown(self) -> None:
        """End the batch by sweeps alone: no message arrives, and every lease ends."""
        try:
            if not hasattr(self, "owner"):
                return
            for _ in range(12):
                self.end_all()
            for id, known in self.known.items():
                batch = assert_whole(id)
                was_given_up = bool(batch.errors) and batch.errors[0]["code"] == "file_not_readable"
                assert batch.status in ends_of(known, was_given_up)
                if (
                    batch.status != BatchStatus.FAILED
                    and known.statuses != ["validating", "cancelling", "cancelled"]
                    and batch.total
                ):
                    assert batch.total == known.lines
            self.the_results_are_what_was_recorded_first()
            self.an_invoice_never_changes()
        finally:
            self.patch.undo()
            with as_owner() as session:
                session.execute(delete(Task))

    def end_all(self) -> None:
        with db.transaction() as session:
            past = func.now() - timedelta(seconds=1)
            session.execute(
                update(Task).where(Task.state == TaskState.RUNNING).values(lease_until=past)
            )
            session.execute(update(Task).values(not_before=None))
            session.execute(
                update(Batch).where(Batch.lease_until.is_not(None)).values(lease_until=past)
            )
            session.execute(update(Batch).values(created_at=Batch.created_at - recover.LOST_AFTER))
        for worker in self.workers:
            worker.is_owner = False
        due = recover.due()
        self.learn()
        while (held := claim.claim([], with_suspects=True)) is not None:
            worker = Worker(held)
            assert not self.write(
                worker,
                worker.left,
                [Answered(200, b"{}", Usage(10, 1))] * len(worker.left),
                TaskState.DONE,
            ).is_stale
        for message in due:
            self.run(message, None)
        self.a_status_moves_only_along_its_edges()


def is_reachable(source: str, target: str) -> bool:
    """Whether a status leads to another in any number of moves, since one step may make several."""
    found, ahead = set(), [BatchStatus(source)]
    while ahead:
        status = ahead.pop()
        if status not in found:
            found.add(status)
            ahead += BATCH_MOVES[status]
    return BatchStatus(target) in found - {BatchStatus(source)}


def ends_of(known: Known, was_given_up: bool) -> set[str]:
    """The end statuses that a batch may have.

    `was_given_up`: it failed because no worker read its file by its deadline.
    """
    if known.is_cancelled:
        return {"cancelled"}
    if known.is_bad or (was_given_up and known.is_overdue):
        return {"failed"}
    return {"completed", "expired"} if known.is_overdue else {"completed"}


def invoice_of(session: Any, batch_id: UUID) -> tuple[Any, ...]:
    invoice = session.scalars(select(Invoice).where(Invoice.batch_id == batch_id)).one()
    lines = session.execute(
        select(*InvoiceLine.__table__.columns)
        .where(InvoiceLine.invoice_id == invoice.id)
        .order_by(InvoiceLine.position)
    )
    return (invoice.id, invoice.total, invoice.issued_at, *map(tuple, lines))


@contextmanager
def killed(where: str | None) -> Iterator[list[bool]]:
    """Kill the process that runs in this block.

    `midway`: while it reads the file, before the commit. `between`: between two transactions.
    """
    hit: list[bool] = []

    def die(*_: object, **__: object) -> None:
        hit.append(True)
        raise Killed

    def then_die(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> None:
            function(*args, **kwargs)
            die()

        return run

    with pytest.MonkeyPatch.context() as patch:
        if where == "uncommitted":
            patch.setattr(record, "insert", then_die(record.insert))
            patch.setattr(validate, "_insert", then_die(validate._insert))
            patch.setattr(invoices, "issue", then_die(invoices.issue))
        elif where == "midway":
            patch.setattr(validate, "_extending", lambda lease: die)
            patch.setattr(finalize, "_totals", die)
        elif where == "between":
            patch.setattr(validate, "_read", die)
            patch.setattr(finalize, "_complete", die)
        try:
            yield hit
        except Killed:
            return


def test_a_batch_ends_once_and_whole_whatever_happens_on_its_way(
    configure: Callable[..., None],
) -> None:
    configure(task_lines=3)
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=EXAMPLES or 20,
            stateful_step_count=60 if EXAMPLES else 30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            # Not `explain`: it takes minutes, and the steps of a failure speak for themselves.
            phases=[Phase.reuse, Phase.generate, Phase.shrink],
        ),
    )
