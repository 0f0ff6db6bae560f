"""A schedule from the command line fires at a real time, although api and beat are killed and Redis
hangs, and its batch is delivered and invoiced.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest

from tests import factories
from tests.e2e import processes
from tests.e2e.processes import System


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with processes.up(tmp_path / "data", poll_interval=0.2, tick_interval=2) as system:
        yield system


def command(system: System, *arguments: str) -> Any:
    """The JSON that a command prints with --json."""
    env = processes.environment(data_dir=system.data_dir)
    ran = processes.run(*arguments, "--json", env=env)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def kill(system: System, *parts: str) -> None:
    for part in parts:
        os.kill(int((system.data_dir / "run" / f"{part}.pid").read_text()), signal.SIGKILL)


def coming_minute() -> datetime:
    """The next minute that leaves time to get ready for it."""
    return (datetime.now(UTC) + timedelta(seconds=70)).replace(second=0, microsecond=0)


def test_a_night_fires_once_though_api_and_beat_are_killed_and_redis_hangs(
    system: System, tmp_path: Path
) -> None:
    file = tmp_path / "night.jsonl"
    file.write_bytes(
        factories.jsonl(
            [
                factories.chat_line("{{run_id}}-" + str(n), "Of {{scheduled_date-1d}}?")
                for n in range(20)
            ]
        )
    )
    at = coming_minute()
    schedule = command(
        system,
        "schedules",
        "create",
        "night",
        "--cron",
        f"{at:%M %H} * * *",
        "--timezone",
        "UTC",
        "--template",
        str(file),
    )
    assert schedule["next_fire_at"] == int(at.timestamp())

    valkey = int((system.data_dir / "valkey" / "valkey.pid").read_text())
    kill(system, "api", "beat")
    os.kill(valkey, signal.SIGSTOP)
    try:
        processes.wait_until(lambda: processes.answers(f"{system.address}/livez"))
        runs = ended_runs(
            system, schedule["id"], within=(at - datetime.now(UTC)).total_seconds() + 60
        )
    finally:
        os.kill(valkey, signal.SIGCONT)
    [run] = runs
    assert (run["state"], run["scheduled_for"], run["trigger"]) == (
        "succeeded",
        int(at.timestamp()),
        "schedule",
    )
    assert run["lag"] < 10

    client = openai.OpenAI(base_url=system.base_url, api_key=system.test_key)
    batch = client.batches.retrieve(run["batch_id"])
    assert (batch.status, batch.request_counts and batch.request_counts.completed) == (
        "completed",
        20,
    )
    assert batch.output_file_id is not None
    lines = [
        json.loads(line) for line in client.files.content(batch.output_file_id).content.splitlines()
    ]
    assert [line["custom_id"] for line in lines] == [f"{run['id']}-{n}" for n in range(20)]
    request = json.loads(client.files.content(batch.input_file_id).content.splitlines()[0])
    assert request["body"]["messages"][0]["content"] == f"Of {(at - timedelta(days=1)).date()}?"
    invoice = command(system, "invoice", batch.id)
    assert invoice["schedule"] == {"id": schedule["id"], "name": "night"}
    assert invoice["total"] == run["cost"]
    assert command(system, "schedules", "show", schedule["id"])["next_fire_at"] == int(
        (at + timedelta(days=1)).timestamp()
    )


def ended_runs(system: System, schedule_id: str, *, within: float) -> list[dict[str, Any]]:
    """The runs of a schedule, once one is over."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        found[:] = command(system, "schedules", "runs", schedule_id)["data"]
        return bool(found) and found[0]["state"] not in ("waiting", "running")

    deadline = time.monotonic() + within
    while not look():
        assert time.monotonic() < deadline, found
        time.sleep(2)
    return found
