"""The whole product as separate processes, which tests kill, freeze, continue and restart.

PostgreSQL and Valkey are the embedded ones. The other processes reach them, and the model server,
through fault proxies. One folder holds all data; no process and no file outlives the system.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self
from urllib.request import Request, urlopen

import psycopg
from sqlalchemy.engine import make_url

from tests import databases
from tests.chaos.receiver import WELL
from tests.e2e.processes import (
    Process,
    answers,
    environment,
    free_port,
    run,
    start,
    wait_until,
)
from tests.factories import CHAT_MODEL, RERANK_MODEL
from tests.fault_proxy import FaultProxy
from xalen_batch.standalone import stores
from xalen_batch.standalone.processes import last_words

START_TIMEOUT = 120.0
STOP_TIMEOUT = 60.0
WORKERS = ("worker-1", "worker-2")
# The links with a proxy: from workers to the model server, from all to Valkey, and from the api and
# each worker to PostgreSQL.
LINKS = ("models", "valkey", "postgres-api", "postgres-worker-1", "postgres-worker-2")

# All intervals and timeouts, shorter in proportion, so that a night's faults take seconds.
SHORT: Mapping[str, object] = {
    "lease": 3,
    "tick_interval": 2,
    "poll_interval": 0.2,
    "flush_interval": 0.2,
    "task_lines": 40,
    "shutdown_grace": 5,
    "request_timeout": 8,
    "connect_timeout": 2,
    "retry_base": 0.1,
    "retry_cap": 1,
    "circuit_pause": 1,
    "circuit_patience": 2,
    # The campaign's own faults of the backend must not use up a line's attempts.
    "max_attempts": 40,
}
# The product's defaults: the published figures of a killed worker are measured with them.
DEFAULT: Mapping[str, object] = {}
# Slow enough that no worker takes all lines at once, so that a kill can hit the middle of a batch.
LATENCY_MS = {CHAT_MODEL: 200, RERANK_MODEL: 100}
MAX_IN_FLIGHT = 12


class Part:
    """One process of the product, or the model server."""

    def __init__(
        self, name: str, arguments: list[str], folder: Path, env: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = folder / "logs" / f"{name}.log"
        # `crash_points` reads the armed point from the first file, and writes the second when the
        # point fires.
        self.armed = folder / "armed" / name
        self.fired = self.armed.with_suffix(".fired")
        # Python ignores the option. It names the installation in `ps`, and for `leftovers`.
        self._command = [sys.executable, "-X", marker(folder), "-m", *arguments]
        self._env = {**env, "CHAOS_ARMED": str(self.armed)}
        self._process: Process | None = None
        # Whether the process should run; False while it is stopped on purpose.
        self.is_wanted = False

    def start(self) -> None:
        """Start it, unless it runs."""
        self.is_wanted = True
        if not self.is_running:
            self.fired.unlink(missing_ok=True)
            with self.log.open("ab") as log:
                self._process = start(self._command, log=log, env=self._env)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self.exit_code is None

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def end(self, number: signal.Signals, timeout: float) -> None:
        """Send a signal and wait until the process has ended.

        Raises AssertionError if it has not ended within the timeout.
        """
        self.is_wanted = False
        self.send(number)
        wait_until(lambda: not self.is_running, timeout=timeout)


class System:
    """`with System(folder) as system:`; it is ready inside.

    `settings`: XALEN_… by their names without the prefix.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object] = SHORT) -> None:
        self.folder = folder
        self.settings = dict(settings)
        for name in ("logs", "armed", "data"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.files = folder / "data" / "files"
        self.calls = folder / "calls.log"
        self.postgres = stores.Postgres(folder / "postgres", folder / "logs" / "postgres.log")
        self.valkey = stores.Valkey(folder / "valkey", folder / "logs" / "valkey.log")
        # Each delivery that the receiver of webhooks gets, and how it answers.
        self.told = folder / "told.log"
        self.mood = folder / "mood"
        self._models_port = free_port()
        self._receiver_port = free_port()
        self.port = free_port()
        self.proxies: dict[str, FaultProxy] = {}
        self.parts: dict[str, Part] = {}
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            self._start(starting)
            self._closing = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def models_address(self) -> str:
        """The model server itself, past the proxy."""
        return f"http://127.0.0.1:{self._models_port}"

    @property
    def lease(self) -> float:
        return float(str(self.settings.get("lease", 60)))

    @property
    def is_ready(self) -> bool:
        return answers(f"http://127.0.0.1:{self.port}/readyz") and all(
            part.is_running for part in self.parts.values()
        )

    def connect(self) -> psycopg.Connection:
        """A connection of our own to PostgreSQL, past the proxies."""
        return psycopg.connect(self.postgres.owner_url, connect_timeout=2)

    def command(self, *arguments: str, timeout: float = 120) -> tuple[int, str, str]:
        """Run `xalen-batch …` on the stores; return its exit code, stdout and stderr."""
        env = self._environment(self.postgres.url, migrate_database_url=self.postgres.owner_url)
        ran = run(*arguments, env=env, timeout=timeout)
        return ran.returncode, ran.stdout.decode(), ran.stderr.decode()

    def wait_until_ready(self, timeout: float = START_TIMEOUT) -> None:
        try:
            wait_until(lambda: self.is_ready, timeout=timeout)
        except AssertionError:
            words = {
                name: (part.exit_code, last_words(part.log)) for name, part in self.parts.items()
            }
            raise AssertionError(f"not ready within {timeout:.0f} s: {words}") from None

    def processes(self) -> dict[int, str]:
        """The running processes of this installation: command lines by process id."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes()
            except OSError:
                continue
            if (
                os.fsencode(marker(self.folder)) in words
                or os.fsencode(str(self.postgres.folder)) in words
            ):
                found[int(entry.parent.name)] = (
                    words.replace(b"\0", b" ").decode("utf-8", "replace").strip()
                )
        return found

    def _start(self, closing: ExitStack) -> None:
        databases.copy_to(self.postgres.folder)
        for store in (self.postgres, self.valkey):
            closing.callback(store.stop)
            store.start()
        targets = dict.fromkeys(LINKS, self.postgres.sockets / f".s.PGSQL.{stores.POSTGRES_PORT}")
        targets |= {
            "models": ("127.0.0.1", self._models_port),
            "valkey": self.valkey.sockets / "valkey.sock",
        }
        self.proxies = {
            name: closing.enter_context(FaultProxy(target)) for name, target in targets.items()
        }
        (self.folder / "catalog.toml").write_text(self._catalog(), "utf-8")
        for arguments in (
            ("migrate",),
            (
                "keys",
                "create",
                "--account",
                "chaos",
                "--create-account",
                "--mode",
                "live",
                "--json",
            ),
        ):
            code, said, why = self.command(*arguments)
            if code:
                raise AssertionError(f"xalen-batch {arguments[0]} failed: {why}")
        self.key: str = json.loads(said)["secret"]
        self._add(
            "models", "tests.chaos.model_server", str(self._models_port), str(self.calls), link=""
        )
        self.mood.write_text(WELL, "utf-8")
        self.told.touch()
        self._add(
            "receiver",
            "tests.chaos.receiver",
            str(self._receiver_port),
            str(self.told),
            str(self.mood),
            link="",
        )
        self._add("api", "tests.chaos.crash_points", "api", link="postgres-api")
        for name in WORKERS:
            self._add(name, "tests.chaos.crash_points", "worker", link=f"postgres-{name}")
        self._add("beat", "tests.chaos.crash_points", "beat", link="postgres-api")
        for part in self.parts.values():
            closing.callback(self._end, part)
            part.start()
        self.wait_until_ready()
        self.secret = self._register()

    def _register(self) -> str:
        """Register the receiver for all events of the account; the secret that signs them."""
        code, said, why = self.command(
            *("keys", "create", "--account", "chaos", "--mode", "live"),
            *("--scopes", "admin", "--json"),
        )
        if code:
            raise AssertionError(f"xalen-batch keys create failed: {why}")
        request = Request(
            f"{self.base_url}/webhooks",
            json.dumps({"url": f"http://127.0.0.1:{self._receiver_port}/"}).encode(),
            {
                "authorization": f"Bearer {json.loads(said)['secret']}",
                "content-type": "application/json",
            },
        )
        with urlopen(request, timeout=START_TIMEOUT) as answer:
            return str(json.load(answer)["secret"])

    def _add(self, name: str, *arguments: str, link: str) -> None:
        url = self._through(link) if link else self.postgres.url
        self.parts[name] = Part(name, list(arguments), self.folder, self._environment(url))

    def _through(self, link: str) -> str:
        through = make_url(self.postgres.url).set(
            host="127.0.0.1", port=self.proxies[link].port, query={}
        )
        return through.render_as_string(hide_password=False)

    def _environment(self, database_url: str, **more: object) -> dict[str, str]:
        return environment(
            **self.settings,
            **more,
            database_url=database_url,
            redis_url=(
                f"redis://127.0.0.1:{self.proxies['valkey'].port}/0"
                if self.proxies
                else self.valkey.url
            ),
            data_dir=self.folder / "data",
            catalog=self.folder / "catalog.toml",
            port=self.port,
            log_format="json",
            pool_size=20,
            webhook_allow_http="true",
            webhook_allowed_networks="127.0.0.1/32",
        )

    def _catalog(self) -> str:
        return "\n".join(
            f"[models.{model}]\nlatency_ms = {latency}\n[models.{model}.backend]\nkind ="
            f" 'openai'\nbase_url = 'http://127.0.0.1:{self.proxies['models'].port}/v1'\nmodel ="
            f" '{model}'\nmax_in_flight = {MAX_IN_FLIGHT}\n"
            for model, latency in LATENCY_MS.items()
        )

    def _end(self, part: Part) -> None:
        part.send(signal.SIGCONT)
        try:
            part.end(signal.SIGTERM, STOP_TIMEOUT)
        except AssertionError:
            part.end(signal.SIGKILL, 10.0)
            raise AssertionError(f"{part.name} did not stop within {STOP_TIMEOUT:.0f} s") from None


def marker(folder: Path) -> str:
    return f"data_dir={folder}"
