"""The ceiling: our own HTTP client in a bare loop.

Bytes go out as they are, answers are read and dropped, nothing is stored.
"""

import asyncio
from collections.abc import Iterator

import uvloop

from benchmarks.references.script import Work, main
from xalen_batch.backends.buffer import Buffer
from xalen_batch.backends.clients.contract import Client, Limits
from xalen_batch.backends.clients.plain import PlainClient

LIMITS = Limits(request_timeout=600, connect_timeout=10, answer_bytes=8 << 20)


async def _run(work: Work) -> int:
    return await run(
        work, PlainClient(work.url, {"content-type": "application/json"}, LIMITS, Buffer())
    )


async def run(work: Work, client: Client) -> int:
    """All the work through a client: how many answers were good."""
    waiting = iter(work.bodies)
    counts = await asyncio.gather(*(_pump(client, waiting) for _ in range(work.in_flight)))
    await client.close()
    return sum(counts)


async def _pump(client: Client, waiting: Iterator[bytes]) -> int:
    answered = 0
    for body in waiting:
        reply = await client.post("", body, "req_1")
        answered += reply.status == 200
    return answered


if __name__ == "__main__":
    main(lambda work: uvloop.run(_run(work)))
