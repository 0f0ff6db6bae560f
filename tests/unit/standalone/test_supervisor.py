"""The supervisor reacts to a signal at any moment."""

import subprocess
import sys

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
