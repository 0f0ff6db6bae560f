"""The events of a streamed Response agree with the response that the last one has."""

from typing import Any

from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from xalen_batch.endpoints.response_events import ResponseEvents
from xalen_batch.endpoints.usage import Usage

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ENTRY = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}


def events(*deltas: dict[str, Any], finish_reason: str = "stop", **asked: Any) -> list[Any]:
    told = ResponseEvents({"model": "m", "input": "x", **asked}, "r1", 1)
    found = [*told.begin()]
    for delta in deltas:
        logprobs = delta.pop("logprobs", None)
        found += told.add({"choices": [{"index": 0, "delta": delta, "logprobs": logprobs}]})
    found += told.add({"choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]})
    found += told.end(Usage(1, 1))
    # The SDK's own types are the judge of the form.
    for _, event in found:
        EVENT.validate_python(event, strict=True)
    assert [event["sequence_number"] for _, event in found] == list(range(len(found)))
    return [event for _, event in found]


def test_reasoning_is_an_item_of_its_own_and_no_text() -> None:
    found = events({"reasoning_content": "Hm"}, {"reasoning": "."}, {"content": "Hi"})
    output = found[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message"]
    assert output[0]["content"][0]["text"] == "Hm."
    assert output[1]["content"][0]["text"] == "Hi"
    for event in found:
        if "output_index" in event:
            item = event["item"]["id"] if "item" in event else event["item_id"]
            assert output[event["output_index"]]["id"] == item
    thoughts = [each["delta"] for each in found if each["type"] == "response.reasoning_text.delta"]
    assert thoughts == ["Hm", "."]


def test_a_refusal_is_no_text() -> None:
    found = events({"refusal": "No."})
    assert found[-1]["response"]["output"][0]["content"] == [{"type": "refusal", "refusal": "No."}]


def test_logprobs_come_with_their_text() -> None:
    wanted = {"include": ["message.output_text.logprobs"]}
    found = events({"content": "Hi", "logprobs": {"content": [ENTRY]}}, **wanted)
    by_type = {event["type"]: event for event in found}
    assert by_type["response.output_text.delta"]["logprobs"] == [ENTRY]
    assert by_type["response.output_text.done"]["logprobs"] == [ENTRY]
    assert found[-1]["response"]["output"][0]["content"][0]["logprobs"] == [ENTRY]


def test_a_cut_call_is_incomplete() -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "find", "arguments": "{"}}
    found = events({"tool_calls": [call]}, finish_reason="length")
    assert found[-1]["type"] == "response.incomplete"
    assert found[-1]["response"]["output"][0]["status"] == "incomplete"
