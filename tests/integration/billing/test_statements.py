"""A month's statement sums batch invoices, rounds once, and is a draft until the month ends."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from decimal import Decimal, localcontext
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError

from tests import factories
from tests.billing import Ran, ended
from tests.conftest import as_owner
from tests.factories import RERANK_MODEL
from tests.statements import MARCH, a_caller, an_invoice, issue_due, read
from xalen_batch import db, ids, money
from xalen_batch.billing import invoices, statements
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Account, Invoice, InvoiceLine

pytestmark = pytest.mark.usefixtures("database", "valkey")


def test_chat_and_rerank_batches_on_one_statement() -> None:
    caller = a_caller()
    batches = [
        ended([Ran(Usage(61_203_477, 9_640_915))], caller),
        ended([Ran(Usage(333_333_333), RERANK_MODEL)], caller),
    ]
    statement = read(caller, datetime.now(UTC).date().replace(day=1))
    assert [(line["kind"], line["description"], line["amount"]) for line in statement["lines"]] == [
        (
            "batch",
            f"Batch {ids.render('batch', batches[0].id)}, {datetime.now(UTC):%Y-%m-%d}",
            "0.80485307",
        ),
        (
            "batch",
            f"Batch {ids.render('batch', batches[1].id)}, {datetime.now(UTC):%Y-%m-%d}",
            "0.4999999995",
        ),
        ("rounding", "Rounding to whole cents", "-0.0048530695"),
    ]
    assert (statement["exact_total"], statement["rounding"], statement["total"]) == (
        "1.3048530695",
        "-0.0048530695",
        "1.30",
    )
    assert (statement["status"], statement["payable"], statement["id"], statement["issued_at"]) == (
        "draft",
        False,
        None,
        None,
    )


def test_many_small_batches_do_not_lose_their_money() -> None:
    caller = a_caller()
    for _ in range(20):
        an_invoice(caller, "0.1184")  # five thousand lines of 0.00002368
    assert read(caller)["total"] == "2.37"


def test_a_month_that_is_over_is_issued_once_and_then_never_changes() -> None:
    caller = a_caller()
    an_invoice(caller, "1.3048530695")
    draft = read(caller)
    assert issue_due() == 1
    issued = read(caller)
    assert (issued["status"], issued["payable"]) == ("issued", True)
    assert ids.parse("inv", issued["id"])
    assert {**issued, "id": None, "issued_at": None, "status": "draft", "payable": False} == draft
    assert issue_due() == 0
    an_invoice(caller, "99")
    assert json.dumps(read(caller)) == json.dumps(issued)


def test_the_running_month_stays_a_draft() -> None:
    caller = a_caller()
    an_invoice(caller, "1", datetime.now(UTC))
    assert issue_due() == 0
    assert read(caller, datetime.now(UTC).date().replace(day=1))["status"] == "draft"


def test_a_month_is_utc_from_its_first_to_its_last_microsecond() -> None:
    caller = a_caller()
    an_invoice(caller, "1", datetime(2026, 2, 28, 23, 59, 59, 999_999, UTC))
    an_invoice(caller, "2", datetime(2026, 3, 1, tzinfo=UTC))
    an_invoice(caller, "4", datetime(2026, 3, 31, 23, 59, 59, 999_999, UTC))
    an_invoice(caller, "8", datetime(2026, 4, 1, tzinfo=UTC))
    assert read(caller)["total"] == "6.00"


def test_past_months_are_issued_in_their_order_and_empty_ones_are_not() -> None:
    caller = a_caller()
    for month in (1, 2, 5):
        an_invoice(caller, "1", datetime(2026, month, 10, tzinfo=UTC))
    assert [issue_due() for _ in range(4)] == [1, 1, 1, 0]
    with db.transaction() as session:
        issued = session.scalars(
            select(Invoice.month).where(Invoice.month.is_not(None)).order_by(Invoice.id)
        ).all()
    assert issued == [date(2026, 1, 1), date(2026, 2, 1), date(2026, 5, 1)]
    assert read(caller)["status"] == "draft"


def test_accounts_and_modes_never_meet_and_test_mode_is_never_payable() -> None:
    live = a_caller()
    with db.transaction() as session:
        test = factories.caller(session, session.get_one(Account, live.account_id), livemode=False)
    other = a_caller()
    for caller, total in ((live, "1"), (test, "2"), (other, "4")):
        an_invoice(caller, total)
    assert issue_due() == 3
    assert [(read(caller)["total"], read(caller)["payable"]) for caller in (live, test, other)] == [
        ("1.00", True),
        ("2.00", False),
        ("4.00", True),
    ]


def test_many_may_issue_at_once_and_each_month_has_one_statement() -> None:
    callers = [a_caller() for _ in range(3)]
    for caller in callers:
        an_invoice(caller, "1")
        an_invoice(caller, "1")
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: issue_due(), range(16))) == 3
    with db.transaction() as session:
        assert session.scalar(select(func.count()).where(Invoice.month.is_not(None))) == 3
    assert {read(caller)["total"] for caller in callers} == {"2.00"}


def test_an_issued_statement_is_refused_any_change() -> None:
    caller = a_caller()
    an_invoice(caller, "1")
    issue_due()
    with (
        pytest.raises(IntegrityError, match="an issued invoice never changes"),
        as_owner() as session,
    ):
        session.execute(update(Invoice).where(Invoice.month == MARCH).values(total=0))


def test_a_month_without_invoices_comes_to_zero() -> None:
    statement = read(a_caller())
    assert (statement["status"], statement["exact_total"], statement["total"]) == (
        "draft",
        "0.00",
        "0.00",
    )


def test_the_statement_and_the_invoices_it_sums_name_each_other() -> None:
    caller = a_caller()
    batch = ended([Ran(Usage(1, 1))], caller)
    line, _ = read(caller, datetime.now(UTC).date().replace(day=1))["lines"]
    with db.transaction() as session:
        assert line["invoice_id"] == invoices.render(invoices.of_batch(session, batch))["id"]


@hypothesis_settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.decimals(min_value=0, max_value=1000, places=12), max_size=6))
def test_lines_sum_to_the_total_which_is_the_exact_total_rounded_once(
    totals: list[Decimal],
) -> None:
    caller = a_caller()
    for total in totals:
        an_invoice(caller, str(total))
    draft = read(caller)
    issue_due()
    issued = read(caller)
    with localcontext(money.EXACT):
        for statement in (draft, issued):
            assert Decimal(statement["exact_total"]) == sum(totals)
            assert Decimal(statement["total"]) == money.payable(sum(totals, Decimal(0)))
            assert sum(Decimal(line["amount"]) for line in statement["lines"]) == Decimal(
                statement["total"]
            )
    assert (issued["status"] == "issued") == bool(totals)


@pytest.mark.parametrize(
    "text", ["2026-13", "2026-1", "2026", "2026-11-01", "", "november", "20260-1", " 2026-11"]
)
def test_what_is_no_month_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(InvalidRequest, match="Write it as 2026-11") as refused:
        statements.parse_month(text)
    assert refused.value.param == "month"


def test_a_month_is_its_first_day() -> None:
    assert statements.parse_month("2026-11") == date(2026, 11, 1)


def test_lines_are_inserted_in_steps_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    callers = [a_caller() for _ in range(4)]
    for caller in callers:
        for total, day in (("0.001", 3), ("1.239", 3), ("2", 4), ("0.0004", 5)):
            an_invoice(caller, total, datetime(2026, 3, day, tzinfo=UTC))
    for caller, lines in zip(callers, (1, 3, 4, 5), strict=True):
        draft = read(caller)
        monkeypatch.setattr(statements, "LINES_AT_ONCE", lines)
        with db.transaction() as session:
            due = next(
                due for due in statements.due(session) if due.account_id == caller.account_id
            )
            assert statements.issue(session, due)
        issued = read(caller)
        assert (issued["lines"], issued["total"]) == (draft["lines"], draft["total"])


def test_an_invoice_that_commits_meanwhile_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    caller = a_caller()
    an_invoice(caller, "1")
    store = invoices.store

    def slow(*args: Any) -> bool:
        an_invoice(caller, "2")
        return store(*args)

    with monkeypatch.context() as patch:
        patch.setattr(invoices, "store", slow)
        with pytest.raises(statements.InvoiceAdded):
            issue_due()
    assert read(caller)["status"] == "draft"
    assert issue_due() == 1
    assert (read(caller)["status"], read(caller)["total"]) == ("issued", "3.00")


def test_an_invoice_is_on_one_statement_at_most() -> None:
    caller = a_caller()
    invoice = an_invoice(caller, "1")
    issue_due()
    april = Invoice(
        account_id=caller.account_id, livemode=True, month=date(2026, 4, 1), total=Decimal(1)
    )
    line = InvoiceLine(
        kind="batch", description="again", source_invoice_id=invoice, amount=Decimal(1)
    )
    with (
        db.transaction() as session,
        pytest.raises(IntegrityError, match="ix_invoice_lines_source_invoice_id"),
    ):
        invoices.store(session, april, [line])


def test_the_line_of_a_batch_names_its_schedule_and_simulated_and_counted_answers() -> None:
    caller = a_caller()
    with db.transaction() as session:
        batch = factories.batch(session, caller, factories.input_file(session, caller, b""))
        lines = [
            InvoiceLine(kind="usage", description="", amount=Decimal(0), **columns)
            for columns in ({"reason": "usage_counted"}, {"answered_by": "simulated"}, {})
        ]
        header = Invoice(
            account_id=caller.account_id,
            livemode=True,
            batch_id=batch.id,
            schedule_name="Nightly, the 1st",
            total=Decimal(0),
        )
        invoices.store(session, header, lines)
    line, _ = read(caller, datetime.now(UTC).date().replace(day=1))["lines"]
    assert line["description"] == (
        f"Batch {ids.render('batch', batch.id)}, {datetime.now(UTC):%Y-%m-%d}, schedule Nightly,"
        " the 1st, simulated answers"
    )
    assert line["reason"] == "usage_counted"
