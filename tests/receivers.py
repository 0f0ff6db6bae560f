"""A receiver of webhooks on the loopback, for tests: it keeps what it gets, and answers as told."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Got:
    """A delivery as it arrived. Header names are in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event


# Answers a request: writes a whole answer, or whatever a rude receiver writes.
Answering = Callable[[BaseHTTPRequestHandler, Got], None]


def status(code: int, body: bytes = b"", **headers: str) -> Answering:
    """Answer with a status; `retry_after` becomes `Retry-After`."""

    def answer(request: BaseHTTPRequestHandler, _: Got) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("content-length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


@dataclass
class Receiver:
    """A running receiver. `answer` may be changed at any time."""

    port: int
    answer: Answering = field(default_factory=lambda: status(200, b"ok"))
    got: list[Got] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def types(self) -> list[str]:
        return [got.event["type"] for got in list(self.got)]


@contextmanager
def receiving(context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver on a port of the loopback; with a context it speaks TLS."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            got = Got(self.path, headers, body)
            receiver.got.append(got)
            receiver.answer(self, got)

        def do_GET(self) -> None:
            receiver.got.append(Got(self.path, {}, b"{}"))
            status(200)(self, receiver.got[-1])

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A sender that hangs up is no error of a test."""

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    receiver = Receiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
