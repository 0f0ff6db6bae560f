"""The services as separate processes, with each store and the model server behind a fault proxy."""

import copy
import http.client
import json
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import openai
import psycopg
from openai.types import Batch
from sqlalchemy import URL, NullPool, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from tests import databases, factories
from tests.e2e import processes
from tests.e2e.processes import Process
from tests.fault_proxy import FaultProxy
from xalen_batch.billing import prices, reconcile
from xalen_batch.standalone import stores

LINES = 400
ENDED = ("completed", "failed", "expired", "cancelled")
CATALOG = """\
[models.mistral-small-3-1.backend]
kind = "openai"
base_url = "http://127.0.0.1:{port}/v1"
max_in_flight = 8
"""
SETTINGS = {
    "lease": 4,
    "poll_interval": 0.5,
    "tick_interval": 2,
    "task_lines": 50,
    "flush_interval": 0.2,
    "request_timeout": 3,
    "connect_timeout": 2,
    "retry_base": 0.1,
    "retry_cap": 1,
    "circuit_pause": 1,
    # A fault lasts as long as its test needs: lines must not use up their attempts meanwhile.
    "max_attempts": 1_000,
    "pool_size": 10,
}


class Answer(NamedTuple):
    status: int
    retry_after: str | None
    body: Any
    seconds: float

    @property
    def is_come_back_later(self) -> bool:
        """Whether this is a 503 in the API's envelope, with Retry-After."""
        return (
            self.status == 503
            and int(self.retry_after or 0) > 0
            and self.body["error"]["code"] == "service_unavailable"
        )


