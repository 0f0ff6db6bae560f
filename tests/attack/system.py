"""The target of an attack: `xalen-batch up` on a folder of its own, seen from outside."""

import json
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.e2e.processes import (
    COMMAND,
    START_TIMEOUT,
    answers,
    environment,
    free_port,
    run,
    start,
    stop,
    wait_until,
)

MB = 1_000_000


class Size(StrEnum):
    """The size of an attack: SMALL for CI, within seconds; FULL as it was reported."""

    SMALL = "small"
    FULL = "full"

    def times(self, full: float) -> float:
        """The most that another account's request may take, as a multiple of its time alone.

        Other tests run beside SMALL, so its multiple is so large that only a stall exceeds it.
        """
        return full if self is Size.FULL else 10.0


class Figure(NamedTuple):
    """A measurement of an attack. The system holds if `value` is at most `bound`.

    The name says the unit.
    """

    name: str
    value: float
    bound: float

    @property
    def holds(self) -> bool:
        return self.value <= self.bound


@dataclass
class System:
    """A running system. `base_url` is what SDKs take; `url` is the same without `/v1`."""

    base_url: str
    test_key: str = field(repr=False)
    live_key: str = field(repr=False)
    data_dir: Path
    model_port: int
    _command: Path
    _environment: Mapping[str, str] = field(repr=False)

    @property
    def url(self) -> str:
        return self.base_url.removesuffix("/v1")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def redis_url(self) -> str:
        return str(tomllib.loads((self.data_dir / "run.toml").read_text("utf-8"))["redis_url"])

    def new_account(self, name: str, mode: str = "test") -> str:
        """Create an account; return a key of it with every scope."""
        return str(
            json.loads(
                self.run(
                    "keys",
                    "create",
                    "--account",
                    name,
                    "--create-account",
                    "--mode",
                    mode,
                    "--json",
                )
            )["secret"]
        )

    def run(self, *arguments: str) -> str:
        """Run a command of the operator; return its stdout."""
        if self._command == COMMAND:
            ran = run(*arguments, env=self._environment)
        else:
            ran = subprocess.run(
                [self._command, *arguments], env=self._environment, capture_output=True
            )
        ran.check_returncode()
        return ran.stdout.decode()

    def log(self, part: str) -> str:
        return (self.data_dir / "logs" / f"{part}.log").read_text("utf-8", "replace")

    def pid(self, part: str) -> int:
        """The process id of `api`, `worker` or `beat`."""
        return int((self.data_dir / "run" / f"{part}.pid").read_text("ascii"))

    def rss(self, part: str) -> int:
        """Resident bytes of a part now."""
        return self._memory(part, "VmRSS:")

    def peak(self, part: str) -> int:
        """The most resident bytes that a part has had since it started, or since `forget_peak`."""
        return self._memory(part, "VmHWM:")

    def forget_peak(self, part: str) -> None:
        """Reset `peak` to the resident bytes of now."""
        Path(f"/proc/{self.pid(part)}/clear_refs").write_text("5", "ascii")

    def settled(self, part: str) -> int:
        """Resident bytes of a part, once they no longer change."""
        before, now = -1, self.rss(part)
        while abs(now - before) > MB:
            time.sleep(1.0)
            before, now = now, self.rss(part)
        return now

    def _memory(self, part: str, name: str) -> int:
        status = Path(f"/proc/{self.pid(part)}/status").read_text("ascii")
        line = next(line for line in status.splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024


def median_seconds(act: Callable[[], object], times: int) -> float:
    """The median duration of a call, over `times` calls one after the other."""
    durations = []
    for _ in range(times):
        begun = time.perf_counter()
        act()
        durations.append(time.perf_counter() - begun)
    return median(durations)


@contextmanager
def running(
    folder: Path, *, settings: Mapping[str, object], catalog: str, checkout: Path | None = None
) -> Iterator[System]:
    """Start `up`, and stop it with SIGTERM at the end.

    `checkout`: another checkout with its own `.venv`, which is attacked instead of this one.
    """
    command = COMMAND if checkout is None else checkout.absolute() / ".venv/bin/xalen-batch"
    # The parts are started with `python -m`, which imports from the working directory first.
    where = folder if checkout is None else checkout
    data_dir, model_port, port = folder / "data", free_port(), free_port()
    data_dir.mkdir(parents=True)
    chosen = dict(settings)
    if catalog:
        (folder / "catalog.toml").write_text(catalog.replace("{port}", str(model_port)), "utf-8")
        chosen["catalog"] = folder / "catalog.toml"
    env, log = environment(**chosen, data_dir=data_dir), folder / "up.log"
    up = [command, "up", "--port", str(port)]
    with log.open("ab") as out:
        process = start(up, log=out, env=env, cwd=where, executed=checkout is not None)
    try:
        wait_until(
            lambda: answers(f"http://127.0.0.1:{port}/readyz"),
            timeout=START_TIMEOUT,
            process=process,
            log=log,
        )
        keys = tomllib.loads((data_dir / "credentials.toml").read_text("utf-8"))
        yield System(
            f"http://127.0.0.1:{port}/v1",
            keys["test_key"],
            keys["live_key"],
            data_dir,
            model_port,
            command,
            env,
        )
    finally:
        stop(process)
