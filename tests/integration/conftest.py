"""The API on a real socket, an empty database, and runs of `doctor`."""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from typer.testing import CliRunner

from tests import factories
from tests.conftest import Stores, forget
from tests.waiting import PATIENCE
from xalen_batch import db
from xalen_batch.api import app
from xalen_batch.api.http.protocol import BoundedHttp
from xalen_batch.cli.main import app as command_line

# pytest rewrites asserts in test and conftest files only.
# A plain assert does not show the compared values.
pytest.register_assert_rewrite(
    *(
        f"tests.integration.{module}"
        for module in (
            "backends.hostile_backend",
            "engines",
            "schedules.assembling",
            "schedules.firing",
        )
    )
)

Json = dict[str, Any]
Doctor = Callable[..., tuple[int, dict[str, Any]]]


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
        return openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key=self.key, max_retries=0
        )

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        key: str | None = "",
    ) -> Answer:
        """One raw request.

        `body`: bytes as they are, anything else as JSON. `key`: None sends none.
        """
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
            found = Answer(
                answer.status,
                {name.lower(): value for name, value in answer.getheaders()},
                answer.read(),
            )
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
        disposition = f'form-data; name="{name}"' + (
            f'; filename="{filename}"' if filename is not None else ""
        )
        body += (
            b"--edge\r\nContent-Disposition: "
            + disposition.encode()
            + b"\r\n\r\n"
            + content
            + b"\r\n"
        )
    return "multipart/form-data; boundary=edge", body + b"--edge--\r\n"


@pytest.fixture(scope="session")
def port(stores: object) -> Iterator[int]:
    """The port of an API in a thread of this process, so that a test can change its settings."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            app.create_app(),
            loop="uvloop",
            http=BoundedHttp,
            ws="none",
            log_config=None,
            access_log=False,
        )
    )
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


@pytest.fixture
def empty_database(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Create an empty database on the same server, and put it into the settings."""
    server = create_engine(db.owner_url(), isolation_level="AUTOCOMMIT")
    name = "migrations"
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    for variable, address in (
        ("XALEN_DATABASE_URL", stores.database_url),
        ("XALEN_MIGRATE_DATABASE_URL", stores.migrate_database_url),
    ):
        monkeypatch.setenv(
            variable, make_url(address).set(database=name).render_as_string(hide_password=False)
        )
    db.engine().dispose()
    forget()
    yield
    db.engine().dispose()
    monkeypatch.undo()
    forget()
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name}"))
    server.dispose()


@pytest.fixture
def doctor(stores: Stores, configure: Callable[..., None], tmp_path: Path) -> Doctor:
    """A function that runs `doctor`; returns its exit code, and each check by name."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    configure(data_dir=folder)

    def run(*options: str) -> tuple[int, dict[str, Any]]:
        result = CliRunner().invoke(command_line, ["doctor", "--json", *options])
        return result.exit_code, {
            check["name"]: check for check in json.loads(result.stdout)["checks"]
        }

    return run
