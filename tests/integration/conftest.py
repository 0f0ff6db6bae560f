"""The API on a real socket, for tests that speak HTTP to it."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
import uvicorn

from tests import factories
from tests.waiting import PATIENCE
from xalen_batch import app, db
from xalen_batch.api.http.protocol import BoundedHttp

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Json:
        error: Json = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return error


@dataclass(frozen=True)
class Api:
    """A running API and a key for it."""

    port: int
    key: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=self.key, max_retries=0)

    def ask(self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, key: str | None = "") -> Answer:
        """One raw request. `body`: bytes as they are, anything else as JSON. `key`: None sends none."""
        sent = dict(headers or {})
        if key is not None:
            sent.setdefault("authorization", f"Bearer {key or self.key}")
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            found = Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()
        assert found.headers["x-request-id"].startswith("req_")
        return found

    def upload(self, content: bytes = b"{}\n", **headers: str) -> Json:
        kind, body = multipart(("purpose", None, b"batch"), ("file", "input.jsonl", content))
        answer = self.ask("POST", "/v1/files", body, headers={"content-type": kind, **headers})
        assert answer.status == 200, answer.body
        file: Json = answer.json
        return file


def multipart(*parts: tuple[str, str | None, bytes]) -> tuple[str, bytes]:
    """The content type and the body of a form of (name, filename, content) parts in that order."""
    body = b""
    for name, filename, content in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
        body += b"--edge\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"
    return "multipart/form-data; boundary=edge", body + b"--edge--\r\n"


@pytest.fixture(scope="session")
def port(stores: object) -> Iterator[int]:
    """Where the API listens, in a thread of this process, so that a test can change its settings."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app.create_app(), loop="uvloop", http=BoundedHttp, ws="none", log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(timeout=PATIENCE)
    listening.close()


@pytest.fixture
def api(port: int, database: str, valkey: object) -> Api:
    """The API for a new account in test mode."""
    return Api(port, new_key())


def new_key(**options: Any) -> str:
    """The key of a new account."""
    with db.transaction() as session:
        return factories.key(session, **options)
