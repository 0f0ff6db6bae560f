"""Results of lines as results of messages, in the types of the anthropic package."""

from typing import Any

import pytest
from anthropic.types.messages import MessageBatchIndividualResponse
from pydantic import TypeAdapter

from xalen_batch.api.anthropic.messages import result_of
from xalen_batch.states import LineError

TYPE: TypeAdapter[MessageBatchIndividualResponse] = TypeAdapter(MessageBatchIndividualResponse)
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "look_up", "arguments": '{"q": "é"}'},
}


def result(line: dict[str, Any]) -> dict[str, Any]:
    """The result of a line, which must fit the client's type."""
    found = result_of({"id": "batch_req_0a000001", "custom_id": "a", "response": None, **line})
    TYPE.validate_python(found)
    assert found["custom_id"] == "a"
    shown: dict[str, Any] = found["result"]
    return shown


def message(choice: dict[str, Any], **usage: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"} | choice
    counts = {"prompt_tokens": 10, "completion_tokens": 5} | usage
    body = {"id": "x", "model": "m", "choices": [choice], "usage": counts}
    found = result({"response": {"status_code": 200, "body": body}})
    assert found["type"] == "succeeded"
    shown: dict[str, Any] = found["message"]
    return shown


def test_a_text() -> None:
    assert message({}) == {
        "id": "msg_0a000001",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "Hi"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "output_tokens": 5,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "service_tier": "batch",
        },
    }


def test_cached_tokens_are_no_input_tokens() -> None:
    usage = message({}, prompt_tokens_details={"cached_tokens": 4})["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (6, 4)


@pytest.mark.parametrize(
    ("choice", "reason", "sequence"),
    [
        ({"finish_reason": "length"}, "max_tokens", None),
        ({"finish_reason": "content_filter"}, "refusal", None),
        ({"finish_reason": "stop", "stop_reason": "END"}, "stop_sequence", "END"),
        ({"finish_reason": "stop", "matched_stop": "END"}, "stop_sequence", "END"),
        # The id of a token that ends an answer.
        ({"finish_reason": "stop", "stop_reason": 128009}, "end_turn", None),
        ({"finish_reason": "length", "stop_reason": "END"}, "max_tokens", None),
        ({"finish_reason": None}, "end_turn", None),
    ],
)
def test_the_reason_of_the_end(choice: dict[str, Any], reason: str, sequence: str | None) -> None:
    found = message(choice)
    assert (found["stop_reason"], found["stop_sequence"]) == (reason, sequence)


@pytest.mark.parametrize("finish", ["tool_calls", "stop"])
def test_calls_of_tools(finish: str) -> None:
    found = message({"message": {"content": None, "tool_calls": [CALL]}, "finish_reason": finish})
    use = {"type": "tool_use", "id": "call_1", "name": "look_up", "input": {"q": "é"}}
    assert found["content"] == [use]
    assert found["stop_reason"] == "tool_use"


@pytest.mark.parametrize(("arguments", "shown"), [("", {}), ("{", None), ("[1]", None), (None, {})])
def test_arguments_that_are_no_object_stay_readable(arguments: Any, shown: Any) -> None:
    call = CALL | {"function": {"name": "f", "arguments": arguments}}
    (use,) = message({"message": {"tool_calls": [call]}})["content"]
    assert use["input"] == ({"arguments": arguments} if shown is None else shown)


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [None]}, {"choices": "x"}, None])
def test_an_answer_of_any_form_is_shown(body: Any) -> None:
    found = result_of({"id": "x", "custom_id": "a", "response": {"status_code": 200, "body": body}})
    assert found["result"]["message"]["content"] == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "not_found_error"),
        (429, "rate_limit_error"),
        (413, "request_too_large"),
        (500, "api_error"),
    ],
)
def test_a_refusal(status: int, kind: str) -> None:
    found = result_of({"response": {"status_code": status, "body": {"error": {"message": "No."}}}})
    assert found["result"]["error"]["error"] == {"type": kind, "message": "No."}


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        (LineError.BATCH_CANCELLED, "canceled"),
        (LineError.BATCH_EXPIRED, "expired"),
        (LineError.REQUEST_TIMEOUT, "timeout_error"),
        (LineError.WORKER_LOST, "api_error"),
        ("invalid_request", "invalid_request_error"),
        ("model_not_found", "invalid_request_error"),
    ],
)
def test_a_line_without_an_answer(code: str, shown: str) -> None:
    found = result({"error": {"code": code, "message": "body.model: There is none."}})
    if shown in ("canceled", "expired"):
        assert found == {"type": shown}
    else:
        error = {"type": shown, "message": "params.model: There is none."}
        assert found["error"]["error"] == error
