"""One account opens downloads of long answers and reads none: the API's memory, and the downloads
of others, stay bounded.
"""

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai

from tests.attack.system import MB, Figure, Size, System, median_seconds
from tests.factories import CHAT_MODEL, chat_line, jsonl

SETTINGS: Mapping[str, object] = {"worker_processes": 1}
CATALOG = f"""
[models.{CHAT_MODEL}.backend]
kind = "openai"
base_url = "http://127.0.0.1:{{port}}/v1"
"""

ANSWER = 4_500_000
# Receive buffer of a client, so that the kernel holds little of what the client does not read.
RECEIVES = 64 * 1024
# MB that the allocator, the threads and the connection pool keep.
LEFT_MB = 60


class Answers(BaseHTTPRequestHandler):
    """A model server whose every answer has ANSWER bytes."""

    protocol_version = "HTTP/1.1"
    body = json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": "x" * ANSWER},
                }
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        }
    ).encode()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        """Log nothing: the attack's output is its figures."""


@contextmanager
def model_server(port: int) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", port), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def a_batch(system: System, lines: int) -> str:
    """Run a batch of the attacker to its end; return its id."""
    client = openai.OpenAI(base_url=system.base_url, api_key=system.live_key)
    content = jsonl([chat_line(f"line-{number}") for number in range(lines)])
    file = client.files.create(file=("input.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while batch.status not in ("completed", "failed", "expired"):
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    if batch.request_counts is None or batch.request_counts.completed != lines:
        raise RuntimeError(f"the attacker's batch ended {batch.status}: {batch.request_counts}")
    return batch.id


def ask(system: System, path: str, key: str) -> socket.socket:
    """A connection that has requested a download and reads nothing of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVES)
    client.settimeout(60)
    client.connect(("127.0.0.1", system.port))
    client.sendall(
        f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n".encode()
    )
    return client


def attack(system: System, size: Size) -> Iterator[Figure]:
    lines, rounds = (8, (80,)) if size is Size.SMALL else (28, (100, 200))
    with model_server(system.model_port):
        batch_id = a_batch(system, lines)
    neighbour = openai.OpenAI(
        base_url=system.base_url, api_key=system.new_account("neighbour"), max_retries=0
    )
    file = neighbour.files.create(file=("input.jsonl", bytes(8_000_000)), purpose="batch")

    def download() -> None:
        if len(neighbour.files.content(file.id).content) != 8_000_000:
            raise RuntimeError("the neighbour's download was cut short")

    alone = median_seconds(download, 9)
    before = system.settled("api")
    for sockets in rounds:
        with ExitStack() as opened:
            for _ in range(sockets):
                opened.enter_context(ask(system, f"/v1/batches/{batch_id}/output", system.live_key))
            held = system.settled("api")
            yield Figure(
                f"API memory grown by {sockets} unread downloads, MB", (held - before) / MB, 150
            )
            yield Figure(
                "another account's download beside them, times its time alone",
                median_seconds(download, 9) / alone,
                size.times(3.0),
            )
        yield Figure(
            f"API memory grown after the {sockets} have closed, MB",
            (system.settled("api") - before) / MB,
            LEFT_MB,
        )
