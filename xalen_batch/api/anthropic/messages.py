"""The result of a line as the result of a message: a chat completion becomes a Message."""

from collections.abc import Mapping
from typing import Any

import orjson

from xalen_batch.api.anthropic.errors import type_of
from xalen_batch.api.anthropic.params import param_of
from xalen_batch.endpoints.usage import table
from xalen_batch.states import LineError

_STOP_REASONS = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_ERRORS = {
    LineError.REQUEST_TIMEOUT: "timeout_error",
    LineError.BACKEND_UNAVAILABLE: "api_error",
    LineError.BAD_ANSWER: "api_error",
    LineError.WORKER_LOST: "api_error",
}
# Names in which servers tell the stop sequence that they met: vLLM's, and SGLang's.
_MATCHED = ("stop_reason", "matched_stop")


def result_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a line of an output or error file, with its custom id."""
    response, error = table(line.get("response")), table(line.get("error"))
    body = table(response.get("body"))
    if response and response.get("status_code", 0) < 300:
        id = str(line.get("id")).removeprefix("batch_req_")
        result: dict[str, Any] = {"type": "succeeded", "message": message_of(body, id)}
    elif response:
        said = table(body.get("error")).get("message") or body.get("message")
        result = errored(
            type_of(response["status_code"]),
            said if isinstance(said, str) else "The model refused the request.",
        )
    else:
        result = _unanswered(str(error.get("code")), str(error.get("message")))
    return {"custom_id": line.get("custom_id"), "result": result}


def errored(kind: str, message: str) -> dict[str, Any]:
    error = {"type": "error", "error": {"type": kind, "message": message}, "request_id": None}
    return {"type": "errored", "error": error}


def _unanswered(code: str, message: str) -> dict[str, Any]:
    if code == LineError.BATCH_CANCELLED:
        return {"type": "canceled"}
    if code == LineError.BATCH_EXPIRED:
        return {"type": "expired"}
    known = {str(each): kind for each, kind in _ERRORS.items()}
    return errored(known.get(code, "invalid_request_error"), param_of(message))


def message_of(completion: Mapping[str, Any], id: str) -> dict[str, Any]:
    """The Message of a chat completion's first choice. `id` names it, without a prefix."""
    choices = completion.get("choices")
    choice = table(choices[0]) if isinstance(choices, list) and choices else {}
    message = table(choice.get("message"))
    calls = message.get("tool_calls")
    content = [*_texts(message), *map(_tool_use, calls if isinstance(calls, list) else [])]
    matched = next((choice[key] for key in _MATCHED if isinstance(choice.get(key), str)), None)
    reason = _STOP_REASONS.get(str(choice.get("finish_reason")), "end_turn")
    if reason == "end_turn" and matched is not None:
        reason = "stop_sequence"
    elif reason == "end_turn" and any(block["type"] == "tool_use" for block in content):
        # Some servers say `stop` after a call of the tool that the request named.
        reason = "tool_use"
    return {
        "id": f"msg_{id}",
        "type": "message",
        "role": "assistant",
        "model": completion.get("model"),
        "content": content,
        "stop_reason": reason,
        "stop_sequence": matched if reason == "stop_sequence" else None,
        "usage": _usage(table(completion.get("usage"))),
    }


def _texts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    texts = (message.get(key) for key in ("content", "refusal"))
    return [{"type": "text", "text": text} for text in texts if isinstance(text, str) and text]


def _tool_use(call: Any) -> dict[str, Any]:
    function = table(table(call).get("function"))
    return {
        "type": "tool_use",
        "id": table(call).get("id"),
        "name": function.get("name"),
        "input": _input(function.get("arguments")),
    }


def _input(arguments: Any) -> dict[str, Any]:
    """The arguments of a call as an object; those that are not JSON stay a text in it."""
    try:
        found = orjson.loads(arguments or "{}")
    except (orjson.JSONDecodeError, TypeError):
        return {"arguments": arguments}
    return found if isinstance(found, dict) else {"arguments": arguments}


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Anthropic's counts, in which cached tokens are not input tokens."""
    read = _count(usage.get("prompt_tokens"))
    cached = min(read, _count(table(usage.get("prompt_tokens_details")).get("cached_tokens")))
    return {
        "input_tokens": read - cached,
        "output_tokens": _count(usage.get("completion_tokens")),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "service_tier": "batch",
    }


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
