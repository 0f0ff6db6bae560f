"""A backend with a prefix cache: lines that begin alike, mixed in the file, and how much of them is
computed again.
"""

from collections.abc import Iterator

from benchmarks import batches, lines
from benchmarks.mock.options import Options
from benchmarks.mock.prefixes import BLOCK
from benchmarks.samples import Contender, Figure, Sample
from benchmarks.scenarios.scenario import Results, Scenario, found, times_faster
from benchmarks.stage import Stage

OURS, LOOP = "xalen-batch, ordered by prefix", "bare loop, in the file's order"
LINES, LINES_PER_PREFIX, PREFIX_BYTES = 5_000, 25, 2_048


def _contenders(stage: Stage) -> list[Contender]:
    count = stage.scaled(LINES)
    prefixes = max(2, count // LINES_PER_PREFIX)
    input_ = lines.shared_prefixes(stage.folder, count, prefixes, PREFIX_BYTES)
    # Room for a quarter of the prefixes, and for two at least.
    room = max(2, prefixes // 4) * (PREFIX_BYTES // BLOCK + 1)
    backend = Options(latency=0.03, prefix_blocks=room, token_latency=0.0002)

    def ours() -> Sample:
        return _with_tokens(stage, batches.run(stage.system(), stage.mock, input_, backend))

    loop = stage.reference(
        LOOP, "http_client", input_, backend, count=LINES, in_flight=512, processes=2
    )
    return [Contender(OURS, ours), Contender(LOOP, lambda: _with_tokens(stage, loop.run()))]


def _with_tokens(stage: Stage, sample: Sample) -> Sample:
    stats = stage.mock.stats()
    tokens = {
        "computed_tokens": float(stats.input_tokens - stats.cached_tokens),
        "cached_share": round(stats.cached_tokens / stats.input_tokens, 4),
    }
    return Sample(sample.lines, sample.seconds, sample.cpu, sample.peaks, {**sample.more, **tokens})


def _read(results: Results) -> Iterator[Figure]:
    ours, loop = found(results, OURS), found(results, LOOP)
    if ours and loop:
        yield Figure(
            "prompt tokens computed, against the file's order",
            ours.more("computed_tokens") / loop.more("computed_tokens"),
        )
        yield Figure("share of prompt tokens from the cache", ours.more("cached_share"), "")
        yield Figure("the same in the file's order", loop.more("cached_share"), "")
    yield from times_faster(results, OURS, LOOP)


SCENARIOS = [
    Scenario(
        "prefix-cache",
        "5,000 lines with 200 long beginnings, mixed, on a backend with a prefix cache",
        _contenders,
        _read,
        runs=1,
    )
]
