"""A model server sends bytes without end around its answers, such as trailers; a worker's client
keeps none of them.
"""

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress

import openai

from tests.attack.system import MB, Figure, Size, System
from tests.hostile.answers import ENDLESS

SETTINGS: Mapping[str, object] = {
    "max_attempts": 2,
    "retry_base": 0.1,
    "retry_cap": 0.2,
    "circuit_pause": 0.2,
}
CATALOG = """\
[models.mistral-small-3-1.backend]
kind = "openai"
base_url = "http://127.0.0.1:{port}/v1"
model = "mistral-small-3-1"
max_in_flight = 1
"""
BOUND = 10
# Seconds within which a worker sends the line.
START_SECONDS = 30
PIECE = 1024 * 1024
LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "mistral-small-3-1", "messages": [{"role": "user", "content": "Hello"}]},
}


def attack(system: System, size: Size) -> Iterator[Figure]:
    ways, seconds = (
        (("a trailer", "trailers"), 2.0) if size is Size.SMALL else (tuple(ENDLESS), 7.0)
    )
    client = openai.OpenAI(base_url=system.base_url, api_key=system.live_key)
    for way in ways:
        before = system.rss("worker")
        system.forget_peak("worker")
        with _Flood(system.model_port, way) as flood:
            file = client.files.create(
                file=("line.jsonl", json.dumps(LINE).encode()), purpose="batch"
            )
            batch = client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            flood.began.wait(START_SECONDS)
            deadline = time.monotonic() + seconds
            while batch.status != "completed" and time.monotonic() < deadline:
                time.sleep(0.1)
                batch = client.batches.retrieve(batch.id)
            yield Figure(
                f"Worker's memory grown by {way} without end, MB",
                (system.peak("worker") - before) / MB,
                BOUND,
            )
        if batch.status != "completed":
            client.batches.cancel(batch.id)


class _Flood:
    """A server that answers each request with bytes of one way without end, until it is left."""

    def __init__(self, port: int, way: str) -> None:
        self._begin, piece = ENDLESS[way]
        self._piece = piece * (PIECE // len(piece))
        self._listening = socket.create_server(("127.0.0.1", port))
        self._is_over = threading.Event()
        self.began = threading.Event()

    def __enter__(self) -> "_Flood":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        # Closing the socket alone does not end a blocked accept.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._flood, args=(connection,), daemon=True).start()

    def _flood(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(64 * 1024)
            self.began.set()
            connection.sendall(self._begin)
            while not self._is_over.is_set():
                connection.sendall(self._piece)
