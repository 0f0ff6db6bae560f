"""Joins the lines of an input file with those of its output and error file."""

import json
import re
from collections.abc import Iterable
from enum import Enum, auto
from typing import Any

from openai import BaseModel

from xalen.types.results import LineResult, parse


class Side(Enum):
    REQUESTS = auto()
    OUTPUT = auto()
    ERRORS = auto()


class Join:
    """A merge join: all three files are in the order of the input, so it holds a line of each.

    `put` the next line of each side that `wanted` names, then `take` a result. Both kinds of
    clients drive it.
    """

    def __init__(self, answer: type[BaseModel]) -> None:
        self._answer = answer
        self._heads: dict[Side, Any] = {}
        self._ended: set[Side] = set()
        # The number of the request at the head, blank lines included.
        self._number = 0

    def wanted(self) -> Iterable[Side]:
        return [side for side in Side if side not in self._heads and side not in self._ended]

    def put(self, side: Side, line: bytes | None) -> None:
        """The next line of a side; None if it has no more."""
        if side is Side.REQUESTS:
            self._number += 1
        if line is None:
            self._ended.add(side)
        elif line.strip():
            self._heads[side] = _decoded(line) if side is Side.REQUESTS else json.loads(line)

    @property
    def is_over(self) -> bool:
        return len(self._ended) == len(Side) and not self._heads

    def take(self) -> LineResult[Any] | None:
        """The next result; None if more lines have to be put first."""
        if self.wanted():
            return None
        if Side.REQUESTS in self._ended:
            # Without their requests: the input file was deleted.
            return self._taken(Side.OUTPUT if Side.OUTPUT in self._heads else Side.ERRORS, None)
        request = self._heads.pop(Side.REQUESTS)
        custom_id = request.get("custom_id") if isinstance(request, dict) else None
        for side in (Side.OUTPUT, Side.ERRORS):
            if side in self._heads and self._heads[side]["custom_id"] == custom_id:
                return self._taken(side, request)
        # An invalid line that was skipped, and whose id could not be used.
        name = str(self._heads.get(Side.ERRORS, {}).get("custom_id"))
        if re.fullmatch(rf"line-{self._number}(-\d+)?", name, re.ASCII):
            return self._taken(Side.ERRORS, request)
        return None

    def _taken(self, side: Side, request: Any) -> LineResult[Any] | None:
        if side not in self._heads:
            return None
        return parse(self._heads.pop(side), self._answer, request)


def _decoded(line: bytes) -> Any:
    """The value of a line; None if it is no JSON, as a line may be that was skipped."""
    try:
        return json.loads(line)
    except ValueError:
        return None
