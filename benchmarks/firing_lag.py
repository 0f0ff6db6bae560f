"""How late schedules fire that are all due at the same minute, against one that is due alone.

    .venv/bin/python benchmarks/firing_lag.py [--schedules 1000] [--workers 1] [--json]

Starts everything on a folder of its own, makes the schedules through the API, waits for their
minutes and reads the lag of every run: seconds from the instant to the commit-to-be of its batch.
Takes about five minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import openai

COMMAND = Path(sys.executable).with_name("xalen-batch")
LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {
        "model": "mistral-small-3-1",
        "messages": [{"role": "user", "content": "Where is my parcel?"}],
    },
}


@dataclass(frozen=True)
class Lags:
    """Seconds, of all runs for one minute."""

    runs: int
    median: float
    p99: float
    worst: float

    @classmethod
    def of(cls, lags: list[float]) -> "Lags":
        ordered = sorted(lags)
        return cls(
            len(ordered),
            statistics.median(ordered),
            ordered[int(0.99 * (len(ordered) - 1))],
            ordered[-1],
        )


@contextmanager
def system(workers: int) -> Iterator[openai.OpenAI]:
    with tempfile.TemporaryDirectory(prefix="xalen-bench-") as folder:
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("XALEN_", "OPENAI_"))
        }
        command = [COMMAND, "up", "--data-dir", folder, "--port", "18461"]
        with (Path(folder) / "up.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=env | {"XALEN_WORKER_PROCESSES": str(workers)}, stdout=log, stderr=log
            )
        try:
            wait_until_ready("http://127.0.0.1:18461/readyz")
            keys = tomllib.loads((Path(folder) / "credentials.toml").read_text("utf-8"))
            yield openai.OpenAI(base_url="http://127.0.0.1:18461/v1", api_key=keys["test_key"])
        finally:
            process.terminate()
            process.wait(60)


def wait_until_ready(url: str) -> None:
    for _ in range(600):
        try:
            with urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the system did not get ready within a minute")


def measure(client: openai.OpenAI, file_id: str, number: int) -> Lags:
    """Make so many schedules for one minute, and read how late each fired."""
    room = timedelta(seconds=70 + number / 40)
    at = (datetime.now(UTC) + room).replace(second=0, microsecond=0)
    body = {
        "cron": f"{at:%M %H} * * *",
        "endpoint": "/v1/chat/completions",
        "input_file_id": file_id,
    }

    def make(n: int) -> str:
        return str(
            client.post("/schedules", body={"name": f"s{n}", **body}, cast_to=dict[str, Any])["id"]
        )

    with ThreadPoolExecutor(8) as pool:
        schedules = list(pool.map(make, range(number)))
    if datetime.now(UTC) >= at:
        raise SystemExit(
            "making the schedules took longer than their minute was away; ask for fewer"
        )
    time.sleep((at - datetime.now(UTC)).total_seconds())
    lags = [read(client, schedule, at) for schedule in schedules]
    return Lags.of(lags)


def read(client: openai.OpenAI, schedule: str, at: datetime) -> float:
    for _ in range(1200):
        found = client.get(f"/schedules/{schedule}/runs", cast_to=dict[str, Any])["data"]
        if found and found[0]["lag"] is not None:
            assert [run["scheduled_for"] for run in found] == [int(at.timestamp())]
            return float(found[0]["lag"])
        time.sleep(0.25)
    raise SystemExit(f"{schedule} did not fire within five minutes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--schedules", type=int, default=1000, help="how many are due at the same minute"
    )
    parser.add_argument("--workers", type=int, default=1, help="worker processes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with system(options.workers) as client:
        file = client.files.create(
            file=("one.jsonl", json.dumps(LINE).encode() + b"\n"), purpose="batch"
        )
        alone = measure(client, file.id, 1)
        together = measure(client, file.id, options.schedules)
    if options.json:
        sys.stdout.write(
            json.dumps({"alone": alone.__dict__, "together": together.__dict__}, indent=2) + "\n"
        )
        return
    sys.stdout.write("schedules   median     p99   worst   (seconds late)\n")
    for lags in (alone, together):
        sys.stdout.write(f"{lags.runs:9,} {lags.median:8.2f} {lags.p99:7.2f} {lags.worst:7.2f}\n")
    sys.stdout.write(
        f"each of {together.runs:,} adds {1000 * together.worst / together.runs:.1f} ms\n"
    )


if __name__ == "__main__":
    main()
