"""The sender: sends due deliveries, on threads of one worker process that do nothing else.

It leases webhooks, one thread for each, and sends their deliveries one after another. The number of
threads is bounded, and they share one database connection, so receivers that are slow, huge or
dead take nothing from batches.
"""

import threading
import time
from collections import Counter
from datetime import UTC, datetime
from uuid import UUID

from xalen_batch import db, events, log
from xalen_batch.config import settings
from xalen_batch.events import Happened
from xalen_batch.metrics import counted
from xalen_batch.models import WebhookEndpoint, deliveries
from xalen_batch.models.deliveries import Attempt, Candidate, Due
from xalen_batch.models.events import EventType
from xalen_batch.models.webhooks import WebhookStatus
from xalen_batch.webhooks import endpoints, payload, retries, signing
from xalen_batch.webhooks.receiver import NoAnswer, Receivers

logger = log.get(__name__)

# A thread leaves its webhook after this many seconds or after a failure, so that others get a turn.
TURN = 10.0
DUE_AT_ONCE = 10
# Shares of the threads that one account, and that all receivers which failed last, may hold.
OF_ACCOUNT, OF_FAILING = 1 / 4, 1 / 2
START = UUID(int=0)
# Reasons of a disabled webhook.
GONE, FAILING = "gone", "failing"
DISABLED = "Not sent: the webhook is disabled or deleted."


