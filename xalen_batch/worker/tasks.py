"""Every background job on one screen: the map of what Celery runs.

A message is a hint. Each job looks into the database for what there is to do, and does nothing when
someone else has done it, so a message may come late, twice or never.
"""

import threading
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any
from uuid import UUID

from celery import Celery

from xalen_batch import db, log, storage
from xalen_batch.broker import Job
from xalen_batch.pipeline import finalize, recover, validate
from xalen_batch.schedules import fire
from xalen_batch.worker.engine import Engine
from xalen_batch.worker.turns import Turns

logger = log.get(__name__)

# Batches that one process validates at a time: one may wait for the database while another is read.
VALIDATIONS = 2
# Threads of one process that fire schedules: while one waits for a folder that hangs, another fires
# those of other accounts.
FIRINGS = 2


def reported(body: Callable[..., None]) -> Callable[..., None]:
    """A job that tells of an error instead of raising it: nobody waits for its result, and the
    sweep finds its work again.
    """

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
    """What a message names: the id of a batch. Anything else is not ours, and not for a log."""
    try:
        return {"batch_id": UUID(hex=args[0])} if args else {}
    except (ValueError, TypeError, AttributeError):
        return {"batch_id": None}


def register(app: Celery, engine: Engine) -> dict[Job, Callable[..., Any]]:
    """Make each job a Celery task of its name, and leave no other.

    The tasks are returned too, to be called without the broker.
    """
    # Not shared: Celery would put shared tasks, which hold this engine, into every app that is made
    # later in the process.
    firings = threading.BoundedSemaphore(FIRINGS)

    # Each holds what it knows of up to fifty thousand lines, and more than one is no faster.
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

    @app.task(name=Job.FIRE.value, shared=False)
    @reported
    def fire_schedules() -> None:
        # Every poll names it while a thousand schedules are due.
        if firings.acquire(blocking=False):
            try:
                fire.run()
            finally:
                firings.release()

    @app.task(name=Job.TICK.value, shared=False)
    @reported
    def tick() -> None:
        recover.tick()

    # Celery's own, such as celery.starmap, run what a message says.
    for name in app.tasks.keys() - set(Job):
        app.tasks.unregister(name)
    return {
        Job.VALIDATE: validate_batch,
        Job.EXECUTE: execute,
        Job.FINALIZE: finalize_batch,
        Job.FIRE: fire_schedules,
        Job.TICK: tick,
    }
