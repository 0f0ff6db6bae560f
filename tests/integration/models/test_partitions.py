"""Partitions: made ahead, dropped only when nothing needs their rows, and never in the way."""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from tests.billing import Ran, ended
from tests.conftest import as_owner
from tests.integration.engines import bytes_of
from xalen_batch import db, ids
from xalen_batch.billing import reconcile
from xalen_batch.endpoints.usage import Usage
from xalen_batch.models import Batch, File, partitions
from xalen_batch.models.files import FilePart
from xalen_batch.pipeline import seal, sweeps, validate
from xalen_batch.results import results
from xalen_batch.states import LineError

pytestmark = pytest.mark.usefixtures("database", "valkey")

DAY = 86_400.0
LINES = [Ran(Usage(7, 9)), Ran(LineError.REQUEST_TIMEOUT)]
# Older than the table of rows from before the partitions reaches: these days have none.
FAR = date(2031, 5, 17)


def id_on(day: date) -> UUID:
    """A UUIDv7 of noon of this day."""
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    return UUID(int=(int(noon.timestamp() * 1_000) << 80) | (ids.new().int & (1 << 80) - 1))


def existing() -> list[str]:
    with db.reading() as session:
        return list(
            session.scalars(
                text(
                    "SELECT inhrelid::regclass::text FROM pg_inherits"
                    " WHERE inhparent = 'results'::regclass ORDER BY 1"
                )
            )
        )


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    before = existing()
    yield
    with as_owner() as session:
        for name in set(existing()) - set(before):
            session.execute(text(f"DROP TABLE {name}"))
    with db.transaction() as session:
        partitions.make_ahead(session)
    # Not equal: a new day may have begun.
    assert set(before) <= set(existing())


def make(day: date) -> str:
    with db.transaction() as session:
        partitions.make(session, day)
    return f"results_{day:%Y%m%d}"


def age_of(day: date) -> float:
    """Seconds since the end of a day; negative for one in the future."""
    end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
    return (datetime.now(UTC) - end).total_seconds()


def drop(until: date) -> set[str]:
    """Drop all that can be dropped when this day has just ended; `needed` keeps today's rows."""
    dropped = set()
    while True:
        with db.transaction() as session:
            name = partitions.drop_sealed(session, older_than=age_of(until) - 60)
        if name is None:
            return dropped
        dropped.add(name)


@pytest.fixture
def needed(database: str, valkey: object) -> Batch:
    """A batch of today that cannot be sealed: its rows are needed."""
    batch = ended(LINES)
    with as_owner() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text("UPDATE invoices SET total = 1"))
    return batch


def test_each_coming_day_has_one() -> None:
    today = datetime.now(UTC).date()
    with db.transaction() as session:
        partitions.make_ahead(session)
    for days in range(2, partitions.AHEAD + 1):
        assert f"results_{today + timedelta(days):%Y%m%d}" in existing()


def test_making_one_again_or_one_for_older_rows_changes_nothing() -> None:
    make(FAR)
    before = existing()
    make(FAR)
    make(datetime.now(UTC).date() - timedelta(days=500))
    assert existing() == before


def test_rows_go_to_the_partition_of_their_batch() -> None:
    name = make(FAR)
    batch = ended(LINES, id=id_on(FAR))
    with as_owner() as session:
        found = session.scalars(text(f"SELECT batch_id FROM {name}")).all()
    assert found == [batch.id] * len(LINES)


def test_a_batch_is_validated_into_a_partition_whenever_it_was_made() -> None:
    validate._make_partition.cache_clear()
    validate._make_partition(partitions.day(id_on(FAR)))
    assert f"results_{FAR:%Y%m%d}" in existing()


@pytest.mark.usefixtures("needed")
class TestDropping:
    def test_waits_for_the_last_batch_to_be_sealed(self) -> None:
        name = make(FAR)
        ended(LINES, id=id_on(FAR))
        assert name not in drop(FAR)
        seal.run()
        assert name in drop(FAR)
        assert name not in existing()

    def test_loses_neither_a_byte_nor_a_charge(self) -> None:
        make(FAR)
        batch = ended(LINES, id=id_on(FAR))
        before = {part: b"".join(results.chunks(batch.id, part)) for part in FilePart}
        seal.run()
        assert drop(FAR)
        with db.transaction() as session:
            for id in (batch.output_file_id, batch.error_file_id):
                file = session.get_one(File, id)
                assert bytes_of(file) == before[FilePart(file.part or "")]
        assert list(results.chunks(batch.id, FilePart.OUTPUT)) == []
        wrong = {difference.where for difference in reconcile.differences()}
        assert ids.render("batch", batch.id) not in wrong

    def test_keeps_a_day_that_is_not_over(self) -> None:
        assert make(FAR) not in drop(FAR - timedelta(days=1))

    def test_gives_up_behind_a_reader_and_drops_after_it(self) -> None:
        name = make(FAR)
        with db.transaction() as reader:
            reader.execute(text("SELECT count(*) FROM results"))
            assert drop(FAR) == set()
        assert name in drop(FAR)

    def test_a_batch_that_ran_for_days_keeps_the_day_of_its_creation(self) -> None:
        first, second = make(FAR), make(FAR + timedelta(days=1))
        ended(LINES, id=id_on(FAR))
        dropped = drop(FAR + timedelta(days=1))
        assert second in dropped
        assert first not in dropped


class TestSweep:
    def test_drops_all_that_is_past_the_retention(
        self, needed: Batch, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = {make(FAR), make(FAR + timedelta(days=1))}
        asked: list[float] = []
        real = partitions.drop_sealed

        def later(session: object, *, older_than: float) -> str | None:
            asked.append(older_than)
            return real(session, older_than=age_of(FAR) - 2 * DAY)  # type: ignore[arg-type]

        monkeypatch.setattr(partitions, "drop_sealed", later)
        configure(row_retention=0)
        with capture_logs() as logs:
            list(sweeps._keep_partitions())
        assert {entry["partition"] for entry in logs} >= names
        # The objects are on the disk before their rows go.
        assert set(asked) == {sweeps.WRITTEN_BACK}

    def test_keeps_rows_for_ever_if_told_so(
        self, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            partitions, "drop_sealed", lambda *_, **__: pytest.fail("a partition is dropped")
        )
        configure(row_retention="forever")
        list(sweeps._keep_partitions())
