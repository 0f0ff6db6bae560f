"""Faults that a simulated model produces if the request asks for them.

A chat asks with `"metadata": {"simulate": "…"}`, a rerank with a top-level `"simulate": "…"` (for a
reranker through chat, inside its message). Directives are separated by `;`:

| directive | what happens |
|---|---|
| `status=500` | an error answer with that status (400..599) |
| `retry_after=1.5` | … and this `Retry-After`, seconds |
| `hang` | no answer at all; the client's timeout ends it |
| `reset` | the connection breaks |
| `truncate` | the connection ends in the middle of the answer |
| `html` | 200 with a page of HTML |
| `empty` | 200 without a body |
| `no_usage` | an answer without `usage` |
| `usage=negative` | an answer whose `usage` is wrong: `negative`, `string`, `float`, `bool`, `null` or `absurd` |
| `slow=800` | answered this many milliseconds later |
| `times=2` | all of this for the first two attempts of a request id only |
"""

from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import Any

USAGES: dict[str, Any] = {
    "negative": -1,
    "string": "12",
    "float": 1.5,
    "bool": True,
    "null": None,
    "absurd": 10**12,
}
MOST_REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class Fault:
    status: int | None = None
    retry_after: float | None = None
    hang: bool = False
    reset: bool = False
    truncate: bool = False
    html: bool = False
    empty: bool = False
    no_usage: bool = False
    usage: str | None = None
    slow: int = 0
    times: int | None = None


NONE = Fault()
_FLAGS = frozenset(field.name for field in fields(Fault) if field.type is bool)
_NUMBERS: dict[str, type[int] | type[float]] = {
    "status": int,
    "retry_after": float,
    "slow": int,
    "times": int,
}


def parse(directives: str) -> Fault:
    """Parse directives. Raises ValueError, with a message for the user, for an unknown one."""
    wanted: dict[str, Any] = {}
    for directive in filter(None, map(str.strip, directives.split(";"))):
        name, equals, value = directive.partition("=")
        if name in _FLAGS and not equals:
            wanted[name] = True
        elif name == "usage" and value in USAGES:
            wanted[name] = value
        elif name in _NUMBERS and _is_number(name, value):
            wanted[name] = _NUMBERS[name](value)
        else:
            raise ValueError(f"The simulated models know no fault {directive!r}.")
    return Fault(**wanted)


def _is_number(name: str, value: str) -> bool:
    try:
        number = _NUMBERS[name](value)
    except ValueError:
        return False
    return 400 <= number <= 599 if name == "status" else 0 <= number < 100_000


class Attempts:
    """Counts the attempts of each request id, for `times`; keeps the latest MOST_REMEMBERED ids."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, int] = OrderedDict()

    def next(self, request_id: str) -> int:
        """The number of this attempt, from 1."""
        attempt = self._seen.pop(request_id, 0) + 1
        self._seen[request_id] = attempt
        if len(self._seen) > MOST_REMEMBERED:
            self._seen.popitem(last=False)
        return attempt
