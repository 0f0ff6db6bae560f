"""The simulated models: a pure function from a request to an answer.

Everything follows from the request's own text, so the same request always gets the same answer:
`created` is a constant, ids are hashes, and the latency is the catalog's, spread by ± 20 %. Answers
say `"system_fingerprint": "simulated"`. Token counts are those of `backends/tokens.py`. The models
refuse what a real server refuses: a prompt and `max_tokens` beyond the context window, a
temperature out of range, invalid messages. Faults on request: see `faults.py`.
"""

from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Literal

import msgspec
import orjson

from xalen_batch.backends.contract import Answered, Refused, Request
from xalen_batch.backends.outcomes import envelope
from xalen_batch.backends.rerank_chat import to_chat, to_rerank
from xalen_batch.backends.simulated import faults
from xalen_batch.backends.simulated.faults import USAGES, Attempts, Fault
from xalen_batch.backends.simulated.prompt import Prompt
from xalen_batch.backends.simulated.ranking import relevance
from xalen_batch.backends.simulated.writing import write
from xalen_batch.catalog import Model
from xalen_batch.endpoints import tokens
from xalen_batch.endpoints.names import CHAT, RERANK
from xalen_batch.endpoints.rerank_chat import problem_of
from xalen_batch.endpoints.usage import Usage
from xalen_batch.endpoints.whole import whole

FINGERPRINT = "simulated"
CREATED = 1_742_169_600  # 2025-03-17
SPREAD = 0.2
MOST_CHOICES = 128
# Parameters that validation accepts and the simulated models ignore: they do not sample, and they
# do not track users.
IGNORED = frozenset(
    {"temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "user"}
)
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})

Ending = Literal["whole", "truncated", "reset", "hang"]


@dataclass(frozen=True, slots=True)
class Answer:
    """`latency` is seconds from the request's last byte to the answer's first.

    `ending` is how the connection ends.
    """

    status: int
    body: bytes
    latency: float
    headers: dict[str, str] = field(default_factory=dict)
    ending: Ending = "whole"


