"""Workers that record each of their calls, and that poison lines kill.

    python -m tests.e2e.doomed CALLS NUMBER

One parent, which has imported the product, forks NUMBER workers, and a new one for each that dies.
It prints the process id of every worker, one per line, and ends when its stdin closes. Each call is
a line in the file CALLS: process id, request id. A line with the word `poison` kills each worker
that sends it.
"""

import os
import select
import signal
import sys

from xalen_batch.backends.contract import Outcome, Request
from xalen_batch.backends.simulated.backend import SimulatedBackend
from xalen_batch.worker import process


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def note_calls(path: str) -> None:
    calls = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    send = SimulatedBackend.send

    async def noted(backend: SimulatedBackend, request: Request) -> Outcome:
        os.write(calls, f"{os.getpid()} {request.request_id}\n".encode())
        if b"poison" in request.body:
            die()
        return await send(backend, request)

    SimulatedBackend.send = noted  # type: ignore[method-assign]


def spawn(calls: str) -> None:
    pid = os.fork()
    if pid == 0:
        os.close(sys.stdin.fileno())
        note_calls(calls)
        process.run_worker()
        os._exit(0)
    sys.stdout.write(f"{pid}\n")
    sys.stdout.flush()
    workers.add(pid)


workers: set[int] = set()


def main() -> None:
    calls, number = sys.argv[1:]
    for _ in range(int(number)):
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
