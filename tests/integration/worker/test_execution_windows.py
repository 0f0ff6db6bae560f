"""Execution windows: no line starts outside them, and the remaining lines run in the next one."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text, update

from tests import factories
from tests.integration import clock as clocks
from tests.integration import engines
from tests.integration.clock import Clock
from tests.integration.engines import (
    a_batch,
    a_claim,
    answers,
    charged,
    chat_lines,
    lines_of,
    read,
    read_states,
    run_to_end,
)
from tests.waiting import PATIENCE, wait_until
from xalen_batch import db, ids
from xalen_batch.backends import registry
from xalen_batch.backends.contract import Answered, Outcome, Request
from xalen_batch.batches import batches
from xalen_batch.broker import Job, Message
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Account, Batch, Task
from xalen_batch.models.files import FilePart
from xalen_batch.pipeline import claim, finalize, record, recover, validate
from xalen_batch.states import TaskState
from xalen_batch.windows import ExecutionWindow
from xalen_batch.worker import engine as worker_engine
from xalen_batch.worker.engine import Engine
from xalen_batch.worker.execute import TaskRun
from xalen_batch.worker.lane import Lane

pytestmark = pytest.mark.usefixtures("database", "valkey")
engine = engines.engine

NIGHTS = ExecutionWindow(start="22:00", end="06:00", timezone="Europe/Berlin")
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
OPENS = datetime(2026, 11, 24, 21, tzinfo=UTC)
CLOSES = datetime(2026, 11, 25, 5, tzinfo=UTC)
DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)
HOUR = timedelta(hours=1)


@pytest.fixture
def clock(database: str) -> Iterator[Clock]:
    with clocks.installed() as clock:
        stand_still(clock, NOON)
        yield clock


def stand_still(clock: Clock, at: datetime) -> None:
    clock.run_fast(at, pace=0)


def a_nightly_batch(
    lines: list[dict], window: ExecutionWindow = NIGHTS, completion_window: str = "7d"
) -> UUID:
    """A batch, created as the API does it, then validated."""
    with db.transaction() as session:
        caller = factories.caller(session)
        file = factories.input_file(session, caller, lines)
        batch = batches.create(
            session,
            caller,
            input_file_id=ids.render("file", file.id),
            endpoint="/v1/chat/completions",
            completion_window=completion_window,
            execution_window=window,
        )
    validate.run(batch.id)
    return batch.id


def set_window(batch_id: UUID, *, opens: timedelta, closes: timedelta) -> None:
    """Store an interval, relative to the database's clock."""
    with db.transaction() as session:
        session.execute(
            update(Batch)
            .where(Batch.id == batch_id)
            .values(
                execution_window=NIGHTS.model_dump(),
                window_opens_at=func.now() + opens,
                window_closes_at=func.now() + closes,
            )
        )


open_window = partial(set_window, opens=-HOUR, closes=HOUR)
close_window = partial(set_window, opens=HOUR, closes=2 * HOUR)


def claimed() -> claim.Claim | None:
    return claim.claim([], with_suspects=True)


def interval_of(batch_id: UUID) -> tuple[datetime | None, datetime | None]:
    batch = read(batch_id)
    return batch.window_opens_at, batch.window_closes_at


class Model:
    """A backend that answers on command, and records each request with its time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.sent: list[tuple[float, str]] = []
        self.may_answer = threading.Event()

    async def send(self, request: Request) -> Outcome:
        self.sent.append((time.monotonic(), request.request_id))
        await asyncio.sleep(self.seconds)
        while not self.may_answer.is_set():
            await asyncio.sleep(0.002)
        return Answered(200, b"{}", Usage(1_000, 500))

    async def close(self) -> None:
        return


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """A backend in place of the simulated one; three requests at most are in flight at first."""
    model = Model()
    monkeypatch.setattr(registry, "backend_for", lambda *_: model)
    monkeypatch.setattr(
        worker_engine,
        "Lane",
        lambda backend, limit, name, **options: Lane(backend, 5, name, **options),
    )
    return model


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each claim, whether it found a task."""
    found: list[bool] = []

    def look(*args: Any, **options: Any) -> claim.Claim | None:
        held = claim_(*args, **options)
        found.append(held is not None)
        return held

    claim_ = claim.claim
    monkeypatch.setattr(claim, "claim", look)
    return found


