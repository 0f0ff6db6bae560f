"""The invoice of a batch: exact, complete, issued once, and never changed."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from tests import factories
from tests.billing import REFUSED, Ran, ended, running
from tests.conftest import as_owner
from tests.factories import CHAT_MODEL, RERANK_MODEL
from xalen_batch import db, ids, money
from xalen_batch.backends.contract import Refused
from xalen_batch.billing import invoices
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import NotFound
from xalen_batch.models import Batch, Invoice, InvoiceLine, Result, ScheduleRun, Task
from xalen_batch.schedules import runs, schedules
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.runs import Trigger
from xalen_batch.states import BatchStatus, LineError, RunState

pytestmark = pytest.mark.usefixtures("database", "valkey")

OUTCOMES = st.one_of(
    st.builds(Usage, input_tokens=st.integers(0, 10**6), output_tokens=st.integers(0, 10**6)),
    st.sampled_from([REFUSED, LineError.BATCH_CANCELLED, LineError.REQUEST_TIMEOUT]),
)
RUNS = st.builds(Ran, OUTCOMES, st.sampled_from([CHAT_MODEL, RERANK_MODEL]))


def invoice_of(lines: list[Ran], **columns: Any) -> dict[str, Any]:
    with db.transaction() as session:
        return invoices.render(invoices.issue(session, running(session, lines, **columns)))


def shown(invoice: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (
            line["kind"],
            line["model"],
            line["component"],
            line["quantity"],
            line["reason"],
            line["amount"],
        )
        for line in invoice["lines"]
    ]


def test_one_chat_line() -> None:
    invoice = invoice_of([Ran(Usage(1_234, 567))])
    assert (invoice["subtotal"], invoice["discount"], invoice["total"]) == (
        "0.00004736",
        "-0.00002368",
        "0.00002368",
    )


def test_a_chat_batch() -> None:
    invoice = invoice_of([Ran(Usage(61_000_000, 9_000_000)), Ran(Usage(203_477, 640_915))])
    assert shown(invoice) == [
        ("usage", CHAT_MODEL, "input", "61203477", None, "1.22406954"),
        ("usage", CHAT_MODEL, "output", "9640915", None, "0.3856366"),
        ("discount", None, None, None, None, "-0.80485307"),
    ]
    assert [line["unit_price"] for line in invoice["lines"]] == ["0.02", "0.04", "0.50"]
    assert invoice["lines"][2]["description"] == "Batch discount, 50 %"
    assert invoice["total"] == "0.80485307"


CACHED = {CHAT_MODEL: {"input": "0.02", "cached_input": "0.002", "output": "0.04"}}
HALF_CACHED = Ran(Usage(2_000, 100, cached_tokens=1_000))


def test_cached_input_without_a_price_costs_what_input_costs_and_the_invoice_says_so() -> None:
    invoice = invoice_of([HALF_CACHED, Ran(Usage(500, 0, 7)), Ran(Usage(9, counted=True))])
    assert [line["description"] for line in invoice["lines"]] == [
        f"{CHAT_MODEL}, input tokens, of which 1007 cached, at the input price",
        f"{CHAT_MODEL}, output tokens",
        f"{CHAT_MODEL}, input tokens counted by xalen-batch",
        "Batch discount, 50 %",
    ]
    assert shown(invoice)[0] == ("usage", CHAT_MODEL, "input", "2500", None, "0.00005")


def test_cached_input_with_a_price_is_a_line_of_its_own() -> None:
    invoice = invoice_of([HALF_CACHED, Ran(Usage(500))], price_snapshot=CACHED)
    assert shown(invoice) == [
        ("usage", CHAT_MODEL, "input", "1500", None, "0.00003"),
        ("usage", CHAT_MODEL, "cached_input", "1000", None, "0.000002"),
        ("usage", CHAT_MODEL, "output", "100", None, "0.000004"),
        ("discount", None, None, None, None, "-0.000018"),
    ]
    assert invoice["lines"][1]["description"] == f"{CHAT_MODEL}, cached input tokens"
    assert invoice["total"] == "0.000018"


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(0, 10**5), st.integers(0, 10**5), st.booleans()), max_size=6),
    st.booleans(),
)
def test_workers_of_a_version_without_cached_input_leave_an_invoice_equal_to_the_charges(
    lines: list[tuple[int, int, bool]], has_sums: bool
) -> None:
    """Such a worker charges cached tokens as other input; the invoice shows what was charged."""
    ran = [Ran(Usage(others + cached, 3, cached)) for others, cached, _ in lines]
    old = [number for number, (_, _, is_old) in enumerate(lines, start=1) if is_old]
    with db.transaction() as session:
        batch = running(session, ran, price_snapshot=CACHED, old=old)
        if not has_sums:
            session.execute(update(Task).where(Task.batch_id == batch.id).values(summed=0))
        invoice = invoices.issue(session, batch)
        charged = session.scalar(
            select(func.coalesce(func.sum(Result.amount), 0)).where(Result.batch_id == batch.id)
        )
    assert invoice.total == charged
    assert sum(
        int(line.quantity or 0) for line in invoice.lines if line.component == "cached_input"
    ) == sum(cached for _, cached, is_old in lines if not is_old)


def test_a_rerank_batch_has_no_output_line() -> None:
    invoice = invoice_of([Ran(Usage(333_333_333), RERANK_MODEL)])
    assert shown(invoice) == [
        ("usage", RERANK_MODEL, "input", "333333333", None, "0.999999999"),
        ("discount", None, None, None, None, "-0.4999999995"),
    ]
    assert invoice["total"] == "0.4999999995"


def test_models_of_one_batch_are_accounted_apart_with_one_discount() -> None:
    invoice = invoice_of(
        [Ran(Usage(100, 10)), Ran(Usage(1_000), RERANK_MODEL), Ran(Usage(100, 10))]
    )
    assert [
        (kind, model, component, quantity)
        for kind, model, component, quantity, *_ in shown(invoice)
    ] == [
        ("usage", RERANK_MODEL, "input", "1000"),
        ("usage", CHAT_MODEL, "input", "200"),
        ("usage", CHAT_MODEL, "output", "20"),
        ("discount", None, None, None),
    ]


def test_lines_that_did_not_succeed_are_listed_at_zero_with_the_reason() -> None:
    invoice = invoice_of(
        [
            Ran(Usage(100, 10)),
            Ran(REFUSED),
            Ran(REFUSED),
            Ran(Refused(500, b"{}")),
            Ran(LineError.BATCH_EXPIRED),
            Ran(LineError.BATCH_CANCELLED, RERANK_MODEL),
        ]
    )
    assert [line for line in shown(invoice) if line[0] == "not_billed"] == [
        ("not_billed", RERANK_MODEL, None, "1", "batch_cancelled", "0.00"),
        ("not_billed", CHAT_MODEL, None, "1", "batch_expired", "0.00"),
        ("not_billed", CHAT_MODEL, None, "2", "http_400", "0.00"),
        ("not_billed", CHAT_MODEL, None, "1", "http_500", "0.00"),
    ]


def test_usage_without_a_price_is_billed_nothing_listed_and_alerted() -> None:
    with capture_logs() as logs:
        invoice = invoice_of([Ran(Usage(1_000, 7), RERANK_MODEL)])
    assert shown(invoice)[-1] == ("not_billed", RERANK_MODEL, "output", "7", "no_price", "0.00")
    assert invoice["total"] == "0.0000015"
    (alert,) = [entry for entry in logs if entry["event"] == "usage.unpriced"]
    assert (alert["log_level"], alert["component"], alert["tokens"]) == ("warning", "output", 7)


def test_a_batch_with_nothing_billed_has_an_invoice_of_zero() -> None:
    invoice = invoice_of([Ran(REFUSED)])
    assert shown(invoice) == [
        ("discount", None, None, None, None, "0.00"),
        ("not_billed", CHAT_MODEL, None, "1", "http_400", "0.00"),
    ]
    assert invoice["total"] == "0.00"


def test_the_discount_is_the_one_frozen_in_the_batch() -> None:
    invoice = invoice_of([Ran(Usage(1_000_000, 0))], discount_rate=Decimal("0.125"))
    assert (invoice["lines"][1]["description"], invoice["discount"], invoice["total"]) == (
        "Batch discount, 12.5 %",
        "-0.0025",
        "0.0175",
    )


@pytest.mark.parametrize("livemode", [False, True])
def test_only_a_live_invoice_is_real_money(livemode: bool) -> None:
    invoice = invoice_of([Ran(Usage(1, 1))], livemode=livemode)
    assert (invoice["livemode"], invoice["payable"]) == (livemode, livemode)


def test_an_invoice_names_everything_and_holds_no_float() -> None:
    batch = ended([Ran(Usage(1_234, 567)), Ran(REFUSED)])
    with db.transaction() as session:
        invoice = invoices.render(invoices.of_batch(session, batch))
    assert set(invoice) == {
        *(
            "id",
            "object",
            "status",
            "livemode",
            "payable",
            "account_id",
            "batch_id",
            "schedule",
            "currency",
            "issued_at",
        ),
        *("lines", "subtotal", "discount", "total"),
    }
    assert (invoice["object"], invoice["status"], invoice["currency"]) == (
        "invoice",
        "issued",
        "USD",
    )
    assert invoice["batch_id"] == ids.render("batch", batch.id)
    assert ids.parse("inv", invoice["id"])
    assert invoice["schedule"] is None
    json.loads(json.dumps(invoice), parse_float=pytest.fail)


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(RUNS, max_size=12))
def test_lines_sum_to_the_total_and_exactly_those_that_succeeded_are_charged(
    lines: list[Ran],
) -> None:
    with db.transaction() as session:
        batch = running(session, lines)
        invoice = invoices.issue(session, batch)
        results = session.scalars(select(Result).where(Result.batch_id == batch.id)).all()
    charges = [result.amount for result in results if result.amount is not None]
    with localcontext(money.EXACT):
        assert sum(line.amount for line in invoice.lines) == invoice.total == sum(charges)
        assert (
            sum(Decimal(line["amount"]) for line in invoices.render(invoice)["lines"])
            == invoice.total
        )
    assert len(charges) == sum(isinstance(line.outcome, Usage) for line in lines)
    not_billed = sum(
        line.quantity or 0
        for line in invoice.lines
        if line.kind == "not_billed" and line.component is None
    )
    assert len(charges) + not_billed == len(lines)


@hypothesis_settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data(), st.lists(RUNS, min_size=1, max_size=8))
def test_the_order_of_lines_and_a_split_into_two_batches_change_no_total(
    data: st.DataObject, lines: list[Ran]
) -> None:
    cut = data.draw(st.integers(0, len(lines)))
    shuffled = data.draw(st.permutations(lines))
    whole, *parts = (
        Decimal(invoice_of(part)["total"]) for part in (lines, shuffled[:cut], shuffled[cut:])
    )
    assert sum(parts) == whole


def test_issuing_again_returns_the_same_invoice_byte_for_byte() -> None:
    with db.transaction() as session:
        batch = running(
            session, [Ran(Usage(1_234, 567)), Ran(REFUSED), Ran(Usage(5), RERANK_MODEL)]
        )
        first = json.dumps(invoices.render(invoices.issue(session, batch)))
    for _ in range(3):
        with db.transaction() as session:
            assert json.dumps(invoices.render(invoices.issue(session, batch))) == first
            assert json.dumps(invoices.render(invoices.of_batch(session, batch))) == first


def test_the_invoice_of_a_schedules_batch_names_the_schedule_as_it_was_called_when_it_ran() -> None:
    with db.transaction() as session:
        caller = factories.caller(session)
        schedule = factories.schedule(session, caller, name="Nightly digest", inbox={})
        run = ScheduleRun(
            **runs.blank(
                schedule,
                datetime(2026, 11, 25, 1, 30, tzinfo=UTC),
                Trigger.SCHEDULE,
                RunState.WAITING,
            )
        )
        session.add(run)
        session.flush()
        batch = running(
            session, [Ran(Usage(1_234, 567))], caller, schedule_id=schedule.id, run_id=run.id
        )

    def rename(name: str) -> None:
        with db.transaction() as session:
            locked = schedules.lock(session, caller, ids.render("sched", schedule.id))
            schedules.change(
                session,
                caller,
                locked,
                Definition.model_validate({**locked.definition, "name": name}),
            )

    rename("Called otherwise meanwhile")
    with db.transaction() as session:
        issued = json.dumps(invoices.render(invoices.issue(session, batch)))
    assert json.loads(issued)["schedule"] == {
        "id": ids.render("sched", schedule.id),
        "name": "Nightly digest",
    }
    rename("Called otherwise afterwards")
    with db.transaction() as session:
        schedules.delete(session, caller, ids.render("sched", schedule.id), discard_requests=False)
        assert json.dumps(invoices.render(invoices.of_batch(session, batch))) == issued
        assert json.dumps(invoices.render(invoices.issue(session, batch))) == issued


def test_many_may_issue_at_once_and_there_is_one_invoice() -> None:
    with db.transaction() as session:
        batch = running(session, [Ran(Usage(1_234, 567))])

    def issue(_: int) -> object:
        with db.transaction() as session:
            return invoices.issue(session, session.get_one(Batch, batch.id)).id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(issue, range(16)))) == 1
    with db.transaction() as session:
        assert session.scalar(select(func.count()).select_from(InvoiceLine)) == 3


@pytest.mark.parametrize(
    "changes",
    [
        [update(Task).values(charged=Task.charged + Decimal("1e-30"))],
        # A task that a version without the sums has advanced.
        [
            update(Task).values(summed=0),
            update(Result).values(amount=Result.amount + Decimal("1e-30")),
        ],
    ],
)
def test_an_invoice_that_does_not_match_its_charges_is_not_issued(changes: list[Any]) -> None:
    with db.transaction() as session:
        batch = running(session, [Ran(Usage(1_234, 567))])
    with as_owner() as session:
        for change in changes:
            session.execute(change)
    with capture_logs() as logs, pytest.raises(invoices.Mismatch), db.transaction() as session:
        invoices.issue(session, batch)
    assert [entry["log_level"] for entry in logs if entry["event"] == "invoice.mismatch"] == [
        "error"
    ]
    with db.transaction() as session:
        assert session.scalar(select(func.count()).select_from(Invoice)) == 0


@pytest.mark.parametrize(
    "change",
    [
        update(Invoice).values(total=0),
        delete(Invoice),
        update(InvoiceLine).values(amount=0),
        delete(InvoiceLine),
    ],
)
def test_the_database_refuses_to_change_an_issued_invoice(database: str, change: Any) -> None:
    with db.transaction() as session:
        invoices.issue(session, running(session, [Ran(Usage(1, 1))]))
    with (
        pytest.raises(IntegrityError, match="an issued invoice never changes"),
        as_owner() as session,
    ):
        session.execute(change)


def test_a_test_batch_cannot_carry_live_money(session: Session) -> None:
    batch = running(session, [Ran(Usage(1, 1))], livemode=False)
    row = {
        "id": ids.new(),
        "account_id": batch.account_id,
        "livemode": True,
        "batch_id": batch.id,
        "currency": "USD",
        "total": 1,
    }
    with pytest.raises(IntegrityError, match="fk_invoices_batch_id"), session.begin_nested():
        session.execute(insert(Invoice).values(row))


def test_reading_an_invoice_writes_nothing() -> None:
    batch = ended([Ran(Usage(1, 1))])
    with db.transaction() as session:
        session.execute(text("SET TRANSACTION READ ONLY"))
        invoices.render(invoices.of_batch(session, batch))


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (BatchStatus.FAILED, "failed validation: nothing ran"),
        (BatchStatus.IN_PROGRESS, "is in_progress; its invoice is issued when it ends"),
    ],
)
def test_a_batch_without_an_invoice_says_why(
    session: Session, status: BatchStatus, why: str
) -> None:
    caller = factories.caller(session)
    batch = factories.batch(
        session, caller, factories.input_file(session, caller, b""), status=status.value
    )
    with pytest.raises(NotFound, match=why):
        invoices.of_batch(session, batch)


def test_the_invoice_computed_by_hand_in_the_guide() -> None:
    invoice = invoice_of(
        [
            Ran(Usage(1_234, 567)),
            Ran(REFUSED),
            Ran(Usage(2_000), RERANK_MODEL),
            Ran(Usage(3_001), RERANK_MODEL),
        ]
    )
    assert [line["amount"] for line in invoice["lines"]] == [
        "0.000015003",
        "0.00002468",
        "0.00002268",
        "-0.0000311815",
        "0.00",
    ]
    assert (invoice["subtotal"], invoice["total"]) == ("0.000062363", "0.0000311815")
