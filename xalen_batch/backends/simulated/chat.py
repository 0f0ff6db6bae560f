"""The simulated chat model: a pure function from a chat request to a completion."""

from typing import Any

from xalen_batch.backends.simulated.constants import CREATED, FINGERPRINT
from xalen_batch.backends.simulated.parameters import check_parameters, messages_of, whole_number
from xalen_batch.backends.simulated.prompt import Prompt
from xalen_batch.backends.simulated.refusal import Refusal
from xalen_batch.backends.simulated.writing import stopped, write
from xalen_batch.catalog import Model
from xalen_batch.endpoints import tokens


def chatted(model: Model, body: dict[str, Any], digest: bytes) -> dict[str, Any]:
    messages = messages_of(body)
    check_parameters(body)
    read = tokens.count_chat(messages, tools=body.get("tools"))
    limit = whole_number(body.get("max_completion_tokens") or body.get("max_tokens"))
    _check_context(model, read, limit or 0)
    system = "\n".join(
        _content(message) for message in messages if message["role"] in ("system", "developer")
    )
    user = next(
        (_content(message) for message in reversed(messages) if message["role"] == "user"), ""
    )
    choices, written = [], 0
    for index in range(whole_number(body.get("n")) or 1):
        full = stopped(
            _written(Prompt(system, user, int.from_bytes(digest[1:5], "big") + index), body),
            body.get("stop"),
        )
        shown = full if limit is None else tokens.cut(full, limit)
        written += tokens.count(shown)
        choices.append(
            {
                "index": index,
                "message": {"role": "assistant", "content": shown, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop" if len(shown) == len(full) else "length",
            }
        )
    return {
        "id": f"chatcmpl-{digest.hex()}",
        "object": "chat.completion",
        "created": CREATED,
        "model": body.get("model"),
        "choices": choices,
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        },
        "system_fingerprint": FINGERPRINT,
    }


def _check_context(model: Model, read: int, limit: int) -> None:
    if read + limit > model.context_window:
        raise Refusal(
            f"This model's maximum context length is {model.context_window} tokens, and the request"
            f" asks for {read + limit}: {read} in the messages, {limit} in the completion. Shorten"
            " the messages or lower max_tokens.",
            code="context_length_exceeded",
            param="messages",
        )


def _written(prompt: Prompt, body: dict[str, Any]) -> str:
    try:
        return write(prompt, body.get("response_format"))
    except ValueError as error:
        raise Refusal(str(error), param="response_format") from error


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(
            part["text"]
            for part in content
            if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content or ""