class TestClaim:
    @pytest.mark.parametrize(
        ("at", "is_open"),
        [
            (NOON, False),
            (OPENS - TICK, False),
            (OPENS, True),
            (CLOSES - TICK, True),
            (CLOSES, False),
            (OPENS + DAY, True),
        ],
    )
    def test_a_window_opens_at_its_start_and_is_closed_at_its_end(
        self, clock: Clock, at: datetime, is_open: bool
    ) -> None:
        a_nightly_batch(chat_lines(3))
        stand_still(clock, at)
        # Also before the sweep has replaced an interval that is over by the next one.
        assert is_open or claimed() is None
        assert (Message(Job.EXECUTE) in recover.due()) is is_open
        assert (claimed() is not None) is is_open

    def test_validation_waits_for_no_window(self, clock: Clock) -> None:
        batch = read(a_nightly_batch(chat_lines(3)))
        assert (batch.status, batch.total) == ("in_progress", 3)
        assert interval_of(batch.id) == (OPENS, CLOSES)

    def test_a_batch_that_waits_holds_up_no_other(self) -> None:
        close_window(a_batch(chat_lines(3)))
        other = a_batch(chat_lines(3))
        assert a_claim().batch_id == other
        assert claimed() is None

    def test_a_claim_knows_how_long_its_window_is_open(self) -> None:
        a_batch(chat_lines(1))
        assert a_claim().closes_at is None
        set_window(a_batch(chat_lines(1)), opens=-HOUR, closes=timedelta(seconds=100))
        before = time.monotonic()
        closes_at = a_claim().closes_at
        assert closes_at is not None
        assert before + 95 < closes_at <= time.monotonic() + 100

    def test_a_claim_that_waited_until_the_next_interval_was_stored_is_of_the_one_it_saw(
        self,
    ) -> None:
        batch_id = a_batch(chat_lines(1))
        set_window(batch_id, opens=-HOUR, closes=timedelta(seconds=0.5))
        with ThreadPoolExecutor(1) as pool:
            with db.transaction() as session:
                session.get_one(Account, read(batch_id).account_id, with_for_update=True)
                late = pool.submit(a_claim)
                wait_until(is_waiting)
                wait_until(lambda: not is_open(batch_id))
                recover.due()
                assert is_open(batch_id)
            closes_at = late.result(PATIENCE).closes_at
        assert closes_at is not None
        assert closes_at <= time.monotonic()

    def test_an_engine_that_finds_only_closed_windows_looks_once(
        self, engine: Engine, looks: list[bool]
    ) -> None:
        close_window(a_batch(chat_lines(30)))
        engine.drain()
        assert looks == [False]


