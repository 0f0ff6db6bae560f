"""Sending events again: one, or those of a span; and how long events are kept."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from tests import factories
from tests.webhooks import (
    an_endpoint,
    an_owner,
    completed,
    deliveries_to,
    endpoint,
    set_deliveries,
    set_endpoint,
    tell,
)
from xalen_batch import db, events, ids
from xalen_batch.accounts.accounts import Owner
from xalen_batch.errors import InvalidRequest, NotFound
from xalen_batch.events import Happened
from xalen_batch.models import Event, WebhookDelivery, WebhookEndpoint
from xalen_batch.models.events import EventType
from xalen_batch.pipeline import sweeps
from xalen_batch.webhooks import endpoints, history
from xalen_batch.webhooks.history import Replayed

pytestmark = pytest.mark.usefixtures("database", "valkey")

HOUR = timedelta(hours=1)


@pytest.fixture
def owner() -> Owner:
    return an_owner()


def states(endpoint_id: UUID) -> list[tuple[str, int]]:
    return [(delivery.state, delivery.attempts) for delivery in deliveries_to(endpoint_id)]


def replay(webhook: UUID, what: Replayed = Replayed.FAILED, *, hours: float = 1) -> int:
    """Replay the last hours."""
    now = datetime.now(UTC)
    with db.transaction() as session:
        locked = session.get_one(WebhookEndpoint, webhook)
        return history.replay(
            session, locked, since=now - hours * HOUR, until=now + HOUR, what=what
        )


class TestRedeliver:
    def test_an_event_is_sent_again_with_all_attempts_and_at_once(self, owner: Owner) -> None:
        webhook = an_endpoint(owner)
        completed(owner)
        set_deliveries(webhook, state="failed", attempts=10)
        set_endpoint(webhook, not_before=datetime.now(UTC) + HOUR)
        with db.transaction() as session:
            locked = session.get_one(WebhookEndpoint, webhook)
            [delivery] = deliveries_to(webhook)
            told = history.redeliver(session, locked, ids.render("evt", delivery.event_id))
            assert (told.delivery.state, told.event.id) == ("pending", delivery.event_id)
        assert states(webhook) == [("pending", 0)]
        assert endpoint(webhook).not_before is None

    def test_an_event_from_before_the_webhook_can_be_sent(self, owner: Owner) -> None:
        completed(owner)
        webhook = an_endpoint(owner)
        with db.transaction() as session:
            event = session.scalars(select(Event)).one()
            locked = session.get_one(WebhookEndpoint, webhook)
            history.redeliver(session, locked, ids.render("evt", event.id))
        assert states(webhook) == [("pending", 0)]

    def test_an_event_of_another_account_is_not_found(self, owner: Owner) -> None:
        completed(an_owner())
        webhook = an_endpoint(owner)
        with db.transaction() as session:
            event = ids.render("evt", session.scalars(select(Event.id)).one())
            locked = session.get_one(WebhookEndpoint, webhook)
            with pytest.raises(NotFound):
                history.redeliver(session, locked, event)


class TestReplay:
    def test_what_did_not_arrive_is_sent_again(self, owner: Owner) -> None:
        completed(owner)
        webhook = an_endpoint(owner)
        completed(owner, 3)
        arrived, failed, waiting = deliveries_to(webhook)
        set_deliveries(webhook, state="delivered", attempts=1)
        with db.transaction() as session:
            for delivery, columns in (
                (failed, {"state": "failed", "attempts": 10}),
                (waiting, {"state": "pending", "attempts": 3}),
            ):
                session.execute(
                    update(WebhookDelivery)
                    .where(WebhookDelivery.event_id == delivery.event_id)
                    .values(columns)
                )
        # The event from before the webhook, and the failed one.
        assert replay(webhook) == 2
        assert states(webhook) == [("pending", 0), ("delivered", 1), ("pending", 0), ("pending", 3)]
        assert arrived.event_id
        assert replay(webhook) == 0
        assert replay(webhook, Replayed.ALL) == 4
        assert states(webhook) == [("pending", 0)] * 4

    def test_only_events_of_the_span_and_of_its_types(self, owner: Owner) -> None:
        completed(owner)
        with db.reading() as session:
            old = session.scalars(select(Event)).one()
        tell(owner, Happened(EventType.BATCH_FAILED, ids.new()))
        webhook = an_endpoint(owner, events=["batch.failed"])
        assert replay(webhook, hours=-0.5) == 0
        assert replay(webhook) == 1
        assert [row.event_id for row in deliveries_to(webhook)] != [old.id]

    def test_tests_of_other_webhooks_are_not_replayed(self, owner: Owner) -> None:
        webhook, other = an_endpoint(owner), an_endpoint(owner)
        with db.transaction() as session:
            history.test(session, session.get_one(WebhookEndpoint, other))
        assert replay(webhook) == 0
        set_deliveries(other, state="failed")
        assert replay(other) == 1

    def test_the_webhook_of_a_batch_gets_the_events_of_the_batch(self) -> None:
        with db.transaction() as session:
            caller = factories.caller(session)
            file = factories.input_file(session, caller, [factories.chat_line("a")])
            batch = factories.batch(session, caller, file)
        completed(caller, 2)
        tell(caller, Happened(EventType.BATCH_COMPLETED, batch.id))
        webhook = an_endpoint(caller, batch_id=batch.id)
        assert replay(webhook) == 1

    def test_a_span_with_too_many_events_is_refused(
        self, owner: Owner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(history, "MOST_REPLAYED", 2)
        webhook = an_endpoint(owner)
        completed(owner, 3)
        set_deliveries(webhook, state="failed")
        with pytest.raises(InvalidRequest, match="more than 2 events") as raised:
            replay(webhook)
        assert raised.value.param == "from"
        assert [state for state, _ in states(webhook)] == ["failed"] * 3


def forget() -> None:
    """The whole sweep: another test may have run it within the hour for which it rests."""
    for _ in sweeps.EVENTS.walk():
        pass


class TestForgotten:
    def left(self) -> tuple[int, int, int]:
        """The numbers of events, deliveries and endpoints."""
        with db.reading() as session:
            return tuple(  # type: ignore[return-value]
                session.scalar(select(func.count()).select_from(table))
                for table in (Event, WebhookDelivery, WebhookEndpoint)
            )

    def an_old_event(self, owner: Owner, age: timedelta) -> None:
        id = ids.at(datetime.now(UTC) - age)
        with db.transaction() as session:
            session.add(
                Event(
                    id=UUID(int=id.int + 1),
                    account_id=owner.account_id,
                    livemode=owner.livemode,
                    type="batch.completed",
                    object_id=ids.new(),
                )
            )

    def test_old_events_go_with_their_deliveries(
        self, owner: Owner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(events, "AT_ONCE", 1)
        webhook = an_endpoint(owner)
        for days in (29, 31, 32):
            self.an_old_event(owner, timedelta(days=days))
        completed(owner)
        assert replay(webhook, hours=24 * 40) == 3
        assert self.left() == (4, 4, 1)
        forget()
        assert self.left() == (2, 2, 1)

    def test_deleted_webhooks_and_those_of_old_batches_go(self, owner: Owner) -> None:
        with db.transaction() as session:
            caller = factories.caller(session)
            file = factories.input_file(session, caller, [factories.chat_line("a")])
            old = ids.at(datetime.now(UTC) - timedelta(days=31))
            batches = [
                factories.batch(session, caller, file, **columns)
                for columns in (
                    {"id": UUID(int=old.int + 1), "status": "completed"},
                    {"id": UUID(int=old.int + 2), "status": "in_progress"},
                    {"status": "completed"},
                )
            ]
        gone = [
            an_endpoint(owner, deleted_at=datetime.now(UTC) - timedelta(days=31)),
            an_endpoint(caller, batch_id=batches[0].id),
        ]
        kept = [
            an_endpoint(owner),
            an_endpoint(owner, deleted_at=datetime.now(UTC) - timedelta(days=29)),
            an_endpoint(caller, batch_id=batches[1].id),
            an_endpoint(caller, batch_id=batches[2].id),
        ]
        with db.transaction() as session:
            assert endpoints.forget(session, timedelta(days=30)) == len(gone)
            assert set(session.scalars(select(WebhookEndpoint.id))) == set(kept)
