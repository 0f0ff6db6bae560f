"""A full run in which every secret, prompt, answer and name is a canary: no canary is written
anywhere but into the stores.

All processes log at `debug`, and the run has many failures: refusals, broken and wrong answers,
wrong keys, wrong forms, a Redis that stops, a database that refuses the password.
"""

import base64
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import openai
import psycopg
import pytest
import redis

from tests import factories
from tests.conftest import Stores
from tests.e2e import processes
from tests.factories import CHAT_MODEL, RERANK_MODEL, chat_line, jsonl, rerank_line
from xalen_batch import db, storage
from xalen_batch.standalone import stores as embedded

CANARY = re.compile(rb"c4nary-[a-z0-9-]+")


def canary(what: str) -> str:
    """A word that needs no escaping in JSON, headers or URLs."""
    return f"c4nary-{what}"


class Backend(BaseHTTPRequestHandler):
    """A model server that repeats the request in all of its answers."""

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["content-length"])).decode()
        said = f"{asked} {canary('answer')}"
        answer: bytes = json.dumps(
            {"error": {"message": said, "type": "x", "param": None, "code": None}}
        ).encode()
        status = 400 if "refuse" in asked else 500 if "break" in asked else 200
        if status == 200 and "garble" in asked:
            answer = said.encode()
        elif status == 200 and self.path.endswith("/rerank"):
            answer = json.dumps(
                {
                    "results": [{"index": 0, "relevance_score": 0.5}],
                    "usage": {"prompt_tokens": 3, "total_tokens": 3},
                }
            ).encode()
        elif status == 200:
            message = {"role": "assistant", "content": said}
            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            answer = json.dumps(
                {
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": usage,
                }
            ).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def backend() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Backend) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/v1"
        finally:
            listening.shutdown()
            thread.join()


@contextmanager
def valkey(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Valkey on TCP with a password, which keeps every message that it was ever sent; its URL,
    and its process.
    """
    port, password = processes.free_port(), canary("redis-password")
    folder.mkdir()
    configuration = folder / "valkey.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\nrequirepass {password}\ndir {folder}\nappendonly yes\nsave"
        " ''\n".replace("''", '""')
    )
    with (folder / "valkey.log").open("wb") as log:
        process = subprocess.Popen(
            [str(embedded._valkey_binary()), str(configuration)], stdout=log, stderr=log
        )
    url = f"redis://:{password}@127.0.0.1:{port}/0"

    def answers() -> bool:
        try:
            with redis.Redis.from_url(url) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    try:
        processes.wait_until(answers, process=process, log=folder / "valkey.log")
        yield url, process
    finally:
        processes.stop(process)


@pytest.fixture
def database_url(stores: Stores, database: str) -> Iterator[str]:
    """A user of the tests' PostgreSQL whose password is a canary."""
    password = canary("database-password")
    with psycopg.connect(stores.migrate_database_url, autocommit=True) as connection:
        connection.execute(
            f"CREATE ROLE canary LOGIN PASSWORD '{password}' IN ROLE {embedded.SERVING}"
        )
        yield re.sub("//[^@]*@", f"//canary:{password}@", database)
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'canary'"
        )
        connection.execute("DROP ROLE canary")