class TestRoll:
    def test_the_interval_that_is_over_gives_way_to_the_next_however_late(
        self, clock: Clock
    ) -> None:
        batch_id = a_nightly_batch(chat_lines(3))
        stand_still(clock, CLOSES - TICK)
        recover.due()
        assert interval_of(batch_id) == (OPENS, CLOSES)
        stand_still(clock, CLOSES)
        recover.due()
        assert interval_of(batch_id) == (OPENS + DAY, CLOSES + DAY)
        # After days without a worker, one starts in the middle of a night: its poll finds the work.
        stand_still(clock, OPENS + 4 * DAY + HOUR)
        assert Message(Job.EXECUTE) in recover.due()
        assert interval_of(batch_id) == (OPENS + 4 * DAY, CLOSES + 4 * DAY)

    def test_it_is_rolled_while_it_is_validated_and_never_after_the_end(self, clock: Clock) -> None:
        batch_id, ended = (a_nightly_batch(chat_lines(1)) for _ in range(2))
        with db.transaction() as session:
            session.execute(update(Batch).where(Batch.id == batch_id).values(status="validating"))
            session.execute(update(Batch).where(Batch.id == ended).values(status="cancelled"))
        stand_still(clock, CLOSES)
        recover.due()
        assert interval_of(batch_id) == (OPENS + DAY, CLOSES + DAY)
        assert interval_of(ended) == (OPENS, CLOSES)

    def test_many_sweeps_at_once_roll_it_once(self, clock: Clock) -> None:
        ids = [a_nightly_batch([factories.chat_line("a")]) for _ in range(4)]
        stand_still(clock, CLOSES)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: recover.due(), range(24)))
        assert {interval_of(id) for id in ids} == {(OPENS + DAY, CLOSES + DAY)}

    def test_a_batch_that_someone_holds_is_rolled_later_and_waited_for_by_nobody(
        self, clock: Clock
    ) -> None:
        held, free = (a_nightly_batch([factories.chat_line("a")]) for _ in range(2))
        stand_still(clock, CLOSES)
        with db.transaction() as session:
            session.get_one(Batch, held, with_for_update=True)
            recover.due()
            assert (interval_of(held), interval_of(free)) == (
                (OPENS, CLOSES),
                (OPENS + DAY, CLOSES + DAY),
            )
        recover.due()
        assert interval_of(held) == (OPENS + DAY, CLOSES + DAY)

    def test_a_window_that_cannot_be_read_holds_up_no_other(self, clock: Clock) -> None:
        broken, sound = (a_nightly_batch([factories.chat_line("a")]) for _ in range(2))
        with db.transaction() as session:
            session.execute(
                text(
                    """UPDATE batches SET execution_window = execution_window || '{"timezone": "Mars/Olympus"}' WHERE id = :id"""
                ),
                {"id": broken},
            )
        stand_still(clock, OPENS + DAY)
        assert Message(Job.EXECUTE) in recover.due()
        assert a_claim().batch_id == sound
        assert claimed() is None


DAYS = st.lists(
    st.sampled_from(["mon", "tue", "wed", "thu", "fri", "sat", "sun"]), min_size=1, unique=True
)
TIMES = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.sampled_from([0, 1, 30, 59]))
ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]
)
# From the day before New York changes its clocks until after Berlin and Lord Howe have.
SPRING = datetime(2027, 3, 13, tzinfo=UTC)
STEPS = st.lists(st.integers(0, 5 * 86_400), min_size=1, max_size=6)


@pytest.fixture
def waiting(clock: Clock) -> UUID:
    """A batch that has time until summer."""
    batch_id = a_nightly_batch([factories.chat_line("a")])
    with db.transaction() as session:
        session.execute(update(Batch).values(expires_at=SPRING + 90 * DAY))
    return batch_id


