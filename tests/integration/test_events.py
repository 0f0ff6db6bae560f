"""Events are written with the change that they tell, once, for the webhooks that want them."""

from uuid import UUID

import pytest
from sqlalchemy import select, update

from tests import factories
from tests.integration.engines import a_batch
from tests.integration.recorded import recorded
from tests.webhooks import an_endpoint, an_owner, tell
from xalen_batch import db, events, ids
from xalen_batch.accounts.accounts import Owner
from xalen_batch.events import Happened
from xalen_batch.models import WebhookDelivery, WebhookEndpoint
from xalen_batch.models.events import EventType, object_kind

pytestmark = pytest.mark.usefixtures("database", "valkey")


def receivers() -> set[UUID]:
    with db.reading() as session:
        return set(session.scalars(select(WebhookDelivery.endpoint_id)))


def test_an_object_tells_a_change_once() -> None:
    owner, batch, run = an_owner(), ids.new(), ids.new()
    told = [Happened(EventType.BATCH_COMPLETED, batch), Happened(EventType.RUN_FAILED, run)]
    tell(owner, *told)
    tell(owner, *told)
    assert recorded() == [("batch.completed", batch), ("xalen.schedule.run.failed", run)]


def test_a_webhook_may_be_tested_several_times() -> None:
    owner, webhook = an_owner(), ids.new()
    tell(owner, Happened(EventType.WEBHOOK_TEST, webhook))
    tell(owner, Happened(EventType.WEBHOOK_TEST, webhook))
    assert [type for type, _ in recorded()] == ["xalen.webhook.test"] * 2


def test_an_event_of_a_change_that_was_rolled_back_is_not_there() -> None:
    owner = an_owner()
    with db.transaction() as session:
        events.record(session, owner, Happened(EventType.BATCH_FAILED, ids.new()))
        session.rollback()
    assert recorded() == []


def test_the_enabled_webhooks_of_the_account_and_mode_that_want_the_type_get_it() -> None:
    owner = an_owner()
    wanted = {an_endpoint(owner), an_endpoint(owner, events=["batch.completed", "batch.failed"])}
    an_endpoint(owner, events=["batch.failed"])
    an_endpoint(owner, status="disabled")
    an_endpoint(Owner(owner.account_id, livemode=True))
    an_endpoint(an_owner())
    deleted = an_endpoint(owner)
    with db.transaction() as session:
        session.execute(
            update(WebhookEndpoint)
            .where(WebhookEndpoint.id == deleted)
            .values(deleted_at=db.now(session))
        )
    tell(owner, Happened(EventType.BATCH_COMPLETED, ids.new()))
    assert receivers() == wanted


def test_the_webhook_of_a_batch_gets_its_events_alone() -> None:
    with db.transaction() as session:
        caller = factories.caller(session)
    mine, other = (a_batch([factories.chat_line("a")], caller) for _ in range(2))
    own = an_endpoint(caller, batch_id=mine)
    an_endpoint(caller, batch_id=other)
    tell(caller, Happened(EventType.BATCH_AT_RISK, mine))
    assert receivers() == {own}


@pytest.mark.parametrize("type", EventType)
def test_every_type_names_the_kind_of_its_object(type: EventType) -> None:
    assert object_kind(type) in ids.NOUNS
