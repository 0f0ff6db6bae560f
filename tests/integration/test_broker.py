"""Messages are best effort: an unavailable or hanging queue never fails a publisher."""

import json
import socket
import time
from ast import literal_eval
from collections.abc import Callable, Iterator

import pytest
import redis

from tests.conftest import forget
from xalen_batch import broker, db
from xalen_batch.broker import QUEUE, Job, Message


@pytest.fixture(autouse=True)
def _fresh_publisher(stores: object) -> Iterator[None]:
    forget()
    broker._quiet_until = 0.0
    yield
    broker._quiet_until = 0.0
    forget()


def queued(valkey: redis.Redis) -> list[tuple[str, list[str]]]:
    found = []
    for raw in valkey.lrange(QUEUE, 0, -1):
        message = json.loads(raw)
        found.append(
            (message["headers"]["task"], list(literal_eval(message["headers"]["argsrepr"])))
        )
    return found[::-1]


def test_a_message_names_a_job_and_an_id_and_nothing_else(valkey: redis.Redis) -> None:
    broker.publish([Message(Job.VALIDATE, "0" * 32), Message(Job.EXECUTE)])
    assert queued(valkey) == [("batch.validate", ["0" * 32]), ("batch.execute", [])]


def test_messages_leave_after_the_commit_and_once(database: str, valkey: redis.Redis) -> None:
    with db.transaction() as session:
        db.enqueue(session, Job.FINALIZE, "1" * 32)
        db.enqueue(session, Job.FINALIZE, "1" * 32)
        assert queued(valkey) == []
    assert queued(valkey) == [("batch.finalize", ["1" * 32])]


def test_a_transaction_that_fails_sends_nothing(database: str, valkey: redis.Redis) -> None:
    def fail() -> None:
        with db.transaction() as session:
            db.enqueue(session, Job.FINALIZE, "1" * 32)
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert queued(valkey) == []


def test_an_absent_queue_is_no_error(configure: Callable[..., None]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        configure(redis_url=f"redis://127.0.0.1:{taken.getsockname()[1]}/0")
        forget()
        broker.publish([Message(Job.EXECUTE)] * 50)


@pytest.mark.timing
def test_a_hanging_queue_delays_a_publisher_once(configure: Callable[..., None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        configure(redis_url=f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        forget()
        started = time.monotonic()
        broker.publish([Message(Job.EXECUTE)] * 50)
        # Half a second for each of them would be 25.
        assert time.monotonic() - started < 12


def test_a_queue_that_is_back_is_used_again(
    valkey: redis.Redis, configure: Callable[..., None]
) -> None:
    with socket.socket() as taken, pytest.MonkeyPatch.context() as patch:
        taken.bind(("127.0.0.1", 0))
        patch.setenv("XALEN_REDIS_URL", f"redis://127.0.0.1:{taken.getsockname()[1]}/0")
        forget()
        broker.publish([Message(Job.EXECUTE)])
    forget()
    broker._quiet_until = 0.0
    broker.publish([Message(Job.EXECUTE)])
    assert queued(valkey) == [("batch.execute", [])]


def test_a_worker_keeps_what_it_can_run_itself(
    valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Message] = []

    def run(message: Message) -> bool:
        kept.append(message)
        return len(kept) < 3

    monkeypatch.setattr(broker, "_keeper", None)
    broker.keep(run)
    finalize, execute = Message(Job.FINALIZE, "1" * 32), Message(Job.EXECUTE)
    broker.publish(
        [finalize, execute, Message(Job.EXECUTE, "1"), Message(Job.VALIDATE, "2" * 32), execute]
    )
    assert kept == [finalize, execute, execute]
    # Jobs for another process go to the queue, and so do those that have no thread here.
    assert queued(valkey) == [
        ("batch.execute", ["1"]),
        ("batch.validate", ["2" * 32]),
        ("batch.execute", []),
    ]


@pytest.mark.parametrize(
    "spoilt", [b"", b"no separators", b"a\x06\x16b\x06\x16c\x06\x16d\x06\x16e"]
)
def test_broken_routes_in_redis_are_no_error(valkey: redis.Redis, spoilt: bytes) -> None:
    """The change that the hint announces is committed before."""
    broker.publish([Message(Job.EXECUTE)])
    valkey.sadd(f"_kombu.binding.{QUEUE}", spoilt)
    forget()
    broker.publish([Message(Job.EXECUTE)])
    valkey.delete(f"_kombu.binding.{QUEUE}")
    valkey.set(f"_kombu.binding.{QUEUE}", b"of another type")
    forget()
    broker.publish([Message(Job.EXECUTE)])
