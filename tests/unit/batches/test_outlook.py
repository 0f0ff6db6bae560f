"""Estimates: when work will be done in the hours of a window, and whether a batch is late."""

from datetime import UTC, datetime, timedelta

import pytest

from xalen_batch.batches import outlook
from xalen_batch.models import Batch
from xalen_batch.windows import ExecutionWindow

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)  # a Wednesday
NIGHTS = ExecutionWindow(start="22:00", end="02:00")
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("now", "hours", "done"),
    [
        (NOON, 1, NOON.replace(hour=23)),
        (NOON, 4, NOON.replace(day=26, hour=2)),
        (NOON, 5, NOON.replace(day=26, hour=23)),
        # Half of the first night has passed.
        (NOON.replace(day=26, hour=0), 3, NOON.replace(day=26, hour=23)),
        (NOON, 4 * 60, NOON.replace(day=25, hour=2) + timedelta(days=60)),
        (NOON, 4 * 60 + 1, None),
    ],
)
def test_work_is_done_in_the_hours_of_the_window(
    now: datetime, hours: float, done: datetime | None
) -> None:
    assert outlook.after_work(now, hours * 3_600, NIGHTS) == done


def test_without_a_window_work_takes_its_time() -> None:
    assert outlook.after_work(NOON, 90, None) == NOON + timedelta(seconds=90)
    assert outlook.after_work(NOON, 1e18, None) is None


def batch(*, hours: int = 24, window: ExecutionWindow | None = None) -> Batch:
    return Batch(
        created_at=NOON,
        in_progress_at=NOON,
        expires_at=NOON + hours * HOUR,
        execution_window=None if window is None else window.model_dump(mode="json"),
    )


@pytest.mark.parametrize(
    ("after", "left", "rate", "is_late"),
    [
        # 23 h are left.
        (HOUR, 23 * 3_600, 1.0, False),
        (HOUR, 23 * 3_600 + 1, 1.0, True),
        (HOUR, 0, None, False),
        # It has only begun to run.
        (timedelta(minutes=4), 10**9, 1.0, False),
        (timedelta(minutes=5), 10**9, 1.0, True),
        # No line ends: it may wait for its turn, but not until the last quarter of its window.
        (17 * HOUR, 1, None, False),
        (17 * HOUR, 1, 0.0, False),
        (19 * HOUR, 1, None, True),
        (19 * HOUR, 1, 0.0, True),
    ],
)
def test_a_batch_is_late_if_its_pace_ends_behind_its_deadline(
    after: timedelta, left: int, rate: float | None, is_late: bool
) -> None:
    assert outlook.is_late(batch(), NOON + after, left, rate) is is_late


def test_a_short_batch_is_settled_sooner() -> None:
    short = batch(hours=1)
    assert not outlook.is_late(short, NOON + timedelta(seconds=179), 10**9, 1.0)
    assert outlook.is_late(short, NOON + timedelta(seconds=180), 10**9, 1.0)


def test_closed_hours_count_as_no_time() -> None:
    nightly = batch(window=NIGHTS)
    assert not outlook.is_late(nightly, NOON + HOUR, 4 * 3_600, 1.0)
    assert outlook.is_late(nightly, NOON + HOUR, 4 * 3_600 + 1, 1.0)
    # Its window does not open any more before it expires.
    over = NOON.replace(day=26, hour=3)
    assert outlook.is_late(nightly, over, 1, None)