class _Refusal(Exception):
    """A request that a real server would refuse. Caught within this module."""

    def __init__(
        self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = envelope(status, message, code=code, param=param)


def answer(
    model: Model,
    request: Request,
    *,
    attempts: Attempts | None = None,
    latency_ms: int | None = None,
    fault: Fault = faults.NONE,
) -> Answer:
    """Return the model's answer to a request.

    `attempts` is needed for faults with `times`. `fault` applies if the request asks for none.
    """
    digest = blake2b(request.body, digest_size=12).digest()
    latency = (
        (model.latency_ms if latency_ms is None else latency_ms)
        / 1000
        * (1 - SPREAD + 2 * SPREAD * digest[0] / 255)
    )
    try:
        body = _json_object(request.body)
        asked = _asked_fault(body, request)
        if (
            asked.times is not None
            and attempts is not None
            and attempts.next(request.request_id) > asked.times
        ):
            asked = faults.NONE
        fault = fault if asked == faults.NONE else asked
        whole = Answer(200, _completed(model, request, body, digest, fault), latency)
    except _Refusal as refusal:
        return Answer(refusal.status, refusal.body, latency)
    return whole if fault == faults.NONE else _broken(whole, fault)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _Refusal("The request body is not valid JSON.", code="invalid_json") from error
    if not isinstance(value, dict):
        raise _Refusal("The request body is not a JSON object.", code="invalid_json")
    return whole(value)


def _asked_fault(body: dict[str, Any], request: Request) -> Fault:
    metadata = body.get("metadata")
    wanted = (
        metadata.get("simulate")
        if request.endpoint == CHAT and isinstance(metadata, dict)
        else body.get("simulate")
    )
    if not isinstance(wanted, str):
        return faults.NONE
    try:
        return faults.parse(wanted)
    except ValueError as error:
        raise _Refusal(str(error), param="simulate") from error


def _completed(
    model: Model, request: Request, body: dict[str, Any], digest: bytes, fault: Fault
) -> bytes:
    if request.endpoint not in model.endpoints:
        raise _Refusal(
            f"The model {model.id} does not serve {request.endpoint}.",
            status=404,
            code="model_not_found",
            param="model",
        )
    if request.endpoint == RERANK:
        return _with_fault(_ranked(model, body, digest), fault)
    if model.is_reranker:
        return _ranked_chat(model, request, digest, fault)
    return _with_fault(_chatted(model, body, digest), fault)


def _chatted(model: Model, body: dict[str, Any], digest: bytes) -> dict[str, Any]:
    messages = _messages(body)
    _check_parameters(body)
    read = tokens.count_chat(messages, tools=body.get("tools"))
    limit = _whole(body.get("max_completion_tokens") or body.get("max_tokens"))
    _check_context(model, read, limit or 0)
    system = "\n".join(
        _content(message) for message in messages if message["role"] in ("system", "developer")
    )
    user = next(
        (_content(message) for message in reversed(messages) if message["role"] == "user"), ""
    )
    choices, written = [], 0
    for index in range(_whole(body.get("n")) or 1):
        full = _stopped(
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
        raise _Refusal(
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
        raise _Refusal(str(error), param="response_format") from error


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _Refusal("`messages` must be a list with at least one message.", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise _Refusal(
                f"messages[{index}] must be an object with a known `role`.",
                param=f"messages[{index}].role",
            )
        if not isinstance(message.get("content"), str | list | None) or (
            message["role"] == "user" and message.get("content") in (None, [])
        ):
            raise _Refusal(
                f"messages[{index}].content must be a text or a list of parts.",
                param=f"messages[{index}].content",
            )
    return messages


def _check_parameters(body: dict[str, Any]) -> None:
    for name, low, high in (("temperature", 0, 2), ("top_p", 0, 1)):
        value = body.get(name)
        if value is not None and (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not low <= value <= high
        ):
            raise _Refusal(
                f"`{name}` must be between {low} and {high}.", param=name, code="invalid_value"
            )
    for name, most in (("max_tokens", None), ("max_completion_tokens", None), ("n", MOST_CHOICES)):
        value = body.get(name)
        if value is not None and (
            (whole := _whole(value)) is None or whole < 1 or (most and whole > most)
        ):
            raise _Refusal(
                f"`{name}` must be a whole number of at least"
                f" 1{f' and at most {most}' if most else ''}.",
                param=name,
                code="invalid_value",
            )
    if body.get("stream"):
        raise _Refusal("The simulated models do not stream.", param="stream")


def _whole(value: Any) -> int | None:
    """A whole number in any spelling of JSON, such as 2.0, as an int; None for other values."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _stopped(text: str, stop: Any) -> str:
    """The text up to its first stop sequence; `stop` is one sequence or a list of them."""
    for sequence in [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []:
        if isinstance(sequence, str) and sequence:
            text = text.partition(sequence)[0]
    return text


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(
            part["text"]
            for part in content
            if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content or ""


def _ranked(model: Model, body: dict[str, Any], digest: bytes) -> dict[str, Any]:
    problem = problem_of(body)
    if problem:
        raise _Refusal(
            f"{problem[0].upper()}{problem[1:]}." if problem[0] != "`" else f"{problem}."
        )
    query, texts = body["query"], [tokens.text_of(document) for document in body["documents"]]
    longest = tokens.count(query) + max(map(tokens.count, texts)) + tokens.PER_PAIR
    if longest > model.context_window:
        raise _Refusal(
            f"This model's maximum context length is {model.context_window} tokens, and the query"
            f" with the longest document has {longest}.",
            code="context_length_exceeded",
            param="documents",
        )
    ranked = sorted(enumerate(relevance(query, texts)), key=lambda pair: (-pair[1], pair[0]))
    results: list[dict[str, Any]] = [
        {"index": index, "relevance_score": score}
        for index, score in ranked[: _whole(body.get("top_n"))]
    ]
    if body.get("return_documents"):
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    read = tokens.count_rerank(query, texts)
    return {
        "id": f"rerank-{digest.hex()}",
        "model": body.get("model"),
        "results": results,
        "usage": {"prompt_tokens": read, "total_tokens": read},
        "created": CREATED,
        "system_fingerprint": FINGERPRINT,
    }


def _ranked_chat(model: Model, request: Request, digest: bytes, fault: Fault) -> bytes:
    """A reranker's answer to a chat over HTTP. In a worker, RerankChat translates the chat."""
    body = to_rerank(request.body)
    if isinstance(body, Refused):
        refused = msgspec.json.decode(body.body)["error"]
        raise _Refusal(
            refused["message"], status=body.status, code=refused["code"], param=refused["param"]
        )
    ranking = _ranked(model, msgspec.json.decode(body), digest)
    usage = Usage(ranking["usage"]["prompt_tokens"])
    return _with_fault(
        msgspec.json.decode(to_chat(Answered(200, orjson.dumps(ranking), usage), request)), fault
    )


def _with_fault(completion: dict[str, Any], fault: Fault) -> bytes:
    if fault.no_usage:
        completion.pop("usage")
    elif fault.usage:
        completion["usage"] = dict.fromkeys(completion["usage"], USAGES[fault.usage])
    return orjson.dumps(completion)


def _broken(whole: Answer, fault: Fault) -> Answer:
    """Apply a fault to an answer."""
    broken = replace(whole, latency=whole.latency + fault.slow / 1000)
    if fault.status is not None:
        message = f"The simulated model was asked to fail with status {fault.status}."
        broken = replace(
            broken,
            status=fault.status,
            body=envelope(fault.status, message, code="simulated_fault"),
        )
        if fault.retry_after is not None:
            broken = replace(broken, headers={"retry-after": f"{fault.retry_after:g}"})
    if fault.html:
        broken = replace(
            broken,
            body=b"<html><body><h1>502 Bad Gateway</h1></body></html>",
            headers={"content-type": "text/html"},
        )
    if fault.empty:
        broken = replace(broken, body=b"")
    ending: Ending = (
        "hang"
        if fault.hang
        else "reset"
        if fault.reset
        else "truncated"
        if fault.truncate
        else "whole"
    )
    return replace(broken, ending=ending)
