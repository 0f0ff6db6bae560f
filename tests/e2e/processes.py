"""Real processes of the product: `xalen-batch …` started, waited for and stopped."""

import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tests import databases, forks
from tests.waiting import wait_until

COMMAND = Path(sys.executable).with_name("xalen-batch")
START_TIMEOUT = 240.0
STOP_TIMEOUT = 60.0
COMMAND_TIMEOUT = 120.0
# The last words of `up` before it watches its parts.
WATCHES = b"Ctrl-C stops"

Process = subprocess.Popen[bytes] | forks.Fork


@dataclass(frozen=True)
class System:
    """A running `xalen-batch up`. `base_url` is for SDKs: it ends in `/v1`."""

    base_url: str
    test_key: str
    live_key: str
    data_dir: Path
    process: Process

    @property
    def address(self) -> str:
        return self.base_url.removesuffix("/v1")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


def free_port() -> int:
    """A free TCP port of the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**settings: object) -> dict[str, str]:
    """This process's environment with these settings (`port=1` is XALEN_PORT=1) and no others."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XALEN_", "OPENAI_"))
    }
    return inherited | {f"XALEN_{name.upper()}": str(value) for name, value in settings.items()}


def start(
    args: Sequence[str | Path],
    *,
    log: IO[bytes],
    env: Mapping[str, str],
    cwd: Path | None = None,
    executed: bool = False,
) -> Process:
    """Start a process in a session of its own: a fork of `tests.forks`, or a new interpreter if
    `executed`.
    """
    if not executed and forks.ARE_POSSIBLE:
        return forks.server().start(
            args, env=env, cwd=cwd, stdout=log, stderr=log, start_new_session=True
        )
    return subprocess.Popen(
        args,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def run(
    *arguments: str | Path,
    env: Mapping[str, str],
    cwd: Path | None = None,
    input: bytes = b"",
    timeout: float = COMMAND_TIMEOUT,
    executed: bool = False,
) -> subprocess.CompletedProcess[bytes]:
    """Run `xalen-batch …` to its end, as a fork or in a new interpreter."""
    args = [COMMAND, *arguments]
    if executed or not forks.ARE_POSSIBLE:
        return subprocess.run(
            args, env=env, cwd=cwd, input=input, timeout=timeout, capture_output=True
        )
    return forks.server().run(args, env=env, cwd=cwd, input=input, timeout=timeout)


@contextmanager
def command(
    *arguments: str, log: Path, env: Mapping[str, str], executed: bool = False
) -> Iterator[Process]:
    """Run `xalen-batch …`, and stop it with SIGTERM at the end. Fails if it has to be killed."""
    with log.open("ab") as out:
        process = start([COMMAND, *arguments], log=out, env=env, executed=executed)
    try:
        yield process
    finally:
        stop(process)


def hear_ctrl_c() -> None:
    """For `preexec_fn`: children of a test run in the background inherit an ignored SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def stop(process: Process) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def stopped_in(process: Process) -> float:
    """Send SIGTERM, and return the seconds that the process took to end by itself."""
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(STOP_TIMEOUT)
    return time.monotonic() - begun


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except (HTTPError, URLError, OSError):
        return False


@contextmanager
def up(
    data_dir: Path, *options: str, executed: bool = False, **settings: object
) -> Iterator[System]:
    """`xalen-batch up` on a folder and a free port, with embedded stores.

    An executed one makes its database itself; a fork finds one that is migrated and empty.
    Yielded when it watches its parts. An API that is ready does not show that: a part that ends
    before `up` has seen the same is one that did not start, which ends `up`.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    if not executed:
        databases.copy_to(data_dir / "postgres")
    port = free_port()
    log = data_dir / "up.log"
    begun = log.stat().st_size if log.exists() else 0
    place = ("--data-dir", str(data_dir), "--port", str(port))
    env = environment(**settings)
    with command("up", *place, *options, log=log, env=env, executed=executed) as process:
        wait_until(
            lambda: WATCHES in log.read_bytes()[begun:],
            timeout=START_TIMEOUT,
            process=process,
            log=log,
        )
        keys = tomllib.loads((data_dir / "credentials.toml").read_text("utf-8"))
        yield System(
            f"http://127.0.0.1:{port}/v1", keys["test_key"], keys["live_key"], data_dir, process
        )
