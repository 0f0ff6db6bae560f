"""The end of a batch, a run, a background Response and a month records its event."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, update

from tests import factories
from tests.integration.clock import Clock
from tests.integration.engines import a_batch, chat_lines, engine, run_to_end
from tests.integration.recorded import recorded, types
from tests.integration.schedules import firing
from tests.integration.schedules.firing import DAY, NIGHT, end_batch, made, runs_of
from tests.statements import a_caller, an_invoice, issue_due
from xalen_batch import db
from xalen_batch.accounts.accounts import Caller, Owner
from xalen_batch.batches import batches
from xalen_batch.models import Batch, Invoice
from xalen_batch.pipeline import finalize
from xalen_batch.schedules import fire
from xalen_batch.worker.engine import Engine

__all__ = ["engine"]

pytestmark = pytest.mark.usefixtures("database", "valkey")
clock, owner = firing.clock, firing.owner


def invoice_of(batch_id: UUID) -> UUID:
    with db.reading() as session:
        return session.scalars(select(Invoice.id).where(Invoice.batch_id == batch_id)).one()


def expire(batch_id: UUID) -> None:
    with db.transaction() as session:
        session.execute(
            update(Batch)
            .where(Batch.id == batch_id)
            .values(expires_at=datetime.now(UTC) - timedelta(seconds=1))
        )


def cancel(batch_id: UUID) -> None:
    with db.transaction() as session:
        batches.cancel(session, session.get_one(Batch, batch_id))


def ended(batch_id: UUID, type: str) -> list[tuple[str, UUID]]:
    return [(type, batch_id), ("xalen.invoice.issued", invoice_of(batch_id))]


class TestBatch:
    def test_completed(self, engine: Engine) -> None:
        batch_id = a_batch(chat_lines(1))
        assert recorded() == []
        run_to_end(engine, batch_id)
        assert recorded() == ended(batch_id, "batch.completed")

    def test_a_finalizing_that_comes_twice_tells_it_once(self, engine: Engine) -> None:
        batch_id = a_batch(chat_lines(1))
        run_to_end(engine, batch_id)
        finalize.run(batch_id)
        assert recorded() == ended(batch_id, "batch.completed")

    def test_expired(self) -> None:
        batch_id = a_batch(chat_lines(1))
        expire(batch_id)
        finalize.run(batch_id)
        assert recorded() == ended(batch_id, "batch.expired")

    def test_cancelled(self) -> None:
        batch_id = a_batch(chat_lines(1))
        cancel(batch_id)
        finalize.run(batch_id)
        assert recorded() == ended(batch_id, "batch.cancelled")

    def test_failed(self) -> None:
        batch_id = a_batch([{"custom_id": "a"}])
        assert recorded() == [("batch.failed", batch_id)]


class TestQueuedCall:
    def a_call(self, call: str = "background", **body: Any) -> UUID:
        return a_batch(
            [
                {
                    "custom_id": "call",
                    "method": "POST",
                    "url": "/v1/responses",
                    "body": {"model": factories.CHAT_MODEL, "input": "Where is it?", **body},
                }
            ],
            endpoint="/v1/responses",
            call=call,
        )

    def test_completed(self, engine: Engine) -> None:
        batch_id = self.a_call()
        run_to_end(engine, batch_id)
        assert recorded() == ended(batch_id, "response.completed")

    def test_incomplete(self, engine: Engine) -> None:
        batch_id = self.a_call(max_output_tokens=16)
        run_to_end(engine, batch_id)
        assert recorded() == ended(batch_id, "response.incomplete")

    def test_refused_by_the_model(self, engine: Engine) -> None:
        batch_id = self.a_call(metadata={"simulate": "status=422"})
        run_to_end(engine, batch_id)
        assert recorded() == ended(batch_id, "response.failed")

    def test_expired(self) -> None:
        batch_id = self.a_call()
        expire(batch_id)
        finalize.run(batch_id)
        assert recorded() == ended(batch_id, "response.failed")

    def test_cancelled(self) -> None:
        batch_id = self.a_call()
        cancel(batch_id)
        finalize.run(batch_id)
        assert recorded() == ended(batch_id, "response.cancelled")

    def test_refused_before_it_ran(self) -> None:
        batch_id = self.a_call(max_output_tokens="many")
        assert recorded() == [("response.failed", batch_id)]

    def test_a_flex_call_whose_client_waits_has_its_invoice_alone(self, engine: Engine) -> None:
        batch_id = self.a_call("flex")
        run_to_end(engine, batch_id)
        assert types() == ["xalen.invoice.issued"]


class TestRun:
    def test_a_run_whose_batch_failed(self, clock: Clock, owner: Owner) -> None:
        schedule_id = made(owner)
        clock.set(NIGHT)
        fire.run()
        end_batch(schedule_id, batches.BatchStatus.FAILED)
        clock.set(NIGHT + timedelta(minutes=1))
        fire.run()
        [run] = runs_of(schedule_id)
        assert recorded() == [("xalen.schedule.run.failed", run.id)]

    def test_a_run_that_succeeded_tells_nothing(self, clock: Clock, owner: Owner) -> None:
        schedule_id = made(owner)
        clock.set(NIGHT)
        fire.run()
        end_batch(schedule_id)
        clock.set(NIGHT + timedelta(minutes=1))
        fire.run()
        assert recorded() == []

    def test_nights_that_nothing_fired(self, clock: Clock, owner: Owner) -> None:
        schedule_id = made(owner, catch_up_window="1h")
        clock.set(NIGHT + 2 * DAY + timedelta(hours=5))
        fire.run()
        assert recorded() == [("xalen.schedule.run.missed", run.id) for run in runs_of(schedule_id)]
        assert len(recorded()) == 3


def test_a_month_that_is_over_tells_its_statement() -> None:
    caller: Caller = a_caller()
    an_invoice(caller, "1.50")
    issue_due()
    with db.reading() as session:
        statement = session.scalars(select(Invoice).where(Invoice.month.is_not(None))).one()
    assert recorded() == [("xalen.invoice.issued", statement.id)]
