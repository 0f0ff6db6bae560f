import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from xalen_batch.errors import ConfigError
from xalen_batch.standalone import processes, stores

PARENT = """
import os, signal, sys
from pathlib import Path
from xalen_batch.standalone import stores
root = Path(sys.argv[1])
postgres = stores.Postgres(root / "postgres", root / "postgres.log", durable=False)
valkey = stores.Valkey(root / "valkey", root / "valkey.log")
postgres.start()
valkey.start()
print(postgres.owner_url, valkey.url, postgres.process.pid, valkey.process.pid, flush=True)
signal.pause()
"""


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[stores.Postgres]:
    server = stores.Postgres(tmp_path / "postgres", tmp_path / "postgres.log", durable=False)
    yield server
    server.stop()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[stores.Valkey]:
    server = stores.Valkey(tmp_path / "valkey", tmp_path / "valkey.log")
    yield server
    server.stop()


def started(server: stores.Server) -> str:
    """An address at which the server has answered, without a schema."""
    server.start()
    return server.owner_url if isinstance(server, stores.Postgres) else server.url


def write(url: str, value: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (value text)")
        connection.execute("INSERT INTO kept VALUES (%s)", [value])


def read(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        return [value for (value,) in connection.execute("SELECT value FROM kept")]


def test_postgresql_keeps_its_data_and_its_address_over_a_restart(
    postgres: stores.Postgres,
) -> None:
    url = started(postgres)
    write(url, "here")
    postgres.stop()
    assert started(postgres) == url
    assert read(url) == ["here"]


def test_a_folder_of_a_version_without_a_serving_role_gets_its_password_once(
    postgres: stores.Postgres,
) -> None:
    started(postgres)
    postgres.stop()
    (postgres.folder / "serve_password").unlink()
    started(postgres)
    url = postgres.url
    postgres.stop()
    started(postgres)
    assert postgres.url == url != postgres.owner_url


def test_valkey_keeps_its_queues_over_a_restart(valkey: stores.Valkey) -> None:
    with redis.Redis.from_url(started(valkey)) as client:
        client.rpush("queue", "hint")
    valkey.stop()
    with redis.Redis.from_url(started(valkey)) as client:
        assert client.lrange("queue", 0, -1) == [b"hint"]
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"


def test_stopping_leaves_no_process(
    postgres: stores.Postgres, valkey: stores.Valkey, tmp_path: Path
) -> None:
    for server in (postgres, valkey):
        server.start()
        pid = server.process.pid
        server.stop()
        assert not processes.is_running(pid, str(tmp_path))


def test_postgresql_refuses_a_wrong_password_and_listens_on_no_port(
    postgres: stores.Postgres,
) -> None:
    url = started(postgres)
    password = (postgres.folder / "password").read_text()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url.replace(password, "wrong"))
    with psycopg.connect(url) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
    assert {
        (postgres.folder / name).stat().st_mode & 0o777 for name in ("password", "serve_password")
    } == {0o600}


def test_sockets_are_private(postgres: stores.Postgres, valkey: stores.Valkey) -> None:
    for server in (postgres, valkey):
        server.start()
        assert server.sockets.stat().st_mode & 0o777 == 0o700
        assert [
            path.stat().st_mode & 0o777 for path in server.sockets.iterdir() if path.is_socket()
        ] == [0o700]


def test_a_long_folder_gets_a_short_private_socket_that_goes_when_it_stops(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    for server in (
        stores.Postgres(folder, tmp_path / "a.log", durable=False),
        stores.Valkey(folder / "valkey", tmp_path / "b.log"),
    ):
        server.start()
        assert server.sockets != server.folder
        assert server.sockets.stat().st_mode & 0o777 == 0o700
        server.stop()
        assert not server.sockets.exists()


def test_a_folder_with_blanks_and_quotes_in_its_name_works(tmp_path: Path) -> None:
    server = stores.Postgres(tmp_path / "it's a folder, 100%", tmp_path / "log", durable=False)
    try:
        write(started(server), "here")
    finally:
        server.stop()


def test_servers_go_with_a_parent_that_was_killed_and_start_again_with_their_data(
    postgres: stores.Postgres, valkey: stores.Valkey, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        database_url, redis_url, *_ = parent.stdout.readline().split()
        write(database_url, "here")
        with redis.Redis.from_url(redis_url) as client:
            client.rpush("queue", "hint")
        parent.kill()
    assert read(started(postgres)) == ["here"]
    with redis.Redis.from_url(started(valkey)) as client:
        assert client.lrange("queue", 0, -1) == [b"hint"]


def test_a_server_still_running_on_the_folder_is_stopped_first(
    postgres: stores.Postgres, valkey: stores.Valkey, tmp_path: Path
) -> None:
    old = [
        stores.Postgres(tmp_path / "postgres", tmp_path / "old.log"),
        stores.Valkey(tmp_path / "valkey", tmp_path / "old2.log"),
    ]
    for before, server in zip(old, [postgres, valkey], strict=True):
        before.start()
        server.start()
        assert before.process.poll() is not None
        assert server.answers()


def test_a_killed_durable_postgresql_has_lost_nothing(tmp_path: Path) -> None:
    server = stores.Postgres(tmp_path / "postgres", tmp_path / "postgres.log")
    try:
        write(started(server), "here")
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        assert read(started(server)) == ["here"]
    finally:
        server.stop()


def test_a_stale_pid_file_that_names_someone_else_stops_nobody(postgres: stores.Postgres) -> None:
    postgres.start()
    text = postgres.pid_file.read_text()
    postgres.stop()
    # As after a reboot: the pid is now another program's.
    with subprocess.Popen(["sleep", "60"]) as stranger:
        postgres.pid_file.write_text(text.replace(text.split()[0], str(stranger.pid), 1))
        postgres.start()
        assert stranger.poll() is None
        stranger.kill()


def test_a_failed_start_says_why_and_where_the_log_is(postgres: stores.Postgres) -> None:
    postgres.start()
    postgres.stop()
    (postgres.data / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(
        ConfigError, match=r"(?s)PostgreSQL did not start.*incompatible with server.*postgres\.log"
    ):
        postgres.start()


def test_a_half_made_database_is_made_anew(postgres: stores.Postgres) -> None:
    half = postgres.folder / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    write(started(postgres), "here")


def test_a_platform_without_binaries_is_told_what_to_set(
    postgres: stores.Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="XALEN_DATABASE_URL"):
        postgres.start()


def test_the_log_of_the_run_before_is_kept(valkey: stores.Valkey) -> None:
    valkey.start()
    valkey.stop()
    valkey.start()
    assert valkey.log.exists()
    assert valkey.log.with_name("valkey.log.1").read_text()
