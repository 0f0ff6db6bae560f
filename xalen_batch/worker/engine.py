"""The engine of one worker process: an event loop, a lane for each backend, and slots.

docs/architecture.md draws the threads and the way of a line ("Inside a worker").
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar
from uuid import UUID

import uvloop

from xalen_batch import catalog, db, disk, ids, log
from xalen_batch.backends import registry
from xalen_batch.backends.buffer import Buffers
from xalen_batch.catalog import Model
from xalen_batch.config import settings
from xalen_batch.endpoints.names import EMBEDDINGS
from xalen_batch.models import workers
from xalen_batch.models.next_task import FreeCapacity
from xalen_batch.pipeline import claim as claims
from xalen_batch.pipeline import record
from xalen_batch.pipeline.claim import Claim
from xalen_batch.ratelimit.backend import Rates
from xalen_batch.ratelimit.permits import name_of
from xalen_batch.states import TaskState
from xalen_batch.storage import marks
from xalen_batch.worker.execute import Slot, TaskRun, heartbeat
from xalen_batch.worker.lane import Lane
from xalen_batch.worker.lanes import Lanes
from xalen_batch.worker.live_first import LiveFirst

logger = log.get(__name__)
T = TypeVar("T")

# Seconds for which slots do not claim by themselves, after a claim that found nothing, took the
# last pending task, or filled all lanes. Hints and polls still make them claim.
IDLE_PAUSE = 0.25
# Shares of the bytes that a process may hold. Requests get less than half of the rest: a backend
# may need a request in another form, which is in memory as well while the request is in flight.
ANSWERS_SHARE, REQUESTS_SHARE = 1 / 2, 1 / 4
# An account gets this share of the slots that other accounts leave free, so that one account never
# takes the last slot.
SLOT_SHARE = 3 / 4
# Seconds until a task may be claimed again whose backend cannot be made here.
UNUSABLE_PAUSE = 15.0
# Seconds after which lines that wait for a limit per minute are reported.
LIMITED_AFTER = 3.0


class _NotInCatalog(Exception):
    """The catalog lacks the model, or has another kind of backend than the batch was created with.

    It is logged before it is raised.
    """


class _Unusable(Exception):
    """The backend of the claimed task cannot be made here; the task was returned."""


class Engine:
    """Claims tasks and runs them in slots; methods are called on any thread unless they say else.

    A slot is a thread of the worker's pool that runs one task. `spawn` runs a function on such a
    thread. A slot that has claimed a task wakes the next slot, so one hint fills the process. Slots
    bound the tasks that overlap; lanes bound the load on a backend.
    """

    def __init__(self, spawn: Callable[[Callable[[], None]], object]) -> None:
        self._spawn = spawn
        self._slots = threading.BoundedSemaphore(settings().worker_slots)
        # One slot claims at a time, so that each claim knows the free capacity.
        self._claiming = threading.Lock()
        # A slot holds a suspect, whose lines may kill this process. Nothing else is claimed until
        # the suspect has ended.
        self._has_suspect = False
        # A process that dies soon after its start dies of other causes than a suspect.
        self._takes_suspects_from = time.monotonic() + settings().lease / 2
        self._run_over = threading.Event()
        self._buffers = Buffers(int(settings().worker_bytes * ANSWERS_SHARE))
        self._live_first = LiveFirst(lambda: self._workers)
        self._lanes = Lanes(self._lane, self._stop_runs, self._buffers)
        self._most_request_bytes = int(settings().worker_bytes * REQUESTS_SHARE)
        self._runs: set[TaskRun] = set()
        self._idle_until = 0.0
        # As `_idle_until`, after a claim that took the last pending task.
        self._none_left_until = 0.0
        self._workers = 1
        # The reason why this process claims nothing, and since when; and for each lane whose
        # backend cannot be made, since when.
        self._held: tuple[workers.WorkerWaitReason, float] | None = None
        self._unusable: dict[claims.LaneKey, float] = {}
        # The limits per minute of each lane that has some, and since when its lines wait for them.
        self._rates: dict[claims.LaneKey, Rates] = {}
        self._limited: dict[claims.LaneKey, float] = {}
        self._stop_at: float | None = None
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="backends", daemon=True)
        self._thread.start()

    @property
    def lanes(self) -> Lanes:
        return self._lanes

    @property
    def is_stopping(self) -> bool:
        return self._stop_at is not None

    def wake(self) -> None:
        """Let a free slot look for work. Never blocks."""
        if not self.is_stopping:
            self._spawn(self.drain)

    def drain(self) -> None:
        """Be a slot: claim and run tasks until no further claim is worth it."""
        if not self._slots.acquire(blocking=False):
            # There is new work: the next slot that is free looks for it.
            self._none_left_until = 0.0
            return
        try:
            while not self.is_stopping and self._run_next() and self._may_claim:
                pass
        except db.UNAVAILABLE as error:
            # The poll finds the task again; a claimed one after its lease has ended.
            logger.warning(db.trouble(error), during="claim")
        except Exception as error:
            # A bug of ours. The task is claimable again when its lease ends. If that repeats,
            # poison detection runs its lines alone.
            logger.error("slot.crashed", **log.cause(error))
        finally:
            self._slots.release()

    def share(self, alive: int) -> None:
        """Divide each backend's limit by `alive`, the number of live worker processes."""
        if alive != self._workers:
            self._workers = alive
            self._loop.call_soon_threadsafe(self._share)

    def follow_catalog(self) -> None:
        """Let the lanes follow a change of the catalog; called on every poll."""
        self._loop.call_soon_threadsafe(self._lanes.follow, catalog.models())

    def _share(self) -> None:  # event loop thread
        for lane in self._lanes.values():
            lane.share(self._workers, lane.most)

    def _stop_runs(self, lane: Lane) -> None:  # event loop thread
        for run in list(self._runs):
            if run.lane is lane:
                run.stop()

    def waits(self) -> list[workers.WorkerWait]:
        """The reasons why work waits in this process, for its row in the database."""
        now, found = time.monotonic(), []
        held = self._held
        if held is not None:
            found.append(workers.WorkerWait(held[0], now - held[1]))
        for (model, livemode), since in list(self._unusable.items()):
            found.append(
                workers.WorkerWait(
                    workers.WorkerWaitReason.BACKEND,
                    now - since,
                    "The catalog's entry cannot be used.",
                    model,
                    livemode,
                )
            )
        for (model, livemode), lane in self._lanes.items():
            silence = lane.silence.report
            if silence is not None:
                found.append(
                    workers.WorkerWait(
                        workers.WorkerWaitReason.BACKEND,
                        silence.seconds,
                        silence.reason,
                        model,
                        livemode,
                    )
                )
        for (model, livemode), since in self._limits_reached(now).items():
            reason = workers.WorkerWaitReason.RATE_LIMIT
            found.append(workers.WorkerWait(reason, now - since, "", model, livemode))
        return found

    def _limits_reached(self, now: float) -> dict[claims.LaneKey, float]:
        """The lanes whose lines wait for a limit per minute, and since when."""
        waiting = [key for key, rates in list(self._rates.items()) if rates.wait > 0]
        self._limited = {key: self._limited.get(key, now) for key in waiting}
        return {key: since for key, since in self._limited.items() if now - since > LIMITED_AFTER}

    def _is_held(self) -> bool:
        """Whether this process may claim nothing: a disk is short or the store unavailable."""
        reason = None
        if disk.Store.DATABASE in disk.short():
            reason = workers.WorkerWaitReason.DISK
        elif not marks.is_here():
            reason = workers.WorkerWaitReason.STORAGE
        if reason is None or self._held is None or self._held[0] is not reason:
            self._held = None if reason is None else (reason, time.monotonic())
        return reason is not None

    def stop(self) -> None:
        """Claim nothing more and start no further line.

        Requests in flight have `shutdown_grace` seconds from now on to finish.
        """
        self._stop_at = time.monotonic() + settings().shutdown_grace
        for run in list(self._runs):
            self._loop.call_soon_threadsafe(run.stop)

    def close(self) -> None:
        """Close the connections and end the event loop, after all slots have ended."""
        self._on_loop(self._close_all()).result(timeout=5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    async def _close_all(self) -> None:  # event loop thread
        await self._live_first.close()
        await self._lanes.close()

    def _run_next(self) -> bool:
        """Claim one task and run it to its end. False: there was none to claim."""
        try:
            claim, run = self._claim()
            if claim is None:
                self._idle_until = time.monotonic() + IDLE_PAUSE
                return False
            if run is None:
                self._run_suspect(claim)
            else:
                self._follow(run)
            return True
        except _Unusable:
            return True
        except claims.Unreadable:
            # The next task may be of another file.
            return True

    def _claim(self) -> tuple[Claim | None, TaskRun | None]:
        """Take the next task and start its lines, unless it is a suspect (None for its run).

        Raises claims.Unreadable and _Unusable for a task that was returned.
        """
        with self._claiming:
            # While a disk is nearly full, the space left is for recording what runs. Without the
            # store no lines can be read here, and another worker may have it.
            if self._has_suspect or not self._has_memory or self._is_held():
                return None, None
            claim = claims.claim(
                self._capacities(), with_suspects=time.monotonic() >= self._takes_suspects_from
            )
            if claim is None:
                return None, None
            if claim.is_suspect:
                self._has_suspect = True
                return claim, None
            run = self._started(claim)
        if claim.has_more and self._has_capacity:
            self.wake()
        else:
            self._idle_until = time.monotonic() + IDLE_PAUSE
            if not claim.has_more:
                self._none_left_until = self._idle_until
        return claim, run

    def _run_suspect(self, claim: Claim) -> None:
        """Run a suspect with nothing else in flight here.

        If this process crashes, the suspect alone can be the cause.
        """
        try:
            if self._wait_until_alone(claim):
                self._follow(self._started(claim))
        finally:
            self._has_suspect = False
            self._idle_until = 0.0

    def _wait_until_alone(self, claim: Claim) -> bool:
        """Wait until nothing else runs here, and count a crash before it can happen.

        False: the suspect is not to be run, as its lease or its batch has ended.
        """
        while True:
            self._run_over.clear()
            crash = int(not self._runs)
            recorded = record.record(claim.key, claim.fence, [], crashes=crash)
            if recorded.is_stale:
                return False
            if not recorded.goes_on:
                record.record(claim.key, claim.fence, [], to=TaskState.PENDING, crashes=-crash)
                return False
            if crash:
                return True
            self._run_over.wait(heartbeat())

    def _started(self, claim: Claim) -> TaskRun:
        """Start the lines of a claimed task. Raises _Unusable."""
        try:
            return self._on_loop(self._start(claim)).result()
        except Exception as error:
            # No line was sent, so a crash that was counted in advance is taken back.
            if not isinstance(error, _NotInCatalog):
                self._unusable.setdefault(claim.lane_key, time.monotonic())
                logger.error(
                    "backend.unusable",
                    batch_id=claim.batch_id,
                    model=claim.model,
                    **log.cause(error),
                )
            record.record(
                claim.key,
                claim.fence,
                [],
                to=TaskState.PENDING,
                pause=UNUSABLE_PAUSE,
                crashes=-int(claim.is_suspect),
            )
            raise _Unusable from error

    async def _start(self, claim: Claim) -> TaskRun:  # event loop thread
        model, is_live = catalog.models().get(claim.model), claim.lane_key[1]
        if model is None:
            logger.error(
                "model.missing",
                batch_id=claim.batch_id,
                model=claim.model,
                catalog=catalog.source(),
            )
            raise _NotInCatalog
        kind = model.kind_in(is_live)
        if kind != claim.backend:
            logger.error(
                "backend.changed",
                batch_id=claim.batch_id,
                model=model.id,
                created_with=claim.backend,
                catalog_has=kind,
            )
            raise _NotInCatalog
        lane = self._lanes.find(claim.lane_key, model)
        self._unusable.pop(claim.lane_key, None)
        run = TaskRun(claim, lane)
        self._runs.add(run)
        # `stop` sees the run from here on; a stop before this line is seen here.
        run.is_stopped = self.is_stopping
        run.start()
        return run

    def _lane(self, model: Model, is_live: bool) -> Lane:  # event loop thread
        config, rates = model.backend, None
        self._rates.pop((model.id, is_live), None)
        # Limits per minute are those of a hosted backend; the simulation has none.
        if is_live and (config.requests_per_minute or config.tokens_per_minute):
            rates = Rates(
                model.id,
                requests_per_minute=config.requests_per_minute,
                tokens_per_minute=config.tokens_per_minute,
                workers=lambda: self._workers,
            )
            self._rates[model.id, is_live] = rates
        buffer = self._buffers.add()
        lane = Lane(
            registry.backend_for(model, is_live, buffer),
            config.max_in_flight,
            model.id,
            workers=self._workers,
            rates=rates,
            buffer=buffer,
            latency=model.latency_ms / 1000 or None,
            most_inputs=config.max_inputs if EMBEDDINGS in model.endpoints else 1,
            on_capacity=self.wake,
        )
        if model.kind_in(is_live) != "simulated":
            name = name_of(model.id, livemode=is_live)
            self._live_first.keep(name, lane, config.max_in_flight, config.live_reserve)
        return lane

    def _follow(self, run: TaskRun) -> None:
        """Record a run's outcomes until it is over."""
        try:
            Slot(run, self._loop.call_soon_threadsafe, seconds_left=self._seconds_left).follow(
                self._wake_if_capacity
            )
        finally:
            self._loop.call_soon_threadsafe(run.leave)
            self._runs.discard(run)
            self._run_over.set()

    def _capacities(self) -> list[FreeCapacity]:
        """Bounds on the next claim: by lane and account, held batch, and slots of an account."""
        found = []
        for (model, livemode), lane in self._lanes.items():
            for account, lines in lane.free_by_account().items():
                found.append(FreeCapacity(lines, model, livemode, _uuid("acct", account)))
            admission = lane.circuit.admission
            if admission is not None:
                for account, batch in admission.excluded:
                    found.append(
                        FreeCapacity(
                            0, model, livemode, _uuid("acct", account), _uuid("batch", batch)
                        )
                    )
        slots = Counter(run.source.account_id for run in list(self._runs))
        for account, taken in slots.items():
            others = slots.total() - taken
            if taken >= max(1, int(SLOT_SHARE * (settings().worker_slots - others))):
                found.append(FreeCapacity(0, account_id=_uuid("acct", account)))
        return found

    @property
    def _has_capacity(self) -> bool:
        return any(lane.free_capacity for lane in self._lanes.values())

    @property
    def _may_claim(self) -> bool:
        """Whether another claim is worth its cost."""
        now = time.monotonic()
        return now >= self._none_left_until and (self._has_capacity or now >= self._idle_until)

    @property
    def _has_memory(self) -> bool:
        return sum(run.request_bytes for run in list(self._runs)) < self._most_request_bytes

    def _wake_if_capacity(self) -> None:
        if time.monotonic() >= self._idle_until and self._has_memory and self._has_capacity:
            self.wake()

    def _seconds_left(self) -> float | None:
        return None if self._stop_at is None else self._stop_at - time.monotonic()

    def _on_loop(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


def _uuid(kind: ids.Kind, public_id: str | None) -> UUID | None:
    return None if public_id is None else ids.parse(kind, public_id)
