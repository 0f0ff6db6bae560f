"""The meaning of an outcome for its lane."""

import random
import time

from xalen_batch.backends.contract import Answered, Outcome, Retryable
from xalen_batch.config import settings
from xalen_batch.models.line_attempts import Attempt
from xalen_batch.states import AttemptError


def is_answered(outcome: Outcome | None) -> bool | None:
    """Whether the backend did its work; None if overload or a cancelled request leaves it open."""
    if isinstance(outcome, Retryable):
        return None if outcome.is_overload else False
    return None if outcome is None else True


def used(outcome: Outcome | None) -> int | None:
    """Tokens that an answer used; None without an answer."""
    if not isinstance(outcome, Answered):
        return None
    return outcome.usage.input_tokens + outcome.usage.output_tokens


def pause_before_retry(outcome: Retryable, attempt: int) -> float:
    """Seconds: the backend's `retry_after` (capped) plus exponential backoff with full jitter.

    `attempt` 0: without a backoff.
    """
    ceiling = min(settings().retry_cap, settings().retry_base * 2.0 ** min(attempt - 1, 30))
    if not attempt:
        ceiling = 0.0
    asked = min(outcome.retry_after or 0.0, settings().retry_after_cap)
    return asked + random.uniform(0, ceiling)


def failed_attempt(outcome: Retryable, seconds: float) -> Attempt:
    """The failed attempt, which ends now and took `seconds`, as it is kept for its line."""
    return Attempt(
        time.time() - seconds, seconds, _error(outcome).value, outcome.status, outcome.server
    )


def _error(outcome: Retryable) -> AttemptError:
    if outcome.is_overload:
        return AttemptError.BUSY
    if outcome.is_timeout:
        return AttemptError.TIMEOUT
    if outcome.is_unreachable:
        return AttemptError.UNREACHABLE
    if outcome.status is None:
        return AttemptError.CONNECTION_BROKEN
    if outcome.status < 400:
        return AttemptError.BAD_ANSWER
    return AttemptError.REFUSED if outcome.refusal else AttemptError.SERVER_ERROR
