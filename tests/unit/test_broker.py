"""The messages on the queue: hints in plain JSON, without text of a user."""

import base64
import json
from collections.abc import Callable, Iterator
from threading import Thread

import fakeredis
import pytest

from tests.conftest import forget
from xalen_batch import broker
from xalen_batch.broker import QUEUE, Job, Message


@pytest.fixture
def server(configure: Callable[..., None]) -> Iterator[fakeredis.TcpFakeServer]:
    server = fakeredis.TcpFakeServer(("127.0.0.1", 0), server_type="valkey")
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    configure(redis_url=f"redis://127.0.0.1:{server.server_address[1]}/0")
    forget()
    yield server
    server.shutdown()
    server.server_close()
    forget()


def test_a_message_is_json_with_a_job_and_an_id(server: fakeredis.TcpFakeServer) -> None:
    broker.publish([Message(Job.VALIDATE, "0" * 32)])
    (raw,) = fakeredis.FakeRedis(server=server.fake_server).lrange(QUEUE, 0, -1)
    message = json.loads(raw)
    assert message["content-type"] == "application/json"
    assert message["headers"]["task"] == "batch.validate"
    args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    assert (args, kwargs) == (["0" * 32], {})


@pytest.mark.parametrize(
    ("url", "spelt"),
    [
        ("redis://:secret@host:6379/0", "redis://:secret@host:6379/0"),
        ("unix:///run/valkey.sock", "redis+socket:///run/valkey.sock"),
        ("unix:///run/valkey.sock?db=2", "redis+socket:///run/valkey.sock?virtual_host=2"),
    ],
)
def test_an_address_is_spelt_as_celery_wants_it(url: str, spelt: str) -> None:
    assert broker.broker_url(url) == spelt


def test_nothing_but_json_is_accepted(configure: Callable[..., None]) -> None:
    configure(redis_url="redis://127.0.0.1:1/0")
    forget()
    assert broker.celery().conf.accept_content == ["json"]
    forget()
