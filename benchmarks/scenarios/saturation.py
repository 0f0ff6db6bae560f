"""A backend with a fixed number of slots: does adaptive concurrency find that number and follow
its changes?
"""

import threading
import time
from collections.abc import Iterator
from statistics import mean

from benchmarks import batches
from benchmarks.mock.options import Options
from benchmarks.mock.server import Stats
from benchmarks.samples import Contender, Figure, Sample, at_least, at_most
from benchmarks.scenarios.scenario import Results, Scenario, found
from benchmarks.stage import Stage
from benchmarks.system import Shape

SLOTS, LATENCY = 64, 0.1
BACKEND = Options(latency=LATENCY, slots=SLOTS)
QUEUEING = Options(latency=LATENCY, slots=SLOTS, queue=SLOTS // 2)
ADAPTIVE, FIXED, FOLLOWING = (
    "left alone, at most 512",
    f"fixed at {SLOTS}",
    "following: 64, then 128, then 32 slots",
)
STEPS = ((0.0, 64), (6.0, 128), (12.0, 32))
SETTLING = 3.0


def _contenders(stage: Stage) -> list[Contender]:
    input_ = stage.chats(20_000)
    return [
        stage.ours(input_, BACKEND, name=ADAPTIVE),
        stage.ours(input_, BACKEND, Shape(in_flight=SLOTS), name=FIXED),
        Contender(FOLLOWING, lambda: _follow(stage), 1),
    ]


def _follow(stage: Stage) -> Sample:
    """One batch while the number of slots changes: their use after each change has settled."""
    input_ = stage.chats(14_000)
    over = threading.Event()

    def change() -> None:
        started = time.monotonic()
        for at, slots in STEPS[1:]:
            if over.wait(max(0.0, started + at - time.monotonic())):
                return
            stage.mock.change(slots=slots, queue=slots // 2)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        sample = batches.run(stage.system(), stage.mock, input_, QUEUEING)
    finally:
        over.set()
        thread.join()
    full = _fullness(stage.mock.stats())
    return Sample(sample.lines, sample.seconds, sample.cpu, sample.peaks, {**sample.more, **full})


def _fullness(stats: Stats) -> dict[str, float]:
    """Share of the slots kept busy in each step, from `SETTLING` seconds on; a step that the run
    did not reach has none.
    """
    ends = [*(at for at, _ in STEPS[1:]), (stats.last_answer or 0.0) - 1.0]
    found = {}
    for (begin, slots), end in zip(STEPS, ends, strict=True):
        inside = [entry for entry in stats.timeline if begin + SETTLING <= entry[0] <= end]
        if len(inside) > 10:
            found[f"full_at_{slots}"] = round(
                mean(min(entry[1], slots) for entry in inside) / slots, 3
            )
    return found


def _read(results: Results) -> Iterator[Figure]:
    adaptive, fixed = found(results, ADAPTIVE), found(results, FIXED)
    if adaptive and fixed:
        yield Figure(
            f"throughput against the best fixed setting ({SLOTS})",
            adaptive.rate / fixed.rate,
            target=at_least(0.95),
        )
        yield Figure("requests in flight, mean", adaptive.more("mock_mean_in_flight"), "")
        yield Figure(
            "refused with 429, per line",
            adaptive.more("mock_refused") / adaptive.samples[0].lines,
            "",
        )
        yield Figure(
            "refused with 429, per line, after the first 3 s",
            adaptive.more("mock_refused_later"),
            "",
            at_most(0.05),
        )
    if following := found(results, FOLLOWING):
        for name, value in following.samples[0].more.items():
            if name.startswith("full_at_"):
                yield Figure(
                    f"slots kept busy after the change to {name.removeprefix('full_at_')}",
                    value,
                    "",
                )


SCENARIOS = [
    Scenario(
        "saturation",
        "a backend with 64 slots that answers 429 beyond; then the slots change",
        _contenders,
        _read,
    )
]
