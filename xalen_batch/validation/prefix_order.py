"""Prefix order: lines whose prompts share a prefix run one after the other, while the backend's
prefix cache still holds that prefix.

Such a cache keys a prompt by its blocks of tokens from the first on: the tools, then each message.
A line is therefore described by its prefix hashes: checksums of its prompt up to growing offsets.
Lines with the same first hashes share a prefix. A collision of two checksums changes the order of
two lines, and has no other effect.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from zlib import crc32

from xalen_batch.endpoints.form import Prompt

# Prefixes of fewer bytes are not shared: about four cache blocks of 16 tokens. They move no line.
MIN_BYTES = 256
# Bounds the work and the memory for a line with many messages.
MAX_HASHES = 24
# The size of the filter of first hashes, in bits of a hash: it has 2 ** FILTER_BITS bytes.
FILTER_BITS = 20
FILTER_MASK = (1 << FILTER_BITS) - 1


def _offsets() -> Iterator[int]:
    offset = MIN_BYTES
    for _ in range(MAX_HASHES):
        yield offset
        offset += max(MIN_BYTES, offset // 2)


# The offsets in a message, in bytes, up to which its prefix is hashed; the last is about 2 MiB.
OFFSETS = tuple(_offsets())


def first_hash(prompt: Prompt) -> int | None:
    """The first prefix hash, at a fraction of the cost of all; None if the prompt has none."""
    text = b""
    for piece in prompt:
        # A character has at least one byte, so this slice holds at least MIN_BYTES of a long piece.
        head = _bytes(piece[:MIN_BYTES])
        text = text + head if text else head
        if len(text) >= MIN_BYTES:
            return crc32(text[:MIN_BYTES])
    return None


def prefix_hashes(prompt: Prompt) -> list[int]:
    """The prefix hashes of a prompt, 32 bits each; none for a prompt of less than MIN_BYTES.

    They end at the OFFSETS of each piece, and at the end of each piece that another follows, if
    MIN_BYTES lie between that end and the hash before. A prefix within a piece is therefore found
    if it is half as long as the part of the piece before it. A hash covers only bytes before its
    offset.
    """
    return _HashedPrompt().then(prompt).hashes


@dataclass(frozen=True, slots=True)
class _HashedPrompt:
    """The hashes of a prompt's first pieces, and the bytes behind the last hash."""

    hashes: list[int] = field(default_factory=list)
    rest: bytes = b""

    def then(self, pieces: Prompt) -> "_HashedPrompt":
        """The same prompt with more pieces."""
        hashes, rest = self.hashes.copy(), self.rest
        chain = hashes[-1] if hashes else 0
        for piece in pieces:
            if len(hashes) >= MAX_HASHES:
                break
            if len(rest) >= MIN_BYTES:
                chain = crc32(rest, chain)
                hashes.append(chain)
                rest = b""
            text = rest + _bytes(piece) if rest else _bytes(piece)
            size, begin = len(text), 0
            for end in OFFSETS:
                if end > size:
                    break
                chain = crc32(text[begin:end], chain)
                hashes.append(chain)
                begin = end
            rest = text[begin:]
        return _HashedPrompt(hashes[:MAX_HASHES], rest)


def _bytes(piece: str | bytes) -> bytes:
    return piece.encode() if isinstance(piece, str) else piece


class PrefixHasher:
    """Hashes the prompts of a file's lines in order, and omits hashes that cannot change the order.

    One object for each reading of a file; used by the thread that reads.
    """

    def __init__(self) -> None:
        # A Bloom filter with one hash function and a byte for each bit: the first hashes so far. A
        # false positive only costs computing all hashes of a line.
        self._seen = bytearray(1 << FILTER_BITS)
        # Most files repeat one system prompt: cache the hashes of the last first message.
        self._opening: str | bytes | None = None
        self._opened = _HashedPrompt()

    def hashes(self, prompt: Prompt) -> Sequence[int]:
        """The prefix hashes of the next line; only the first one if no earlier line has that one.

        The other hashes of long prompts are most of the cost. Without them, the first line of a
        group may run apart from the lines that share more of its prompt.
        """
        if prompt and prompt[0] == self._opening:
            return self._opened.then(prompt[1:]).hashes
        first = first_hash(prompt)
        if first is None:
            return ()
        bit = first & FILTER_MASK
        if not self._seen[bit]:
            self._seen[bit] = True
            return (first,)
        opened = _HashedPrompt().then(prompt[:1])
        if opened.hashes:
            self._opening, self._opened = prompt[0], opened
        return opened.then(prompt[1:]).hashes


class PrefixIndex:
    """The prefix hashes of many lines, 4 bytes each.

    Lines are numbered from 0 as they are added.
    """

    def __init__(self) -> None:
        self._hashes = array("I")
        # The hashes of line n are self._hashes[self._begins[n] : self._begins[n + 1]].
        self._begins = array("I", [0])

    def add(self, hashes: Sequence[int]) -> None:
        self._hashes.extend(hashes)
        self._begins.append(len(self._hashes))

    def extend(self, others: "PrefixIndex") -> None:
        """Append the lines of another index."""
        before = len(self._hashes)
        self._hashes.extend(others._hashes)
        self._begins.extend(before + begin for begin in others._begins[1:])

    def running_order(self) -> list[int]:
        """The numbers of all lines, grouped by their prefixes, recursively.

        Groups are in the order of their first lines. A line that shares no prefix is a group of its
        own, so it keeps its position among them.
        """
        lines = list(range(len(self._begins) - 1))
        # All hashes are distinct: no line shares a prefix.
        if len(set(self._hashes)) == len(self._hashes):
            return lines
        order: list[int] = []
        self._arrange(lines, 0, order)
        return order

    def _arrange(self, lines: list[int], depth: int, order: list[int]) -> None:
        """Append to `order` lines that share their first `depth` hashes."""
        keys = self._keys(lines, depth)
        distinct = len(set(keys))
        while distinct == 1 and len(lines) > 1:
            depth += 1
            keys = self._keys(lines, depth)
            distinct = len(set(keys))
        if distinct == len(lines):
            order.extend(lines)
            return
        groups: dict[int, list[int]] = {}
        for key, line in zip(keys, lines, strict=True):
            groups.setdefault(key, []).append(line)
        # A million keys take 36 MB, at each depth of the recursion that holds them.
        del keys
        for group in groups.values():
            self._arrange(group, depth + 1, order)

    def _keys(self, lines: list[int], depth: int) -> list[int]:
        """The hash of each line at a depth.

        A line without one is a group of its own: its key, ~line, is negative.
        """
        hashes, begins = self._hashes, self._begins
        return [
            hashes[begins[line] + depth] if begins[line] + depth < begins[line + 1] else ~line
            for line in lines
        ]
