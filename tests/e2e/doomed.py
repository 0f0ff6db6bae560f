"""Workers that note each call they make, and kill themselves with -9 where they are told to.

    python -m tests.e2e.doomed CALLS NUMBER [POINT]

One parent that has everything imported forks NUMBER workers, and a new one for each that dies; prints the process id of every
worker it starts, one a line; ends when its stdin does. Each call is a line in the file CALLS: process id, request id. POINT: where the
first worker kills itself; lines that hold the word `poison` kill every worker that sends them.
"""

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from xalen_batch import worker
from xalen_batch.backends.contract import Outcome, Request
from xalen_batch.backends.simulated.backend import SimulatedBackend
from xalen_batch.billing import invoices
from xalen_batch.pipeline import finalize, record, validate
from xalen_batch.pipeline.split import Split

POINTS = ("reading", "split", "answered", "uncommitted", "committed", "finalizing", "invoiced")


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def then_die(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of functions that are given rows: after the first that has some."""

    def run(*args: Any, **kwargs: Any) -> Any:
        found = function(*args, **kwargs)
        if not any(arg == [] for arg in args):
            die()
        return found

    return run


def half_then_die(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def run(*args: Any) -> Iterator[Any]:
        for number, line in enumerate(function(*args)):
            if number == 10:
                die()
            yield line

    return run


def doom(point: str) -> None:
    match point:
        case "reading":
            validate._extending = half_then_die(validate._extending)  # type: ignore[assignment]
        case "split":
            Split.insert = then_die(Split.insert)  # type: ignore[method-assign]
        case "uncommitted":
            record.insert = then_die(record.insert)
        case "committed":
            record.record = then_die(record.record)
        case "finalizing":
            finalize._complete = die  # type: ignore[assignment]
        case "invoiced":
            invoices.issue = then_die(invoices.issue)


def note_calls(path: str, point: str) -> None:
    calls = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    send, answered = SimulatedBackend.send, count(1)

    async def noted(backend: SimulatedBackend, request: Request) -> Outcome:
        os.write(calls, f"{os.getpid()} {request.request_id}\n".encode())
        if b"poison" in request.body:
            die()
        outcome = await send(backend, request)
        if point == "answered" and next(answered) == 10:
            die()
        return outcome

    SimulatedBackend.send = noted  # type: ignore[method-assign]


def spawn(calls: str, point: str = "") -> None:
    pid = os.fork()
    if pid == 0:
        os.close(sys.stdin.fileno())
        doom(point)
        note_calls(calls, point)
        worker.run_worker()
        os._exit(0)
    sys.stdout.write(f"{pid}\n")
    sys.stdout.flush()
    workers.add(pid)


workers: set[int] = set()


def main() -> None:
    calls, number, *point = sys.argv[1:]
    spawn(calls, *point)
    for _ in range(int(number) - 1):
        spawn(calls)
    while not select.select([sys.stdin], [], [], 0.02)[0]:
        dead, _ = os.waitpid(-1, os.WNOHANG)
        if dead:
            workers.discard(dead)
            spawn(calls)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
