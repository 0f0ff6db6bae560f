"""One backend, several accounts, virtual time: failures of one account do not delay another."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.unit import virtual_time
from xalen_batch import ids
from xalen_batch.backends.contract import (
    Answered,
    Ended,
    Exhausted,
    NotRun,
    Outcome,
    Refused,
    Request,
    Retryable,
)
from xalen_batch.endpoints.names import CHAT
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models.line_attempts import Attempt
from xalen_batch.worker.circuit_breaker import Source, State
from xalen_batch.worker.lane import Lane

OK = Answered(200, b"{}", Usage(1, 1))
LATENCY = 0.1
NOT_FOUND = Refused(404, b'{"error":{}}')
MEETS = {
    "500": (0.001, Retryable("HTTP 500", 500)),
    "503": (0.001, Retryable("HTTP 503", 503, is_overload=True)),
    "503 with a long wish": (0.001, Retryable("HTTP 503", 503, retry_after=100, is_overload=True)),
    "401": (0.001, Retryable("HTTP 401", 401, is_unreachable=True)),
    "404": (0.001, Retryable("HTTP 404", 404, refusal=NOT_FOUND)),
    "explained 404": (0.001, Retryable("HTTP 404", 404, refusal=NOT_FOUND, may_be_own=True)),
    "timeouts": (600.0, Retryable("timeout", is_timeout=True)),
    "slow failures": (5.0, Retryable("HTTP 500", 500)),
}


@dataclass(frozen=True)
class FakeLine:
    number: int
    kind: str

    @property
    def request(self) -> Request:
        return Request(CHAT, self.kind.encode(), f"req_{self.number}")


@dataclass
class Backend:
    """Answers a line by its kind; with `is_down`, fails all lines in the same way."""

    is_down: bool = False
    sent: int = 0
    down: Outcome = MEETS["500"][1]

    async def send(self, request: Request) -> Outcome:
        self.sent += 1
        seconds, outcome = MEETS.get(request.body.decode(), (LATENCY, OK))
        await asyncio.sleep(seconds)
        return self.down if self.is_down else outcome

    async def close(self) -> None:
        return


@dataclass(eq=False)
class Batch:
    """Lines of one kind, taken a claim's worth at a time, as the engine takes them."""

    lane: Lane
    lines: int
    kind: str = "good"
    source: Source = field(default_factory=lambda: Source.of(ids.new(), ids.new()))
    claims: list["Claim"] = field(default_factory=list)
    in_lane: int = 0
    not_before: float = 0.0
    answered: int = 0
    failed: int = 0
    ended_at: float | None = None
    numbers: int = 0

    def over(self, line: Any, outcome: Ended | NotRun) -> None:
        self.in_lane -= 1
        if isinstance(outcome, NotRun):
            self.lines += 1
            self.not_before = max(self.not_before, now() + self.lane.circuit.pause_of(self.source))
            return
        self.answered += isinstance(outcome, Answered)
        self.failed += isinstance(outcome, Exhausted | Refused)
        if not self.lines and not self.in_lane:
            self.ended_at = now()

    def claim(self) -> bool:
        """Send the lines that the lane has room for, or none."""
        admission, rooms = self.lane.circuit.admission, self.lane.free_by_account()
        excluded = admission.excluded if admission else ()
        room = min(rooms[None], rooms.get(self.source.account_id, rooms[None]), self.lines)
        is_excluded = self.source in excluded or (self.source.account_id, None) in excluded
        if room <= 0 or is_excluded or now() < self.not_before:
            return False
        self.lines -= room
        self.in_lane += room
        self.numbers += room
        claim = Claim(self)
        self.claims.append(claim)
        self.lane.add(claim, [FakeLine(self.numbers + number, self.kind) for number in range(room)])
        return True

    def cut(self) -> None:
        for claim in self.claims:
            claim.is_stopped = True
            self.lane.stop(claim)
            self.lane.cut(claim)


@dataclass(eq=False)
class Claim:
    """A task of a batch as the lane runs it."""

    batch: Batch
    is_stopped: bool = False

    @property
    def source(self) -> Source:
        return self.batch.source

    def attempt_failed(self, line: Any, attempt: Attempt) -> None: ...

    def over(self, line: Any, outcome: Ended | NotRun) -> None:
        self.batch.over(line, outcome)


def now() -> float:
    return asyncio.get_running_loop().time()


def over(seconds: float) -> Callable[[], bool]:
    """A condition that is true once this number of seconds has passed."""
    end = now() + seconds
    return lambda: now() >= end


def a_lane(backend: Backend) -> Lane:
    return Lane(backend, 64, clock=asyncio.get_running_loop().time)


async def run(
    *batches: Batch, until: Callable[[], bool], most: float = 100_000, every: float = 0.02
) -> float:
    """Claim in turn at an interval until a condition is true; return the seconds that it took."""
    begun = now()
    while not until():
        assert now() - begun < most
        for batch in batches:
            batch.claim()
        await asyncio.sleep(every)
    return now() - begun


