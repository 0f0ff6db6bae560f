"""`xalen-batch up`: the stores, the API, beat and workers of one machine, under one supervisor.

The parts are the commands that run as separate services elsewhere. They find the stores by their
environment, start in the order of their dependencies, and stop in the reverse order. The supervisor
holds the API's listening socket, so that a restarted API serves on the same port.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol
from urllib.error import HTTPError
from urllib.request import urlopen

from xalen_batch import catalog, db, log, migrate, storage
from xalen_batch.billing import prices
from xalen_batch.config import settings
from xalen_batch.errors import ConfigError
from xalen_batch.standalone import credentials, data_folder, ports, processes, stores
from xalen_batch.standalone.credentials import Credentials
from xalen_batch.standalone.ports import Listener
from xalen_batch.storage import marks

logger = log.get(__name__)

# Durations in seconds.
READY_TIMEOUT = 60.0
LOOK_INTERVAL = 0.2
# Time to stop in addition to the grace of requests in flight; then SIGKILL.
STOP_MARGIN = 10.0
BACKOFF_CAP = 30.0
# A part that ran this long starts again with the shortest backoff.
HEALTHY_AFTER = 60.0
# PostgreSQL connections beyond the pools of the API and the workers: for commands and migrations.
SPARE_CONNECTIONS = 20

Say = Callable[[str], None]
# Takes the credentials, and the link to the console; None: it is off.
OnReady = Callable[[Credentials, str | None], None]


class Service(Protocol):
    """A process that is watched: a store or a child."""

    @property
    def name(self) -> str: ...

    @property
    def process(self) -> subprocess.Popen[bytes] | None: ...

    def start(self) -> object: ...


class Child:
    """One of our own commands as a process. On Linux it is killed when this process dies.

    `descriptors`: open files that it inherits, under the same numbers. `metrics_offset`: its port
    of metrics is that many ports after `XALEN_METRICS_PORT`; None: it serves none.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        data_dir: Path,
        *,
        descriptors: Sequence[int] = (),
        metrics_offset: int | None = None,
    ) -> None:
        self.name = name
        self._descriptors = descriptors
        self._metrics_offset = metrics_offset
        self.process: subprocess.Popen[bytes] | None = None
        self.log = data_dir / "logs" / f"{name}.log"
        self._pid_file = data_dir / "run" / f"{name}.pid"
        # Python ignores this option. It identifies the installation in `ps` and in the search for
        # leftover processes.
        self._marker = f"data_dir={data_dir}"
        self._argv = [sys.executable, "-X", self._marker, "-m", "xalen_batch.cli.entry", *command]

    def start(self) -> None:
        processes.end_leftover(
            self._pid_file, self._marker, (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)
        )
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=_serving_environment(self._metrics_offset),
                pass_fds=self._descriptors,
                # Ctrl-C in the terminal is for the supervisor, which stops the parts in order.
                start_new_session=True,
                preexec_fn=processes.dying_with_parent(signal.SIGKILL),
            )
        self._pid_file.write_text(str(self.process.pid), "ascii")

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def last_words(self) -> str:
        return f"{processes.last_words(self.log)} Its log is {self.log}."

    def forget(self) -> None:
        self._pid_file.unlink(missing_ok=True)


class Watch:
    """Restarts a part that has ended, with exponential backoff until it ran for HEALTHY_AFTER."""

    def __init__(self, part: Service) -> None:
        self.part = part
        self._crashes = 0
        self._started = time.monotonic()
        self._due: float | None = None

    def look(self) -> None:
        process, now = self.part.process, time.monotonic()
        if process is not None and process.poll() is None:
            return
        if self._due is None:
            self._crashes = 0 if now - self._started > HEALTHY_AFTER else self._crashes + 1
            pause = min(BACKOFF_CAP, 0.5 * 2**self._crashes)
            self._due = now + pause
            logger.error(
                "part.ended",
                part=self.part.name,
                exit_code=process and process.returncode,
                restart_in=pause,
            )
        elif now >= self._due:
            self._due, self._started = None, now
            try:
                self.part.start()
            except ConfigError as error:
                logger.error("part.not_started", part=self.part.name, reason=str(error))
            else:
                logger.warning("part.restarted", part=self.part.name)


