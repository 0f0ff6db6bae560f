"""The state that the event loop and a slot's thread share: outcomes arrive one by one, and a flush
takes them.
"""

import threading
from collections.abc import Callable
from decimal import Decimal

import pytest

from xalen_batch import ids
from xalen_batch.backends.contract import NOT_RUN, Answered, Request
from xalen_batch.backends.simulated.backend import SimulatedBackend
from xalen_batch.billing.charges import Tariff
from xalen_batch.catalog import models
from xalen_batch.endpoints.names import CHAT
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models.line_attempts import Attempt
from xalen_batch.pipeline.claim import Claim, ClaimedLine
from xalen_batch.worker import execute
from xalen_batch.worker.execute import TaskRun
from xalen_batch.worker.lane import Lane

MODEL = "mistral-small-3-1"
ANSWER = Answered(200, b"{}", Usage(1, 1))
NEVER = 3600.0


class Waited(threading.Event):
    """Records the timeout of each wait."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.times.append(timeout)
        return self.is_set()


LINES = tuple(
    ClaimedLine(number, f"line-{number}", Request(CHAT, b"{}", f"req_{number}"))
    for number in range(1, 1_001)
)


def a_run(count: int) -> TaskRun:
    tariff = Tariff({"input": "0.02", "output": "0.04"}, Decimal("0.5"))
    claim = Claim(
        (ids.new(), 0),
        1,
        ids.new(),
        (MODEL, False),
        "simulated",
        tariff,
        is_suspect=False,
        lines=LINES[:count],
    )
    run = TaskRun(claim, Lane(SimulatedBackend(models()[MODEL]), 1))
    run._is_due = Waited()
    return run


def waits(run: TaskRun) -> list[float | None]:
    assert isinstance(run._is_due, Waited)
    return run._is_due.times


def test_outcomes_wait_no_longer_than_the_flush_interval(configure: Callable[..., None]) -> None:
    configure(flush_interval=0.25)
    run = a_run(3)
    run.over(LINES[0], ANSWER)
    assert run.take() == [(1, "line-1", ANSWER)]
    assert waits(run) == [0.25]
    assert run.take() == []


def test_a_slot_is_woken_by_a_flushs_worth_and_not_by_a_line(
    configure: Callable[..., None],
) -> None:
    configure(flush_lines=3)
    run = a_run(10)
    for line in LINES[:2]:
        run.over(line, ANSWER)
    assert not run._is_due.is_set()
    run.over(LINES[2], ANSWER)
    assert run._is_due.is_set()
    assert len(run.take()) == 3
    assert not run._is_due.is_set()


def test_large_answers_wake_the_slot_before_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "FLUSH_BYTES", 10)
    run = a_run(3)
    run.over(LINES[0], Answered(200, b"{" + b" " * 9 + b"}", Usage()))
    assert run._is_due.is_set()


def test_the_last_line_ends_the_waiting() -> None:
    run = a_run(2)
    run.over(LINES[0], ANSWER)
    run.over(LINES[1], NOT_RUN)
    assert not run.is_over
    assert run.take() == [(1, "line-1", ANSWER)]
    assert run.is_over
    assert waits(run) == []


def test_a_flush_takes_no_more_bytes_or_lines_than_it_may(
    monkeypatch: pytest.MonkeyPatch, configure: Callable[..., None]
) -> None:
    monkeypatch.setattr(execute, "FLUSH_BYTES", 100)
    configure(flush_lines=4)
    run = a_run(8)
    for line in LINES[:3]:
        run.over(line, Answered(200, b"x" * 60, Usage()))
    for line in LINES[3:8]:
        run.over(line, ANSWER)
    assert [len(run.take()) for _ in range(3)] == [2, 4, 2]
    assert run.is_over
    assert waits(run) == []


def test_a_flush_that_leaves_another_does_not_wait_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(execute, "FLUSH_BYTES", 100)
    run = a_run(8)
    for line in LINES[:4]:
        run.over(line, Answered(200, b"x" * 60, Usage()))
    run.take()
    assert run._is_due.is_set()
    run.take()
    assert not run._is_due.is_set()


def test_requests_are_held_until_they_are_over_and_answers_until_they_are_recorded() -> None:
    run = a_run(3)
    assert (run.request_bytes, run.lane.buffer.held) == (3 * len(b"{}"), 0)
    run.over(LINES[0], Answered(200, b"x" * 100, Usage()))
    run.over(LINES[1], NOT_RUN)
    assert (run.request_bytes, run.lane.buffer.held) == (len(b"{}"), 100)
    run.take()
    assert run.lane.buffer.held == 100
    run.recorded(100)
    assert run.lane.buffer.held == 0


def test_what_nobody_takes_any_more_is_not_held() -> None:
    run = a_run(2)
    run.over(LINES[0], Answered(200, b"x" * 100, Usage()))
    run.leave()
    run.over(LINES[1], Answered(200, b"x" * 100, Usage()))
    assert (run.request_bytes, run.lane.buffer.held) == (0, 0)


def test_a_full_buffer_is_reason_enough_to_record() -> None:
    run = a_run(3)
    run.lane.buffer.most = 100
    run.over(LINES[0], Answered(200, b"x" * 99, Usage()))
    assert not run._is_due.is_set()
    run.over(LINES[1], Answered(200, b"x", Usage()))
    assert run._is_due.is_set()


def test_the_attempts_of_taken_outcomes_are_taken_once_and_bounded() -> None:
    run = a_run(3)
    attempt = Attempt(1.0, 0.1, "busy", 503, 1)
    run.attempt_failed(LINES[0], attempt)
    run.attempt_failed(LINES[1], attempt)
    run.over(LINES[0], ANSWER)
    assert run.take_attempts() == [(1, attempt), (2, attempt)]
    assert run.take_attempts() == []
    for _ in range(execute.MOST_ATTEMPTS + 5):
        run.attempt_failed(LINES[2], attempt)
    assert len(run.take_attempts()) == execute.MOST_ATTEMPTS
