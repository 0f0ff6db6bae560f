"""The ceiling: our own HTTP client in a bare loop. Bytes go out as they are, answers are read and dropped, nothing is stored."""

import asyncio

import uvloop
from pyreqwest.client import Client, ClientBuilder

from benchmarks.references.script import Work, main


async def _run(work: Work) -> int:
    waiting = iter(work.bodies)
    client = ClientBuilder().no_proxy().default_headers({"content-type": "application/json"}).pool_max_idle_per_host(work.in_flight).build()
    async with client:
        counts = await asyncio.gather(*(_pump(client, work.url, waiting) for _ in range(work.in_flight)))
    return sum(counts)


async def _pump(client: Client, url: str, waiting: "object") -> int:
    answered = 0
    for body in waiting:  # type: ignore[attr-defined]
        async with client.post(url).body_bytes(body).build_streamed() as response:
            await response.bytes()
            answered += response.status == 200
    return answered


if __name__ == "__main__":
    main(lambda work: uvloop.run(_run(work)))
