"""An API on the loopback that runs one batch and breaks connections, for tests of the client."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "xln_test_stub"
ENDPOINT = "/v1/chat/completions"
FILES = {"file-in": "input", "file-out": "output", "file-err": "errors"}


def answer(custom_id: str, text: str) -> dict[str, Any]:
    """A line of an output file."""
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text},
            }
        ],
    }
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "batch_req_1", "custom_id": custom_id, "response": response, "error": None}


def refusal(custom_id: str, code: str = "batch_expired", message: str = "late") -> dict[str, Any]:
    """A line of an error file."""
    error = {"code": code, "message": message}
    return {"id": "batch_req_2", "custom_id": custom_id, "response": None, "error": error}


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


class Api(ThreadingHTTPServer):
    """Records its requests as (method, path, headers, body)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.contents: dict[str, bytes] = {"input": b"", "output": b"", "errors": b""}
        self.statuses = ["validating", "in_progress", "completed"]
        self.fields: dict[str, Any] = {}
        self.invoice: tuple[int, dict[str, Any]] = (200, {"object": "invoice", "total": "0.5"})
        # Bytes after which a download breaks off, each once; and whether it has an entity tag.
        self.cuts: list[int] = []
        self.is_sealed = True
        # Statuses of answers to GET /batches/{id} that come before the others; 0: no answer.
        self.outages: list[int] = []
        # Bodies of event streams, each once; without one there is no such route.
        self.streams: list[bytes] = []
        # The upload in parts, as GET shows it; None: there is no such route.
        self.upload: dict[str, Any] | None = None
        self.parts: list[bytes] = []
        # Answers to other requests, by method and path.
        self.others: dict[str, Any] = {}

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def sent(self, method: str, path: str) -> list[dict[str, str]]:
        """The headers of the requests for a path."""
        return [
            headers for verb, asked, headers, _ in self.requests if (verb, asked) == (method, path)
        ]

    def batch(self) -> dict[str, Any]:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        ended = status in ("completed", "expired", "cancelled")
        return {
            "id": "batch_1",
            "object": "batch",
            "endpoint": ENDPOINT,
            "status": status,
            "input_file_id": "file-in",
            "completion_window": "24h",
            "created_at": 1,
            "output_file_id": "file-out" if ended and self.contents["output"] else None,
            "error_file_id": "file-err" if ended and self.contents["errors"] else None,
            "request_counts": {"total": 3, "completed": 2, "failed": 1},
            **self.fields,
        }


class Handler(BaseHTTPRequestHandler):
    server: Api
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.removeprefix("/v1")
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.command, path, headers, body))
        if f"{self.command} {path}" in self.server.others:
            self._json(200, self.server.others[f"{self.command} {path}"])
        elif path == "/files":
            self.server.contents["input"] = _sent_file(body)
            self._json(200, {"id": "file-in", "object": "file"})
        elif path.startswith("/uploads") and self.server.upload is not None:
            self._uploads(self.server.upload, path, body)
        elif path == "/batches/batch_1/output?merged=true":
            self._content("merged")
        elif path.endswith("/content"):
            self._content(FILES[path.split("/")[2]])
        elif path.endswith("/events") and self.server.streams:
            self._stream(self.server.streams.pop(0))
        elif path.endswith("/events"):
            self._json(404, {"error": {"message": f"no {path}"}})
        elif path.endswith("/invoice"):
            self._json(*self.server.invoice)
        elif self.command == "GET" and self.server.outages:
            if status := self.server.outages.pop(0):
                self._json(status, {"error": {"message": "away"}})
            else:
                self.close_connection = True
        elif path.startswith("/batches"):
            self._json(200, self.server.batch())
        else:
            self._json(404, {"error": {"message": f"no {path}"}})

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def _uploads(self, upload: dict[str, Any], path: str, body: bytes) -> None:
        if path == "/uploads":
            upload |= {"id": f"upload_{len(self.server.sent('POST', path))}", "status": "pending"}
        elif path.endswith("/parts"):
            self.server.parts.append(_sent_file(body))
            self._json(200, {"id": f"part_{len(self.server.parts)}"})
            return
        elif path.endswith("/complete"):
            ids = json.loads(body)["part_ids"]
            parts = [self.server.parts[int(id.removeprefix("part_")) - 1] for id in ids]
            self.server.contents["input"] = b"".join(parts)
            upload |= {"status": "completed", "file": {"id": "file-in"}}
        parts_shown = [
            {"id": f"part_{number}", "bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()}
            for number, part in enumerate(self.server.parts, start=1)
        ]
        self._json(200, {**upload, "parts": parts_shown})

    def _content(self, name: str) -> None:
        content = self.server.contents[name]
        first = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        if asked and self.headers.get("if-range") == tag:
            first = int(asked[1])
            self.send_response(206)
            self.send_header("content-range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.server.is_sealed:
            digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
            self.send_header("etag", tag)
            self.send_header("repr-digest", f"sha-256=:{digest}:")
        rest = content[first:]
        self.send_header("content-length", str(len(rest)))
        self.end_headers()
        if name != "input" and self.server.cuts:
            rest = rest[: self.server.cuts.pop(0)]
            self.close_connection = True
        # The client may have read enough.
        with suppress(ConnectionError):
            self.wfile.write(rest)

    def _stream(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _json(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        # `openai` repeats it at once.
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def _sent_file(body: bytes) -> bytes:
    """The file of a form: between the head of its part and the boundary behind it."""
    found = re.search(rb'filename="[^"]*"\r\n[^\r]*\r\n\r\n(.*)\r\n--', body, re.DOTALL)
    assert found is not None
    return found[1]


@contextmanager
def serving() -> Iterator[Api]:
    with Api() as api:
        thread = threading.Thread(target=api.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield api
        finally:
            api.shutdown()
            thread.join()
