"""Checks a live call: the same rules as for a line of a batch."""

from typing import Any, NamedTuple

import msgspec
import orjson

from xalen_batch import catalog
from xalen_batch.accounts.accounts import Caller
from xalen_batch.api.live.callers import Known
from xalen_batch.api.live.ledger import Ledger, ledger_of
from xalen_batch.catalog import Model
from xalen_batch.endpoints import operations
from xalen_batch.endpoints.form import Form, InvalidBody
from xalen_batch.endpoints.names import CHAT, COMPLETIONS, RESPONSES, Endpoint
from xalen_batch.errors import InvalidRequest, NotFound, quoted
from xalen_batch.states import QueuedCall
from xalen_batch.validation import lines

# Tiers that mean a live call, in OpenAI's words.
LIVE_TIERS = (None, "auto", "default", "priority", "standard_only")
FLEX = "flex"
STREAMED = (CHAT, COMPLETIONS, RESPONSES)
# Parameters that refer to something that is not kept.
_NOT_KEPT = ("previous_response_id", "conversation")


class LiveCall(NamedTuple):
    """A checked call.

    `fields` is the decoded `body`, in which integers of more than 64 bits are floats: `exact` is
    for encoding it again.
    """

    caller: Caller
    model: Model
    endpoint: Endpoint
    body: bytes
    fields: dict[str, Any]
    ledger: Ledger

    @property
    def exact(self) -> dict[str, Any]:
        """The decoded body, with every number as the client wrote it."""
        fields: dict[str, Any] = msgspec.json.decode(self.body)
        return fields

    @property
    def is_streamed(self) -> bool:
        return bool(self.fields.get("stream"))

    @property
    def kind(self) -> QueuedCall | None:
        """How its client gets the answer of a queued call; None: it is answered at once."""
        if self.fields.get("background"):
            return QueuedCall.BACKGROUND
        return QueuedCall.FLEX if self.fields.get("service_tier") == FLEX else None


def checked(
    known: Known, endpoint: Endpoint, body: bytes, *, deployment: str | None = None
) -> LiveCall:
    """A call that the caller may make. Raises InvalidRequest and NotFound.

    `deployment`: the model of a body that names none, as Azure's clients have it in the path.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"The body is not valid JSON: {error}. Send one JSON object.", code="invalid_json"
        ) from None
    if not isinstance(fields, dict):
        raise InvalidRequest("The body must be one JSON object.")
    _refuse_hidden(body)
    if deployment is not None and fields and "model" not in fields:
        fields["model"] = deployment
        body = b'{"model":' + orjson.dumps(deployment) + b"," + body.lstrip()[1:]
    model = _model(fields, endpoint)
    form = operations.fit(fields, endpoint, is_reranker=model.is_reranker)
    _refuse_unless_fits(form, model, endpoint, fields, len(body))
    refusal = known.terms.refusal(model.id)
    if refusal is not None:
        raise InvalidRequest(refusal.message, param="model", code=refusal.code)
    ledger = ledger_of(
        known.caller,
        model.id,
        endpoint,
        known.terms.prices[model.id],
        known.terms.backends[model.id],
    )
    return LiveCall(known.caller, model, endpoint, body, fields, ledger)


def _model(fields: dict[str, Any], endpoint: Endpoint) -> Model:
    name = fields.get("model")
    serving = [each.id for each in catalog.models().values() if endpoint in each.endpoints]
    if name is None:
        raise InvalidRequest(
            f"Missing required parameter: `model`. Name one of: {', '.join(serving[:20])}.",
            param="model",
            code="missing_required_parameter",
        )
    model = catalog.models().get(name) if isinstance(name, str) else None
    if model is None:
        raise NotFound(
            f"There is no model {quoted(name)}. Name one of: {', '.join(serving[:20])}.",
            param="model",
            code="model_not_found",
        )
    if endpoint not in model.endpoints:
        raise NotFound(
            f"{model.id} does not serve {endpoint}, only {', '.join(model.endpoints)}. For"
            f" {endpoint} use one of: {', '.join(serving[:20])}.",
            param="model",
            code="model_not_found",
        )
    return model


def _refuse_hidden(body: bytes) -> None:
    fault = lines.hidden(body, 1)
    if fault is not None:
        raise InvalidRequest(fault.message, code="invalid_json")


def _refuse_unless_fits(
    form: Form | InvalidBody, model: Model, endpoint: Endpoint, fields: dict[str, Any], size: int
) -> None:
    if isinstance(form, InvalidBody):
        raise _refused(form)
    if fields.get("stream") and endpoint not in STREAMED:
        raise InvalidRequest(
            f"stream: {endpoint} answers as a whole. Leave stream out.", param="stream"
        )
    tier = fields.get("service_tier")
    if tier not in LIVE_TIERS and tier != FLEX:
        raise InvalidRequest(
            f"service_tier: {quoted(tier)} is not one. Leave it out for a live call, or use flex.",
            param="service_tier",
        )
    if fields.get("stream") and (tier == FLEX or fields.get("background")):
        raise InvalidRequest(
            "stream: a queued call has no stream. Leave out stream, or background and"
            " service_tier.",
            param="stream",
        )
    for name in _NOT_KEPT:
        if fields.get(name):
            raise InvalidRequest(
                f"{name}: this server keeps no conversation. Send all of it as `input`.", param=name
            )
    excess = form.overflow(model.window) if size > model.context_window else None
    if excess is not None:
        raise _refused(excess, code="context_length_exceeded")


def _refused(invalid: InvalidBody, code: str | None = None) -> InvalidRequest:
    param = invalid.param.removeprefix("body.")
    return InvalidRequest(f"{param}: {invalid.message}", param=param, code=code)
