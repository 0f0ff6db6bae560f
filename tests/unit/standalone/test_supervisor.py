"""The supervisor reacts to a signal at any moment."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from xalen_batch.standalone import supervisor

# The supervisor polls without a pause, and each signal arrives at another moment.
HEARS = """\
import random, signal
from pathlib import Path
from xalen_batch.standalone import ports, supervisor
supervisor.LOOK_INTERVAL = 1e-5
watching = supervisor.Supervisor(Path("data"), ports.Listener("127.0.0.1", 1, []), print, {})
watching._front = watching._workers = []
watching._is_starting = False
signal.signal(signal.SIGALRM, watching._on_signal)
for _ in range(2_000):
    watching._signals = 0
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1e-3))
    watching._watch()
    signal.setitimer(signal.ITIMER_REAL, 0)
"""


def test_a_signal_is_heard_whatever_the_supervisor_is_at() -> None:
    # A lost signal would run into the timeout.
    assert subprocess.run([sys.executable, "-c", HEARS], timeout=60, check=False).returncode == 0


def test_each_part_serves_its_metrics_on_a_port_of_its_own(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XALEN_MIGRATE_DATABASE_URL", "postgresql://owner@localhost/x")
    assert "XALEN_METRICS_PORT" not in supervisor._serving_environment(0)
    assert "XALEN_MIGRATE_DATABASE_URL" not in supervisor._serving_environment(0)
    configure(metrics_port=9464)
    ports = [
        supervisor._serving_environment(offset).get("XALEN_METRICS_PORT") for offset in (0, 2, None)
    ]
    assert ports == ["9464", "9466", None]
