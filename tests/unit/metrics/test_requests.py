"""Counts of requests to backends, and their form for Prometheus."""

from prometheus_client import REGISTRY

from xalen_batch.endpoints.usage import Usage
from xalen_batch.metrics import requests
from xalen_batch.metrics.requests import BOUNDS, Kind

MODEL = "counted-model"


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"model": MODEL, "mode": "live", **labels})


def test_a_backend_has_one_object_of_counts_that_the_registry_shows() -> None:
    counts = requests.of(MODEL, True)
    assert requests.of(MODEL, True) is counts
    assert requests.of(MODEL, False) is not counts
    # The bound itself belongs to its bucket.
    for seconds in (0.01, 0.3, 10_000.0):
        counts.ended(Kind.ANSWERED, seconds)
        counts.used(Usage(10, 4, 3))
    counts.ended(Kind.OVERLOAD, 0.2)
    assert value("xalen_backend_requests_total", outcome="answered") == 3
    assert value("xalen_backend_requests_total", outcome="overload") == 1
    assert value("xalen_backend_requests_total", outcome="timeout") == 0
    assert value("xalen_backend_tokens_total", component="input") == 30
    assert value("xalen_backend_tokens_total", component="cached_input") == 9
    assert value("xalen_backend_tokens_total", component="output") == 12
    # Only answers have a time; the buckets are cumulative.
    name = "xalen_backend_answer_duration_seconds"
    assert [value(f"{name}_bucket", le=str(bound)) for bound in (0.01, 0.25, 0.5)] == [1, 1, 2]
    assert value(f"{name}_bucket", le=str(BOUNDS[-1])) == 2
    assert value(f"{name}_bucket", le="+Inf") == value(f"{name}_count") == 3
    assert value(f"{name}_sum") == 10_000.31
