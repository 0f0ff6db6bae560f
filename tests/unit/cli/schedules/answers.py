"""The API's answers about schedules, and a command line that runs against them."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tests.factories import jsonl
from tests.unit.cli.fake_api import Api
from xalen_batch import states
from xalen_batch.cli.main import app

RUN: dict[str, Any] = {
    "id": "run_1",
    "object": "schedule.run",
    "schedule_id": "sched_1",
    "scheduled_for": 1795570200,
    "scheduled_local": "2026-11-25T02:30:00+01:00",
    "timezone": "Europe/Berlin",
    "as_of": None,
    "fired_at": 1795570204,
    "lag": 4.25,
    "ended_at": 1795570300,
    "trigger": "schedule",
    "state": "succeeded",
    "reason": None,
    "message": None,
    "batch_id": "batch_1",
    "cost": "0.00012345",
    "manifest": None,
}
SCHEDULE: dict[str, Any] = {
    "id": "sched_1",
    "object": "schedule",
    "name": "tickets",
    "status": "active",
    "paused_at": None,
    "pause_note": None,
    "cron": "30 2 * * *",
    "description": "At 02:30 every day",
    "timezone": "Europe/Berlin",
    "starts_at": None,
    "ends_at": None,
    "jitter": 0,
    "next_fire_at": 1795656600,
    "next_fire_local": "2026-11-26T02:30:00+01:00",
    "input_file_id": None,
    "template_file_id": "file-1",
    "source": None,
    "source_location": None,
    "inbox": None,
    "endpoint": "/v1/chat/completions",
    "metadata": {},
    "execution_window": None,
    "on_invalid": "fail",
    "failures": 0,
    "run_counts": {"succeeded": 1, "failed": 0, "cancelled": 0, "skipped": 0, "missed": 0},
    "recent_runs": [
        {"id": "run_1", "scheduled_for": 1795570200, "state": state} for state in states.RunState
    ],
    "last_run": RUN,
    "created_at": 1795500000,
    "updated_at": 1795500000,
}
PREVIEW: dict[str, Any] = {
    "object": "schedule.preview",
    "cron": "30 2 * * *",
    "description": "At 02:30 every day",
    "timezone": "Europe/Berlin",
    "jitter_delay": 125,
    "fires": [
        {
            "scheduled_for": 4132081800,
            "local": "2100-12-10T02:30:00+02:00",
            "utc": "2100-12-10T00:30:00Z",
            "utc_offset": "+02:00",
        },
        {
            "scheduled_for": 4132171800,
            "local": "2100-12-11T02:30:00+01:00",
            "utc": "2100-12-11T01:30:00Z",
            "utc_offset": "+01:00",
        },
    ],
}
SOURCE = {
    "prefix": "drop/",
    "folder": None,
    "pattern": "*.json",
    "on_empty": "skip",
    "ready_marker": "DONE",
    "repeat": False,
}


def run(api: Api, *arguments: str, **extra: Any) -> Any:
    options = ["--base-url", api.base_url, "--api-key", "xln_test_secret"]
    return CliRunner().invoke(app, ["schedules", *arguments, *options], **extra)


def ok(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps(value).encode()


def error(
    status: int, message: str = "Told so.", code: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    return (
        status,
        {},
        json.dumps(
            {"error": {"message": message, "type": "t", "param": None, "code": code}}
        ).encode(),
    )


def listed(*values: Any) -> tuple[int, dict[str, str], bytes]:
    return ok({"object": "list", "data": values, "has_more": False, "last_id": None})


def body(api: Api, number: int) -> Any:
    return json.loads(api.requests[number][3])


def said(result: Any) -> str:
    """The text on stderr, on one line and without the frame of a usage error."""
    return " ".join(result.stderr.replace("│", " ").split())


def file(folder: Path, *lines: dict[str, Any]) -> str:
    path = folder / "in.jsonl"
    path.write_bytes(jsonl(lines))
    return str(path)
