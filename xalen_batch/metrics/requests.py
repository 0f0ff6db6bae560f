"""Requests to backends, counted without a lock for every request.

A worker ends thousands of requests a second. A histogram of `prometheus_client` takes several locks
and walks its buckets for each observation, which costs several times as much as these plain
numbers. The event loop thread alone writes them; another thread that reads them for a scrape may
see a request in one number and not yet in the next.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from itertools import accumulate

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from xalen_batch.endpoints.usage import Usage
from xalen_batch.metrics.counted import mode

# Upper bounds of the buckets, in seconds.
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Kind(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    REFUSED = "refused"  # a final 4xx
    OVERLOAD = "overload"  # 429, 503: the backend is busy
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"  # no connection, or a refused key
    ERROR = "error"  # any other failure that is tried again
    CANCELLED = "cancelled"  # by a stop of the worker, or since the client had gone


class Requests:
    """The requests of this process to one model's backend in one mode."""

    __slots__ = ("buckets", "cached", "input", "kinds", "output", "seconds")

    def __init__(self) -> None:
        self.kinds: Counter[Kind] = Counter()
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0
        self.input = self.cached = self.output = 0

    def ended(self, kind: Kind, seconds: float) -> None:
        """Count a request. The histogram has the times of answers alone."""
        self.kinds[kind] += 1
        if kind is Kind.ANSWERED:
            self.buckets[bisect_left(BOUNDS, seconds)] += 1
            self.seconds += seconds

    def used(self, usage: Usage) -> None:
        """Count the tokens of an answer."""
        self.input += usage.input_tokens
        self.cached += usage.cached_tokens
        self.output += usage.output_tokens


@cache
def of(model: str, livemode: bool) -> Requests:
    """The counts of one backend; one object for the life of the process, as counters only grow."""
    found = _all[model, mode(livemode)] = Requests()
    return found


_all: dict[tuple[str, str], Requests] = {}


class _Collector(Collector):
    def collect(self) -> Iterator[Metric]:
        names = ["model", "mode"]
        requests = CounterMetricFamily(
            "xalen_backend_requests",
            "Requests to a backend, by how they ended.",
            labels=[*names, "outcome"],
        )
        seconds = HistogramMetricFamily(
            "xalen_backend_answer_duration_seconds",
            "From the request to the whole answer of a backend.",
            labels=names,
        )
        tokens = CounterMetricFamily(
            "xalen_backend_tokens",
            "Tokens of answers: input (cached ones included), cached_input and output.",
            labels=[*names, "component"],
        )
        for labels, counts in list(_all.items()):
            for kind in Kind:
                requests.add_metric([*labels, kind.value], counts.kinds[kind])
            bounds = [*map(str, BOUNDS), "+Inf"]
            seconds.add_metric(
                labels, list(zip(bounds, accumulate(counts.buckets), strict=True)), counts.seconds
            )
            for component, count in (
                ("input", counts.input),
                ("cached_input", counts.cached),
                ("output", counts.output),
            ):
                tokens.add_metric([*labels, component], count)
        yield from (requests, seconds, tokens)


REGISTRY.register(_Collector())
