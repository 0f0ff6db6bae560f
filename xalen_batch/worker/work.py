"""What goes through a lane: a work (lines that came together), and an entry for each line."""

from dataclasses import dataclass
from typing import Any, Protocol

from xalen_batch.backends.contract import Ended, NotRun, Request
from xalen_batch.worker.circuit_breaker import Source


class SendableLine(Protocol):
    """The part of a line that a lane reads."""

    @property
    def request(self) -> Request: ...


class Work(Protocol):
    """Lines that were added together and are stopped together; event loop thread only.

    A worker's work is a `TaskRun`.
    """

    is_stopped: bool

    @property
    def source(self) -> Source: ...

    def over(self, line: Any, outcome: Ended | NotRun) -> None:
        """Called once for each line, when it has ended or is returned."""
        ...


@dataclass(eq=False, slots=True)
class Entry:
    """A line on its way through a lane; event loop thread only."""

    work: Work
    line: SendableLine
    is_probe: bool = False
    # Requests sent for it, and those whose failure counts against it.
    attempts: int = 0
    failed: int = 0
    # The number of its first request (`Circuit.sent`), and the lane's clock when it was sent.
    first: int = 0
    first_at: float = 0.0
    is_sent: bool = False

    @property
    def source(self) -> Source:
        return self.work.source

    @property
    def account_id(self) -> str:
        return self.work.source.account_id
