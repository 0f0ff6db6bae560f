"""A Response becomes a chat and its completion becomes a Response."""

import pytest
from openai.types.responses import Response

from xalen_batch.endpoints.responses_chat import InvalidItem, NotChat, from_chat, to_chat
from xalen_batch.endpoints.usage import Usage

CALL = {"type": "function_call", "call_id": "c1", "name": "find", "arguments": '{"a":1}'}


def completion(message, finish_reason="stop"):
    return {
        "id": "chatcmpl-1",
        "created": 1,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
    }


def response(message, finish_reason="stop", **asked):
    asked = {"model": "m", "input": "Hello", **asked}
    found = from_chat(completion(message, finish_reason), asked, "r1", Usage(7, 3, 2, 1))
    # The SDK's own types are the judge of the form.
    Response.model_validate(found, strict=True)
    return found


def test_a_conversation_with_tools_becomes_messages_in_order():
    chat = to_chat(
        {
            "model": "m",
            "instructions": "Be brief.",
            "input": [
                {"role": "developer", "content": "In English."},
                {"role": "user", "content": [{"type": "input_text", "text": "Where?"}]},
                {"role": "assistant", "content": [{"type": "output_text", "text": "Let me look."}]},
                CALL,
                {**CALL, "call_id": "c2"},
                {"type": "reasoning", "summary": []},
                {"type": "function_call_output", "call_id": "c1", "output": "Berlin"},
                {
                    "type": "function_call_output",
                    "call_id": "c2",
                    "output": [{"type": "input_text", "text": "Rome"}],
                },
            ],
        }
    )
    function = {"name": "find", "arguments": '{"a":1}'}
    assert chat["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "In English."},
        {"role": "user", "content": "Where?"},
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": function},
                {"id": "c2", "type": "function", "function": function},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "Berlin"},
        {"role": "tool", "tool_call_id": "c2", "content": "Rome"},
    ]


def test_a_call_without_a_message_before_it_gets_a_message_of_its_own():
    messages = to_chat({"model": "m", "input": [{"role": "user", "content": "x"}, CALL]})[
        "messages"
    ]
    assert messages[1]["role"] == "assistant"
    assert messages[1]["content"] is None


def test_parameters_get_their_chat_names():
    chat = to_chat(
        {
            "model": "m",
            "input": "Hello",
            "max_output_tokens": 5,
            "temperature": 0.5,
            "reasoning": {"effort": "low"},
            "text": {
                "format": {
                    "type": "json_schema",
                    "name": "answer",
                    "schema": {"type": "object"},
                    "strict": True,
                }
            },
            "tools": [{"type": "function", "name": "find", "parameters": {"type": "object"}}],
            "tool_choice": {"type": "function", "name": "find"},
            "store": False,
        }
    )
    assert chat == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 5,
        "temperature": 0.5,
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
        "tools": [
            {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
        ],
        "tool_choice": {"type": "function", "function": {"name": "find"}},
    }


def test_what_a_chat_refuses_alone_is_left_out():
    """OpenAI's chat takes `parallel_tool_calls` with tools only, `top_logprobs` with logprobs."""
    asked = {"model": "m", "input": "Hi", "parallel_tool_calls": False, "top_logprobs": 2}
    assert to_chat(asked).keys() == {"model", "messages"}
    tool = {"type": "function", "name": "find"}
    assert to_chat({**asked, "tools": [tool]})["parallel_tool_calls"] is False


