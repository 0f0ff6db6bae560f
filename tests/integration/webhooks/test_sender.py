"""The sender: every event arrives, in order, whatever its receiver and the workers do."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from uuid import UUID

import pytest
from openai import OpenAI
from sqlalchemy import func, select, update
from structlog.testing import capture_logs

from tests.receivers import Got, Receiver, receiving, status
from tests.waiting import PATIENCE, wait_until
from tests.webhooks import (
    SECRET,
    an_endpoint,
    an_owner,
    completed,
    deliveries_to,
    endpoint,
    set_deliveries,
    set_endpoint,
    tell,
)
from xalen_batch import db, ids
from xalen_batch.accounts.accounts import Owner
from xalen_batch.events import Happened
from xalen_batch.models import AuditEntry, WebhookEndpoint, deliveries
from xalen_batch.models.events import EventType
from xalen_batch.webhooks import sender as senders
from xalen_batch.webhooks import signing
from xalen_batch.webhooks.sender import Sender

Configure = Callable[..., None]
pytestmark = pytest.mark.usefixtures("database", "valkey")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def inside(configure: Configure) -> None:
    configure(webhook_allow_http=True, webhook_allowed_networks="127.0.0.1/32")


@pytest.fixture
def sender() -> Iterator[Sender]:
    sender = Sender()
    yield sender
    sender.close(PATIENCE)


@pytest.fixture
def owner() -> Owner:
    return an_owner()


def states(endpoint_id: UUID) -> list[tuple[str, int]]:
    return [(delivery.state, delivery.attempts) for delivery in deliveries_to(endpoint_id)]


def send(sender: Sender) -> None:
    """Send what is due now, to the end."""
    sender.wake()
    wait_until(lambda: not sender._running)


def ago(**time: float) -> datetime:
    return datetime.now(UTC) - timedelta(**time)


class TestDelivered:
    def test_an_event_arrives_signed_with_its_id_and_is_recorded(
        self, sender: Sender, receiver: Receiver, owner: Owner
    ) -> None:
        webhook = an_endpoint(owner, receiver.url)
        batch = ids.new()
        tell(owner, Happened(EventType.BATCH_COMPLETED, batch))
        send(sender)
        [got], [delivery] = receiver.got, deliveries_to(webhook)
        event = OpenAI(api_key="none").webhooks.unwrap(got.body, got.headers, secret=SECRET)
        assert (event.type, event.data.id) == ("batch.completed", ids.render("batch", batch))
        assert got.headers["webhook-id"] == event.id == ids.render("evt", delivery.event_id)
        assert (delivery.state, delivery.attempts, delivery.status_code) == ("delivered", 1, 200)
        assert (delivery.error, delivery.response) == (None, b"ok")
        found = endpoint(webhook)
        assert (found.last_status_code, found.consecutive_failures) == (200, 0)
        assert found.last_delivery_at is not None
        assert found.lease_until is None

    def test_events_arrive_one_at_a_time_in_their_order(
        self, sender: Sender, receiver: Receiver, owner: Owner
    ) -> None:
        webhook = an_endpoint(owner, receiver.url)
        busy, most = threading.Semaphore(1), []

        def answer(request: BaseHTTPRequestHandler, got: Got) -> None:
            most.append(busy.acquire(blocking=False))
            status(200)(request, got)
            busy.release()

        receiver.answer = answer
        completed(owner, 25)
        send(sender)
        assert [got.event["id"] for got in receiver.got] == [
            ids.render("evt", delivery.event_id) for delivery in deliveries_to(webhook)
        ]
        assert most == [True] * 25

    def test_two_secrets_sign_while_one_rotates(
        self, sender: Sender, receiver: Receiver, owner: Owner
    ) -> None:
        new = signing.new_secret()
        webhook = an_endpoint(
            owner,
            receiver.url,
            secret=new,
            previous_secret=SECRET,
            previous_secret_until=ago(hours=-1),
        )
        completed(owner)
        send(sender)
        client = OpenAI(api_key="none")
        for secret in (new, SECRET):
            client.webhooks.verify_signature(
                receiver.got[0].body, receiver.got[0].headers, secret=secret
            )
        set_endpoint(webhook, previous_secret_until=ago(seconds=1))
        completed(owner)
        send(sender)
        assert " " not in receiver.got[1].headers["webhook-signature"]

    def test_several_senders_send_each_event_once(self, receiver: Receiver, owner: Owner) -> None:
        webhooks = [an_endpoint(owner, receiver.url) for _ in range(3)]
        completed(owner, 10)
        several = [Sender() for _ in range(3)]
        for sender in several:
            sender.wake()
        wait_until(lambda: not any(sender._running for sender in several))
        assert len(receiver.got) == 30
        assert [states(webhook) for webhook in webhooks] == [[("delivered", 1)] * 10] * 3


class TestFailed:
    def test_a_failed_attempt_is_repeated_later_with_the_same_id(
        self, sender: Sender, receiver: Receiver, owner: Owner
    ) -> None:
        webhook = an_endpoint(owner, receiver.url)
        receiver.answer = status(500, b"sorry")
        completed(owner)
        send(sender)
        [delivery] = deliveries_to(webhook)
        assert (delivery.state, delivery.attempts, delivery.status_code) == ("pending", 1, 500)
        assert (delivery.error, delivery.response) == ("The receiver answered 500.", b"sorry")
        assert 3 < (delivery.due_at - datetime.now(UTC)).total_seconds() <= 6
        send(sender)
        assert len(receiver.got) == 1
        receiver.answer = status(204)
        set_deliveries(webhook, due_at=ago(seconds=1))
        set_endpoint(webhook, not_before=None)
        send(sender)
        assert states(webhook) == [("delivered", 2)]
        first, second = receiver.got
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert endpoint(webhook).consecutive_failures == 0

    def test_the_tenth_failed_attempt_is_the_last(
        self, sender: Sender, receiver: Receiver, owner: Owner
    ) -> None:
        webhook = an_endpoint(owner, receiver.url)
        receiver.answer = status(400)
        completed(owner)
        set_deliveries(webhook, attempts=9)
        send(sender)
        assert states(webhook) == [("failed", 10)]
        assert endpoint(webhook).status == "enabled"

    @pytest.mark.parametrize("code", [301, 404, 503])
    def test_anything_but_2xx_is_a_failure(
        self, sender: Sender, receiver: Receiver, owner: Owner, code: int
    ) -> None:
        webhook = an_endpoint(owner, receiver.url)
        receiver.answer = status(code, location="/other")
        completed(owner)
        send(sender)
        assert states(webhook) == [("pending", 1)]
        assert endpoint(webhook).last_status_code == code

    def test_retry_after_delays_the_delivery_and_its_webhook(
        self, sender: Sender, receiver: Receiver, owner: Owner
    ) -> None:
        webhook = an_endpoint(owner, receiver.url)
        receiver.answer = status(429, retry_after="3600")
        completed(owner, 2)
        send(sender)
        assert len(receiver.got) == 1
        not_before = endpoint(webhook).not_before
        assert not_before
        assert 3_500 < (not_before - datetime.now(UTC)).total_seconds() <= 3_600
        assert (deliveries_to(webhook)[0].due_at - datetime.now(UTC)).total_seconds() > 3_500

    def test_an_address_that_is_not_allowed_is_an_attempt_that_failed(
        self, sender: Sender, owner: Owner, configure: Configure
    ) -> None:
        configure(webhook_allowed_networks="")
        webhook = an_endpoint(owner, "http://localhost:8080/")
        completed(owner)
        send(sender)
        [delivery] = deliveries_to(webhook)
        assert (delivery.state, delivery.status_code) == ("pending", None)
        assert delivery.error
        assert delivery.error.startswith("Not sent: localhost leads to ")


class TestDisabled:
    def test_410_disables_at_once_ends_what_waits_and_tells_the_others(
        self, sender: Sender, receiver: Receiver, owner: Owner
    ) -> None:
        webhook = an_endpoint(owner, receiver.url)
        receiver.answer = status(410)
        completed(owner, 3)
        with receiving() as other:
            witness = an_endpoint(owner, other.url, events=["xalen.webhook.disabled"])
            send(sender)
            wait_until(lambda: bool(other.got))
            assert other.got[0].event["data"] == {"id": ids.render("whe", webhook)}
            wait_until(lambda: states(witness) == [("delivered", 1)])
        found = endpoint(webhook)
        assert (found.status, found.disabled_reason) == ("disabled", "gone")
        assert len(receiver.got) == 1
        wait_until(lambda: [state for state, _ in states(webhook)] == ["failed"] * 3)
        with db.reading() as session:
            [entry] = session.scalars(
                select(AuditEntry).where(
                    AuditEntry.action == "webhook.changed",
                    AuditEntry.object_id == ids.render("whe", webhook),
                )
            )
        assert (entry.actor, entry.after) == (
            "system",
            {"status": "disabled", "disabled_reason": "gone"},
        )

    def test_five_days_of_failures_disable(
        self, sender: Sender, receiver: Receiver, owner: Owner
    ) -> None:
        webhook = an_endpoint(owner, receiver.url)
        receiver.answer = status(500)
        completed(owner)
        set_endpoint(webhook, consecutive_failures=18, failing_since=ago(days=6))
        send(sender)
        assert endpoint(webhook).status == "enabled"
        set_deliveries(webhook, due_at=ago(seconds=1))
        set_endpoint(webhook, not_before=None)
        with capture_logs() as logged:
            send(sender)
        found = endpoint(webhook)
        assert (found.status, found.disabled_reason) == ("disabled", "failing")
        assert {"event": "webhook.disabled", "reason": "failing"}.items() <= logged[-1].items()

    def test_a_deleted_webhook_gets_nothing_more(
        self, sender: Sender, receiver: Receiver, owner: Owner
    ) -> None:
        webhook = an_endpoint(owner, receiver.url)
        completed(owner, 2)
        set_endpoint(webhook, deleted_at=ago(seconds=1), secret="")
        send(sender)
        assert states(webhook) == [("failed", 0)] * 2
        assert receiver.got == []


class TestLease:
    def take(self, webhook: UUID, lease: float = 30) -> WebhookEndpoint:
        """Lease a webhook as another worker does."""
        with db.transaction() as session:
            [taken] = deliveries.claim(session, [webhook], lease)
            return taken

    def test_a_webhook_that_another_worker_has_is_left_until_its_lease_ends(
        self, sender: Sender, receiver: Receiver, owner: Owner
    ) -> None:
        webhook = an_endpoint(owner, receiver.url)
        completed(owner)
        self.take(webhook)
        send(sender)
        assert receiver.got == []
        set_endpoint(webhook, lease_until=ago(seconds=1))
        send(sender)
        assert states(webhook) == [("delivered", 1)]

    def test_a_worker_that_lost_its_lease_writes_nothing(
        self, sender: Sender, receiver: Receiver, owner: Owner
    ) -> None:
        webhook = an_endpoint(owner, receiver.url)

        def answer(request: BaseHTTPRequestHandler, got: Got) -> None:
            # While the delivery is in flight its lease ends, and another worker takes the webhook.
            set_endpoint(webhook, lease_until=ago(seconds=1))
            taken.append(self.take(webhook))
            status(500)(request, got)

        taken: list[WebhookEndpoint] = []
        receiver.answer = answer
        completed(owner)
        sender.wake()
        wait_until(lambda: bool(taken))
        wait_until(lambda: not sender._running)
        assert states(webhook) == [("pending", 0)]
        found = endpoint(webhook)
        assert (found.consecutive_failures, found.fence) == (0, taken[0].fence)
        assert found.lease_until is not None

    def test_a_stopped_sender_ends_its_attempt_and_takes_no_other(
        self, sender: Sender, receiver: Receiver, owner: Owner
    ) -> None:
        webhook = an_endpoint(owner, receiver.url)
        go_on = threading.Event()

        def answer(request: BaseHTTPRequestHandler, got: Got) -> None:
            sender.stop()
            go_on.wait(PATIENCE)
            status(200)(request, got)

        receiver.answer = answer
        completed(owner, 2)
        sender.wake()
        wait_until(lambda: bool(receiver.got))
        go_on.set()
        sender.close(PATIENCE)
        assert states(webhook) == [("delivered", 1), ("pending", 0)]
        assert endpoint(webhook).lease_until is None


class TestBounds:
    @pytest.fixture
    def stuck(self, receiver: Receiver) -> Iterator[Receiver]:
        """A receiver that answers nobody until the test ends."""
        over = threading.Event()

        def answer(request: BaseHTTPRequestHandler, got: Got) -> None:
            over.wait(PATIENCE)
            status(200)(request, got)

        receiver.answer = answer
        yield receiver
        over.set()

    def test_an_account_holds_a_quarter_of_the_threads(
        self, stuck: Receiver, owner: Owner, configure: Configure
    ) -> None:
        configure(
            webhook_allow_http=True, webhook_allowed_networks="127.0.0.1/32", webhook_in_flight=8
        )
        sender = Sender()
        for _ in range(5):
            an_endpoint(owner, stuck.url)
        completed(owner)
        with receiving() as quick:
            other = an_owner()
            webhook = an_endpoint(other, quick.url)
            completed(other)
            sender.wake()
            wait_until(lambda: states(webhook) == [("delivered", 1)])
            wait_until(lambda: len(stuck.got) == 2)
            sender.wake()
            wait_until(lambda: len(sender._running) == 2)
        assert len(stuck.got) == 2
        # What waits for a receiver holds no connection that batches could need.
        assert db.engine().pool.checkedout() == 0  # type: ignore[attr-defined]

    def test_receivers_that_failed_last_hold_half_of_the_threads(
        self, stuck: Receiver, configure: Configure
    ) -> None:
        configure(
            webhook_allow_http=True, webhook_allowed_networks="127.0.0.1/32", webhook_in_flight=4
        )
        sender = Sender()
        for _ in range(4):
            owner = an_owner()
            an_endpoint(owner, stuck.url, consecutive_failures=1)
            completed(owner)
        sender.wake()
        wait_until(lambda: len(stuck.got) == 2)
        owner = an_owner()
        an_endpoint(owner, stuck.url)
        completed(owner)
        sender.wake()
        wait_until(lambda: len(stuck.got) == 3)
        assert len(sender._running) == 3

    def test_a_worker_may_send_none(
        self, sender: Sender, receiver: Receiver, owner: Owner, configure: Configure
    ) -> None:
        configure(webhook_in_flight=0)
        webhook = an_endpoint(owner, receiver.url)
        completed(owner)
        send(sender)
        assert states(webhook) == [("pending", 0)]

    def test_looks_go_round_over_all_webhooks(
        self, receiver: Receiver, owner: Owner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deliveries, "LOOKED_AT", 3)
        far = [an_endpoint(owner, receiver.url) for _ in range(7)]
        last = an_endpoint(owner, receiver.url)
        completed(owner)
        for webhook in far:
            set_deliveries(webhook, due_at=ago(hours=-1))
        sender = Sender()
        for _ in range(3):
            send(sender)
        assert states(last) == [("delivered", 1)]

    def test_a_turn_ends_so_that_others_get_theirs(
        self, sender: Sender, receiver: Receiver, owner: Owner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(senders, "TURN", 0.0)
        webhook = an_endpoint(owner, receiver.url)
        completed(owner, 2)
        [leased] = (TestLease().take(webhook),)
        assert sender._send_due(leased)
        assert receiver.got == []


def test_a_system_without_a_further_thread_leaves_the_webhook_to_a_later_look(
    sender: Sender, receiver: Receiver, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhook = an_endpoint(owner, receiver.url)
    completed(owner)

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", start)
        sender.wake()
    assert sender._running == {}
    assert states(webhook) == [("pending", 0)]
    set_endpoint(webhook, lease_until=ago(seconds=1))
    send(sender)
    assert states(webhook) == [("delivered", 1)]


def test_a_database_that_is_away_loses_nothing(
    sender: Sender, receiver: Receiver, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhook = an_endpoint(owner, receiver.url)
    completed(owner)
    record = deliveries.record

    def away(*_: object) -> None:
        monkeypatch.setattr(deliveries, "record", record)
        raise db.TimeoutError

    monkeypatch.setattr(deliveries, "record", away)
    send(sender)
    assert states(webhook) == [("pending", 0)]
    with db.transaction() as session:
        session.execute(update(WebhookEndpoint).values(lease_until=func.now()))
    send(sender)
    assert states(webhook) == [("delivered", 1)]
    assert len(receiver.got) == 2
