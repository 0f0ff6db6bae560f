"""Metrics that PostgreSQL knows: computed at a scrape, by statements that read indexes.

Each API process serves them, all with the same values; a query takes their maximum.
"""

import threading
import time
from collections.abc import Iterator, Sequence

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import text
from sqlalchemy.orm import Session

from xalen_batch import db, disk, storage
from xalen_batch.batches import demand
from xalen_batch.metrics.counted import mode
from xalen_batch.models import workers

# Seconds for which the numbers are cached, so that scrapers cannot load the database.
KEPT_FOR = 5.0
# Rows that a count reads at most; more are counted as this many.
MOST_COUNTED = 100_000


def install(registry: CollectorRegistry = REGISTRY) -> None:
    """Serve these metrics in this process; called once."""
    registry.register(_Stored())


class _Stored(Collector):
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at = 0.0
        self._found: Sequence[Metric] = ()

    def describe(self) -> Sequence[Metric]:
        """Empty, so that registering runs no statement."""
        return ()

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            if not self._found or time.monotonic() - self._at >= KEPT_FOR:
                self._found, self._at = list(_read()), time.monotonic()
            yield from self._found


def _read() -> Iterator[Metric]:
    up = _gauge("xalen_database_up", "1 if the database answered this scrape.")
    try:
        with db.reading() as session:
            found = [*_demand(session), *_batches(session), *_workers(session), *_queues(session)]
    except db.UNAVAILABLE:
        up.add_metric([], 0)
        yield up
    else:
        up.add_metric([], 1)
        yield up
        yield from found
    yield from _disks()


def _gauge(name: str, told: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, told, labels=labels)


def _demand(session: Session) -> Iterator[Metric]:
    names = ("model", "mode", "due", "window")
    lines = _gauge(
        "xalen_demand_lines",
        "Lines left to run, by the time until their deadline; `window`: open, or closed now.",
        *names,
    )
    tokens = _gauge("xalen_demand_input_tokens", "Estimated input tokens of those lines.", *names)
    oldest = _gauge(
        "xalen_demand_oldest_seconds",
        "Age of the oldest batch with lines that may run now.",
        "model",
        "mode",
    )
    now, ages = db.now(session), dict[tuple[str, str], float]()
    for row in demand.of_all(session):
        key = row.model, mode(row.livemode)
        labels = [*key, row.due, "open" if row.is_open else "closed"]
        lines.add_metric(labels, row.lines)
        tokens.add_metric(labels, row.input_tokens)
        if row.is_open:
            ages[key] = max(ages.get(key, 0.0), (now - row.oldest).total_seconds())
    for key, seconds in ages.items():
        oldest.add_metric(key, seconds)
    return iter((lines, tokens, oldest))


# Literals: only then can the planner use the partial indexes.
_BATCHES = text("""
    SELECT status, livemode, count(*) FROM batches
    WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling') AND ledger IS NULL
    GROUP BY 1, 2
""")


def _batches(session: Session) -> Iterator[Metric]:
    found = _gauge("xalen_batches_open", "Batches that have not ended.", "status", "mode")
    for status, livemode, count in session.execute(_BATCHES):
        found.add_metric([status, mode(livemode)], count)
    yield found


def _workers(session: Session) -> Iterator[Metric]:
    alive = workers.live(session)
    yield GaugeMetricFamily(
        "xalen_workers", "Worker processes with a heartbeat in the last 5 s.", value=len(alive)
    )
    seconds = _gauge(
        "xalen_worker_wait_seconds",
        "Longest time for which work waits in a worker: for a backend, storage, disk, rate_limit.",
        "reason",
        "model",
        "mode",
    )
    waits: dict[tuple[str, str, str], float] = {}
    for worker in alive:
        for _, wait in worker.waiting:
            key = str(wait.reason), wait.model or "", mode(bool(wait.livemode))
            waits[key] = max(waits.get(key, 0.0), wait.seconds)
    for key, longest in waits.items():
        seconds.add_metric(key, longest)
    yield seconds


_QUEUES = text("""
    SELECT
        (SELECT count(*) FROM (
            SELECT FROM webhook_deliveries WHERE state = 'pending' LIMIT :most
        ) AS pending),
        (SELECT extract(epoch FROM now() - min(next_fire_at)) FROM schedules
         WHERE next_fire_at <= now()),
        (SELECT coalesce(sum(amount), 0) FROM account_tallies WHERE name = 'file_bytes')
""")


def _queues(session: Session) -> Iterator[Metric]:
    pending, late, stored = session.execute(_QUEUES, {"most": MOST_COUNTED}).one()
    yield GaugeMetricFamily(
        "xalen_webhook_deliveries_pending",
        f"Deliveries that are due now or later, counted up to {MOST_COUNTED:,}.",
        value=pending,
    )
    yield GaugeMetricFamily(
        "xalen_schedules_late_seconds",
        "Time since the oldest instant of a schedule that has not fired; 0: none is late.",
        value=float(late or 0),
    )
    yield GaugeMetricFamily(
        "xalen_stored_file_bytes", "Bytes of files that are not deleted.", value=float(stored)
    )


def _disks() -> Iterator[Metric]:
    found = _gauge("xalen_disk_free_bytes", "Free bytes on the disk of a store.", "store")
    try:
        for space in disk.spaces():
            found.add_metric([space.store.value], space.free)
    except (*storage.UNAVAILABLE, OSError):
        # Without a value, alerts on it see that it is absent.
        pass
    yield found
