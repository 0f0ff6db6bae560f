"""The mock model server as the harness uses it: started, told what to do, asked what it did,
stopped.
"""

import http.client
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from benchmarks.mock.options import Options
from benchmarks.mock.server import Stats


class Mock:
    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid
        self.base_url = f"http://127.0.0.1:{port}/v1"

    def become(self, options: Options) -> None:
        """Behave so from now on, and count from zero."""
        self._ask("POST", "/control", {**msgspec.to_builtins(options), "reset": True})

    def change(self, **changes: Any) -> None:
        """Change some options in mid-run; the count goes on."""
        self._ask("POST", "/control", changes)

    def stats(self) -> Stats:
        return self._ask("GET", "/stats", None)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Stats:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, None if body is None else msgspec.json.encode(body))
            answer = connection.getresponse()
            said = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"the mock server answered {answer.status}: {said.decode()}")
        return msgspec.json.decode(said, type=Stats)


@contextmanager
def running(options: Options | None = None) -> Iterator[Mock]:
    """A mock server on a free port, in a process of its own, ended at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.mock"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline()
        if not port:
            raise RuntimeError("the mock server did not start")
        mock = Mock(int(port), process.pid)
        mock.become(options or Options())
        yield mock
    finally:
        process.terminate()
        process.wait(10)
