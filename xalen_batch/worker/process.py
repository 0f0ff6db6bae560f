"""The worker process: a Celery worker on a pool of threads, and a thread that polls the database.

Messages of the broker only make work start sooner. Without Redis, the poll finds the same work in
the database.
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
from xalen_batch.billing.charges import COMPONENTS
from xalen_batch.broker import Job, Message
from xalen_batch.config import settings
from xalen_batch.metrics import server
from xalen_batch.models import workers
from xalen_batch.models.workers import WorkerWait
from xalen_batch.pipeline import recover
from xalen_batch.standalone import stores
from xalen_batch.webhooks.sender import Sender
from xalen_batch.worker import consumer, lane_metrics, tasks
from xalen_batch.worker.engine import Engine

logger = log.get(__name__)

# Threads beyond the slots, so that validating and finalizing never wait for a task to end.
SPARE_THREADS = 4
# Seconds that the first read of the storage mark may take.
FIRST_MARK_TIMEOUT = 0.5


class Poll:
    """Polls the database for due work on a thread of its own, and runs it on the worker's pool.

    Each poll also writes this worker's row: it is alive, and what its work waits for (`waits`).
    `share` gets the number of live workers. `spawn` returns whether the pool took the function.
    """

    def __init__(
        self,
        jobs: dict[Job, Callable[..., Any]],
        spawn: Callable[..., bool],
        share: Callable[[int], None],
        waits: Callable[[], Sequence[WorkerWait]],
    ) -> None:
        self._jobs = jobs
        self._spawn = spawn
        self._share = share
        self._waits = waits
        self._worker_id = f"{socket.gethostname()}:{os.getpid()}:{ids.new().hex}"
        # Messages that wait for a thread. Each poll finds their work again; they wait once.
        self._waiting: set[Message] = set()
        self._storage_mark = StorageMark()
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
                self._poll_once()
                if time.monotonic() >= next_tick:
                    next_tick = time.monotonic() + settings().tick_interval
                    self.enqueue(Message(Job.TICK))
            except db.UNAVAILABLE as error:
                logger.warning("poll.failed", error=type(error).__name__, reason=db.trouble(error))
            except Exception as error:
                logger.error("poll.crashed", **log.cause(error))
            self._stopped.wait(settings().poll_interval)
        with suppress(*db.UNAVAILABLE), db.transaction() as session:
            workers.gone(session, self._worker_id)

    def _poll_once(self) -> None:
        with db.transaction() as session:
            alive = workers.seen(
                session,
                self._worker_id,
                store=self._storage_mark.mark,
                catalog=catalog.fingerprint(),
                components=COMPONENTS,
                waits=self._waits(),
            )
        self._share(alive)
        # The sender looks for due deliveries by itself, in one statement if there are none.
        for message in (*recover.due(), Message(Job.DELIVER)):
            self.enqueue(message)
        health_file = settings().health_file
        if health_file is not None:
            health_file.touch()

    def enqueue(self, message: Message) -> bool:
        """Run a message here as soon as a thread is free; any thread.

        False: the pool takes none, before its start or after its end.
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


class StorageMark:
    """Reads the mark of the storage folder; for the poll's thread.

    A disk that hangs blocks one thread of its own, not the poll.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sight")
        self._reading: Future[tuple[UUID | None, bool]] | None = None

    @property
    def mark(self) -> UUID | None:
        """The mark as read since the last call; None: no mark, or no answer yet."""
        reading = self._reading
        if reading is not None and not reading.done():
            return None
        self._reading = self._thread.submit(storage.look, None)
        if reading is None:
            wait([self._reading], timeout=FIRST_MARK_TIMEOUT)
            reading = self._reading
        if not reading.done() or reading.exception():
            return None
        return reading.result()[0]


class StopEngine(bootsteps.StartStopStep):  # type: ignore[misc]
    """Stops the engine before Celery waits for its pool, also if Celery stops by itself."""

    requires = (Pool,)

    def stop(self, worker: Worker) -> None:
        worker.stop_engine()


def run_worker() -> None:
    """Run a worker on the main thread until SIGTERM or SIGINT; requests in flight may finish."""
    memory.settle()
    log.configure()
    catalog.warn_of_unknown_settings()
    disk.watch_database(stores.database_folder)
    # Celery warns against root because of pickle. Messages here are JSON, and carry only ids.
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
            # The pool does not exist yet, or has ended.
            return False
        return True

    engine, sender = Engine(spawn), Sender()
    lane_metrics.install(engine.lanes.items)
    server.start()

    def seen(alive: int) -> None:
        engine.share(alive)
        engine.follow_catalog()

    poll = Poll(tasks.register(app, engine, sender), spawn, seen, engine.waits)
    broker.keep(poll.enqueue)

    def stop(*_: Any, **__: Any) -> None:
        poll.stop()
        engine.stop()
        sender.stop()

    signals.worker_shutting_down.connect(stop)
    worker.stop_engine = stop
    # SIGINT (Ctrl-C) stops a worker as SIGTERM does.
    signals.worker_ready.connect(
        lambda **_: signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM)), weak=False
    )
    poll.start()
    worker.start()
    sender.close(settings().shutdown_grace)
    engine.close()
    raise SystemExit(worker.exitcode)


def run_beat() -> None:
    """Send the tick every few seconds, on the main thread. Any number of beats may run, or none."""
    memory.settle()
    log.configure()
    catalog.warn_of_unknown_settings()
    app = broker.celery()
    # Beat's only entry never changes, so it needs no file of state between starts.
    app.Beat(
        scheduler_cls="celery.beat:Scheduler", loglevel=settings().log_level.upper(), quiet=True
    ).run()
