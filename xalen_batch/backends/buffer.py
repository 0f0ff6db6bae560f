"""Back-pressure: the bytes of answers that a worker holds, from their arrival until they are
recorded.

A backend that answers faster than the database records fills its buffer. Its connections are then
not read, TCP's flow control holds the rest at the server, and no further lines are claimed for it.
Each backend has a buffer of its own, so that one that sends much, or never ends what it sends,
takes no memory and no time of another.
"""

import asyncio
import math
from typing import Protocol

# A client reads at most this many bytes of a connection at a time.
READ_BYTES = 64 * 1024


class Reader(Protocol):
    """An answer that is arriving.

    Both methods may be called between its first bytes and its end.
    """

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Buffer:
    """Of one backend; used on the event loop, but for `is_full`.

    It holds at most `most` bytes, one read of each answer in flight, and one whole answer. The last
    is read although the buffer is full, when nothing waits to be recorded: otherwise answers that
    are all half there would wait for each other.
    """

    def __init__(self, most: float = math.inf) -> None:
        self.most = most
        # Of answers that are arriving or wait to be recorded.
        self.held = 0
        self._unrecorded = 0
        # Bytes that have arrived of each, the answer that began first in front.
        self._arriving: dict[Reader, int] = {}
        self._paused: set[Reader] = set()
        # The one that is read although the buffer is full.
        self._passing: Reader | None = None

    @property
    def is_full(self) -> bool:
        return self.held >= self.most

    def arrived(self, reader: Reader, count: int) -> None:
        """More bytes of an answer are here."""
        self._arriving[reader] = self._arriving.get(reader, 0) + count
        self.held += count
        if self.held >= self.most:
            for other in self._arriving.keys() - self._paused:
                if other is not self._passing:
                    self._paused.add(other)
                    other.pause()
            self._go_on()

    def ended(self, reader: Reader) -> None:
        """An answer is whole, or was given up.

        One that is kept is `answered` before the event loop goes on.
        """
        self.held -= self._arriving.pop(reader, 0)
        if reader in self._paused:
            # Its connection may be used again.
            self._resume(reader)
        if reader is self._passing:
            self._passing = None
        if self._paused:
            # When the caller has said where the answer's bytes are now.
            asyncio.get_running_loop().call_soon(self._go_on)

    def answered(self, count: int) -> None:
        """An answer of `count` bytes waits to be recorded."""
        self._unrecorded += count
        self.held += count

    def recorded(self, count: int) -> None:
        """So many bytes wait no longer."""
        self._unrecorded -= count
        self.held -= count
        if self._paused:
            self._go_on()

    def _go_on(self) -> None:
        """Read the oldest answers for which there is room, or else a single one."""
        room = self.most - self.held
        for reader in [reader for reader in self._arriving if reader in self._paused]:
            if room <= 0:
                break
            room -= READ_BYTES
            self._resume(reader)
        if (
            self._passing is None
            and not self._unrecorded
            and len(self._paused) == len(self._arriving)
        ):
            self._passing = next(iter(self._arriving), None)
            if self._passing is not None:
                self._resume(self._passing)

    def _resume(self, reader: Reader) -> None:
        self._paused.discard(reader)
        reader.resume()


class Buffers:
    """One for each backend of a process; together they hold `most` bytes, in equal shares."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._made: list[Buffer] = []

    def add(self) -> Buffer:
        """The buffer of another backend; those of the others shrink."""
        self._made.append(Buffer())
        for buffer in self._made:
            buffer.most = self._most // len(self._made)
        return self._made[-1]
