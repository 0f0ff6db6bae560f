"""The invariants of events: each end is told once on record, and at least once to the receiver."""

import base64
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.chaos.system import System
from tests.waiting import wait_until

# Seconds within which the receiver, which is well again, has all events.
BOUND = 30.0
OF_BATCHES = frozenset({"batch.completed", "batch.failed", "batch.cancelled", "batch.expired"})
ISSUED = "xalen.invoice.issued"

_BATCHES = "SELECT id, status, ledger FROM batches WHERE metadata ->> 'run' = %s"
_INVOICES = (
    "SELECT i.id FROM invoices i JOIN batches b ON b.id = batch_id WHERE metadata ->> 'run' = %s"
)
_EVENTS = """
    SELECT e.id, e.type, e.object_id, d.state
    FROM events e LEFT JOIN webhook_deliveries d ON d.event_id = e.id
    WHERE object_id = ANY(%s)
"""
_PENDING = "SELECT count(*) FROM webhook_deliveries WHERE state = 'pending'"
# As if the pauses between attempts, of minutes and hours, were over.
_DUE = "UPDATE webhook_deliveries SET due_at = now() WHERE state = 'pending' AND due_at > now()"
_AT_ONCE = "UPDATE webhook_endpoints SET not_before = NULL WHERE not_before > now()"


@dataclass
class Told:
    """What a receiver got: events by their ids, how often it accepted each, and bad signatures."""

    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    accepted: Counter[str] = field(default_factory=Counter)
    unsigned: list[str] = field(default_factory=list)

    @property
    def repeated(self) -> int:
        return sum(count - 1 for count in self.accepted.values())


def read(log: Path, start: int, secret: str) -> Told:
    """The deliveries in a receiver's log from that byte on."""
    told = Told()
    with log.open("rb") as lines:
        lines.seek(start)
        for line in lines:
            got = json.loads(line)
            event = json.loads(got["body"])
            told.events[event["id"]] = event
            if not _is_signed(got, event["id"], secret):
                told.unsigned.append(event["id"])
            if got["status"] == 200:
                told.accepted[event["id"]] += 1
    return told


def _is_signed(got: dict[str, Any], id: str, secret: str) -> bool:
    headers = got["headers"]
    signed = f"{id}.{headers.get('webhook-timestamp')}.{got['body']}".encode()
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return headers.get("webhook-id") == id and headers.get("webhook-signature") == f"v1,{signature}"


def unsent(system: System) -> list[str]:
    """Wait until nothing is pending, without the pauses after failed attempts."""
    with system.connect() as connection:
        connection.autocommit = True

        def pending() -> int:
            connection.execute(_DUE)
            connection.execute(_AT_ONCE)
            row = connection.execute(_PENDING).fetchone()
            return int(row[0]) if row else 0

        try:
            wait_until(lambda: not pending(), timeout=system.lease + BOUND)
        except AssertionError:
            return [f"{pending()} deliveries are pending after {system.lease + BOUND:.0f} s"]
    return []


def wrong(connection: psycopg.Connection, run: str, told: Told) -> Iterator[str]:
    """All violations of the invariants, once nothing is pending."""
    batches = connection.execute(_BATCHES, [run]).fetchall()
    invoices = [id for (id,) in connection.execute(_INVOICES, [run])]
    ids = [*(id for id, _, _ in batches), *invoices]
    events = connection.execute(_EVENTS, [ids]).fetchall()
    for id, status, ledger in batches:
        types = sorted(type for _, type, of, _ in events if of == id and type in OF_BATCHES)
        wanted = [] if ledger is not None else [f"batch.{status}"]
        if types != wanted:
            yield f"the batch {id.hex} is {status}, and has the events {types}"
    for id in invoices:
        issued = sum(type == ISSUED for _, type, of, _ in events if of == id)
        if issued != 1:
            yield f"the invoice {id.hex} has {issued} events"
    yield from _deliveries(events, told)
    yield from (f"the signature of {id} is wrong" for id in told.unsigned)


def _deliveries(events: Sequence[tuple[Any, ...]], told: Told) -> Iterator[str]:
    for id, type, of, state in events:
        public_id = f"evt_{id.hex}"
        if state != "delivered":
            yield f"the delivery of {public_id}, {type}, is {state}"
        if not told.accepted[public_id]:
            yield f"the receiver never accepted {public_id}, {type}"
            continue
        got = told.events[public_id]
        if got["type"] != type or not got["data"]["id"].endswith(of.hex):
            yield f"{public_id} is {type} of {of.hex}, and the receiver was told {got}"
