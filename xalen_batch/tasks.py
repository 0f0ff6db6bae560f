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


def register(app: Celery, engine: Engine) -> dict[Job, Callable[..., Any]]:
    """Make each job a Celery task of its name. The tasks are returned too, to be called without the broker."""

    @app.task(name=Job.VALIDATE.value)
    def validate_batch(batch_id: str) -> None:
        validate.run(UUID(hex=batch_id))

    @app.task(name=Job.EXECUTE.value)
    def execute(hint: str | None = None) -> None:
        engine.drain()

    @app.task(name=Job.FINALIZE.value)
    def finalize_batch(batch_id: str) -> None:
        finalize.run(UUID(hex=batch_id))

    @app.task(name=Job.TICK.value)
    def tick() -> None:
        recover.tick()

    return {Job.VALIDATE: validate_batch, Job.EXECUTE: execute, Job.FINALIZE: finalize_batch, Job.TICK: tick}
