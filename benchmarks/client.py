"""The API as the harness uses it: plain HTTP on one kept connection, little CPU beside what is
measured.
"""

import http.client
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BOUNDARY = "----xalen-batch-benchmarks"
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
CHUNK = 1 << 20
# Seconds between two looks at a batch that runs.
OFTEN, SELDOM = 0.05, 1.0


class Client:
    """`address`: the API's root, without /v1.

    Raises RuntimeError for an answer that is no success.
    """

    def __init__(self, address: str, key: str) -> None:
        url = urlsplit(address)
        self._connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=600)
        self._headers = {"authorization": f"Bearer {key}"}

    def close(self) -> None:
        self._connection.close()

    def upload(self, path: Path) -> str:
        """The new file's id. The file is streamed, never held in memory."""
        head = _part("purpose") + b"batch\r\n" + _part("file", path.name)
        tail = f"\r\n--{BOUNDARY}--\r\n".encode()
        connection = self._connection
        connection.putrequest("POST", "/v1/files")
        for name, value in self._headers.items():
            connection.putheader(name, value)
        connection.putheader("content-type", f"multipart/form-data; boundary={BOUNDARY}")
        connection.putheader("content-length", str(len(head) + path.stat().st_size + len(tail)))
        connection.endheaders()
        connection.send(head)
        with path.open("rb") as file:
            connection.sock.sendfile(file)
        connection.send(tail)
        return str(self._read()["id"])

    def create(self, file_id: str, endpoint: str) -> str:
        """The new batch's id."""
        body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
        return str(self.ask("POST", "/v1/batches", body)["id"])

    def batch(self, batch_id: str) -> dict[str, Any]:
        return self.ask("GET", f"/v1/batches/{batch_id}")

    def invoice(self, batch_id: str) -> dict[str, Any]:
        return self.ask("GET", f"/v1/batches/{batch_id}/invoice")

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = (
            self._headers if body is None else {**self._headers, "content-type": "application/json"}
        )
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        return self._read()

    def wait(self, batch_id: str, *, patience: float = 60) -> dict[str, Any]:
        """The batch when it has ended. RuntimeError when nothing moves for `patience` seconds.

        It looks more often the nearer the end is, since each look is work for what is measured.
        """
        started = moved = time.monotonic()
        last = None
        while (batch := self.batch(batch_id))["status"] not in ENDED:
            seen, now = (batch["status"], batch["request_counts"]), time.monotonic()
            if seen != last:
                moved, last = now, seen
            elif now - moved > patience:
                raise RuntimeError(
                    f"{batch_id} is {batch['status']} and has not moved for {patience:.0f} s:"
                    f" {batch['request_counts']}"
                )
            time.sleep(min(SELDOM, max(OFTEN, _time_left(batch, now - started) / 3)))
        return batch

    def download(self, file_id: str, to: Path) -> int:
        """Write a file's content; how many bytes it has."""
        with self._content(file_id) as answer, to.open("wb") as out:
            shutil.copyfileobj(answer, out, CHUNK)
            return out.tell()

    @contextmanager
    def _content(self, file_id: str) -> Iterator[http.client.HTTPResponse]:
        self._connection.request("GET", f"/v1/files/{file_id}/content", headers=self._headers)
        answer = self._connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {answer.read()[:500]!r}")
        yield answer

    def _read(self) -> dict[str, Any]:
        answer = self._connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the API answered {answer.status}: {said[:500]!r}")
        found: dict[str, Any] = json.loads(said)
        return found


def _time_left(batch: dict[str, Any], elapsed: float) -> float:
    """Seconds until a batch ends, if it goes on as it did."""
    counts = batch["request_counts"]
    ended = counts["completed"] + counts["failed"]
    return elapsed * (counts["total"] - ended) / ended if ended else SELDOM


def _part(name: str, filename: str | None = None) -> bytes:
    file = f'; filename="{filename}"\r\nContent-Type: application/octet-stream' if filename else ""
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
