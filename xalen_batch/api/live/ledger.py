"""Records live calls in their ledgers, behind their answers.

A call is recorded after it was answered: by a thread of its own, which writes all calls that wait
in one transaction for each ledger (group commit), and begins a write at most every INTERVAL
seconds. A process that is killed loses the charges of the last answers, and never bills one twice.
"""

import hashlib
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import orjson

from xalen_batch import db, ids, log
from xalen_batch.accounts.accounts import Owner
from xalen_batch.backends.contract import Answered
from xalen_batch.billing.charges import Tariff
from xalen_batch.endpoints.names import Endpoint
from xalen_batch.endpoints.usage import Usage
from xalen_batch.errors import Unavailable
from xalen_batch.metrics import counted
from xalen_batch.models import ledgers
from xalen_batch.pipeline import record
from xalen_batch.pipeline.record import LineRef

logger = log.get(__name__)

# Calls that wait to be recorded; with more, new calls are refused.
MOST_WAITING = 10_000
MOST_AT_ONCE = 1_000
# Seconds between two writes. A transaction costs as much CPU as answering a call does.
INTERVAL = 0.5
# Seconds before a transaction that met an unavailable database is repeated.
RETRY = 1.0
LIVE_RATE = Decimal(0)


class Ledger(NamedTuple):
    """The calls that are billed alike: of one owner, model, endpoint and price."""

    owner: Owner
    model: str
    endpoint: Endpoint
    # {component: USD per million tokens} as JSON, in the order of the keys.
    price: bytes
    # The kind of backend: "openai" or "simulated".
    backend: str

    @property
    def name(self) -> str:
        digest = hashlib.sha256(self.price + self.backend.encode()).hexdigest()[:12]
        return f"{self.model} {self.endpoint} {digest}"

    @property
    def prices(self) -> dict[str, str]:
        prices: dict[str, str] = orjson.loads(self.price)
        return prices


class Call(NamedTuple):
    """An answered call. `id` is unique; it becomes the line's custom_id."""

    ledger: Ledger
    id: str
    status: int
    usage: Usage


def ledger_of(
    owner: Owner, model: str, endpoint: Endpoint, price: Mapping[str, str], backend: str
) -> Ledger:
    """The ledger of a call."""
    owner = Owner(owner.account_id, owner.livemode)
    return Ledger(owner, model, endpoint, orjson.dumps(dict(sorted(price.items()))), backend)


class Recorder:
    """Records calls on a thread of its own. `add` is called on the event loop's thread."""

    def __init__(self) -> None:
        self._calls: queue.Queue[Call | None] = queue.Queue()
        # The batch of each ledger, and the number of the last line that this process saw there.
        self._open: dict[Ledger, tuple[UUID, int]] = {}
        self._thread: threading.Thread | None = None
        self._is_closed = threading.Event()

    def refuse_if_full(self) -> None:
        """Raise Unavailable while too many calls wait to be recorded."""
        if self._calls.unfinished_tasks >= MOST_WAITING:
            raise Unavailable(
                "The server cannot record calls right now, and answers none that it could not bill."
                " Send the request again in a few seconds."
            )

    def add(self, call: Call) -> None:
        """Record an answered call soon."""
        self._calls.put(call)
        if self._thread is None:
            self._is_closed.clear()
            self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
            self._thread.start()

    def settle(self) -> None:
        """Wait until every call that was added is recorded."""
        self._calls.join()

    def close(self, patience: float) -> None:
        """Record what waits, for at most `patience` seconds."""
        if self._thread is not None:
            self._calls.put(None)
            self._is_closed.set()
            self._thread.join(patience)
            self._thread = None

    def _run(self) -> None:
        is_over = False
        write_at = 0.0
        while not is_over:
            waiting = self._collected(until=write_at)
            write_at = time.monotonic() + INTERVAL
            is_over = None in waiting
            by_ledger: dict[Ledger, list[Call]] = {}
            for call in waiting:
                if call is not None:
                    by_ledger.setdefault(call.ledger, []).append(call)
            for ledger, calls in by_ledger.items():
                self._record(ledger, calls)
            for _ in waiting:
                self._calls.task_done()

    def _collected(self, until: float) -> list[Call | None]:
        """The calls that came by a time (monotonic): at least one, with None as the last of all."""
        waiting = [self._calls.get()]
        # Not in the queue, whose waiters wake up for each call.
        self._is_closed.wait(max(0.0, until - time.monotonic()))
        while len(waiting) < MOST_AT_ONCE and not self._calls.empty():
            waiting.append(self._calls.get())
        return waiting

    def _record(self, ledger: Ledger, calls: Sequence[Call]) -> None:
        """Record calls of one ledger, again and again while the database is unavailable."""
        is_repeated = False
        while True:
            try:
                self._write(ledger, calls, is_repeated=is_repeated)
                return
            except db.UNAVAILABLE as error:
                logger.warning(db.trouble(error), during="ledger")
                is_repeated = True
                time.sleep(RETRY)
            except Exception as error:
                # A bug of ours: other ledgers go on.
                logger.error("ledger.crashed", calls=len(calls), **log.cause(error))
                return

    def _write(self, ledger: Ledger, calls: Sequence[Call], *, is_repeated: bool) -> None:
        while True:
            with db.transaction() as session:
                if ledger not in self._open:
                    id = ledgers.open_today(session, ledger.name, _columns(ledger))
                    # Noted before the commit, whose answer may be lost.
                    self._open[ledger] = (id, 0)
                batch_id, seen = self._open[ledger]
                # The first attempt may have been committed, although its answer was lost.
                if is_repeated and ledgers.has_line(session, batch_id, seen, calls[0].id):
                    return
                rows = _rows(ledger, calls, batch_id, first=0)
                last = ledgers.add_lines(session, batch_id, len(rows), record.counts(rows))
                if last is not None:
                    record.insert(
                        session, _rows(ledger, calls, batch_id, first=last - len(rows) + 1)
                    )
            if last is not None:
                self._open[ledger] = (batch_id, last)
                _count(ledger, rows)
                return
            # Its day is over, or the transaction that created it was rolled back.
            del self._open[ledger]


# That of this process.
recorder = Recorder()


def _rows(ledger: Ledger, calls: Sequence[Call], batch_id: UUID, *, first: int) -> list[record.Row]:
    tariff = Tariff(ledger.prices, LIVE_RATE)
    found = []
    for line_no, call in enumerate(calls, start=first):
        line = LineRef(batch_id, line_no, ledger.model, call.id)
        row = record.row(line, Answered(call.status, b"{}", call.usage), tariff)
        # The answer was delivered, and is not kept.
        found.append(msgspec.structs.replace(row, body=None))
    return found


def _count(ledger: Ledger, rows: Sequence[record.Row]) -> None:
    labels = ledger.model, counted.mode(ledger.owner.livemode)
    counted.LIVE_CALLS.labels(*labels).inc(len(rows))
    counted.CHARGED.labels(*labels).inc(sum(float(row.amount or 0) for row in rows))


def _columns(ledger: Ledger) -> dict[str, Any]:
    """The columns of a new ledger's batch."""
    return {
        "id": ids.new(),
        "account_id": ledger.owner.account_id,
        "livemode": ledger.owner.livemode,
        "endpoint": ledger.endpoint,
        "model": ledger.model,
        "metadata": {},
        "price_snapshot": {ledger.model: ledger.prices},
        "backends": {ledger.model: ledger.backend} if ledger.owner.livemode else None,
        "discount_rate": LIVE_RATE,
    }
