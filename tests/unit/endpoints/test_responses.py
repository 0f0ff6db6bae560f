"""Requests of Responses: their form, their tokens, and what only a live call may ask for."""

import pytest

from xalen_batch.endpoints import responses, tokens
from xalen_batch.endpoints.form import InvalidBody
from xalen_batch.endpoints.responses import ResponseRequest
from xalen_batch.endpoints.window import Window

WINDOW = Window("m", "nobody", 10)


def body(**values):
    given = {"model": "m", "input": "Hello", **values}
    return {key: value for key, value in given.items() if value is not ...}


def message(content, role="user"):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    "given",
    [
        body(),
        body(instructions="Be brief.", max_output_tokens=16, temperature=0, top_p=1),
        body(input=[message("Hello"), {"type": "message", **message("Hi", "assistant")}]),
        body(input=[message([{"type": "input_text", "text": "Hello"}])]),
        body(store=True, service_tier="auto", metadata={"a": "b"}, anything=[1]),
        body(text={"format": {"type": "json_schema", "name": "x", "schema": {}}}),
        body(tools=[{"type": "function", "name": "f", "parameters": {}}], tool_choice="auto"),
        # A backend with its own endpoint has them.
        body(tools=[{"type": "web_search"}]),
        body(input=[{"type": "item_reference", "id": "msg_1"}]),
        body(chat="a field of the user's own"),
    ],
)
def test_requests_that_fit(given):
    assert isinstance(responses.fit(given), ResponseRequest)


@pytest.mark.parametrize(
    ("given", "param", "words"),
    [
        (body(input=...), "body.input", "`input` is missing"),
        (body(input=[]), "body.input", "length >= 1"),
        (body(input=5), "body.input", "Send a string"),
        (body(input=[message("x", "robot")]), "body.input[0].role", "user, assistant"),
        (body(input=[message(None)]), "body.input[0].content", "a `content`"),
        (
            body(input=[message([{"type": "input_text"}])]),
            "body.input[0].content[0].text",
            "needs its text",
        ),
        (
            body(input=[message([{"type": "text_input"}])]),
            "body.input[0].content[0].type",
            "input_image",
        ),
        (body(input=[{"type": "function_call"}]), "body.input[0]", "needs a `name`"),
        (
            body(input=[{"type": "function_call_output", "output": "1"}]),
            "body.input[0].call_id",
            "Name the call",
        ),
        (body(max_output_tokens=0), "body.max_output_tokens", "at least one token"),
        (body(temperature=3), "body.temperature", "<= 2"),
        (body(tools=[{"type": "function"}]), "body.tools[0].name", "Name the function"),
        (body(text={"format": {"type": "xml"}}), "body.text.format.type", "json_schema"),
        (body(text={"format": {"type": "json_schema"}}), "body.text.format", "`schema`"),
        (body(stream="yes"), "body.stream", "no stream"),
    ],
)
def test_requests_that_do_not_fit_say_where(given, param, words):
    found = responses.fit(given)
    assert isinstance(found, InvalidBody)
    assert found.param == param
    assert words in found.message


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (body(stream=True), "body.stream"),
        (body(background=True), "body.background"),
        (body(previous_response_id="resp_1"), "body.previous_response_id"),
        (body(conversation={"id": "conv_1"}), "body.conversation"),
    ],
)
def test_a_batch_cannot_run_what_needs_a_connection_or_a_memory(given, param):
    assert responses.fit(given).live_only.param == param


def test_a_batch_runs_the_same_parameters_switched_off():
    given = body(stream=False, background=False, previous_response_id=None, conversation=None)
    assert responses.fit(given).live_only is None


def test_tokens_are_those_of_the_chat_that_it_stands_for():
    given = body(instructions="Be brief.", input=[message("Where is my parcel?")])
    chat = [{"role": "system", "content": "Be brief."}, message("Where is my parcel?")]
    assert responses.fit(given).input_tokens(tokens.count) == tokens.count_chat(chat)


def test_an_input_beyond_the_window_is_named_with_its_tokens():
    found = responses.fit(body(input="word " * 20)).overflow(WINDOW)
    assert (found.param, "context window of m is 10 tokens" in found.message) == (
        "body.input",
        True,
    )
    assert responses.fit(body(input="word")).overflow(WINDOW) is None
