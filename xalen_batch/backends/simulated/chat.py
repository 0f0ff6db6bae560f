"""The simulated chat model: a pure function from a chat request to a completion.

Docs: docs/simulated-models.md says which parameters it follows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from xalen_batch.backends.simulated import constraints, tools
from xalen_batch.backends.simulated.constants import CREATED, FINGERPRINT
from xalen_batch.backends.simulated.constraints import Writer
from xalen_batch.backends.simulated.logprobs import logprobs_of, top_of
from xalen_batch.backends.simulated.parameters import check_parameters, messages_of, whole_number
from xalen_batch.backends.simulated.prompt import Prompt
from xalen_batch.backends.simulated.refusal import Refusal
from xalen_batch.backends.simulated.tools import Call, Tools
from xalen_batch.backends.simulated.writing import stopped, write
from xalen_batch.catalog import Model
from xalen_batch.endpoints import tokens

# Parameters that plain chats lack. They decide the form of the answer.
SPECIAL = constraints.FIELDS | tools.FIELDS | {"logprobs", "top_logprobs"}


class Wanted(Struct, frozen=True, gc=False):
    """The form of the answer. `top`: alternatives of each token, None for no logprobs."""

    write: Writer = write
    tools: Tools | None = None
    top: int | None = None


PLAIN = Wanted()


class Said(Struct, frozen=True, gc=False):
    """What one choice says within the limit of tokens: a text or calls."""

    text: str | None
    tokens: int
    is_cut: bool
    calls: tuple[Call, ...] = ()


def chatted(model: Model, body: dict[str, Any], digest: bytes) -> dict[str, Any]:
    """The completion of a chat request. Raises Refusal."""
    messages = messages_of(body)
    check_parameters(body)
    wanted = PLAIN if SPECIAL.isdisjoint(body) else _wanted(body)
    read = tokens.count_chat(messages, tools=body.get("tools") or body.get("functions"))
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
        prompt = Prompt(system, user, int.from_bytes(digest[1:5], "big") + index)
        calls = wanted.tools.calls(prompt, messages[-1]["role"]) if wanted.tools else ()
        said = (
            _cut_calls(calls, limit)
            if calls
            else _cut(stopped(wanted.write(prompt), body.get("stop")), limit)
        )
        written += said.tokens
        choices.append(_choice(index, said, wanted, digest))
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


def _wanted(body: Mapping[str, Any]) -> Wanted:
    return Wanted(constraints.writer_of(body) or write, tools.tools_of(body), top_of(body))


def _check_context(model: Model, read: int, limit: int) -> None:
    if read + limit > model.context_window:
        raise Refusal(
            f"This model's maximum context length is {model.context_window} tokens, and the request"
            f" asks for {read + limit}: {read} in the messages, {limit} in the completion. Shorten"
            " the messages or lower max_tokens.",
            code="context_length_exceeded",
            param="messages",
        )


def _cut(text: str, limit: int | None) -> Said:
    """A text within the limit of tokens."""
    shown = text if limit is None else tokens.cut(text, limit)
    return Said(shown, tokens.count(shown), len(shown) != len(text))


def _cut_calls(calls: Sequence[Call], limit: int | None) -> Said:
    """Calls within the limit. The last one may have half of its arguments, as from a server."""
    shown: list[Call] = []
    used = 0
    for call in calls:
        used += tokens.count(call.name)
        if limit is not None and used >= limit:
            return Said(None if shown else "", limit, is_cut=True, calls=tuple(shown))
        arguments = call.arguments if limit is None else tokens.cut(call.arguments, limit - used)
        used += tokens.count(arguments)
        shown.append(Call(call.name, arguments))
        if len(arguments) != len(call.arguments):
            return Said(None, used, is_cut=True, calls=tuple(shown))
    return Said(None, used, is_cut=False, calls=tuple(shown))


def _choice(index: int, said: Said, wanted: Wanted, digest: bytes) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
    finish = "stop"
    if said.calls and wanted.tools and wanted.tools.is_legacy:
        message["function_call"] = _function(said.calls[0])
        finish = "function_call"
    elif said.calls:
        message["tool_calls"] = [
            {
                "id": f"call_{digest[:8].hex()}{index:04x}{number:04x}",
                "type": "function",
                "function": _function(call),
            }
            for number, call in enumerate(said.calls)
        ]
        finish = "tool_calls"
    return {
        "index": index,
        "message": message,
        "logprobs": None if wanted.top is None else logprobs_of(said.text, wanted.top),
        "finish_reason": "length" if said.is_cut else finish,
    }


def _function(call: Call) -> dict[str, str]:
    return {"name": call.name, "arguments": call.arguments}


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(
            part["text"]
            for part in content
            if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content or ""