def use(base_url: str, key: str) -> None:
    """The requests of a user, with many failures."""
    client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0)
    said = [
        canary("prompt"),
        f"refuse {canary('refused-prompt')}",
        f"break {canary('broken-prompt')}",
        f"garble {canary('garbled-prompt')}",
    ]
    lines = [chat_line(f"{canary('custom-id')}-{n}", content) for n, content in enumerate(said)]
    file = client.files.create(
        file=(f"{canary('file-name')}.jsonl", jsonl(lines)),
        purpose="batch",
        extra_headers={"idempotency-key": canary("idempotency-key")},
    )
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={canary("metadata-key"): canary("metadata-value")},
    )
    ranking = client.files.create(
        file=(
            "r.jsonl",
            jsonl([rerank_line(canary("rerank-id"), canary("query"), [canary("document")])]),
        ),
        purpose="batch",
    )
    ranked = client.batches.create(
        input_file_id=ranking.id, endpoint="/v1/rerank", completion_window="24h"
    )  # type: ignore[arg-type]
    bad = client.files.create(
        file=("bad.jsonl", f'{{"custom_id": {canary("bad-line")}\n'.encode()), purpose="batch"
    )
    failed = client.batches.create(
        input_file_id=bad.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    ended = {"completed", "failed"}
    processes.wait_until(
        lambda: (
            {client.batches.retrieve(each.id).status for each in (batch, ranked, failed)} <= ended
        ),
        timeout=300,
    )
    done = client.batches.retrieve(batch.id)
    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (1, 3)
    assert canary("answer") in client.files.content(done.output_file_id or "").text
    assert canary("refused-prompt") in client.files.content(done.error_file_id or "").text
    client.get(f"/batches/{batch.id}/invoice", cast_to=object)
    schedule = {
        "name": canary("schedule"),
        "cron": "0 2 * * *",
        "endpoint": "/v1/chat/completions",
        "inbox": {},
    }
    made = client.post("/schedules", body=schedule, cast_to=dict[str, object])
    client.post(
        f"/schedules/{made['id']}/requests",
        body=chat_line("waits", canary("inbox-prompt")),
        cast_to=object,
    )
    for wrong in (
        lambda: client.get(f"/files?after={canary('query-string')}", cast_to=object),
        lambda: client.get(f"/{canary('path')}", cast_to=object),
        lambda: client.get(f"/files/{canary('id')}", cast_to=object),
        lambda: client.post(
            "/batches", body={"input_file_id": {"a": canary("wrong-value")}}, cast_to=object
        ),
        lambda: client.post("/files", body=canary("wrong-form"), cast_to=object),
        lambda: openai.OpenAI(
            base_url=base_url, api_key=canary("wrong-key"), max_retries=0
        ).files.list(),
        lambda: client.post(
            f"/schedules/{made['id']}/requests",
            body={"custom_id": canary("wrong-request")},
            cast_to=object,
        ),
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            wrong()
        assert caught.value.status_code < 500


def messages(folder: Path) -> list[dict[str, object]]:
    """Every Celery message in the append-only file of a Valkey."""
    content = b"".join(path.read_bytes() for path in sorted((folder / "appendonlydir").iterdir()))
    found = [json.loads(raw) for raw in re.findall(rb'\r\n(\{"body":.*?\})\r\n', content)]
    return [{**message, "body": json.loads(base64.b64decode(message["body"]))} for message in found]


def test_no_canary_is_written_anywhere_but_in_the_stores(
    stores: Stores, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKEND_KEY", canary("backend-key"))
    data, broker = tmp_path / "data", tmp_path / "valkey"
    (data / "logs").mkdir(parents=True)
    with db.transaction() as session:
        key = factories.key(session, livemode=True)
    written = [broker / "valkey.log", stores.data_dir.parent / "postgres.log", data / "logs"]
    with ExitStack() as running:
        address = running.enter_context(backend())
        redis_url, redis_server = running.enter_context(valkey(broker))
        catalog = tmp_path / "catalog.toml"
        catalog.write_text(
            "".join(
                f'[models.{model}.backend]\nkind = "openai"\nbase_url = "{address}"\napi_key_env ='
                ' "BACKEND_KEY"\n'
                for model in (CHAT_MODEL, RERANK_MODEL)
            )
        )
        settings: dict[str, object] = {
            "database_url": database_url,
            "redis_url": redis_url,
            "catalog": catalog,
            "log_level": "debug",
            "storage_url": storage.folder().as_uri(),
            "poll_interval": 0.2,
            "tick_interval": 1,
            "max_attempts": 2,
            "retry_base": 0.05,
            "retry_cap": 0.1,
        }
        env = processes.environment(**settings, data_dir=data)
        port = processes.free_port()
        base_url = f"http://127.0.0.1:{port}/v1"
        for name in ("api", "worker", "beat"):
            options = ["--port", str(port)] if name == "api" else []
            running.enter_context(
                processes.command(name, *options, log=data / "logs" / f"{name}.log", env=env)
            )
        processes.wait_until(
            lambda: processes.answers(f"http://127.0.0.1:{port}/readyz"),
            timeout=processes.START_TIMEOUT,
        )
        use(base_url, key)
        for command in (
            ["doctor"],
            ["keys", "list"],
            ["keys", "create", "--create-account", "--account", canary("account")],
            ["reconcile"],
            ["list", "--live"],
        ):
            ran = processes.run(*command, env=env, timeout=240)
            shown = ran.stderr if command[:2] == ["keys", "create"] else ran.stdout + ran.stderr
            assert not re.search(
                rb"c4nary-(redis|database|backend)|xln_(test|live)_\w{10}", shown
            ), (command, shown)
        sent = messages(broker)
        # Redis goes away: a message cannot be sent, and workers and beat lose their connection.
        processes.stop(redis_server)
        client = openai.OpenAI(base_url=base_url, api_key=key)
        file = client.files.create(
            file=("late.jsonl", jsonl([chat_line("a", canary("late-prompt"))])), purpose="batch"
        )
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        processes.wait_until(
            lambda: client.batches.retrieve(batch.id).status == "completed", timeout=240
        )
        worker_log = data / "logs" / "worker.log"
        processes.wait_until(lambda: "onnection" in worker_log.read_text("utf-8", "replace"))
        # A database that refuses the password, asked by each part.
        refused = settings | {
            "database_url": database_url.replace(
                canary("database-password"), canary("wrong-password")
            )
        }
        other = processes.free_port()
        log = tmp_path / "refused.log"
        written.append(log)
        with processes.command(
            "api",
            "--port",
            str(other),
            log=log,
            env=processes.environment(**refused, data_dir=tmp_path / "other"),
        ):
            processes.wait_until(
                lambda: processes.answers(f"http://127.0.0.1:{other}/livez"),
                timeout=processes.START_TIMEOUT,
            )
            with pytest.raises(openai.InternalServerError) as unavailable:
                openai.OpenAI(
                    base_url=f"http://127.0.0.1:{other}/v1",
                    api_key=canary("refused-key"),
                    max_retries=0,
                ).files.list()
            assert unavailable.value.status_code == 503
        # An error whose detail PostgreSQL itself could quote.
        twice = (
            "INSERT INTO accounts (id, name) SELECT gen_random_uuid(), %s FROM"
            " generate_series(1, 2)"
        )
        with (
            psycopg.connect(database_url, autocommit=True) as connection,
            pytest.raises(psycopg.errors.UniqueViolation),
        ):
            connection.execute(twice, [canary("account-name")])
    files = [
        path
        for place in written
        for path in ([place] if place.is_file() else sorted(place.rglob("*")))
        if path.is_file()
    ]
    assert {path.name for path in files} >= {
        "api.log",
        "worker.log",
        "beat.log",
        "postgres.log",
        "valkey.log",
        "refused.log",
    }
    for path in files:
        content = path.read_bytes()
        assert content or path.name in ("valkey.log", "beat.log"), f"{path} is empty"
        assert sorted({found.decode() for found in CANARY.findall(content)}) == [], path
        assert key.encode() not in content, path
    # The messages in Redis are JSON with at most the name of a job and an id.
    assert len(sent) > 3
    assert {message["content-type"] for message in sent} == {"application/json"}
    for message in sent:
        arguments, keywords, _ = message["body"]  # type: ignore[misc]
        assert keywords == {}
        assert all(re.fullmatch("[0-9a-f]{32}|[0-9]{1,2}", argument) for argument in arguments), (
            arguments
        )
    everything = b"".join(path.read_bytes() for path in (broker / "appendonlydir").iterdir())
    assert CANARY.findall(everything) == []
