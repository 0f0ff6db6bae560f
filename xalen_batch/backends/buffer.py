"""Back-pressure: a bound on the bytes of answers that a worker holds until they are recorded.

A backend that answers faster than the database records fills its buffer. Its connections are then
not read, TCP's flow control holds the rest at the server, and no further lines are claimed for it.
Each backend has its own buffer, so a backend with large or endless answers takes no memory or time
from the others.
"""

import asyncio
import math
from typing import Protocol

# A client reads at most this many bytes of a connection at a time.
READ_BYTES = 64 * 1024


class Reader(Protocol):
    """An answer that is arriving.

    The buffer calls both methods between the answer's first bytes and its end.
    """

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Buffer:
    """The buffer of one backend. Used on the event loop thread; `is_full` on any thread.

    It holds at most `most` bytes, plus one read of each answer in flight, plus one whole answer. If
    the buffer is full and no answer waits to be recorded, that one answer is read all the same:
    otherwise the incomplete answers in the buffer would wait for each other forever.
    """

    def __init__(self, most: float = math.inf) -> None:
        self.most = most
        # Bytes of the answers that are arriving or wait to be recorded.
        self.held = 0
        self._unrecorded = 0
        # The bytes of each arriving answer that are here, in the order in which the answers began.
        self._arriving: dict[Reader, int] = {}
        self._paused: set[Reader] = set()
        # The answer that is read although the buffer is full.
        self._passing: Reader | None = None

    @property
    def is_full(self) -> bool:
        return self.held >= self.most

    def arrived(self, reader: Reader, count: int) -> None:
        """Count more bytes of an answer; a full buffer pauses the answers that are arriving."""
        self._arriving[reader] = self._arriving.get(reader, 0) + count
        self.held += count
        if self.held >= self.most:
            for other in self._arriving.keys() - self._paused:
                if other is not self._passing:
                    self._paused.add(other)
                    other.pause()
            self._go_on()

    def ended(self, reader: Reader) -> None:
        """Stop counting an answer that is complete or was given up.

        For an answer that is kept, `answered` is called before control returns to the event loop.
        """
        self.held -= self._arriving.pop(reader, 0)
        if reader in self._paused:
            # Its connection may be used again.
            self._resume(reader)
        if reader is self._passing:
            self._passing = None
        if self._paused:
            # Deferred, so that the caller can first call `answered`.
            asyncio.get_running_loop().call_soon(self._go_on)

    def answered(self, count: int) -> None:
        """Count an answer of `count` bytes, which waits to be recorded."""
        self._unrecorded += count
        self.held += count

    def recorded(self, count: int) -> None:
        """Release `count` bytes, which no longer wait to be recorded."""
        self._unrecorded -= count
        self.held -= count
        if self._paused:
            self._go_on()

    def _go_on(self) -> None:
        """Resume the oldest answers that fit.

        If all stay paused and no answer waits to be recorded, resume the oldest all the same.
        """
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
    """The buffers of a process, one for each backend; they share `most` bytes equally."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._made: list[Buffer] = []

    def add(self) -> Buffer:
        """Return the buffer of another backend; the shares of the existing ones shrink."""
        self._made.append(Buffer())
        self._divide()
        return self._made[-1]

    def remove(self, buffer: Buffer) -> None:
        """Give the share of a backend that is closed to the others."""
        self._made.remove(buffer)
        self._divide()

    def _divide(self) -> None:
        for buffer in self._made:
            buffer.most = self._most // len(self._made)
