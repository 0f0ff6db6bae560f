"""One run: drive the batches of a plan while its faults happen, then ask the oracle."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import psycopg

from tests.chaos import leftovers, live, logged, oracle, sealed, told, uploaded
from tests.chaos.drive import Client, Delivery
from tests.chaos.faults import KINDS, PROCESSES, Fault
from tests.chaos.plan import Act, Plan
from tests.chaos.system import System
from xalen_batch.errors import ConfigError

# Seconds within which all batches end, from the end of the last fault.
BOUND = 65.0
# Seconds after which a run is given up. It is longer than BOUND, to tell a late system from one
# that has stopped.
PATIENCE = 180.0
# Seconds after which the next faults begin even if no line ends meanwhile.
LONGEST_WAIT = 3.0
LOOK = 0.05


@dataclass
class Outcome:
    """`recovery`: seconds from the end of the last fault until the last batch had ended."""

    seed: int
    lease: float
    faults: list[str] = field(default_factory=list)
    fired: list[str] = field(default_factory=list)
    kills: int = 0
    batches: int = 0
    lines: int = 0
    calls: int = 0
    repeated: int = 0
    lost: int = 0
    doubled: int = 0
    given_up: dict[str, int] = field(default_factory=dict)
    unanswered: int = 0
    live_calls: int = 0
    live_lost: int = 0
    uploads: int = 0
    retries: int = 0
    events: int = 0
    told_again: int = 0
    recovery: float = 0.0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Run:
    """A plan on a system that is ready and idle.

    `keeps_rows`: do not drop the rows of the batches in the end.
    """

    def __init__(self, system: System, plan: Plan, *, keeps_rows: bool = False) -> None:
        self._system = system
        self._keeps_rows = keeps_rows
        self._plan = plan
        self.outcome = Outcome(plan.seed, system.lease, batches=len(plan.orders), lines=plan.lines)
        self._first_call = system.calls.stat().st_size if system.calls.exists() else 0
        self._first_told = system.told.stat().st_size
        self.told = told.Told()
        self._read_logs = logged.Reader(system)
        self.calls = oracle.Calls()
        self._clients = [
            Client(system.base_url, system.key, f"run-{plan.seed}", order) for order in plan.orders
        ]
        self.live = live.Delivered()
        self._caller = live.Client(system.base_url, system.key, f"run-{plan.seed}", self.live)
        self._is_api_killed = False
        self._is_crashing = False
        self._connection: psycopg.Connection | None = None

    def run(self) -> Outcome:
        started = time.monotonic()
        for client in self._clients:
            client.start()
        self._caller.start()
        with ExitStack() as until_the_end:
            for act in self._plan.acts:
                self._wait_for(act)
                self._perform(act, until_the_end)
            self._until(lambda: self._is_over or not self._is_crashing, timeout=LONGEST_WAIT)
        self._raise_the_dead()
        healed = time.monotonic()
        self._finish(healed)
        if self._connection is not None:
            self._connection.close()
        self._judge()
        self.outcome.seconds = time.monotonic() - started
        return self.outcome

    def _wait_for(self, act: Act) -> None:
        self._until(lambda: self._is_over or self._progress >= act.at, timeout=LONGEST_WAIT)

    def _perform(self, act: Act, until_the_end: ExitStack) -> None:
        try:
            with ExitStack() as now:
                for fault in act.faults:
                    self._begin(fault, until_the_end if fault.is_crash_point else now)
                hold = max(
                    (fault.hold for fault in act.faults if not fault.is_crash_point), default=0.0
                )
                self._until(lambda: False, timeout=hold)
        except (AssertionError, ConfigError) as error:
            # A process did not end after its signal, or a store did not start again.
            self.outcome.wrong.append(f"after {', '.join(map(str, act.faults))}: {error}")

    def _begin(self, fault: Fault, until: ExitStack) -> None:
        self.outcome.faults.append(f"{fault.kind}: {fault.on}")
        self.outcome.kills += _kills(fault)
        self._is_api_killed |= fault.kind == "kill -9" and fault.on in ("api", "all")
        until.enter_context(KINDS[fault.kind](self._system, fault))
        self._is_crashing |= fault.is_crash_point

    def _until(self, happened: Callable[[], bool], *, timeout: float) -> None:
        """Watch the processes until a condition is true, or until the timeout."""
        deadline = time.monotonic() + timeout
        while not happened() and time.monotonic() < deadline:
            self._raise_the_dead()
            time.sleep(LOOK)
        self._raise_the_dead()

    def _raise_the_dead(self) -> None:
        """Restart the processes that died at their crash points, as a supervisor would. Any other
        process that has ended is an error.
        """
        for part in self._system.parts.values():
            if not part.is_wanted or part.is_running:
                continue
            self._is_api_killed |= part.name == "api"
            if part.fired.exists():
                point = part.fired.read_text("utf-8").rpartition(" ")[0]
                self.outcome.fired.append(point)
                self.outcome.kills += 1
            else:
                self.outcome.wrong.append(f"{part.name} ended by itself, with {part.exit_code}")
            part.start()

    @property
    def _is_over(self) -> bool:
        return not any(client.is_alive() for client in self._clients)

    @property
    def _progress(self) -> float:
        """The share of all lines that has ended; 0 while it cannot be read."""
        try:
            # A new connection for each look would take a tenth of the CPU of a run.
            if self._connection is None or self._connection.closed:
                self._connection = self._system.connect()
                self._connection.autocommit = True
            row = self._connection.execute(
                "SELECT coalesce(sum(completed + failed), 0) FROM tasks WHERE batch_id IN (SELECT"
                " id FROM batches WHERE metadata ->> 'run' = %s AND retry_of IS NULL)",
                [f"run-{self._plan.seed}"],
            ).fetchone()
        except psycopg.Error:
            # PostgreSQL is one of the processes that are killed.
            return 0.0
        return float(row[0]) / self._plan.lines if row else 0.0

    def _finish(self, healed: float) -> None:
        for client in self._clients:
            client.deadline = healed + PATIENCE
        while not self._is_over:
            self._raise_the_dead()
            time.sleep(LOOK)
        self._caller.is_over.set()
        self._caller.join()
        ended = [delivery.ended_at for delivery in self.deliveries if delivery.ended_at is not None]
        self.outcome.recovery = max(0.0, max(ended, default=healed) - healed)
        if self.outcome.recovery > BOUND:
            self.outcome.wrong.append(
                f"it took {self.outcome.recovery:.1f} s to recover, and may take {BOUND:.0f}"
            )

    @property
    def deliveries(self) -> list[Delivery]:
        return [delivery for client in self._clients for delivery in client.deliveries]

    def _judge(self) -> None:
        deliveries = self.deliveries
        calls = self.calls = self._read_calls()
        self.outcome.calls, self.outcome.repeated = calls.asked.total(), calls.repeated
        self.outcome.lost, self.outcome.doubled = oracle.lost_and_doubled(deliveries)
        self.outcome.given_up = dict(oracle.given_up(deliveries))
        self.outcome.unanswered = sum(delivery.unanswered for delivery in deliveries)
        self.outcome.batches = len(deliveries)
        self.outcome.lines = sum(len(delivery.order.lines) for delivery in deliveries)
        self.outcome.retries = sum(bool(delivery.first_id) for delivery in deliveries)
        run, wrong = f"run-{self._plan.seed}", self.outcome.wrong
        with self._system.connect() as connection:
            wrong += oracle.wrong(connection, run, deliveries, calls)
            wrong += uploaded.wrong(self._system, connection, run, deliveries)
            if not self._keeps_rows:
                self.outcome.uploads = uploaded.age(connection, run)
        wrong += self._reconciled("with rows")
        wrong += self._end_the_day()
        wrong += sealed.unsealed(self._system, run)
        wrong += told.unsent(self._system)
        self._read_told()
        with self._system.connect() as connection:
            wrong += self._wrong_calls(connection)
            wrong += told.wrong(connection, run, self.told)
        if not self._keeps_rows:
            wrong += sealed.wrong(self._system, run, deliveries)
            with self._system.connect() as connection:
                connection.autocommit = True
                wrong += uploaded.left(connection, run)
            wrong += self._reconciled("without rows")
        wrong += leftovers.left(self._system)
        wrong += self._read_logs.errors()

    def _end_the_day(self) -> list[str]:
        with self._system.connect() as connection:
            connection.autocommit = True
            wrong = live.end_the_day(
                connection, self._caller, f"run-{self._plan.seed}", self._read_calls
            )
        self._caller.close()
        self.calls = self._read_calls()
        return wrong

    def _read_told(self) -> None:
        self.told = told.read(self._system.told, self._first_told, self._system.secret)
        self.outcome.events = len(self.told.accepted)
        self.outcome.told_again = self.told.repeated

    def _wrong_calls(self, connection: psycopg.Connection) -> list[str]:
        run = f"run-{self._plan.seed}"
        self.outcome.live_calls = len(self.live.asked)
        self.outcome.live_lost = live.lost(connection, run, self.live, self.calls)
        return list(
            live.wrong(connection, run, self.live, self.calls, may_lose=self._is_api_killed)
        )

    def _read_calls(self) -> oracle.Calls:
        return oracle.read_calls(self._system.calls, self._first_call)

    def _reconciled(self, when: str) -> list[str]:
        code, found, words = self._system.command("reconcile", "--json")
        if code == 0 and not json.loads(found)["data"]:
            return []
        said = f"{found.strip()[:500]} {words.strip()[:500]}"
        return [f"reconcile {when} ended with {code} and found {said}"]


def _kills(fault: Fault) -> int:
    """The number of processes that a fault kills; crash points are counted when they fire."""
    if fault.kind == "kill -9":
        return len(PROCESSES) if fault.on == "all" else 1
    return int(fault.kind == "Valkey killed, back empty" or fault.kind == "PostgreSQL stopped")