def test_a_picture_stays_a_part():
    url = "https://example.org/a.png"
    content = [{"type": "input_text", "text": "?"}, {"type": "input_image", "image_url": url}]
    messages = to_chat({"input": [{"role": "user", "content": content}]})["messages"]
    assert messages[0]["content"] == [
        {"type": "text", "text": "?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]


@pytest.mark.parametrize(
    "given",
    [
        {"input": "x", "tools": [{"type": "web_search"}]},
        {"input": "x", "tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "x"}},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {
            "input": [
                {"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]},
            ]
        },
    ],
)
def test_what_no_chat_has_is_told_apart_from_mistakes(given):
    with pytest.raises(NotChat):
        to_chat(given)


def test_a_mistake_is_not_left_to_the_backend():
    with pytest.raises(InvalidItem) as raised:
        to_chat({"input": [{"role": "user"}]})
    assert not isinstance(raised.value, NotChat)


def test_a_text_is_one_message_with_its_usage():
    found = response({"role": "assistant", "content": "Hi."})
    assert (found["id"], found["status"], found["incomplete_details"]) == (
        "resp_r1",
        "completed",
        None,
    )
    assert found["output"][0]["content"] == [
        {"type": "output_text", "text": "Hi.", "annotations": []}
    ]
    assert found["usage"] == {
        "input_tokens": 7,
        "output_tokens": 3,
        "total_tokens": 10,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 1},
    }


def test_tool_calls_are_items_without_an_empty_message():
    calls = [{"id": "c1", "function": {"name": "find", "arguments": "{}"}}]
    found = response({"role": "assistant", "content": None, "tool_calls": calls})
    assert [(item["type"], item.get("call_id")) for item in found["output"]] == [
        ("function_call", "c1")
    ]


def test_reasoning_and_refusals_are_items_and_parts():
    found = response({"content": "", "reasoning_content": "Hm.", "refusal": "No."})
    assert [item["type"] for item in found["output"]] == ["reasoning", "message"]
    assert found["output"][1]["content"] == [{"type": "refusal", "refusal": "No."}]


@pytest.mark.parametrize(
    ("finish_reason", "reason"),
    [("length", "max_output_tokens"), ("content_filter", "content_filter")],
)
def test_a_cut_answer_is_incomplete(finish_reason, reason):
    found = response({"content": "Hi"}, finish_reason)
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": reason})


def test_the_request_is_repeated_where_clients_expect_it():
    found = response({"content": "Hi"}, instructions="Be brief.", metadata={"a": "b"}, top_p=0.5)
    assert (found["instructions"], found["metadata"], found["top_p"], found["temperature"]) == (
        "Be brief.",
        {"a": "b"},
        0.5,
        1.0,
    )


def test_only_the_last_item_of_a_cut_answer_is_incomplete():
    calls = [{"id": f"c{n}", "function": {"name": "find", "arguments": "{"}} for n in (1, 2)]
    found = response({"content": "Wait.", "tool_calls": calls}, "length")
    assert [item["status"] for item in found["output"]] == ["completed", "completed", "incomplete"]
    assert found["status"] == "incomplete"


LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
TOP = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105]}


def test_logprobs_are_asked_of_the_chat_and_given_back():
    chat = to_chat({"model": "m", "input": "Hi", **LOGPROBS})
    assert (chat["logprobs"], chat["top_logprobs"]) == (True, 1)
    entries = {"content": [{**TOP, "top_logprobs": [TOP]}, {"token": "!", "logprob": -1.0}]}
    asked = {"model": "m", "input": "Hi", **LOGPROBS}
    answered = completion({"content": "Hi!"})
    answered["choices"][0]["logprobs"] = entries
    found = from_chat(answered, asked, "r1", Usage(1, 1))
    Response.model_validate(found, strict=True)
    (part,) = found["output"][0]["content"]
    assert part["logprobs"] == [
        {**TOP, "top_logprobs": [TOP]},
        {"token": "!", "logprob": -1.0, "bytes": [], "top_logprobs": []},
    ]


@pytest.mark.parametrize("logprobs", [None, "x", {"content": None}, {"content": ["x"]}])
def test_a_chat_without_logprobs_gives_an_empty_list(logprobs):
    answered = completion({"content": "Hi!"})
    answered["choices"][0]["logprobs"] = logprobs
    found = from_chat(answered, {"model": "m", "input": "Hi", **LOGPROBS}, "r1", Usage(1, 1))
    assert found["output"][0]["content"][0]["logprobs"] == []


@pytest.mark.parametrize("include", [None, "message.output_text.logprobs", 1, [None, {}]])
def test_an_include_that_is_no_list_of_names_asks_for_nothing(include):
    assert "logprobs" not in to_chat({"model": "m", "input": "Hi", "include": include})
