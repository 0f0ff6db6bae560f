"""What is kept of a failed attempt: why it failed, when, for how long and where, and no text."""

import time

import pytest

from xalen_batch.backends.contract import Refused, Retryable
from xalen_batch.states import AttemptError
from xalen_batch.worker.outcome import failed_attempt

CASES = [
    (Retryable("x", 503, is_overload=True), AttemptError.BUSY),
    (Retryable("x", is_timeout=True), AttemptError.TIMEOUT),
    (Retryable("x", 504, is_timeout=True), AttemptError.TIMEOUT),
    (Retryable("x", is_unreachable=True), AttemptError.UNREACHABLE),
    (Retryable("x", 401, is_unreachable=True), AttemptError.UNREACHABLE),
    (Retryable("x"), AttemptError.CONNECTION_BROKEN),
    (Retryable("x", 200), AttemptError.BAD_ANSWER),
    (Retryable("x", 404, refusal=Refused(404, b"{}")), AttemptError.REFUSED),
    (Retryable("x", 500), AttemptError.SERVER_ERROR),
    (Retryable("x", 409), AttemptError.SERVER_ERROR),
]


@pytest.mark.parametrize(("outcome", "error"), CASES)
def test_each_failure_has_its_word(outcome: Retryable, error: AttemptError) -> None:
    attempt = failed_attempt(outcome, 2.0)
    assert (attempt.error, attempt.status, attempt.server) == (error, outcome.status, 1)
    assert (attempt.seconds, round(time.time() - attempt.at, 1)) == (2.0, 2.0)
