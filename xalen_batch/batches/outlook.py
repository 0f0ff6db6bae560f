"""Outlook: when a batch in progress will probably end, what is ahead of it, and its errors so far.

Computed when a batch is read, from its tasks and its last measured pace (`pipeline/pace.py`). No
statement reads the results of a batch but those of single tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import islice

from sqlalchemy import text
from sqlalchemy.orm import Session

from xalen_batch import db, jsonl
from xalen_batch.batches.batches import Progress
from xalen_batch.models import Batch, BatchPace
from xalen_batch.states import BatchStatus
from xalen_batch.windows import ExecutionWindow

# Codes of errors that are shown, the most frequent ones.
MOST_CODES = 10
# Batches and tasks that are read to count the lines ahead.
BATCHES_AHEAD, TASKS_AHEAD = 200, 20_000
# Results that are read to find an example of an invalid line.
FIRST_LINES = 10_000
# Intervals of an execution window that an estimate walks through.
MOST_INTERVALS = 60
# Age from which a measurement is no basis of an estimate.
STALE_AFTER = timedelta(minutes=5)
# A batch is not late before it has run for this share of its completion window, or for so long.
SETTLED_SHARE, SETTLED_AFTER = 0.05, timedelta(minutes=5)
# A batch of which no line ends is late when less than this share of its window is left.
LAST_SHARE = 0.25
# Seconds of running from which the average is an estimate.
SHORTEST_AVERAGE = 2.0


class Basis(StrEnum):
    """What an estimated end is computed from."""

    MEASURED = "measured"  # the lines that ended between the last two measurements
    AVERAGE = "average"  # all lines that have ended since the batch is in progress
    NONE = "none"  # no line has ended


@dataclass(frozen=True, slots=True)
class LineErrors:
    """The lines that ended with one code, and one of them; None: no example was found."""

    code: str
    count: int
    line: int | None = None
    custom_id: str | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """`lines_ahead`: waiting lines of the account's batches with an earlier deadline that go first.

    `seconds`: those over which the pace was measured. `is_late`: the batch would miss its deadline
    at this pace.
    """

    lines_left: int
    lines_ahead: int
    basis: Basis
    lines_per_second: float | None
    seconds: float | None
    estimated_end: datetime | None
    is_late: bool
    at_risk_since: datetime | None
    errors: Sequence[LineErrors]


def of(session: Session, batch: Batch, progress: Progress) -> Outlook | None:
    """The outlook of a batch in progress; None for any other."""
    if batch.status != BatchStatus.IN_PROGRESS or batch.in_progress_at is None:
        return None
    now = db.now(session)
    row = session.get(BatchPace, batch.id)
    left = max(progress.total - progress.done, 0)
    basis, rate, seconds = _pace(batch, progress, row, now)
    end = _end(batch, now, left, rate)
    return Outlook(
        lines_left=left,
        lines_ahead=_ahead(session, batch),
        basis=basis,
        lines_per_second=rate,
        seconds=seconds,
        estimated_end=end,
        is_late=is_late(batch, now, left, rate),
        at_risk_since=None if row is None else row.at_risk_at,
        errors=errors_of(session, batch),
    )


def _pace(
    batch: Batch, progress: Progress, row: BatchPace | None, now: datetime
) -> tuple[Basis, float | None, float | None]:
    if row is not None and row.lines_per_second and now - row.measured_at < STALE_AFTER:
        return Basis.MEASURED, row.lines_per_second, row.seconds
    running = (now - (batch.in_progress_at or now)).total_seconds()
    # Lines that validation skipped have not run.
    done = progress.done - batch.failed
    if done <= 0 or running < SHORTEST_AVERAGE:
        return Basis.NONE, None, None
    return Basis.AVERAGE, done / running, running


def _end(batch: Batch, now: datetime, left: int, rate: float | None) -> datetime | None:
    if not rate:
        return None
    return after_work(now, left / rate, _window(batch))


def _window(batch: Batch) -> ExecutionWindow | None:
    if batch.execution_window is None:
        return None
    return ExecutionWindow.model_validate(batch.execution_window)


def after_work(now: datetime, seconds: float, window: ExecutionWindow | None) -> datetime | None:
    """When work of this length will be done, of which none runs while the window is closed.

    None if that is beyond MOST_INTERVALS intervals of the window, or a century.
    """
    # A datetime ends with the year 9999.
    if seconds > timedelta(days=36_500).total_seconds():
        return None
    if window is None:
        return now + timedelta(seconds=seconds)
    for opens, closes in islice(window.intervals(now), MOST_INTERVALS):
        begin = max(now, opens)
        open_for = (closes - begin).total_seconds()
        if seconds <= open_for:
            return begin + timedelta(seconds=seconds)
        seconds -= open_for
    return None


def is_late(batch: Batch, now: datetime, left: int, rate: float | None) -> bool:
    """Whether a batch in progress will miss its deadline at this pace.

    `rate`: lines per second; None or 0: no line ends. A batch that has just begun to run is not
    late, and neither is one that waits while most of its completion window is left.
    """
    if not left or batch.in_progress_at is None:
        return False
    window = _window(batch)
    if window is not None:
        opens, _ = window.interval(now)
        if opens >= batch.expires_at:
            return True
    completion = batch.expires_at - batch.created_at
    if not rate:
        return batch.expires_at - now < LAST_SHARE * completion
    if now - batch.in_progress_at < min(SETTLED_AFTER, SETTLED_SHARE * completion):
        return False
    end = after_work(now, left / rate, window)
    return end is None or end > batch.expires_at


# The waiting tasks of the account's batches in the same queue with an earlier deadline. A batch
# whose window is closed starts no line, so it is ahead of none.
_AHEAD = text("""
    SELECT coalesce(sum(lines), 0)::bigint FROM (
        SELECT task.lines FROM (
            SELECT id, window_opens_at, window_closes_at FROM batches
            WHERE status = 'in_progress' AND account_id = :account_id AND livemode = :livemode
                AND coalesce(model, '') = :model AND (expires_at, id) < (:expires_at, :batch_id)
            ORDER BY expires_at, id LIMIT :batches
        ) AS earlier
        CROSS JOIN LATERAL (
            SELECT lines FROM tasks WHERE state = 'pending' AND batch_id = earlier.id
                AND (earlier.window_closes_at IS NULL
                    OR earlier.window_opens_at <= now() AND now() < earlier.window_closes_at)
            LIMIT :tasks
        ) AS task
        LIMIT :tasks
    ) AS ahead
