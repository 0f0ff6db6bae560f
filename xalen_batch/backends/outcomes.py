"""Classify a backend's reply as answered, refused or retryable; no other module does this."""

import email.utils
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
import orjson

from xalen_batch.backends.clients.contract import Reply
from xalen_batch.backends.contract import Answered, Outcome, Refused, Request, Retryable
from xalen_batch.backends.usage import stating, usage_of, usual_usage
from xalen_batch.endpoints.names import CHAT, EMBEDDINGS
from xalen_batch.endpoints.operations import OPERATIONS
from xalen_batch.metrics.requests import Kind

# docs/backends.md has these as a table.
# The request is invalid: the line fails with the backend's message.
OF_THE_LINE = frozenset({400, 413, 414, 416, 422, 431, 451})
# Overload: the line waits and is sent again, without a limit of attempts.
BUSY = frozenset({429, 503, 529})
TIMEOUTS = frozenset({408, 504, 524})
# A failed attempt, as is every 5xx that is in no other set.
ATTEMPT = frozenset({408, 409, 423, 424, 425, 499})
# The key or the bill: no request can succeed until the operator acts.
OF_THE_OPERATOR = frozenset({401, 402, 407})
# 5xx that a retry cannot change. Like all 4xx that are in no set above, they are doubtful refusals:
# the setup is at fault or, if the backend answers other lines, the line.
NOT_SERVED = frozenset({501, 505})
LONGEST_MESSAGE = 500
# Characters of a message that are searched for the cause.
MOST_READ = 2_000
_NO_ERROR = {
    "message": "The model backend refused the request.",
    "type": None,
    "param": None,
    "code": None,
}
_TYPES = {403: "permission_error", 404: "not_found_error"}
# `code` or `type` of the error (429 or 403) of a hosted API whose customer has no credit left.
_UNPAID = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "billing_hard_limit_reached",
        "billing_not_active",
        "organization_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "project_spend_limit_exceeded",
    }
)
# `code` or `type` of the error for an unknown model, and the messages of servers that send neither.
_NO_MODEL = frozenset(
    {"model_not_found", "invalid_model", "model_not_available", "model_not_exist"}
)
_NO_MODEL_WORDS = re.compile(
    r"\bmodel:?\s+(?:\S+\s+)?(?:is |was |does |could )?not\s+(?:be )?(?:found|exist)|\binvalid"
    r" model(?: name|:|$)",
    re.IGNORECASE,
)
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,60}")


def outcome_of(reply: Reply, request: Request) -> Outcome:
    """Return the outcome of a line from its reply. No reply makes it raise."""
    status = reply.status
    if 200 <= status < 300:
        return _answered(reply, request)
    if 300 <= status < 400:
        return Retryable(
            f"The backend redirects ({status}); redirects are not followed.",
            status,
            is_unreachable=True,
        )
    error = _Error.of(reply.body) if 400 <= status < 500 else _Error()
    if status in OF_THE_OPERATOR or error.is_unpaid:
        return Retryable(
            f"The backend answered {status}{error.shown}.", status, is_unreachable=True
        )
    if error.is_no_model:
        reason = (
            f"The backend does not know the model by the catalog's name ({status}{error.shown});"
            " `xalen-batch doctor` compares them."
        )
        return Retryable(reason, status, refusal=_refused(reply))
    if status in OF_THE_LINE:
        return _refused(reply)
    if status in NOT_SERVED or (400 <= status < 500 and status not in ATTEMPT | BUSY):
        # A proxy whose model server is down may answer 404 as well, in plain text or HTML.
        is_told = bool(error.code or error.type)
        return Retryable(
            f"The backend answered {status}{error.shown}.",
            status,
            refusal=_refused(reply),
            may_be_own=is_told,
        )
    return Retryable(
        f"The backend answered {status}.",
        status,
        retry_after=retry_after(reply.header),
        is_timeout=status in TIMEOUTS,
        is_overload=status in BUSY,
    )


def _refused(reply: Reply) -> Refused:
    return Refused(reply.status, refusal(reply.status, reply.body))