class Stack:
    """`database`, `redis` and `backend` are the proxies; `env` is the services' environment.

    `code`: the checkout whose code the services that are started next run; None: this one's.
    """

    def __init__(
        self,
        folder: Path,
        running: ExitStack,
        code: Path | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.folder = folder
        self.code = code
        self.database_name = "postgres"
        self._running = running
        self.postgres = stores.Postgres(
            folder / "postgres", folder / "postgres.log", connections=40
        )
        self.valkey = stores.Valkey(folder / "valkey", folder / "valkey.log")
        self.database = running.enter_context(
            FaultProxy(self.postgres.sockets / f".s.PGSQL.{stores.POSTGRES_PORT}")
        )
        self.redis = running.enter_context(FaultProxy(self.valkey.sockets / "valkey.sock"))
        self.model_port = processes.free_port()
        self.backend = running.enter_context(FaultProxy(("127.0.0.1", self.model_port)))
        self.port = processes.free_port()
        if code is None:
            databases.copy_to(self.postgres.folder)
        for store in (self.postgres, self.valkey):
            store.start()
            running.callback(store.stop)
        catalog = folder / "catalog.toml"
        catalog.write_text(CATALOG.format(port=self.backend.port), "utf-8")
        through = make_url(self.postgres.url).set(
            host="127.0.0.1", port=self.database.port, query={}
        )
        self.settings: dict[str, object] = {
            **SETTINGS,
            "catalog": catalog,
            "data_dir": folder / "data",
            "database_url": through.render_as_string(hide_password=False),
            "redis_url": f"redis://127.0.0.1:{self.redis.port}/0",
            "host": "127.0.0.1",
            "port": self.port,
            **(settings or {}),
        }
        if code is not None:
            subprocess.run(self.migration, env=self.owner_env(), check=True, timeout=300)
        with self.session() as session:
            prices.fill(session)
            self.key = factories.key(session, livemode=True)
            session.commit()
        self.start("simulate", "--port", str(self.model_port), "--latency-ms", "100")
        self.api = self.start("api")
        self.worker = self.start("worker")
        self.wait_until_ready()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def env(self, **settings: object) -> dict[str, str]:
        found = processes.environment(**{**self.settings, **settings})
        return found if self.code is None else found | {"PYTHONPATH": str(self.code)}

    def owner_env(self) -> dict[str, str]:
        """The environment of `migration`."""
        return self.env(migrate_database_url=self.postgres.owner_url)

    @property
    def migration(self) -> list[str]:
        """The command that migrates the database."""
        return [str(processes.COMMAND), "migrate"]

    def client(self, *, retries: int = 20, timeout: float = 120) -> openai.OpenAI:
        """A client that retries as SDKs do, after Retry-After or a refused connection."""
        return openai.OpenAI(
            base_url=f"{self.address}/v1", api_key=self.key, max_retries=retries, timeout=timeout
        )

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        """Send one plain request, once. ConnectionRefusedError: it was not sent."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        begun = time.monotonic()
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        try:
            connection.connect()
        except ConnectionResetError as error:
            raise ConnectionRefusedError("reset in its handshake") from error
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return Answer(
                answer.status,
                answer.getheader("retry-after"),
                json.loads(answer.read()),
                time.monotonic() - begun,
            )
        finally:
            connection.close()

    def start(self, *arguments: str, **settings: object) -> Process:
        """Start a service, which runs until it is stopped or the test run ends."""
        log = self.folder / f"{arguments[0]}.log"
        return self._running.enter_context(
            processes.command(
                *arguments,
                log=log,
                env=self.env(**settings),
                executed=self.code is not None,
            )
        )

    def restart_api(self) -> None:
        """Start the API again, after it has ended."""
        self.api = self.start("api")
        self.wait_until_ready()

    def another_api(self, **settings: object) -> tuple[int, Process]:
        """One more API and its port."""
        port = processes.free_port()
        api = self.start("api", "--port", str(port), **settings)
        processes.wait_until(
            lambda: processes.answers(f"http://127.0.0.1:{port}/livez"),
            timeout=processes.START_TIMEOUT,
            process=api,
        )
        return port, api

    def wait_until_ready(self) -> None:
        log = self.folder / "api.log"
        processes.wait_until(
            lambda: processes.answers(f"{self.address}/readyz"),
            timeout=processes.START_TIMEOUT,
            process=self.api,
            log=log,
        )

    def direct(self) -> psycopg.Connection:
        """A connection to the database that bypasses the proxy."""
        return psycopg.connect(self.postgres.owner_url, dbname=self.database_name, autocommit=True)

    def url(self) -> URL:
        return make_url(self.postgres.owner_url).set(
            drivername="postgresql+psycopg", database=self.database_name
        )

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session that bypasses the proxy, for the product's own code."""
        with (
            create_engine(self.url(), poolclass=NullPool).connect() as connection,
            Session(connection) as session,
        ):
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """As `session`, and all statements see one snapshot."""
        with self.session() as session:
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    def upload(self, lines: int = LINES, client: openai.OpenAI | None = None) -> str:
        content = factories.jsonl(
            [factories.chat_line(f"line-{n}", f"Where is parcel {n}?") for n in range(lines)]
        )
        return (
            (client or self.client())
            .files.create(file=("lines.jsonl", content), purpose="batch")
            .id
        )

    def submit(self, lines: int = LINES) -> Batch:
        return self.client().batches.create(
            input_file_id=self.upload(lines),
            endpoint="/v1/chat/completions",
            completion_window="24h",
        )

    def submit_and_wait_for_some(self) -> Batch:
        batch = self.submit()
        self.wait_for(
            batch,
            lambda b: b.request_counts is not None and b.request_counts.completed >= LINES / 20,
            timeout=120,
        )
        return batch

    def wait_for(self, batch: Batch, happened: Callable[[Batch], bool], *, timeout: float) -> Batch:
        client, found = self.client(), [batch]

        def look() -> bool:
            found[0] = client.batches.retrieve(batch.id)
            counts = found[0].request_counts
            assert (
                counts is None
                or counts.completed + counts.failed <= counts.total
                or not counts.total
            )
            return happened(found[0])

        processes.wait_until(look, timeout=timeout, log=self.folder / "worker.log")
        return found[0]

    def is_done(self, batch: Batch, *, lines: int = LINES, timeout: float = 240) -> None:
        """Wait for the batch to end, and assert that it is completed, that each line is once in its
        output and once on its invoice, and that no lease is left.
        """
        ended = self.wait_for(batch, lambda b: b.status in ENDED, timeout=timeout)
        counts = ended.request_counts
        assert counts is not None
        assert (ended.status, counts.completed, counts.failed, counts.total) == (
            "completed",
            lines,
            0,
            lines,
        )
        assert ended.output_file_id is not None
        client = self.client()
        output = [
            json.loads(line)
            for line in client.files.content(ended.output_file_id).content.splitlines()
        ]
        assert Counter(line["custom_id"] for line in output) == Counter(
            f"line-{n}" for n in range(lines)
        )
        invoice = client.get(f"/batches/{batch.id}/invoice", cast_to=dict)
        billed = {
            line["component"]: int(line["quantity"])
            for line in invoice["lines"]
            if line["kind"] == "usage"
        }
        assert billed["input"] == sum(
            line["response"]["body"]["usage"]["prompt_tokens"] for line in output
        )
        assert billed["output"] == sum(
            line["response"]["body"]["usage"]["completion_tokens"] for line in output
        )
        assert list(reconcile.differences(self.snapshot)) == []
        with self.direct() as session:
            open_tasks = "SELECT count(*) FROM tasks WHERE batch_id = %s AND state <> 'done'"
            assert session.execute(open_tasks, [batch.id.removeprefix("batch_")]).fetchone() == (0,)

    def dump(self, to: Path) -> None:
        """Back up the database."""
        tool = stores.postgres_binaries() / "pg_dump"
        url = self.url().set(drivername="postgresql").render_as_string(hide_password=False)
        subprocess.run([tool, "-Fc", "-f", to, url], check=True, timeout=120)

    def restore(self, dump: Path, name: str) -> "Stack":
        """Restore a backup as a database of this name on the same server; `serving` starts it."""
        with self.direct() as session:
            session.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
            session.execute(f"CREATE DATABASE {name}".encode())
        restored = copy.copy(self)
        restored.database_name = name
        restored.port = processes.free_port()
        through = make_url(str(self.settings["database_url"])).set(database=name)
        restored.settings = self.settings | {
            "database_url": through.render_as_string(hide_password=False),
            # Hints for one database are no hints for the other.
            "redis_url": f"redis://127.0.0.1:{self.redis.port}/1",
            "port": restored.port,
        }
        tool = stores.postgres_binaries() / "pg_restore"
        url = restored.url().set(drivername="postgresql").render_as_string(hide_password=False)
        subprocess.run([tool, "--no-owner", "-d", url, dump], check=True, timeout=120)
        return restored

    @contextmanager
    def serving(self) -> Iterator[None]:
        """An API and a worker for as long as the block lasts."""
        self.api, self.worker = self.start("api"), self.start("worker")
        try:
            self.wait_until_ready()
            yield
        finally:
            for process in (self.api, self.worker):
                processes.stop(process)

    def kill(self, process: Process) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait(10)


@contextmanager
def running(
    code: Path | None = None, settings: Mapping[str, object] | None = None
) -> Iterator[Stack]:
    # A short path: sockets live in it.
    with tempfile.TemporaryDirectory(prefix="xalen-stack-") as folder, ExitStack() as parts:
        yield Stack(Path(folder), parts, code, settings)
