"""Processes that we start: knowing one again, ending it, and having it end with its parent."""

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

# A signal, and the seconds that the process then gets.
Step = tuple[signal.Signals, float]


def is_running(pid: int, marker: str) -> bool:
    """Whether that process is there and its command line holds `marker`: a pid alone may be
    anyone's by now.
    """
    proc = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self").exists():
        try:
            return os.fsencode(marker) in proc.read_bytes()
        except OSError:
            return False
    return (
        marker
        in subprocess.run(
            ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True
        ).stdout
    )


def end_leftover(pid_file: Path, marker: str, *steps: Step) -> None:
    """Stop what a killed parent left running, if the pid file still names it, and remove the file."""
    try:
        pid = int(pid_file.read_text("ascii").split()[0])
    except (FileNotFoundError, ValueError, IndexError):
        pid = 0
    if pid > 0:
        end(pid, lambda: not is_running(pid, marker), *steps)
    pid_file.unlink(missing_ok=True)


def end(pid: int, is_gone: Callable[[], bool], *steps: Step) -> None:
    """Send each signal in turn, giving the process that many seconds after it."""
    for signal_, patience in steps:
        if is_gone():
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal_)
        deadline = time.monotonic() + patience
        while not is_gone() and time.monotonic() < deadline:
            time.sleep(0.02)


def dying_with_parent(with_signal: signal.Signals) -> Callable[[], None] | None:
    """What a child runs before its program, so that Linux signals it when its parent dies, however
    it dies.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0)


def rotate(log: Path) -> None:
    """Make way for a new log; the one of the run before stays as `.1`."""
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_name(f"{log.name}.1"))


def last_words(log: Path) -> str:
    """The end of a log on one line, for an error message."""
    lines = [
        line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()
    ]
    return " | ".join(lines[-3:]) or "it said nothing"
