"""Prefix order: lines whose prompts begin alike run one behind the other, while the backend's
prefix cache still holds that beginning.

Such a cache knows a prompt by its blocks from the first token on: the tools, then one message after
the other. So a line is known here by marks, each of them a checksum of all its prompt up to a
place: lines with the same first marks begin alike. Two prompts with the same checksum by chance
cost a place in the order, and nothing else.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import orjson

# Bytes that are worth a place beside another line: about four blocks of 16 tokens. Sharing less
# moves no line.
LEAST = 256
# Bounds what a line of many messages costs.
MOST_MARKS = 24
# Of a mark's bits, those by which lines are known to begin alike before they are arranged.
FIRST_BITS = 20
LAST_BITS = (1 << FIRST_BITS) - 1


def _places() -> Iterator[int]:
    place = LEAST
    for _ in range(MOST_MARKS):
        yield place
        place += max(LEAST, place // 2)


# Where in a message the marks are, in bytes from its beginning; the last is at about 2 MiB.
PLACES = tuple(_places())


# What the model reads, in pieces: text, or JSON as bytes.
Prompt = Sequence[str | bytes]


def prompt(body: Mapping[str, Any]) -> Prompt:
    """What a chat request has the model read, in the order in which it is read: the tools, then
    each message.
    """
    tools = body.get("tools")
    contents = [(message, message.get("content")) for message in body["messages"]]
    messages = [
        content if isinstance(content, str) else orjson.dumps(message)
        for message, content in contents
    ]
    return [orjson.dumps(tools), *messages] if tools else messages


def first_mark(prompt: Prompt) -> int | None:
    """The first of its marks, for a fraction of what all of them cost; None where there is none."""
    text = b""
    for piece in prompt:
        # No character has less than a byte.
        head = _bytes(piece[:LEAST])
        text = text + head if text else head
        if len(text) >= LEAST:
            return crc32(text[:LEAST])
    return None


def marks(prompt: Prompt) -> list[int]:
    """The marks of a prompt, 32 bits each; none where it is shorter than `LEAST`.

    They are at `PLACES` of each piece, and at the end of each piece that another follows, if
    `LEAST` bytes lie behind the mark before. So what two prompts share is seen if it is half as
    long as what comes before it in its piece. A mark depends on nothing behind it.
    """
    return _Read().then(prompt).marks


@dataclass(frozen=True, slots=True)
class _Read:
    """A prompt up to the end of a piece: its marks so far, and the bytes behind the last of them."""

    marks: list[int] = field(default_factory=list)
    rest: bytes = b""

    def then(self, pieces: Prompt) -> "_Read":
        """The same prompt, so many pieces further."""
        marks, rest = self.marks.copy(), self.rest
        chain = marks[-1] if marks else 0
        for piece in pieces:
            if len(marks) >= MOST_MARKS:
                break
            if len(rest) >= LEAST:
                chain = crc32(rest, chain)
                marks.append(chain)
                rest = b""
            text = rest + _bytes(piece) if rest else _bytes(piece)
            size, begin = len(text), 0
            for end in PLACES:
                if end > size:
                    break
                chain = crc32(text[begin:end], chain)
                marks.append(chain)
                begin = end
            rest = text[begin:]
        return _Read(marks[:MOST_MARKS], rest)


def _bytes(piece: str | bytes) -> bytes:
    return piece.encode() if isinstance(piece, str) else piece


class Marker:
    """Makes the marks of one line after the other, and no more of them than can matter."""

    def __init__(self) -> None:
        # A byte for the last bits of each first mark so far. What another had set costs a line the
        # making of all its marks.
        self._seen = bytearray(1 << FIRST_BITS)
        # Mostly all lines have the same first message: that of the last line of which all marks
        # were made.
        self._opening: str | bytes | None = None
        self._opened = _Read()

    def marks(self, prompt: Prompt) -> Sequence[int]:
        """Of a line that begins like none before it the first mark is all that is made: most of
        what long prompts cost.

        So the first line of a group may part from those that go on as it does, once in a group.
        """
        if prompt and prompt[0] == self._opening:
            return self._opened.then(prompt[1:]).marks
        first = first_mark(prompt)
        if first is None:
            return ()
        place = first & LAST_BITS
        if not self._seen[place]:
            self._seen[place] = True
            return (first,)
        opened = _Read().then(prompt[:1])
        if opened.marks:
            self._opening, self._opened = prompt[0], opened
        return opened.then(prompt[1:]).marks


class Starts:
    """How many lines begin: their marks, held as 4 bytes each.

    Lines are numbered from 0, as they are added.
    """

    def __init__(self) -> None:
        self._marks = array("I")
        self._begins = array("I", [0])

    def add(self, marks: Sequence[int]) -> None:
        self._marks.extend(marks)
        self._begins.append(len(self._marks))

    def extend(self, others: "Starts") -> None:
        """Add lines that were numbered from 0 elsewhere."""
        before = len(self._marks)
        self._marks.extend(others._marks)
        self._begins.extend(before + begin for begin in others._begins[1:])

    def running_order(self) -> list[int]:
        """Each line once: those that begin alike together, and in each such group those that go on
        alike.

        Groups come in the order of their first lines, and what begins like no other line stays
        where it is among them.
        """
        lines = list(range(len(self._begins) - 1))
        # No mark is there twice: no line begins like another.
        if len(set(self._marks)) == len(self._marks):
            return lines
        order: list[int] = []
        self._arrange(lines, 0, order)
        return order

    def _arrange(self, lines: list[int], depth: int, order: list[int]) -> None:
        """Append lines that have their first `depth` marks in common."""
        marks, begins = self._marks, self._begins
        # Behind its last mark a line is a group of its own.
        names = [
            marks[begins[line] + depth] if begins[line] + depth < begins[line + 1] else ~line
            for line in lines
        ]
        distinct = len(set(names))
        if distinct == len(lines):
            order.extend(lines)
            return
        if distinct == 1:
            self._arrange(lines, depth + 1, order)
            return
        groups: dict[int, list[int]] = {}
        for name, line in zip(names, lines, strict=True):
            groups.setdefault(name, []).append(line)
        for alike in groups.values():
            self._arrange(alike, depth + 1, order)
