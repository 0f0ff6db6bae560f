"""From what a backend sent back to an outcome: the one place that decides what is answered, refused or worth a retry."""

import email.utils
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import orjson

from xalen_batch.backends.clients.contract import Reply
from xalen_batch.backends.contract import Answered, Outcome, Refused, Request, Retryable
from xalen_batch.backends.usage import stating, usage_of, usual_usage
from xalen_batch.catalog import CHAT, RERANK

# 401: the key is the operator's, not the user's; lines wait behind the circuit until it is right again.
RETRYABLE = frozenset({401, 408, 409, 425, 429})
OVERLOAD = frozenset({429, 503})
LONGEST_MESSAGE = 500
_NO_ERROR = {"message": "The model backend refused the request.", "type": None, "param": None, "code": None}
_TYPES = {403: "permission_error", 404: "not_found_error"}


def outcome_of(reply: Reply, request: Request) -> Outcome:
    """What a reply means for its line. Never raises for what the backend said."""
    status = reply.status
    if 200 <= status < 300:
        return _answered(reply, request)
    if 400 <= status < 500 and status not in RETRYABLE:
        return Refused(status, refusal(status, reply.body))
    if 300 <= status < 400:
        return Retryable(f"The backend redirects ({status}); redirects are not followed.", status)
    return Retryable(
        f"The backend answered {status}.",
        status,
        retry_after=retry_after(reply.header),
        is_timeout=status in (408, 504),
        is_overload=status in OVERLOAD,
        is_unreachable=status == 401,
    )


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
    """A 4xx's body as an OpenAI error envelope on one line: the backend's own where it is one, else ours around its words."""
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        answer = None
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        error = answer["error"]
        if error.keys() >= _NO_ERROR.keys():
            return one_line(body)
        return msgspec.json.encode({**answer, "error": {**_NO_ERROR, "type": _type(status), **error}})
    return envelope(status, _message(status, body, answer), code="backend_error")


def envelope(status: int, message: str, *, code: str | None, param: str | None = None) -> bytes:
    """`{"error": {message, type, param, code}}`, as OpenAI answers it."""
    error = {"message": message, "type": _type(status), "param": param, "code": code}
    return orjson.dumps({"error": error})


def _type(status: int) -> str:
    return _TYPES.get(status, "invalid_request_error")


def _message(status: int, body: bytes, answer: Any) -> str:
    said = _said(answer) if answer is not None else body[: 4 * LONGEST_MESSAGE].decode("utf-8", "replace").strip()
    if not said:
        return f"The model backend refused the request with status {status}."
    if said.startswith("<"):
        return f"The model backend refused the request with status {status} and a page of HTML."
    shown = said if len(said) <= LONGEST_MESSAGE else said[: LONGEST_MESSAGE - 1] + "…"
    return f"The model backend refused the request with status {status}: {shown}"


def _said(answer: Any) -> str:
    """The message of the error shapes in use: `{error}`, `{message}`, `{detail}`; otherwise the JSON itself."""
    if isinstance(answer, Mapping):
        for key in ("error", "message", "detail"):
            if isinstance(answer.get(key), str):
                return str(answer[key])
    return answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()


def retry_after(header: Callable[[str], str | None]) -> float | None:
    """Seconds that the backend asks for, by `retry-after-ms` or `retry-after` (seconds or a date)."""
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
