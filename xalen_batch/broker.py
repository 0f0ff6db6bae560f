"""The Redis queue. It carries hints: a lost message delays work, but loses none.

A message names a job, and at most an id. The state is in the database, and a sweep publishes lost
messages again (docs/decisions/0002).
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

import kombu.exceptions
import redis
from celery import Celery

from xalen_batch import log
from xalen_batch.config import settings
from xalen_batch.errors import ConfigError

logger = log.get(__name__)

QUEUE = "xalen_batch"
# Seconds without publishing after a failure, so that not every request waits for an unavailable
# Redis.
PAUSE_AFTER_FAILURE = 2.0


class Job(StrEnum):
    """The background jobs by name. `worker/tasks.py` has exactly one Celery task for each."""

    VALIDATE = "batch.validate"
    EXECUTE = "batch.execute"
    FINALIZE = "batch.finalize"
    SEAL = "batch.seal"
    FIRE = "schedule.fire"
    DELIVER = "webhook.deliver"
    TICK = "system.tick"


@dataclass(frozen=True, slots=True)
class Message:
    """A hint that there is work for a job.

    `id`: of a batch; for EXECUTE, a number that makes several messages distinct.
    """

    job: Job
    id: str | None = None

    @property
    def is_for_anyone(self) -> bool:
        """Whether a worker that publishes the message may run the job itself.

        A numbered EXECUTE message is meant to wake another worker, so the queue spreads it.
        """
        if self.job is Job.EXECUTE:
            return self.id is None
        return self.job in (Job.FINALIZE, Job.DELIVER)

    @property
    def args(self) -> list[str]:
        return [] if self.id is None else [self.id]


def url() -> str:
    """The address of Redis, with its password. Raises ConfigError if the settings have none."""
    found = settings().redis_url
    if found is None:
        raise ConfigError(
            "XALEN_REDIS_URL is not set. Set it to a Redis or Valkey server, or use `xalen-batch"
            " up`, which starts its own."
        )
    return found.get_secret_value()


@cache
def celery() -> Celery:
    """The Celery application of this process, with all of its configuration."""
    app = Celery("xalen_batch", broker=broker_url(url()))
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_default_queue=QUEUE,
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        # Has no effect without late acknowledgement. Unset, Celery warns of it at each lost
        # connection.
        worker_cancel_long_running_tasks_on_connection_loss=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A full Redis, or a replica, answers with an error. Retry, as for one that is down.
        broker_channel_error_retry=True,
        broker_transport_options={
            "socket_connect_timeout": 1.0,
            # Must outlast the consumer's blocking pop.
            "socket_timeout": 10.0,
            "socket_keepalive": True,
            # No copy of messages that a worker has taken: a lost message only delays work, and a
            # corrupt copy would stay in Redis for ever.
            "ack_emulation": False,
        },
        beat_schedule={
            "tick": {
                "task": Job.TICK.value,
                "schedule": settings().tick_interval,
                "options": {"expires": settings().tick_interval},
            }
        },
        beat_max_loop_interval=5,
        timezone="UTC",
    )
    return app


@cache
def _publisher() -> Celery:
    """A Celery application for publishing, which gives up at once; the consumer's waits."""
    app = Celery("xalen_batch.publisher", broker=celery().conf.broker_url)
    app.conf.update(
        task_serializer="json",
        task_ignore_result=True,
        task_default_queue=QUEUE,
        # One attempt; 0 would mean unlimited retries to kombu.
        broker_transport_options={
            "socket_connect_timeout": 0.5,
            "socket_timeout": 0.5,
            "max_retries": 1,
            "interval_start": 0,
            "interval_max": 0,
        },
        task_publish_retry=False,
    )
    return app


def broker_url(url: str) -> str:
    """A Redis address as Celery spells it: `unix:///path` becomes `redis+socket:///path`."""
    if url.startswith("unix://"):
        path, _, query = url.removeprefix("unix://").partition("?")
        return f"redis+socket://{path}" + (
            f"?{query.replace('db=', 'virtual_host=')}" if query else ""
        )
    return url


_quiet_until = 0.0
_keeper: Callable[[Message], bool] | None = None


def keep(run: Callable[[Message], bool]) -> None:
    """Let this worker run messages that `is_for_anyone` itself, instead of publishing them.

    `run` returns whether it accepts a message; any thread that commits may call it.
    """
    global _keeper
    _keeper = run


def publish(messages: Iterable[Message]) -> None:
    """Send messages, best effort. Never raises; an unavailable Redis costs at most a second."""
    global _quiet_until
    for message in messages:
        if message.is_for_anyone and _keeper is not None and _keeper(message):
            continue
        if time.monotonic() < _quiet_until:
            return
        try:
            _publisher().send_task(message.job.value, args=message.args, retry=False)
        except (kombu.exceptions.OperationalError, redis.RedisError, OSError) as error:
            _quiet_until = time.monotonic() + PAUSE_AFTER_FAILURE
            logger.warning("broker.unreachable", job=message.job.value, error=type(error).__name__)
        except Exception as error:
            # kombu reads its routes from Redis, and fails on corrupt ones. The transaction that the
            # message belongs to is committed, so the error must not reach the caller.
            _quiet_until = time.monotonic() + PAUSE_AFTER_FAILURE
            logger.error("broker.crashed", job=message.job.value, **log.cause(error))


def ping(timeout: float = 1.0) -> dict[str, Any]:
    """The server's INFO, after a test write. Raises `redis.RedisError`.

    The write finds replicas and full servers, which answer reads.
    """
    url = settings().redis_url
    if url is None:
        raise redis.ConnectionError("XALEN_REDIS_URL is not set")
    with redis.Redis.from_url(
        url.get_secret_value(), socket_timeout=timeout, socket_connect_timeout=timeout
    ) as client:
        client.set(f"{QUEUE}.health", "ok", px=1_000)
        return dict(client.info())
