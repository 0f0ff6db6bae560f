"""What goes through a lane: lines that came together as one work, and what they come back with."""

from dataclasses import dataclass
from typing import Any, Protocol

from xalen_batch.backends.contract import Ended, NotRun, Request
from xalen_batch.worker.circuit_breaker import Source


class Line(Protocol):
    """What a lane needs to know of a line."""

    @property
    def request(self) -> Request: ...


class Work(Protocol):
    """Lines that came together and go on together. Called on the event loop."""

    is_stopped: bool

    @property
    def source(self) -> Source: ...

    def over(self, line: Any, outcome: Ended | NotRun) -> None:
        """Called once for each line."""
        ...


@dataclass(eq=False, slots=True)
class Entry:
    """A line on its way through a lane."""

    work: Work
    line: Line
    is_probe: bool = False
    attempts: int = 0
    failed: int = 0
    # The number of its first request, and when that was sent, by the lane's clock.
    first: int = 0
    first_at: float = 0.0
    is_sent: bool = False

    @property
    def source(self) -> Source:
        return self.work.source

    @property
    def account_id(self) -> str:
        return self.work.source.account_id
