"""xalen-batch as it is run: `xalen-batch up` with its own PostgreSQL and Valkey, on a folder that
goes afterwards.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from benchmarks import consumption
from benchmarks.client import Client
from benchmarks.lines import CHAT_MODEL, EMBEDDING_MODEL, RERANK_MODEL
from xalen_batch.standalone.processes import dying_with_parent

COMMAND = str(Path(sys.executable).with_name("xalen-batch"))
START_TIMEOUT = 90.0
STOP_TIMEOUT = 90.0


@dataclass(frozen=True)
class Shape:
    """How a system is set up.

    in_flight: the catalog's `max_in_flight`, of every model.
    requests_per_minute: the catalog's, of every model; 0: no limit is known.
    max_inputs: the catalog's, of the embedding model.
    live_reserve: the catalog's, of every model.
    settings: XALEN_… variables without the prefix, lower case.
    is_recording: False takes the database write of results away, to see what it costs.
    """

    workers: int = 2
    in_flight: int = 512
    requests_per_minute: int = 0
    max_inputs: int = 32
    live_reserve: int = 0
    settings: tuple[tuple[str, str], ...] = ()
    is_recording: bool = True


USUAL = Shape()


@dataclass
class System:
    """A running system.

    `cpu()` and `peaks()` are by process: api, beat, worker-1, …, postgres, valkey, up.
    """

    shape: Shape
    folder: Path
    address: str
    key: str
    pid: int
    roles: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def client(self, key: str | None = None) -> Iterator[Client]:
        client = Client(self.address, key or self.key)
        try:
            yield client
        finally:
            client.close()

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far.

        PostgreSQL's are those of all its processes, also of those that have ended.
        """
        return {role: consumption.tree_cpu_seconds(pid) for role, pid in self.roles.items()} | {
            "up": consumption.cpu_seconds(self.pid)
        }

    def reset_peaks(self) -> None:
        for role in self._watched:
            consumption.reset_peak_memory(self.roles[role])

    def peaks(self) -> dict[str, int]:
        """Peak resident bytes of the api and of each worker."""
        return {role: consumption.peak_memory(self.roles[role]) for role in self._watched}

    @property
    def _watched(self) -> list[str]:
        return [role for role in self.roles if role == "api" or role.startswith("worker")]

    def new_keys(self, accounts: list[str]) -> list[str]:
        """A live key for each of these new accounts."""
        made = subprocess.run(
            [sys.executable, "-m", "benchmarks.accounts", *accounts],
            env=environment({"data_dir": str(self.folder / "data")}),
            capture_output=True,
            text=True,
            check=True,
        )
        return made.stdout.split()


@contextmanager
def running(shape: Shape, model_server: str, folder: Path | None = None) -> Iterator[System]:
    """Start a system whose models run on `model_server` (ends in /v1); all of it is gone at the
    end.
    """
    root = Path(tempfile.mkdtemp(prefix="xalen-bench-", dir=folder))
    try:
        catalog = root / "catalog.toml"
        catalog.write_text(_catalog(model_server, shape), "utf-8")
        port = free_port()
        settings = {
            "catalog": str(catalog),
            "worker_processes": str(shape.workers),
            "max_file_bytes": str(1 << 30),
            "quota_requests_per_second": "none",
            "quota_changes_per_minute": "none",
            **dict(shape.settings),
        }
        with (root / "up.log").open("wb") as log:
            process = subprocess.Popen(
                [*_program(shape), "up", "--data-dir", str(root / "data"), "--port", str(port)],
                env=environment(settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=dying_with_parent(signal.SIGTERM),
            )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_until_ready(f"{address}/readyz", process, root / "up.log")
            key = tomllib.loads((root / "data" / "credentials.toml").read_text("utf-8"))["live_key"]
            yield System(shape, root, address, key, process.pid, _roles(root / "data"))
        finally:
            _stop(process)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with these settings and no others."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XALEN_", "OPENAI_"))
    }
    return inherited | {f"XALEN_{name.upper()}": value for name, value in settings.items()}


def _program(shape: Shape) -> list[str]:
    return [COMMAND] if shape.is_recording else [sys.executable, "-m", "benchmarks.unrecorded"]


def _catalog(base_url: str, shape: Shape) -> str:
    table = (
        '[models.{model}.backend]\nkind = "openai"\nbase_url = "{url}"\nmodel ='
        ' "{model}"\nmax_in_flight = {in_flight}\nmax_inputs = {max_inputs}\n'
    )
    if shape.live_reserve:
        table += f"live_reserve = {shape.live_reserve}\n"
    if shape.requests_per_minute:
        table += f"requests_per_minute = {shape.requests_per_minute}\n"
    return "\n".join(
        table.format(
            model=model, url=base_url, in_flight=shape.in_flight, max_inputs=shape.max_inputs
        )
        for model in (CHAT_MODEL, RERANK_MODEL, EMBEDDING_MODEL)
    )


def _roles(data: Path) -> dict[str, int]:
    """The process of each part, by the pid files that `up` keeps."""
    parts = {file.stem: file for file in sorted((data / "run").glob("*.pid"))}
    stores = {
        "postgres": data / "postgres" / "data" / "postmaster.pid",
        "valkey": next((data / "valkey").glob("*.pid")),
    }
    return {
        role: int(file.read_text("ascii").split()[0]) for role, file in {**parts, **stores}.items()
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            with urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (URLError, OSError):
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(
                f"the system did not start:\n{log.read_text('utf-8', 'replace')[-3000:]}"
            )
        time.sleep(0.05)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
