"""Child processes: identifies leftover ones, ends them, and ties a child's life to its parent's."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1

# A signal, and the seconds until the next one.
Step = tuple[signal.Signals, float]


def is_running(pid: int, marker: str) -> bool:
    """Whether the process runs and its command line contains `marker`.

    The pid alone proves nothing: the system may have given it to another process.
    """
    proc = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self").exists():
        try:
            return os.fsencode(marker) in proc.read_bytes()
        except OSError:
            return False
    ps = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return marker in subprocess.run(ps, capture_output=True, text=True).stdout


def end_leftover(pid_file: Path, marker: str, *steps: Step) -> None:
    """Stop the process that a killed parent left behind, by its pid file, and remove the file."""
    try:
        pid = int(pid_file.read_text("ascii").split()[0])
    except (FileNotFoundError, ValueError, IndexError):
        pid = 0
    if pid > 0:
        end(pid, lambda: not is_running(pid, marker), *steps)
    pid_file.unlink(missing_ok=True)


def end(pid: int, is_gone: Callable[[], bool], *steps: Step) -> None:
    """Send each signal in turn, and wait its seconds for the process to end."""
    for signal_, seconds in steps:
        if is_gone():
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal_)
        deadline = time.monotonic() + seconds
        while not is_gone() and time.monotonic() < deadline:
            time.sleep(0.02)


def dying_with_parent(with_signal: signal.Signals) -> Callable[[], None] | None:
    """A `preexec_fn` that makes Linux signal the child when its parent dies, even by SIGKILL.

    None on other systems.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0)


def rotate(log: Path) -> None:
    """Rename the log of the last run to `.1`."""
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_name(f"{log.name}.1"))


def last_words(log: Path) -> str:
    """The last three lines of a log, joined for an error message."""
    lines = [
        line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()
    ]
    return " | ".join(lines[-3:]) or "it said nothing"