class Supervisor:
    """Starts, watches and stops the parts. Used by the main thread, where signals arrive."""

    def __init__(
        self,
        data_dir: Path,
        listener: Listener,
        say: Say,
        local: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._listener = listener
        self._say = say
        self._running = data_dir / "run.toml"
        self._stores: list[stores.Server] = []
        passed = [word for each in listener.descriptors for word in ("--fd", str(each))]
        self._front = [
            Child(
                "api",
                ["api", *passed],
                data_dir,
                descriptors=listener.descriptors,
                metrics_offset=0,
            ),
            Child("beat", ["beat"], data_dir),
        ]
        workers = settings().worker_processes
        self._workers = [
            Child(
                "worker" if workers == 1 else f"worker-{n}",
                ["worker"],
                data_dir,
                metrics_offset=n,
            )
            for n in range(1, workers + 1)
        ]
        self._local = [Child(name, command, data_dir) for name, command in (local or {}).items()]
        self._signals = 0
        self._is_starting = True

    @property
    def _children(self) -> list[Child]:
        return [*self._local, *self._workers, *self._front]

    def run(self, on_ready: OnReady, on_started: Callable[[], None]) -> None:
        """Return after a clean stop; raise ConfigError if a part does not start."""
        with self._signals_handled():
            try:
                ready = self._start()
                on_started()
                self._is_starting = False
                if not self._signals:
                    on_ready(ready, self._link(ready))
                    self._watch()
            except _Interrupted:
                pass
            finally:
                self._is_starting = False
                self._stop()

    def _start(self) -> Credentials:
        self._start_stores()
        self._say("Preparing the database …")
        migrate.migrate()
        self._tell_of_prices()
        _mark_store()
        ready = self._credentials()
        db.engine().dispose()
        self._say("Starting the API, beat and workers …")
        for child in self._children:
            processes.rotate(child.log)
            child.start()
        self._wait_until_ready()
        return ready

    def _tell_of_prices(self) -> None:
        """Say which prices in force differ from the catalog's: only `prices sync` applies those.

        A restart with an edited catalog must not change what batches cost.
        """
        with db.reading() as session:
            changes = prices.differences(session)
        if changes:
            models = ", ".join(sorted({change.model for change in changes}))
            self._say(
                f"Prices in force differ from the catalog's ({models}), and new batches pay those"
                " in force. `xalen-batch prices sync`, with the same XALEN_CATALOG, shows the"
                " differences and applies them."
            )

    def _credentials(self) -> Credentials:
        path = self._data_dir / "credentials.toml"
        with db.transaction() as session:
            keys = credentials.keys(session, path)
        # Written after the commit, so that a key in the file always works.
        ready = Credentials(ports.base_url(self._listener.host, self._listener.port), **keys)
        credentials.write(path, ready)
        return ready

    def _link(self, ready: Credentials) -> str | None:
        if settings().console == "off":
            return None
        with db.transaction() as session:
            link = credentials.sign_in_link(session, ready)
        db.engine().dispose()
        return link

    def _start_stores(self) -> None:
        logs = self._data_dir / "logs"
        if settings().database_url is None:
            connections = settings().pool_size * (len(self._workers) + 1) + SPARE_CONNECTIONS
            self._stores.append(
                stores.Postgres(
                    self._data_dir / "postgres", logs / "postgres.log", connections=connections
                )
            )
        if settings().redis_url is None:
            self._stores.append(stores.Valkey(self._data_dir / "valkey", logs / "valkey.log"))
        for store in self._stores:
            self._say(f"Starting {store.name} …")
            store.start()
            export(store.variables)
        urls = {"database_url": settings().database_url, "redis_url": settings().redis_url}
        known = {name: url.get_secret_value() for name, url in urls.items() if url is not None}
        credentials.write_private(
            self._running,
            "# Where `up` has its stores, for the commands that work on them. A killed `up` leaves"
            " it behind.",
            known,
        )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        url = f"{ports.address(self._listener.host, self._listener.port)}/readyz"
        while missing := _missing(url):
            for child in self._children:
                if not child.is_running:
                    raise ConfigError(f"The {child.name} did not start: {child.last_words}")
            if time.monotonic() > deadline:
                api = self._front[0]
                raise ConfigError(
                    f"Not ready within {READY_TIMEOUT:.0f} s: {missing}. The {api.name} said:"
                    f" {api.last_words}"
                )
            time.sleep(0.1)

    def _watch(self) -> None:
        parts: list[Service] = [*self._stores, *self._children]
        watches = [Watch(part) for part in parts]
        while not self._signals:
            for watch in watches:
                watch.look()
            # Not a threading.Event: the signal handler runs in this thread, and would deadlock on
            # the event's lock, which the thread holds while it enters the wait.
            time.sleep(LOOK_INTERVAL)

    def _stop(self) -> None:
        # The API then has the only copy of its sockets: it empties the backlog when it stops, and
        # later connections are refused.
        self._listener.close()
        if any(child.is_running for child in self._children):
            self._say(
                "Stopping; requests in flight may finish. Ctrl-C again does not wait for them."
            )
        self._end(self._front)
        self._end(self._workers)
        self._end(self._local)
        self._running.unlink(missing_ok=True)
        for store in reversed(self._stores):
            store.stop()

    def _end(self, children: Sequence[Child]) -> None:
        running = [child.process for child in children if child.process is not None]
        deadline = (
            time.monotonic() + settings().shutdown_delay + settings().shutdown_grace + STOP_MARGIN
        )
        for process in running:
            process.terminate()
        while any(process.poll() is None for process in running):
            if self._signals > 1 or time.monotonic() > deadline:
                for process in running:
                    process.kill()
            time.sleep(0.02)
        for child in children:
            child.forget()

    @contextmanager
    def _signals_handled(self) -> Iterator[None]:
        before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._is_starting:
            self._is_starting = False
            raise _Interrupted


class _Interrupted(BaseException):
    """A signal during the start. A BaseException, so that no handler of errors swallows it."""


def up(
    *,
    data_dir: Path,
    host: str,
    port: int,
    is_port_asked: bool,
    say: Say,
    on_ready: OnReady,
    local: Mapping[str, Sequence[str]] | None = None,
    on_started: Callable[[], None] = lambda: None,
) -> None:
    """Run everything in the foreground until SIGINT or SIGTERM.

    If the port is taken, the next free one replaces it, unless `is_port_asked`. `local`: commands
    of model servers that run beside the other parts, by name. `on_started` is called when all parts
    run, before `on_ready`. Raises ConfigError if another supervisor uses the folder, the port is
    taken, or a part does not start.
    """
    log.configure()
    data_dir = data_dir.absolute()
    # The data folder may hold the catalog file.
    export({"XALEN_DATA_DIR": str(data_dir)})
    if "console" not in settings().model_fields_set:
        export({"XALEN_CONSOLE": "on"})
    catalog.warn_of_unknown_settings()
    # `say` informs the user in the terminal; the parts write logs of their own.
    logging.root.setLevel(max(logging.root.level, logging.WARNING))
    # Check the settings before anything is made or started.
    catalog.models()
    with ExitStack() as held:
        listener = None
        # If the port that was asked for is taken, no folder is made.
        if not data_dir.exists():
            listener = held.enter_context(ports.listen(host, port, is_asked=is_port_asked))
        data_folder.make(data_dir)
        held.enter_context(data_folder.locked(data_dir))
        if listener is None:
            listener = held.enter_context(ports.listen(host, port, is_asked=is_port_asked))
        if port not in (0, listener.port):
            say(f"Port {port} is taken; using {listener.port}.")
        export({"XALEN_HOST": host, "XALEN_PORT": str(listener.port)})
        storage.check()
        Supervisor(data_dir, listener, say, local).run(on_ready, on_started)


def _mark_store() -> None:
    storage.store()
    try:
        marks.place()
    except marks.Elsewhere as error:
        raise ConfigError(str(error)) from error


def export(values: Mapping[str, str]) -> None:
    """Change settings of this process and of those that it starts, through the environment."""
    os.environ.update(values)
    settings.cache_clear()


def _serving_environment(metrics_offset: int | None) -> dict[str, str]:
    """The environment of a child: without the URL of the owner of the tables.

    Only migrations use that role. Its port of metrics is its own.
    """
    without = {"XALEN_MIGRATE_DATABASE_URL", "XALEN_METRICS_PORT"}
    kept = {name: value for name, value in os.environ.items() if name not in without}
    port = settings().metrics_port
    if port is not None and metrics_offset is not None:
        kept["XALEN_METRICS_PORT"] = str(port + metrics_offset)
    return kept


def _missing(url: str) -> str:
    """Why the API is not ready, as text; empty if it is."""
    try:
        with urlopen(url, timeout=2):
            return ""
    except HTTPError as error:
        checks = json.load(error).get("checks", {})
        failed = (
            f"{name} failed ({check['error']})"
            for name, check in checks.items()
            if check["status"] != "ok"
        )
        return "; ".join(failed) or f"the API answers {error.code}"
    except OSError as error:
        return f"the API does not answer ({getattr(error, 'reason', error)})"
