"""The shapes of the wire against the client's own types, and the windows a batch may have."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from openai.types import Batch as ClientBatch
from openai.types import FileObject as ClientFile

from xalen_batch import ids
from xalen_batch.api.responses import download
from xalen_batch.api.schemas import BatchObject, FileObject
from xalen_batch.batches import Progress, completion_seconds
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import Batch, File
from xalen_batch.states import MAY_START, BatchStatus

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
        "created_at": NOW,
        "expires_at": NOW,
    }
    return Batch(**{**given, **columns})


@pytest.mark.parametrize("status", list(BatchStatus))
def test_a_batch_in_every_status_is_the_clients_batch(status: BatchStatus) -> None:
    stamped = {} if status == BatchStatus.VALIDATING else {f"{status.value}_at": NOW}
    errors = [{"code": "empty_file", "message": "no lines", "line": None, "param": None}] if status == BatchStatus.FAILED else None
    shown = BatchObject.of(batch(status=status.value, errors=errors, **stamped), Progress(), NOW).model_dump()
    assert set(shown) == {*ClientBatch.model_fields, "schedule_id", "run_id", "execution_window"}
    read = ClientBatch.model_validate(shown, strict=True)
    assert read.status == status
    assert all(getattr(read, name) == int(NOW.timestamp()) for name in stamped)
    assert read.errors is None or (read.errors.data or [])[0].code == "empty_file"


def test_a_file_is_the_clients_file() -> None:
    file = File(id=ids.new(), size=3, created_at=NOW, expires_at=None, filename="a", purpose="batch_output")
    shown = FileObject.of(file).model_dump()
    assert set(shown) == set(ClientFile.model_fields)
    ClientFile.model_validate(shown, strict=True)


NIGHT = {"start": "22:00", "end": "06:00", "days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], "timezone": "UTC"}
EVENING = datetime(2026, 11, 23, 22, tzinfo=UTC)
MORNING = EVENING + timedelta(hours=8)


@pytest.mark.parametrize(
    ("now", "state", "opens"),
    [
        (EVENING - timedelta(microseconds=1), "closed", EVENING),
        (EVENING, "open", EVENING),
        (MORNING - timedelta(microseconds=1), "open", EVENING),
        # Nobody has put the next interval in its place yet.
        (MORNING, "closed", EVENING + timedelta(days=1)),
        (EVENING + timedelta(days=3), "open", EVENING + timedelta(days=3)),
    ],
)
@pytest.mark.parametrize("status", ["validating", "in_progress"])
def test_an_execution_window_is_shown_with_the_interval_that_is_open_or_opens_next(
    status: str, now: datetime, state: str, opens: datetime
) -> None:
    waiting = batch(status=status, execution_window=NIGHT, window_opens_at=EVENING, window_closes_at=MORNING)
    shown = BatchObject.of(waiting, Progress(), now).model_dump()["execution_window"]
    interval = {"opens_at": int(opens.timestamp()), "closes_at": int(opens.timestamp()) + 8 * 3600}
    assert shown == {**NIGHT, "state": state, **interval}


@pytest.mark.parametrize("status", sorted(set(BatchStatus) - MAY_START))
def test_the_window_of_a_batch_that_starts_no_line_any_more_is_closed_for_good(status: str) -> None:
    over = batch(status=status, execution_window=NIGHT, window_opens_at=EVENING, window_closes_at=MORNING)
    shown = BatchObject.of(over, Progress(), EVENING).model_dump()["execution_window"]
    assert shown == {**NIGHT, "state": "closed", "opens_at": None, "closes_at": None}


def test_a_batch_of_a_schedule_names_it_and_its_run() -> None:
    schedule_id, run_id = ids.new(), ids.new()
    shown = BatchObject.of(batch(schedule_id=schedule_id, run_id=run_id), Progress(), NOW)
    assert (shown.schedule_id, shown.run_id, shown.execution_window) == (f"sched_{schedule_id.hex}", f"run_{run_id.hex}", None)


@pytest.mark.parametrize(("window", "seconds"), [("1h", 3600), ("24h", 86_400), ("1d", 86_400), ("7d", 604_800), ("168h", 604_800)])
def test_a_window_is_hours_or_days(window: str, seconds: int) -> None:
    assert completion_seconds(window) == seconds


@pytest.mark.parametrize("window", ["", "24", "0h", "00h", "30m", "8d", "169h", "1.5h", "-1h", "24H", "24h\n", " 24h", "٢٤h", "9999h"])
def test_any_other_window_is_refused(window: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion_seconds(window)
    assert caught.value.param == "completion_window"


@pytest.mark.parametrize("name", ['a".jsonl', "a\\b", "../a", "ü.jsonl", "☕", "a; filename=b"])
def test_a_download_name_cannot_leave_its_header(name: str) -> None:
    header = download(iter([b"x"]), name).headers["content-disposition"]
    assert header.isascii()
    assert header.count('"') == 2
    assert not {"/", "\\"} & set(header.split('"')[1])
