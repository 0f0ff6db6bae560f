"""What goes through a lane: a work (lines that came together), and an entry for each request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from msgspec import Raw, Struct

from xalen_batch.backends.contract import Ended, NotRun, Request
from xalen_batch.models.line_attempts import Attempt
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

    def attempt_failed(self, line: Any, attempt: Attempt) -> None:
        """Called for each line of a request that brought no answer, before `over`."""
        ...


class Part(Struct, frozen=True, gc=False):
    """A request for embeddings, as a part of a combined one.

    `fields`: those of its body without `input` and `user`. `inputs`: one JSON value for each, all
    texts or all lists of token ids. `tokens`: by our count.
    """

    fields: dict[str, Raw]
    inputs: list[Raw]
    tokens: int
    is_text: bool

    def is_like(self, other: "Part") -> bool:
        """Whether both can be parts of one request."""
        return self.is_text is other.is_text and self.fields == other.fields


@dataclass(eq=False, slots=True)
class Entry:
    """A request on its way through a lane: of one line, or of several that are combined.

    Event loop thread only.
    """

    work: Work
    lines: Sequence[SendableLine]
    is_probe: bool = False
    # One for each line if lines are combined; of one line, empty until it is read.
    parts: Sequence[Part] = ()
    # Requests sent for it, and those whose failure counts against its line.
    attempts: int = 0
    failed: int = 0
    # The number of its first request (`Circuit.sent`), and the lane's clock when it was sent.
    first: int = 0
    first_at: float = 0.0
    # How long its last request took.
    seconds: float = 0.0
    is_sent: bool = False

    def unanswered(self, attempt: Attempt) -> None:
        """Tell the work of each line that its last request brought no answer."""
        for line in self.lines:
            self.work.attempt_failed(line, attempt)

    @property
    def is_combined(self) -> bool:
        return len(self.lines) > 1

    @property
    def source(self) -> Source:
        return self.work.source

    @property
    def account_id(self) -> str:
        return self.work.source.account_id
