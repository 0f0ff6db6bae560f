"""Invoices and statements in a browser: the lines add up to the last digit."""

import csv
import io
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from tests import ran
from tests.billing import REFUSED
from tests.integration.console.conftest import Person
from tests.ran import answered
from xalen_batch import db, ids, money
from xalen_batch.billing import credit_notes, invoices
from xalen_batch.console import invoices as pages
from xalen_batch.models import Batch, Invoice

MONTH = datetime.now(UTC).strftime("%Y-%m")


@pytest.fixture
def batch(visitor: Person) -> Batch:
    return ran.ended({"a": answered(), "b": answered(), "c": REFUSED}, visitor.caller)


@pytest.fixture
def invoice(batch: Batch) -> Invoice:
    with db.reading() as session:
        return invoices.of_batch(session, batch)


def path(invoice: Invoice) -> str:
    return f"/console/invoices/{ids.render('inv', invoice.id)}"


def shown(amount: Decimal) -> str:
    """An amount as the text of a page."""
    text = money.render(amount)
    cents = text.index(".") + 3
    return f"{text[:cents]} {text[cents:]}".strip()


def test_an_invoice_adds_up_line_by_line(visitor: Person, batch: Batch, invoice: Invoice) -> None:
    text = visitor.browser.page(path(invoice)).text
    assert "mistral-small-3-1, input tokens 2,000 tokens × 0.02 ÷ 1,000,000 0.00 004" in text
    assert "mistral-small-3-1, output tokens 1,000 tokens × 0.04 ÷ 1,000,000 0.00 004" in text
    assert "requests that did not succeed http_400 1 requests" in text
    assert f"Total {shown(invoice.total)}" in text
    by_batch = f"/console/invoices/{ids.render('batch', batch.id)}"
    assert ids.render("inv", invoice.id) in visitor.browser.page(by_batch).text


def test_its_lines_are_a_csv_that_sums_to_it(
    visitor: Person, batch: Batch, invoice: Invoice
) -> None:
    seen = visitor.browser.get(f"/console/invoices/{ids.render('batch', batch.id)}/lines")
    rows = list(csv.DictReader(io.StringIO(seen.html)))
    assert len(rows) == 3
    assert sum(Decimal(row["amount"] or 0) for row in rows) == invoice.total


def test_what_was_given_back_is_shown(visitor: Person, batch: Batch, invoice: Invoice) -> None:
    with db.transaction() as session:
        credit_notes.create(session, batch, share=Decimal("0.5"), reason="<b>late</b>")
    text = visitor.browser.page(path(invoice)).text
    assert "Given back" in text
    assert "<b>late</b>" in text
    assert f"left of the invoice {shown(invoice.total / 2)}" in text


def test_the_statement_is_the_sum_of_its_invoices(visitor: Person, invoice: Invoice) -> None:
    page = visitor.browser.page("/console/invoices")
    assert f'href="{path(invoice)}"' in page.html
    assert f"exact {shown(invoice.total)}" in page.text
    assert "would be payable so far 0.00" in page.text
    month = visitor.browser.get(f"/console/invoices/csv?month={MONTH}")
    [row] = csv.DictReader(io.StringIO(month.html))
    assert Decimal(row["total"]) == invoice.total


def test_the_statement_comes_in_pages(
    visitor: Person, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = ran.ended({"a": answered()}, visitor.caller)
    monkeypatch.setattr(pages, "ON_PAGE", 1)
    first = visitor.browser.page("/console/invoices")
    link = first.html.partition('rel="next"')[0].rpartition('href="')[2].partition('"')[0]
    rest = visitor.browser.page(link.replace("&amp;", "&"))
    names = [ids.render("batch", each.id) for each in (batch, second)]
    assert [name in first.text for name in names] == [True, False]
    assert [name in rest.text for name in names] == [False, True]


@pytest.mark.parametrize(
    ("month", "before", "after"),
    [("2020-01", "2019-12", "2020-02"), ("2020-12", "2020-11", "2021-01")],
)
def test_months_follow_each_other(visitor: Person, month: str, before: str, after: str) -> None:
    page = visitor.browser.page(f"/console/invoices?month={month}")
    assert f"month={before}" in page.html
    assert f"month={after}" in page.html
    assert "Nothing was billed" in page.text


def test_a_wrong_month_is_named(visitor: Person) -> None:
    assert visitor.browser.get("/console/invoices?month=13").status == 400


def test_a_key_for_billing_alone_begins_here(signed_in: Callable[..., Person]) -> None:
    browser = signed_in(scopes=["billing"]).browser
    page = browser.page("/console/invoices")
    assert "Overview" not in page.text
    assert "Invoices" in page.text
