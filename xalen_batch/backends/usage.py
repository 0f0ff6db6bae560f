"""The billed usage of an answer, and its form in the answer's body.

A backend's usage is trusted only if it can be true. Otherwise (missing, null, a string, a bool, a
fraction, negative, more tokens than bytes) we count the tokens ourselves. Either way
`response.body.usage` of the output line holds the billed numbers, so a customer can recompute the
invoice from the output file (decision 0031).
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from xalen_batch.backends.contract import Request
from xalen_batch.endpoints.names import CHAT
from xalen_batch.endpoints.operations import OPERATIONS
from xalen_batch.endpoints.usage import ABSURD, Usage, standard, states, table
from xalen_batch.endpoints.whole import decoded

# Tokens beyond a request's bytes that a report may have. A byte-level tokenizer makes at most one
# token of a byte; a template and a default system prompt add more.
TEMPLATE_ALLOWANCE = 2_048
ANSWER_ALLOWANCE = 256
# The key beside `usage` that names the source of replaced numbers.
EXTENSION = "xalen"


def usage_of(answer: Mapping[str, Any], size: int, request: Request) -> Usage:
    """The usage of a 2xx answer of `size` bytes to a request: as reported, or else counted.

    No answer makes it raise.
    """
    operation = OPERATIONS[request.endpoint]
    reported = operation.reported(answer)
    if reported is None or not _is_possible(reported, size, request):
        return operation.counted(answer, decoded(request.body))
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


class _InputUsage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _EmbeddingsAnswer(msgspec.Struct):
    data: list[msgspec.Raw]
    usage: _InputUsage
    xalen: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_embeddings_answer = msgspec.json.Decoder(_EmbeddingsAnswer).decode
_chat_answer = msgspec.json.Decoder(_ChatAnswer).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def usual_usage(body: bytes, request: Request) -> Usage | None:
    """The usage of a chat completion or of embeddings in OpenAI's form if it can be true.

    None: call `usage_of`. The fast path: nearly every answer has this form, and only the billed
    fields are decoded.
    """
    is_chat = request.endpoint == CHAT
    decode = _chat_answer if is_chat else _embeddings_answer
    try:
        # msgspec checks that skipped fields are JSON, but not that they are UTF-8.
        if not body.isascii():
            str(body, "utf-8")
        answer = decode(body)
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
    if not is_chat and (written or cached or reasoning):
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
    keys = OPERATIONS[request.endpoint].KEYS
    is_stated = not usage.counted and states(table(answer.get("usage")), usage, keys)
    if is_stated and EXTENSION not in answer:
        return body
    # Raw values, so fields that are not replaced keep their bytes.
    fields: dict[str, Any] = _fields(body)
    fields.pop(EXTENSION, None)
    if not is_stated:
        source = "counted" if usage.counted else "reported"
        fields[EXTENSION] = {"usage_source": source, "usage_reported": fields.get("usage")}
        fields["usage"] = standard(usage, keys)
    return msgspec.json.encode(fields)


def _is_possible(usage: Usage, size: int, request: Request) -> bool:
    if usage.output_tokens - usage.reasoning_tokens > size + ANSWER_ALLOWANCE:
        return False
    excess = usage.input_tokens - len(request.body) - TEMPLATE_ALLOWANCE
    return excess <= 0 or excess <= OPERATIONS[request.endpoint].allowance(request.body)
