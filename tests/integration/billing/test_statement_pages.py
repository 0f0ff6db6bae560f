"""A statement is the same whole, in pieces, and in pages of lines."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from sqlalchemy import select, text

from tests.conftest import as_owner
from tests.integration import plans
from tests.statements import MARCH, a_caller, an_invoice, issue_due, read
from xalen_batch import db, ids
from xalen_batch.accounts.accounts import Caller
from xalen_batch.billing import statement_pages, statements
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Invoice

pytestmark = pytest.mark.usefixtures("database", "valkey")


@pytest.mark.parametrize("is_issued", [False, True])
def test_a_statement_is_the_same_bytes_whether_it_is_read_at_once_or_in_pieces(
    monkeypatch: pytest.MonkeyPatch, is_issued: bool
) -> None:
    caller = a_caller()
    # Two are issued at the same moment.
    for total, day in (("0.001", 3), ("1.239", 3), ("2", 4), ("0.0004", 5)):
        an_invoice(caller, total, datetime(2026, 3, day, tzinfo=UTC))
    if is_issued:
        issue_due()
    whole = b"".join(statement_pages.pieces(caller, MARCH))
    found = orjson.loads(whole)
    # The keys in their order, and no blanks.
    assert orjson.dumps(found) == whole
    assert list(found) == [
        *[
            "id",
            "object",
            "status",
            "month",
            "livemode",
            "payable",
            "account_id",
            "currency",
            "issued_at",
            "lines",
            "exact_total",
            "rounding",
            "total",
            "has_more",
        ]
    ]
    assert (found["status"], len(found["lines"]), found["exact_total"], found["total"]) == (
        "issued" if is_issued else "draft",
        5,
        "3.2404",
        "3.24",
    )
    # Pages that end before, at and behind the last line.
    for lines in (1, 2, 3, 4, 5, 6):
        monkeypatch.setattr(statement_pages, "PAGE_LINES", lines)
        assert b"".join(statement_pages.pieces(caller, MARCH)) == whole


def pages(caller: Caller, limit: int) -> Iterator[dict[str, Any]]:
    """The pages of a statement, as a client reads them."""
    after = None
    while True:
        with db.reading() as session:
            page = statement_pages.page(session, caller, MARCH, limit=limit, after=after)
        yield page
        if not page["has_more"]:
            return
        after = page["lines"][-1]["invoice_id"]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("is_issued", [False, True])
def test_the_pages_of_a_statement_make_the_whole(is_issued: bool, limit: int) -> None:
    caller = a_caller()
    # Two are issued at the same moment.
    for total, day in (("0.001", 3), ("1.239", 3), ("2", 4), ("0.0004", 5)):
        an_invoice(caller, total, datetime(2026, 3, day, tzinfo=UTC))
    if is_issued:
        issue_due()
    whole = read(caller)
    found = list(pages(caller, limit))
    assert all(len(page["lines"]) <= limit for page in found)
    assert [line for page in found for line in page["lines"]] == whole["lines"]
    head_and_totals = {**whole, "lines": None}
    assert {**found[-1], "lines": None} == head_and_totals
    unknown = {} if is_issued else dict.fromkeys(("exact_total", "rounding", "total"))
    for page in found[:-1]:
        assert {**page, "lines": None} == {**head_and_totals, "has_more": True, **unknown}


@pytest.mark.parametrize("is_issued", [False, True])
def test_a_page_of_a_month_without_invoices_or_after_the_last_one(is_issued: bool) -> None:
    caller = a_caller()
    if is_issued:
        last = an_invoice(caller, "0.004")
        issue_due()
    with db.reading() as session:
        after = ids.render("inv", last) if is_issued else None
        page = statement_pages.page(session, caller, MARCH, limit=1, after=after)
    assert [line["kind"] for line in page["lines"]] == ["rounding"]
    assert (page["has_more"], page["total"]) == (False, "0.00")


@pytest.mark.parametrize("is_issued", [False, True])
def test_a_page_begins_after_a_line_of_the_statement(is_issued: bool) -> None:
    caller, other = a_caller(), a_caller()
    an_invoice(caller, "1")
    elsewhere = [an_invoice(other, "1"), an_invoice(caller, "1", datetime(2026, 4, 1, tzinfo=UTC))]
    if is_issued:
        issue_due()
    for after in ("1", "batch_" + "0" * 32, *(ids.render("inv", id) for id in elsewhere)):
        with pytest.raises(InvalidRequest) as refused, db.reading() as session:
            statement_pages.page(session, caller, MARCH, limit=1, after=after)
        assert refused.value.param == "after"


@pytest.mark.parametrize("is_issued", [False, True])
def test_a_page_reads_as_little_of_a_large_month_as_of_a_small_one(is_issued: bool) -> None:
    caller = a_caller()
    with as_owner() as session:
        # Without batches, which foreign keys ask for.
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(
            text("""
                INSERT INTO invoices (id, account_id, livemode, batch_id, currency, total, issued_at)
                SELECT gen_random_uuid(), :account, true, gen_random_uuid(), 'USD', 0.001,
                    '2026-03-01Z'::timestamptz + number * interval '1 minute'
                FROM generate_series(1, 20000) AS number
            """),
            {"account": caller.account_id},
        )
    if is_issued:
        issue_due()
    with as_owner() as session:
        session.execute(text("ANALYZE invoices, invoice_lines"))
        middle = session.scalar(
            select(Invoice.id).order_by(Invoice.issued_at).offset(12_000).limit(1)
        )
    for after in (None, ids.render("inv", middle)):
        found = plans.of(
            lambda session, after=after: statement_pages.page(
                session, caller, MARCH, limit=10, after=after
            )
        )
        assert sum(map(plans.pages, found)) < 100


@pytest.mark.parametrize("month", ["1000-01", "9999-12"])
def test_the_first_and_the_last_month_are_empty_drafts(month: str) -> None:
    found = json.loads(b"".join(statement_pages.pieces(a_caller(), statements.parse_month(month))))
    assert (found["status"], found["month"], found["total"]) == ("draft", month, "0.00")
