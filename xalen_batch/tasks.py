"""Every background job on one screen: the map of what Celery runs.

A message is a hint. Each job looks into the database for what there is to do, and does nothing when
someone else has done it, so a message may come late, twice or never.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from celery import Celery

from xalen_batch.broker import Job
from xalen_batch.pipeline import finalize, recover, validate
from xalen_batch.pipeline.engine import Engine


def jobs(engine: Engine) -> dict[Job, Callable[..., None]]:
    """What each job does. All take a batch id at most."""
    return {
        Job.VALIDATE: lambda batch_id: validate.run(UUID(hex=batch_id)),
        Job.EXECUTE: lambda _=None: engine.drain(),
        Job.FINALIZE: lambda batch_id: finalize.run(UUID(hex=batch_id)),
        Job.TICK: recover.tick,
    }


def register(app: Celery, engine: Engine) -> dict[Job, Callable[..., Any]]:
    """Make each job a Celery task of the same name; the tasks can also be called directly."""
    return {job: app.task(name=job.value)(body) for job, body in jobs(engine).items()}
