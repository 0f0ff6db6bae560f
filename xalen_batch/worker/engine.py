"""The engine of one worker process: an event loop, a lane per backend, and the slots that feed
them.
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
from xalen_batch.models import workers
from xalen_batch.models.next_task import FreeCapacity
from xalen_batch.pipeline import claim as claims
from xalen_batch.pipeline import record
from xalen_batch.pipeline.claim import Claim
from xalen_batch.ratelimit.backend import Rates
from xalen_batch.states import TaskState
from xalen_batch.storage import marks
from xalen_batch.worker.execute import Run, Slot, heartbeat
from xalen_batch.worker.lane import Lane

logger = log.get(__name__)
T = TypeVar("T")

# After a claim that found nothing, or filled all lanes, a slot does not look for more by itself for
# this long; hints and polls do.
QUIET = 0.25
# Of the bytes that a process may hold: a half is for answers; a quarter for requests, since a
# backend may need them in another form, which is in memory beside the first while a request is in
# flight.
ANSWERS_SHARE, REQUESTS_SHARE = 1 / 2, 1 / 4
# Of the slots that other accounts leave, an account gets this share: one account never takes the
# last slot.
SLOT_SHARE = 3 / 4
# How long a task is left alone whose backend cannot be made here.
UNUSABLE_PAUSE = 15.0


class _NotInCatalog(Exception):
    """The catalog lacks the model, or has another kind of backend for it than the batch was created
    with. It is logged already.
    """


class _Unusable(Exception):
    """The backend of the claimed task cannot be made here, and the task was handed back."""


class Engine:
    """`spawn` runs a function on another thread of the worker's pool; `slots` bounds the tasks that
    overlap.

    A slot that claimed a task wakes the next, so one hint fills the process. Lanes, not slots,
    bound the load on a backend.
    """

    def __init__(self, spawn: Callable[[Callable[[], None]], object]) -> None:
        self._spawn = spawn
        self._slots = threading.BoundedSemaphore(settings().worker_slots)
        # One slot claims at a time: the next knows what room is left.
        self._claiming = threading.Lock()
        # A slot has a suspect, whose lines may kill this process: until it is over, nothing else is
        # claimed.
        self._is_trying = False
        # A process that dies young for reasons of its own must not do so with a suspect.
        self._may_try_from = time.monotonic() + settings().lease / 2
        self._run_over = threading.Event()
        self._lanes: dict[claims.Lane, Lane] = {}
        self._buffers = Buffers(int(settings().worker_bytes * ANSWERS_SHARE))
        self._most_requests = int(settings().worker_bytes * REQUESTS_SHARE)
        self._runs: set[Run] = set()
        self._quiet_until = 0.0
        self._workers = 1
        # Why nothing is claimed at all, and since when; and since when no backend can be made for a
        # model.
        self._held: tuple[workers.Reason, float] | None = None
        self._unusable: dict[claims.Lane, float] = {}
        self._stop_at: float | None = None
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="backends", daemon=True)
        self._thread.start()

    @property
    def is_stopping(self) -> bool:
        return self._stop_at is not None

    def wake(self) -> None:
        """There may be work: let a free slot look for it. Never blocks."""
        if not self.is_stopping:
            self._spawn(self.drain)

    def drain(self) -> None:
        """One slot's life: claim and run tasks until there is nothing to claim here."""
        if not self._slots.acquire(blocking=False):
            return
        try:
            while not self.is_stopping and self._run_next() and self._may_find:
                pass
        except db.UNAVAILABLE as error:
            # The poll comes back to it; a task that was claimed returns when its lease ends.
            logger.warning(db.trouble(error), during="claim")
        except Exception as error:
            # A bug of ours: the task comes back when its lease ends, and its lines are tried alone
            # in the end.
            logger.error("slot.crashed", **log.cause(error))
        finally:
            self._slots.release()

    def share(self, alive: int) -> None:
        """Give each lane its share of what its backend may get, for this number of live worker
        processes, this one included.
        """
        if alive != self._workers:
            self._workers = alive
            self._loop.call_soon_threadsafe(self._share)

    def _share(self) -> None:
        for lane in self._lanes.values():
            lane.share(self._workers)

    def waits(self) -> list[workers.Wait]:
        """What work waits for in this process, as its row tells it to others."""
        now, found = time.monotonic(), []
        if (held := self._held) is not None:
            found.append(workers.Wait(held[0], now - held[1]))
        for (model, livemode), since in list(self._unusable.items()):
            found.append(
                workers.Wait(
                    workers.Reason.BACKEND,
                    now - since,
                    "The catalog's entry cannot be used.",
                    model,
                    livemode,
                )
            )
        for (model, livemode), lane in list(self._lanes.items()):
            if (silence := lane.silence.told) is not None:
                found.append(
                    workers.Wait(
                        workers.Reason.BACKEND, silence.seconds, silence.reason, model, livemode
                    )
                )
        return found

    def _is_held(self) -> bool:
        """Whether this process may claim nothing, as a disk is short or the store is away."""
        reason = None
        if disk.Store.DATABASE in disk.short():
            reason = workers.Reason.DISK
        elif not marks.is_here():
            reason = workers.Reason.STORAGE
        if reason is None or self._held is None or self._held[0] is not reason:
            self._held = None if reason is None else (reason, time.monotonic())
        return reason is not None

    def stop(self) -> None:
        """Claim nothing more, start no line; requests in flight have the settings' grace from now
        on.
        """
        self._stop_at = time.monotonic() + settings().shutdown_grace
        for run in list(self._runs):
            self._loop.call_soon_threadsafe(run.stop)

    def close(self) -> None:
        """Release the connections and end the loop, after all slots have left."""
        self._on_loop(self._close_all()).result(timeout=5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    async def _close_all(self) -> None:
        for lane in self._lanes.values():
            await lane.close()
        await registry.close_all()

    def _run_next(self) -> bool:
        try:
            claim, run = self._claim()
            if claim is None:
                self._quiet_until = time.monotonic() + QUIET
                return False
            if run is None:
                self._try(claim)
            else:
                self._follow(run)
            return True
        except _Unusable:
            return True
        except claims.Unreadable:
            # The next task may be of another file.
            return True

    def _claim(self) -> tuple[Claim | None, Run | None]:
        """Take the next task, and start its lines, but not those of a suspect.

        Raises claims.Unreadable and _Unusable for a task that was handed back.
        """
        with self._claiming:
            # While a disk is short what runs has room to be recorded; the poll asks again. Without
            # the store there are no lines to read, and a claimed task would wait here that another
            # worker can run.
            if self._is_trying or not self._has_memory or self._is_held():
                return None, None
            claim = claims.claim(
                self._rooms(), with_suspects=time.monotonic() >= self._may_try_from
            )
            if claim is None:
                return None, None
            if claim.is_suspect:
                self._is_trying = True
                return claim, None
            run = self._started(claim)
        if self._has_room:
            self.wake()
        else:
            self._quiet_until = time.monotonic() + QUIET
        return claim, run

    def _try(self, claim: Claim) -> None:
        """Run a suspect with nothing else in flight here, so that it is to blame if this process is
        lost, and no neighbour is.
        """
        try:
            if self._is_alone(claim):
                self._follow(self._started(claim))
        finally:
            self._is_trying = False
            self._quiet_until = 0.0

    def _is_alone(self, claim: Claim) -> bool:
        """Wait until nothing else runs here, and note the loss of this process before it can
        happen. False: it is not to be run any more.
        """
        while True:
            self._run_over.clear()
            blame = int(not self._runs)
            recorded = record.record(claim.key, claim.fence, [], crashes=blame)
            if recorded.is_stale:
                return False
            if not recorded.goes_on:
                record.record(claim.key, claim.fence, [], to=TaskState.PENDING, crashes=-blame)
                return False
            if blame:
                return True
            self._run_over.wait(heartbeat())

    def _started(self, claim: Claim) -> Run:
        """A run whose lines are on their way. Raises _Unusable."""
        try:
            return self._on_loop(self._start(claim)).result()
        except Exception as error:
            # No line was sent, so none is to blame.
            if not isinstance(error, _NotInCatalog):
                self._unusable.setdefault(claim.lane, time.monotonic())
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

    async def _start(self, claim: Claim) -> Run:
        model, is_live = catalog.models().get(claim.model), claim.lane[1]
        if model is None:
            logger.error(
                "model.missing",
                batch_id=claim.batch_id,
                model=claim.model,
                catalog=catalog.source(),
            )
            raise _NotInCatalog
        if (kind := model.kind_in(is_live)) != claim.backend:
            logger.error(
                "backend.changed",
                batch_id=claim.batch_id,
                model=model.id,
                created_with=claim.backend,
                catalog_has=kind,
            )
            raise _NotInCatalog
        lane = self._lanes.get(claim.lane)
        if lane is None:
            lane = self._lanes[claim.lane] = self._lane(model, is_live=is_live)
        self._unusable.pop(claim.lane, None)
        run = Run(claim, lane)
        self._runs.add(run)
        # A stop from here on finds it there.
        run.is_stopped = self.is_stopping
        run.start()
        return run

    def _lane(self, model: Model, *, is_live: bool) -> Lane:
        config, rates = model.backend, None
        # What runs in this process has no limits that others set.
        if is_live and (config.requests_per_minute or config.tokens_per_minute):
            rates = Rates(
                model.id,
                requests_per_minute=config.requests_per_minute,
                tokens_per_minute=config.tokens_per_minute,
                workers=lambda: self._workers,
            )
        buffer = self._buffers.add()
        return Lane(
            registry.backend_for(model, is_live, buffer),
            config.max_in_flight,
            model.id,
            workers=self._workers,
            rates=rates,
            buffer=buffer,
            latency=model.latency_ms / 1000 or None,
            on_room=self.wake,
        )

    def _follow(self, run: Run) -> None:
        try:
            Slot(run, self._loop.call_soon_threadsafe, seconds_left=self._seconds_left).follow(
                self._wake_if_room
            )
        finally:
            self._loop.call_soon_threadsafe(run.leave)
            self._runs.discard(run)
            self._run_over.set()

    def _rooms(self) -> list[FreeCapacity]:
        """What the claim has to fit: the room of each lane, of each account in it, and of each
        account in the slots.
        """
        found = []
        for (model, livemode), lane in list(self._lanes.items()):
            found += [
                FreeCapacity(lines, model, livemode, _uuid("acct", account))
                for account, lines in lane.rooms().items()
            ]
            if (opening := lane.circuit.opening) is not None:
                found += [
                    FreeCapacity(0, model, livemode, _uuid("acct", account), _uuid("batch", batch))
                    for account, batch in opening.passed_over
                ]
        slots = Counter(run.source.account_id for run in list(self._runs))
        for account, taken in slots.items():
            others = slots.total() - taken
            if taken >= max(1, int(SLOT_SHARE * (settings().worker_slots - others))):
                found.append(FreeCapacity(0, account_id=_uuid("acct", account)))
        return found

    @property
    def _has_room(self) -> bool:
        return any(lane.room for lane in list(self._lanes.values()))

    @property
    def _may_find(self) -> bool:
        """Whether another claim is worth its cost: a lane has room, or nobody has looked of late."""
        return self._has_room or time.monotonic() >= self._quiet_until

    @property
    def _has_memory(self) -> bool:
        return sum(run.waiting for run in list(self._runs)) < self._most_requests

    def _wake_if_room(self) -> None:
        if time.monotonic() >= self._quiet_until and self._has_memory and self._has_room:
            self.wake()

    def _seconds_left(self) -> float | None:
        return None if self._stop_at is None else self._stop_at - time.monotonic()

    def _on_loop(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


def _uuid(kind: ids.Kind, public_id: str | None) -> UUID | None:
    return None if public_id is None else ids.parse(kind, public_id)
