"""The extensions to OpenAI's API: partial results, estimates, invoices and statements over HTTP."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from sqlalchemy import insert, text, update

from tests import factories
from tests.integration.conftest import Answer, Api
from xalen_batch import db, ids, jsonl
from xalen_batch.api.limits import LimitsObject
from xalen_batch.api.money_schemas import EstimateObject, InvoiceObject, StatementObject
from xalen_batch.api.terms import TermsObject
from xalen_batch.billing import invoices
from xalen_batch.models import Batch, File, Invoice, InvoiceLine, Result, Task
from xalen_batch.models.files import FilePart
from xalen_batch.results import content
from xalen_batch.results.content import Stored

REQUEST = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
BODY = b'{"choices":[]}'


def assert_shape(kind: type[BaseModel], answer: Answer) -> None:
    """Every field that is described is there with its type, at every depth, and no other."""
    assert kind.model_validate_json(answer.body, strict=True).model_dump(mode="json") == answer.json


@pytest.fixture
def batch_id(api: Api) -> str:
    """A batch of ten lines with three succeeded and one failed."""
    file = api.upload(factories.jsonl([factories.chat_line(f"l{n}") for n in range(1, 11)]))
    batch_id: str = api.ask("POST", "/v1/batches", {"input_file_id": file["id"], **REQUEST}).json[
        "id"
    ]
    with db.transaction() as session:
        session.execute(text("UPDATE batches SET status = 'in_progress'"))
        counts = {"completed": 3, "failed": 1, "input_tokens": 30, "output_tokens": 6}
        session.execute(
            insert(Task),
            {
                "batch_id": uuid(batch_id),
                "seq": 1,
                "model": "m",
                "lines": 10,
                "line_index": b"",
                **counts,
            },
        )
        rows = [(7, 200), (1, 200), (4, 400), (2, 200)]
        session.execute(
            insert(Result), [_row(batch_id, line_no, status) for line_no, status in rows]
        )
    return batch_id


def uuid(batch_id: str) -> UUID:
    found = ids.parse("batch", batch_id)
    assert found is not None
    return found


def _row(batch_id: str, line_no: int, status: int) -> dict[str, Any]:
    amount = 1 if status == 200 else None
    custom_id = f"l{line_no}"
    return {
        "batch_id": uuid(batch_id),
        "line_no": line_no,
        "status_code": status,
        "amount": amount,
        "model": "m",
        "custom_id": custom_id,
        "body": BODY,
    }


def end(batch_id: str) -> tuple[str, int]:
    """Complete the batch as finalize does; its output file and that file's size."""
    with db.transaction() as session:
        batch = session.get_one(Batch, uuid(batch_id))
        size = sum(
            len(jsonl.result_line(batch.id, n, f"l{n}", 200, BODY, None, None)) for n in (1, 2, 7)
        )
        mine = {
            "account_id": batch.account_id,
            "livemode": batch.livemode,
            "purpose": "batch_output",
            "batch_id": batch.id,
        }
        file = File(
            id=ids.new(),
            filename=f"{batch_id}_output.jsonl",
            size=size,
            part=FilePart.OUTPUT,
            **mine,
        )
        session.add(file)
        session.flush()
        session.execute(
            update(Batch).values(
                status="completed", output_file_id=file.id, total=10, completed=9, failed=1
            )
        )
        return ids.render("file", file.id), size


def custom_ids(body: bytes) -> list[str]:
    return [json.loads(line)["custom_id"] for line in body.splitlines()]


def test_results_are_read_in_order_while_the_batch_runs(api: Api, batch_id: str) -> None:
    output = api.ask("GET", f"/v1/batches/{batch_id}/output")
    errors = api.ask("GET", f"/v1/batches/{batch_id}/errors")
    assert custom_ids(output.body) == ["l1", "l2", "l7"]
    assert custom_ids(errors.body) == ["l4"]
    for answer in (output, errors):
        told = [
            answer.headers[f"x-batch-{name}"] for name in ("complete", "lines-done", "lines-total")
        ]
        assert told == ["false", "4", "10"]
    assert api.ask("GET", f"/v1/batches/{batch_id}").json["output_file_id"] is None


def test_progress_and_usage_are_live(api: Api, batch_id: str) -> None:
    batch = api.ask("GET", f"/v1/batches/{batch_id}").json
    assert batch["request_counts"] == {
        "total": 10,
        "completed": 3,
        "failed": 1,
        "cancelled": 0,
        "expired": 0,
    }
    assert (
        batch["usage"]["input_tokens"],
        batch["usage"]["output_tokens"],
        batch["usage"]["total_tokens"],
    ) == (30, 6, 36)


def test_an_ended_batch_has_the_same_lines_as_its_output_file(api: Api, batch_id: str) -> None:
    file_id, size = end(batch_id)
    output = api.ask("GET", f"/v1/batches/{batch_id}/output")
    content = api.ask("GET", f"/v1/files/{file_id}/content")
    assert output.body == content.body
    assert output.headers["x-batch-complete"] == "true"
    assert content.headers["content-length"] == output.headers["content-length"] == str(size)
    assert content.headers["content-disposition"].startswith(
        f'attachment; filename="{batch_id}_output.jsonl"'
    )
    assert api.client.files.content(file_id).read() == content.body
    assert api.ask("GET", f"/v1/batches/{batch_id}/errors").headers["x-batch-complete"] == "true"


