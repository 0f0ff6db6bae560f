"""One large batch against what else would run it: at no latency (all is CPU) and behind a model's
latency.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.mock.options import Options
from benchmarks.samples import Contender, Figure, at_least, at_most
from benchmarks.scenarios.scenario import Results, Scenario, cpu_ratio, found, times_faster
from benchmarks.stage import Stage
from benchmarks.system import USUAL

OURS = "xalen-batch"
CLIENT, CLIENT_2 = "bare loop, our HTTP client", "bare loop, our HTTP client, 2 processes"
AIOHTTP, AIOHTTP_2 = "aiohttp loop", "aiohttp loop, 2 processes"
KEPT = "bare loop, pyreqwest"
JSONL = "aiohttp to a JSONL file"
COOKBOOK = "cookbook script"
CELERY, LITELLM = "Celery", "LiteLLM"


@dataclass(frozen=True)
class _Counts:
    """Lines that each reference runs: enough for some seconds."""

    client: int
    aiohttp: int
    cookbook: int
    celery: int
    litellm: int


def _all(stage: Stage, options: Options, lines: int, counts: _Counts) -> list[Contender]:
    input_, both = stage.chats(lines), USUAL.in_flight
    each = both // 2
    return [
        stage.ours(input_, options, name=OURS),
        # What counts most one behind the other: the machine has phases of some ten seconds.
        stage.reference(
            AIOHTTP, "aiohttp_loop", input_, options, count=counts.aiohttp, in_flight=each
        ),
        stage.reference(
            AIOHTTP_2,
            "aiohttp_loop",
            input_,
            options,
            count=2 * counts.aiohttp,
            in_flight=both,
            processes=2,
        ),
        stage.reference(
            CLIENT, "http_client", input_, options, count=counts.client, in_flight=each
        ),
        stage.reference(
            CLIENT_2,
            "http_client",
            input_,
            options,
            count=2 * counts.client,
            in_flight=both,
            processes=2,
        ),
        stage.reference(
            JSONL, "aiohttp_jsonl", input_, options, count=counts.aiohttp, in_flight=each, rounds=1
        ),
        stage.reference(COOKBOOK, "cookbook", input_, options, count=counts.cookbook, rounds=1),
        stage.celery(input_, options, count=counts.celery),
        stage.litellm(input_, options, count=counts.litellm),
    ]


def _mock(results: Results) -> Iterator[Figure]:
    """Whether the mock server could have been what was measured."""
    ceiling, ours = found(results, CLIENT_2), found(results, OURS)
    if ceiling and ours:
        yield Figure(
            "the mock server is kept busy by us, share of a core",
            ours.more("mock_cpu_us") * ours.rate / 1e6,
            "",
        )
        yield Figure("the mock server's CPU per request", ours.more("mock_cpu_us"), "µs")


def _zero(stage: Stage) -> list[Contender]:
    options, counts = (
        Options(),
        _Counts(client=25_000, aiohttp=6_000, cookbook=1_500, celery=400, litellm=300),
    )
    kept = stage.reference(
        KEPT,
        "kept_client",
        stage.chats(50_000),
        options,
        count=counts.client,
        in_flight=USUAL.in_flight // 2,
        rounds=1,
    )
    return [*_all(stage, options, 50_000, counts), kept]


def _read_zero(results: Results) -> Iterator[Figure]:
    yield from cpu_ratio(results, OURS, AIOHTTP, at_most(0.5))
    yield from times_faster(results, OURS, AIOHTTP_2, at_least(1.2))
    yield from times_faster(results, OURS, COOKBOOK, at_least(10))
    yield from cpu_ratio(results, CLIENT, KEPT)
    for other in (JSONL, CELERY, LITELLM, CLIENT_2):
        yield from times_faster(results, OURS, other)
    yield from _mock(results)


def _at_120(stage: Stage) -> list[Contender]:
    options = Options(latency=0.12)
    return _all(
        stage,
        options,
        50_000,
        _Counts(client=10_000, aiohttp=6_000, cookbook=1_500, celery=400, litellm=400),
    )


def _read_120(results: Results) -> Iterator[Figure]:
    ours = found(results, OURS)
    if ours:
        share = ours.rate / (USUAL.in_flight / 0.12)
        yield Figure("share of the ceiling in-flight / latency", share, "", at_least(0.9))
        # What the rest is.
        yield Figure("time of all lines at the ceiling", share * ours.seconds, "s")
        yield Figure("upload", ours.more("upload_seconds"), "s")
        yield Figure(
            "validate and split, from the batch's creation", ours.more("validate_seconds"), "s"
        )
        in_flight = ours.more("mock_mean_in_flight")
        yield Figure(
            "share of the in-flight limit kept busy until the last 2 % of lines",
            in_flight / USUAL.in_flight,
            "",
        )
    yield from times_faster(results, OURS, COOKBOOK, at_least(5))
    yield from times_faster(results, OURS, CELERY, at_least(30))
    yield from times_faster(results, OURS, LITELLM, at_least(30))
    for other in (AIOHTTP_2, JSONL, CLIENT_2):
        yield from times_faster(results, OURS, other)
    yield from cpu_ratio(results, OURS, AIOHTTP)


def _at_30(stage: Stage) -> list[Contender]:
    options, input_, both = Options(latency=0.03), stage.chats(20_000), USUAL.in_flight
    return [
        stage.ours(input_, options, name=OURS),
        stage.reference(
            CLIENT_2, "http_client", input_, options, count=20_000, in_flight=both, processes=2
        ),
        stage.reference(
            AIOHTTP_2, "aiohttp_loop", input_, options, count=10_000, in_flight=both, processes=2
        ),
    ]


def _read_30(results: Results) -> Iterator[Figure]:
    yield from times_faster(results, OURS, AIOHTTP_2)
    yield from times_faster(results, OURS, CLIENT_2)
    yield from cpu_ratio(results, OURS, AIOHTTP_2)


def _pools(stage: Stage) -> list[Contender]:
    options, input_ = Options(latency=0.12), stage.chats(1_000)
    pools = (("gevent", 100), ("gevent", 256), ("threads", 100), ("prefork", 2), ("prefork", 16))
    return [
        stage.celery(input_, options, count=300, pool=pool, concurrency=size)
        for pool, size in pools
    ]  # type: ignore[arg-type]


SCENARIOS = [
    Scenario(
        "zero-latency",
        "50,000 lines, a backend that answers at once: all that is left is CPU",
        _zero,
        _read_zero,
        runs=3,
    ),
    Scenario(
        "latency-120",
        "50,000 lines at 120 ms: the share of what in-flight / latency allows",
        _at_120,
        _read_120,
        runs=1,
    ),
    Scenario("latency-30", "20,000 lines at 30 ms", _at_30, _read_30, runs=1),
    Scenario(
        "celery-pools",
        "one Celery task per line on each pool, to keep the best",
        _pools,
        lambda _: iter(()),
        runs=1,
        is_default=False,
    ),
]
