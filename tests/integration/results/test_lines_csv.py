"""The CSV of a batch's lines sums to its invoice, also once it is sealed and its files are gone."""

import csv
import io
from decimal import Decimal, localcontext
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import update

from tests import billing, factories, ran
from tests.billing import REFUSED, Ran
from tests.conftest import as_owner
from tests.factories import CHAT_MODEL, RERANK_MODEL
from xalen_batch import db, files, ids, money, storage
from xalen_batch.accounts.accounts import Owner
from xalen_batch.backends.contract import Answered
from xalen_batch.billing import invoices
from xalen_batch.billing.charges import COMPONENTS
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Batch, Invoice, Result
from xalen_batch.results import charged_lines, lines_csv
from xalen_batch.states import LineError

pytestmark = pytest.mark.usefixtures("database", "valkey")

PRICES = {
    CHAT_MODEL: {"input": "0.02", "cached_input": "0.005", "output": "0.04"},
    RERANK_MODEL: {"input": "0.003"},
}
TOKENS = st.integers(0, 2_000_000)
REPORTED = st.builds(
    lambda read, written, cached: Usage(read, written, cached_tokens=min(read, cached)),
    TOKENS,
    TOKENS,
    TOKENS,
)
COUNTED = st.builds(lambda read, written: Usage(read, written, counted=True), TOKENS, TOKENS)
ENDING = st.one_of(REPORTED, COUNTED, st.just(REFUSED), st.sampled_from(LineError))
LINES = st.lists(
    st.builds(Ran, ENDING, st.sampled_from([CHAT_MODEL, RERANK_MODEL])), min_size=1, max_size=12
)


def read(batch: Batch) -> list[dict[str, str]]:
    content = b"".join(lines_csv.pieces(batch)).decode()
    return list(csv.DictReader(io.StringIO(content, newline="")))


def invoice_of(batch: Batch) -> Invoice:
    with db.transaction() as session:
        return invoices.of_batch(session, batch)


def assert_recomputed(batch: Batch) -> None:
    """Recompute each amount from the other cells, as a spreadsheet would, and sum them up."""
    rows, invoice = read(batch), invoice_of(batch)
    with localcontext(money.EXACT):
        for row in rows:
            subtotal = sum(
                int(row[f"{name}_tokens"]) * Decimal(row[f"{name}_unit_price"] or 0)
                for name in COMPONENTS
            ) / Decimal(1_000_000)
            discount = -Decimal(row["discount_rate"]) * subtotal
            assert Decimal(row["subtotal"]) == subtotal
            assert Decimal(row["discount"]) == discount
            assert Decimal(row["amount"]) == subtotal + discount
        assert sum(Decimal(row["amount"]) for row in rows) == invoice.total
        for kind, column in (("usage", "subtotal"), ("discount", "discount")):
            assert sum(Decimal(row[column]) for row in rows) == sum(
                line.amount for line in invoice.lines if line.kind == kind
            )
    for name in COMPONENTS:
        assert sum(int(row[f"{name}_tokens"]) for row in rows) == sum(
            int(line.quantity or 0) for line in invoice.lines if line.component == name
        )
    unbilled = sum(
        int(line.quantity or 0)
        for line in invoice.lines
        if line.kind == "not_billed" and line.component is None
    )
    assert len([row for row in rows if row["reason"]]) == unbilled
    assert [int(row["line"]) for row in rows] == list(range(1, batch.total + 1))


@given(LINES, st.sampled_from(["0", "0.5", "0.333333333333"]))
@hypothesis_settings(max_examples=15, suppress_health_check=list(HealthCheck))
def test_amounts_are_recomputed_and_sum_to_the_invoice(lines: list[Ran], rate: str) -> None:
    batch = billing.ended(lines, price_snapshot=PRICES, discount_rate=Decimal(rate))
    assert_recomputed(batch)
    before = read(batch)
    forget_rows(ran.sealed(batch))
    assert_recomputed(batch)
    assert read(batch) == before


def forget_rows(batch: Batch) -> None:
    """Delete the rows of a sealed batch, as their partition is dropped."""
    with as_owner() as session:
        session.execute(Result.__table__.delete().where(Result.batch_id == batch.id))  # type: ignore[attr-defined]


def an_ended_batch(**columns: Any) -> Batch:
    return ran.ended(
        {
            "=1+1": ran.answered(),
            "plain": ran.BUSY,
            "été, \u2028": None,
            "last": Answered(200, b"{}", Usage(1_000, 500, counted=True)),
        },
        **columns,
    )


