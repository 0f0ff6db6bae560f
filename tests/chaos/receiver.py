"""The receiver of the campaign's webhooks: a process that logs each delivery before it answers.

A line of the log is a JSON object: the status that is sent, the headers and the body. The file of
moods holds how it answers; an answer that is logged may still be lost on its way.
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WELL = "well"
# (status, seconds before it) by mood.
ANSWERS = {WELL: (200, 0.0), "slow": (200, 0.7), "500": (500, 0.0)}


def serve(port: int, log: Path, mood: Path) -> None:
    writing = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status, pause = ANSWERS[mood.read_text("utf-8") or WELL]
            time.sleep(pause)
            headers = {name.lower(): value for name, value in self.headers.items()}
            got = {"status": status, "headers": headers, "body": body.decode()}
            # One write of a short line is atomic, whenever this process is killed.
            os.write(writing, json.dumps(got).encode() + b"\n")
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, *_: object) -> None:
            """A sender that was killed is no error of the receiver."""

    server = Server(("127.0.0.1", port), Handler)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    stopping.wait()
    server.shutdown()
    server.server_close()


def run(arguments: list[str]) -> None:
    """`[port, log, mood]`: serve until SIGTERM."""
    port, log, mood = arguments
    serve(int(port), Path(log), Path(mood))


if __name__ == "__main__":
    run(sys.argv[1:])
