"""`doctor` on real stores names each error with its remedy."""

import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from sqlalchemy import text, update
from typer.testing import CliRunner

from tests.billing import Ran, ended
from tests.conftest import Stores, as_owner, forget
from tests.integration.conftest import Doctor
from tests.model_servers import imitate, listing
from tests.waiting import wait_until
from tests.webhooks import an_endpoint, an_owner, completed, set_deliveries, set_endpoint
from xalen_batch import db, ids, storage
from xalen_batch.cli.doctor import passwords
from xalen_batch.cli.main import app
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Batch
from xalen_batch.standalone import stores
from xalen_batch.storage import marks

MODEL = "mistral-small-3-1"
KEY = "MISTRAL_API_KEY"
# The model's name at its backend.
SERVED = "mistralai/Mistral-Small-3.1-24B-Instruct-2503"


def test_a_sound_installation_passes(
    doctor: Doctor, configure: Callable[..., None], valkey: redis.Redis, tmp_path: Path
) -> None:
    # A folder that no other test has made, as it likes.
    configure(storage_url=(tmp_path / "data" / "files").as_uri())
    storage.store()
    (storage.folder() / storage.MARK).write_text(str(marks.identity()))
    code, checks = doctor()
    assert code == 0
    sound = (
        "python",
        "data folder",
        "database",
        "migrations",
        "rights",
        "redis",
        "passwords",
        "storage",
        "store mark",
        "workers",
        "sealing",
        "webhooks",
        "kept",
    )
    sound += ("disk space", "catalog")
    assert [checks[name] for name in sound if checks[name]["status"] != "ok"] == []
    # No model server runs here: live lines would wait, and nothing else is wrong.
    assert checks["backend of mistral-small-3-1"]["status"] == "warning"


