"""What a scenario is."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.samples import Contender, Figure, Measured, Target
from benchmarks.stage import Stage

Results = Mapping[str, Measured]


@dataclass(frozen=True)
class Scenario:
    """contenders: who runs, in the order of a round. read: the figures, ratios first.

    runs: interleaved rounds. is_default: whether it is part of the default set.
    """

    name: str
    summary: str
    contenders: Callable[[Stage], list[Contender]]
    read: Callable[[Results], Iterator[Figure]]
    runs: int = 3
    is_default: bool = True


def found(results: Results, start: str) -> Measured | None:
    """The contender whose name starts so, if it was measured."""
    return next((measured for name, measured in results.items() if name.startswith(start)), None)


def times_faster(
    results: Results, ours: str, other: str, target: Target | None = None
) -> Iterator[Figure]:
    mine, theirs = found(results, ours), found(results, other)
    if mine and theirs:
        yield Figure(f"throughput against {theirs.name}", mine.rate / theirs.rate, target=target)


def cpu_ratio(
    results: Results, ours: str, other: str, target: Target | None = None
) -> Iterator[Figure]:
    mine, theirs = found(results, ours), found(results, other)
    if mine and theirs and theirs.cpu_per_line:
        whose = ", all our processes" if len(mine.samples[0].cpu) > 1 else f" of {mine.name}"
        yield Figure(
            f"CPU per line{whose}, against {theirs.name}",
            mine.cpu_per_line / theirs.cpu_per_line,
            target=target,
        )
