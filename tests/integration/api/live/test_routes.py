"""Live calls through the SDK: answers, errors, and the ledger that they are billed in."""

from decimal import Decimal
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from sqlalchemy import select, update

from tests.integration.conftest import Api
from tests.waiting import wait_until
from xalen_batch import db, ids
from xalen_batch.api.live import ledger as ledger_module
from xalen_batch.billing import reconcile
from xalen_batch.models import Batch, Result, Task
from xalen_batch.pipeline import finalize, seal

pytestmark = pytest.mark.usefixtures("database")

MISTRAL, BGE, EMBEDDING = "mistral-small-3-1", "bge-reranker-v2", "bge-m3"
HELLO: list[Any] = [{"role": "user", "content": "Where is my parcel?"}]


def ledgers() -> list[Batch]:
    with db.reading() as session:
        return list(session.scalars(select(Batch).where(Batch.ledger.is_not(None))))


def recorded(count: int) -> list[Result]:
    """The lines of all ledgers, once there are this many."""

    def found() -> list[Result]:
        with db.reading() as session:
            return list(session.scalars(select(Result).order_by(Result.line_no)))

    wait_until(lambda: len(found()) >= count, timeout=20)
    return found()


def test_the_model_is_switched_by_its_name_alone(api: Api) -> None:
    chat = api.client.chat.completions.create(model=MISTRAL, messages=HELLO)
    assert chat.choices[0].message.content
    question = '{"query": "parcel", "documents": ["a parcel", "a cat"]}'
    ranked = api.client.chat.completions.create(
        model=BGE, messages=[{"role": "user", "content": question}]
    )
    assert '"index":0' in (ranked.choices[0].message.content or "")
    response = api.client.responses.create(model=MISTRAL, input="Hello", max_output_tokens=20)
    assert isinstance(response, Response)
    assert response.output_text
    vectors = api.client.embeddings.create(model=EMBEDDING, input=["a", "b"])
    assert len(vectors.data) == 2
    completion = api.client.completions.create(model=MISTRAL, prompt="Once", max_tokens=3)
    assert completion.usage
    assert completion.usage.completion_tokens <= 3
    answer = api.ask(
        "POST", "/v1/rerank", {"model": BGE, "query": "parcel", "documents": ["a parcel", "b"]}
    )
    assert answer.json["results"][0]["index"] == 0
    assert {row.model for row in recorded(6)} == {MISTRAL, BGE, EMBEDDING}


def test_a_call_costs_the_list_price(api: Api) -> None:
    usage = api.client.chat.completions.create(model=MISTRAL, messages=HELLO).usage
    assert usage
    (row,) = recorded(1)
    price = Decimal("0.02") * usage.prompt_tokens + Decimal("0.04") * usage.completion_tokens
    assert row.amount == price / 1_000_000
    # The answer was delivered, and is not kept.
    assert row.body is None


def test_calls_of_a_day_are_one_invoice(api: Api) -> None:
    for _ in range(3):
        api.client.chat.completions.create(model=MISTRAL, messages=HELLO)
    rows = recorded(3)
    (ledger,) = ledgers()
    finalize.run(ledger.id)
    assert ledgers()[0].status == "finalizing"
    end_the_day(ledger)
    finalize.run(ledger.id)
    (ledger,) = ledgers()
    assert (ledger.status, ledger.total, ledger.completed) == ("completed", 3, 3)
    assert (ledger.output_file_id, ledger.error_file_id) == (None, None)
    invoice = api.ask("GET", f"/v1/batches/{ids.render('batch', ledger.id)}/invoice").json
    assert Decimal(invoice["total"]) == sum(row.amount or 0 for row in rows)
    assert [line["kind"] for line in invoice["lines"]] == ["usage", "usage", "discount"]
    assert Decimal(invoice["discount"]) == 0
    seal.run()
    assert ledgers()[0].sealed_at is not None
    with db.snapshot() as session:
        assert list(reconcile.of_batches(session, [ledger.id])) == []


def end_the_day(ledger: Batch) -> None:
    with db.transaction() as session:
        session.execute(
            update(Batch)
            .where(Batch.id == ledger.id)
            .values(
                expires_at=Batch.created_at,
                lease_until=Batch.created_at,
                ledger=f"yesterday {ledger.ledger}",
            )
        )


