"""A heavy tail: most answers come soon, a few take seconds, and nothing may wait for them."""

from collections.abc import Iterator

from benchmarks.mock.options import Options
from benchmarks.samples import Contender, Figure, at_least
from benchmarks.scenarios.scenario import Results, Scenario, found, times_faster
from benchmarks.stage import Stage
from benchmarks.system import USUAL, Shape

OURS, ONE_SLOT, LOOP = (
    "xalen-batch",
    "one slot per worker",
    "bare loop, our HTTP client, 2 processes",
)
OPTIONS = Options(latency=0.12, sigma=1.0)


def _contenders(stage: Stage) -> list[Contender]:
    input_, in_flight = stage.chats(10_000), USUAL.in_flight
    return [
        stage.ours(input_, OPTIONS, name=OURS),
        stage.reference(
            LOOP, "http_client", input_, OPTIONS, count=10_000, in_flight=in_flight, processes=2
        ),
        stage.ours(
            stage.chats(2_000),
            OPTIONS,
            Shape(settings=(("worker_slots", "1"),)),
            name=ONE_SLOT,
            rounds=1,
        ),
    ]


def _read(results: Results) -> Iterator[Figure]:
    ours, one = found(results, OURS), found(results, ONE_SLOT)
    if ours:
        share = ours.more("mock_mean_in_flight") / USUAL.in_flight
        yield Figure(
            "share of the in-flight limit kept busy until the last 2 % of lines",
            share,
            "",
            at_least(0.8),
        )
    if ours and one:
        # The longest answer of all is as long for everyone, and ours has five times as many lines
        # before it.
        ratio = ours.more("body_rate") / one.more("body_rate")
        yield Figure(
            "throughput until the last 2 % of lines, against one slot per worker",
            ratio,
            target=at_least(8),
        )
        full = USUAL.in_flight / one.more("mock_mean_in_flight")
        yield Figure(
            "what a limit that is always full would be, against the requests that one slot has in"
            " flight",
            full,
        )
    yield from times_faster(results, OURS, LOOP)


SCENARIOS = [
    Scenario(
        "heavy-tail",
        "10,000 lines, lognormal latency, median 120 ms, σ = 1; also with one slot",
        _contenders,
        _read,
        runs=1,
    )
]
