"""Gauges of a worker's lanes, read at a scrape."""

from collections.abc import Callable, Iterator

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from xalen_batch.metrics.counted import mode
from xalen_batch.pipeline.claim import LaneKey
from xalen_batch.worker.circuit_breaker import State
from xalen_batch.worker.lane import Lane

Items = Callable[[], list[tuple[LaneKey, Lane]]]


def install(lanes: Items, registry: CollectorRegistry = REGISTRY) -> None:
    """Serve the gauges of these lanes; called once."""
    registry.register(_Lanes(lanes))


class _Lanes(Collector):
    def __init__(self, lanes: Items) -> None:
        self._lanes = lanes

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        in_flight = _gauge("in_flight", "Requests of this worker in flight.")
        limit = _gauge("in_flight_limit", "Most requests in flight now, as the worker adapts it.")
        ceiling = _gauge("in_flight_ceiling", "This worker's share of the catalog's limit.")
        lines = _gauge("lines_claimed", "Lines that this worker has claimed and not recorded.")
        circuit = _gauge("circuit_open", "1 while the circuit is not closed.")
        for (model, livemode), lane in self._lanes():
            labels = [model, mode(livemode)]
            in_flight.add_metric(labels, lane.in_flight)
            limit.add_metric(labels, lane.limit)
            ceiling.add_metric(labels, lane.concurrency.ceiling)
            lines.add_metric(labels, lane.unfinished)
            circuit.add_metric(labels, float(lane.circuit.state is not State.CLOSED))
        yield from (in_flight, limit, ceiling, lines, circuit)


def _gauge(name: str, told: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"xalen_backend_{name}", told, labels=["model", "mode"])
