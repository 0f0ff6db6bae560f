"""The shapes of the wire against the client's own types, of schedules against their page, and the
windows a batch may have.
"""

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from openai.types import Batch as ClientBatch
from openai.types import FileObject as ClientFile

from tests.described import description
from xalen_batch import ids
from xalen_batch.api.schedule_schemas import RunObject, ScheduleObject
from xalen_batch.api.schemas import BatchObject, FileObject
from xalen_batch.batches.batches import Progress
from xalen_batch.models import Batch, File, Schedule, ScheduleRun
from xalen_batch.schedules.definition import Definition
from xalen_batch.schedules.runs import Outcome, Trigger
from xalen_batch.states import MAY_START, BatchStatus, RunState, ScheduleStatus

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def batch(**columns: object) -> Batch:
    given = {
        "id": ids.new(),
        "endpoint": "/v1/rerank",
        "completion_window": "24h",
        "status": "validating",
        "input_file_id": ids.new(),
        "discount_rate": Decimal("0.5"),
        "meta": {},
        "on_invalid": "fail",
        "created_at": NOW,
        "expires_at": NOW,
    }
    return Batch(**{**given, **columns})


@pytest.mark.parametrize("status", list(BatchStatus))
def test_a_batch_in_every_status_is_the_clients_batch(status: BatchStatus) -> None:
    stamped = {} if status == BatchStatus.VALIDATING else {f"{status.value}_at": NOW}
    errors = (
        [{"code": "empty_file", "message": "no lines", "line": None, "param": None}]
        if status == BatchStatus.FAILED
        else None
    )
    shown = BatchObject.of(
        batch(status=status.value, errors=errors, **stamped), Progress(), NOW
    ).model_dump()
    assert set(shown) == {
        *ClientBatch.model_fields,
        "schedule_id",
        "run_id",
        "execution_window",
        "on_invalid",
        "retry_of",
        "retry_codes",
        "waiting",
        "outlook",
    }
    read = ClientBatch.model_validate(shown, strict=True)
    assert read.status == status
    assert all(getattr(read, name) == int(NOW.timestamp()) for name in stamped)
    assert read.errors is None or (read.errors.data or [])[0].code == "empty_file"


def test_a_file_is_the_clients_file() -> None:
    file = File(
        id=ids.new(), size=3, created_at=NOW, expires_at=None, filename="a", purpose="batch_output"
    )
    shown = FileObject.of(file).model_dump()
    assert set(shown) == set(ClientFile.model_fields)
    ClientFile.model_validate(shown, strict=True)


NIGHT = {
    "start": "22:00",
    "end": "06:00",
    "days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"],
    "timezone": "UTC",
}
EVENING = datetime(2026, 11, 23, 22, tzinfo=UTC)
MORNING = EVENING + timedelta(hours=8)


@pytest.mark.parametrize(
    ("now", "state", "opens"),
    [
        (EVENING - timedelta(microseconds=1), "closed", EVENING),
        (EVENING, "open", EVENING),
        (MORNING - timedelta(microseconds=1), "open", EVENING),
        # The interval is over, and no sweep has stored the next one yet.
        (MORNING, "closed", EVENING + timedelta(days=1)),
        (EVENING + timedelta(days=3), "open", EVENING + timedelta(days=3)),
    ],
)
@pytest.mark.parametrize("status", ["validating", "in_progress"])
def test_an_execution_window_is_shown_with_the_interval_that_is_open_or_opens_next(
    status: str, now: datetime, state: str, opens: datetime
) -> None:
    waiting = batch(
        status=status, execution_window=NIGHT, window_opens_at=EVENING, window_closes_at=MORNING
    )
    shown = BatchObject.of(waiting, Progress(), now).model_dump()["execution_window"]
    interval = {"opens_at": int(opens.timestamp()), "closes_at": int(opens.timestamp()) + 8 * 3600}
    assert shown == {**NIGHT, "state": state, **interval}


@pytest.mark.parametrize("status", sorted(set(BatchStatus) - MAY_START))
def test_the_window_of_a_batch_that_starts_no_line_any_more_is_closed_for_good(status: str) -> None:
    over = batch(
        status=status, execution_window=NIGHT, window_opens_at=EVENING, window_closes_at=MORNING
    )
    shown = BatchObject.of(over, Progress(), EVENING).model_dump()["execution_window"]
    assert shown == {**NIGHT, "state": "closed", "opens_at": None, "closes_at": None}


def test_a_batch_of_a_schedule_names_it_and_its_run() -> None:
    schedule_id, run_id = ids.new(), ids.new()
    shown = BatchObject.of(batch(schedule_id=schedule_id, run_id=run_id), Progress(), NOW)
    assert (shown.schedule_id, shown.run_id, shown.execution_window) == (
        f"sched_{schedule_id.hex}",
        f"run_{run_id.hex}",
        None,
    )


