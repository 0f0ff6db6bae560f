"""The worker process: a Celery worker on a pool of threads, with a poll beside it.

The broker only makes work start sooner. With Redis gone, the poll finds the same work in the
database, so a batch goes on and ends without it.
"""

import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any
from uuid import UUID

from celery import bootsteps, signals
from celery.apps.worker import Worker
from celery.exceptions import SecurityWarning
from celery.worker.components import Pool

from xalen_batch import broker, catalog, db, disk, ids, log, memory, storage
from xalen_batch.broker import Job, Message
from xalen_batch.config import settings
from xalen_batch.models import workers
from xalen_batch.models.workers import Wait
from xalen_batch.pipeline import recover
from xalen_batch.standalone import stores
from xalen_batch.worker import consumer, tasks
from xalen_batch.worker.engine import Engine

logger = log.get(__name__)

# Threads beside the slots, so that validating and finalizing never wait for a task to end.
SPARE_THREADS = 4
# Seconds that the first look at the storage folder gets to answer.
FIRST_LOOK = 0.5


class Poll:
    """Looks into the database for due work, and runs it on the worker's own pool. `spawn` tells
    whether the pool took it.

    Each look also notes that this process is alive, and what its work waits for (`waits`); `share`
    is told how many are alive.
    """

    def __init__(
        self,
        jobs: dict[Job, Callable[..., Any]],
        spawn: Callable[..., bool],
        share: Callable[[int], None],
        waits: Callable[[], Sequence[Wait]],
    ) -> None:
        self._jobs = jobs
        self._spawn = spawn
        self._share = share
        self._waits = waits
        self._worker_id = f"{socket.gethostname()}:{os.getpid()}:{ids.new().hex}"
        # What waits for a thread is due at every look; it waits there once.
        self._waiting: set[Message] = set()
        self._sight = Sight()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="poll", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        next_tick = time.monotonic() + settings().tick_interval
        while not self._stopped.is_set():
            try:
                self._look()
                if time.monotonic() >= next_tick:
                    next_tick = time.monotonic() + settings().tick_interval
                    self.name(Message(Job.TICK))
            except db.UNAVAILABLE as error:
                logger.warning("poll.failed", error=type(error).__name__, reason=db.trouble(error))
            except Exception as error:
                logger.error("poll.crashed", **log.cause(error))
            self._stopped.wait(settings().poll_interval)
        with suppress(*db.UNAVAILABLE), db.transaction() as session:
            workers.gone(session, self._worker_id)

    def _look(self) -> None:
        with db.transaction() as session:
            alive = workers.seen(
                session,
                self._worker_id,
                store=self._sight.mark,
                catalog=catalog.fingerprint(),
                waits=self._waits(),
            )
        self._share(alive)
        for message in recover.due():
            self.name(message)
        if (alive_file := settings().health_file) is not None:
            alive_file.touch()

    def name(self, message: Message) -> bool:
        """Run a message here as soon as a thread is free.

        False: there are none, before the start or after the end.
        """
        if message not in self._waiting:
            self._waiting.add(message)
            if not self._spawn(self._begin, message):
                self._waiting.discard(message)
                return False
        return True

    def _begin(self, message: Message) -> None:
        self._waiting.discard(message)
        self._jobs[message.job](*message.args)


class Sight:
    """The mark that this process sees in its storage folder.

    A disk that hangs holds up one thread, and never the poll.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sight")
        self._look: Future[tuple[UUID | None, bool]] | None = None

    @property
    def mark(self) -> UUID | None:
        """What was seen since this was asked before; None: no mark, or no answer yet."""
        look = self._look
        if look is not None and not look.done():
            return None
        self._look = self._thread.submit(storage.look, None)
        if look is None:
            wait([self._look], timeout=FIRST_LOOK)
            look = self._look
        return None if not look.done() or look.exception() else look.result()[0]


class StopEngine(bootsteps.StartStopStep):  # type: ignore[misc]
    """Stops the engine before Celery waits for its pool, also when Celery gives up by itself."""

    requires = (Pool,)

    def stop(self, worker: Worker) -> None:
        worker.stop_engine()


def run_worker() -> None:
    """Run a worker in the foreground until SIGTERM or SIGINT; then let requests in flight finish."""
    memory.settle()
    log.configure()
    catalog.warn_of_unknown_settings()
    disk.watch_database(stores.database_folder)
    # Celery warns of root because of pickle; only JSON is accepted here, and ids are all it
    # carries.
    warnings.simplefilter("ignore", SecurityWarning)
    consumer.install()
    app = broker.celery()
    app.steps["worker"].add(StopEngine)
    worker: Worker = app.Worker(
        pool="threads",
        consumer_cls=consumer.PatientConsumer,
        concurrency=settings().worker_slots + SPARE_THREADS,
        hostname=f"worker-{os.getpid()}@{socket.gethostname()}",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel=settings().log_level.upper(),
        quiet=True,
    )

    def spawn(function: Callable[..., object], *args: object) -> bool:
        try:
            worker.pool.apply_async(function, args)
        except (AttributeError, RuntimeError):
            # There is no pool yet at the very start, and it takes nothing more at the very end.
            return False
        return True

    engine = Engine(spawn)
    poll = Poll(tasks.register(app, engine), spawn, engine.share, engine.waits)
    broker.keep(poll.name)

    def stop(*_: Any, **__: Any) -> None:
        poll.stop()
        engine.stop()

    signals.worker_shutting_down.connect(stop)
    worker.stop_engine = stop
    # Ctrl-C stops a worker as gently as SIGTERM does.
    signals.worker_ready.connect(
        lambda **_: signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM)), weak=False
    )
    poll.start()
    worker.start()
    engine.close()
    raise SystemExit(worker.exitcode)


def run_beat() -> None:
    """Send the tick every few seconds, in the foreground. Any number of beats may run, or none."""
    log.configure()
    catalog.warn_of_unknown_settings()
    app = broker.celery()
    # The one entry never changes, so what beat would remember between starts is not worth a file.
    app.Beat(
        scheduler_cls="celery.beat:Scheduler", loglevel=settings().log_level.upper(), quiet=True
    ).run()
