"""The table of results: pages by line numbers, and those that failed within a span."""

import pytest

from tests import ran
from tests.billing import REFUSED
from tests.integration import plans
from tests.ran import answered
from xalen_batch import db
from xalen_batch.models import Batch
from xalen_batch.results import rows

pytestmark = pytest.mark.usefixtures("database", "valkey")


@pytest.fixture
def batch() -> Batch:
    return ran.ended({"a": answered(), "b": REFUSED, "c": answered(), "d": REFUSED})


def read(batch: Batch, *, after: int = 0, limit: int = 2, is_failed: bool = False) -> rows.Rows:
    with db.reading() as session:
        return rows.page(
            session, batch, total=batch.total, after=after, limit=limit, is_failed=is_failed
        )


def test_pages_follow_each_other(batch: Batch) -> None:
    first = read(batch)
    assert [(row.line_no, row.custom_id, row.code) for row in first.data] == [
        (1, "a", None),
        (2, "b", "http_400"),
    ]
    assert first.after == 2
    second = read(batch, after=2)
    assert [row.custom_id for row in second.data] == ["c", "d"]
    assert second.after is None


def test_failed_lines_are_looked_for_in_a_span(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [row.custom_id for row in read(batch, is_failed=True).data] == ["b", "d"]
    monkeypatch.setattr(rows, "SPAN", 3)
    found = read(batch, is_failed=True)
    assert ([row.custom_id for row in found.data], found.after) == (["b"], 3)
    rest = read(batch, after=3, is_failed=True)
    assert ([row.custom_id for row in rest.data], rest.after) == (["d"], None)


@pytest.mark.parametrize("is_failed", [True, False])
def test_no_partition_is_scanned(batch: Batch, is_failed: bool) -> None:
    for plan in plans.of(
        lambda session: rows.page(session, batch, total=4, after=0, limit=2, is_failed=is_failed)
    ):
        assert plans.scanned(plan) == set()
