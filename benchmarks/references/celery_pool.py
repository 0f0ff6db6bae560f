"""A Valkey and a Celery worker of one task per line, as the harness runs them."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks import consumption
from benchmarks.lines import Input
from benchmarks.mock.options import Options
from benchmarks.mock.process import Mock
from benchmarks.references import process
from benchmarks.samples import Sample
from xalen_batch.standalone.stores import Valkey

Pool = Literal["gevent", "prefork", "threads"]


@dataclass(frozen=True)
class Workers:
    env: dict[str, str]
    pids: dict[str, int]

    def run(self, mock: Mock, input_: Input, options: Options, *, lines: int) -> Sample:
        """One task per line; the CPU is that of the sender, the worker with its children, and
        Valkey.
        """
        before = self._cpu()
        sample = process.run(
            "celery_lines", mock, input_, options, lines=lines, in_flight=1, env=self.env
        )
        used = consumption.used_since(before, self._cpu())
        return Sample(
            sample.lines,
            sample.seconds,
            {"sender": sum(sample.cpu.values()), **used},
            more=sample.more,
        )

    def _cpu(self) -> dict[str, float]:
        return {role: consumption.tree_cpu_seconds(pid) for role, pid in self.pids.items()}


@contextmanager
def running(pool: Pool, concurrency: int) -> Iterator[Workers]:
    """A worker with this pool, ready to take lines."""
    with tempfile.TemporaryDirectory(prefix="xalen-bench-celery-") as folder:
        valkey = Valkey(Path(folder), Path(folder) / "valkey.log")
        url = valkey.start()
        try:
            socket = next(Path(folder).glob("*.sock"))
            env = {
                "LINES_BROKER": url.replace("unix://", "redis+socket://"),
                "LINES_SOCKET": str(socket),
            }
            command = [
                sys.executable,
                "-m",
                "celery",
                "-A",
                "benchmarks.references.celery_app",
                "worker",
                "-P",
                pool,
                "-c",
                str(concurrency),
            ]
            with (Path(folder) / "worker.log").open("wb") as log:
                worker = subprocess.Popen(
                    [*command, "--without-gossip", "--without-mingle", "--loglevel", "warning"],
                    cwd=process.ROOT,
                    env={**os.environ, **env},
                    stdout=log,
                    stderr=log,
                )
            try:
                assert valkey.process is not None
                yield Workers(env, {"worker": worker.pid, "valkey": valkey.process.pid})
            finally:
                worker.terminate()
                worker.wait(30)
        finally:
            valkey.stop()
