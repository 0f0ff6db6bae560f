"""Streamed live calls through the SDK: events, usage and what is billed."""

import http.client
import json
from decimal import Decimal
from typing import Any

import openai
import pytest
from sqlalchemy import select

from tests.integration.conftest import Api
from xalen_batch import db
from xalen_batch.api.live.ledger import recorder
from xalen_batch.models import Result

pytestmark = pytest.mark.usefixtures("database")

MISTRAL, BGE = "mistral-small-3-1", "bge-reranker-v2"
HELLO: list[Any] = [{"role": "user", "content": "Where is my parcel?"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "find",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def recorded() -> list[Result]:
    recorder.settle()
    with db.reading() as session:
        return list(session.scalars(select(Result).order_by(Result.line_no)))


def test_a_chat_arrives_in_pieces_and_is_the_whole_answer(api: Api) -> None:
    whole = api.client.chat.completions.create(model=MISTRAL, messages=HELLO)
    chunks = list(api.client.chat.completions.create(model=MISTRAL, messages=HELLO, stream=True))
    assert len(chunks) > 5
    # The body of a streamed request differs, and so does the simulated answer: its form does not.
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text
    assert whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert {chunk.usage for chunk in chunks} == {None}
    assert len(recorded()) == 2


def test_the_usage_is_told_to_a_client_that_asks(api: Api) -> None:
    chunks = list(
        api.client.chat.completions.create(
            model=MISTRAL, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    usage = chunks[-1].usage
    assert usage
    assert chunks[-1].choices == []
    (row,) = recorded()
    assert (row.input_tokens, row.output_tokens) == (usage.prompt_tokens, usage.completion_tokens)
    assert row.flag is None
    price = Decimal("0.02") * usage.prompt_tokens + Decimal("0.04") * usage.completion_tokens
    assert row.amount == price / 1_000_000


def test_tool_calls_arrive(api: Api) -> None:
    with api.client.chat.completions.stream(
        model=MISTRAL, messages=HELLO, tools=[TOOL], tool_choice="required"
    ) as stream:
        completion = stream.get_final_completion()
    calls = completion.choices[0].message.tool_calls
    assert calls
    assert calls[0].function.name == "find"
    assert "city" in json.loads(calls[0].function.arguments)


def test_a_text_completion_and_a_ranking_arrive(api: Api) -> None:
    texts = api.client.completions.create(model=MISTRAL, prompt="Once", max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in texts)
    question = '{"query": "parcel", "documents": ["a parcel", "a cat"]}'
    chunks = api.client.chat.completions.create(
        model=BGE, messages=[{"role": "user", "content": question}], stream=True
    )
    assert '"index":0' in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert len(recorded()) == 2


def test_a_response_arrives_as_events_that_the_sdk_joins(api: Api) -> None:
    with api.client.responses.stream(model=MISTRAL, input="Hello") as stream:
        names = [event.type for event in stream]
        response = stream.get_final_response()
    assert names[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert names[-1] == "response.completed"
    assert response.output_text
    assert response.usage
    (row,) = recorded()
    assert (row.input_tokens, row.output_tokens) == (
        response.usage.input_tokens,
        response.usage.output_tokens,
    )


def test_a_streamed_response_with_a_call(api: Api) -> None:
    tool: Any = {"type": "function", "strict": False, **TOOL["function"]}
    with api.client.responses.stream(
        model=MISTRAL, input="Hello", tools=[tool], tool_choice="required"
    ) as stream:
        names = {event.type for event in stream}
        response = stream.get_final_response()
    assert "response.function_call_arguments.done" in names
    assert response.output[0].type == "function_call"


@pytest.mark.parametrize("fault", ["status=429", "status=422", "status=500"])
def test_an_error_before_the_first_event_is_an_ordinary_error(api: Api, fault: str) -> None:
    with pytest.raises(openai.APIStatusError):
        api.client.chat.completions.create(
            model=MISTRAL, messages=HELLO, stream=True, metadata={"simulate": fault}
        )
    assert recorded() == []


def test_a_client_that_goes_early_pays_for_what_it_was_sent(api: Api) -> None:
    body = json.dumps({"model": MISTRAL, "messages": HELLO, "stream": True}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=60)
    headers = {"authorization": f"Bearer {api.key}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    answer = connection.getresponse()
    assert answer.read(2_000)
    answer.close()
    connection.close()
    whole = list(api.client.chat.completions.create(model=MISTRAL, messages=HELLO, stream=True))
    rows = recorded()
    assert len(whole) > 1
    assert len(rows) == 2
    assert rows[0].flag == "usage_counted"
    assert 0 < rows[0].output_tokens < rows[1].output_tokens
