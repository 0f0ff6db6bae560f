"""What dies in mid-batch costs time, and nothing else: each line is once in the files and once on the invoice."""

import json
import os
import signal
import subprocess
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
import redis
from openai.types import Batch

from tests import factories
from tests.e2e import processes
from tests.e2e.processes import System

LINES = 800
CATALOG = """\
[models.mistral-small-3-1]
latency_ms = 150
[models.mistral-small-3-1.backend]
kind = "simulated"
max_in_flight = 32
"""


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(CATALOG, "utf-8")
    with processes.up(tmp_path / "data", catalog=catalog, lease=3, poll_interval=0.2, tick_interval=2, task_lines=50) as system:
        yield system


def start_batch(client: openai.OpenAI) -> Batch:
    lines = [factories.chat_line(f"line-{n}", f"Where is parcel {n}?") for n in range(LINES)]
    file = client.files.create(file=("lines.jsonl", factories.jsonl(lines)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")


def wait_for(client: openai.OpenAI, batch: Batch, is_there: Callable[[Batch], bool], *, timeout: float) -> Batch:
    found: list[Batch] = []

    def look() -> bool:
        found[:] = [client.batches.retrieve(batch.id)]
        counts = found[0].request_counts
        assert counts is not None
        assert counts.completed + counts.failed <= counts.total
        return is_there(found[0])

    processes.wait_until(look, timeout=timeout)
    return found[0]


def wait_until_some_are_done(client: openai.OpenAI, batch: Batch) -> None:
    done = wait_for(client, batch, lambda b: b.request_counts is not None and b.request_counts.completed >= LINES / 10, timeout=60)
    assert done.status == "in_progress", "the batch ended before anything could be broken"


def worker_pid(system: System) -> int:
    return int(next((system.data_dir / "run").glob("worker*.pid")).read_text())


def assert_each_line_once(system: System, client: openai.OpenAI, batch: Batch) -> None:
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed, batch.request_counts.total) == (LINES, 0, LINES)
    assert batch.output_file_id is not None
    output = [json.loads(line) for line in client.files.content(batch.output_file_id).content.splitlines()]
    assert Counter(line["custom_id"] for line in output) == Counter(f"line-{n}" for n in range(LINES))
    assert [line["custom_id"] for line in output] == [f"line-{n}" for n in range(LINES)]

    invoice = client.get(f"/batches/{batch.id}/invoice", cast_to=dict)
    billed = {line["component"]: int(line["quantity"]) for line in invoice["lines"] if line["kind"] == "usage"}
    assert billed["input"] == sum(line["response"]["body"]["usage"]["prompt_tokens"] for line in output)
    assert billed["output"] == sum(line["response"]["body"]["usage"]["completion_tokens"] for line in output)

    stores = tomllib.loads((system.data_dir / "run.toml").read_text("utf-8"))
    env = processes.environment(database_url=stores["database_url"], data_dir=system.data_dir)
    proof = subprocess.run([processes.COMMAND, "reconcile", "--json"], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (proof.returncode, json.loads(proof.stdout)) == (0, []), proof.stderr


def test_a_worker_killed_in_mid_batch(system: System) -> None:
    client = openai.OpenAI(base_url=system.base_url, api_key=system.test_key)
    batch = start_batch(client)
    wait_until_some_are_done(client, batch)
    os.kill(worker_pid(system), signal.SIGKILL)
    ended = wait_for(client, batch, lambda b: b.status not in ("in_progress", "finalizing"), timeout=90)
    assert_each_line_once(system, client, ended)


def test_postgresql_killed_in_mid_batch(system: System) -> None:
    # As any client does that asks while the database is away: it is told to come back, and does.
    client = openai.OpenAI(base_url=system.base_url, api_key=system.test_key, max_retries=10)
    batch = start_batch(client)
    wait_until_some_are_done(client, batch)
    os.kill(int((system.data_dir / "postgres" / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    ended = wait_for(client, batch, lambda b: b.status not in ("in_progress", "finalizing"), timeout=90)
    assert_each_line_once(system, client, ended)


def test_valkey_flushed_in_mid_batch(system: System) -> None:
    client = openai.OpenAI(base_url=system.base_url, api_key=system.test_key)
    batch = start_batch(client)
    wait_until_some_are_done(client, batch)
    stores = tomllib.loads((system.data_dir / "run.toml").read_text("utf-8"))
    with redis.Redis.from_url(stores["redis_url"]) as valkey:
        valkey.flushall()
    ended = wait_for(client, batch, lambda b: b.status not in ("in_progress", "finalizing"), timeout=90)
    assert_each_line_once(system, client, ended)


def test_valkey_gone_for_a_whole_batch(system: System) -> None:
    client = openai.OpenAI(base_url=system.base_url, api_key=system.test_key, max_retries=0)
    os.kill(int((system.data_dir / "valkey" / "valkey.pid").read_text()), signal.SIGSTOP)
    try:
        batch = start_batch(client)
        ended = wait_for(client, batch, lambda b: b.status not in ("validating", "in_progress", "finalizing"), timeout=90)
        assert_each_line_once(system, client, ended)
    finally:
        os.kill(int((system.data_dir / "valkey" / "valkey.pid").read_text()), signal.SIGCONT)
