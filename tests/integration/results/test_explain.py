"""One line, explained: the same from rows and from sealed objects, with its part of the invoice."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import delete

from tests import factories, ran
from tests.conftest import as_owner
from tests.factories import CHAT_MODEL
from tests.integration.conftest import Api
from tests.ran import BUSY, answered
from xalen_batch import db, files, ids
from xalen_batch.accounts import accounts
from xalen_batch.accounts.accounts import Caller, Scope
from xalen_batch.backends.contract import Answered
from xalen_batch.billing import invoices
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Batch, File, Result
from xalen_batch.results import content, explain
from xalen_batch.results.content import Stored
from xalen_batch.states import LineError

pytestmark = pytest.mark.usefixtures("database", "valkey")

ODD = ["a/b", "a//b/", "100%", "%2F", "?x=1#y", "Grüße \u2028", "..", "\x7f"]
CACHED = Answered(200, b"{}", Usage(1_234, 567, cached_tokens=1_000, reasoning_tokens=7))
COUNTED = Answered(200, b"{}", Usage(9, 5, counted=True))
ENDINGS: dict[str, Any] = {
    "one": answered("first"),
    "busy": BUSY,
    "slow": LineError.REQUEST_TIMEOUT,
    "cached": CACHED,
    "counted": COUNTED,
    "late": None,
    **{name: answered(name.encode("unicode_escape").decode().replace("\\", "")) for name in ODD},
}
PRICE = {CHAT_MODEL: {"input": "0.3", "cached_input": "0.07", "output": "1.1"}}


@pytest.fixture
def caller(api: Api) -> Caller:
    with db.transaction() as session:
        return accounts.authenticate(session, api.key)


@pytest.fixture(params=["rows", "sealed"])
def batch(request: pytest.FixtureRequest, caller: Caller) -> Batch:
    made = ran.ended(ENDINGS, caller, price_snapshot=PRICE, discount_rate=Decimal("0.35"))
    if request.param == "rows":
        return made
    made = ran.sealed(made)
    with as_owner() as session:
        session.execute(delete(Result))
    return made


def line(api: Api, batch: Batch, custom_id: str) -> dict[str, Any]:
    path = f"/v1/batches/{ids.render('batch', batch.id)}/lines/{quote(custom_id, safe='')}"
    answer = api.ask("GET", path)
    assert answer.status == 200, answer.body
    return dict(answer.json)


def of_files(batch: Batch) -> Iterator[dict[str, Any]]:
    """The lines of the output and the error file."""
    for file_id in (batch.output_file_id, batch.error_file_id):
        with db.reading() as session:
            found = content.of(session.get_one(File, file_id))
        whole = found.chunks(0, found.size) if isinstance(found, Stored) else found.chunks()
        yield from map(json.loads, b"".join(whole).splitlines())


def test_every_line_has_its_request_and_its_result(api: Api, batch: Batch) -> None:
    results = {found["custom_id"]: found for found in of_files(batch)}
    for number, name in enumerate(ENDINGS, start=1):
        found = line(api, batch, name)
        assert (found["custom_id"], found["line"]) == (name, number)
        assert found["request"] == factories.chat_line(name)
        assert found["result"] == results[name]
    states = [line(api, batch, name)["status"] for name in ENDINGS]
    assert states[:6] == ["succeeded", "failed", "failed", "succeeded", "succeeded", "cancelled"]


def test_the_amounts_of_all_lines_are_the_invoice(api: Api, batch: Batch) -> None:
    charges = [line(api, batch, name)["charge"] for name in ENDINGS]
    amounts = [charge for charge in charges if charge is not None]
    with db.reading() as session:
        invoice = invoices.render(invoices.of_batch(session, batch))
    assert sum(Decimal(charge["amount"]) for charge in amounts) == Decimal(invoice["total"])
    assert sum(Decimal(charge["subtotal"]) for charge in amounts) == Decimal(invoice["subtotal"])
    for component in ("input", "cached_input", "output"):
        tokens = sum(
            part["tokens"]
            for charge in amounts
            for part in charge["components"]
            if part["component"] == component
        )
        billed = [each for each in invoice["lines"] if each["component"] == component]
        assert tokens == sum(int(each["quantity"]) for each in billed)


def test_a_charge_is_computed_in_the_open(api: Api, batch: Batch) -> None:
    assert line(api, batch, "cached")["charge"] == {
        "currency": "USD",
        "components": [
            {"component": "input", "tokens": 234, "unit_price": "0.30", "amount": "0.0000702"},
            {
                "component": "cached_input",
                "tokens": 1000,
                "unit_price": "0.07",
                "amount": "0.00007",
            },
            {"component": "output", "tokens": 567, "unit_price": "1.10", "amount": "0.0006237"},
        ],
        "subtotal": "0.0007639",
        "discount_rate": "0.35",
        "amount": "0.000496535",
    }
    assert line(api, batch, "counted")["usage"] == {
        "input_tokens": 9,
        "cached_tokens": 0,
        "output_tokens": 5,
        "reasoning_tokens": 0,
        "source": "counted",
    }


def test_a_line_without_failures_has_no_attempts(api: Api, batch: Batch) -> None:
    found = line(api, batch, "one")
    assert (found["failed_attempts"], found["attempts"], found["reason"]) == (0, [], None)


def test_an_unknown_line_is_not_found(api: Api, batch: Batch) -> None:
    path = f"/v1/batches/{ids.render('batch', batch.id)}/lines/"
    for name in ("nobody", "one%20", "%00", "%FF", "Where is my parcel?"):
        answer = api.ask("GET", path + quote(name, safe="%"))
        assert (answer.status, answer.error["param"]) == (404, "custom_id")


def test_without_the_input_file_a_row_still_has_the_line(api: Api, caller: Caller) -> None:
    batch = ran.ended({"one": answered(), "two": BUSY}, caller)
    with db.transaction() as session:
        files.delete(session, caller, ids.render("file", batch.input_file_id))
    found = line(api, batch, "two")
    assert (found["line"], found["request"]) == (2, None)
    assert found["result"]["custom_id"] == "two"


def test_a_deleted_output_file_shows_no_answer(api: Api, batch: Batch, caller: Caller) -> None:
    with db.transaction() as session:
        files.delete(session, caller, ids.render("file", batch.output_file_id or ids.new()))
    found = line(api, batch, "one")
    assert (found["result"], found["status"]) == (None, "succeeded")
    assert Decimal(found["charge"]["amount"]) > 0


def test_a_line_that_has_not_ended_waits(api: Api, caller: Caller) -> None:
    batch = ran.submitted([factories.chat_line("one")], caller)
    found = line(api, batch, "one")
    assert (found["status"], found["result"], found["charge"]) == ("waiting", None, None)
    assert found["model"] == CHAT_MODEL


def test_a_skipped_line_is_invalid(api: Api, caller: Caller) -> None:
    lines = [factories.chat_line("good"), factories.chat_line("bad", model="none")]
    batch = ran.end(ran.submitted(lines, caller, on_invalid="skip").id, {"good": answered()})
    found = line(api, batch, "bad")
    assert (found["status"], found["model"]) == ("invalid", None)
    assert "model" in found["result"]["error"]["message"]


def test_only_a_key_with_billing_sees_the_charge(api: Api, caller: Caller) -> None:
    batch = ran.ended({"one": answered()}, caller)
    with db.transaction() as session:
        account = session.get_one(accounts.Account, caller.account_id)
        key = factories.key(session, account, scopes=[Scope.READ])
    found = line(Api(api.port, key), batch, "one")
    assert found["charge"] is None
    assert found["usage"]["input_tokens"] == 1_000


@pytest.mark.parametrize(
    ("price", "components", "amount"),
    [
        ({"input": "1"}, [("input", 100, "1"), ("output", 50, None)], "0.00005"),
        ({}, [("input", 100, None), ("output", 50, None)], "0"),
        # A version without cached input charged all input alike.
        (
            {"input": "1", "cached_input": "0.1", "output": "2"},
            [("input", 100, "1"), ("output", 50, "2")],
            "0.0001",
        ),
        ({"input": "1", "output": "2"}, None, "0.7"),
    ],
)
def test_components_add_up_or_are_left_out(
    price: dict[str, str], components: list[Any] | None, amount: str
) -> None:
    usage = Usage(100, 50, cached_tokens=40)
    ended = explain.Ended("m", 200, None, usage, False, Decimal(amount))
    found = explain.charge_of(price, Decimal("0.5"), ended)
    shown = found.components and [
        (each.name, each.tokens, None if each.price is None else str(each.price))
        for each in found.components
    ]
    assert shown == components
    assert found.amount == Decimal(amount)