DEFINITION = Definition.model_validate(
    {
        "name": "nightly",
        "cron": "30 2 * * *",
        "timezone": "Asia/Kathmandu",
        "endpoint": "/v1/rerank",
        "inbox": {},
    }
).model_dump(mode="json")


def run(**columns: Any) -> ScheduleRun:
    given = {
        "id": ids.new(),
        "schedule_id": ids.new(),
        "scheduled_for": NOW,
        "trigger": "schedule",
        "state": "waiting",
    }
    return ScheduleRun(**{**given, "definition": DEFINITION, **columns})


def schedule(**columns: Any) -> Schedule:
    given = {
        "id": ids.new(),
        "name": "nightly",
        "definition": DEFINITION,
        "status": "active",
        "failures": 0,
        "run_counts": {},
    }
    return Schedule(**{**given, "created_at": NOW, "updated_at": NOW, **columns})


@pytest.mark.parametrize("state", list(RunState))
@pytest.mark.parametrize("trigger", list(Trigger))
def test_a_run_has_every_key_in_every_state(state: RunState, trigger: Trigger) -> None:
    fired_at = NOW + timedelta(seconds=1, milliseconds=250)
    outcome = Outcome(ids.new(), Decimal("1E-7"))
    shown = json.loads(
        RunObject.of(
            run(state=state.value, trigger=trigger.value, fired_at=fired_at), outcome
        ).model_dump_json()
    )
    bare = json.loads(
        RunObject.of(run(state=state.value, trigger=trigger.value), Outcome()).model_dump_json()
    )
    assert (
        set(shown)
        == set(bare)
        == {
            *(
                "id",
                "object",
                "schedule_id",
                "scheduled_for",
                "scheduled_local",
                "timezone",
                "as_of",
                "fired_at",
                "lag",
                "ended_at",
            ),
            *("trigger", "state", "reason", "message", "batch_id", "cost", "manifest"),
        }
    )
    assert (shown["state"], shown["trigger"], shown["scheduled_local"]) == (
        state.value,
        trigger.value,
        "2026-11-23T17:45:00+05:45",
    )
    assert (shown["lag"], shown["fired_at"], shown["cost"]) == (
        1.25,
        int(NOW.timestamp()) + 1,
        "0.0000001",
    )
    assert (bare["lag"], bare["fired_at"], bare["batch_id"], bare["cost"], bare["manifest"]) == (
        None,
    ) * 5


@pytest.mark.parametrize("status", list(ScheduleStatus))
def test_a_schedule_has_every_key_in_every_status(status: ScheduleStatus) -> None:
    next_fire_at = NOW if status == ScheduleStatus.ACTIVE else None
    recent = [run(state="succeeded"), run(state="failed")]
    shown = json.loads(
        ScheduleObject.of(
            schedule(status=status.value, next_fire_at=next_fire_at, run_counts={"succeeded": 3}),
            pending=7,
            recent=recent,
            last=Outcome(),
        ).model_dump_json()
    )
    bare = json.loads(
        ScheduleObject.of(
            schedule(status=status.value), pending=0, recent=[], last=None
        ).model_dump_json()
    )
    assert (
        set(shown)
        == set(bare)
        == {
            *(
                "id",
                "object",
                "name",
                "status",
                "paused_at",
                "pause_note",
                "cron",
                "description",
                "timezone",
                "starts_at",
                "ends_at",
            ),
            *(
                "jitter",
                "next_fire_at",
                "next_fire_local",
                "input_file_id",
                "template_file_id",
                "source",
                "source_location",
                "inbox",
                "endpoint",
            ),
            *(
                "completion_window",
                "metadata",
                "output_expires_after",
                "execution_window",
                "on_invalid",
                "overlap",
                "misfire",
            ),
            "misfire_limit",
            *(
                "catch_up_window",
                "pause_on_failure",
                "failures",
                "run_counts",
                "recent_runs",
                "last_run",
                "created_at",
                "updated_at",
            ),
        }
    )
    assert shown["run_counts"] == {
        "succeeded": 3,
        "failed": 0,
        "cancelled": 0,
        "skipped": 0,
        "missed": 0,
    }
    assert [recent["state"] for recent in shown["recent_runs"]] == ["succeeded", "failed"]
    assert shown["last_run"]["id"] == shown["recent_runs"][-1]["id"]
    assert (shown["inbox"], bare["last_run"]) == ({"on_empty": "skip", "pending": 7}, None)


def test_the_description_of_a_change_is_that_of_a_schedule_with_nothing_required() -> None:
    described = description()
    schemas = described["components"]["schemas"]
    assert schemas["Changes"]["properties"] == schemas["Definition"]["properties"]
    assert (schemas["Changes"]["required"], schemas["Definition"]["required"]) == (
        [],
        ["name", "cron", "endpoint"],
    )
    assert set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(described))) <= set(schemas)