def test_a_call_after_the_end_of_the_day_opens_the_next_ledger(api: Api) -> None:
    api.client.chat.completions.create(model=MISTRAL, messages=HELLO)
    recorded(1)
    (first,) = ledgers()
    end_the_day(first)
    api.client.chat.completions.create(model=MISTRAL, messages=HELLO)
    recorded(2)
    assert len(ledgers()) == 2
    with db.reading() as session:
        lines = dict(session.execute(select(Task.batch_id, Task.lines)).all())
    assert set(lines.values()) == {1}


def test_ledgers_are_no_batches_of_the_callers(api: Api) -> None:
    api.client.chat.completions.create(model=MISTRAL, messages=HELLO)
    recorded(1)
    (ledger,) = ledgers()
    name = ids.render("batch", ledger.id)
    assert api.client.batches.list().data == []
    assert api.ask("GET", f"/v1/batches/{name}").status == 404
    assert api.ask("POST", f"/v1/batches/{name}/cancel").status == 404
    assert api.ask("GET", "/v1/limits").json["open_batches"]["used"] == 0


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("chat/completions", {"messages": HELLO}, 400, "model"),
        ("chat/completions", {"model": "gpt-9", "messages": HELLO}, 404, "model"),
        ("chat/completions", {"model": EMBEDDING, "messages": HELLO}, 404, "model"),
        ("chat/completions", {"model": MISTRAL, "messages": []}, 400, "messages"),
        ("chat/completions", {"model": MISTRAL, "messages": HELLO, "n": 0}, 400, "n"),
        (
            "chat/completions",
            {"model": MISTRAL, "messages": HELLO, "service_tier": "gold"},
            400,
            "service_tier",
        ),
        ("responses", {"model": MISTRAL, "input": "x", "conversation": "c"}, 400, "conversation"),
        ("embeddings", {"model": EMBEDDING, "input": ""}, 400, "input"),
        ("rerank", {"model": BGE, "query": "", "documents": ["a"]}, 400, "query"),
    ],
)
def test_a_bad_call_is_refused_with_its_parameter(
    api: Api, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    answer = api.ask("POST", f"/v1/{path}", body)
    assert (answer.status, answer.error["param"]) == (status, param)


def test_a_bad_body_is_refused(api: Api) -> None:
    for body in (b"", b"{", b"[]", b'{"model":"a","model":"b"}'):
        assert api.ask("POST", "/v1/chat/completions", body).status == 400


def test_a_call_needs_a_valid_key(api: Api) -> None:
    for key in ("", "sk-1", "xln_test_" + "0" * 40):
        with pytest.raises(openai.AuthenticationError):
            Api(api.port, key or "none").client.chat.completions.create(
                model=MISTRAL, messages=HELLO
            )


def test_the_models_refusal_is_the_clients(api: Api) -> None:
    body = {"model": MISTRAL, "messages": HELLO, "metadata": {"simulate": "status=422"}}
    answer = api.ask("POST", "/v1/chat/completions", body)
    assert answer.status == 422


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("status=429;retry_after=7", 429, "model_busy"),
        ("status=500", 503, "service_unavailable"),
        ("reset", 503, "service_unavailable"),
        ("status=504", 504, "model_timeout"),
    ],
)
def test_a_failing_backend_is_told_and_bills_nothing(
    api: Api, fault: str, status: int, code: str
) -> None:
    body = {"model": MISTRAL, "messages": HELLO, "metadata": {"simulate": fault}}
    answer = api.ask("POST", "/v1/chat/completions", body)
    assert (answer.status, answer.error["code"]) == (status, code)
    if "retry_after" in fault:
        assert answer.headers["retry-after"] == "7"
    api.client.chat.completions.create(model=MISTRAL, messages=HELLO)
    assert len(recorded(1)) == 1


@pytest.mark.parametrize("is_streamed", [False, True])
def test_no_call_is_answered_while_too_many_wait_to_be_recorded(
    api: Api, monkeypatch: pytest.MonkeyPatch, is_streamed: bool
) -> None:
    monkeypatch.setattr(ledger_module, "MOST_WAITING", 0)
    body = {"model": MISTRAL, "messages": HELLO, "stream": is_streamed}
    answer = api.ask("POST", "/v1/chat/completions", body)
    assert (answer.status, answer.error["code"]) == (503, "service_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert ledgers() == []
