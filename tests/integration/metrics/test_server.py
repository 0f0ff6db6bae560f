"""The port of metrics: served if it is set, and never in the way of the process."""

import socket
from collections.abc import Callable
from urllib.request import urlopen

import pytest
from structlog.testing import capture_logs

from tests.waiting import PATIENCE
from xalen_batch.metrics import server


@pytest.fixture
def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_a_port_serves_the_metrics(
    configure: Callable[..., None], listening: socket.socket
) -> None:
    port = listening.getsockname()[1]
    listening.close()
    configure(metrics_port=port)
    server.start()
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
        assert b"xalen_build_info" in answer.read()


def test_a_taken_port_is_logged(configure: Callable[..., None], listening: socket.socket) -> None:
    with listening:
        configure(metrics_port=listening.getsockname()[1])
        with capture_logs() as logs:
            server.start()
    assert [entry["event"] for entry in logs] == ["metrics.not_served"]


def test_without_a_port_nothing_is_served() -> None:
    with capture_logs() as logs:
        server.start()
    assert logs == []
