"""A worker on a queue to which a stranger writes: it drops foreign messages and takes ours."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery

from tests import factories
from tests.conftest import Stores
from tests.e2e import processes
from tests.hostile.messages import BROKEN, OPTIONS, QUEUE, SECRET
from tests.waiting import wait_until
from xalen_batch import broker, db
from xalen_batch.broker import Job, Message
from xalen_batch.models import Batch


@pytest.fixture
def log(stores: Stores, valkey: redis.Redis, database: str, tmp_path: Path) -> Iterator[Path]:
    """The log of a worker that finds work by messages alone."""
    log = tmp_path / "worker.log"
    env = processes.environment(
        **stores._asdict(), poll_interval=3_600, tick_interval=3_600, log_format="json"
    )
    with processes.command("worker", log=log, env=env) as process:
        wait_until(
            lambda: bool(valkey.smembers(f"_kombu.binding.{QUEUE}")), process=process, log=log
        )
        yield log
        assert process.poll() is None, "the worker ended"


def test_a_worker_survives_every_message_and_takes_its_own(log: Path, valkey: redis.Redis) -> None:
    for raw in (*BROKEN.values(), *OPTIONS.values(), *BROKEN.values()):
        valkey.lpush(QUEUE, raw)
    remote = Celery(broker=broker.broker_url(broker.url())).control
    remote.broadcast("pool_grow", arguments={"n": 100})
    remote.shutdown()
    with db.transaction() as session:
        caller = factories.caller(session)
        batch_id = factories.batch(
            session,
            caller,
            factories.input_file(session, caller, [factories.chat_line("one", "Hello")]),
        ).id
    broker.publish([Message(Job.VALIDATE, batch_id.hex)])

    def is_completed() -> bool:
        with db.transaction() as session:
            return session.get_one(Batch, batch_id).status == "completed"

    wait_until(is_completed, log=log)
    assert valkey.llen(QUEUE) == 0
    words = log.read_text("utf-8")
    assert "message.dropped" in words
    assert SECRET not in words
    assert "Traceback" not in words
    assert "celery.starmap" not in words


def test_keys_of_another_type_do_not_end_a_worker(log: Path, valkey: redis.Redis) -> None:
    valkey.delete(QUEUE)
    valkey.set(QUEUE, "of another type")
    valkey.zadd("unacked_index", {"poison": 0})
    valkey.hset("unacked", "poison", "no JSON")
    wait_until(lambda: "ResponseError" in log.read_text("utf-8"), log=log)
    valkey.delete(QUEUE)
    broker.publish([Message(Job.TICK)])
    wait_until(lambda: valkey.llen(QUEUE) == 0, log=log)
