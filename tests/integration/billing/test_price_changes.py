"""Prices that begin in the future: exact at the boundary, and cancelled until then."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from tests import factories
from tests.conftest import as_owner
from tests.factories import CHAT_MODEL, RERANK_MODEL
from xalen_batch import db, ids
from xalen_batch.billing import price_changes, prices
from xalen_batch.cli.main import app
from xalen_batch.errors import InvalidRequest
from xalen_batch.models import AuditEntry, Price

pytestmark = pytest.mark.usefixtures("database", "valkey")
NEW = {"input": Decimal("0.03"), "cached_input": Decimal("0.01")}
TICK = timedelta(microseconds=1)


def ahead(**length: int) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(**length)


def schedule(at: datetime, new: dict[str, Decimal] = NEW) -> list[price_changes.Upcoming]:
    with db.transaction() as session:
        return price_changes.schedule(session, CHAT_MODEL, new, at)


def in_force(at: datetime | None = None, *, livemode: bool = True) -> dict[str, Decimal]:
    with db.transaction() as session:
        return prices.in_force(session, livemode=livemode, at=at)[CHAT_MODEL]


def begin(at: datetime) -> None:
    """Let the upcoming prices begin at a time in the past."""
    with as_owner() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        start = session.scalars(select(Price.valid_from).order_by(Price.valid_from.desc())).first()
        for column in (Price.valid_from, Price.valid_to):
            session.execute(
                update(Price)
                .where(Price.model == CHAT_MODEL, Price.valid_from < at)
                .where(column == start)
                .values({column.key: at})
            )
        session.execute(update(Price).where(Price.valid_from == start).values(valid_from=at))


def snapshot(session: Session) -> dict[str, str]:
    caller = factories.caller(session)
    batch = factories.batch(session, caller, factories.input_file(session, caller, b""))
    found: dict[str, str] = batch.price_snapshot[CHAT_MODEL]
    return found


@pytest.mark.parametrize("livemode", [False, True])
def test_a_price_is_in_force_from_its_exact_start_on(livemode: bool) -> None:
    start = ahead(hours=1)
    made = schedule(start)
    assert len(made) == 4
    old = {"input": Decimal("0.02"), "output": Decimal("0.04")}
    assert in_force(livemode=livemode) == in_force(start - TICK, livemode=livemode) == old
    assert in_force(start, livemode=livemode) == old | NEW


def test_a_batch_has_the_prices_of_its_creation() -> None:
    schedule(ahead(hours=1))
    with db.transaction() as session:
        assert snapshot(session) == {"input": "0.02", "output": "0.04"}
    begin(datetime.now(UTC) - TICK)
    with db.transaction() as session:
        assert snapshot(session) == {"input": "0.03", "cached_input": "0.01", "output": "0.04"}


def test_a_cancelled_price_never_begins() -> None:
    start = ahead(days=1)
    made = schedule(start)
    with db.transaction() as session:
        assert price_changes.upcoming(session) == made
        assert price_changes.cancel(session, CHAT_MODEL) == made
        assert price_changes.upcoming(session) == []
        assert prices.differences(session) == []
        with pytest.raises(InvalidRequest, match="no upcoming price"):
            price_changes.cancel(session, CHAT_MODEL)
    assert in_force(start) == {"input": Decimal("0.02"), "output": Decimal("0.04")}
    schedule(start)


def test_a_price_that_begins_within_a_minute_is_neither_set_nor_cancelled() -> None:
    for at in (ahead(seconds=30), ahead(hours=-1), ahead(days=4_000)):
        with pytest.raises(InvalidRequest, match="not at least a minute"):
            schedule(at)
    schedule(ahead(seconds=90))
    begin_at = ahead(seconds=30)
    with as_owner() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(
            update(Price).where(Price.valid_to > datetime.now(UTC)).values(valid_to=begin_at)
        )
        session.execute(
            update(Price).where(Price.valid_from > datetime.now(UTC)).values(valid_from=begin_at)
        )
    with db.transaction() as session, pytest.raises(InvalidRequest, match="less than a minute"):
        price_changes.cancel(session, CHAT_MODEL)


def test_a_second_upcoming_price_of_a_component_is_refused() -> None:
    schedule(ahead(hours=1), {"input": Decimal(1)})
    schedule(ahead(hours=2), {"output": Decimal(1)})
    with pytest.raises(InvalidRequest, match="Cancel it first"):
        schedule(ahead(hours=3), {"input": Decimal(2)})


@pytest.mark.parametrize(
    ("model", "new"),
    [
        ("nothing", {"input": Decimal(1)}),
        (CHAT_MODEL, {}),
        (CHAT_MODEL, {"inputs": Decimal(1)}),
        (CHAT_MODEL, {"input": Decimal(-1)}),
        (CHAT_MODEL, {"input": Decimal("NaN")}),
        (CHAT_MODEL, {"input": Decimal("1E-13")}),
    ],
)
def test_others_are_refused(model: str, new: dict[str, Decimal]) -> None:
    with db.transaction() as session, pytest.raises(InvalidRequest):
        price_changes.schedule(session, model, new, ahead(hours=1))


def test_a_sync_changes_other_prices_and_none_with_an_upcoming_change() -> None:
    schedule(ahead(hours=1), {"input": Decimal(1)})
    with db.transaction() as session:
        assert prices.differences(session) == []
        assert prices.unpriced(session) == []
    with as_owner() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(
            update(Price)
            .where(Price.model == CHAT_MODEL, Price.valid_from < datetime.now(UTC))
            .values(usd_per_million=9)
        )
    with db.transaction() as session, pytest.raises(prices.Refused, match="Cancel it first"):
        prices.sync(session, prices.differences(session))


def test_the_database_refuses_to_touch_a_price_that_has_begun() -> None:
    schedule(ahead(hours=1))
    for statement in (
        delete(Price).where(Price.model == RERANK_MODEL),
        update(Price).where(Price.model == RERANK_MODEL).values(usd_per_million=1),
    ):
        with pytest.raises(IntegrityError), as_owner() as session:
            session.execute(statement)
    begin(datetime.now(UTC) - TICK)
    for statement in (
        delete(Price).where(Price.model == CHAT_MODEL, Price.component == "cached_input"),
        update(Price).where(Price.valid_to.is_not(None)).values(valid_to=None),
    ):
        with pytest.raises(IntegrityError), as_owner() as session:
            session.execute(statement)


def test_the_audit_log_has_the_change_and_its_end() -> None:
    def written() -> list[tuple[str, Any]]:
        with db.transaction() as session:
            entries = session.scalars(
                select(AuditEntry).where(AuditEntry.id > last).order_by(AuditEntry.id)
            )
            return [
                (entry.action, (entry.after or {}).get("usd_per_million"))
                for entry in entries
                if entry.livemode
            ]

    with db.transaction() as session:
        last = max(session.scalars(select(AuditEntry.id)), default=0)
    schedule(ahead(hours=1))
    assert written() == [("price.changed", "0.03"), ("price.created", "0.01")]
    with db.transaction() as session:
        price_changes.cancel(session, CHAT_MODEL)
    assert [action for action, _ in written()[2:]] == ["price.deleted", "price.deleted"]


def test_the_commands_set_list_and_cancel_them() -> None:
    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, ["prices", *arguments, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["data"]

    start = ahead(days=2)
    made = run("set", CHAT_MODEL, "input=0.03", "--from", start.isoformat())
    assert [(each["livemode"], each["old"], each["new"]) for each in made] == [
        (False, "0.02", "0.03"),
        (True, "0.02", "0.03"),
    ]
    assert {each["starts_at"] for each in made} == {start.isoformat()}
    assert run("upcoming") == made
    assert run("cancel", CHAT_MODEL) == made
    assert run("upcoming") == []
    for wrong in (["input"], ["input=x"], ["input=1", "--from", "soon"]):
        result = CliRunner().invoke(app, ["prices", "set", CHAT_MODEL, *wrong])
        assert result.exit_code == 2, result.output
    with db.transaction() as session:
        assert not session.scalars(select(Price).where(Price.id > ids.at(start))).all()
