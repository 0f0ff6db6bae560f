"""The log of a backend while lines run: first failures at once, later ones as a count; times."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.unit.virtual_time import VirtualLoop
from xalen_batch import ids
from xalen_batch.backends.contract import Answered, Outcome, Retryable
from xalen_batch.endpoints.usage import Usage
from xalen_batch.worker import pace
from xalen_batch.worker.circuit_breaker import Source
from xalen_batch.worker.pace import INTERVAL, MOST_KINDS, Pace

SOURCE = Source.of(ids.new(), ids.new())
OK = Answered(200, b"{}", Usage(1, 1))
BROKEN = Retryable("The backend answered 500.", 500)
UNREACHABLE = Retryable("No connection to the backend could be made.", is_unreachable=True)
Events = list[MutableMapping[str, Any]]


@pytest.fixture
def events() -> Iterator[Events]:
    with capture_logs() as found:
        yield found


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[], Coroutine[Any, Any, None]]], None]:
    def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            monkeypatch.setattr(pace.time, "monotonic", runner.get_loop().time)
            runner.run(main())

    return run


async def send(of: Pace, outcome: Outcome | None, seconds: float = 0.0) -> None:
    number = of.started()
    await asyncio.sleep(seconds)
    of.ended(number, SOURCE, outcome)


def named(events: Events, *names: str) -> Events:
    return [event for event in events if event["event"] in names]


def test_the_first_failure_of_a_kind_is_logged_at_once_with_status_reason_and_batch(
    run: Callable[..., None], events: Events
) -> None:
    async def main() -> None:
        of = Pace("chat", lambda: 0)
        for outcome in (BROKEN, BROKEN, UNREACHABLE):
            await send(of, outcome)
        of.close()

    run(main)
    first, second, later = named(events, "backend.failing")
    assert (first["backend"], first["status"], first["reason"], first["count"]) == (
        "chat",
        500,
        BROKEN.reason,
        1,
    )
    assert (first["account_id"], first["batch_id"]) == SOURCE
    assert (second["status"], second["reason"]) == (None, UNREACHABLE.reason)
    # Nothing that was counted is lost when the lane closes.
    assert (later["status"], later["count"]) == (500, 1)


def test_later_failures_of_a_kind_are_one_event_for_each_interval(
    run: Callable[..., None], events: Events
) -> None:
    async def main() -> None:
        of = Pace("chat", lambda: 0)
        for _ in range(200):
            await send(of, BROKEN, INTERVAL / 100)
        of.close()

    run(main)
    counts = [event["count"] for event in named(events, "backend.failing")]
    assert (counts[0], sum(counts)) == (1, 200)
    assert len(counts) <= 4


def test_kinds_of_failure_without_end_do_not_fill_the_log(
    run: Callable[..., None], events: Events
) -> None:
    async def main() -> None:
        of = Pace("chat", lambda: 0)
        for number in range(1_000):
            await send(of, Retryable(f"The backend answered {number}.", number))
        of.close()

    run(main)
    found = named(events, "backend.failing")
    assert len(found) == MOST_KINDS + 1
    assert sum(event["count"] for event in found) == 1_000


def test_while_lines_run_each_interval_says_how_fast_the_backend_answers(
    run: Callable[..., None], events: Events
) -> None:
    async def main() -> None:
        of = Pace("chat", lambda: 7, expected=0.1)
        await asyncio.gather(
            *(send(of, OK, seconds) for seconds in (0.1, 0.2, 0.9)), send(of, None, 0.5)
        )
        await asyncio.sleep(INTERVAL)
        of.close()

    run(main)
    (found,) = named(events, "backend.pace", "backend.slow")
    assert found["event"] == "backend.pace"
    assert (found["answered"], found["failed"], found["in_flight"], found["waiting"]) == (
        3,
        0,
        0,
        7,
    )
    assert (found["median_ms"], found["slowest_ms"], found["oldest_ms"], found["expected_ms"]) == (
        200,
        900,
        0,
        100,
    )


@pytest.mark.parametrize("seconds", [2.0, 10 * INTERVAL], ids=["slow answers", "no answer yet"])
def test_a_slow_backend_is_a_warning_within_one_interval(
    run: Callable[..., None], events: Events, seconds: float
) -> None:
    async def main() -> None:
        of = Pace("chat", lambda: 0, expected=0.1)
        sent = asyncio.create_task(send(of, OK, seconds))
        await asyncio.sleep(INTERVAL + 0.1)
        sent.cancel()
        of.close()

    run(main)
    (found,) = named(events, "backend.pace", "backend.slow")
    assert (found["event"], found["log_level"]) == ("backend.slow", "warning")
    assert max(found["median_ms"], found["oldest_ms"]) == pytest.approx(
        min(1000 * seconds, 30_000), rel=0.01
    )


def test_a_backend_that_stays_slow_is_one_warning_until_it_was_fast_again(
    run: Callable[..., None], events: Events
) -> None:
    async def main() -> None:
        of = Pace("chat", lambda: 1, expected=0.1)
        for seconds in (2.0, 2.0, 0.1, 2.0):
            await asyncio.gather(send(of, OK, seconds), asyncio.sleep(INTERVAL))
        await asyncio.sleep(0.1)
        of.close()

    run(main)
    found = [event["event"] for event in named(events, "backend.pace", "backend.slow")]
    assert found == ["backend.slow", "backend.pace", "backend.pace", "backend.slow"]


def test_a_lane_that_rests_says_nothing(run: Callable[..., None], events: Events) -> None:
    async def main() -> None:
        of = Pace("chat", lambda: 0)
        await send(of, OK, 0.1)
        await asyncio.sleep(10 * INTERVAL)

    run(main)
    assert len(named(events, "backend.pace")) == 1
