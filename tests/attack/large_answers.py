"""A model server answers every line with the most bytes that an answer may have; the worker holds a
bounded number of them.

The small size has compressed answers, which all arrive at once even on a busy machine. The full
size also has 400 uncompressed answers of 4.5 MB, and answers at the cap (`XALEN_ANSWER_MAX_BYTES`).
"""

import gzip
import json
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai

from tests.attack.system import MB, Figure, Size, System

MiB = 1024 * 1024
SETTINGS: Mapping[str, object] = {}
CATALOG = """\
[models.mistral-small-3-1.backend]
kind = "openai"
base_url = "http://127.0.0.1:{port}/v1"
model = "mistral-small-3-1"
max_in_flight = 256
"""
# MB: the default of XALEN_WORKER_BYTES, plus the memory of a worker without any answer.
BOUND = 268 + 150
SECONDS = 300
LATENCY = 2.0


def attack(system: System, size: Size) -> Iterator[Figure]:
    small = {"8 MiB, compressed": (120, 8 * MiB)}
    loads = (
        small
        if size is Size.SMALL
        else {
            "4.5 MB": (400, 4_500_000),
            "8 MiB": (300, 8 * MiB),
            "8 MiB, compressed": (300, 8 * MiB),
        }
    )
    with _model_server(system.model_port) as server:
        client = openai.OpenAI(base_url=system.base_url, api_key=system.live_key)
        for name, (count, length) in loads.items():
            server.is_compressed = "compressed" in name
            server.answer = (
                gzip.compress(_answer(length)) if server.is_compressed else _answer(length)
            )
            system.forget_peak("worker")
            begun = time.monotonic()
            failed = _run(client, count)
            yield Figure(
                f"Worker's peak memory, {count} answers of {name}, MB",
                system.peak("worker") / MB,
                BOUND,
            )
            yield Figure(f"Lines without their answer, of {count} of {name}", failed, 0)
            yield Figure(
                f"Seconds for {count} answers of {name}", time.monotonic() - begun, SECONDS
            )


def _run(client: openai.OpenAI, count: int) -> int:
    """Run a batch; return the number of its lines that have not succeeded."""
    lines = [
        {
            "custom_id": str(n),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "mistral-small-3-1", "messages": [_HELLO]},
        }
        for n in range(count)
    ]
    file = client.files.create(
        file=("lines.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch"
    )
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    deadline = time.monotonic() + SECONDS
    while (
        batch.status not in ("completed", "failed", "expired", "cancelled")
        and time.monotonic() < deadline
    ):
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    return count - (batch.request_counts.completed if batch.request_counts else 0)


_HELLO = {"role": "user", "content": "Hello"}


def _answer(length: int) -> bytes:
    """A chat completion of `length` bytes."""
    message = {"role": "assistant", "content": ""}
    shape = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "mistral-small-3-1",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20},
    }
    message["content"] = "a" * (length - len(json.dumps(shape)))
    return json.dumps(shape).encode()


class _ModelServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    answer = b""
    is_compressed = False

    def __enter__(self) -> "_ModelServer":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing when a client disconnects."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _ModelServer

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        answer = self.server.answer
        # Like a batching model, it takes the same time for one request as for many, so the answers
        # of all requests in flight arrive at once.
        time.sleep(LATENCY)
        self.send_response(200)
        self.send_header("content-type", "application/json")
        if self.server.is_compressed:
            self.send_header("content-encoding", "gzip")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def _model_server(port: int) -> _ModelServer:
    return _ModelServer(("127.0.0.1", port), _Handler)
