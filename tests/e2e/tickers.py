"""Processes that fire schedules without pause: forks of one parent, which replaces those that die.

    python -m tests.e2e.tickers NUMBER

Prints the process id of every ticker it starts, one per line. Ends when its stdin closes.
"""

import os
import select
import signal
import sys

from xalen_batch import db, log
from xalen_batch.schedules import fire


def tick() -> None:
    while True:
        try:
            fire.run()
        except db.UNAVAILABLE as error:
            sys.stderr.write(f"{type(error).__name__}\n")


def spawn() -> int:
    pid = os.fork()
    if pid == 0:
        tick()
    sys.stdout.write(f"{pid}\n")
    sys.stdout.flush()
    return pid


def main() -> None:
    # Connections are made after the forks.
    log.configure()
    tickers = {spawn() for _ in range(int(sys.argv[1]))}
    while not select.select([sys.stdin], [], [], 0.002)[0]:
        dead, _ = os.waitpid(-1, os.WNOHANG)
        if dead:
            tickers.discard(dead)
            tickers.add(spawn())
    for pid in tickers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