def test_the_data_folder_may_be_named(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XALEN_DATA_DIR", "nowhere")
    (tmp_path / "data").mkdir(mode=0o700, exist_ok=True)
    _, checks = doctor("--data-dir", str(tmp_path / "data"))
    assert checks["data folder"]["detail"] == str(tmp_path / "data")


def test_it_makes_nothing(
    doctor: Doctor, configure: Callable[..., None], valkey: redis.Redis, tmp_path: Path
) -> None:
    configure(data_dir=tmp_path / "none", storage_url=(tmp_path / "none" / "files").as_uri())
    code, checks = doctor()
    assert (code, checks["data folder"]["status"], checks["storage"]["status"]) == (
        0,
        "warning",
        "warning",
    )
    assert not (tmp_path / "none").exists()


def test_a_redis_that_evicts_is_named_with_its_remedy(doctor: Doctor, valkey: redis.Redis) -> None:
    valkey.config_set("maxmemory-policy", "allkeys-lru")
    try:
        code, checks = doctor()
    finally:
        valkey.config_set("maxmemory-policy", "noeviction")
    assert (code, checks["redis"]["status"]) == (1, "failed")
    assert "maxmemory-policy to noeviction" in checks["redis"]["detail"]


def test_a_redis_that_cannot_be_written_to_is_named_with_its_remedy(
    doctor: Doctor, valkey: redis.Redis
) -> None:
    valkey.replicaof("127.0.0.1", "1")
    try:
        code, checks = doctor()
    finally:
        valkey.replicaof("NO", "ONE")
    assert (code, checks["redis"]["status"]) == (1, "failed")
    assert "It answers and cannot be written to" in checks["redis"]["detail"]
    assert "to a primary" in checks["redis"]["detail"]


def test_a_redis_that_forgets_is_a_warning(doctor: Doctor, valkey: redis.Redis) -> None:
    valkey.config_set("appendonly", "no")
    try:
        code, checks = doctor()
    finally:
        valkey.config_set("appendonly", "yes")
    assert (code, checks["redis"]["status"]) == (0, "warning")


def test_a_batch_that_is_not_sealed_for_long_is_named(doctor: Doctor, database: str) -> None:
    batch = ended([Ran(Usage(7, 9))])
    _, checks = doctor()
    assert checks["sealing"]["status"] == "ok"
    with db.transaction() as session:
        session.execute(
            update(Batch)
            .where(Batch.id == batch.id)
            .values(completed_at=datetime.now(UTC) - timedelta(hours=2))
        )
    _, checks = doctor()
    assert checks["sealing"]["status"] == "warning"
    assert ids.render("batch", batch.id) in checks["sealing"]["detail"]


def test_deliveries_that_nobody_sends_are_a_warning(doctor: Doctor, database: str) -> None:
    owner = an_owner()
    webhook = an_endpoint(owner)
    an_endpoint(owner, status="disabled", disabled_reason="gone")
    completed(owner)
    _, checks = doctor()
    assert (checks["webhooks"]["status"], checks["webhooks"]["detail"]) == (
        "ok",
        "1 enabled, 1 disabled by what their receivers answered",
    )
    set_deliveries(webhook, due_at=datetime.now(UTC) - timedelta(minutes=6))
    code, checks = doctor()
    assert (code, checks["webhooks"]["status"]) == (0, "warning")
    assert "due for more than five minutes: 1." in checks["webhooks"]["detail"]
    # Its receiver asked for a pause.
    set_endpoint(webhook, not_before=datetime.now(UTC) + timedelta(hours=1))
    _, checks = doctor()
    assert checks["webhooks"]["status"] == "ok"


def test_what_the_database_keeps_is_shown_by_table_and_partitions_as_one(
    doctor: Doctor, database: str
) -> None:
    with as_owner() as session:
        session.execute(text("ANALYZE results"))
    _, checks = doctor()
    kept = checks["kept"]
    assert kept["status"] == "ok"
    assert re.search(r"results [\d.,]+ MiB, about [\d,]+ rows", kept["detail"])
    assert "results_" not in kept["detail"]


def test_a_data_folder_that_others_can_read_is_named(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "data").chmod(0o755)
    code, checks = doctor()
    assert code == 1
    assert "chmod 700" in checks["data folder"]["detail"]


def test_the_stores_of_a_running_up_are_found(
    doctor: Doctor, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = f"database_url = '{stores.database_url}'\nredis_url = '{stores.redis_url}'\n"
    (tmp_path / "data" / "run.toml").write_text(written)
    (tmp_path / "data" / "run.toml").chmod(0o600)
    # Empty: the command fills them in, and the patch takes that back.
    for name in ("XALEN_DATABASE_URL", "XALEN_REDIS_URL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    forget()
    try:
        _, checks = doctor()
        assert [checks[name]["status"] for name in ("database", "redis")] == ["ok", "ok"]
    finally:
        monkeypatch.undo()
        forget()


@pytest.mark.parametrize("name", ["credentials.toml", "run.toml"])
def test_a_file_of_secrets_that_others_can_read_is_named(
    doctor: Doctor, tmp_path: Path, name: str
) -> None:
    (tmp_path / "data" / name).write_text("")
    (tmp_path / "data" / name).chmod(0o640)
    code, checks = doctor()
    assert (code, checks["data folder"]["status"]) == (1, "failed")
    assert f"chmod 600 {tmp_path / 'data' / name}" in checks["data folder"]["detail"]


def test_uploads_that_others_can_read_are_a_warning(doctor: Doctor, stores: Stores) -> None:
    folder = storage.folder()
    storage.store()
    folder.chmod(0o755)
    try:
        code, checks = doctor()
    finally:
        folder.chmod(0o700)
    assert (code, checks["storage"]["status"]) == (0, "warning")
    assert f"chmod 700 {folder}" in checks["storage"]["detail"]


@pytest.fixture
def otherwise(configure: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """`configure`, for settings that are kept in caches."""
    forget()

    def change(**values: object) -> None:
        configure(**values)
        forget()

    yield change
    forget()


def test_an_absent_database_is_said_once(doctor: Doctor, otherwise: Callable[..., None]) -> None:
    otherwise(database_url="postgresql://nobody:secret-word@127.0.0.1:1/none")
    code, checks = doctor()
    assert (code, checks["database"]["status"]) == (1, "failed")
    assert "does not answer" in checks["database"]["detail"]
    assert "correct XALEN_DATABASE_URL" in checks["database"]["detail"]
    assert (checks["migrations"]["status"], checks["migrations"]["detail"]) == (
        "skipped",
        "not checked: no database",
    )
    assert checks["redis"]["status"] == "ok"
    assert "secret-word" not in json.dumps(checks)


def test_where_nothing_runs_that_is_said_once(
    doctor: Doctor, otherwise: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XALEN_DATABASE_URL")
    monkeypatch.delenv("XALEN_REDIS_URL")
    otherwise()
    code, checks = doctor()
    assert code == 1
    assert [
        name
        for name, check in checks.items()
        if "nothing runs on the data folder" in check["detail"]
    ] == ["database"]
    assert (checks["redis"]["status"], checks["redis"]["detail"]) == (
        "skipped",
        "not checked: nothing runs",
    )


@pytest.mark.parametrize(
    ("setting", "address", "check"),
    [
        ("database_url", "postgresql://u:secret-word@host:port/x", "database"),
        ("database_url", "postgresql://u:secret-word@127.0.0.1:1/x?nonsense=1", "database"),
        ("redis_url", "secret-word://host", "redis"),
        ("redis_url", "redis://:secret-word@127.0.0.1:1/0", "redis"),
    ],
)
def test_an_address_that_does_not_work_has_a_remedy_and_keeps_its_secret(
    doctor: Doctor, otherwise: Callable[..., None], setting: str, address: str, check: str
) -> None:
    otherwise(**{setting: address})
    code, checks = doctor()
    assert (code, checks[check]["status"]) == (1, "failed")
    assert f"XALEN_{setting.upper()}" in checks[check]["detail"]
    assert "Unexpected" not in checks[check]["detail"]
    assert "secret-word" not in json.dumps(checks)


def test_settings_that_are_not_valid_are_said_once_and_nothing_else_is_looked_at(
    doctor: Doctor, otherwise: Callable[..., None]
) -> None:
    otherwise(storage_url="s3://bucket/x")
    code, checks = doctor()
    assert (code, [*checks]) == (1, ["python", "data folder", "settings"])
    assert "XALEN_STORAGE_URL" in checks["settings"]["detail"]


def test_a_misspelt_setting_is_a_warning_with_the_name_that_was_meant(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XALEN_WORKER_SLOT", "8")
    _, checks = doctor()
    assert checks["settings"]["status"] == "warning"
    assert "XALEN_WORKER_SLOT (did you mean XALEN_WORKER_SLOTS?)" in checks["settings"]["detail"]


def test_a_storage_that_cannot_be_written_is_named(
    doctor: Doctor, otherwise: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("")
    otherwise(storage_url=(tmp_path / "taken").as_uri())
    code, checks = doctor()
    assert (code, checks["storage"]["status"]) == (1, "failed")
    assert "cannot be written: Not a directory" in checks["storage"]["detail"]


def test_the_table_is_data_and_goes_to_stdout(doctor: Doctor) -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.stdout.startswith("check")
    assert result.stderr == ""


@contextmanager
def server(status: int, body: bytes = b"") -> Iterator[str]:
    """The `base_url` of a model server that answers everything so."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with HTTPServer(("127.0.0.1", 0), Answer) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/v1"
        finally:
            listening.shutdown()
            thread.join()


@pytest.fixture
def backend(
    doctor: Doctor, configure: Callable[..., None], tmp_path: Path
) -> Callable[[str], tuple[str, str]]:
    """The status and the finding for a model whose backend is at that address."""

    def look(base_url: str) -> tuple[str, str]:
        catalog = tmp_path / "catalog.toml"
        catalog.write_text(
            f'[models.{MODEL}.backend]\nbase_url = "{base_url}"\napi_key_env = "{KEY}"\n'
        )
        configure(catalog=catalog)
        check = doctor()[1][f"backend of {MODEL}"]
        return check["status"], check["detail"]

    return look


Look = Callable[[str], tuple[str, str]]


@pytest.mark.parametrize(
    ("answer", "key", "status", "words"),
    [
        (200, "secret-word", "ok", "/v1"),
        (404, "secret-word", "ok", "/v1"),
        (200, "", "ok", f"answers. {KEY}, which is to hold its key, is not set."),
        (
            401,
            "",
            "warning",
            (
                f"asks for a key. {KEY}, which is to hold its key, is not set. Live requests to"
                " this model wait"
            ),
        ),
        (
            401,
            "secret-word",
            "warning",
            f"refuses the key in {KEY}. Live requests to this model wait",
        ),
        (
            403,
            "secret-word",
            "warning",
            f"refuses the key in {KEY}. Live requests to this model wait",
        ),
        (500, "secret-word", "warning", "answers with status 500"),
    ],
)
def test_a_backend_that_answers(
    backend: Look, monkeypatch: pytest.MonkeyPatch, answer: int, key: str, status: str, words: str
) -> None:
    monkeypatch.setenv(KEY, key)
    with server(answer) as base_url:
        found, detail = backend(base_url)
    assert found == status
    assert words in detail
    assert "secret-word" not in detail


@pytest.mark.parametrize(
    ("names", "status", "words"),
    [
        ([SERVED, "another"], "ok", "/v1"),
        ([f"{SERVED}:latest"], "ok", "/v1"),
        ([], "ok", "/v1"),
        (
            ["mistral-small", "another"],
            "warning",
            (
                f"does not list {SERVED}, the name that requests carry. It has mistral-small,"
                " another. "
            ),
        ),
        ([f"model-{n}" for n in range(12)], "warning", "model-9 and 2 more"),
    ],
)
def test_the_models_that_a_backend_lists_are_compared_with_the_catalogs_name(
    backend: Look, names: list[str], status: str, words: str
) -> None:
    with server(
        200, json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode()
    ) as base_url:
        found, detail = backend(base_url)
    assert found == status
    assert words in detail
    assert status == "ok" or f"Set models.{MODEL}.backend.model in the catalog" in detail


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'{"data":[1]}', b'{"data":null}', b'{"data":[{}]}', b"[" * 100_000],
)
def test_a_listing_that_is_none_is_no_finding(backend: Look, body: bytes) -> None:
    with server(200, body) as base_url:
        assert backend(base_url)[0] == "ok"


def test_a_backend_that_is_away_and_its_missing_key_are_both_said(
    backend: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY, raising=False)
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    status, detail = backend(f"http://127.0.0.1:{port}/v1")
    assert status == "warning"
    assert (
        f"cannot be reached: Connection refused. {KEY}, which is to hold its key, is not set. Live"
        " requests to this model wait" in detail
    )


@pytest.mark.parametrize("address", ["host:8000/v1", "ftp://host/v1", "http://host:port/v1"])
def test_a_base_url_that_is_no_address_is_named_with_its_place(backend: Look, address: str) -> None:
    status, detail = backend(address)
    assert status == "failed"
    assert f"models.{MODEL}.backend in the catalog is {address}. It looks like http://" in detail


def test_a_key_that_no_header_can_carry_is_named_and_not_shown(
    backend: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "secret\nword")
    status, detail = backend("http://127.0.0.1:1/v1")
    assert (status, "secret" in detail) == ("failed", False)
    assert KEY in detail


@contextmanager
def on_tcp(tmp_path: Path, *options: str) -> Iterator[int]:
    """A Valkey on a port of the loopback."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port: int = free.getsockname()[1]
    arguments = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(tmp_path),
        "--appendonly",
        "yes",
        "--maxmemory-policy",
        "noeviction",
    ]
    with subprocess.Popen(
        [str(stores._valkey_binary()), *arguments, *options], stdout=subprocess.DEVNULL
    ) as process:
        try:
            wait_until(
                lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, process=process
            )
            yield port
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("password", "status", "words"),
    [
        ("", "warning", "Redis asks for no password: set its requirepass"),
        (
            "redis",
            "warning",
            "The password in XALEN_REDIS_URL is short, or one that anybody would try first.",
        ),
        ("changeme", "warning", "one that anybody would try first"),
        ("8f1c0a77d2e94b35", "ok", "asked for"),
    ],
)
def test_a_redis_that_anybody_may_enter_is_a_warning(
    doctor: Doctor,
    otherwise: Callable[..., None],
    tmp_path: Path,
    password: str,
    status: str,
    words: str,
) -> None:
    with on_tcp(tmp_path, *(["--requirepass", password] if password else [])) as port:
        otherwise(
            redis_url=(
                f"redis://:{password}@127.0.0.1:{port}/0"
                if password
                else f"redis://127.0.0.1:{port}/0"
            )
        )
        code, checks = doctor()
    assert (code, checks["redis"]["status"], checks["passwords"]["status"]) == (
        0,
        "ok",
        status,
    ), checks["passwords"]
    assert words in checks["passwords"]["detail"]
    assert not password or password == "redis" or password not in json.dumps(checks)


@pytest.mark.parametrize(
    ("url", "asks", "words"),
    [
        ("postgresql://xalen:8f1c0a77d2e94b35@db/xalen", True, None),
        ("postgresql://xalen:xalen@db/xalen", True, "one that anybody would try first"),
        ("postgresql://xalen:Postgres@db/xalen", True, "one that anybody would try first"),
        ("postgresql://xalen@db/xalen", True, "one that anybody would try first"),
        ("postgresql://xalen:8f1c0a77d2e94b35@db/xalen", False, "lets anyone in from here"),
        ("postgresql://xalen@/xalen?host=%2Frun%2Fpostgresql", False, None),
    ],
)
def test_a_postgresql_that_anybody_may_enter_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, url: str, asks: bool, words: str | None
) -> None:
    def connect(*_: object, **__: object) -> Any:
        if asks:
            raise psycopg.OperationalError("password authentication failed")
        return closing(socket.socket()).thing

    monkeypatch.setattr(psycopg, "connect", connect)
    found = passwords.of_database(url)
    assert found is None if words is None else words in str(found)
    assert "8f1c0a77d2e94b35" not in str(found)


def test_each_server_of_a_model_is_checked(
    doctor: Doctor, configure: Callable[..., None], tmp_path: Path
) -> None:
    catalog = tmp_path / "catalog.toml"
    with imitate({"GET /v1/models": listing({"id": MODEL})}) as server:
        urls = [f"{server.url}/v1", "http://127.0.0.1:1/v1"]
        catalog.write_text(f"[models.{MODEL}.backend]\nmodel = '{MODEL}'\nbase_urls = {urls}\n")
        configure(catalog=catalog)
        checks = doctor()[1]
    found = {name: checks[f"backend of {MODEL}, {name}"]["status"] for name in urls}
    assert found == {urls[0]: "ok", urls[1]: "warning"}
