"""The CSV of invoices has each one once, with exact sums, for one account or for all."""

import csv
import io
from collections.abc import Iterable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import billing, factories
from tests.billing import Ran
from tests.integration.conftest import Api
from tests.statements import MARCH, a_caller, an_invoice
from xalen_batch import db, ids
from xalen_batch.accounts import accounts
from xalen_batch.accounts.accounts import Caller
from xalen_batch.billing import invoices_csv
from xalen_batch.cli.main import app
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Account

pytestmark = pytest.mark.usefixtures("database", "valkey")
APRIL = date(2026, 4, 1)
USAGE = Usage(1_000, 500)


def parsed(pieces: Iterable[bytes]) -> list[dict[str, str]]:
    content = b"".join(pieces).decode()
    return list(csv.DictReader(io.StringIO(content, newline="")))


def this_month() -> date:
    return datetime.now(UTC).date().replace(day=1)


def named(name: str, *, livemode: bool = True) -> Caller:
    with db.transaction() as session:
        return factories.caller(session, factories.account(session, name), livemode=livemode)


def test_a_row_has_the_exact_sums_of_its_invoice() -> None:
    caller = a_caller()
    batch = billing.ended([Ran(USAGE), Ran(USAGE)], caller, meta={"cost_center": "=7"})
    (row,) = parsed(
        invoices_csv.of_account(caller, this_month(), this_month(), metadata=["cost_center", "x"])
    )
    assert row | {"id": "", "issued_at": ""} == {
        "kind": "invoice",
        "id": "",
        "batch_id": ids.render("batch", batch.id),
        "issued_at": "",
        "mode": "live",
        "schedule": "",
        "model": "",
        "endpoint": "/v1/chat/completions",
        "input_tokens": "2000",
        "cached_input_tokens": "0",
        "output_tokens": "1000",
        "subtotal": "0.00008",
        "discount": "-0.00004",
        "total": "0.00004",
        "currency": "USD",
        "reason": "",
        "metadata.cost_center": "'=7",
        "metadata.x": "",
    }


def test_a_span_has_each_invoice_once_by_the_time_of_issue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invoices_csv, "PIECE_ROWS", 2)
    caller, other = a_caller(), a_caller()
    edges = [
        datetime(2026, 2, 28, 23, 59, 59, 999_999, UTC),
        datetime(2026, 3, 1, tzinfo=UTC),
        datetime(2026, 3, 9, tzinfo=UTC),
        datetime(2026, 3, 9, tzinfo=UTC),
        datetime(2026, 4, 30, 23, 59, 59, 999_999, UTC),
        datetime(2026, 5, 1, tzinfo=UTC),
    ]
    made = [ids.render("inv", an_invoice(caller, "1", at)) for at in edges]
    an_invoice(other, "1")
    found = [row["id"] for row in parsed(invoices_csv.of_account(caller, MARCH, APRIL))]
    assert sorted(found) == sorted(made[1:5])
    assert (found[0], found[-1]) == (made[1], made[4])


def test_the_last_month_of_the_calendar_has_an_end() -> None:
    assert parsed(invoices_csv.of_account(a_caller(), MARCH, date(9999, 12, 1))) == []


def test_a_span_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="to: 2026-03 is before 2026-04"):
        invoices_csv.of_account(a_caller(), APRIL, MARCH)


def test_a_month_of_all_accounts_sums_to_their_invoices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invoices_csv, "ACCOUNTS_AT_ONCE", 2)
    monkeypatch.setattr(invoices_csv, "PIECE_ROWS", 2)
    callers = [named(name) for name in ("acme", "=cmd", "beta", "zeta")]
    with db.transaction() as session:
        test = factories.caller(
            session, session.get_one(Account, callers[0].account_id), livemode=False
        )
    named("idle")
    for caller in [*callers, test]:
        for total in ("0.0000000001", "2", "3"):
            an_invoice(caller, total)
        an_invoice(caller, "100", datetime(2026, 4, 1, tzinfo=UTC))
    rows = parsed(invoices_csv.of_all(MARCH))
    assert sorted({(row["account"], row["mode"]) for row in rows}) == sorted(
        [("acme", "live"), ("acme", "test"), ("'=cmd", "live"), ("beta", "live"), ("zeta", "live")]
    )
    assert sum(Decimal(row["total"]) for row in rows) == 5 * Decimal("5.0000000001")
    assert len({row["id"] for row in rows}) == len(rows) == 15
    acme = [row for row in rows if row["account"] == "acme"]
    assert {row["account_id"] for row in acme} == {ids.render("acct", callers[0].account_id)}


def test_the_api_sends_the_csv_of_invoices_and_of_lines(api: Api, acme: Caller) -> None:
    batch = billing.ended([Ran(USAGE)], acme, meta={"team": "a,b"})
    id = ids.render("batch", batch.id)
    invoices = api.ask("GET", "/v1/invoices.csv?metadata=team")
    assert invoices.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert invoices.headers["content-disposition"] == 'attachment; filename="invoices.csv"'
    (row,) = parsed([invoices.body])
    assert (row["batch_id"], row["total"], row["metadata.team"]) == (id, "0.00002", "a,b")
    assert parsed([api.ask("GET", "/v1/invoices.csv?from=2026-03&to=2026-04").body]) == []
    refused = api.ask("GET", "/v1/invoices.csv?from=2026-04&to=2026-03")
    assert (refused.status, refused.error["param"]) == (400, "to")
    lines = api.ask("GET", f"/v1/batches/{id}/invoice/lines.csv")
    assert lines.headers["content-disposition"] == f'attachment; filename="{id}.csv"'
    assert [row["custom_id"] for row in parsed([lines.body])] == ["line-1"]
    with db.transaction() as session:
        running = billing.running(session, [Ran(USAGE)], acme)
    early = api.ask("GET", f"/v1/batches/{ids.render('batch', running.id)}/invoice/lines.csv")
    assert early.status == 404


@pytest.fixture
def acme(api: Api) -> Caller:
    with db.transaction() as session:
        return accounts.authenticate(session, api.key)


def test_the_commands_write_the_same_csv(api: Api, acme: Caller, tmp_path: Path) -> None:
    batch = billing.ended([Ran(USAGE)], acme)
    id, target = ids.render("batch", batch.id), tmp_path / "out.csv"
    connection = ["--base-url", f"http://127.0.0.1:{api.port}", "--api-key", api.key]

    def run(*arguments: str) -> bytes:
        result = CliRunner().invoke(app, [*arguments])
        assert result.exit_code == 0, result.output
        return result.stdout_bytes

    # The API of this process logs to the same stdout.
    assert run("invoice", id, "--lines", "-", *connection).endswith(
        api.ask("GET", f"/v1/batches/{id}/invoice/lines.csv").body
    )
    run("invoices", "-o", str(target), *connection)
    assert target.read_bytes() == api.ask("GET", "/v1/invoices.csv").body
    (row,) = parsed([run("accounts", "invoices", "--metadata", "team")])
    assert (row["batch_id"], row["metadata.team"]) == (id, "")
    both = CliRunner().invoke(app, ["invoice", id, "--lines", "-", "--json", *connection])
    assert both.exit_code == 2