class _Error(NamedTuple):
    """The fields of an error body: in `error` as from OpenAI, or at the top level (older vLLM)."""

    code: str = ""
    type: str = ""
    param: str = ""
    message: str = ""

    @classmethod
    def of(cls, body: bytes) -> "_Error":
        try:
            answer = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return cls()
        if not isinstance(answer, dict):
            return cls()
        error = answer.get("error")
        error = error if isinstance(error, dict) else answer
        code, type_, param = (
            value if isinstance(value := error.get(name), str) else ""
            for name in ("code", "type", "param")
        )
        return cls(code, type_, param, _said(answer)[:MOST_READ])

    @property
    def is_unpaid(self) -> bool:
        return not _UNPAID.isdisjoint((self.code, self.type))

    @property
    def is_no_model(self) -> bool:
        """Whether the error is about the model's name.

        The name that is sent comes from the catalog, so such an error is no fault of the line.
        """
        named = not _NO_MODEL.isdisjoint((self.code, self.type)) or self.param == "model"
        return named or _NO_MODEL_WORDS.search(self.message) is not None

    @property
    def shown(self) -> str:
        """The code, for logs. Messages are not logged, since they can quote the request."""
        return f", {self.code}" if _CODE.fullmatch(self.code) else ""


def _answered(reply: Reply, request: Request) -> Outcome:
    if not reply.body:
        return Retryable("The backend's answer is empty.", reply.status)
    if request.endpoint in (CHAT, EMBEDDINGS):
        usage = usual_usage(reply.body, request)
        if usage is not None:
            return Answered(reply.status, one_line(reply.body), usage)
    try:
        answer = msgspec.json.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Retryable("The backend's answer is not valid JSON.", reply.status)
    if not isinstance(answer, dict):
        return Retryable("The backend's answer is not a JSON object.", reply.status)
    problem = OPERATIONS[request.endpoint].problem(answer)
    if problem is not None:
        return Retryable(problem, reply.status)
    usage = usage_of(answer, len(reply.body), request)
    return Answered(reply.status, one_line(stating(reply.body, answer, usage, request)), usage)


def one_line(body: bytes) -> bytes:
    """Return valid JSON without line breaks, which JSON allows only between tokens."""
    return msgspec.json.format(body, indent=-1) if b"\n" in body or b"\r" in body else body


def refusal(status: int, body: bytes) -> bytes:
    """Return the body of a 4xx as an OpenAI error envelope on one line.

    The backend's own envelope is kept; any other body is quoted in an envelope of ours.
    """
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        answer = None
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        error = answer["error"]
        if error.keys() >= _NO_ERROR.keys():
            return one_line(body)
        return msgspec.json.encode(
            {**answer, "error": {**_NO_ERROR, "type": _type(status), **error}}
        )
    return envelope(status, _message(status, body, answer), code="backend_error")


def envelope(status: int, message: str, *, code: str | None, param: str | None = None) -> bytes:
    """`{"error": {message, type, param, code}}`, as OpenAI answers it."""
    error = {"message": message, "type": _type(status), "param": param, "code": code}
    return orjson.dumps({"error": error})


def _type(status: int) -> str:
    return _TYPES.get(status, "invalid_request_error")


def _message(status: int, body: bytes, answer: Any) -> str:
    said = (
        _said(answer)
        if answer is not None
        else body[: 4 * LONGEST_MESSAGE].decode("utf-8", "replace").strip()
    )
    if not said:
        return f"The model backend refused the request with status {status}."
    if said.startswith("<"):
        return f"The model backend refused the request with status {status} and a page of HTML."
    shown = said if len(said) <= LONGEST_MESSAGE else said[: LONGEST_MESSAGE - 1] + "…"
    return f"The model backend refused the request with status {status}: {shown}"


def _said(answer: Any) -> str:
    """The message of an error body: its `error`, `message` or `detail`, or a message within these.

    A body without one is returned as JSON.
    """
    if isinstance(answer, Mapping):
        for key in ("error", "message", "detail"):
            value = answer.get(key)
            if isinstance(value, Mapping):
                value = value.get("message") or value.get("error")
            if isinstance(value, str):
                return value
    return answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()


def retry_after(header: Callable[[str], str | None]) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `retry-after` (a number or a date), or None."""
    milliseconds = _seconds(header("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = header("retry-after")
    seconds = _seconds(value)
    if seconds is not None or value is None:
        return seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _seconds(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def kind_of(outcome: Outcome | None) -> Kind:
    """How a request ended, for metrics. None: it was cancelled."""
    match outcome:
        case None:
            return Kind.CANCELLED
        case Answered():
            return Kind.ANSWERED
        case Refused():
            return Kind.REFUSED
    if outcome.is_overload:
        return Kind.OVERLOAD
    if outcome.is_timeout:
        return Kind.TIMEOUT
    return Kind.UNREACHABLE if outcome.is_unreachable else Kind.ERROR
