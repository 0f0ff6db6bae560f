"""An HTTP server on the loopback with prepared answers, for tests of the command line."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CHAT, RERANK = "/v1/chat/completions", "/v1/rerank"


def model(
    id: str, *endpoints: str, answered_by: str | None = "simulated", **price: str
) -> dict[str, Any]:
    """A model as GET /v1/terms shows it."""
    return {
        "id": id,
        "endpoints": list(endpoints),
        "context_window": 8192,
        "price": price,
        "answered_by": answered_by,
    }


TERMS: dict[str, Any] = {
    "object": "terms",
    "livemode": False,
    "currency": "USD",
    "batch_discount": "0.5",
    "max_file_bytes": 1_000_000,
    "max_batch_lines": 1_000,
    "max_batch_inputs": None,
    "max_line_bytes": 100_000,
    "models": [
        model("mistral-small-3-1", CHAT, input="0.02", output="0.04"),
        model("bge-reranker-v2", RERANK, CHAT, input="0.003"),
    ],
}


class Api(ThreadingHTTPServer):
    """Answers each request with the next item of a list, and records the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.reads_bodies = True
        # The answer to GET /v1/terms, which takes no item of the list and is not recorded. None:
        # 404.
        self.terms: dict[str, Any] | None = TERMS
        # False: an older server, whose answer to GET …/events is 404, and is not recorded either.
        self.has_events = False

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Api

    def _answer(self) -> None:
        length = int(self.headers.get("content-length", 0)) if self.server.reads_bodies else 0
        if self.path == "/v1/terms":
            self._tell(self.server.terms)
            return
        if self.path.endswith("/events") and not self.server.has_events:
            self._tell(None)
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.command, self.path, headers, self.rfile.read(length)))
        status, sent, body = self.server.answers.pop(0)
        self.send_response(status)
        for name, value in ({"content-length": str(len(body))} | sent).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _tell(self, found: dict[str, Any] | None) -> None:
        body = json.dumps(
            found or {"error": {"message": "There is no such route.", "code": "not_found"}}
        ).encode()
        self.send_response(200 if found else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = do_DELETE = do_CONNECT = _answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Api]:
    with Api() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
