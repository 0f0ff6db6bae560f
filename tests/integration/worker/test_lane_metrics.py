"""What a batch leaves in the metrics of the worker that ran it."""

import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from tests.integration import engines
from tests.integration.engines import a_batch, chat_lines, run_to_end
from xalen_batch import catalog
from xalen_batch.worker import lane_metrics
from xalen_batch.worker.engine import Engine

pytestmark = pytest.mark.usefixtures("database", "valkey")
engine = engines.engine

MODEL = "mistral-small-3-1"
LABELS = {"model": MODEL, "mode": "test"}
COUNTED = (
    ("xalen_backend_requests_total", {**LABELS, "outcome": "answered"}),
    ("xalen_lines_recorded_total", {**LABELS, "outcome": "completed"}),
    ("xalen_backend_answer_duration_seconds_count", LABELS),
    ("xalen_batches_ended_total", {"status": "completed", "mode": "test"}),
    ("xalen_batch_duration_seconds_count", {"mode": "test"}),
    ("xalen_batch_deadline_margin_seconds_count", {"mode": "test"}),
    ("xalen_batch_start_seconds_count", {"mode": "test"}),
    ("xalen_backend_tokens_total", {**LABELS, "component": "output"}),
    ("xalen_charged_usd_total", LABELS),
)


def counts() -> list[float]:
    return [REGISTRY.get_sample_value(name, labels) or 0.0 for name, labels in COUNTED]


def test_a_batch_is_counted_by_its_lines_its_requests_and_its_end(engine: Engine) -> None:
    registry = CollectorRegistry()
    lane_metrics.install(engine.lanes.items, registry)
    assert registry.get_sample_value("xalen_backend_in_flight", LABELS) is None
    before = counts()
    batch = run_to_end(engine, a_batch(chat_lines(25)))
    grown = [after - earlier for after, earlier in zip(counts(), before, strict=True)]
    assert grown[:7] == [25, 25, 25, 1, 1, 1, 1]
    assert grown[7] == batch.output_tokens
    assert grown[8] > 0
    most = catalog.models()[MODEL].backend.max_in_flight
    for name, value in (
        ("in_flight", 0),
        ("lines_claimed", 0),
        ("circuit_open", 0),
        ("in_flight_ceiling", most),
    ):
        assert registry.get_sample_value(f"xalen_backend_{name}", LABELS) == value, name
    limit = registry.get_sample_value("xalen_backend_in_flight_limit", LABELS)
    assert limit is not None
    assert 1 <= limit <= most
