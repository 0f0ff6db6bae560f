"""The Celery task of each background job.

A message is a hint. Each job finds its work in the database, and does nothing if another process
has done it, so a message may arrive late, twice or never.
"""

import threading
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any
from uuid import UUID

from celery import Celery

from xalen_batch import db, log, storage
from xalen_batch.broker import Job
from xalen_batch.pipeline import finalize, recover, seal, validate
from xalen_batch.schedules import fire
from xalen_batch.webhooks.sender import Sender
from xalen_batch.worker.engine import Engine
from xalen_batch.worker.turns import Turns

logger = log.get(__name__)

# Batches that one process validates at a time: one reads its file while the other waits for the
# database. Each holds what is known of up to 50,000 lines in memory.
VALIDATIONS = 2
# Threads of one process that fire schedules: if a folder blocks one, another fires the schedules of
# other accounts.
FIRINGS = 2


def reported(body: Callable[..., None]) -> Callable[..., None]:
    """A job that logs errors instead of raising them: the sweep finds its work again."""

    @wraps(body)
    def run(*args: Any) -> None:
        try:
            body(*args)
        except db.UNAVAILABLE as error:
            logger.warning(
                "job.postponed",
                job=body.__name__,
                **_about(args),
                error=type(error).__name__,
                reason=db.trouble(error),
            )
        except storage.UNAVAILABLE as error:
            logger.warning(
                "job.postponed",
                job=body.__name__,
                **_about(args),
                error=type(error).__name__,
                reason="storage.unreachable",
            )
        except Exception as error:
            logger.error("job.crashed", job=body.__name__, **_about(args), **log.cause(error))

    return run


def _about(args: Sequence[Any]) -> dict[str, Any]:
    """The batch's id among a message's arguments, for the log; other arguments are not logged."""
    try:
        return {"batch_id": UUID(hex=args[0])} if args else {}
    except (ValueError, TypeError, AttributeError):
        return {"batch_id": None}


def register(app: Celery, engine: Engine, sender: Sender) -> dict[Job, Callable[..., Any]]:
    """Register each job as a Celery task of its name, and no other task.

    Returns the tasks by job, for calls without the broker. Tasks run on threads of the worker's
    pool. They are not shared: Celery adds shared tasks to every later app of the process, and these
    hold this engine.
    """
    firings = threading.BoundedSemaphore(FIRINGS)

    @reported
    def validate_next(batch_id: str) -> None:
        validate.run(UUID(hex=batch_id))

    validations = Turns(validate_next, VALIDATIONS)

    @app.task(name=Job.VALIDATE.value, shared=False)
    def validate_batch(batch_id: str) -> None:
        validations.take(batch_id)

    @app.task(name=Job.EXECUTE.value, shared=False)
    @reported
    def execute(hint: str | None = None) -> None:
        engine.drain()

    @app.task(name=Job.FINALIZE.value, shared=False)
    @reported
    def finalize_batch(batch_id: str) -> None:
        finalize.run(UUID(hex=batch_id))

    # One thread seals, since it takes time from the lines that run.
    sealing = threading.Lock()

    @app.task(name=Job.SEAL.value, shared=False)
    @reported
    def seal_batches() -> None:
        if sealing.acquire(blocking=False):
            try:
                seal.run()
            finally:
                sealing.release()

    @app.task(name=Job.FIRE.value, shared=False)
    @reported
    def fire_schedules() -> None:
        # Every poll enqueues this job while schedules are due.
        if firings.acquire(blocking=False):
            try:
                fire.run()
            finally:
                firings.release()

    @app.task(name=Job.DELIVER.value, shared=False)
    @reported
    def deliver_webhooks() -> None:
        sender.wake()

    @app.task(name=Job.TICK.value, shared=False)
    @reported
    def tick() -> None:
        recover.tick()

    # Celery's own tasks, such as celery.starmap, run any task that a message names.
    for name in app.tasks.keys() - set(Job):
        app.tasks.unregister(name)
    return {
        Job.VALIDATE: validate_batch,
        Job.EXECUTE: execute,
        Job.FINALIZE: finalize_batch,
        Job.SEAL: seal_batches,
        Job.FIRE: fire_schedules,
        Job.DELIVER: deliver_webhooks,
        Job.TICK: tick,
    }
