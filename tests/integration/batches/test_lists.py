"""Filters of lists of batches: each narrows the list, and finds its batches by an index."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from tests import factories
from tests.conftest import as_owner
from tests.integration import plans
from xalen_batch import db, ids
from xalen_batch.accounts.accounts import Caller
from xalen_batch.batches import lists
from xalen_batch.batches.lists import BatchFilters
from xalen_batch.endpoints.names import CHAT, RERANK
from xalen_batch.models import Batch

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def caller(session: Session) -> Caller:
    return factories.caller(session)


def make(session: Session, caller: Caller, **values: Any) -> Batch:
    file = factories.input_file(session, caller, b"{}")
    return factories.batch(session, caller, file, **values)


def found(session: Session, caller: Caller, **filters: Any) -> list[Batch]:
    return lists.page(session, caller, BatchFilters(**filters), limit=10, after=None).data


def test_each_filter_narrows_the_list(session: Session, caller: Caller) -> None:
    chat = make(session, caller, model="a", meta={"team": "search", "env": "prod"})
    rerank = make(session, caller, status="in_progress", endpoint=RERANK, meta={"team": "search"})
    other = factories.caller(session)
    make(session, other, model="a", meta={"team": "search"})
    for filters, right in (
        ({}, [rerank, chat]),
        ({"status": "in_progress"}, [rerank]),
        ({"status": "expired"}, []),
        ({"model": "a"}, [chat]),
        ({"endpoint": CHAT}, [chat]),
        ({"metadata": {"team": "search"}}, [rerank, chat]),
        ({"metadata": {"team": "search", "env": "prod"}}, [chat]),
        ({"metadata": {"team": "sear"}}, []),
        ({"metadata": {"team": "search"}, "endpoint": RERANK}, [rerank]),
    ):
        assert found(session, caller, **filters) == right, filters


def test_a_span_of_time_includes_its_beginning_and_not_its_end(
    session: Session, caller: Caller
) -> None:
    hours = [NOON + timedelta(hours=hour) for hour in range(4)]
    batches = [make(session, caller, id=_id_at(time), created_at=time) for time in hours]
    span = {"created_after": hours[1], "created_before": hours[3]}
    assert found(session, caller, **span) == [batches[2], batches[1]]
    assert found(session, caller, created_after=hours[3] + timedelta(seconds=1)) == []


def test_a_pair_is_not_mistaken_for_another(session: Session, caller: Caller) -> None:
    make(session, caller, meta={"ab": "c"})
    assert found(session, caller, metadata={"a": "bc"}) == []


def test_pages_follow_each_other_in_both_orders(session: Session, caller: Caller) -> None:
    made = [make(session, caller, status="expired") for _ in range(5)]
    make(session, caller)
    for order, right in (("asc", made), ("desc", made[::-1])):
        seen: list[Batch] = []
        after: str | None = None
        while True:
            page = lists.page(
                session,
                caller,
                BatchFilters(status="expired"),
                limit=2,
                order=order,  # type: ignore[arg-type]
                after=after,
            )
            seen += page.data
            if not page.has_more:
                break
            after = ids.render("batch", page.data[-1].id)
        assert seen == right


def test_a_list_is_of_one_account_and_mode(session: Session, caller: Caller) -> None:
    batch = make(session, caller)
    other_mode = Caller(caller.account_id, not caller.livemode, caller.scopes, caller.key_id)
    assert found(session, caller) == [batch]
    for stranger in (factories.caller(session), other_mode):
        assert found(session, stranger) == []


def test_queued_calls_are_in_no_list(session: Session, caller: Caller) -> None:
    make(session, caller, call="background")
    assert found(session, caller) == []


@pytest.fixture
def full(database: str) -> Caller:
    """An account with enough batches that the planner prefers an index to a scan."""
    with db.transaction() as session:
        caller = factories.caller(session)
        first = make(session, caller, status="completed", meta={"env": "prod"})
        session.execute(
            text(
                "INSERT INTO batches (id, account_id, livemode, endpoint, completion_window,"
                " status, input_file_id, price_snapshot, discount_rate, expires_at, metadata)"
                " SELECT gen_random_uuid(), account_id, livemode, endpoint, completion_window,"
                " status, input_file_id, jsonb_build_object('pad', pad),"
                " discount_rate, expires_at, metadata"
                " FROM batches, generate_series(1, 20000) AS each (n), LATERAL (SELECT"
                " string_agg(md5(n::text || m), '') AS pad FROM generate_series(1, 30) AS other (m)"
                " ) AS padding WHERE id = :id"
            ),
            {"id": first.id},
        )
    with as_owner() as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        session.execute(text("VACUUM ANALYZE batches, batch_notes"))
    return caller


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({"status": "failed"}, "ix_batches_listed_by_status"),
        ({"created_before": NOON - timedelta(days=999)}, "ix_batches_"),
        ({"metadata": {"env": "rare"}}, "pk_batch_notes"),
        ({"metadata": {"env": "prod"}}, "pk_batch_notes"),
    ],
)
def test_a_filter_reads_an_index_and_not_the_table(
    full: Caller, filters: dict[str, Any], index: str
) -> None:
    """Also one that finds nothing: the index holds what it asks for."""
    plan, *_ = plans.of(
        lambda session: lists.page(session, full, BatchFilters(**filters), limit=20, after=None)
    )
    used = {node["Index Name"] for node in plans.nodes(plan) if "Index Name" in node}
    assert any(name.startswith(index) for name in used), used
    assert plans.scanned(plan) == set()
    # The table has more than 2,000 pages.
    assert plans.pages(plan) < 500


def _id_at(time: datetime) -> UUID:
    return UUID(int=(int(time.timestamp() * 1000) << 80) | (ids.new().int & ((1 << 80) - 1)))
