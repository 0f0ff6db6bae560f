"""Measurements: one sample a run, medians over runs, and the figures derived from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal


@dataclass(frozen=True)
class Sample:
    """One run.

    `cpu`: seconds by process; `peaks`: resident bytes by process; `more`: what only this scenario
    looks at.
    """

    lines: int
    seconds: float
    cpu: Mapping[str, float] = field(default_factory=dict)
    peaks: Mapping[str, int] = field(default_factory=dict)
    more: Mapping[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Lines a second."""
        return self.lines / self.seconds

    @property
    def cpu_per_line(self) -> float:
        """Microseconds, all processes together."""
        return sum(self.cpu.values()) / self.lines * 1e6


@dataclass(frozen=True)
class Measured:
    """All runs of one contender; every property is a median."""

    name: str
    samples: Sequence[Sample]

    @property
    def seconds(self) -> float:
        return median(sample.seconds for sample in self.samples)

    @property
    def rate(self) -> float:
        return median(sample.rate for sample in self.samples)

    @property
    def cpu_per_line(self) -> float:
        return median(sample.cpu_per_line for sample in self.samples)

    def more(self, name: str) -> float:
        return median(sample.more[name] for sample in self.samples)

    def peak(self, role: str) -> int:
        """The highest of any run: a peak's median hides it."""
        return max(
            bytes_
            for sample in self.samples
            for name, bytes_ in sample.peaks.items()
            if name.startswith(role)
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "lines": self.samples[0].lines,
            "seconds": round(self.seconds, 3),
            "lines_per_second": round(self.rate, 1),
            "cpu_us_per_line": round(self.cpu_per_line, 1),
            "runs": [
                {
                    "seconds": round(s.seconds, 3),
                    "cpu_seconds": dict(s.cpu),
                    "peak_rss_bytes": dict(s.peaks),
                    **s.more,
                }
                for s in self.samples
            ],
        }


@dataclass(frozen=True)
class Target:
    relation: Literal["≤", "≥"]
    value: float

    def is_met(self, found: float) -> bool:
        return found <= self.value if self.relation == "≤" else found >= self.value


@dataclass(frozen=True)
class Figure:
    """A number that someone reads: a ratio (`unit` "×"), a share (""), or an absolute figure."""

    name: str
    value: float
    unit: str = "×"
    target: Target | None = None

    @property
    def is_ok(self) -> bool | None:
        return None if self.target is None else self.target.is_met(self.value)


def at_most(value: float) -> Target:
    return Target("≤", value)


def at_least(value: float) -> Target:
    return Target("≥", value)


@dataclass(frozen=True)
class Contender:
    """Someone who runs the same work. `rounds`: at most so many runs, for the slow ones."""

    name: str
    run: Callable[[], Sample]
    rounds: int | None = None


@dataclass(frozen=True)
class Outcome:
    """A scenario's results. `missing`: who was not measured, and why."""

    scenario: str
    summary: str
    measured: Mapping[str, Measured]
    figures: Sequence[Figure]
    missing: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
