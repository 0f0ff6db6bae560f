"""The simulated models: a pure function from a request to an answer.

Everything follows from the request's own text, so the same request always gets the same answer:
`created` is a constant, ids are hashes, and the latency is the catalog's, spread by ± 20 %. Answers
say `"system_fingerprint": "simulated"`. Token counts are those of `endpoints/tokens.py`. Each
endpoint has a module that makes its answers, or raises `Refusal` for what a real server refuses.
Faults on request: see `faults.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Literal

import msgspec

from xalen_batch.backends.contract import Request
from xalen_batch.backends.outcomes import envelope
from xalen_batch.backends.simulated import faults
from xalen_batch.backends.simulated.chat import chatted
from xalen_batch.backends.simulated.completions import completed
from xalen_batch.backends.simulated.embeddings import embedded
from xalen_batch.backends.simulated.faults import USAGES, Attempts, Fault
from xalen_batch.backends.simulated.refusal import Refusal
from xalen_batch.backends.simulated.rerank import ranked, ranked_chat
from xalen_batch.backends.simulated.responses import responded
from xalen_batch.catalog import Model
from xalen_batch.endpoints.names import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, RESPONSES, Endpoint
from xalen_batch.endpoints.whole import whole

SPREAD = 0.2
_MODELS: Mapping[Endpoint, Callable[[Model, dict[str, Any], bytes], dict[str, Any]]] = {
    CHAT: chatted,
    RESPONSES: responded,
    COMPLETIONS: completed,
    EMBEDDINGS: embedded,
    RERANK: ranked,
}

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
        whole = Answer(200, _with_fault(_completed(model, request, body, digest), fault), latency)
    except Refusal as refusal:
        return Answer(refusal.status, refusal.body, latency)
    return whole if fault == faults.NONE else _broken(whole, fault)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal("The request body is not valid JSON.", code="invalid_json") from error
    if not isinstance(value, dict):
        raise Refusal("The request body is not a JSON object.", code="invalid_json")
    return whole(value)


def _asked_fault(body: dict[str, Any], request: Request) -> Fault:
    metadata = body.get("metadata")
    wanted = (
        metadata.get("simulate")
        if request.endpoint in (CHAT, RESPONSES) and isinstance(metadata, dict)
        else body.get("simulate")
    )
    if not isinstance(wanted, str):
        return faults.NONE
    try:
        return faults.parse(wanted)
    except ValueError as error:
        raise Refusal(str(error), param="simulate") from error


def _completed(
    model: Model, request: Request, body: dict[str, Any], digest: bytes
) -> dict[str, Any]:
    """The answer to a request at its endpoint."""
    if request.endpoint not in model.endpoints:
        raise Refusal(
            f"The model {model.id} does not serve {request.endpoint}.",
            status=404,
            code="model_not_found",
            param="model",
        )
    if model.is_reranker and request.endpoint == CHAT:
        return ranked_chat(model, request, digest)
    return _MODELS[request.endpoint](model, body, digest)


def _with_fault(completion: dict[str, Any], fault: Fault) -> bytes:
    if fault.no_usage:
        completion.pop("usage")
    elif fault.usage:
        completion["usage"] = dict.fromkeys(completion["usage"], USAGES[fault.usage])
    # A Response repeats its request, whose integers may have more than 64 bits.
    return msgspec.json.encode(completion)


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
