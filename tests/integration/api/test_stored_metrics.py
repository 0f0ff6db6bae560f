"""Gauges from the database: their values, and what a scrape shows while it is away."""

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import update
from sqlalchemy.exc import TimeoutError

from tests import factories, ran
from xalen_batch import db
from xalen_batch.api import stored_metrics
from xalen_batch.models import Schedule, workers
from xalen_batch.models.workers import WorkerWait, WorkerWaitReason

MODEL = "mistral-small-3-1"
pytestmark = pytest.mark.usefixtures("database", "valkey")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    monkeypatch.setattr(stored_metrics, "KEPT_FOR", 0.0)
    found = CollectorRegistry()
    stored_metrics.install(found)
    return found


def test_an_empty_system_has_zeros(registry: CollectorRegistry) -> None:
    assert registry.get_sample_value("xalen_database_up") == 1
    for name in ("workers", "webhook_deliveries_pending", "schedules_late_seconds"):
        assert registry.get_sample_value(f"xalen_{name}") == 0, name
    free = registry.get_sample_value("xalen_disk_free_bytes", {"store": "files"})
    assert free is not None
    assert free > 0


def test_the_values_are_those_of_the_rows(registry: CollectorRegistry) -> None:
    batch = ran.submitted(
        [factories.chat_line("a"), factories.chat_line("b")],
        created_at=datetime.now(UTC) - timedelta(minutes=10),
    )
    waits = [WorkerWait(WorkerWaitReason.BACKEND, 12.5, "refused", MODEL, False)]
    with db.transaction() as session:
        workers.seen(session, "a", waits=waits)
        workers.seen(session, "b")
        schedule = factories.schedule(session, factories.caller(session))
        session.flush()
        session.execute(
            update(Schedule)
            .where(Schedule.id == schedule.id)
            .values(next_fire_at=datetime.now(UTC) - timedelta(seconds=90))
        )
    of_model = {"model": MODEL, "mode": "test"}
    due = {**of_model, "due": "24h", "window": "open"}
    for name, labels, least, most in (
        ("demand_lines", due, 2, 2),
        ("demand_input_tokens", due, batch.enqueued_tokens, batch.enqueued_tokens),
        ("demand_oldest_seconds", of_model, 600, 660),
        ("batches_open", {"status": "in_progress", "mode": "test"}, 1, 1),
        ("workers", {}, 2, 2),
        ("worker_wait_seconds", {"reason": "backend", **of_model}, 12.5, 12.5),
        ("schedules_late_seconds", {}, 90, 150),
    ):
        value = registry.get_sample_value(f"xalen_{name}", labels)
        assert value is not None, name
        assert least <= value <= most, (name, value)
    stored = registry.get_sample_value("xalen_stored_file_bytes")
    assert stored is not None
    assert stored > 0


def test_a_database_that_is_away_costs_only_its_own_numbers(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise TimeoutError("no connection of the pool is free")

    monkeypatch.setattr(db, "reading", away)
    assert registry.get_sample_value("xalen_database_up") == 0
    assert registry.get_sample_value("xalen_workers") is None
    assert registry.get_sample_value("xalen_disk_free_bytes", {"store": "files"}) is not None


def test_scrapes_in_a_row_read_the_database_once(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    stored_metrics.install(registry)
    assert registry.get_sample_value("xalen_workers") == 0
    with db.transaction() as session:
        workers.seen(session, "a")
    assert registry.get_sample_value("xalen_workers") == 0
    monkeypatch.setattr(stored_metrics, "KEPT_FOR", 0.0)
    assert registry.get_sample_value("xalen_workers") == 1