class Sender:
    """Sends deliveries until it is stopped; methods may be called on any thread."""

    def __init__(self) -> None:
        self._receivers = Receivers()
        # Webhooks that a thread has here: their account, and whether they failed last.
        self._running: dict[UUID, tuple[UUID, bool]] = {}
        self._lock = threading.Lock()
        # One thread uses the database at a time.
        self._database = threading.Lock()
        self._has_waiter = False
        self._after = START
        self._stopped = threading.Event()
        self._idle = threading.Condition(self._lock)

    def wake(self) -> None:
        """Look for due deliveries, and start threads that send them. Never raises.

        Nothing if another call waits to look: it sees what this one would.
        """
        with self._lock:
            if self._has_waiter:
                return
            self._has_waiter = True
        try:
            with self._database:
                self._has_waiter = False
                claimed = [] if self._stopped.is_set() else self._claim()
        except db.UNAVAILABLE as error:
            logger.warning(db.trouble(error), during="webhooks")
            return
        except Exception as error:
            logger.error("webhooks.crashed", **log.cause(error))
            return
        for endpoint in claimed:
            self._start(endpoint)

    def _start(self, endpoint: WebhookEndpoint) -> None:
        thread = threading.Thread(target=self._turn, args=(endpoint,), name="webhook", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # The system has no further thread. The lease runs out, and another look takes it.
            logger.error("webhook.crashed", webhook_id=endpoint.id, **log.cause(error))
            self._left(endpoint)

    def _left(self, endpoint: WebhookEndpoint) -> None:
        with self._idle:
            del self._running[endpoint.id]
            self._idle.notify_all()

    def stop(self) -> None:
        """Begin no further attempt."""
        self._stopped.set()

    def close(self, patience: float) -> None:
        """Wait until the attempts in flight have ended, for at most `patience` seconds."""
        self.stop()
        with self._idle:
            self._idle.wait_for(lambda: not self._running, timeout=patience)

    def _claim(self) -> list[WebhookEndpoint]:
        """Lease due webhooks, as many as there are threads for: a round robin over all of them."""
        room = settings().webhook_in_flight - len(self._running)
        if room <= 0:
            return []
        # Two statements, each a transaction; nearly always the first finds nothing.
        with db.autocommit() as session:
            found = deliveries.candidates(session, self._after)
            chosen = self._chosen(found, room)
            claimed = deliveries.claim(session, chosen, settings().lease) if chosen else []
        if len(chosen) == room:
            self._after = chosen[-1]
        else:
            self._after = found[-1].id if len(found) == deliveries.LOOKED_AT else START
        with self._lock:
            for endpoint in claimed:
                self._running[endpoint.id] = (
                    endpoint.account_id,
                    bool(endpoint.consecutive_failures),
                )
        return claimed

    def _chosen(self, found: list[Candidate], room: int) -> list[UUID]:
        with self._lock:
            running = list(self._running.values())
        threads = settings().webhook_in_flight
        of_account = Counter(account for account, _ in running)
        failing = sum(is_failing for _, is_failing in running)
        chosen: list[UUID] = []
        for candidate in found:
            if len(chosen) == room:
                break
            is_failing = bool(candidate.consecutive_failures)
            if (
                not candidate.is_due
                or of_account[candidate.account_id] >= max(1, int(threads * OF_ACCOUNT))
                or (is_failing and failing >= max(1, int(threads * OF_FAILING)))
            ):
                continue
            of_account[candidate.account_id] += 1
            failing += is_failing
            chosen.append(candidate.id)
        return chosen

    def _turn(self, endpoint: WebhookEndpoint) -> None:
        """Send the due deliveries of a leased webhook. After an error its lease runs out."""
        try:
            if self._send_due(endpoint):
                with self._database, db.autocommit() as session:
                    deliveries.release(session, endpoint)
        except db.UNAVAILABLE as error:
            logger.warning(db.trouble(error), during="webhooks", webhook_id=endpoint.id)
        except Exception as error:
            logger.error("webhook.crashed", webhook_id=endpoint.id, **log.cause(error))
        finally:
            self._left(endpoint)
        self.wake()

    def _send_due(self, endpoint: WebhookEndpoint) -> bool:
        """Send until nothing is due, an attempt fails, or the turn is over.

        False: another worker has the webhook.
        """
        ends = time.monotonic() + TURN
        current = endpoint
        while True:
            if not _is_enabled(current):
                with self._database, db.transaction() as session:
                    deliveries.end_pending(session, endpoint.id, DISABLED)
                return True
            with self._database, db.reading() as session:
                found = deliveries.due(session, endpoint.id, DUE_AT_ONCE)
            for delivery in found:
                if self._stopped.is_set() or time.monotonic() >= ends:
                    return True
                attempt = self._attempt(current, delivery)
                with self._database:
                    fresh = _record(current, delivery, attempt)
                if fresh is None:
                    return False
                if attempt.error is not None:
                    return True
                current = fresh
            if not found:
                return True

    def _attempt(self, endpoint: WebhookEndpoint, delivery: Due) -> Attempt:
        started = time.monotonic()
        status, error, response, asked = None, None, b"", 0.0
        now = datetime.now(UTC)
        body = payload.body(delivery)
        id = payload.event_id(delivery)
        secrets = endpoints.signing_secrets(endpoint, now)
        headers = signing.headers(secrets, id, int(now.timestamp()), body)
        try:
            answer = self._receivers.post(endpoint.url, headers, body, attempt=delivery.attempts)
        except NoAnswer as problem:
            error = str(problem)
        else:
            status, response = answer.status, answer.body
            asked = retries.asked_pause(status, answer.retry_after, now)
            if not 200 <= status < 300:
                error = f"The receiver answered {status}."
        duration = round((time.monotonic() - started) * 1000)
        if error is None:
            return Attempt(status, None, response, duration)
        pause = retries.next_pause(delivery.attempts + 1)
        if status == retries.GONE:
            pause = None
        elif pause is not None:
            pause = max(pause, asked)
        back_off = max(retries.back_off(endpoint.consecutive_failures + 1), asked)
        return Attempt(status, error, response, duration, pause, back_off)


def _is_enabled(endpoint: WebhookEndpoint) -> bool:
    return endpoint.status == WebhookStatus.ENABLED and endpoint.deleted_at is None


def _record(endpoint: WebhookEndpoint, delivery: Due, attempt: Attempt) -> WebhookEndpoint | None:
    """Record an attempt, and disable a webhook whose receiver is gone or fails for days."""
    disabled = None
    with db.transaction() as session:
        fresh = deliveries.record(session, endpoint, delivery.event_id, attempt, settings().lease)
        if fresh is not None and attempt.error is not None:
            if attempt.status == retries.GONE:
                disabled = GONE
            elif retries.is_hopeless(
                fresh.consecutive_failures, fresh.failing_since, db.now(session)
            ):
                disabled = FAILING
            if disabled is not None and deliveries.disable(session, endpoint.id, disabled):
                events.record(session, endpoint, Happened(EventType.WEBHOOK_DISABLED, endpoint.id))
    if fresh is None:
        logger.info("webhook.stale", webhook_id=endpoint.id, event_id=delivery.event_id)
        return None
    counted.DELIVERIES.labels("delivered" if attempt.error is None else "failed").inc()
    write = logger.info if attempt.error is None else logger.warning
    write(
        "webhook.delivered" if attempt.error is None else "webhook.attempt_failed",
        webhook_id=endpoint.id,
        event_id=delivery.event_id,
        attempt=delivery.attempts + 1,
        status=attempt.status,
        ms=attempt.duration_ms,
    )
    if disabled is not None:
        logger.warning("webhook.disabled", webhook_id=endpoint.id, reason=disabled)
    return fresh
