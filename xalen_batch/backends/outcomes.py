"""From what a backend sent back to an outcome: the one place that decides what is answered, refused
or worth a retry.
"""

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
from xalen_batch.catalog import CHAT, RERANK

# docs/backends.md has these as a table.
# The request's own fault: the line ends with the backend's words.
OF_THE_LINE = frozenset({400, 413, 414, 416, 422, 431, 451})
# Load: the line waits and is sent again, however often.
BUSY = frozenset({429, 503, 529})
TIMEOUTS = frozenset({408, 504, 524})
# A failed attempt, as is every 5xx that is not elsewhere.
ATTEMPT = frozenset({408, 409, 423, 424, 425, 499})
# The key or the bill: no request can succeed until the operator acts.
OF_THE_OPERATOR = frozenset({401, 402, 407})
# 5xx that say what the server will never do; with them all 4xx that are not above. The setup is
# wrong, or, if others are answered, the line.
NOT_SERVED = frozenset({501, 505})
LONGEST_MESSAGE = 500
# Characters of a message in which a cause is looked for.
MOST_READ = 2_000
_NO_ERROR = {
    "message": "The model backend refused the request.",
    "type": None,
    "param": None,
    "code": None,
}
_TYPES = {403: "permission_error", 404: "not_found_error"}
# `code` or `type` of an error that says that the hosted account has nothing left to spend. It comes
# as 429 or 403.
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
# `code` or `type` of an error that says that there is no such model, and the words of servers that
# have neither.
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
    """What a reply means for its line. Never raises for what the backend said."""
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
        # A proxy that has lost its server answers 404, too, in plain text or HTML.
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
    """What an error's body says of its cause: as OpenAI writes it, or at the top level, as older
    vLLM does.
    """

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
        """The request's `model` is the catalog's word and not the user's, so an error about it is
        no fault of the line.
        """
        named = not _NO_MODEL.isdisjoint((self.code, self.type)) or self.param == "model"
        return named or _NO_MODEL_WORDS.search(self.message) is not None

    @property
    def shown(self) -> str:
        """The code, for a log. A message can quote the request."""
        return f", {self.code}" if _CODE.fullmatch(self.code) else ""


def _answered(reply: Reply, request: Request) -> Outcome:
    if not reply.body:
        return Retryable("The backend's answer is empty.", reply.status)
    if request.endpoint == CHAT and (usage := usual_usage(reply.body, request)) is not None:
        return Answered(reply.status, one_line(reply.body), usage)
    try:
        answer = msgspec.json.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Retryable("The backend's answer is not valid JSON.", reply.status)
    if not isinstance(answer, dict):
        return Retryable("The backend's answer is not a JSON object.", reply.status)
    part = "results" if request.endpoint == RERANK else "choices"
    if not isinstance(answer.get(part), list):
        # Some gateways answer 200 with an error inside; nobody is billed for that.
        return Retryable(f"The backend's answer has no `{part}`.", reply.status)
    usage = usage_of(answer, len(reply.body), request)
    return Answered(reply.status, one_line(stating(reply.body, answer, usage, request)), usage)


def one_line(body: bytes) -> bytes:
    """Valid JSON without line breaks: in JSON they can only stand between tokens."""
    return msgspec.json.format(body, indent=-1) if b"\n" in body or b"\r" in body else body


def refusal(status: int, body: bytes) -> bytes:
    """A 4xx's body as an OpenAI error envelope on one line: the backend's own where it is one, else
    ours around its words.
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
    """The message of the error shapes in use: `{error}`, `{message}`, `{detail}`, each a text or
    `{error}` again; otherwise the JSON.
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
    """The backend's pause in seconds, from `retry-after-ms` or `retry-after` (or a date)."""
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
