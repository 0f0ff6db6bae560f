"""Queued calls: flex at the price of a batch, and Responses in the background."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from sqlalchemy import select

from tests.integration.conftest import Api
from tests.integration.engines import engine, run_to_end
from tests.waiting import wait_until
from xalen_batch import db
from xalen_batch.models import Batch, Invoice
from xalen_batch.pipeline import validate
from xalen_batch.worker.engine import Engine

__all__ = ["engine"]

pytestmark = pytest.mark.usefixtures("database", "valkey")

MISTRAL = "mistral-small-3-1"
BIG = 2**70 + 1
HELLO: list[Any] = [{"role": "user", "content": "Where is my parcel?"}]


def calls() -> list[Batch]:
    with db.reading() as session:
        return list(
            session.scalars(select(Batch).where(Batch.call.is_not(None)).order_by(Batch.id))
        )


def work(engine: Engine) -> None:
    """Run the newest queued call to its end, as workers do."""
    wait_until(lambda: bool(calls()))
    batch_id = calls()[-1].id
    validate.run(batch_id)
    run_to_end(engine, batch_id)


@contextmanager
def at_work(engine: Engine) -> Iterator[None]:
    worker = threading.Thread(target=work, args=(engine,))
    worker.start()
    try:
        yield
    finally:
        worker.join()


def total(batch: Batch) -> Decimal:
    with db.reading() as session:
        return session.scalars(select(Invoice).where(Invoice.batch_id == batch.id)).one().total


def test_a_flex_call_keeps_a_number_of_more_than_64_bits(api: Api, engine: Engine) -> None:
    body = {"model": MISTRAL, "input": "Hello", "user": BIG, "service_tier": "flex"}
    with at_work(engine):
        answer = api.ask("POST", "/v1/responses", body)
    assert (answer.status, answer.json["user"]) == (200, BIG)


def test_a_call_in_the_background_keeps_one(api: Api, engine: Engine) -> None:
    body = {"model": MISTRAL, "input": "Hello", "user": BIG, "background": True}
    begun = api.ask("POST", "/v1/responses", body)
    assert (begun.status, begun.json["user"]) == (200, BIG)
    work(engine)
    ended = api.ask("GET", f"/v1/responses/{begun.json['id']}")
    assert (ended.json["status"], ended.json["user"]) == ("completed", BIG)


def test_flex_waits_for_a_worker_and_costs_half(api: Api, engine: Engine) -> None:
    with at_work(engine):
        chat = api.client.chat.completions.create(
            model=MISTRAL, messages=HELLO, service_tier="flex"
        )
    assert chat.service_tier == "flex"
    assert chat.choices[0].message.content
    usage = chat.usage
    assert usage
    price = Decimal("0.02") * usage.prompt_tokens + Decimal("0.04") * usage.completion_tokens
    assert total(calls()[0]) == price / 1_000_000 / 2


def test_a_refused_flex_call_is_the_models_refusal(api: Api, engine: Engine) -> None:
    with at_work(engine), pytest.raises(openai.UnprocessableEntityError):
        api.client.chat.completions.create(
            model=MISTRAL,
            messages=HELLO,
            service_tier="flex",
            metadata={"simulate": "status=422"},
        )


def test_a_flex_call_that_takes_too_long_goes_on(
    api: Api, engine: Engine, configure: Callable[..., None]
) -> None:
    configure(flex_wait=0.05)
    body = {"model": MISTRAL, "messages": HELLO, "service_tier": "flex"}
    answer = api.ask("POST", "/v1/chat/completions", body)
    assert (answer.status, answer.error["code"]) == (504, "still_queued")
    # A client that repeated it would pay twice.
    assert answer.headers["x-should-retry"] == "false"
    work(engine)
    named = answer.error["message"].partition("GET /v1/batches/")[2].split()[0]
    line = json.loads(api.ask("GET", f"/v1/batches/{named}/output").body)
    assert line["response"]["body"]["choices"]


def test_a_flex_client_that_goes_stops_its_call(api: Api) -> None:
    body = json.dumps({"model": MISTRAL, "messages": HELLO, "service_tier": "flex"}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=60)
    headers = {"authorization": f"Bearer {api.key}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    wait_until(lambda: bool(calls()))
    connection.close()
    wait_until(lambda: calls()[0].status in ("cancelling", "cancelled"))


def test_a_response_runs_in_the_background(api: Api, engine: Engine) -> None:
    begun = api.client.responses.create(
        model=MISTRAL, input="Hello", background=True, instructions="Be brief."
    )
    assert (begun.status, begun.background) == ("queued", True)
    assert api.client.responses.retrieve(begun.id).status == "queued"
    work(engine)
    ended = api.client.responses.retrieve(begun.id)
    assert isinstance(ended, Response)
    assert (ended.id, ended.status, ended.instructions) == (begun.id, "completed", "Be brief.")
    assert ended.output_text
    usage = ended.usage
    assert usage
    price = Decimal("0.02") * usage.input_tokens + Decimal("0.04") * usage.output_tokens
    assert total(calls()[0]) == price / 1_000_000


def test_a_response_in_the_background_may_have_the_patience_of_flex(
    api: Api, engine: Engine
) -> None:
    begun = api.client.responses.create(
        model=MISTRAL, input="Hello", background=True, service_tier="flex"
    )
    work(engine)
    usage = api.client.responses.retrieve(begun.id).usage
    assert usage
    price = Decimal("0.02") * usage.input_tokens + Decimal("0.04") * usage.output_tokens
    assert total(calls()[0]) == price / 1_000_000 / 2


def test_a_response_that_fails_says_why(api: Api, engine: Engine) -> None:
    begun = api.client.responses.create(
        model=MISTRAL, input="Hello", background=True, metadata={"simulate": "status=422"}
    )
    work(engine)
    ended = api.client.responses.retrieve(begun.id)
    assert ended.status == "failed"
    assert ended.error
    assert "422" in ended.error.message


def test_a_response_is_cancelled_and_deleted(api: Api, engine: Engine) -> None:
    begun = api.client.responses.create(model=MISTRAL, input="Hello", background=True)
    with pytest.raises(openai.BadRequestError, match="has not ended"):
        api.client.responses.delete(begun.id)
    assert api.client.responses.cancel(begun.id).status == "in_progress"
    work(engine)
    assert api.client.responses.retrieve(begun.id).status == "cancelled"
    assert api.client.responses.cancel(begun.id).status == "cancelled"
    api.client.responses.delete(begun.id)
    for call in (api.client.responses.retrieve, api.client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            call(begun.id)


def test_queued_calls_are_in_no_list(api: Api) -> None:
    api.client.responses.create(model=MISTRAL, input="Hello", background=True)
    assert api.client.batches.list().data == []
    assert api.client.files.list().data == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x", "background": True, "stream": True}, "stream"),
        ({"input": "x", "background": True, "previous_response_id": "r"}, "previous_response_id"),
        ({"input": [], "background": True}, "input"),
    ],
)
def test_a_bad_queued_call_is_refused_at_once(api: Api, body: dict[str, Any], param: str) -> None:
    answer = api.ask("POST", "/v1/responses", {"model": MISTRAL, **body})
    assert (answer.status, answer.error["param"]) == (400, param)
    assert calls() == []


def test_a_server_without_live_calls_says_how_to_run_a_batch(
    api: Api, configure: Callable[..., None]
) -> None:
    configure(live="off")
    with pytest.raises(openai.NotFoundError) as raised:
        api.client.chat.completions.create(model=MISTRAL, messages=HELLO)
    assert '"url": "/v1/chat/completions", "body": <the body of this request>' in str(raised.value)
    assert "xalen-batch run" in str(raised.value)
