"""A TCP proxy that simulates network faults between two processes.

It listens on a free loopback port, in a thread of the test process, and forwards to one address.
Tests switch its faults while it runs; a fault replaces the one before, and applies to open and new
connections.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.waiting import PATIENCE

T = TypeVar("T")

# A port of 127.0.0.1 or another host, or the path of a Unix socket.
Target = tuple[str, int] | Path
CHUNK = 1024 * 1024
RST_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Faults:
    delay: float = 0.0  # seconds that each chunk waits, either way
    slice: int = CHUNK  # most bytes that are sent at a time, either way
    cut_after: int | None = (
        None  # bytes of answers that a connection still carries before it is closed
    )
    is_silent: bool = False
    is_resetting: bool = False


class Link:
    """One client's connection and ours to the target."""

    def __init__(self, proxy: "FaultProxy", client: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._ends = [client]
        self.is_open = True
        self.answered = 0  # bytes since the fault in force began

    async def carry(self, reader: asyncio.StreamReader) -> None:
        try:
            if self._proxy.faults.is_resetting:
                self.reset()
                return
            target = self._proxy.target
            opening = (
                asyncio.open_unix_connection(target)
                if isinstance(target, Path)
                else asyncio.open_connection(*target)
            )
            answers, out = await opening
            self._ends.append(out)
            for end in self._ends:
                if end.get_extra_info("socket").family != socket.AF_UNIX:
                    end.get_extra_info("socket").setsockopt(
                        socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
                    )
            await asyncio.gather(
                self._pump(reader, out), self._pump(answers, self._ends[0], are_answers=True)
            )
        except OSError:
            self.reset()
        finally:
            self.is_open = False
            for end in self._ends:
                end.close()

    async def _pump(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, *, are_answers: bool = False
    ) -> None:
        while chunk := await source.read(CHUNK):
            await asyncio.sleep(self._proxy.faults.delay)
            while chunk:
                await self._proxy.passes.wait()
                faults = self._proxy.faults
                most = faults.slice
                if are_answers and faults.cut_after is not None:
                    most = min(most, faults.cut_after - self.answered)
                    if most <= 0:
                        self.cut()
                        return
                to.write(chunk[:most])
                await to.drain()
                if are_answers:
                    self.answered += len(chunk[:most])
                chunk = chunk[most:]
                # The receiver gets each slice in a read of its own.
                await asyncio.sleep(0)
        await self._proxy.passes.wait()
        if to.can_write_eof():
            to.write_eof()

    def cut(self) -> None:
        """Close both sides normally (no reset), possibly in the middle of a message."""
        for end in self._ends:
            end.close()

    def reset(self) -> None:
        for end in self._ends:
            if end.transport.is_closing():
                continue
            end.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE
            )
            end.transport.abort()


class FaultProxy:
    """`with FaultProxy(("127.0.0.1", 5432)) as proxy: connect to proxy.port; proxy.black_hole(); …;
    proxy.heal()`.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.faults = Faults()
        self.passes = asyncio.Event()
        self.passes.set()
        self.accepted = 0
        self._links: set[Link] = set()
        # A bound socket that does not listen: it keeps the port from other processes, and while
        # the proxy does not listen, connections are refused.
        self._holder = _bound(0)
        self.port: int = self._holder.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="fault-proxy", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._holder.close()

    @property
    def open(self) -> int:
        """The number of open connections."""
        return self._call(lambda: sum(link.is_open for link in self._links))

    def heal(self) -> None:
        """End the fault: forward all bytes, those that a black hole held back, too."""
        self._do(self._set(Faults()))

    def delay(self, seconds: float) -> None:
        self._do(self._set(Faults(delay=seconds)))

    def slices(self, size: int = 1) -> None:
        """Forward `size` bytes at a time."""
        self._do(self._set(Faults(slice=size)))

    def cut_after(self, size: int) -> None:
        """Close each connection after `size` more bytes of answers."""
        self._do(self._set(Faults(cut_after=size)))

    def black_hole(self) -> None:
        """Accept connections, but forward neither bytes nor their end."""
        self._do(self._set(Faults(is_silent=True)))

    def reset(self) -> None:
        """Reset open and new connections."""
        self._do(self._set(Faults(is_resetting=True)))

    def refuse(self) -> None:
        """Reset open connections, and refuse new ones."""
        self._do(self._set(Faults(is_resetting=True), is_listening=False))

    def break_connections(self) -> None:
        """Reset open connections; the fault in force stays."""
        self._call(self._reset_all)

    async def _set(self, faults: Faults, *, is_listening: bool = True) -> None:
        self.faults = faults
        for link in self._links:
            link.answered = 0
        (self.passes.clear if faults.is_silent else self.passes.set)()
        if is_listening:
            await self._listen()
        elif self._server is not None:
            self._server.close()
            self._server = None
        if faults.is_resetting:
            self._reset_all()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(
                self._serve, sock=_bound(self.port), limit=CHUNK
            )

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = Link(self, client)
        self._links.add(link)
        try:
            await link.carry(reader)
        finally:
            self._links.discard(link)

    def _reset_all(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=PATIENCE)

    def _call(self, function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(timeout=PATIENCE)


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound
