"""References as the harness runs them: started beforehand, let go together, and checked against the
mock server's count.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.batches import service
from benchmarks.environments import ROOT
from benchmarks.lines import Input
from benchmarks.mock.options import Options
from benchmarks.mock.process import Mock
from benchmarks.samples import Sample
from benchmarks.verification import check_answered, expect


def run(
    module: str,
    mock: Mock,
    input_: Input,
    options: Options,
    *,
    lines: int,
    in_flight: int,
    processes: int = 1,
    python: str = sys.executable,
    env: Mapping[str, str] | None = None,
) -> Sample:
    """The first `lines` lines in so many processes; `in_flight` is that of all of them together.

    The time is that from the word to start until the last one has ended.
    """
    mock.become(options)
    work = Input(input_.path, min(lines, input_.lines), input_.endpoint)
    out = input_.path.with_name("reference.jsonl")
    started = [
        _start(
            module, mock, work, work.part(n, processes), in_flight // processes, out, python, env
        )
        for n in range(processes)
    ]
    try:
        for process in started:
            expect(_line(process) == "ready", f"{module} did not start")
        begun = time.perf_counter()
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        reports = [json.loads(_line(process) or "{}") for process in started]
        seconds = time.perf_counter() - begun
    finally:
        for process in started:
            if process.stdin is not None:
                process.stdin.close()
            process.terminate()
            process.wait(20)
        out.unlink(missing_ok=True)
    expect(all(reports), f"{module} ended before it had reported")
    answered = sum(report["answered"] for report in reports)
    expect(answered == work.lines, f"{module} has {answered} answers for {work.lines} lines")
    stats = mock.stats()
    check_answered(stats, work.lines)
    cpu = {f"process-{n}": round(report["cpu_seconds"], 3) for n, report in enumerate(reports, 1)}
    return Sample(
        work.lines,
        seconds,
        cpu,
        more={name: round(value, 4) for name, value in service(stats).items()},
    )


def _start(
    module: str,
    mock: Mock,
    work: Input,
    part: tuple[int, int],
    in_flight: int,
    out: Path,
    python: str,
    env: Mapping[str, str] | None,
) -> "subprocess.Popen[str]":
    command = [
        python,
        "-m",
        f"benchmarks.references.{module}",
        "--url",
        f"{mock.base_url}/chat/completions",
        "--lines",
        str(work.path),
    ]
    numbers = [
        "--first",
        str(part[0]),
        "--last",
        str(part[1]),
        "--in-flight",
        str(in_flight),
        "--out",
        str(out),
    ]
    return subprocess.Popen(
        [*command, *numbers],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