class TestAnyWindow:
    @settings(
        max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(start=TIMES, end=TIMES, days=DAYS, zone=ZONES, steps=STEPS)
    def test_work_is_named_and_claimed_exactly_within_it(
        self,
        clock: Clock,
        waiting: UUID,
        start: str,
        end: str,
        days: list[Any],
        zone: str,
        steps: list[int],
    ) -> None:
        if start == end:
            end = "12:34"
        window = ExecutionWindow(start=start, end=end, days=days, timezone=zone)
        at = SPRING
        with db.transaction() as session:
            opens, closes = window.interval(at)
            session.execute(
                update(Batch).values(
                    execution_window=window.model_dump(),
                    window_opens_at=opens,
                    window_closes_at=closes,
                )
            )
        for step in steps:
            at += timedelta(seconds=step)
            stand_still(clock, at)
            opens, closes = window.interval(at)
            assert (Message(Job.EXECUTE) in recover.due()) is (opens <= at < closes)
            held = claimed()
            assert (held is not None) is (opens <= at < closes)
            if held is not None:
                record.record(held.key, held.fence, [], to=TaskState.PENDING)


class TestClosing:
    def test_what_is_in_flight_is_recorded_and_the_rest_is_handed_back_at_once(
        self, engine: Engine, model: Model, looks: list[bool]
    ) -> None:
        batch_id = a_batch(chat_lines(10))
        set_window(batch_id, opens=-HOUR, closes=timedelta(seconds=0.5))
        drain = threading.Thread(target=engine.drain)
        drain.start()
        wait_until(lambda: len(model.sent) == 3)
        wait_until(lambda: not is_open(batch_id))
        assert read_states(batch_id) == {"running"}
        model.may_answer.set()
        drain.join(PATIENCE)
        assert not drain.is_alive()
        assert (looks[0], sum(looks)) == (True, 1)
        assert len(looks) <= 3
        assert len(model.sent) == 3
        assert charged(batch_id) == 3 * answers_charge()
        with db.transaction() as session:
            task = session.scalars(select(Task).where(Task.batch_id == batch_id)).one()
            assert (task.state, task.losses, task.lease_until, task.completed) == (
                "pending",
                0,
                None,
                3,
            )
            assert session.scalar(select(Task.not_before <= func.now())) in (None, True)
        # The next night starts with it at once, and repeats nothing.
        open_window(batch_id)
        batch = run_to_end(engine, batch_id)
        assert (batch.status, batch.completed, batch.failed) == ("completed", 10, 0)
        assert len({request_id for _, request_id in model.sent}) == len(model.sent) == 10
        assert charged(batch_id) == 10 * answers_charge()

    def test_no_line_is_started_after_the_moment_it_closes(
        self, engine: Engine, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closes_in = 0.4
        stopped: dict[TaskRun, float] = {}
        stop = TaskRun.stop

        def noted(run: TaskRun) -> None:
            stopped.setdefault(run, time.monotonic())
            stop(run)

        monkeypatch.setattr(TaskRun, "stop", noted)
        model.may_answer.set()
        batch_id = a_batch(chat_lines(1_500))
        while not model.sent:
            # A busy machine may need longer than the window to begin. In any case, three at a time
            # cannot finish all lines within it.
            model.seconds = closes_in / 200
            set_window(batch_id, opens=-HOUR, closes=timedelta(seconds=closes_in))
            engine.drain()
            wait_until(
                lambda: not is_open(batch_id) and read_states(batch_id) <= {"pending", "done"}
            )
            closes_in *= 4
        night = len(model.sent)
        assert night < 1_500
        assert max(at for at, _ in model.sent) <= max(stopped.values())
        assert read(batch_id).status == "in_progress"
        open_window(batch_id)
        batch = run_to_end(engine, batch_id)
        assert (batch.completed, batch.failed) == (1_500, 0)
        assert len({request_id for _, request_id in model.sent}) == len(model.sent) == 1_500

    def test_a_claim_that_took_until_the_closing_starts_nothing(
        self, engine: Engine, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch_id = a_batch(chat_lines(5))
        open_window(batch_id)

        def late(*args: Any, **options: Any) -> claim.Claim | None:
            held = claim_(*args, **options)
            close_window(batch_id)
            if held is not None:
                object.__setattr__(held, "closes_at", time.monotonic() - 0.001)
            return held

        claim_ = claim.claim
        monkeypatch.setattr(claim, "claim", late)
        engine.drain()
        assert model.sent == []
        assert read_states(batch_id) == {"pending"}

    def test_the_databases_clock_has_the_last_word(self, engine: Engine, model: Model) -> None:
        """The heartbeat finds a closed window by the database's clock.

        The worker's clock misses it if the machine was asleep or its clock was set.
        """
        batch_id = a_batch(chat_lines(10))
        open_window(batch_id)
        drain = threading.Thread(target=engine.drain)
        drain.start()
        wait_until(lambda: len(model.sent) == 3)
        close_window(batch_id)
        held = held_task(batch_id)
        wait_until(lambda: held_task(batch_id).lease_until > held.lease_until)
        model.may_answer.set()
        drain.join(PATIENCE)
        assert len(model.sent) == 3
        assert read_states(batch_id) == {"pending"}

    def test_a_flush_outside_the_window_is_recorded_and_starts_nothing_more(
        self, clock: Clock
    ) -> None:
        batch_id = a_nightly_batch(chat_lines(5))
        stand_still(clock, OPENS)
        held = a_claim()
        assert record.record(held.key, held.fence, answers(held)[:1]).goes_on
        stand_still(clock, CLOSES)
        recorded = record.record(held.key, held.fence, answers(held)[1:2])
        assert (recorded.is_stale, recorded.goes_on) == (False, False)
        assert charged(batch_id) == 2 * answers_charge()


def answers_charge() -> Any:
    """The charge of one line of `answers` and of `Model`."""
    return Decimal("0.00002")


def is_open(batch_id: UUID) -> bool:
    with db.transaction() as session:
        return bool(
            session.scalar(select(func.now() < Batch.window_closes_at).where(Batch.id == batch_id))
        )


def is_waiting() -> bool:
    """Whether some transaction waits for a row that another holds."""
    with db.transaction() as session:
        return bool(session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


def held_task(batch_id: UUID) -> Task:
    with db.transaction() as session:
        return session.scalars(select(Task).where(Task.batch_id == batch_id)).one()


class TestEnd:
    def test_a_batch_that_expires_outside_its_window_is_billed_for_what_it_did(
        self, engine: Engine
    ) -> None:
        batch_id = a_batch(chat_lines(12))
        open_window(batch_id)
        held = a_claim()
        record.record(held.key, held.fence, answers(held)[:4])
        close_window(batch_id)
        record.record(held.key, held.fence, [], to=TaskState.PENDING)
        with db.transaction() as session:
            session.execute(update(Batch).values(expires_at=func.now()))
        batch = run_to_end(engine, batch_id)
        assert (batch.status, batch.completed, batch.expired) == ("expired", 4, 8)
        assert {line["error"]["code"] for line in lines_of(batch_id, FilePart.ERROR)} == {
            "batch_expired"
        }
        assert charged(batch_id) == 4 * answers_charge()

    def test_a_batch_that_waits_is_cancelled_at_once(self) -> None:
        batch_id = a_batch(chat_lines(3))
        close_window(batch_id)
        with db.transaction() as session:
            batches.cancel(session, session.get_one(Batch, batch_id))
        finalize.run(batch_id)
        batch = read(batch_id)
        assert (batch.status, batch.cancelled) == ("cancelled", 3)


class TestCreation:
    def test_a_window_that_does_not_open_before_the_batch_expires_is_refused_with_the_arithmetic(
        self, clock: Clock
    ) -> None:
        # Nine hours from noon in UTC to ten in the evening in Berlin.
        with pytest.raises(
            InvalidRequest, match=r"next opens at tue 2026-11-24 22:00\+01:00, 9 h after the start"
        ) as caught:
            a_nightly_batch(chat_lines(1), completion_window="9h")
        assert caught.value.param == "execution_window"
        assert interval_of(a_nightly_batch(chat_lines(1), completion_window="10h")) == (
            OPENS,
            CLOSES,
        )

    def test_the_first_interval_is_the_one_that_is_open(self, clock: Clock) -> None:
        stand_still(clock, CLOSES - TICK)
        assert interval_of(a_nightly_batch(chat_lines(1), completion_window="1h")) == (
            OPENS,
            CLOSES,
        )


class TestFairness:
    def test_an_account_gets_no_credit_for_waiting(self, configure: Callable[..., None]) -> None:
        waits, works = a_batch(chat_lines(1)), a_batch(chat_lines(1))
        close_window(waits)
        with db.transaction() as session:
            session.execute(
                update(Account)
                .where(Account.id == read(works).account_id)
                .values(virtual_time=700.0)
            )
        recover.tick()
        newcomer = a_batch(chat_lines(1))
        with db.transaction() as session:
            assert {
                session.get_one(Account, read(id).account_id).virtual_time
                for id in (waits, works, newcomer)
            } == {700.0}

    def test_while_all_wait_nobody_is_moved(self) -> None:
        waits = a_batch(chat_lines(1))
        close_window(waits)
        recover.tick()
        with db.transaction() as session:
            assert session.get_one(Account, read(waits).account_id).virtual_time == 0.0
