"""The outlook of a batch: from its tasks, its pace and the batches before it."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from tests import factories, ran
from tests.integration.conftest import Api
from tests.ran import BUSY, Ending, answered
from xalen_batch import db, ids
from xalen_batch.accounts import accounts
from xalen_batch.accounts.accounts import Owner
from xalen_batch.batches import batches, outlook
from xalen_batch.batches.outlook import Basis, LineErrors, Outlook
from xalen_batch.models import Batch, BatchPace
from xalen_batch.pipeline import claim, record
from xalen_batch.states import LineError, TaskState

pytestmark = pytest.mark.usefixtures("database", "valkey")


def submitted(lines: int, owner: Owner | None = None, **columns: object) -> Batch:
    """A batch that has been in progress for 100 s."""
    made = ran.submitted(
        [factories.chat_line(f"n{n}") for n in range(1, lines + 1)], owner, **columns
    )
    with db.transaction() as session:
        found = session.get_one(Batch, made.id)
        found.in_progress_at = datetime.now(UTC) - timedelta(seconds=100)
    return ran.again(made.id)


def run(batch: Batch, endings: Mapping[int, Ending]) -> None:
    """Let lines of a batch end, by their numbers; the others wait again."""
    claims = []
    while (held := claim.claim([], with_suspects=True)) is not None:
        claims.append(held)
    for held in claims:
        rows = [
            ran.row(held, line, endings[line.line_no])
            for line in held.lines
            if held.batch_id == batch.id and line.line_no in endings
        ]
        record.record(held.key, held.fence, rows, to=TaskState.PENDING)


def of(batch: Batch) -> Outlook:
    with db.reading() as session:
        found = outlook.of(session, batch, batches.progress(session, [batch])[batch.id])
    assert found is not None
    return found


def test_without_a_measurement_the_average_counts() -> None:
    batch = submitted(100)
    assert of(batch).basis is Basis.NONE
    assert of(batch).estimated_end is None
    run(batch, {n: answered() for n in range(1, 26)})
    found = of(batch)
    assert (found.basis, found.lines_left) == (Basis.AVERAGE, 75)
    assert found.lines_per_second == pytest.approx(0.25, rel=0.05)
    assert found.estimated_end is not None
    left = (found.estimated_end - datetime.now(UTC)).total_seconds()
    assert left == pytest.approx(300, rel=0.05)


def test_a_measurement_counts_while_it_is_fresh() -> None:
    batch = submitted(100)
    run(batch, {1: answered()})
    with db.transaction() as session:
        pace = BatchPace(
            batch_id=batch.id,
            measured_at=datetime.now(UTC),
            done=1,
            lines_per_second=9.9,
            seconds=60,
            is_late=False,
        )
        session.add(pace)
    assert (of(batch).basis, of(batch).lines_per_second) == (Basis.MEASURED, 9.9)
    with db.transaction() as session:
        found = session.get_one(BatchPace, batch.id)
        found.measured_at -= outlook.STALE_AFTER
    assert of(batch).basis is Basis.AVERAGE


def test_lines_ahead_are_those_of_own_batches_with_an_earlier_deadline() -> None:
    now = datetime.now(UTC)
    first = submitted(30, expires_at=now + timedelta(hours=2))
    owner = Owner(first.account_id, first.livemode)
    batch = submitted(5, owner, expires_at=now + timedelta(hours=3))
    submitted(7, owner, expires_at=now + timedelta(hours=4))
    # Those of another account are not counted.
    submitted(100, expires_at=now + timedelta(hours=1))
    assert of(batch).lines_ahead == 30
    assert of(first).lines_ahead == 0


def test_a_batch_whose_window_is_closed_is_ahead_of_none() -> None:
    now = datetime.now(UTC)
    first = submitted(30, expires_at=now + timedelta(hours=2))
    batch = submitted(5, Owner(first.account_id, first.livemode))
    window(first, now + timedelta(minutes=30), now + timedelta(hours=1))
    assert of(batch).lines_ahead == 0
    window(first, now - timedelta(minutes=30), now + timedelta(hours=1))
    assert of(batch).lines_ahead == 30


def window(batch: Batch, opens: datetime, closes: datetime) -> None:
    with db.transaction() as session:
        session.execute(
            update(Batch)
            .where(Batch.id == batch.id)
            .values(
                execution_window={"start": "00:00", "end": "01:00", "timezone": "UTC"},
                window_opens_at=opens,
                window_closes_at=closes,
            )
        )


def test_errors_have_their_count_and_an_example() -> None:
    batch = submitted(60)
    run(
        batch,
        dict.fromkeys(range(30, 34), BUSY) | {3: LineError.REQUEST_TIMEOUT, 4: answered()},
    )
    assert of(batch).errors == [
        LineErrors("http_503", 4, 30, "n30"),
        LineErrors("request_timeout", 1, 3, "n3"),
    ]


def test_an_invalid_line_that_was_skipped_is_an_example() -> None:
    lines = [factories.chat_line("good"), factories.chat_line("bad", model="none")]
    batch = ran.submitted(lines, on_invalid="skip")
    assert of(batch).errors == [LineErrors("model_not_found", 1, 2, "bad")]


def test_one_batch_shows_it_and_a_list_does_not(api: Api) -> None:
    with db.transaction() as session:
        caller = accounts.authenticate(session, api.key)
    batch = submitted(40, caller)
    run(batch, {1: answered(), 2: BUSY})
    path = f"/v1/batches/{ids.render('batch', batch.id)}"
    found = api.ask("GET", path).json["outlook"]
    assert found["basis"] == "average"
    assert found["lines_left"] == 38
    assert found["errors"] == [{"code": "http_503", "count": 1, "line": 2, "custom_id": "n2"}]
    assert api.ask("GET", "/v1/batches").json["data"][0]["outlook"] is None
    ran.end(batch.id, {})
    assert api.ask("GET", path).json["outlook"] is None
