"""A backend with a limit on requests per minute: with that limit in the catalog, we use all of it
and the backend refuses none.
"""

from collections.abc import Iterator

from benchmarks.mock.options import Options
from benchmarks.samples import Contender, Figure
from benchmarks.scenarios.scenario import Results, Scenario, found
from benchmarks.stage import Stage
from benchmarks.system import Shape

PER_MINUTE, LINES = 12_000, 1_500
BACKEND = Options(latency=0.1, requests_per_minute=PER_MINUTE)
TOLD, UNTOLD = "xalen-batch, limit in the catalog", "xalen-batch, limit unknown"


def _contenders(stage: Stage) -> list[Contender]:
    input_ = stage.chats(LINES)
    return [
        stage.ours(input_, BACKEND, Shape(requests_per_minute=PER_MINUTE), name=TOLD),
        stage.ours(input_, BACKEND, name=UNTOLD),
    ]


def _read(results: Results) -> Iterator[Figure]:
    for name in (TOLD, UNTOLD):
        if ours := found(results, name):
            share = ours.more("body_rate") * 60 / PER_MINUTE
            yield Figure(
                f"{name}: share of the allowed rate, until the last 2 % of lines", share, ""
            )
            yield Figure(
                f"{name}: refused with 429, per line",
                ours.more("mock_refused") / ours.samples[0].lines,
                "",
            )


SCENARIOS = [
    Scenario(
        "rate-limit",
        "1,500 lines on a backend that allows 12,000 requests a minute",
        _contenders,
        _read,
        runs=1,
    )
]
