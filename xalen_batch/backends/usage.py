"""The billed usage of an answer, and its form in the answer's body.

A backend's usage is trusted only if it can be true. Otherwise (missing, null, a string, a bool, a
fraction, negative, more tokens than bytes) we count the tokens ourselves. Either way
`response.body.usage` of the output line holds the billed numbers, so a customer can recompute the
invoice from the output file (decision 0031).
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from xalen_batch.backends import tokens
from xalen_batch.backends.contract import Request, Usage
from xalen_batch.catalog import RERANK

ABSURD = 10_000_000
# Tokens beyond a request's bytes that a report may have. A byte-level tokenizer makes at most one
# token of a byte; a template and a default system prompt add more, and a short URL may stand for a
# picture or a recording of many tokens.
TEMPLATE_ALLOWANCE = 2_048
MEDIA_ALLOWANCE = 16_384
PAIR_ALLOWANCE = 16
ANSWER_ALLOWANCE = 256
# The key beside `usage` that names the source of replaced numbers.
EXTENSION = "xalen"


def usage_of(answer: Mapping[str, Any], size: int, request: Request) -> Usage:
    """The usage of a 2xx answer of `size` bytes to a request: as reported, or else counted.

    No answer makes it raise.
    """
    reported = _rerank_usage(answer) if request.endpoint == RERANK else _chat_usage(answer)
    if reported is None or not _is_possible(reported, size, request):
        return (
            _rerank_count(request) if request.endpoint == RERANK else _chat_count(answer, request)
        )
    return reported


class _Details(msgspec.Struct):
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class _ChatUsage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _ChatAnswer(msgspec.Struct):
    choices: list[msgspec.Raw]
    usage: _ChatUsage
    xalen: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_chat_answer = msgspec.json.Decoder(_ChatAnswer).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def usual_usage(body: bytes, request: Request) -> Usage | None:
    """The usage of a chat completion in OpenAI's form if it can be true; None: call `usage_of`.

    The fast path: nearly every answer has this form, and only the billed fields are decoded.
    """
    try:
        # msgspec checks that skipped fields are JSON, but not that they are UTF-8.
        if not body.isascii():
            str(body, "utf-8")
        answer = _chat_answer(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if answer.xalen is not msgspec.UNSET:
        return None
    said = answer.usage
    read, written = said.prompt_tokens, said.completion_tokens
    cached = said.prompt_tokens_details.cached_tokens if said.prompt_tokens_details else 0
    reasoning = (
        said.completion_tokens_details.reasoning_tokens if said.completion_tokens_details else 0
    )
    if not (0 <= cached <= read <= ABSURD and 0 <= reasoning <= written <= ABSURD):
        return None
    usage = Usage(read, written, cached, reasoning)
    return usage if _is_possible(usage, len(body), request) else None


def stating(body: bytes, answer: Mapping[str, Any], usage: Usage, request: Request) -> bytes:
    """The body of an answer, decoded as `answer`, with its billed usage under the standard keys.

    A body that states the billed usage stays as it is. Otherwise `usage` is replaced, and the key
    `xalen` beside it says whether the numbers were `counted` by us or `reported` by the backend in
    another form, and what the backend sent as `usage`. An `xalen` of the backend's own is removed:
    only we say where numbers come from.
    """
    is_stated = not usage.counted and _states(_table(answer.get("usage")), usage, request)
    if is_stated and EXTENSION not in answer:
        return body
    # Raw values, so fields that are not replaced keep their bytes.
    fields: dict[str, Any] = _fields(body)
    fields.pop(EXTENSION, None)
    if not is_stated:
        source = "counted" if usage.counted else "reported"
        fields[EXTENSION] = {"usage_source": source, "usage_reported": fields.get("usage")}
        fields["usage"] = _standard(usage, request)
    return msgspec.json.encode(fields)


def _states(table: Mapping[str, Any], usage: Usage, request: Request) -> bool:
    """Whether a reported usage has the billed numbers under the standard keys; details that are
    absent are 0.
    """
    if request.endpoint == RERANK and "completion_tokens" not in table:
        # Jina's shape has no output tokens.
        table = {**table, "completion_tokens": 0}
    stated = (
        _tokens(table, "prompt_tokens"),
        _tokens(table, "completion_tokens"),
        _stated_detail(table.get("prompt_tokens_details"), "cached_tokens"),
        _stated_detail(table.get("completion_tokens_details"), "reasoning_tokens"),
    )
    return stated == (
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
    )


def _stated_detail(details: Any, name: str) -> int | None:
    """A number in the details of a usage; 0 if it is absent or null, None if a strict client could
    not parse it.
    """
    if details is None:
        return 0
    if not isinstance(details, dict):
        return None
    return 0 if details.get(name) is None else _tokens(details, name)


def _standard(usage: Usage, request: Request) -> dict[str, Any]:
    """A usage as OpenAI writes it; for a rerank as Jina does, which has no output tokens."""
    if request.endpoint == RERANK:
        return {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}
    total = usage.input_tokens + usage.output_tokens
    standard: dict[str, Any] = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": total,
    }
    if usage.cached_tokens:
        standard["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens:
        standard["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return standard


def _chat_usage(body: Mapping[str, Any]) -> Usage | None:
    usage = _table(body.get("usage"))
    read = _tokens(usage, "prompt_tokens", "input_tokens")
    written = _tokens(usage, "completion_tokens", "output_tokens")
    if read is None or written is None:
        return None
    cached = _detail(usage, "cached_tokens", "prompt_tokens_details", "input_tokens_details")
    reasoning = _detail(
        usage, "reasoning_tokens", "completion_tokens_details", "output_tokens_details"
    )
    return Usage(read, written, min(cached, read), min(reasoning, written))


def _rerank_usage(body: Mapping[str, Any]) -> Usage | None:
    usage, meta = _table(body.get("usage")), _table(body.get("meta"))
    read = _tokens(usage, "prompt_tokens", "input_tokens", "total_tokens")
    if read is None:
        read = _tokens(_table(meta.get("tokens")), "input_tokens")
    if read is None:
        read = _tokens(_table(meta.get("billed_units")), "input_tokens")
    return None if read is None else Usage(read)


def _is_possible(usage: Usage, size: int, request: Request) -> bool:
    if usage.output_tokens - usage.reasoning_tokens > size + ANSWER_ALLOWANCE:
        return False
    bound = len(request.body) + TEMPLATE_ALLOWANCE
    if usage.input_tokens <= bound:
        return True
    if request.endpoint == RERANK:
        query, documents = _pairs(request)
        return usage.input_tokens <= bound + len(documents) * (tokens.most(query) + PAIR_ALLOWANCE)
    media = sum(request.body.count(f'"{kind}"'.encode()) for kind in tokens.MEDIA)
    return usage.input_tokens <= bound + MEDIA_ALLOWANCE * media


def _chat_count(answer: Mapping[str, Any], request: Request) -> Usage:
    asked = _object(request.body)
    messages = asked.get("messages")
    read = (
        tokens.count_chat(messages, tools=asked.get("tools"))
        if isinstance(messages, list)
        else tokens.count(_text(request.body))
    )
    choices = answer.get("choices")
    return Usage(
        read,
        sum(_written(choice) for choice in choices) if isinstance(choices, list) else 0,
        counted=True,
    )


def _written(choice: Any) -> int:
    message = _table(_table(choice).get("message"))
    texts = [message.get(key) for key in ("content", "reasoning_content", "reasoning", "refusal")]
    total = sum(tokens.count(text) for text in texts if isinstance(text, str))
    calls = message.get("tool_calls")
    return total + (tokens.count(_text(msgspec.json.encode(calls))) if calls else 0)


def _rerank_count(request: Request) -> Usage:
    query, documents = _pairs(request)
    return Usage(tokens.count_rerank(query, documents), counted=True)


def _pairs(request: Request) -> tuple[str, list[Any]]:
    body = _object(request.body)
    query, documents = body.get("query"), body.get("documents")
    return (query if isinstance(query, str) else ""), (
        documents if isinstance(documents, list) else []
    )


def _tokens(table: Mapping[str, Any], *names: str) -> int | None:
    """The value of the first of these keys that is present; None if it is no token count."""
    for name in names:
        value = table.get(name)
        if value is not None:
            return value if type(value) is int and 0 <= value <= ABSURD else None
    return None


def _detail(usage: Mapping[str, Any], name: str, *tables: str) -> int:
    for table in tables:
        found = _tokens(usage[table], name) if isinstance(usage.get(table), dict) else None
        if found is not None:
            return found
    return 0


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        return _table(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _text(body: bytes) -> str:
    return body.decode("utf-8", "replace")
