"""The demo's processes: a simulated server for each model, and `xalen-batch up`, in one folder."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from xalen_batch.standalone.processes import dying_with_parent

COMMAND = Path(sys.executable).with_name("xalen-batch")
MODELS = ("mistral-small-3-1", "bge-reranker-v2")
# Few requests in flight, so that the progress bars are slow enough to watch; 256 is usual.
IN_FLIGHT = 8
START_TIMEOUT = 90.0
STOP_TIMEOUT = 60.0
LAST_LINES = 25

Say = Callable[[str], None]


class Failed(Exception):
    """A process did not start; the message names it and has the end of its log."""


@dataclass(frozen=True)
class Stage:
    """A running system: its address and key for the SDK, and its data folder."""

    base_url: str
    api_key: str
    data_dir: Path


@contextmanager
def running(folder: Path, say: Say) -> Iterator[Stage]:
    """Start all processes in an emptied folder, and stop them at the end, also after an error."""
    with ExitStack() as stack:
        lock = stack.enter_context(emptied(folder))
        servers = {}
        for model in MODELS:
            say(f"Starting a simulated model server for {model}")
            port = free_port()
            process = stack.enter_context(
                started("simulate", "--port", str(port), log=folder / f"{model}.log", lock=lock)
            )
            wait_for(f"http://127.0.0.1:{port}/health", process, folder / f"{model}.log")
            servers[model] = f"http://127.0.0.1:{port}/v1"
        catalog = folder / "catalog.toml"
        catalog.write_text(catalog_of(servers), "utf-8")
        say("Starting PostgreSQL, Valkey, API, beat and worker: xalen-batch up")
        data_dir, port = folder / "data", free_port()
        settings = {"XALEN_CATALOG": str(catalog), "XALEN_FLUSH_INTERVAL": "0.3"}
        process = stack.enter_context(
            started(
                "up",
                "--data-dir",
                str(data_dir),
                "--port",
                str(port),
                log=folder / "up.log",
                lock=lock,
                settings=settings,
            )
        )
        wait_for(f"http://127.0.0.1:{port}/readyz", process, folder / "up.log")
        credentials = tomllib.loads((data_dir / "credentials.toml").read_text("utf-8"))
        yield Stage(credentials["base_url"], credentials["live_key"], data_dir)
        say("Stopping everything")


@contextmanager
def emptied(folder: Path) -> Iterator[int]:
    """Empty the folder and lock it. The demo's processes inherit the lock, so two demos never share
    a folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        take(lock.fileno(), folder)
        for item in folder.iterdir():
            if item.is_dir():
                shutil.rmtree(item)
            elif item.name != "lock":
                item.unlink()
        yield lock.fileno()


def take(lock: int, folder: Path) -> None:
    """Take the lock; an earlier demo that is stopping may hold it for STOP_TIMEOUT seconds."""
    deadline = time.monotonic() + STOP_TIMEOUT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Failed(f"Another demo is running in {folder}.") from None
            time.sleep(0.2)


def catalog_of(servers: dict[str, str]) -> str:
    """A catalog with the addresses of the two model servers."""
    table = (
        '[models.{model}.backend]\nkind = "openai"\nbase_url = "{url}"\nmodel ='
        ' "{model}"\nmax_in_flight = {in_flight}\n'
    )
    return "\n".join(
        table.format(model=model, url=url, in_flight=IN_FLIGHT) for model, url in servers.items()
    )


@contextmanager
def started(
    *arguments: str, log: Path, lock: int, settings: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `xalen-batch …` with these settings and no others, and stop it at the end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("XALEN_")}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [COMMAND, *arguments],
            env=inherited | (settings or {}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            pass_fds=[lock],
            # A session of its own: Ctrl-C reaches only the demo, which stops its processes in
            # order. If the demo is killed, they end with their parent.
            start_new_session=True,
            preexec_fn=dying_with_parent(signal.SIGTERM),
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Poll until a server answers 200.

    Raises Failed, with the end of its log, if it has ended or takes too long.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while not is_up(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"{log.stem} did not start. The end of {log}:\n{last_lines(log)}")
        time.sleep(0.1)


def is_up(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def last_lines(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-LAST_LINES:])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
