"""The sums that tasks keep equal the sums over the results."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import event, update
from sqlalchemy.orm import Session

from tests import factories
from tests.billing import REFUSED, Ran, running
from tests.factories import CHAT_MODEL, RERANK_MODEL
from xalen_batch import db
from xalen_batch.backends.contract import Answered, Ended, Exhausted, Refused, Retryable
from xalen_batch.billing import invoices, sums
from xalen_batch.billing.charges import COMPONENTS, Tariff
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Batch, Task
from xalen_batch.models import tasks as task_rows
from xalen_batch.pipeline import record
from xalen_batch.states import BatchStatus, LineError, TaskState

pytestmark = pytest.mark.usefixtures("database", "valkey")

TOKENS = st.integers(0, 10**6)
USAGES = st.one_of(
    st.builds(Usage, TOKENS, TOKENS, counted=st.booleans()),
    st.builds(lambda more, written, cached: Usage(cached + more, written, cached), *[TOKENS] * 3),
)
OUTCOMES: st.SearchStrategy[Ended | LineError] = st.one_of(
    st.builds(Answered, st.just(200), st.just(b"{}"), USAGES),
    st.builds(Refused, st.sampled_from([400, 404, 422]), st.just(b"{}")),
    st.builds(
        Exhausted,
        st.builds(Retryable, st.just("no"), st.sampled_from([None, 200, 503])),
        st.just(3),
    ),
    st.sampled_from([LineError.WORKER_LOST, LineError.BATCH_CANCELLED, LineError.BATCH_EXPIRED]),
)
PRICES = st.dictionaries(
    st.sampled_from(COMPONENTS), st.decimals(0, 1_000, places=7).map(lambda price: f"{price:f}")
)
RATES = st.decimals(0, 1, places=4)
MODELS = st.sampled_from(["", CHAT_MODEL, RERANK_MODEL])
# Of one task: its model, and the outcomes of each flush.
FLUSHES = st.tuples(
    MODELS,
    st.lists(st.lists(OUTCOMES, max_size=5), max_size=4),
)


def batch_of(session: Session, lines: int, **columns: Any) -> Batch:
    caller = factories.caller(session)
    return factories.batch(
        session,
        caller,
        factories.input_file(session, caller, b""),
        status=BatchStatus.IN_PROGRESS.value,
        total=lines,
        **columns,
    )


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(FLUSHES, max_size=4), st.dictionaries(MODELS, PRICES), RATES, st.booleans())
def test_the_sums_of_the_tasks_equal_those_of_the_results(
    ran: list[tuple[str, list[list[Ended | LineError]]]],
    prices: dict[str, dict[str, str]],
    rate: Decimal,
    is_ended_unclaimed: bool,
) -> None:
    """Each flush goes through `tasks.advance`, and the last of a task that no worker claimed
    through `tasks.end`."""
    lines = sum(len(flush) for _, flushes in ran for flush in flushes)
    with db.transaction() as session:
        batch = batch_of(session, lines, price_snapshot=prices, discount_rate=rate)
        line_no = 0
        for seq, (model, flushes) in enumerate(ran):
            tariff = Tariff(prices.get(model, {}), rate)
            count = sum(map(len, flushes))
            task = Task(
                batch_id=batch.id,
                seq=seq,
                model=model,
                state=TaskState.RUNNING.value,
                lines=count,
                line_index=b"",
                fence=0,
            )
            session.add(task)
            session.flush()
            for number, flush in enumerate(flushes):
                rows = []
                for outcome in flush:
                    line_no += 1
                    line = record.LineRef(batch.id, line_no, model, f"line-{line_no}")
                    if isinstance(outcome, LineError):
                        rows.append(record.unanswered(line, outcome, "why"))
                    else:
                        rows.append(record.row(line, outcome, tariff))
                is_last = number == len(flushes) - 1
                to = TaskState.PENDING if is_last and is_ended_unclaimed else TaskState.RUNNING
                if is_last and is_ended_unclaimed:
                    assert advance(session, task, [], to)
                    assert task_rows.end(session, task, record.counts(rows))
                else:
                    assert advance(session, task, rows, to)
                record.insert(session, rows)
        kept = sums.of_tasks(session, batch.id, lines=lines)
        assert kept == sums.of_results(session, batch.id)


def advance(session: Session, task: Task, rows: list[record.Row], to: TaskState) -> Any:
    return task_rows.advance(
        session, task.key, 0, to=to, lease=60, pause=None, counts=record.counts(rows)
    )


MIXED = [
    Ran(Usage(1_234, 567, cached_tokens=1_000)),
    Ran(Usage(20, 3, counted=True)),
    Ran(REFUSED),
    Ran(Usage(5), RERANK_MODEL),
    Ran(LineError.REQUEST_TIMEOUT, RERANK_MODEL),
]


@pytest.mark.parametrize("missing", [1, 2])
def test_results_of_an_older_version_make_the_results_be_summed(missing: int) -> None:
    """Such a worker advances the counters of a task, and knows no sums."""
    with db.transaction() as session:
        expected = invoices.issue(session, running(session, MIXED))
        batch = running(session, MIXED)
        session.execute(
            update(Task)
            .where(Task.batch_id == batch.id, Task.model == CHAT_MODEL)
            .values(
                summed=Task.summed - missing,
                charged=0,
                counted_input_tokens=0,
                counted_output_tokens=0,
                not_billed=None,
            )
        )
        assert sums.of_tasks(session, batch.id, lines=len(MIXED)) is None
        invoice = invoices.issue(session, batch)
    assert invoice.total == expected.total
    assert [(line.reason, line.quantity) for line in invoice.lines] == [
        (line.reason, line.quantity) for line in expected.lines
    ]


def test_the_end_of_a_batch_reads_no_results() -> None:
    statements: list[str] = []
    with db.transaction() as session:
        batch = running(session, MIXED)
        listener = lambda *call: statements.append(call[2])  # noqa: E731
        event.listen(db.engine(), "before_cursor_execute", listener)
        try:
            invoices.issue(session, batch)
        finally:
            event.remove(db.engine(), "before_cursor_execute", listener)
    assert statements
    assert not [statement for statement in statements if "results" in statement]