@pytest.fixture(autouse=True)
def _settings(configure: Callable[..., None]) -> None:
    configure(
        circuit_failures=20,
        circuit_pause=15,
        circuit_patience=3_600,
        retry_base=0.5,
        retry_cap=30,
        max_attempts=5,
    )


@pytest.mark.parametrize("begins", [0.0, 20.0])
@pytest.mark.parametrize("accounts", [1, 4])
@pytest.mark.parametrize("kind", MEETS)
def test_another_accounts_lines_take_at_most_three_times_as_long_as_alone(
    kind: str, accounts: int, begins: float
) -> None:
    async def main() -> None:
        alone = Batch(a_lane(Backend()), 2_000)
        seconds_alone = await run(alone, until=lambda: alone.ended_at is not None)
        lane = a_lane(Backend())
        hostile = [Batch(lane, 2_000, kind) for _ in range(accounts)]
        await run(*hostile, until=over(begins))
        other = Batch(lane, 2_000)
        seconds = await run(*hostile, other, until=lambda: other.ended_at is not None)
        assert (other.answered, other.failed) == (2_000, 0)
        assert seconds <= 3 * seconds_alone + (15 + 2 if accounts > 3 else 1)
        for batch in hostile:
            batch.cut()

    virtual_time.run(main)


def test_lines_that_fail_end_while_others_are_answered() -> None:
    async def main() -> None:
        lane = a_lane(Backend())
        failing, other = Batch(lane, 500, "500"), Batch(lane, 100_000)
        await run(failing, other, until=lambda: failing.ended_at is not None, most=300)
        assert (failing.answered, failing.failed) == (0, 500)
        other.cut()

    virtual_time.run(main)


def test_a_lines_own_404_ends_it_with_the_backends_words_while_others_are_answered() -> None:
    async def main() -> None:
        lane = a_lane(Backend())
        refused, other = Batch(lane, 100, "404"), Batch(lane, 100_000)
        await run(refused, other, until=lambda: refused.ended_at is not None, most=120)
        assert refused.failed == 100
        other.cut()

    virtual_time.run(main)


@pytest.mark.parametrize("refused", [2, 100])
def test_the_last_lines_of_a_lone_batch_end_when_the_model_server_explains_its_404(
    refused: int,
) -> None:
    async def main() -> None:
        lane = a_lane(Backend())
        good, last = Batch(lane, 50), Batch(lane, refused, "explained 404")
        last.source = good.source
        await run(good, last, until=lambda: last.ended_at is not None, most=600, every=0.5)
        assert (good.answered, last.failed) == (50, refused)

    virtual_time.run(main)


@pytest.mark.parametrize(
    ("down", "accounts"), [("500", 1), ("500", 10), ("401", 3), ("404", 3), ("503", 3)]
)
def test_an_outage_of_half_an_hour_costs_no_line_and_work_goes_on_soon_after(
    down: str, accounts: int
) -> None:
    async def main() -> None:
        backend = Backend(down=MEETS[down][1])
        lane = a_lane(backend)
        batches = [Batch(lane, 600) for _ in range(accounts)]
        await run(*batches, until=over(0.5))
        backend.is_down, sent = True, backend.sent
        await run(*batches, until=over(1_800), every=1)
        # The circuit was open meanwhile.
        assert backend.sent - sent < 300 + 1_800 / 15 * 8
        backend.is_down, left = False, sum(batch.lines + batch.in_lane for batch in batches)
        seconds = await run(
            *batches, until=lambda: all(batch.ended_at is not None for batch in batches)
        )
        assert [batch.failed for batch in batches] == [0] * accounts
        assert seconds < 15 + 2 + 30 + 3 * left * LATENCY / 32
        assert lane.circuit.state is State.CLOSED

    virtual_time.run(main)


def test_a_batch_that_can_never_succeed_ends_though_it_is_alone(
    configure: Callable[..., None],
) -> None:
    configure(circuit_failures=20, circuit_pause=15, circuit_patience=600)

    async def main() -> None:
        batch = Batch(a_lane(Backend()), 2_000, "500")
        seconds = await run(batch, until=lambda: batch.ended_at is not None, every=1)
        assert batch.failed == 2_000
        assert 600 < seconds < 600 + 2_400

    virtual_time.run(main)


def test_a_good_batch_runs_beside_a_bad_one_of_the_same_account() -> None:
    async def main() -> None:
        lane = a_lane(Backend())
        bad = Batch(lane, 2_000, "500")
        await run(bad, until=lambda: lane.circuit.state is State.OPEN)
        good = Batch(lane, 1_000, source=Source(bad.source.account_id, ids.new()))
        # The bad one is due first, so it is claimed first.
        assert await run(bad, good, until=lambda: good.ended_at is not None) < 60
        assert good.answered == 1_000

    virtual_time.run(main)