""")


def _ahead(session: Session, batch: Batch) -> int:
    found: int = session.execute(
        _AHEAD,
        {
            "account_id": batch.account_id,
            "livemode": batch.livemode,
            "model": batch.model or "",
            "expires_at": batch.expires_at,
            "batch_id": batch.id,
            "batches": BATCHES_AHEAD,
            "tasks": TASKS_AHEAD,
        },
    ).scalar_one()
    return found


# Each task counts its own lines that ended without success. One such task gives the example.
_CODES = text("""
    SELECT key, sum(value::bigint)::bigint, min(seq)
    FROM tasks CROSS JOIN LATERAL jsonb_each_text(not_billed)
    WHERE batch_id = :batch_id AND not_billed IS NOT NULL
    GROUP BY key ORDER BY 2 DESC, 1 LIMIT :most
""")
_INDEX = text("SELECT line_index FROM tasks WHERE batch_id = :batch_id AND seq = :seq")
_EXAMPLE = """
    SELECT line_no, custom_id FROM ({lines}) AS line
    WHERE coalesce(error_code, 'http_' || status_code) = :code ORDER BY line_no LIMIT 1
"""
_RESULTS = (
    "SELECT line_no, custom_id, error_code, status_code FROM results WHERE batch_id = :batch_id"
)
_OF_TASK = text(_EXAMPLE.format(lines=f"{_RESULTS} AND line_no = ANY(:line_nos)"))
_OF_FIRST = text(_EXAMPLE.format(lines=f"{_RESULTS} ORDER BY line_no LIMIT :first"))


def errors_of(session: Session, batch: Batch) -> list[LineErrors]:
    """The most frequent codes of lines that ended without success, while the tasks are rows."""
    codes = session.execute(_CODES, {"batch_id": batch.id, "most": MOST_CODES}).all()
    return [_with_example(session, batch, *row) for row in codes]


def _with_example(session: Session, batch: Batch, code: str, count: int, seq: int) -> LineErrors:
    of_batch = {"batch_id": batch.id, "code": code}
    index = session.execute(_INDEX, {"batch_id": batch.id, "seq": seq}).scalar_one()
    if index:
        numbers = [span.line_no for span in jsonl.unpack(index)]
        found = session.execute(_OF_TASK, of_batch | {"line_nos": numbers}).one_or_none()
    else:
        # The task of skipped invalid lines has no index.
        found = session.execute(_OF_FIRST, of_batch | {"first": FIRST_LINES}).one_or_none()
    return LineErrors(code, count, *(found or ()))
