"""A model server that misbehaves on a raw socket: each path under /v1 is one way of doing so."""

import asyncio
import contextlib
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from tests.hostile.answers import ENDLESS

GOOD = b'{"id":"x","object":"chat.completion","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
MiB = 1024 * 1024
# Many times the bytes of an endless answer that a client and the kernel's buffers may take.
MOST_ENDLESS = 128 * MiB


class Seen(NamedTuple):
    head: str
    body: bytes


Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def reply(body: bytes, status: str = "200 OK", **headers: str) -> Answer:
    """An ordinary answer; header names are written with underscores."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    encoded = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode() + body

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(encoded)

    return answer


def raw(encoded: bytes) -> Answer:
    """Exactly these bytes, and the end of the connection."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(encoded)
        await writer.drain()
        writer.close()

    return answer


async def reset(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    writer.transport.abort()


async def never(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    for _ in range(1000):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def drip_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
    for _ in range(1000):
        writer.write(b"H")
        await writer.drain()
        await asyncio.sleep(0.02)


async def huge(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (1024 * MiB))
    for _ in range(1024):
        writer.write(b" " * MiB)
        await writer.drain()


async def gzip_bomb(writer: asyncio.StreamWriter) -> None:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    packed = b"".join(packer.compress(b" " * MiB) for _ in range(64)) + packer.flush()
    await reply(packed, content_encoding="gzip")(writer)


def endless(way: str) -> Answer:
    """One of ENDLESS, for as long as the client reads it, at most MOST_ENDLESS bytes."""
    begin, piece = ENDLESS[way]
    piece *= 64 * 1024 // len(piece)

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        for _ in range(MOST_ENDLESS // len(piece)):
            writer.write(piece)
            await writer.drain()
        raise AssertionError(f"{MOST_ENDLESS} bytes of {way} were read")

    return answer


class Hostile:
    """Answers every request with `answer`, and records the requests."""

    def __init__(self) -> None:
        self.answer: Answer = reply(GOOD)
        self.seen: list[Seen] = []
        self.port = 0
        self.failures: list[AssertionError] = []

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError
        ):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lengths = [
                    line.split(":")[1]
                    for line in head.split("\r\n")
                    if line.lower().startswith("content-length:")
                ]
                self.seen.append(
                    Seen(head, await reader.readexactly(int(lengths[0]) if lengths else 0))
                )
                try:
                    await self.answer(writer)
                except AssertionError as failure:
                    self.failures.append(failure)
                    break
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def hostile() -> AsyncIterator[Hostile]:
    server = Hostile()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        server.port = listening.sockets[0].getsockname()[1]
        yield server
