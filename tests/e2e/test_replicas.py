"""Two servers of one model, added while the system runs; one is killed and comes back in a batch."""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import openai
import pytest
from openai.types import Batch

from tests import factories
from tests.e2e import processes
from tests.e2e.processes import Process, System
from tests.factories import CHAT_MODEL
from tests.waiting import wait_until

# Enough to run on while a busy machine starts a server again.
LINES = 2_400
# A line of a failed attempt fails at once: the test shows that none is counted.
SETTINGS = {"max_attempts": 1, "task_lines": 100, "flush_interval": 0.2, "lease": 10}
BUSY = 120.0


class Servers:
    """Simulated model servers on ports of their own."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self.folder = folder
        self._running = running
        self.ports = (processes.free_port(), processes.free_port())
        self.processes = [self.start(port) for port in self.ports]

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.ports[number]}/v1"

    def start(self, port: int) -> Process:
        log = self.folder / f"simulate-{port}.log"
        command = ("simulate", "--port", str(port), "--latency-ms", "80")
        process = self._running.enter_context(
            processes.command(*command, log=log, env=processes.environment())
        )
        wait_until(
            lambda: processes.answers(f"http://127.0.0.1:{port}/health"),
            timeout=BUSY,
            process=process,
            log=log,
        )
        return process

    def kill(self, number: int) -> None:
        self.processes[number].send_signal(signal.SIGKILL)
        self.processes[number].wait()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    with ExitStack() as running:
        yield Servers(tmp_path, running)


@pytest.fixture
def system(tmp_path: Path, servers: Servers) -> Iterator[System]:
    with processes.up(tmp_path / "data", **SETTINGS) as system:
        yield system


def lines() -> list[dict]:
    """Groups of eight lines with a prefix in common, and as many without one."""
    shared = [
        factories.chat_line(f"shared-{n}", f"Document {n // 8}: {'lorem ipsum ' * 40} {n}")
        for n in range(LINES // 2)
    ]
    return [
        *shared,
        *(factories.chat_line(f"short-{n}", f"Parcel {n}?") for n in range(LINES // 2)),
    ]


def submitted(client: openai.OpenAI) -> Batch:
    content = factories.jsonl(lines())
    file = client.files.create(file=("lines.jsonl", content), purpose="batch")
    found: list[Batch] = []

    def submit() -> bool:
        # The API follows the catalog file within seconds.
        with suppress(openai.BadRequestError):
            batch = client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
            )
            found.append(batch)
        return bool(found) and validated(client, found[-1])

    wait_until(submit, timeout=BUSY)
    return found[-1]


def validated(client: openai.OpenAI, batch: Batch) -> bool:
    ended: list[str] = []

    def look() -> bool:
        ended[:] = [client.batches.retrieve(batch.id).status]
        return ended[0] != "validating"

    wait_until(look, timeout=BUSY)
    return ended[0] != "failed"


def add(system: System, url: str) -> None:
    """One command: what it is, and its entry in the catalog of the data folder."""
    command = ["models", "add", url, "--model", CHAT_MODEL, "--no-ramp", "--yes"]
    env = processes.environment(data_dir=system.data_dir)
    processes.run(*command, env=env).check_returncode()


def test_a_replica_that_is_killed_and_comes_back_costs_no_line(
    system: System, servers: Servers
) -> None:
    client = openai.OpenAI(base_url=system.base_url, api_key=system.live_key, max_retries=10)
    add(system, servers.url(0))
    file = system.data_dir / "catalog.toml"
    one = f'base_url = "{servers.url(0)}"'
    assert one in file.read_text("utf-8")
    both = f'base_urls = ["{servers.url(0)}", "{servers.url(1)}"]'
    limited = file.read_text("utf-8").replace("max_in_flight = 64", "max_in_flight = 16")
    file.write_text(limited.replace(one, both), "utf-8")

    batch = submitted(client)
    log = system.data_dir / "logs/worker.log"

    def completed(count: int) -> None:
        def look() -> bool:
            counts = client.batches.retrieve(batch.id).request_counts
            return counts is not None and counts.completed >= count

        wait_until(look, timeout=BUSY, log=log)

    completed(100)
    servers.kill(0)
    wait_until(lambda: "replica.away" in log.read_text("utf-8"), timeout=BUSY, log=log)
    completed(400)
    servers.start(servers.ports[0])
    wait_until(lambda: "replica.here" in log.read_text("utf-8"), timeout=BUSY, log=log)

    ended: list[Batch] = []

    def is_over() -> bool:
        ended[:] = [client.batches.retrieve(batch.id)]
        return ended[0].status in ("completed", "failed", "expired", "cancelled")

    wait_until(is_over, timeout=BUSY, log=log)
    (over,) = ended
    assert over.request_counts is not None
    counts = over.request_counts
    assert (over.status, counts.completed, counts.failed) == ("completed", LINES, 0)
    assert over.output_file_id is not None
    assert over.error_file_id is None
    output = [
        json.loads(line) for line in client.files.content(over.output_file_id).content.splitlines()
    ]
    assert Counter(line["custom_id"] for line in output) == Counter(
        line["custom_id"] for line in lines()
    )
    # Every charge is once on the invoice: derived again from the lines.
    env = processes.environment(data_dir=system.data_dir)
    proof = processes.run("reconcile", "--json", env=env)
    assert proof.returncode == 0, proof.stderr
    invoice = processes.run("invoice", batch.id, "--live", "--json", env=env)
    tokens = sum(line["response"]["body"]["usage"]["completion_tokens"] for line in output)
    assert str(tokens) in invoice.stdout.decode().replace(",", "")
