"""A reference as a process: it loads its lines, says that it is ready, waits for the word, and
reports.

Only the standard library is used here, so that a reference can live in an environment of its own.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lines import bodies


@dataclass(frozen=True)
class Work:
    """url: of chat completions, on the mock server. bodies: requests as JSON. out: where results
    may be written.
    """

    url: str
    bodies: list[bytes]
    in_flight: int
    out: Path

    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.bodies]


def main(run: Callable[[Work], int]) -> None:
    """`run` does the work and returns how many lines it has a good answer for."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, required=True)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    work = Work(given.url, bodies(given.lines, given.first, given.last), given.in_flight, given.out)
    _say("ready")
    sys.stdin.readline()
    started, cpu = time.perf_counter(), time.process_time()
    answered = run(work)
    seconds, used = time.perf_counter() - started, time.process_time() - cpu
    _say(json.dumps({"answered": answered, "seconds": seconds, "cpu_seconds": used}))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
