"""What it costs to have every result on disk: the pipeline as it is against the same without the
write of results.
"""

from collections.abc import Iterator

from benchmarks.mock.options import Options
from benchmarks.samples import Contender, Figure, at_most
from benchmarks.scenarios.scenario import Results, Scenario, cpu_ratio, found
from benchmarks.stage import Stage
from benchmarks.system import Shape

OURS, UNRECORDED = "xalen-batch", "the same, results not written"


def _contenders(stage: Stage) -> list[Contender]:
    input_ = stage.chats(20_000)
    return [
        stage.ours(input_, Options(), name=OURS),
        stage.ours(input_, Options(), Shape(is_recording=False), name=UNRECORDED),
    ]


def _read(results: Results) -> Iterator[Figure]:
    yield from cpu_ratio(results, OURS, UNRECORDED, at_most(1.3))
    if ours := found(results, OURS):
        yield Figure("CPU per line, all processes", ours.cpu_per_line, "µs")


SCENARIOS = [
    Scenario(
        "durability",
        "20,000 lines at no latency, with and without the write of results",
        _contenders,
        _read,
        runs=2,
    )
]