def test_the_cells_of_each_kind_of_line() -> None:
    rows = read(an_ended_batch())
    common = {"model": CHAT_MODEL, "discount_rate": "0.5", "currency": "USD"}
    none = {f"{name}_{cell}": "" for name in COMPONENTS for cell in ("unit_price",)} | {
        f"{name}_tokens": "0" for name in COMPONENTS
    }
    unbilled = none | {"subtotal": "0.00", "discount": "0.00", "amount": "0.00", "flag": ""}
    billed = {
        "status": "succeeded",
        "reason": "",
        "input_tokens": "1000",
        "input_unit_price": "0.02",
        "cached_input_tokens": "0",
        "cached_input_unit_price": "",
        "output_tokens": "500",
        "output_unit_price": "0.04",
        "subtotal": "0.00004",
        "discount": "-0.00002",
        "amount": "0.00002",
    }
    assert rows == [
        common | billed | {"line": "1", "custom_id": "'=1+1", "flag": ""},
        common
        | unbilled
        | {"line": "2", "custom_id": "plain", "status": "failed", "reason": "http_503"},
        common
        | unbilled
        | {
            "line": "3",
            "custom_id": "été, \u2028",
            "status": "cancelled",
            "reason": "batch_cancelled",
        },
        common | billed | {"line": "4", "custom_id": "last", "flag": "usage_counted"},
    ]


def test_custom_ids_are_read_from_the_files_that_are_left() -> None:
    batch = ran.sealed(an_ended_batch())
    forget_rows(batch)
    names = ["'=1+1", "plain", "été, \u2028", "last"]
    assert [row["custom_id"] for row in read(batch)] == names
    owner = Owner(batch.account_id, batch.livemode)
    with db.transaction() as session:
        files.delete(session, owner, ids.render("file", batch.output_file_id))  # type: ignore[arg-type]
    assert [row["custom_id"] for row in read(batch)] == names
    storage.delete(storage.key(batch.input_file_id))
    assert [row["custom_id"] for row in read(batch)] == ["", "plain", "été, \u2028", ""]
    assert sum(Decimal(row["amount"]) for row in read(batch)) == invoice_of(batch).total


def test_lines_that_validation_skipped_are_there() -> None:
    lines = factories.jsonl([factories.chat_line("a")]) + b"no json\n"
    batch = ran.submitted(lines, on_invalid="skip")
    batch = ran.end(batch.id, {"a": ran.answered()})
    rows = read(batch)
    assert [(row["status"], row["model"]) for row in rows] == [
        ("succeeded", CHAT_MODEL),
        ("invalid", ""),
    ]
    forget_rows(ran.sealed(batch))
    assert read(batch) == rows


def test_a_batch_whose_rows_are_dropped_meanwhile_is_read_on_from_its_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = ran.sealed(an_ended_batch())
    whole = read(batch)
    monkeypatch.setattr(charged_lines, "PAGE_ROWS", 1)
    pages = charged_lines.pages(batch)
    first = next(pages)
    forget_rows(batch)
    found = [*first, *(line for page in pages for line in page)]
    assert [line.number for line in found] == [1, 2, 3, 4]
    assert [row["custom_id"].removeprefix("'") for row in whole] == [
        line.custom_id for line in found
    ]


def test_cached_tokens_that_an_old_worker_charged_as_other_input_are_shown_as_such() -> None:
    with db.transaction() as session:
        caller = factories.caller(session)
    batch = billing.ended(
        [Ran(Usage(100, 10, cached_tokens=40)), Ran(Usage(100, 10, cached_tokens=40))],
        caller,
        price_snapshot=PRICES,
        old=[2],
    )
    assert [(row["input_tokens"], row["cached_input_tokens"]) for row in read(batch)] == [
        ("60", "40"),
        ("100", "0"),
    ]
    assert_recomputed(batch)


def test_an_amount_that_no_price_explains_is_shown_without_prices() -> None:
    batch = billing.ended([Ran(Usage(100, 10))])
    with as_owner() as session:
        session.execute(
            update(Result).where(Result.batch_id == batch.id).values(amount=Decimal("0.5"))
        )
    (row,) = read(batch)
    assert (row["amount"], row["subtotal"], row["input_unit_price"]) == ("0.50", "", "")