def test_a_deleted_output_file_takes_its_lines_with_it(api: Api, batch_id: str) -> None:
    file_id, _ = end(batch_id)
    assert api.ask("DELETE", f"/v1/files/{file_id}").json == {
        "id": file_id,
        "object": "file",
        "deleted": True,
    }
    assert api.ask("GET", f"/v1/files/{file_id}/content").status == 404
    assert api.ask("GET", f"/v1/batches/{batch_id}/output").status == 404
    assert api.ask("GET", f"/v1/batches/{batch_id}").json["output_file_id"] == file_id


def test_money_and_limits_have_the_shapes_that_are_described(api: Api, batch_id: str) -> None:
    end(batch_id)
    with db.transaction() as session:
        batch = session.get_one(Batch, uuid(batch_id))
        usage = InvoiceLine(
            kind="usage",
            description="m, input tokens",
            model="m",
            component="input",
            quantity=Decimal(30),
            unit_price=Decimal("0.02"),
            answered_by="simulated",
            amount=Decimal("0.0000006"),
        )
        discount = InvoiceLine(
            kind="discount",
            description="Batch discount",
            unit_price=Decimal("0.5"),
            amount=Decimal("-0.0000003"),
        )
        total = usage.amount + discount.amount
        header = Invoice(
            account_id=batch.account_id, livemode=batch.livemode, batch_id=batch.id, total=total
        )
        invoices.store(session, header, [usage, discount])
    invoice = api.ask("GET", f"/v1/batches/{batch_id}/invoice")
    assert_shape(InvoiceObject, invoice)
    month = f"{datetime.fromtimestamp(invoice.json['issued_at'], UTC):%Y-%m}"
    statement = api.ask("GET", f"/v1/statements/{month}")
    assert_shape(StatementObject, statement)
    assert [line["kind"] for line in statement.json["lines"]] == ["batch", "rounding"]
    page = api.ask("GET", f"/v1/statements/{month}?limit=1")
    assert_shape(StatementObject, page)
    assert (page.json["lines"], page.json["has_more"]) == (statement.json["lines"][:1], True)
    rest = api.ask(
        "GET", f"/v1/statements/{month}?limit=1&after={page.json['lines'][0]['invoice_id']}"
    )
    assert (rest.json["lines"], rest.json["has_more"]) == (statement.json["lines"][1:], False)
    file = api.upload(factories.jsonl([factories.chat_line("a"), factories.chat_line("a")]))["id"]
    assert_shape(EstimateObject, api.ask("POST", "/v1/batches/estimate", {"input_file_id": file}))
    assert_shape(LimitsObject, api.ask("GET", "/v1/limits"))
    assert_shape(TermsObject, api.ask("GET", "/v1/terms"))


def test_an_invoice_is_404_before_the_end(api: Api, batch_id: str) -> None:
    assert api.ask("GET", f"/v1/batches/{batch_id}/invoice").error["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("month", "status"), [("2026-11", 200), ("2026-13", 400), ("x", 400), ("0000-01", 400)]
)
def test_a_statement_is_of_a_month(api: Api, month: str, status: int) -> None:
    answer = api.ask("GET", f"/v1/statements/{month}")
    assert answer.status == status
    if status == 200:
        assert answer.json["livemode"] is False
    else:
        assert answer.error["param"] == "month"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("after=inv_1", "after"),
        ("limit=1&after=inv_1", "after"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
    ],
)
def test_a_page_of_a_statement_that_cannot_be_is_refused(api: Api, query: str, param: str) -> None:
    answer = api.ask("GET", f"/v1/statements/2026-11?{query}")
    assert (answer.status, answer.error["param"]) == (400, param)


@pytest.mark.parametrize("endpoint", [None, "/v1/chat/completions"])
def test_an_estimate_prices_good_lines_and_lists_bad_ones(api: Api, endpoint: str | None) -> None:
    lines = factories.jsonl([factories.chat_line("a"), factories.chat_line("b", model="gpt-9")])
    answer = api.ask(
        "POST",
        "/v1/batches/estimate",
        {"input_file_id": api.upload(lines)["id"], "endpoint": endpoint},
    )
    assert answer.status == 200
    estimate = answer.json
    assert (estimate["valid"], estimate["error_count"]) == (False, 1)
    assert estimate["errors"]["data"][0]["line"] == 2
    assert estimate["models"][0]["model"] == "mistral-small-3-1"
    assert float(estimate["expected_cost"]) > 0
    assert api.ask("GET", "/v1/batches").json["data"] == []


def test_an_estimate_of_no_file_is_400(api: Api) -> None:
    answer = api.ask("POST", "/v1/batches/estimate", {"input_file_id": "file-none"})
    assert (answer.status, answer.error["param"]) == (400, "input_file_id")


def test_the_output_of_an_ended_batch_is_read_in_parts_once_it_is_stored(
    api: Api, batch_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    end(batch_id)
    stored = Stored(
        lambda start, end: iter([b"0123456789"[start:end]]), lambda: None, 10, b"\1" * 32
    )
    monkeypatch.setattr(content, "of", lambda file: stored)
    path = f"/v1/batches/{batch_id}/output"
    part = api.ask("GET", path, headers={"range": "bytes=2-4"})
    assert (part.status, part.body) == (206, b"234")
    same = api.ask("GET", path, headers={"if-none-match": part.headers["etag"]})
    assert (same.status, same.body) == (304, b"")
    for answer in (part, same):
        assert answer.headers["x-batch-complete"] == "true"
