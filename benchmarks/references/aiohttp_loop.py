"""An ordinary aiohttp loop as people write it: a semaphore, `json=`, `.json()`.

Nothing is stored.
"""

import asyncio
from typing import Any

import aiohttp

from benchmarks.references.script import Work, main


async def _run(work: Work) -> int:
    limit = asyncio.Semaphore(work.in_flight)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=work.in_flight)
    ) as session:

        async def ask(request: dict[str, Any]) -> bool:
            async with limit, session.post(work.url, json=request) as response:
                answer = await response.json()
                return bool(answer["choices"])

        return sum(await asyncio.gather(*(ask(request) for request in work.requests())))


if __name__ == "__main__":
    main(lambda work: asyncio.run(_run(work)))
