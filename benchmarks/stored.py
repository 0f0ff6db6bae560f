"""How the cost of requests, sweeps and `reconcile` grows with what is stored.

    .venv/bin/python -m benchmarks.stored [--batches 1000000] [--lines 20] [--objects 0] [--json]

Starts everything on a folder of its own, measures, adds finished and sealed batches of a year by SQL
(benchmarks/stored_rows.py), and measures again. `--objects` also adds files to the folder of the
uploads. A million batches take ten minutes and 8 GB.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import openai
import psycopg

from benchmarks import stored_rows
from benchmarks.firing_lag import COMMAND, LINE, wait_until_ready

PORT = 18462
# Requests whose median is taken.
REQUESTS = 30
# Batches of the database that counts as empty: its lists are as long as the others.
FEW = 3_000
NO_LIMIT = ("QUOTA_FILES", "QUOTA_STORAGE_BYTES", "QUOTA_REQUESTS_PER_SECOND", "QUOTA_OPEN_BATCHES")
Figures = dict[str, float]


class System:
    def __init__(self, folder: Path, client: openai.OpenAI) -> None:
        self.folder = folder
        self.client = client

    def owner(self) -> psycopg.Connection:
        """A connection of the role that owns the tables."""
        folder = self.folder / "postgres"
        password = (folder / "password").read_text("ascii")
        return psycopg.connect(
            host=str(folder), user="xalen", password=password, dbname="postgres", autocommit=True
        )

    def command(self, *arguments: str) -> float:
        """Seconds that an operator's command takes."""
        begun = time.monotonic()
        subprocess.run(
            [COMMAND, *arguments],
            env=os.environ | {"XALEN_DATA_DIR": str(self.folder)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return time.monotonic() - begun


@contextmanager
def system() -> Iterator[System]:
    with tempfile.TemporaryDirectory(prefix="xalen-bench-") as name:
        folder = Path(name)
        env = {key: value for key, value in os.environ.items() if not key.startswith("XALEN_")}
        env |= {f"XALEN_{quota}": "1000000000000" for quota in NO_LIMIT}
        command = [COMMAND, "up", "--data-dir", name, "--port", str(PORT)]
        with (folder / "up.log").open("wb") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            wait_until_ready(f"http://127.0.0.1:{PORT}/readyz")
            keys = tomllib.loads((folder / "credentials.toml").read_text("utf-8"))
            address = f"http://127.0.0.1:{PORT}/v1"
            yield System(folder, openai.OpenAI(base_url=address, api_key=keys["test_key"]))
        finally:
            process.terminate()
            process.wait(60)


def milliseconds(act: Callable[[], object]) -> float:
    """The median of REQUESTS calls, after three that are not counted."""
    took = []
    for _ in range(REQUESTS + 3):
        begun = time.perf_counter()
        act()
        took.append(1_000 * (time.perf_counter() - begun))
    return statistics.median(took[3:])


def measure(system: System) -> Figures:
    """Milliseconds of requests, and seconds of one small batch, a tick and `reconcile`."""
    client = system.client
    content = b"".join(json.dumps(LINE | {"custom_id": str(n)}).encode() + b"\n" for n in range(20))

    def upload() -> str:
        return client.files.create(file=("small.jsonl", content), purpose="batch").id

    def create(file_id: str) -> str:
        return client.batches.create(
            input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
        ).id

    def run() -> None:
        batch_id = create(upload())
        while client.batches.retrieve(batch_id).status != "completed":
            time.sleep(0.01)

    def get(path: str, **query: object) -> Callable[[], object]:
        return lambda: client.get(path, cast_to=object, options={"params": query})

    file_id = upload()
    run()
    batch_id = client.batches.list(limit=1).data[0].id
    deep = _middle(system)
    return {
        "POST /v1/files": milliseconds(upload),
        "POST /v1/batches": milliseconds(lambda: create(file_id)),
        "20-line batch to completed": milliseconds(run),
        "GET /v1/batches/{id}": milliseconds(get(f"/batches/{batch_id}")),
        "GET /v1/batches/{id}/invoice": milliseconds(get(f"/batches/{batch_id}/invoice")),
        "GET /v1/batches, 100 first": milliseconds(get("/batches", limit=100)),
        "GET /v1/batches, 100 in the middle": milliseconds(get("/batches", limit=100, after=deep)),
        "GET /v1/files, 100 first": milliseconds(get("/files", limit=100)),
        "GET /v1/files, no match": milliseconds(get("/files", limit=100, purpose="vision")),
        "GET /v1/limits": milliseconds(get("/limits")),
        "a tick of the sweep": _tick(system),
        "reconcile, in seconds": system.command("reconcile"),
    }


def _middle(system: System) -> str:
    with system.owner() as connection:
        row = connection.execute(
            "SELECT batches.id FROM batches JOIN accounts ON accounts.id = account_id WHERE NOT"
            " livemode AND name = 'default' ORDER BY 1 OFFSET (SELECT count(*) / 20 FROM batches) LIMIT 1"
        ).fetchone()
    assert row is not None
    return f"batch_{row[0].hex}"


TICK = """
import time
from xalen_batch.pipeline import recover, sweeps
for _ in sweeps.STATEMENTS.walk():
    pass
took = []
for _ in range(5):
    begun = time.perf_counter()
    recover.tick()
    took.append(time.perf_counter() - begun)
print(1_000 * max(took))
"""


def _tick(system: System) -> float:
    """Milliseconds of the slowest of five ticks in a row, in a process of its own.

    Statements that are due are issued before: the filled batches have none.
    """
    running = tomllib.loads((system.folder / "run.toml").read_text("utf-8"))
    env = os.environ | {
        "XALEN_DATA_DIR": str(system.folder),
        "XALEN_DATABASE_URL": running["database_url"],
        "XALEN_REDIS_URL": running["redis_url"],
        "XALEN_LOG_LEVEL": "error",
    }
    found = subprocess.run(
        [sys.executable, "-c", TICK], env=env, check=True, capture_output=True, text=True
    )
    return float(found.stdout.split()[-1])


def objects(system: System, number: int) -> None:
    """Files of uploads that no row names, as young as those of running uploads."""
    folder = system.folder / "files" / "input"
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(number):
        (folder / uuid4().hex).touch()


def report(before: Figures, after: Figures) -> Iterator[str]:
    yield f"{'':38}{'empty':>10}{'stored':>10}{'ratio':>8}"
    for name, empty in before.items():
        yield f"{name:38}{empty:10.1f}{after[name]:10.1f}{after[name] / empty:8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=1_000_000, help="stored batches")
    parser.add_argument("--lines", type=int, default=20, help="lines of each")
    parser.add_argument("--objects", type=int, default=0, help="stored objects of uploads")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    def told(words: str) -> None:
        sys.stderr.write(f"{words}\n")

    with system() as running:
        with running.owner() as connection:
            # In this month alone: statements of others will be issued by the measurement.
            stored_rows.fill(connection, FEW, options.lines, told, days=0.1)
        before = measure(running)
        with running.owner() as connection:
            stored_rows.fill(connection, options.batches, options.lines, told)
        objects(running, options.objects)
        after = measure(running)
        with running.owner() as connection:
            size: Any = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    if options.json:
        sys.stdout.write(json.dumps({"empty": before, "stored": after}, indent=2) + "\n")
        return
    sys.stdout.write("\n".join(report(before, after)))
    sys.stdout.write(f"\nPostgreSQL holds {size[0] / 1e9:.1f} GB.\n")


if __name__ == "__main__":
    main()
